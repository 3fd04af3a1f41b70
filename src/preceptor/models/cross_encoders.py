"""A small cross-encoder: it looks at a query and a candidate together and says how well they fit."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class CrossEncoder(nn.Module):
    """Two encoders of vectors, a stack of residual blocks over both outputs and their product, and a head of one number.

    Args:
        queries: numbers per query.
        candidates: numbers per candidate.
        width: outputs of each encoder; the blocks are three times as wide.
        num_blocks: at least 1.
    """

    def __init__(self, *, queries: int, candidates: int, width: int = 32, num_blocks: int = 4) -> None:
        super().__init__()
        self.query_encoder = nn.Sequential(nn.Linear(queries, width), nn.Tanh())
        self.candidate_encoder = nn.Sequential(nn.Linear(candidates, width), nn.Tanh())
        self.blocks = nn.ModuleList(_Block(3 * width) for _ in range(num_blocks))
        self.head = nn.Sequential(nn.LayerNorm(3 * width), nn.Linear(3 * width, 1))

    def forward(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Score queries (B, D) with K candidates each (B, K, E): (B, K)."""
        a, b = self.query_encoder(queries)[:, None], self.candidate_encoder(candidates)
        x = torch.cat([a.expand_as(b), b, a * b], dim=-1)
        for block in self.blocks:
            x = block(x)
        return self.head(x).squeeze(-1)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def keep_blocks(model: CrossEncoder, indices: Sequence[int]) -> CrossEncoder:
    """Copy a cross-encoder with some of its blocks: encoders frozen, blocks and head ready to train, all with the model's weights.

    Raises:
        ValueError: no blocks, or one that does not exist.
    """
    count = len(model.blocks)
    if not indices or not all(0 <= index < count for index in indices):
        raise ValueError(f"indices: expected numbers of blocks in [0, {count}), at least one, got {list(indices)}")
    student = copy.deepcopy(model)
    student.blocks = nn.ModuleList(student.blocks[index] for index in indices)
    student.requires_grad_(True)
    for encoder in (student.query_encoder, student.candidate_encoder):
        encoder.requires_grad_(False)
    return student
