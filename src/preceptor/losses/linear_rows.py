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
    masked: Tensor | None = None  # (V,) bool: classes with a bias of -inf; or (n, V), those of one block

    def scale(self, rows: slice) -> float | Tensor:
        """The temperature of some rows, (n, 1) where rows differ."""
        return self.temperature[rows] if isinstance(self.temperature, Tensor) else self.temperature

    def scaled(self, logits: Tensor, rows: slice) -> Tensor:
        """logits / T, in float32 or float64; may be the logits themselves."""
        scale = self.scale(rows)
        return upcast(logits) if isinstance(scale, float) and scale == 1.0 else upcast(logits) / scale

    def log_probs(self, logits: Tensor, rows: slice) -> Tensor:
        """Finite log-probabilities, (n, V), as `preceptor.losses.divergence.log_probs` has them; a new tensor."""
        log_q = F.log_softmax(self.scaled(logits, rows), dim=-1)
        return log_q if self.masked is None else log_q.masked_fill_(self.masked, _floor(log_q))

    def both(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """`log_probs` and their exponential, (n, V), exactly 0 where masked; two new tensors, in the time of torch's log_softmax."""
        scaled = self.scaled(logits, rows)
        q = scaled.softmax(dim=-1)
        log_top = q.amax(dim=-1, keepdim=True).log_()  # the largest probability is at least 1 / V: no underflow
        log_q = (scaled - scaled.amax(dim=-1, keepdim=True)).add_(log_top)
        if self.masked is not None:
            log_q.masked_fill_(self.masked, _floor(log_q))
        return log_q, q

    def write(self, y: Tensor, q: Tensor, rows: slice, upstream: Tensor, logits: Tensor) -> None:
        """Write the gradient over the logits; y is overwritten too."""
        if self.masked is not None:
            y.masked_fill_(self.masked, 0.0)
        y.addcmul_(q, y.sum(dim=-1, keepdim=True), value=-1)
        torch.mul(y, upstream / self.scale(rows), out=logits)


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

    def block(self, logits: Tensor, teacher: Tensor | None, rows: slice, upstream: Tensor | None) -> Tensor:
        """See `preceptor.losses.linear_engine.RowLoss`."""
        indices, weights, masked = self.indices[rows], self.weights[rows], self.softmax.masked
        scaled = self.softmax.scaled(logits, rows)
        chosen, top, q = scaled.gather(1, indices), scaled.amax(dim=1, keepdim=True), scaled.softmax(dim=1)
        log_top = q.amax(dim=1, keepdim=True).log_()  # the largest probability is at least 1 / V: no underflow
        chosen = chosen - top + log_top
        if masked is not None:
            chosen = chosen.masked_fill(masked[indices], _floor(chosen))
        offsets = 0.0 if self.offsets is None else self.offsets[rows]
        loss = (weights * (offsets - chosen)).sum(dim=1, keepdim=True)
        lse = top - log_top
        loss += self.z_loss * lse.square()
        if self.spread is not None:
            loss -= self.softmax.log_probs(logits, rows) @ self.spread[:, None]
        rest = None
        if self.tail is not None:
            tail, rest = self.tail[rows], q.scatter(1, indices, 0.0)
            mass = rest.sum(dim=1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
            loss += torch.xlogy(tail, tail / mass)
            rest *= tail / mass
        values = torch.cat([loss, lse], dim=1) if self.with_lse else loss
        if upstream is None:
            return values
        spread = self.spread
        if masked is not None:
            weights = weights * ~masked[indices]
            spread = None if spread is None else spread * ~masked
        upstream = upstream / self.softmax.scale(rows)
        by_loss, total = upstream[:, :1], weights.sum(dim=1, keepdim=True) + 2 * self.z_loss * lse
        gradient = logits if logits.dtype == q.dtype else torch.empty_like(q)
        for fixed in (rest, spread):
            total = total if fixed is None else total + fixed.sum(dim=-1, keepdim=True)
        torch.mul(q, by_loss * total + (upstream[:, 1:] if self.with_lse else 0.0), out=gradient)
        for fixed in (rest, spread):
            if fixed is not None:
                gradient.addcmul_(fixed, by_loss, value=-1)
        gradient.scatter_add_(1, indices, -by_loss * weights)
        if gradient is not logits:
            logits.copy_(gradient)
        return values


@dataclass(frozen=True, kw_only=True)
class TeacherLogits:
    """A divergence of `preceptor.losses.divergence` from a teacher that is known by its hidden states and head, or by its logits."""

    kind: str
    share: float
    softmax: Softmax  # of the student
    teacher_softmax: Softmax
    teacher: tuple[Tensor, Head] | None = None
    columns: int = 1

    def block(self, logits: Tensor, teacher: Tensor | None, rows: slice, upstream: Tensor | None) -> Tensor:
        """See `preceptor.losses.linear_engine.RowLoss`."""
        assert teacher is not None
        log_p, p = self.teacher_softmax.both(teacher, rows)
        log_q, q = self.softmax.both(logits, rows)
        value, y = _divergence(self.kind, self.share, log_p, p, log_q, q)
        if upstream is not None:
            self.softmax.write(y, q, rows, upstream, logits)
        return value[:, None].clamp_min(0.0)


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """The entropy of q."""

    softmax: Softmax
    columns: int = 1
    teacher: None = None

    def block(self, logits: Tensor, teacher: Tensor | None, rows: slice, upstream: Tensor | None) -> Tensor:
        """See `preceptor.losses.linear_engine.RowLoss`."""
        log_q, q = self.softmax.both(logits, rows)
        y = log_q.mul_(q).neg_()
        value = y.sum(dim=1, keepdim=True)
        if upstream is not None:
            self.softmax.write(y, q, rows, upstream, logits)
        return value


def _divergence(kind: str, share: float, log_p: Tensor, p: Tensor, log_q: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Value (n,) and y (n, V) of a divergence; the equations are those of `preceptor.losses.divergence`. All but q are overwritten."""
    if kind == "reverse_kl":
        y = log_q.sub_(log_p).mul_(q)
        return y.sum(dim=-1), y
    match kind:
        case "forward_kl":
            return torch.linalg.vecdot(p, log_p.sub_(log_q)), p.neg_()
        case "symmetric_kl":
            difference = log_q.sub_(log_p)
            value = torch.linalg.vecdot(difference, share * q - (1 - share) * p)
            return value, difference.mul_(q).mul_(share).sub_(p, alpha=1 - share)
        case "skew_forward_kl":
            m = _mixture(p, q, share)
            value = torch.linalg.vecdot(p, log_p.sub_(m.log()))
            return value, p.mul_(q).div_(m).mul_(share - 1)
        case "skew_reverse_kl":
            m = _mixture(q, p, share)
            y = log_q.sub_(m.log()).mul_(q)
            return y.sum(dim=-1), y.sub_(q.square().div_(m), alpha=share)
        case "generalized_jsd":
            log_m = _mixture(p, q, share).log_()
            y = log_q.sub_(log_m).mul_(q).mul_(1 - share)
            return y.sum(dim=-1) + share * torch.linalg.vecdot(p, log_p.sub_(log_m)), y
        case "total_variation":
            difference = q - p
            return 0.5 * difference.abs().sum(dim=-1), difference.sign_().mul_(q).mul_(0.5)
        case _:
            raise ValueError(f"kind: expected a divergence, got {kind!r}")


def _mixture(a: Tensor, b: Tensor, share: float) -> Tensor:
    """share a + (1 - share) b, for 0 < share < 1; where it underflows so do a and b, and what its logarithm multiplies is 0."""
    return (share * a).add_(b, alpha=1 - share).clamp_min_(torch.finfo(a.dtype).tiny)


def _floor(x: Tensor) -> float:
    """The log-probability of a class that is masked."""
    return math.log(torch.finfo(x.dtype).tiny)
