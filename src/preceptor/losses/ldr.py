r"""Label-distributionally robust losses: the worst mean margin violation over distributions of the label, near the uniform one.

Zhu, Ying, Yang 2023 (arXiv:2112.14869). With scores f of K classes, the label y and a margin c, m_k = f_k - f_y + c 1[k != y]:
    loss = max_{p in Omega} sum_k p_k m_k - lambda R(p).
Members: ``kl``, R = KL(p || 1 / K): lambda log mean_k e^(m_k / lambda), p = softmax((f + c 1[. != y]) / lambda); ``cs``, R = 0: max_k m_k;
``top``, R = 0 and p_k <= 1 / j: the mean of the j largest m_k; ``l2``, R = |p - 1 / K|^2 / 2: p is a projection to the simplex.
The gradient by f_k is p_k - 1[k = y] whatever lambda is. A class with a score of -inf takes no part; an item with no other
counts as uniform and gets no gradient.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import check_choice, check_counts, check_floating, check_labels, check_positive, check_same_shape
from preceptor.losses.numeric import any_masked, upcast

Member = Literal["kl", "cs", "top", "l2"]
"""Which loss of the family; see the module."""

Normalise = Literal["none", "l1", "softplus"]
"""``l1``: scores divided by their mean absolute value; ``softplus``: that of softplus(f), which makes them positive, with mean 1."""

_SMALLEST = 1e-4  # lambda below it: the maximum
_LARGE = 100.0  # lambda above it: rounding errors of a logsumexp times lambda would show


def normalised(logits: Tensor, how: Normalise) -> Tensor:
    """Scores on the scale that lambda and margin are for, in float32 or float64; differentiated through.

    Args:
        logits: shape (..., K); a class of -inf stays -inf, a row of them alone counts as zeros.
        how: see `Normalise`; a row of zeros stays one.
    Returns:
        Shape (..., K).
    Raises:
        ValueError: an unknown word.
    """
    check_choice(Normalise, how=how)
    logits = upcast(logits)
    masked = torch.isneginf(logits) if any_masked(logits) else None
    if masked is not None:
        empty = masked.all(dim=-1, keepdim=True)
        logits, masked = logits.masked_fill(empty, 0.0), masked & ~empty
    if how == "none":
        return logits
    scores = F.softplus(logits) if how == "softplus" else logits
    if masked is None:
        return scores / _length(scores.abs().mean(dim=-1, keepdim=True))
    scores = scores.masked_fill(masked, 0.0)
    mean = scores.abs().sum(dim=-1, keepdim=True) / (~masked).sum(dim=-1, keepdim=True)
    return (scores / _length(mean)).masked_fill(masked, -torch.inf)


def ldr(
    logits: Tensor,
    targets: Tensor,
    *,
    lam: float | Tensor = 1.0,
    margin: float = 0.0,
    member: Member = "kl",
    normalise: Normalise = "none",
    top: int = 5,
) -> Tensor:
    """The loss of the module docstring; with class probabilities t as targets sum_y t_y loss(f, y).

    Args:
        logits: shape (..., K), K >= 2.
        targets: class numbers (...), integers in [0, K); or class probabilities (..., K), treated as constant.
        lam: lambda > 0; for ``kl`` one per item too, treated as constant. 1 without a margin is cross-entropy minus log K.
        margin: c >= 0, in units of the normalised scores.
        member: see `Member`; all but ``kl`` hold K * K numbers per item where targets are probabilities.
        normalise: what is done to the scores first.
        top: j of ``top``, at least 1; all classes where there are fewer.
    Returns:
        Shape (...), in float32 or float64; ``kl`` and ``l2`` may be negative.
    Raises:
        TypeError: logits are not floating point, or class numbers not integers.
        ValueError: one class only, shapes that do not fit, or an argument outside its range.
    """
    check_floating(logits=logits)
    check_choice(Member, member=member)
    check_positive(lam=lam)
    check_counts(top=top)
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin: expected a finite number >= 0, got {margin}")
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise ValueError(f"logits: expected at least 2 classes, got shape {tuple(logits.shape)}")
    if isinstance(lam, Tensor) and ((lam.ndim and member != "kl") or lam.shape not in ((), logits.shape[:-1])):
        raise ValueError(f"lam: expected a number, or for kl shape {tuple(logits.shape[:-1])} (one per item), got {tuple(lam.shape)}")
    if targets.is_floating_point():
        check_same_shape(logits=logits, targets=targets)
        scores = normalised(logits, normalise)
        targets = targets.detach().to(scores)
        if member == "kl":
            return _kl_of_probs(scores, targets, lam, margin)
        violations = scores.unsqueeze(-2) - _finite(scores).unsqueeze(-1)
        violations = violations + margin * (1 - torch.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device))
        return (targets * _member(violations, lam, member, top)).sum(dim=-1)
    check_labels(targets, logits)
    scores = normalised(logits, normalise)
    labels = targets.long().unsqueeze(-1)
    own = scores.gather(-1, labels)
    own = _finite(own) if any_masked(own) else own
    violations = scores - (own - margin if margin else own)
    return _member(violations.scatter(-1, labels, 0.0), lam, member, top)


def adapted(scores: Tensor, lam: Tensor, *, base: float, strength: float, shift: float = 1e-5) -> Tensor:
    """One step towards the lambda of each item that ALDR-KL asks for, without gradient.

    Zhu, Ying, Yang 2023 (arXiv:2112.14869), where lambda is maximised over too, with a penalty (alpha / 2) (lambda - base)^2 and
    alpha = strength log K / base:
        lambda = base (1 - KL(p || 1 / K) / (strength log K)),   p = softmax(scores / lambda).

    Args:
        scores: normalised, shape (..., K), with or without the margin; see `ldr`.
        lam: present lambda > 0 of each item, shape (...).
        base: lambda_0 > 0, the largest.
        strength: alpha-hat > 1, which bounds lambda from below by base (1 - 1 / strength); infinite: lambda stays at base.
        shift: added to each p, brought to sum 1 again; the paper's code.
    Returns:
        Shape (...), > 0: near the base where p is near uniform, small where one class has it all.
    """
    scores = scores.detach()
    p = (scores / lam.to(scores).unsqueeze(-1)).softmax(dim=-1) + shift
    p = p / p.sum(dim=-1, keepdim=True)
    if scores.shape[-1] < 2:
        raise ValueError(f"logits: expected at least 2 classes to adapt lambda to, got {scores.shape[-1]}")
    share = 1 - torch.special.entr(p).sum(dim=-1) / math.log(scores.shape[-1])
    return base * (1 - share.clamp(0, 1) / strength)


def adaptation_cost(lam: Tensor, num_classes: int, *, base: float, strength: float) -> Tensor:
    """The penalty (alpha / 2) (lambda - base)^2 of `adapted`, which ALDR-KL subtracts from the loss; no gradient."""
    return 0.0 * lam if math.isinf(strength) else 0.5 * strength * math.log(num_classes) / base * (lam - base).square()


def _length(mean: Tensor) -> Tensor:
    """What a row is divided by: 1 where it is all zeros, whose gradient would be infinite."""
    return torch.where(mean > 1e-12, mean, 1.0)


def _finite(scores: Tensor) -> Tensor:
    """A label that the model masks counts as a very small score."""
    return scores.masked_fill(torch.isneginf(scores), -100.0)


def _member(violations: Tensor, lam: float | Tensor, member: Member, top: int) -> Tensor:
    if member == "kl":
        return _soft_maximum(violations, lam)
    if member == "cs":
        return violations.amax(dim=-1)
    if member == "top":
        count = min(top, violations.shape[-1])
        return violations.topk(count, dim=-1).values.clamp_min(-1e30).sum(dim=-1) / count
    masked = torch.isneginf(violations)
    p = _simplex(1 / violations.shape[-1] + violations.detach() / lam)
    gain = (p * violations.masked_fill(masked, 0.0)).sum(dim=-1)  # p is the maximiser: its own gradient has no part
    return gain - lam / 2 * (p - 1 / violations.shape[-1]).square().sum(dim=-1)


def _soft_maximum(violations: Tensor, lam: float | Tensor) -> Tensor:
    """lambda log mean_k e^(m_k / lambda)."""
    if isinstance(lam, Tensor):
        lam = lam.detach().to(violations)
        safe = lam.clamp_min(_SMALLEST)
        scaled = violations / (safe.unsqueeze(-1) if safe.ndim else safe)
        smallest, largest = bool((lam < _SMALLEST).any()), bool((lam > _LARGE).any())
    else:
        safe = max(lam, _SMALLEST)
        scaled, smallest, largest = violations / safe, lam < _SMALLEST, lam > _LARGE
    count = _count(violations)
    value = safe * (scaled.logsumexp(dim=-1) - count.log() if isinstance(count, Tensor) else scaled.logsumexp(dim=-1) - math.log(count))
    if largest:
        small = scaled.amax(dim=-1) < 1
        precise = safe * torch.log1p(torch.expm1(scaled.clamp_max(1.0)).masked_fill(torch.isneginf(scaled), 0.0).sum(dim=-1) / count)
        value = torch.where(small, precise, value)
    return torch.where(torch.as_tensor(lam, device=value.device) < _SMALLEST, violations.amax(dim=-1), value) if smallest else value


def _kl_of_probs(scores: Tensor, probs: Tensor, lam: float | Tensor, margin: float) -> Tensor:
    """sum_y t_y loss(f, y) from one softmax: taking c off class y leaves S e^(c / lambda) (1 - (1 - e^(-c / lambda)) p_y)."""
    middle = (probs * _finite(scores)).sum(dim=-1, keepdim=True)
    whole = _soft_maximum(scores - middle, lam)
    if not margin:
        return whole
    weight = torch.as_tensor(lam, dtype=scores.dtype, device=scores.device).detach().clamp_min(_SMALLEST)
    weight = weight.unsqueeze(-1) if weight.ndim else weight
    p = (scores / weight).softmax(dim=-1)
    less = weight * torch.log1p((torch.expm1(-margin / weight) * p).clamp_min(torch.finfo(p.dtype).eps - 1))
    return whole + margin + (probs * less).sum(dim=-1)


def _count(violations: Tensor) -> int | Tensor:
    """Classes that take part, per item where some do not."""
    if not any_masked(violations):
        return violations.shape[-1]
    return (~torch.isneginf(violations)).sum(dim=-1).to(violations.dtype)


def _simplex(x: Tensor) -> Tensor:
    """Euclidean projection of rows to the simplex: max(x - theta, 0) with theta such that they sum to 1."""
    x = x - x.amax(dim=-1, keepdim=True)
    ordered = x.sort(dim=-1, descending=True).values
    ranks = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    excess = ordered.masked_fill(torch.isneginf(ordered), 0.0).cumsum(dim=-1) - 1
    active = ordered - excess / ranks > 0
    last = active.sum(dim=-1, keepdim=True)
    theta = excess.gather(-1, last - 1) / last
    return (x - theta).clamp_min(0)
