"""What a cache keeps of a teacher's answer about one item (an example, or a token position): all of it, its top, or a sample of it.

Top of k: the k largest probabilities and the mass of all other classes, the tail. Of these k + 1 buckets the precision ``compact`` keeps
the square root of each p to 1/256, and of p < 1/1024, where that is coarse, log p to 1/4 nat. The rounded p' are normalised when they are
read. As log x <= x - 1,
    KL(p || p' / sum p') <= sum_i (p_i log(p_i / p'_i) + p'_i - p_i) <= (k + 1) 8e-6 nats,
whatever the teacher says: each bracket is at most about 2 / 512^2 for a root that is 1/512 off, and p (e^(1/8) - 9/8) for a logarithm that
is 1/8 off. What the k classes leave out is the only other loss.

Sample of k: k classes with weights w_i >= 0 such that E[w_c] = p_c for every class, so that the expected gradient of a loss that is linear
in the teacher's distribution, such as a cross-entropy or a forward KL, is the one under all of it. Classes with p_c > t are kept with
weight p_c, the others with probability p_c / t and weight t, where t makes the kept ones k. Among unbiased choices of k classes this one
has the smallest sum of variances (Fearnhead, Clifford 2003, J. R. Statist. Soc. B 65, Sec. 4.2). The weights sum to 1. ``compact`` rounds
the square root of a weight p_c up or down to 1/256, at random, such that the expectation of the weight itself stays.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from preceptor.data.hashing import uniform

Kind = Literal["logits", "top-k", "sample", "features"]
Precision = Literal["float32", "float16", "compact"]

LEVELS = 256  # of the square root of a probability
KL_BOUND_PER_BUCKET = 8e-6
"""Nats; see the module."""

_KNEE, _PER_NAT = 8, 4  # below level 8, where the root's levels come to lie 4 to a nat, they go on so
_LOWEST = 320  # more than the number of levels below 0
FLOOR = math.log(torch.finfo(torch.float32).tiny)  # stands for log 0

Arrays = dict[str, NDArray]


class Top(NamedTuple):
    """The k most probable classes of each item, as `top_k` returns them."""

    indices: Tensor
    log_probs: Tensor
    tail: Tensor


def top_k(logits: Tensor, k: int, *, temperature: float = 1.0) -> Top:
    """The k most probable classes, in the order of their numbers.

    Args:
        logits: (items, classes); -inf for classes that cannot be.
        k: in [1, classes].
        temperature: T > 0 of the softmax.
    Returns:
        Class numbers (items, k), ascending; their log-probabilities (items, k); the log of the mass of the others (items,). Those of
        classes that cannot be, and of an empty tail, are about -87.
    """
    log_p = (logits.double() / temperature).log_softmax(dim=-1)
    indices = log_p.topk(k, dim=-1).indices.sort(dim=-1).values
    top = log_p.gather(-1, indices)
    tail = log_p.scatter(-1, indices, -torch.inf).logsumexp(dim=-1)
    return Top(indices, top.clamp_min(FLOOR), tail.clamp_min(FLOOR))


def sample(logits: Tensor, k: int, draws: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """An unbiased sample of k classes, see the module.

    Args:
        logits: (items, classes); -inf for classes that cannot be.
        k: in [1, classes].
        draws: (items,), float64, uniform in [0, 1): all the chance there is.
        temperature: T > 0 of the softmax.
    Returns:
        Class numbers (items, k), ascending, and weights (items, k), float64, with sum 1. With fewer than k possible classes some entries
        have weight 0, and their numbers may repeat others.
    """
    p = (logits.double() / temperature).softmax(-1)
    largest, order = p.topk(k, dim=-1)
    place = torch.arange(k, device=p.device)
    rest = p.scatter(-1, order, 0.0).sum(-1, keepdim=True) + largest.flip(-1).cumsum(-1).flip(-1)  # without the 0, 1, ..., k - 1 largest
    certain = (largest > rest / (k - place)).long().cumprod(-1).sum(-1, keepdim=True)  # < k: nothing is larger than all that is left
    kept = place < certain
    others = p.scatter(-1, order, torch.where(kept, 0.0, largest)).cumsum(-1)
    threshold = others[:, -1:] / (k - certain)
    # Systematic sampling: grid points t apart, shifted by one draw; a class is drawn when a point falls into its stretch of length p.
    grid = torch.minimum((place + 1 - certain - draws[:, None]) * threshold, others[:, -1:])
    indices = torch.where(kept, order, torch.searchsorted(others, grid))
    weights = torch.where(kept, largest, threshold)
    indices, by_number = indices.sort(dim=-1)
    return indices, weights.gather(-1, by_number)


def pack_top(indices: Tensor, log_probs: Tensor, tail: Tensor, precision: Precision) -> Arrays:
    """The arrays that are stored of what `top_k` returned; of ``compact`` integers, small ones, to be coded."""
    if precision != "compact":
        return {"indices": _array(indices, np.int32), "log_probs": _array(log_probs, precision), "tail": _array(tail, np.float32)}
    log_p = torch.cat([log_probs, tail[:, None]], dim=-1)
    roots, logs = LEVELS * (log_p / 2).exp(), _KNEE + _PER_NAT * (log_p - 2 * math.log(_KNEE / LEVELS))
    levels = torch.where(roots >= _KNEE, roots, logs).round().int()
    least = levels.amin(-1, keepdim=True)
    return {"indices": _differences(indices), "levels": _array(torch.cat([levels - least, least + _LOWEST], dim=-1), np.int32)}


def unpack_top(stored: Arrays) -> dict[str, Tensor]:
    """``top_indices`` (items, k), ascending, ``top_logprobs`` (items, k) and ``tail`` (items,), the mass of all other classes."""
    if "tail" in stored:
        log_probs, tail = (torch.from_numpy(stored[name]).float() for name in ("log_probs", "tail"))
        indices = torch.from_numpy(stored["indices"])
    else:
        coded = torch.from_numpy(stored["levels"])
        levels = (coded[:, :-1] + (coded[:, -1:] - _LOWEST)).float()
        roots, logs = 2 * (levels.clamp_min(1) / LEVELS).log(), (levels - _KNEE) / _PER_NAT + 2 * math.log(_KNEE / LEVELS)
        log_p = torch.where(levels >= _KNEE, roots, logs).log_softmax(dim=-1)
        log_probs, tail = log_p[:, :-1].contiguous(), log_p[:, -1]
        indices = torch.from_numpy(stored["indices"]).cumsum(-1)
    return {"top_indices": indices.long(), "top_logprobs": log_probs, "tail": tail.exp()}


def pack_sample(indices: Tensor, weights: Tensor, precision: Precision, hashes: Tensor) -> Arrays:
    """The arrays that are stored of what `sample` returned; ``hashes`` (items,), int64, seed the rounding.

    Of ``compact`` 0 is a weight of 0, 1 the smallest other weight, which stands in ``least``, and the rest are levels of the root.
    """
    if precision != "compact":
        return {"indices": _array(indices, np.int32), "weights": _array(weights, precision)}
    least = weights.masked_fill(weights == 0, torch.inf).amin(-1, keepdim=True)
    base = _base(least.float())
    below = (LEVELS * weights.sqrt()).floor()
    chance = (LEVELS**2 * weights - below**2) / (2 * below + 1)  # of the upper level, where the weights of the two are the ends
    draws = uniform(hashes[:, None] + indices.cpu(), 1).to(weights.device)
    levels = 2 + below + (draws < chance) - base
    levels = torch.where(weights == 0, 0, torch.where(weights == least, 1, levels))
    return {"indices": _differences(indices), "weights": _array(levels, np.int32), "least": _array(least[:, 0], np.float32)}


def unpack_sample(stored: Arrays) -> dict[str, Tensor]:
    """``sample_indices`` (items, k), ascending, and ``sample_weights`` (items, k)."""
    indices, weights = torch.from_numpy(stored["indices"]), torch.from_numpy(stored["weights"])
    if "least" in stored:
        least = torch.from_numpy(stored["least"])[:, None]
        roots = (weights - 2 + _base(least)) / LEVELS
        weights = torch.where(weights == 0, 0.0, torch.where(weights == 1, least, roots**2))
        indices = indices.cumsum(-1)
    return {"sample_indices": indices.long(), "sample_weights": weights.float()}


def _base(least: Tensor) -> Tensor:
    """The level below the smallest weight, in float32 on both sides of the disk."""
    return (LEVELS * least.sqrt()).floor()


def _differences(indices: Tensor) -> NDArray[np.int32]:
    return np.diff(indices.cpu().numpy(), axis=-1, prepend=0).astype(np.int32)


def _array(values: Tensor, dtype: Any) -> NDArray:
    return values.cpu().numpy().astype(dtype)


def pack_whole(values: Tensor, precision: Precision) -> NDArray:
    """Logits or features as they are.

    Raises:
        ValueError: a number is too large for the precision.
    """
    largest = float(values.masked_fill(values.isinf(), 0.0).abs().max()) if values.numel() else 0.0
    if largest > float(np.finfo(precision).max):
        raise ValueError(f"precision: expected numbers that fit {precision}, got {largest:.4g}")
    return _array(values, precision)


def unpack_whole(stored: Arrays) -> dict[str, Tensor]:
    """What `pack_whole` stored, in float32, by name of the column."""
    return {name: torch.from_numpy(values).float() for name, values in stored.items()}
