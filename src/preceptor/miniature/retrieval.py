"""A world of pairs: two noisy views of one hidden state, in clusters, so that a query's nearest wrong answers are hard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.data.examples import examples_from
from preceptor.data.negatives import RandomNegatives
from preceptor.data.sources import Source
from preceptor.losses.candidates import Selection, select_candidates
from preceptor.losses.hard import hard_loss
from preceptor.metrics.retrieval import recall_at
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import seeded
from preceptor.models.cross_encoders import CrossEncoder, keep_blocks
from preceptor.models.taps import forward

DIMENSIONS = 24
NUM_NEGATIVES = 15  # that the teacher looks at, for each query
_CLUSTERS, _LATENT, _BATCH = 12, 8, 32


@dataclass(frozen=True, kw_only=True)
class RetrievalWorld:
    """Pairs of one seed, a trained cross-encoder of four blocks, and students that start from its first and last block."""

    train: tuple[Tensor, Tensor]  # queries and their answers, (n, DIMENSIONS) each
    test: tuple[Tensor, Tensor]
    teacher: CrossEncoder

    def student(self) -> CrossEncoder:
        """A new student, always with the same weights."""
        return keep_blocks(self.teacher, (0, len(self.teacher.blocks) - 1))

    def source(self, seed: int) -> Source:
        """Queries with candidates drawn anew in each epoch."""
        queries, answers = self.train
        places = torch.arange(len(queries))
        negatives = RandomNegatives(answers, places, places, num_negatives=NUM_NEGATIVES, seed=seed)
        return Source(examples_from((queries, places), len(queries)), batch_size=_BATCH, seed=seed, augment=negatives)


def retrieval_world(seed: int, size: Size) -> RetrievalWorld:
    """12 clusters of 8-dimensional states; views are tanh of a random map, plus noise; 1,500 pairs for training and 300 for test."""
    number, tested, steps = (1500, 300, 1500) if size == "full" else (120, 40, 20)
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(_CLUSTERS, _LATENT, generator=generator)
    states = centres[torch.randint(_CLUSTERS, (number + tested,), generator=generator)]
    states = states + 0.5 * torch.randn(states.shape, generator=generator)
    queries, answers = (
        torch.tanh(states @ torch.randn(_LATENT, DIMENSIONS, generator=generator) / _LATENT**0.5)
        + 0.1 * torch.randn(len(states), DIMENSIONS, generator=generator)
        for _ in range(2)
    )
    teacher = seeded(lambda: CrossEncoder(queries=DIMENSIONS, candidates=DIMENSIONS), seed)
    assert isinstance(teacher, CrossEncoder)
    world = RetrievalWorld(
        train=(queries[:number], answers[:number]),
        test=(queries[number:], answers[number:]),
        teacher=teacher,
    )
    fit_scorer(PositiveFirst(), {"student": teacher}, world.source(seed), steps=steps, learning_rate=2e-3, seed=seed)
    teacher.eval()
    return world


class PositiveFirst(Method):
    """Cross-entropy of the first candidate, among all or among some that the teacher, or the lot, has chosen.

    Args:
        num_negatives: of the choice; None: all candidates.
        selection: see `preceptor.losses.candidates.Selection`.
    """

    def __init__(self, num_negatives: int | None = None, selection: Selection = "hard") -> None:
        self.num_negatives = num_negatives
        self.selection: Selection = selection

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the cross-entropy, one value per query."""
        x = batch["x"]
        if self.num_negatives is not None:
            with torch.no_grad():
                chosen = select_candidates(forward(roles["teacher"], x).logits, self.num_negatives, selection=self.selection)
            x = {**x, "candidates": x["candidates"][torch.arange(len(chosen))[:, None], chosen]}
        scores = forward(roles["student"], x).logits
        return {"hard": hard_loss(scores, {"y": torch.zeros(len(scores), dtype=torch.int64)})}


def fit_scorer(method: Method, roles: Roles, source: Source, *, steps: int, learning_rate: float, seed: int) -> None:
    """Train in place with Adam, its rate falling to 0 in a line."""
    optimizer = torch.optim.Adam([p for p in roles["student"].parameters() if p.requires_grad], lr=learning_rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    train(method, roles, source, optimizer, steps=steps, schedulers=falling, seed=seed)


def recalls(model: nn.Module, world: RetrievalWorld) -> dict[str, float]:
    """``r1``, ``r5`` and ``r10`` of queries that look for answers, ``back_r1`` and so on of the way back; ``nll`` in nats."""
    queries, answers = world.test
    with torch.no_grad(), evaluating(model):
        scores = torch.cat([model(part, answers.expand(len(part), *answers.shape)) for part in queries.split(50)])
    right = torch.eye(len(queries), dtype=torch.bool)
    nll = -scores.log_softmax(dim=1).diag().mean()
    found = {f"r{k}": recall_at(scores, right, k) for k in (1, 5, 10)} | {f"back_r{k}": recall_at(scores.T, right, k) for k in (1, 5, 10)}
    return {name: float(hits.double().mean()) for name, hits in found.items()} | {"nll": float(nll)}


def compare_scorers(world: RetrievalWorld, arms: Mapping[str, Method], *, steps: int, seed: int) -> dict[str, dict[str, float]]:
    """Train one student per arm on equal budget (first weights, queries, candidates, updates, learning rate) and measure it."""
    measured = {}
    for name, method in arms.items():
        student = world.student()
        roles = {"student": student, "teacher": world.teacher}
        fit_scorer(method, roles, world.source(seed), steps=steps, learning_rate=1e-3, seed=seed)
        measured[name] = recalls(student, world)
    return measured
