"""Adversarial views of a batch: ascent of any objective within a ball, and the attacks FGSM and PGD in the maximum norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.losses.checks import check_choice
from preceptor.models.taps import forward

Norm = Literal["max", "euclid"]
"""How far an attack may go: ``max`` bounds every entry of an example, ``euclid`` the length of its change."""


def ascend(
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    norm: Norm = "max",
    box: tuple[float, float] | None = (0.0, 1.0),
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Raise an objective by projected gradient steps within the ball |x' - x| <= epsilon and a box.

    One step of size ``step_size`` goes along the sign of the gradient (``max``), or along the gradient brought to length 1 (``euclid``),
    example by example. Works under ``torch.no_grad``, as in ``prepare``.

    Args:
        objective: of inputs (N, ...), a number that is to grow: the sum over examples of what concerns each alone.
        x: inputs, (N, ...), floating point.
        epsilon: radius, >= 0, in units of x.
        step_size: > 0, in units of x.
        steps: number of steps, >= 1.
        norm: see `Norm`.
        box: least and largest value of inputs; None for none.
        generator: draws the start uniformly in the cube of side 2 epsilon, then brought into ball and box; None starts at x.
        start: where the first gradient is taken, (N, ...), instead of a draw.
    Returns:
        (N, ...) without gradient.
    Raises:
        ValueError: a number outside its range, x outside the box, or both a start and a generator.
    """
    if start is not None and generator is not None:
        raise ValueError("start: expected none beside a generator, got both")
    if epsilon < 0:
        raise ValueError(f"epsilon: expected at least 0, got {epsilon}")
    if step_size <= 0:
        raise ValueError(f"step_size: expected a number above 0, got {step_size}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    check_choice(Norm, norm=norm)
    x = x.detach()
    low, high = (-torch.inf, torch.inf) if box is None else box
    if x.numel() and not (float(x.min()) >= low and float(x.max()) <= high):
        raise ValueError(f"x: expected inputs in [{low:g}, {high:g}], got {float(x.min()):.4g} to {float(x.max()):.4g}")

    def lengths(change: Tensor) -> Tensor:
        return change.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (x.ndim - 1))

    def inside(moved: Tensor) -> Tensor:
        if norm == "euclid":
            change = moved - x
            moved = x + change * (epsilon / lengths(change)).clamp_max(1)
        else:
            moved = torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon)
        return moved.clamp(low, high)

    moved = x if start is None else start
    if generator is not None:
        moved = inside(
            x + epsilon * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device) - 1)
        )
    with torch.enable_grad():
        for _ in range(steps):
            moved = moved.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(moved), moved)
            moved = inside(moved + step_size * (gradient.sign() if norm == "max" else gradient / lengths(gradient)))
    return moved.detach()


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float = 8 / 255,
    step_size: float = 2 / 255,
    steps: int = 10,
    box: tuple[float, float] | None = (0.0, 1.0),
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Raise the cross-entropy by projected sign-gradient steps within the ball |x' - x| <= epsilon and a box.

    Madry, Makelov, Schmidt, Tsipras, Vladu 2017 (arXiv:1706.06083), Sec. 2.1:
        x_{t+1} = Proj(x_t + step_size sign(grad_x L(x_t, y))).

    The model runs in eval mode for a moment; parameters keep the gradients they had. Works under ``torch.no_grad``, as in ``prepare``.

    Args:
        model: returns logits (N, C).
        x: inputs in the box, (N, ...), floating point.
        y: labels in [0, C), (N,), or class probabilities (N, C).
        epsilon: radius, >= 0, in units of x.
        step_size: > 0, in units of x.
        steps: number of steps, >= 1.
        box: least and largest value of inputs; None for none.
        generator: draws the start uniformly in the ball; None starts at x.
        start: where the first gradient is taken, (N, ...), instead of a draw.
    Returns:
        (N, ...) without gradient.
    Raises:
        ValueError: a number outside its range, x outside the box, or both a start and a generator.
    """
    with evaluating(model):
        return ascend(
            lambda moved: F.cross_entropy(forward(model, moved).logits, y, reduction="sum"),
            x,
            epsilon=epsilon,
            step_size=step_size,
            steps=steps,
            box=box,
            generator=generator,
            start=start,
        )


def fgsm(model: nn.Module, x: Tensor, y: Tensor, *, epsilon: float = 8 / 255) -> Tensor:
    """Raise the cross-entropy by one sign-gradient step of size epsilon: `pgd` with a single step from x, within the box [0, 1].

    Goodfellow, Shlens, Szegedy 2014 (arXiv:1412.6572), Sec. 4: x' = x + epsilon sign(grad_x L(x, y)).

    Args:
        model: returns logits (N, C).
        x: inputs in [0, 1], (N, ...), floating point.
        y: labels in [0, C), (N,).
        epsilon: size of the step, > 0, in units of x.
    Returns:
        (N, ...) without gradient.
    """
    return pgd(model, x, y, epsilon=epsilon, step_size=epsilon, steps=1)
