"""Networks that trace knowledge: DKT (Piech et al. 2015, arXiv:1506.05908) and SAKT (Pandey and Karypis 2019, arXiv:1907.06837).

DKT   x_t = E[q_t, c_t],  h_t = GRU(x_1..x_t),  p_{t+1} = sigma(w_q . h_t + b_q)  at q = q_{t+1}
SAKT  query e(q_{t+1}), keys and values E[q_j, c_j] + position for j <= t, then a feed-forward block and sigma.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Items(nn.Module):
    """A vector for every item: its own, plus the mean of those of its tags where it has some.

    Args:
        count: items, Q.
        width: of a vector.
        tags: (Q, M) padded with -1, or None.
        kinds: vectors per item, such as 2 for a wrong and a right answer.
    """

    def __init__(self, count: int, width: int, *, tags: Tensor | None = None, kinds: int = 1) -> None:
        super().__init__()
        self.count, self.own = count, nn.Embedding(count * kinds, width)
        self.tag_count = 0 if tags is None else int(tags.max()) + 1
        self.shared = nn.Embedding(self.tag_count * kinds, width) if self.tag_count else None
        self.register_buffer("tags", tags if tags is None else tags.clone().long(), persistent=False)

    def forward(self, item: Tensor, kind: Tensor | int = 0) -> Tensor:
        """(N, T) -> (N, T, width); items below 0 are taken for item 0."""
        item = item.clamp(min=0)
        found = self.own(item + self.count * kind)
        if self.shared is not None:
            tags = self.tags[item]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
            present = (tags >= 0).to(found.dtype).unsqueeze(-1)
            kinds = kind.unsqueeze(-1) if isinstance(kind, Tensor) else kind
            vectors = self.shared(tags.clamp(min=0) + self.tag_count * kinds) * present
            found = found + vectors.sum(-2) / present.sum(-2).clamp(min=1)
        return found


class DKT(nn.Module):
    """Deep knowledge tracing.

    Args:
        items: Q.
        tags: see `Items`.
        width: of embeddings and recurrent state.
        dropout: before the output.
    """

    def __init__(self, items: int, *, tags: Tensor | None = None, width: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        self.answered, self.asked = Items(items, width, tags=tags, kinds=2), Items(items, width, tags=tags)
        self.bias = Items(items, 1, tags=tags)
        nn.init.zeros_(self.bias.own.weight)
        self.recurrent, self.dropout = nn.GRU(width, width, batch_first=True), nn.Dropout(dropout)

    def forward(self, *, item: Tensor, correct: Tensor) -> Tensor:
        """Logits (N, T) of a correct answer at each step, from the steps before."""
        states = self.recurrent(self.answered(item, correct))[0]
        before = F.pad(states, (0, 0, 1, 0))[:, :-1]
        return (self.dropout(before) * self.asked(item)).sum(-1) / before.shape[-1] ** 0.5 + self.bias(item).squeeze(-1)


class SAKT(nn.Module):
    """Self-attentive knowledge tracing, one block.

    Args:
        items: Q.
        tags: see `Items`.
        width: of everything, a multiple of ``heads``.
        heads: of attention.
        max_len: longest window.
        dropout: of attention and of the block.
    """

    def __init__(
        self, items: int, *, tags: Tensor | None = None, width: int = 64, heads: int = 4, max_len: int = 200, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.answered, self.asked = Items(items, width, tags=tags, kinds=2), Items(items, width, tags=tags)
        self.begin, self.position = nn.Parameter(torch.zeros(width)), nn.Embedding(max_len, width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.Dropout(dropout))
        self.output = nn.Linear(width, 1)

    def forward(self, *, item: Tensor, correct: Tensor) -> Tensor:
        """Logits (N, T), as `DKT`; a learned vector stands before the first step, so that there is always something to attend to."""
        steps = item.shape[1]
        answered = self.answered(item, correct)
        begin = self.begin.expand(len(item), 1, -1)
        history = torch.cat([begin, answered[:, :-1]], 1) + self.position.weight[:steps]
        asked = self.asked(item)
        future = torch.ones(steps, steps, dtype=torch.bool, device=item.device).triu(1)
        seen = self.attention(asked, history, history, attn_mask=future, need_weights=False)[0]
        state = self.first_norm(asked + seen)
        return self.output(self.second_norm(state + self.feed(state))).squeeze(-1)
