"""Adversarial views of a batch: FGSM and PGD in the maximum norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.models.taps import forward


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float = 8 / 255,
    step_size: float = 2 / 255,
    steps: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Raise the cross-entropy by projected sign-gradient steps within the ball |x' - x| <= epsilon and the box [0, 1].

    Madry, Makelov, Schmidt, Tsipras, Vladu 2017 (arXiv:1706.06083), Sec. 2.1:
        x_{t+1} = Proj(x_t + step_size sign(grad_x L(x_t, y))).

    The model runs in eval mode for a moment; parameters keep the gradients they had. Works under ``torch.no_grad``, as in ``prepare``.

    Args:
        model: returns logits (N, C).
        x: inputs in [0, 1], (N, ...), floating point.
        y: labels in [0, C), (N,).
        epsilon: radius, >= 0, in units of x.
        step_size: > 0, in units of x.
        steps: number of steps, >= 1.
        generator: draws the start uniformly in the ball, on the device of x; None starts at x.
    Returns:
        (N, ...) without gradient.
    Raises:
        ValueError: a number outside its range, or x outside [0, 1].
    """
    if epsilon < 0:
        raise ValueError(f"epsilon: expected at least 0, got {epsilon}")
    if step_size <= 0:
        raise ValueError(f"step_size: expected a number above 0, got {step_size}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    x = x.detach()
    if x.numel() and not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise ValueError(f"x: expected inputs in [0, 1], got {float(x.min()):.4g} to {float(x.max()):.4g}")
    low, high = (x - epsilon).clamp_min(0), (x + epsilon).clamp_max(1)
    moved = x if generator is None else low + (high - low) * torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    with evaluating(model), torch.enable_grad():
        for _ in range(steps):
            moved = moved.detach().requires_grad_()
            loss = F.cross_entropy(forward(model, moved).logits, y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            moved = torch.minimum(torch.maximum(moved + step_size * gradient.sign(), low), high)
    return moved.detach()


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
