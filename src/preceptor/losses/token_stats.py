"""Statistics of tokens: entropy, divergence from a teacher, log-probability, the largest log-probabilities, all of one log-softmax.

`stats` takes log-probabilities that are there already; `linear_stats` takes hidden states and output layers, holds the logits of a few rows
at a time, and is a pass without gradient: what selectors of tokens look at before anything expensive is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import check_labels, check_unit_interval
from preceptor.losses.divergence import jsd, kl, log_probs
from preceptor.losses.linear_engine import CHUNK_ROWS, autocast, check_head, counted, project, run
from preceptor.losses.numeric import lift_to_zero
from preceptor.models.heads import Head

Divergence = Literal["reverse_kl", "forward_kl", "generalized_jsd"]
"""KL(student || teacher), KL(teacher || student), or `preceptor.losses.divergence.jsd` with the teacher's share beta."""


@dataclass(frozen=True, kw_only=True)
class TokenStats:
    """One value per token, shape (...)."""

    entropy: Tensor  # of the prediction, in nats, in [0, log V]
    divergence: Tensor | None = None  # from the teacher, in nats, >= 0; None without one
    log_prob: Tensor | None = None  # of the given token, in nats; None without tokens
    top: Tensor | None = None  # (..., k), the largest log-probabilities, falling; None for k = 0


def entropy(log_p: Tensor) -> Tensor:
    """-sum_v p_v log p_v of finite log-probabilities (..., V), in nats: shape (...), >= 0."""
    return lift_to_zero(-(log_p.exp() * log_p).sum(dim=-1))


def stats(
    log_q: Tensor,
    *,
    teacher: Tensor | None = None,
    kind: Divergence = "reverse_kl",
    beta: float = 0.5,
    among: int = 0,
    tokens: Tensor | None = None,
    top: int = 0,
) -> TokenStats:
    """What one log-softmax says about each token.

    Args:
        log_q: log-probabilities of the model, finite, shape (..., V).
        teacher: log-probabilities of a teacher, the same shape; None: no divergence.
        kind: which divergence.
        beta: the teacher's share of the mixture, in [0, 1].
        among: compare only the teacher's so many likeliest tokens, both sides brought to sum 1 over them; 0: all.
        tokens: shape (...), integers in [0, V); None: no log-probability.
        top: k, how many of the largest log-probabilities; at most V.
    Raises:
        ValueError: an unknown divergence, more tokens asked for than there are, or a token out of range.
        TypeError: tokens are not integers.
    """
    for name, number in (("among", among), ("top", top)):
        if not 0 <= number <= log_q.shape[-1]:
            raise ValueError(f"{name}: expected a number of tokens from 0 to {log_q.shape[-1]}, got {number}")
    if kind not in get_args(Divergence):
        raise ValueError(f"kind: expected one of {', '.join(get_args(Divergence))}, got {kind!r}")
    check_unit_interval(beta=beta)
    if tokens is not None:
        check_labels(tokens, log_q)
    return TokenStats(
        entropy=entropy(log_q),
        divergence=None if teacher is None else _divergence(log_q, teacher, kind, beta, among),
        log_prob=None if tokens is None else log_q.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1),
        top=log_q.topk(top, dim=-1).values if top else None,
    )


def _divergence(log_q: Tensor, log_p: Tensor, kind: Divergence, beta: float, among: int) -> Tensor:
    if among:
        log_p, chosen = log_p.topk(among, dim=-1)
        log_p, log_q = F.log_softmax(log_p, dim=-1), F.log_softmax(log_q.gather(-1, chosen), dim=-1)
    match kind:
        case "reverse_kl":
            return kl(log_q, log_p)
        case "forward_kl":
            return kl(log_p, log_q)
        case _:
            return jsd(log_p, log_q, beta=beta)


def linear_stats(
    hidden: Tensor,
    head: Head,
    *,
    teacher_hidden: Tensor | None = None,
    teacher_head: Head | None = None,
    kind: Divergence = "reverse_kl",
    beta: float = 0.5,
    among: int = 0,
    tokens: Tensor | None = None,
    top: int = 0,
    mask: Tensor | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> TokenStats:
    """`stats` from hidden states and heads, without gradient: one matrix product per side, one log-softmax per side.

    Args:
        hidden: of the model, shape (..., D).
        head: of the model, (V, D).
        teacher_hidden: shape (..., E), the same leading shape; None: no divergence.
        teacher_head: (V, E).
        kind, beta, among, tokens, top: see `stats`.
        mask: shape (...), 0 where a token does not count: it costs nothing, and its values are 0.
        chunk_rows: rows whose logits exist at a time.
    Raises:
        TypeError: hidden or head are not floating point, or tokens not integers.
        ValueError: vocabularies differ, a shape does not fit, or what `stats` refuses.
    """
    check_head(hidden, head)
    keep = counted(hidden, mask)
    measure = _Measure(kind=kind, beta=beta, among=among, top=top)
    if teacher_hidden is not None and teacher_head is not None:
        check_head(teacher_hidden, teacher_head, "teacher ")
        if teacher_hidden.shape[:-1] != hidden.shape[:-1]:
            raise ValueError(f"teacher hidden: expected shape {tuple(hidden.shape[:-1])} + (E,), got {tuple(teacher_hidden.shape)}")
        if len(teacher_head.weight) != len(head.weight):
            raise ValueError(f"teacher head: expected {len(head.weight)} classes like the student's, got {len(teacher_head.weight)}")
        states, teacher_head = autocast(teacher_hidden.reshape(-1, teacher_hidden.shape[-1]), teacher_head)
        measure.teacher_hidden, measure.teacher_head = states if keep is None else states[keep], teacher_head
    if tokens is not None:
        if tokens.shape != hidden.shape[:-1]:
            raise ValueError(
                f"tokens: expected shape {tuple(hidden.shape[:-1])} for hidden {tuple(hidden.shape)}, got {tuple(tokens.shape)}"
            )
        measure.tokens = tokens.flatten() if keep is None else tokens.flatten()[keep]
    with torch.no_grad():
        columns = list(run(hidden, head, measure, keep, chunk_rows=chunk_rows).unbind(dim=-1))
    return TokenStats(
        entropy=columns.pop(0),
        divergence=None if measure.teacher_head is None else columns.pop(0),
        log_prob=None if tokens is None else columns.pop(0),
        top=torch.stack(columns, dim=-1) if top else None,
    )


@dataclass(kw_only=True)
class _Measure:
    """A row loss of `preceptor.losses.linear_engine` that is measured only."""

    kind: Divergence
    beta: float
    among: int
    top: int
    teacher_hidden: Tensor | None = None
    teacher_head: Head | None = None
    tokens: Tensor | None = None

    @property
    def columns(self) -> int:
        """Entropy, and what was asked for."""
        return 1 + (self.teacher_head is not None) + (self.tokens is not None) + self.top

    def teacher(self, rows: slice) -> Tensor | None:
        """The teacher's logits."""
        if self.teacher_hidden is None or self.teacher_head is None:
            return None
        hidden = self.teacher_hidden[rows]
        return project(hidden, self.teacher_head, hidden.new_empty(len(hidden), len(self.teacher_head.weight)))

    def block(self, logits: Tensor, teacher: Tensor | None, rows: slice, upstream: Tensor | None) -> tuple[Tensor, None]:
        """The statistics of a block of rows, side by side."""
        found = stats(
            log_probs(logits),
            teacher=None if teacher is None else log_probs(teacher),
            kind=self.kind,
            beta=self.beta,
            among=self.among,
            tokens=None if self.tokens is None else self.tokens[rows],
            top=self.top,
        )
        single = [value for value in (found.entropy, found.divergence, found.log_prob) if value is not None]
        values = torch.stack(single, dim=-1)
        return (values if found.top is None else torch.cat([values, found.top], dim=-1)), None
