"""Rankings of classes: the one that a teacher with a label gives, and the likelihood of a ranking in a Plackett-Luce model."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from preceptor.losses.checks import check_floating, check_labels
from preceptor.losses.divergence import log_probs
from preceptor.losses.numeric import upcast


def teacher_optimal_ranking(teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """Rank the classes: the label first, then by falling logit of the teacher; of equal logits the lower class comes first.

    Args:
        teacher: logits, shape (..., C); entries finite or -inf.
        labels: shape (...), integers in [0, C); None ranks by the teacher alone.

    Returns:
        Classes in the order of their ranks, shape (..., C), int64.

    Raises:
        TypeError: logits are not floating point, or labels not integers.
        ValueError: shapes do not fit, or a label is out of range.
    """
    check_floating(teacher=teacher)
    if labels is not None:
        check_labels(labels, teacher)
        labels = labels.long().unsqueeze(-1)
    keys = upcast(teacher.detach())
    if keys.dtype == torch.float32 and keys.device.type == "cpu":
        return torch.from_numpy(_sorted(keys.numpy(), None if labels is None else labels.numpy()))
    if labels is not None:
        keys = keys.scatter(-1, labels, torch.inf)
    return keys.sort(dim=-1, descending=True, stable=True).indices


def _sorted(keys: NDArray[np.float32], first: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The same ranking by integers of the logit, the largest the least, and the class: numpy sorts them several times faster."""
    keys = keys + np.float32(0)  # -0 becomes 0
    if first is not None:
        np.put_along_axis(keys, first, np.inf, axis=-1)
    bits = keys.view(np.int32)
    packed = (~(bits ^ ((bits >> 31) & 0x7FFFFFFF))).astype(np.int64)
    packed <<= 32
    packed += np.arange(keys.shape[-1])
    packed.sort(axis=-1)
    packed &= 0xFFFFFFFF
    return packed


def plackett_luce_nll(scores: Tensor, ranking: Tensor, weights: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of a ranking, in nats, each of its choices with a weight.

    Plackett 1975 (Applied Statistics 24, 2):
        L = sum_k w_k [log sum_(l >= k) exp s_pi(l) - s_pi(k)].

    Args:
        scores: shape (..., C); a class at -inf counts as in `preceptor.losses.divergence`.
        ranking: every class once, in the order of ranks, shape (..., C), int64.
        weights: w >= 0 of the choices in the order of ranks, a shape that broadcasts to (..., C); constant. None: all are 1.

    Returns:
        Shape (...), >= 0, in float32 or float64; with weights 1, exp(-L) over all rankings sums to 1.

    Raises:
        TypeError: scores are not floating point.
        ValueError: the shapes of scores and ranking differ.
    """
    check_floating(scores=scores)
    if ranking.shape != scores.shape:
        raise ValueError(f"ranking: expected shape {tuple(scores.shape)} like scores, got {tuple(ranking.shape)}")
    scores = upcast(scores)
    least, largest = (float(end) for end in scores.detach().aminmax()) if scores.numel() else (0.0, math.inf)
    if least == -torch.inf:
        scores = log_probs(scores)
    weights = torch.ones_like(scores) if weights is None else weights.detach().to(scores).expand_as(scores)
    if largest - least < _SPREAD[scores.dtype]:
        return _ranked_nll(scores, ranking, weights, largest)
    ranked = scores.gather(-1, ranking)
    return (weights * (ranked.flip(-1).logcumsumexp(-1).flip(-1) - ranked)).sum(dim=-1)


_SPREAD = {torch.float32: 70.0, torch.float64: 600.0}
"""Largest difference of scores whose exponentials can be summed as they are."""


class _RankedNll(torch.autograd.Function):
    """The likelihood by plain sums; its gradient in closed form, which autograd can derive once more, also forwards."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, ranking: Tensor, weights: Tensor, largest: float) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ranked, worths, rest = _worths(scores, ranking, largest)
        return rest.log().sub_(ranked).mul_(weights).sum(dim=-1).clamp_(min=0), worths, rest

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        worths, rest = output[1], output[2]
        ctx.mark_non_differentiable(worths, rest)
        ctx.set_materialize_grads(False)
        *given, ctx.largest = inputs
        ctx.save_for_backward(*given, worths, rest)
        ctx.save_for_forward(*given, worths, rest)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scores, ranking, weights, worths, rest = ctx.saved_tensors
        if upstream is None:
            return None, None, None, None
        if torch.is_grad_enabled():  # the gradient itself is to be derived
            _, worths, rest = _worths(scores, ranking, ctx.largest)
        slopes = _falls(weights, worths, rest) * -upstream.unsqueeze(-1)
        return slopes.scatter(-1, ranking, slopes), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *unused: Any) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _, ranking, weights, worths, rest = ctx.saved_tensors
        return -(_falls(weights, worths, rest) * tangent.gather(-1, ranking)).sum(dim=-1), None, None


def _ranked_nll(scores: Tensor, ranking: Tensor, weights: Tensor, largest: float) -> Tensor:
    return cast(tuple[Tensor, ...], _RankedNll.apply(scores, ranking, weights, largest))[0]


def _falls(weights: Tensor, worths: Tensor, rest: Tensor) -> Tensor:
    """The negative slopes by the scores, in the order of ranks."""
    return torch.addcmul(weights, (weights / rest).cumsum_(dim=-1), worths, value=-1)


def _worths(scores: Tensor, ranking: Tensor, largest: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scores in the order of ranks, less the largest of all; their exponentials; the sums of these from each rank on; all (..., C)."""
    ranked = scores.gather(-1, ranking).sub_(largest)
    worths = ranked.exp()
    return ranked, worths, worths.flip(-1).cumsum_(dim=-1).flip(-1)
