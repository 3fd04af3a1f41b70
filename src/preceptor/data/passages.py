"""Batches of passages in groups, for cross-encoders: of each query one relevant passage and some that are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from preceptor.core.types import Batch
from preceptor.data.hashing import generator
from preceptor.losses.checks import check_counts


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """A query, and the passages that answer it or do not, each "title text"."""

    query: str
    positives: Sequence[str]
    negatives: Sequence[str]


def draw_group(candidates: Candidates, size: int, *, seed: int = 0, epoch: int = 0, number: int = 0) -> list[str]:
    """One positive, then up to size - 1 different negatives; they depend on (seed, epoch, number) alone.

    Args:
        candidates: with at least one positive.
        size: N >= 1; the group is smaller where negatives run out.
        seed: of the draws.
        epoch: draws anew in each.
        number: of the query.
    Raises:
        ValueError: no positive, or N < 1.
    """
    check_counts(size=size, positives=len(candidates.positives))
    lots = generator(seed, epoch, number)
    positive = int(torch.randint(len(candidates.positives), (), generator=lots))
    negatives = torch.randperm(len(candidates.negatives), generator=lots)[: size - 1].tolist()
    return [candidates.positives[positive], *(candidates.negatives[int(at)] for at in negatives)]


def passage_batch(
    queries: Sequence[str],
    groups: Sequence[Sequence[str]],
    tokenizer: Any,
    *,
    teacher: Any = None,
    score: Callable[[str, Sequence[str]], Sequence[float]] | None = None,
    query_length: int = 32,
    passage_length: int = 196,
) -> Batch:
    """Tokens of B queries with their groups, as `preceptor.methods.dear` trains on them; the positive of each group comes first.

    Student and teacher always read the same passages, each in its own tokens: "query: ..." and "document: ...", each after a
    beginning-of-text token where there is one, padded on the right.

    Args:
        queries: B texts.
        groups: B lists of passages, of one length or several.
        tokenizer: of transformers, the student's; its padding must be set.
        teacher: the teacher's tokenizer, where it has another one.
        score: the teacher as a function from a query and its passages to their scores.
        query_length: tokens of a query at most, its beginning not counted.
        passage_length: the same of a passage.
    Returns:
        ``x`` with ``input_ids`` and ``attention_mask`` (B, N, T), ``y`` (B,) of zeros, ``valid`` (B, N), False for padding, ``id`` (B,);
        ``teacher_x`` and ``teacher_scores`` (B, N) where asked for.
    Raises:
        ValueError: lists of different lengths, an empty group, a tokenizer without padding, or another number of scores than passages.
    """
    check_counts(query_length=query_length, passage_length=passage_length)
    if len(queries) != len(groups) or not all(groups):
        raise ValueError(f"groups: expected {len(queries)} lists like queries, none of them empty, got {[len(group) for group in groups]}")
    width = max(map(len, groups), default=0)
    valid = torch.tensor([[at < len(group) for at in range(width)] for group in groups])
    lengths = (query_length, passage_length)
    batch: Batch = {"x": _tokens(queries, groups, tokenizer, lengths, width), "valid": valid}
    batch |= {"y": torch.zeros(len(queries), dtype=torch.int64), "id": torch.arange(len(queries))}
    if teacher is not None:
        batch["teacher_x"] = _tokens(queries, groups, teacher, lengths, width)
    if score is not None:
        batch["teacher_scores"] = torch.zeros(valid.shape)
        for row, (query, group) in enumerate(zip(queries, groups, strict=True)):
            scores = torch.as_tensor(score(query, group), dtype=torch.float32)
            if scores.shape != (len(group),):
                raise ValueError(f"score: expected {len(group)} scores for query {row}, got shape {tuple(scores.shape)}")
            batch["teacher_scores"][row, : len(group)] = scores
    return batch


def _tokens(
    queries: Sequence[str], groups: Sequence[Sequence[str]], tokenizer: Any, lengths: tuple[int, int], width: int
) -> dict[str, Tensor]:
    if tokenizer.pad_token_id is None:
        raise ValueError(f"tokenizer: expected a padding token (pad_token), got a {type(tokenizer).__name__} without one")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def ids(text: str, length: int) -> list[int]:
        return [*begin, *tokenizer(text, add_special_tokens=False)["input_ids"][:length]]

    rows = []
    for query, group in zip(queries, groups, strict=True):
        asked = ids(f"query: {query}", lengths[0])
        pairs = [[*asked, *ids(f"document: {passage}", lengths[1])] for passage in group]
        rows.append(pairs + [asked] * (width - len(group)))
    size = max((len(pair) for row in rows for pair in row), default=0)
    padded = [[pair + [tokenizer.pad_token_id] * (size - len(pair)) for pair in row] for row in rows]
    shown = [[[1] * len(pair) + [0] * (size - len(pair)) for pair in row] for row in rows]
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(shown)}
