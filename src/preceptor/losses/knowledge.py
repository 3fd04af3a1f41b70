"""Knowledge and decisions: the local entropy of a layer of sigmoids and what changes with it, from the logits of two steps.

Everything here looks at the units' logits alone ("knowledge"), so it serves any network of sigmoids, however it is trained: read the logits
of a layer for the same examples before and after an update (`preceptor.models.taps.forward`) and pass both to `diagnose`. Writing z for the
logits, D = sigmoid(z) for the "decisions" and D' = D (1 - D) for their slope.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import check_choice, check_positive, check_same_shape
from preceptor.losses.numeric import upcast

Net = Literal["code", "paper"]
"""Sign of the gradient in the tensor net."""


def ska_gradient(logits: Tensor, before: Tensor) -> Tensor:
    """Gradient of `entropy_step` with respect to ``logits``, in closed form.

    Mahi 2025 (arXiv:2504.03214): G = -(1 / ln 2) (z D' + D - D_before).

    Args:
        logits: z, shape (..., units).
        before: z at the step before, same shape; constant.
    Returns:
        Shape (..., units), in bits.
    Raises:
        ValueError: shapes differ.
    """
    z, old = _pair(logits, before)
    return -(z * _slope(z) + z.sigmoid() - old.sigmoid()) / math.log(2)


def entropy_step(logits: Tensor, before: Tensor) -> Tensor:
    """What one step adds to the entropy of a layer.

    Mahi 2025 (arXiv:2504.03214): H = -(1 / ln 2) sum over units of z (D - D_before). Mostly negative.

    Args:
        logits: z, shape (..., units).
        before: z at the step before, same shape.
    Returns:
        Shape (...), in bits.
    Raises:
        ValueError: shapes differ.
    """
    z, old = _pair(logits, before)
    return -(z * (z.sigmoid() - old.sigmoid())).sum(dim=-1) / math.log(2)


def entropy_between(logits: Tensor, before: Tensor) -> Tensor:
    """What infinitely many small steps from ``before`` to ``logits`` add to the entropy of a layer.

    -(1 / ln 2) sum over units of the integral of z dD, which depends on its ends alone: the change of the units' binary entropy. Times ln 2
    it is also the integral over time of the paper's Lagrangian, which every path between two ends therefore makes equal.

    Args:
        logits: z at the end, shape (..., units).
        before: z at the start, same shape.
    Returns:
        Shape (...), in bits, at most the number of units in size.
    Raises:
        ValueError: shapes differ.
    """
    # softplus(z) - z sigmoid(z), which is even in z; on this side nothing cancels.
    now, then = (F.softplus(-z.abs()) + z.abs() * (-z.abs()).sigmoid() for z in _pair(logits, before))
    return (now - then).sum(dim=-1) / math.log(2)


def tensor_net_step(logits: Tensor, before: Tensor, *, net: Net = "code") -> Tensor:
    """One step of the tensor net, whose change of sign the paper reads as the onset of structured learning.

    Mahi 2025 (arXiv:2504.03214): sum over units of (z - z_before) (D - grad H), grad H = -z D' / ln 2. Deviation: the released code, of
    which all published curves are, has the opposite sign of grad H.

    Args:
        logits: z, shape (..., units).
        before: z at the step before, same shape.
        net: whose sign.
    Returns:
        Shape (...), no unit; sums over steps are its cumulative form.
    Raises:
        ValueError: shapes differ, or the sign is unknown.
    """
    check_choice(Net, net=net)
    z, old = _pair(logits, before)
    sign = 1 if net == "paper" else -1
    return ((z - old) * (z.sigmoid() + sign * z * _slope(z) / math.log(2))).sum(dim=-1)


def lagrangian(logits: Tensor, before: Tensor, eta: float) -> Tensor:
    """The paper's Lagrangian: -sum over units of z D' (z - z_before) / eta; (eta / ln 2) times it is `entropy_step` to first order.

    Args:
        logits: z, shape (..., units).
        before: z at the step before, same shape.
        eta: length of the step in time, > 0.
    Returns:
        Shape (...), nats per unit of time.
    Raises:
        ValueError: shapes differ, or eta <= 0.
    """
    check_positive(eta=eta)
    z, old = _pair(logits, before)
    return -(z * _slope(z) * (z - old)).sum(dim=-1) / eta


def diagnose(logits: Tensor, before: Tensor, *, eta: float, net: Net = "code") -> dict[str, Tensor]:
    """All that the paper plots of one layer and step; for any layer of sigmoids, however it is trained.

    Args:
        logits: z of all examples, shape (N, units), such as `preceptor.models.taps.forward` reads.
        before: z of the same examples at the step before, same shape.
        eta: length of the step in time, > 0.
        net: see `tensor_net_step`.
    Returns:
        0-dimensional: ``entropy``, ``tensor_net`` and ``lagrangian``, summed over examples; ``cosine`` of z and D - D_before, 0 where one
        of them is 0; ``flow``, the Frobenius norm of (z - z_before) / eta; ``z_norm``, that of z.
    Raises:
        ValueError: shapes differ, eta <= 0, or the sign is unknown.
    """
    action = lagrangian(logits, before, eta).sum()
    z, old = _pair(logits, before)
    moved = z.sigmoid() - old.sigmoid()
    norms = z.norm() * moved.norm()
    return {
        "entropy": entropy_step(z, old).sum(),
        "cosine": torch.where(norms > 0, (z * moved).sum() / norms, 0.0),
        "tensor_net": tensor_net_step(z, old, net=net).sum(),
        "flow": (z - old).norm() / eta,
        "lagrangian": action,
        "z_norm": z.norm(),
    }


def _pair(logits: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    check_same_shape(logits=logits, before=before)
    return upcast(logits), upcast(before)


def _slope(z: Tensor) -> Tensor:
    """D' = D (1 - D), without cancellation."""
    return z.sigmoid() * (-z).sigmoid()
