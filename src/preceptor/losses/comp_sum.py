r"""Comp-sum losses: one family from the sum-exponential loss over cross-entropy to the mean absolute error, and what it guarantees.

Mao, Mohri, Zhong 2023 (arXiv:2304.07288). With scores h of n classes, q = softmax(h), the label y and tau >= 0:
    loss = Phi(sum_{k != y} e^(h_k - h_y)) = (q_y^(tau - 1) - 1) / (1 - tau),   Phi(u) = ((1 + u)^(1 - tau) - 1) / (1 - tau),
and -log q_y, log(1 + u) at tau = 1. tau = 0 is 1 / q_y - 1, tau = 1 + r is (1 - q_y^r) / r, tau = 2 is 1 - q_y. The gradient by h_k is that
of cross-entropy times a weight, q_y^(tau - 1) (q_k - 1[k = y]): hard examples count more below tau = 1 and less above.

What it says about the error of the predicted class, in an hypothesis set H that is symmetric and complete:
    R01(h) - R01*(H) <= Gamma(R(h) - R*(H) + M(H)) - M01(H),   Gamma the inverse of T (`regret_transform`),   M(H) as in `gap_bound`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from preceptor.losses.checks import check_floating, check_positive, check_same_shape
from preceptor.losses.divergence import log_probs
from preceptor.losses.hard import hard_loss
from preceptor.losses.numeric import upcast

_NEAR = 1e-6  # |tau - 1| below it: the limit, cross-entropy
_LARGEST = 30.0  # log of the largest weight q_y^(tau - 1)
_LARGEST_HALF = 10.0  # the same for float16, whose numbers end at e^11


def outer(u: Tensor, *, tau: float) -> Tensor:
    """Phi(u): concave, increasing, of slope (1 + u)^-tau <= 1, and smaller for larger tau.

    Args:
        u: >= 0, any shape, floating point.
        tau: >= 0.
    Returns:
        The shape of u, >= 0.
    Raises:
        ValueError: tau < 0.
    """
    check_tau(tau)
    rise = torch.log1p(upcast(u))
    return rise if abs(tau - 1) < _NEAR else torch.expm1((1 - tau) * rise) / (1 - tau)


def comp_sum(logits: Tensor, targets: Tensor, *, tau: float, temperature: float = 1.0) -> Tensor:
    """The loss of the module docstring; with class probabilities t as targets sum_y t_y loss(h, y).

    Deviation: where q_y^(tau - 1), tau < 1, is above e^30 (float16: e^10) the loss goes on linearly in log q_y, so that it stays finite.

    Args:
        logits: shape (..., classes).
        targets: class numbers (...), integers in [0, classes); or class probabilities (..., classes), treated as constant.
        tau: >= 0.
        temperature: rho > 0, the logits are divided by it.
    Returns:
        Shape (...), >= 0, in float32 or float64.
    Raises:
        TypeError: logits are not floating point, or class numbers not integers.
        ValueError: shapes do not fit, a class number is out of range, tau < 0, or the temperature is not > 0.
    """
    check_tau(tau)
    check_floating(logits=logits)
    largest = _LARGEST_HALF if logits.dtype == torch.float16 else _LARGEST
    if not targets.is_floating_point():
        check_positive(temperature=temperature)
        scaled = logits if temperature == 1 else upcast(logits) / temperature
        return _of_surprise(hard_loss(scaled, {"y": targets}), tau, largest)
    check_same_shape(logits=logits, targets=targets)
    losses = _of_surprise(-log_probs(logits, temperature=temperature), tau, largest)
    return (targets.detach().to(losses) * losses).sum(dim=-1)


def recovered_log_probs(logits: Tensor, *, tau: float) -> Tensor:
    """Log-probabilities of the classes from scores that were trained with this tau: log p, p ~ softmax(h)^(2 - tau).

    Only at tau = 1 does the loss make softmax(h) itself agree with the truth. From tau = 2 on nothing but the best class is left in h.

    Args:
        logits: shape (..., classes).
        tau: in [0, 2).
    Returns:
        Shape (..., classes).
    Raises:
        ValueError: tau outside its range.
    """
    check_tau(tau)
    if tau >= 2:
        raise ValueError(f"tau: expected a number below 2, from where on scores hold no probabilities, got {tau}")
    return log_probs(logits, temperature=1 / (2 - tau))


def conditional_minimum(probs: Tensor, *, tau: float) -> Tensor:
    """The least mean loss min_h sum_y p_y loss(h, y), at softmax(h) ~ p^(1 / (2 - tau)); from tau = 2 on all on the best class.

    Args:
        probs: p, shape (..., classes), rows >= 0 with sum 1.
        tau: >= 0.
    Returns:
        Shape (...), >= 0; at tau = 1 Shannon's entropy in nats.
    Raises:
        ValueError: tau < 0.
    """
    check_tau(tau)
    probs = upcast(probs)
    if tau >= 2:
        return (1 - probs.amax(dim=-1)) / (tau - 1)
    if abs(tau - 1) < _NEAR:
        return torch.special.entr(probs).sum(dim=-1)
    root = 2 - tau
    return torch.expm1(root * (probs.log() / root).logsumexp(dim=-1)) / (1 - tau)


def gap_bound(best_exponential_risk: float, mean_conditional_minimum: float, *, tau: float) -> float:
    """A bound on the minimizability gap M(H) = R*(H) - E[C*] of a hypothesis set: Phi(R*_0(H)) - E[C*], by Jensen.

    Args:
        best_exponential_risk: R*_0(H) >= 0, the least mean loss within H at tau = 0.
        mean_conditional_minimum: E[C*], the mean of `conditional_minimum` over inputs.
        tau: >= 0.
    Returns:
        At least 0 where both numbers are right.
    Raises:
        ValueError: tau < 0.
    """
    return float(outer(torch.tensor(best_exponential_risk, dtype=torch.double), tau=tau)) - mean_conditional_minimum


def regret_transform(beta: float, *, tau: float, num_classes: int) -> float:
    """T(beta): the least surrogate regret that a zero-one regret of beta can have.

    Mao, Mohri, Zhong 2023 (arXiv:2304.07288), with A = (((1 + beta)^s + (1 - beta)^s) / 2)^(2 - tau), s = 1 / (2 - tau):
        tau < 1: 2^(1 - tau) (1 - A) / (1 - tau);   tau = 1: ((1 + beta) log(1 + beta) + (1 - beta) log(1 - beta)) / 2;
        1 < tau < 2: (A - 1) / ((tau - 1) n^(tau - 1));   tau >= 2: beta / ((tau - 1) n^(tau - 1)).

    Args:
        beta: in [0, 1].
        tau: >= 0.
        num_classes: n >= 2; it plays no part up to tau = 1.
    Returns:
        A number >= 0, increasing and convex in beta.
    Raises:
        ValueError: an argument outside its range.
    """
    check_tau(tau)
    if not 0 <= beta <= 1:
        raise ValueError(f"beta: expected a number in [0, 1], got {beta}")
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
    if abs(tau - 1) < _NEAR:
        return sum(side * math.log(side) for side in (1 + beta, 1 - beta) if side > 0) / 2
    if tau >= 2:
        return beta / ((tau - 1) * num_classes ** (tau - 1))
    power = 1 / (2 - tau)
    mean = (((1 + beta) ** power + (1 - beta) ** power) / 2) ** (2 - tau)
    if tau < 1:
        return 2 ** (1 - tau) / (1 - tau) * (1 - mean)
    return (mean - 1) / ((tau - 1) * num_classes ** (tau - 1))


def regret_bound(regret: float, *, tau: float, num_classes: int, simple: bool = False) -> float:
    """Gamma(regret): the largest zero-one regret that a surrogate regret can hide.

    Args:
        regret: R(h) - R*(H) + M(H) >= 0.
        tau: >= 0.
        num_classes: n >= 2.
        simple: a closed form that is never smaller, not cut at 1: sqrt(2^tau (2 - tau) regret) for tau < 1, sqrt(2 n^(tau - 1) regret) for
            tau < 2, (tau - 1) n^(tau - 1) regret from 2 on; instead of the inverse of `regret_transform`, found by bisection.
    Returns:
        In [0, 1], or at least 0 when simple.
    Raises:
        ValueError: an argument outside its range.
    """
    full = regret_transform(1.0, tau=tau, num_classes=num_classes)
    if not regret >= 0:
        raise ValueError(f"regret: expected a number >= 0, got {regret}")
    if simple:
        if tau >= 2:
            return (tau - 1) * num_classes ** (tau - 1) * regret
        return math.sqrt((2**tau * (2 - tau) if tau < 1 else 2 * num_classes ** (tau - 1)) * regret)
    if regret >= full:
        return 1.0
    low, high = 0.0, 1.0
    while high - low > 1e-15:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if regret_transform(middle, tau=tau, num_classes=num_classes) < regret else (low, middle)
    return high


def difference_shift(logits: Tensor, moved: Tensor, targets: Tensor) -> Tensor:
    """How far the differences h_y - h_k, k != y, move between two rows of scores: the length of their change.

    Mao, Mohri, Zhong 2023 (arXiv:2304.07288), the smoothness term. With the change d of the scores and its mean m over n classes
        |(d_y - d_k)_k|^2 = n (d_y - m)^2 + sum_k (d_k - m)^2;   1e-12 is added under the root.

    Args:
        logits: shape (..., classes); gradients flow.
        moved: scores of the other input, same shape; gradients flow.
        targets: class numbers (...); or class probabilities (..., classes), which mix the lengths.
    Returns:
        Shape (...), >= 1e-6. A class that either masks by -inf does not count.
    Raises:
        ValueError: shapes differ.
    """
    check_same_shape(logits=logits, moved=moved)
    change = upcast(moved) - upcast(logits)
    counts = ~(torch.isneginf(logits) | torch.isneginf(moved))
    change = torch.where(counts, change, 0.0)
    number = counts.sum(dim=-1, keepdim=True).clamp_min(1)
    centred = torch.where(counts, change - change.sum(dim=-1, keepdim=True) / number, 0.0)
    lengths = (number * centred.square() + centred.square().sum(dim=-1, keepdim=True) + 1e-12).sqrt()
    if targets.is_floating_point():
        return (targets.detach().to(lengths) * lengths).sum(dim=-1)
    return lengths.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)


def check_tau(tau: float) -> None:
    """Refuse a tau below 0.

    Raises:
        ValueError: naming the number.
    """
    if not 0 <= tau < math.inf:
        raise ValueError(f"tau: expected a finite number >= 0, got {tau}")


def _of_surprise(surprise: Tensor, tau: float, largest: float) -> Tensor:
    """The loss from -log q_y."""
    if abs(tau - 1) < _NEAR:
        return surprise
    exponent = (1 - tau) * surprise
    if tau > 1:
        return torch.expm1(exponent) / (1 - tau)
    linear = math.exp(largest) * (1 + exponent - largest) - 1
    return torch.where(exponent > largest, linear, torch.expm1(exponent.clamp_max(largest))) / (1 - tau)
