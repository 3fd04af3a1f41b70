"""Row losses of `preceptor.losses.linear`: values and logit gradients of a block of rows.

Every loss is a function of log q = log_softmax(logits / T). With y = dL / d log q, the gradient of the logits is
    (y - q sum_v y_v) / T,
where a multiple of q added to y changes nothing. A class with a bias of -inf has a constant log q: its y is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.numeric import upcast
from preceptor.models.heads import Head


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """log_softmax(logits / T) of blocks of rows."""

    temperature: float | Tensor = 1.0  # a number, or (rows, 1)
    masked: Tensor | None = None  # (V,) bool: classes with a bias of -inf

    def scale(self, rows: slice) -> float | Tensor:
        """The temperature of some rows, (n, 1) where rows differ."""
        return self.temperature[rows] if isinstance(self.temperature, Tensor) else self.temperature

    def scaled(self, logits: Tensor, rows: slice) -> Tensor:
        """logits / T, in float32 or float64; may be the logits themselves."""
        scale = self.scale(rows)
        return upcast(logits) if isinstance(scale, float) and scale == 1.0 else upcast(logits) / scale

    def log_probs(self, logits: Tensor, rows: slice) -> Tensor:
        """Finite log-probabilities, (n, V), as `preceptor.losses.divergence.log_probs` has them."""
        log_q = F.log_softmax(self.scaled(logits, rows), dim=-1)
        return log_q if self.masked is None else log_q.masked_fill_(self.masked, math.log(torch.finfo(log_q.dtype).tiny))

    def probs(self, log_q: Tensor) -> Tensor:
        """exp(log_q), written over it; exactly 0 where masked."""
        q = log_q.exp_()
        return q if self.masked is None else q.masked_fill_(self.masked, 0.0)

    def to_logits(self, y: Tensor, q: Tensor, rows: slice) -> Tensor:
        """The gradient of the logits from y, which is overwritten."""
        if self.masked is not None:
            y.masked_fill_(self.masked, 0.0)
        return y.addcmul_(q, y.sum(dim=-1, keepdim=True), value=-1).div_(self.scale(rows))


@dataclass(frozen=True, kw_only=True)
class SparseTargets:
    """sum_j w_j (o_j - log q_j) over k given classes j of each row: cross-entropy, and divergences from a teacher known in few classes."""

    softmax: Softmax
    indices: Tensor  # (rows, k), int64
    weights: Tensor  # w, (rows, k)
    offsets: Tensor | None = None  # o, (rows, k), finite; None: 0
    tail: Tensor | None = None  # t, (rows, 1): plus t log(t / q_t), q_t = the mass of q outside the given classes
    spread: Tensor | None = None  # s, (V,): plus -sum_v s_v log q_v
    z_loss: float = 0.0  # z: plus z lse^2, lse = logsumexp(logits / T)
    with_lse: bool = False  # lse is a second value
    teacher: None = None

    @property
    def columns(self) -> int:
        """The loss, and lse on request."""
        return 1 + self.with_lse

    def block(self, logits: Tensor, teacher: Tensor | None, rows: slice, upstream: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `preceptor.losses.linear_engine.RowLoss`."""
        indices, weights = self.indices[rows], self.weights[rows]
        log_q = self.softmax.log_probs(logits, rows)
        offsets = 0.0 if self.offsets is None else self.offsets[rows]
        loss = (weights * (offsets - log_q.gather(1, indices))).sum(dim=1, keepdim=True)
        if self.spread is not None:
            loss -= log_q @ self.spread[:, None]
        lse = None
        if self.with_lse or self.z_loss:
            lse = self.softmax.scaled(logits, rows).amax(dim=1, keepdim=True) - log_q.amax(dim=1, keepdim=True)
            loss += self.z_loss * lse.square()
        q = self.softmax.probs(log_q)
        rest = None
        if self.tail is not None:
            tail, rest = self.tail[rows], q.scatter(1, indices, 0.0)
            mass = rest.sum(dim=1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
            loss += torch.xlogy(tail, tail / mass)
            rest *= tail / mass
        values = torch.cat([loss, lse], dim=1) if self.with_lse and lse is not None else loss
        if upstream is None:
            return values, None
        y = torch.zeros_like(q) if rest is None else rest.neg_()
        if self.spread is not None:
            y -= self.spread
        y.scatter_add_(1, indices, -weights).mul_(upstream[:, :1])
        gradient = self.softmax.to_logits(y, q, rows)
        if lse is not None:
            by_lse = 2 * self.z_loss * lse * upstream[:, :1] + (upstream[:, 1:] if self.with_lse else 0.0)
            gradient += q * (by_lse / self.softmax.scale(rows))
        return values, gradient


@dataclass(frozen=True, kw_only=True)
class TeacherLogits:
    """A divergence of `preceptor.losses.divergence` from a teacher that is known by its hidden states and head."""

    kind: str
    share: float
    softmax: Softmax  # of the student
    teacher_softmax: Softmax
    teacher: tuple[Tensor, Head]
    columns: int = 1

    def block(self, logits: Tensor, teacher: Tensor | None, rows: slice, upstream: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `preceptor.losses.linear_engine.RowLoss`."""
        assert teacher is not None
        log_q, log_p = self.softmax.log_probs(logits, rows), self.teacher_softmax.log_probs(teacher, rows)
        q = self.softmax.probs(log_q.clone())
        value, y = _divergence(self.kind, self.share, log_p, log_q, q)
        value = value[:, None].clamp_min(0.0)
        return value, None if upstream is None else self.softmax.to_logits(y, q, rows).mul_(upstream)


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """The entropy of q."""

    softmax: Softmax
    columns: int = 1
    teacher: None = None

    def block(self, logits: Tensor, teacher: Tensor | None, rows: slice, upstream: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `preceptor.losses.linear_engine.RowLoss`."""
        log_q = self.softmax.log_probs(logits, rows)
        q = self.softmax.probs(log_q.clone())
        y = log_q.mul_(q).neg_()
        value = y.sum(dim=1, keepdim=True)
        return value, None if upstream is None else self.softmax.to_logits(y, q, rows).mul_(upstream)


def _divergence(kind: str, share: float, log_p: Tensor, log_q: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Value (n,) and y (n, V) of a divergence; the equations are those of `preceptor.losses.divergence`. log_p may be overwritten."""
    p = log_p.exp()
    match kind:
        case "forward_kl":
            return (p * log_p.sub_(log_q)).sum(dim=-1), p.neg_()
        case "reverse_kl":
            y = q * (log_q - log_p)
            return y.sum(dim=-1), y
        case "symmetric_kl":
            y = q * (log_q - log_p)
            value = share * y.sum(dim=-1) + (1 - share) * (p * log_p.sub_(log_q)).sum(dim=-1)
            return value, y.mul_(share).sub_(p, alpha=1 - share)
        case "skew_forward_kl":
            m, log_m = _mixture(p, q, share)
            return (p * log_p.sub_(log_m)).sum(dim=-1), p.mul_(q).div_(m).mul_(share - 1)
        case "skew_reverse_kl":
            m, log_m = _mixture(q, p, share)
            y = q * (log_q - log_m)
            return y.sum(dim=-1), y.sub_(q.square().div_(m), alpha=share)
        case "generalized_jsd":
            _, log_m = _mixture(p, q, share)
            y = (q * (log_q - log_m)).mul_(1 - share)
            return y.sum(dim=-1) + share * (p * log_p.sub_(log_m)).sum(dim=-1), y
        case "total_variation":
            difference = q - p
            return 0.5 * difference.abs().sum(dim=-1), difference.sign_().mul_(q).mul_(0.5)
        case _:
            raise ValueError(f"kind: expected a divergence, got {kind!r}")


def _mixture(a: Tensor, b: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """m = share a + (1 - share) b and log m, for 0 < share < 1; where m underflows so do a and b, and what they multiply is 0."""
    m = (share * a).add_(b, alpha=1 - share).clamp_min_(torch.finfo(a.dtype).tiny)
    return m, m.log()
