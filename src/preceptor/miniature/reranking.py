"""A world of search: queries and documents as vectors, graded relevance, few clicks, and a teacher that sees relevance with noise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.run import train
from preceptor.core.types import Batch
from preceptor.metrics.ranking import ndcg
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import seeded
from preceptor.teachers.listwise import Agent, rerank

_WIDTH, _GROUP, _QUANTILES = 12, 8, (0.6, 0.8, 0.93)


class PairScorer(nn.Module):
    """A score of (q, d, q * d) by one hidden layer of tanh."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3 * _WIDTH, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Score queries (B, D) with N candidates each (B, N, D): (B, N)."""
        q = queries[:, None].expand_as(candidates)
        return self.layers(torch.cat([q, candidates, q * candidates], dim=-1)).squeeze(-1)


@dataclass(frozen=True, kw_only=True)
class SearchWorld:
    """Groups with one click each, and whole lists of other queries for test."""

    train: Batch  # ``x``, ``y`` (the clicked document) and ``teacher_scores``
    x: dict[str, Tensor]  # of the test: queries (Q, D), candidates (Q, L, D)
    relevance: Tensor  # true, in standard deviations (Q, L)
    grades: Tensor  # 0 to 3 (Q, L)
    teacher_scores: Tensor  # (Q, L)

    def ndcg(self, scores: Tensor) -> float:
        """Mean nDCG@10 of scores (Q, L), with linear gains."""
        names = [f"{at:03}" for at in range(scores.shape[1])]
        qrels, run = (
            {str(query): dict(zip(names, row, strict=True)) for query, row in enumerate(table.tolist())} for table in (self.grades, scores)
        )
        return ndcg(qrels, run, 10).mean

    def listwise(self, scores: Tensor, noise: float, *, seed: int) -> float:
        """nDCG@10 after a simulated agent has sorted windows of 20 of the first 30, by relevance and noise of so many deviations.

        With infinite noise it sorts by lot.
        """
        generator = torch.Generator().manual_seed(seed)
        seen = noise * torch.randn(self.relevance.shape, generator=generator)
        seen = seen.sign() * torch.rand(seen.shape, generator=generator) if noise == float("inf") else self.relevance + seen
        final = torch.empty_like(scores)
        for query, row in enumerate(scores):
            first = row.argsort(descending=True, stable=True).tolist()
            order = rerank("", [str(at) for at in first], _sorter(seen[query].tolist())).order
            final[query, [first[at] for at in order]] = -torch.arange(len(first), dtype=scores.dtype)
        return self.ndcg(final)


def _sorter(worth: Sequence[float]) -> Agent:
    """An agent that knows what each passage, which is its number, is worth."""

    def agent(messages: list[dict[str, str]]) -> str:
        shown = [re.fullmatch(r"\[(\d+)\] (\d+)", message["content"]) for message in messages]
        passages = [(int(found[1]), worth[int(found[2])]) for found in shown if found]
        return " > ".join(f"[{number}]" for number, _ in sorted(passages, key=lambda pair: -pair[1]))

    return agent


def search_world(seed: int, size: Size) -> SearchWorld:
    """60 queries with 8 documents for training and 100 with 60 for test; a teacher whose noise is half a deviation of relevance."""
    queries, tested, listed = (60, 100, 60) if size == "full" else (20, 10, 32)
    generator = torch.Generator().manual_seed(seed)
    truth = seeded(lambda: PairScorer(24), seed)
    with torch.no_grad():
        for parameter in truth.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
        sets = [
            {"queries": torch.randn(n, _WIDTH, generator=generator), "candidates": torch.randn(n, m, _WIDTH, generator=generator)}
            for n, m in ((queries, _GROUP), (tested, listed))
        ]
        raw = [truth(**x) for x in sets]
    mean, deviation = raw[1].mean(), raw[1].std()
    known, relevance = ((r - mean) / deviation for r in raw)
    edges = relevance.quantile(torch.tensor(_QUANTILES))
    scores = [r + 0.5 * torch.randn(r.shape, generator=generator) for r in (known, relevance)]
    clicks = torch.multinomial(torch.exp2(torch.bucketize(known, edges).float()), 1, generator=generator).squeeze(1)
    train = {"x": sets[0], "y": clicks, "teacher_scores": scores[0], "id": torch.arange(queries)}
    grades = torch.bucketize(relevance, edges)
    return SearchWorld(train=train, x=sets[1], relevance=relevance, grades=grades, teacher_scores=scores[1])


def fit_ranker(world: SearchWorld, method: Method, *, steps: int, seed: int, shuffled: bool = False) -> Tensor:
    """Scores (Q, L) of a student of 16 units, trained from the same weights by any method; ``shuffled``: the teacher's mixed in groups."""
    student, batch = seeded(lambda: PairScorer(16), seed), world.train
    if shuffled:
        lots = torch.rand(batch["teacher_scores"].shape, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
        batch = {**batch, "teacher_scores": batch["teacher_scores"].gather(1, lots)}
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    train(method, {"student": student}, [batch], optimizer, steps=steps, seed=seed)
    with torch.no_grad(), evaluating(student):
        return student(**world.x)
