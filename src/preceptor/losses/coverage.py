"""Losses of the chance that at least one of several samples is right.

Chen et al. 2025 (arXiv:2502.07154); p is the probability of the right answer, N the number of samples.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from preceptor.losses.checks import check_floating

_NEVER = -600.0  # log p below which (1 - p)^N is 1 - N p to the last digit; above it p is still a normal float64


def coverage_loss(log_prob: Tensor, *, num_samples: float) -> Tensor:
    r"""Minus the log-probability that at least one of N independent answers is the right one.

    Chen et al. 2025 (arXiv:2502.07154), Sec. 4:
        L = -log(1 - (1 - p)^N),   dL / d log p = -F,   with F of `confidence_factor`.

    Args:
        log_prob: log p of the whole right answer, any shape, <= 0; -inf is allowed.
        num_samples: N >= 1, not necessarily whole.

    Returns:
        The same shape and dtype, >= 0, computed in float64; no second derivative.

    Raises:
        TypeError: log_prob is not floating point.
        ValueError: N below 1.
    """
    check_floating(log_prob=log_prob)
    check_samples(num_samples)
    return _Coverage.apply(log_prob, num_samples)  # pyright: ignore[reportReturnType]


def confidence_factor(log_prob: Tensor, *, num_samples: float) -> Tensor:
    r"""What is left of the gradient of cross-entropy when coverage of N samples is trained.

    Chen et al. 2025 (arXiv:2502.07154), Sec. 4:
        F = N p (1 - p)^(N - 1) / (1 - (1 - p)^N).

    Args:
        log_prob: log p, any shape, <= 0; -inf is allowed.
        num_samples: N >= 1, not necessarily whole.

    Returns:
        The same shape, float64, in [0, 1], constant; 1 where N = 1 or p = 0, falling in p and N, 0 at p = 1 for N > 1.

    Raises:
        TypeError: log_prob is not floating point.
        ValueError: N below 1.
    """
    check_floating(log_prob=log_prob)
    check_samples(num_samples)
    exact = log_prob.detach().double()
    if num_samples == 1:
        return torch.ones_like(exact)
    log_wrong = _log1mexp(exact)
    log_factor = math.log(num_samples) + exact + (num_samples - 1) * log_wrong - _log1mexp(num_samples * log_wrong)
    return torch.where(exact < _NEVER, 0.0, log_factor.clamp(max=0.0)).exp()


class _Coverage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_prob: Tensor, num_samples: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(confidence_factor(log_prob, num_samples=num_samples))
        exact = log_prob.double()
        if num_samples == 1:
            return -log_prob
        value = torch.where(exact < _NEVER, -math.log(num_samples) - exact, -_log1mexp(num_samples * _log1mexp(exact)))
        return value.to(log_prob.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (factor,) = ctx.saved_tensors
        return -factor.to(upstream[0].dtype) * upstream[0], None


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def check_samples(num_samples: float) -> None:
    """Refuse a number of samples below 1 or without end.

    Raises:
        ValueError: it is one.
    """
    if not 1 <= num_samples < math.inf:
        raise ValueError(f"num_samples: expected a finite number of at least 1, got {num_samples}")


def coverage_optimal_policy(probabilities: Tensor, *, num_samples: float) -> Tensor:
    r"""The distribution to draw N answers from so that one of them is right as often as possible.

    Chen et al. 2025 (arXiv:2502.07154): of all q, the one with the largest sum_y pi_y (1 - (1 - q_y)^N) is
        q_y = max(0, 1 - r pi_y^(-1 / (N - 1))),   r such that sum q = 1.
    N = 1 gives everything to the likeliest answer; N -> infinity is uniform over the answers that can be right.

    Args:
        probabilities: pi, the chance of each answer to be the right one, shape (answers,), >= 0, not all 0.
        num_samples: N >= 1, not necessarily whole.

    Returns:
        q, shape (answers,), float64, sum 1.

    Raises:
        ValueError: another shape, a negative or no positive chance, or N below 1.
    """
    check_floating(probabilities=probabilities)
    check_samples(num_samples)
    chances = probabilities.detach().double()
    if chances.ndim != 1 or not bool((chances >= 0).all()) or not bool((chances > 0).any()):
        raise ValueError(f"probabilities: expected shape (answers,) with numbers >= 0, one of them > 0, got {probabilities.tolist()}")
    if num_samples == 1:
        return torch.zeros_like(chances).index_fill_(0, chances.argmax(), 1.0)
    levels = (torch.log(chances / chances.max()) / (num_samples - 1)).exp()  # pi^(1 / (N - 1)), the largest is 1
    ordered, _ = levels.sort(descending=True)
    candidates = torch.arange(len(levels), device=levels.device) / (1 / ordered).cumsum(0)  # r if the first m answers have a share
    r = candidates[candidates < ordered][-1]
    return torch.where(levels > r, 1 - r / levels, 0.0)
