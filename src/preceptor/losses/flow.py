"""Velocities of flow models, and how far a flow map is from them.

Time is 1 at the noise n and 0 at the data x0, with x_r = (1 - r) x0 + r n between. Every velocity here points towards the data:
u(x, r) = E[x0 - n | x_r = x], minus the usual dx/dr. A flow map goes from noise z along the flow for a duration d, 0 to 1:
f(z, d) = z + d F(z, d), with the average velocity F. Points have shape (N, ...), times and durations (N,).

Tong, Ma, Xie, Jaakkola 2025, Flow Map Distillation Without Data (arXiv:2511.19428).
"""

from __future__ import annotations

import torch
from torch import Tensor

from preceptor.losses.checks import check_floating, check_positive, check_same_shape
from preceptor.losses.numeric import upcast


def per_item(times: Tensor, like: Tensor) -> Tensor:
    """Times (N,) in a shape that multiplies points (N, ...), at least in float32.

    Raises:
        ValueError: not one time per point.
    """
    if times.shape != like.shape[:1]:
        raise ValueError(f"times: expected shape ({len(like)},), one per point, got {tuple(times.shape)}")
    return upcast(times).reshape(-1, *(1,) * (like.ndim - 1))


def noised(data: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Points on the straight lines from data to noise, (1 - r) x0 + r n.

    Args:
        data, noise: shape (N, ...).
        times: r in [0, 1], shape (N,).
    Returns:
        Shape (N, ...), in the dtype of ``data``.
    """
    check_same_shape(data=data, noise=noise)
    r = per_item(times, data)
    return ((1 - r) * data + r * noise).to(data.dtype)


def map_point(noise: Tensor, average: Tensor, durations: Tensor) -> Tensor:
    """Where a flow map leads, z + d F.

    Args:
        noise: z, shape (N, ...).
        average: F(z, d), the same shape.
        durations: d in [0, 1], shape (N,); 0 gives z whatever F is.
    Returns:
        Shape (N, ...), in the dtype of ``noise``.
    """
    check_same_shape(noise=noise, average=average)
    return (noise + per_item(durations, noise) * average).to(noise.dtype)


def guided(conditional: Tensor, unconditional: Tensor, guidance: Tensor, times: Tensor, *, interval: tuple[float, float]) -> Tensor:
    """Classifier-free guidance within an interval of times: g u(.|c) + (1 - g) u(.|nothing), else u(.|c).

    Args:
        conditional, unconditional: velocities, shape (N, ...).
        guidance: g, shape (N,); 1 is none.
        times: shape (N,).
        interval: first and last time with guidance.
    Returns:
        Shape (N, ...).
    """
    check_same_shape(conditional=conditional, unconditional=unconditional)
    inside = (times >= interval[0]) & (times <= interval[1])
    g = per_item(torch.where(inside, upcast(guidance), 1.0), conditional)
    return g * upcast(conditional) + (1 - g) * upcast(unconditional)


def prediction_mismatch(average: Tensor, slope: Tensor, velocity: Tensor, durations: Tensor) -> Tensor:
    """Velocity at which a flow map moves as the duration grows, less the flow's at the same point: F + d dF/dd - u(f, 1 - d).

    It is 0 for every z and d exactly when the map follows the flow.

    Args:
        average: F(z, d), shape (N, ...).
        slope: its partial derivative by d, the same shape.
        velocity: u(f(z, d), 1 - d), the same shape.
        durations: shape (N,).
    Returns:
        Shape (N, ...), constant: no gradient flows.
    Raises:
        TypeError: not floating point.
        ValueError: shapes differ.
    """
    check_floating(average=average, slope=slope, velocity=velocity)
    check_same_shape(average=average, slope=slope, velocity=velocity)
    return (upcast(average) + per_item(durations, average) * upcast(slope) - upcast(velocity)).detach()


def correction_mismatch(noising: Tensor, velocity: Tensor) -> Tensor:
    """Velocity of the student's samples once noised, less the teacher's at the same point and time.

    With scores of both marginals it is r / (1 - r) (score of the student - score of the teacher): moving samples against it lowers the
    KL(student || teacher) of the noised marginals.

    Args:
        noising: E[x0 - n | x_r] of the student's samples x0, shape (N, ...).
        velocity: u(x_r, r), the same shape.
    Returns:
        Shape (N, ...), constant: no gradient flows.
    Raises:
        TypeError: not floating point.
        ValueError: shapes differ.
    """
    check_floating(noising=noising, velocity=velocity)
    check_same_shape(noising=noising, velocity=velocity)
    return (upcast(noising) - upcast(velocity)).detach()


def mismatch_weight(mismatch: Tensor, *, power: float = 1.0, eps: float = 1e-2) -> Tensor:
    """Weight that damps large mismatches, 1 / (|m|^2 / D + eps)^power with D numbers per point.

    With power 1 the weighted norm is at most sqrt(D / eps) / 2, which it has at |m|^2 = D eps.

    Args:
        mismatch: m, shape (N, ...).
        power: >= 0; 0 gives weight 1.
        eps: > 0.
    Returns:
        Shape (N,), > 0, constant.
    Raises:
        ValueError: a number outside its range.
    """
    check_positive(eps=eps)
    if not power >= 0:
        raise ValueError(f"power: expected a number >= 0, got {power}")
    return (upcast(mismatch.detach()).square().flatten(1).mean(dim=1) + eps) ** -power


def lengths(mismatch: Tensor) -> Tensor:
    """Norm of each point's mismatch, (N, ...) -> (N,)."""
    return torch.linalg.vector_norm(upcast(mismatch).flatten(1), dim=1)


def balance(prediction: Tensor, correction: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Factor that makes a second group of mismatches as long as a first one on average, times alpha.

    Args:
        prediction: lengths of the first group, shape (N,), N >= 1, weights applied.
        correction: lengths of the second group, shape (M,), M >= 1.
        alpha: > 0.
    Returns:
        0-dimensional, constant; where the second group is 0 it is large, and what it multiplies 0.
    Raises:
        ValueError: an empty group, or alpha not > 0.
    """
    check_positive(alpha=alpha)
    for name, group in {"prediction": prediction, "correction": correction}.items():
        if group.numel() == 0:
            raise ValueError(f"{name}: expected at least one length, got none")
    least = torch.finfo(correction.dtype).tiny ** 0.5  # keeps 0 / 0 finite; too small to be seen elsewhere
    return (alpha * prediction.mean() / correction.mean().clamp(min=least)).detach()


def pull(output: Tensor, mismatch: Tensor, weight: Tensor) -> Tensor:
    """A loss whose gradient for the output is weight times mismatch, over the numbers per point D.

    Its value is weight |mismatch|^2 / (2 D), that of the squared distance from ``output - mismatch`` held constant.

    Args:
        output: shape (N, ...), with gradient.
        mismatch: same shape; treated as constant.
        weight: shape (N,), >= 0; treated as constant.
    Returns:
        Shape (N,), >= 0.
    """
    check_same_shape(output=output, mismatch=mismatch)
    output = upcast(output)
    target = output.detach() - mismatch.detach()
    return weight.detach() * (output - target).square().flatten(1).mean(dim=1) / 2
