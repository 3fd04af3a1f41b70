"""Negatives for retrieval: each query gets its own answer and some answers of others, other ones in each epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from preceptor.core.types import Batch
from preceptor.data.hashing import uniform


class RandomNegatives:
    """The ``augment`` of a `preceptor.data.sources.Source` of queries: it turns ``x`` into ``{"queries", "candidates"}``.

    Candidate 0 is the query's own answer; the others are drawn without replacement from answers of another group, so that a second caption
    of an image is never its negative. They depend on (seed, epoch, id) alone. A batch costs queries times answers in time and memory.

    Args:
        answers: shape (M, ...), all answers.
        groups: (M,) integers, equal for answers to the same query.
        own: (number of queries,), for each query's id the position of its answer.
        num_negatives: F >= 1.
        seed: of the draws.
    Raises:
        ValueError: sizes differ, a position is out of range, or a group leaves fewer than F others.
    """

    def __init__(self, answers: Tensor, groups: Tensor, own: Tensor, *, num_negatives: int, seed: int = 0) -> None:
        if num_negatives < 1:
            raise ValueError(f"num_negatives: expected at least 1, got {num_negatives}")
        if groups.shape != (len(answers),):
            raise ValueError(f"groups: expected one for each of {len(answers)} answers, got shape {tuple(groups.shape)}")
        outside = own[(own < 0) | (own >= len(answers))]
        if len(outside):
            raise ValueError(f"own: expected positions in [0, {len(answers)}), got {int(outside[0])}")
        others = len(answers) - int(groups.unique(return_counts=True)[1].max())
        if others < num_negatives:
            raise ValueError(f"num_negatives: expected at most the {others} answers outside the largest group, got {num_negatives}")
        self.answers, self.groups, self.own, self.num_negatives, self.seed = answers, groups, own, num_negatives, seed

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with candidates (B, F + 1, ...)."""
        own = self.own[batch["id"]]
        pairs = batch["id"][:, None] * len(self.answers) + torch.arange(len(self.answers))
        lots = uniform(pairs, self.seed, batch["epoch"]).masked_fill(self.groups[own][:, None] == self.groups, 2.0)
        negatives = lots.topk(self.num_negatives, dim=1, largest=False).indices
        return {**batch, "x": {"queries": batch["x"], "candidates": self.answers[torch.cat([own[:, None], negatives], dim=1)]}}
