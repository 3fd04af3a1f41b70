"""Coverage: the chance that at least one of k independent samples is right (pass@k).

k samples that are each right with probability p cover a problem with probability 1 - (1 - p)^k.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from preceptor.losses.checks import check_counts


def coverage(probability: Tensor, k: float) -> Tensor:
    """The coverage of k samples from exact probabilities of being right: 1 - (1 - p)^k.

    Args:
        probability: p in [0, 1], any shape.
        k: samples, >= 1; a number between two whole ones is allowed.
    Returns:
        The same shape, float64, in [0, 1].
    Raises:
        ValueError: a probability outside [0, 1], or k below 1.
    """
    p = probability.detach().double()
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"probability: expected numbers in [0, 1], got {p[~((p >= 0) & (p <= 1))].flatten()[0].item()}")
    if not k >= 1:
        raise ValueError(f"k: expected a number of at least 1, got {k}")
    return -torch.expm1(k * torch.log1p(-p))


def pass_at_k(num_correct: Tensor, num_samples: Tensor | int, k: int) -> Tensor:
    r"""Unbiased estimate of the coverage of k samples from n samples of which c are right, for each problem.

    Chen et al. 2021 (arXiv:2107.03374), Sec. 2.1:
        1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n - c + 1}^{n} (1 - k / i),   1 where n - c < k.
    Its mean over n samples that are each right with probability p is 1 - (1 - p)^k. Putting c / n in the place of p instead is biased
    low for k > 1.

    Args:
        num_correct: c, shape (problems,), integers in [0, n].
        num_samples: n, the same shape, or one number for all problems.
        k: samples, in [1, n].
    Returns:
        Shape (problems,), float64, in [0, 1].
    Raises:
        TypeError: counts are not integers.
        ValueError: another shape, a count outside its range, or k above a number of samples.
    """
    n = torch.as_tensor(num_samples, device=num_correct.device)
    if num_correct.is_floating_point() or n.is_floating_point():
        raise TypeError(f"num_correct, num_samples: expected integers, got {num_correct.dtype} and {n.dtype}")
    if num_correct.ndim != 1 or n.shape not in ((), num_correct.shape):
        raise ValueError(f"num_samples: expected one number or shape {tuple(num_correct.shape)}, (problems,), got {tuple(n.shape)}")
    check_counts(k=k)
    c, n = num_correct.long(), n.long().expand(num_correct.shape)
    if bool(((c < 0) | (c > n)).any()):
        raise ValueError("num_correct: expected counts from 0 to the number of samples, got one outside")
    if bool((n < k).any()):
        raise ValueError(f"k: expected at most the number of samples, {int(n.min())}, got {k}")
    most = int(n.max()) if len(n) else k
    i = torch.arange(k + 1, most + 1, dtype=torch.float64, device=c.device)
    log_missed = torch.cat([i.new_zeros(1), torch.log1p(-k / i).cumsum(0)])  # from k on: the sum of log(1 - k / i) over k < i <= k + place
    wrong = n - c
    missed = log_missed[n - k] - log_missed[(wrong - k).clamp(min=0)]
    return torch.where(wrong < k, 1.0, -torch.expm1(missed))


def pass_curve(correct: Tensor, ks: Iterable[int]) -> dict[int, tuple[float, float]]:
    """Mean pass@k over problems with its standard error, for several k.

    Args:
        correct: whether each sample is right, bool, shape (problems, n).
        ks: numbers of samples, each in [1, n].
    Returns:
        k -> (mean, standard error over problems); the error is NaN for one problem.
    Raises:
        ValueError: another shape, no problem, or a k outside its range.
    """
    if correct.ndim != 2 or len(correct) == 0:
        raise ValueError(f"correct: expected shape (problems, samples) with at least one problem, got {tuple(correct.shape)}")
    found = {}
    for k in ks:
        values = pass_at_k((correct != 0).sum(1), correct.shape[1], k)
        spread = float(values.std()) if len(values) > 1 else math.nan
        found[k] = (float(values.mean()), spread / math.sqrt(len(values)))
    return found
