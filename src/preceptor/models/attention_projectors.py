"""Maps or tokens of any student turned into tokens of a teacher's width and grid, by attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import evaluating


class CrossAttentionProjector(nn.Module):
    """Cross-attention of queries on the teacher's grid over the positions of a student's map.

    Fan, Li, Lin et al. 2024, ScaleKD (arXiv:2411.06786): keys and values from k = ReLU(BN(conv3x3(x))) + E, queries from
    q = ReLU(conv1x1(Q)), attention softmax(kappa q k / sqrt(d)), then z = LayerNorm(attention), z + W2 ReLU(W1 z).

    Args:
        student_width: C_s.
        teacher_width: C_t.
        student_grid: height and width of the student's map.
        query_grid: of the tokens that come out.
        heads: divides C_t.
        kappa: sharpens attention, > 0; 1 is the usual softmax.
        learned_query: whether Q is a table of its own; else each call gives it.
        norm: "batch"; "none": examples never influence each other.
    Raises:
        ValueError: the width is not a multiple of the heads.
    """

    def __init__(
        self,
        *,
        student_width: int,
        teacher_width: int,
        student_grid: tuple[int, int],
        query_grid: tuple[int, int],
        heads: int,
        kappa: float = 5.0,
        learned_query: bool = True,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if heads < 1 or teacher_width % heads:
            raise ValueError(f"heads: expected a number that divides the teacher's width {teacher_width}, got {heads}")
        self.heads, self.kappa, self.query_grid = heads, kappa, query_grid
        self.conv = nn.Conv2d(student_width, student_width, 3, padding=1)
        self.norm = nn.BatchNorm2d(student_width) if norm == "batch" else nn.Identity()
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, student_width, *student_grid), std=0.02))
        self.table = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(math.prod(query_grid), teacher_width), std=0.02)) if learned_query else None
        )
        self.query_map = nn.Linear(teacher_width, teacher_width)
        self.query, self.output = (nn.Linear(teacher_width, teacher_width) for _ in range(2))
        self.key = nn.Linear(student_width, teacher_width, bias=False)  # the softmax takes no notice of a bias of keys
        self.value = nn.Linear(student_width, teacher_width)
        self.layer_norm = nn.LayerNorm(teacher_width)
        self.feed_forward = nn.Sequential(
            nn.Linear(teacher_width, 4 * teacher_width), nn.ReLU(), nn.Linear(4 * teacher_width, teacher_width)
        )

    def forward(self, x: Tensor, query: Tensor | None = None) -> Tensor:
        """Turn a map (N, C_s, h, w), with a query (N, h_q w_q, C_t) where none was learned, into tokens (N, h_q w_q, C_t)."""
        x = self.conv(x)
        if len(x) > 1:
            x = self.norm(x)
        else:  # one example has no statistics
            with evaluating(self.norm):
                x = self.norm(x)
        seen = (F.relu(x) + self.positions).flatten(2).transpose(1, 2)
        if self.table is not None:
            query = self.table.expand(len(x), -1, -1)
        if query is None:
            raise ValueError("query: expected tokens (N, positions, width) for a projector without a learned query, got None")
        q = self._split(self.query(F.relu(self.query_map(query))))
        k, v = self._split(self.key(seen)), self._split(self.value(seen))
        found = F.scaled_dot_product_attention(q, k, v, scale=self.kappa / math.sqrt(q.shape[-1]))
        z = self.layer_norm(self.output(found.transpose(1, 2).flatten(2)))
        return z + self.feed_forward(z)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
