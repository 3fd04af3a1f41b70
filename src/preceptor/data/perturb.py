"""Adversarial views of a batch: ascent of any objective within a ball, and attacks in the maximum norm with and without gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.losses.checks import check_choice, check_counts
from preceptor.models.taps import forward

Norm = Literal["max", "euclid"]
"""How far an attack may go: ``max`` bounds every entry of an example, ``euclid`` the length of its change."""

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Of a model, inputs (N, ...) and labels (N,) makes inputs that the model is to get wrong."""


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


def margin_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float = 8 / 255,
    step_size: float = 2 / 255,
    steps: int = 10,
    box: tuple[float, float] | None = (0.0, 1.0),
    generator: torch.Generator | None = None,
    rank: int | None = None,
) -> Tensor:
    """As `pgd`, but raise the lead of another class over the label's: where the model is sure, its gradient does not vanish.

    Carlini, Wagner 2017 (arXiv:1608.04644), Sec. IV.A, objective 6 without its constant:
        max over c != y of z_c - z_y, or z_t - z_y with the target t that is ``rank``-th among the other classes at x.

    Args:
        model, x, y, epsilon, step_size, steps, box, generator: as for `pgd`; y are labels.
        rank: from 1 to C - 1; None: whichever class leads at each step.
    Returns:
        (N, ...) without gradient.
    Raises:
        ValueError: as `pgd`, or there is no such rank.
    """
    with evaluating(model):
        target = None
        if rank is not None:
            with torch.no_grad():
                logits = forward(model, x).logits
            if not 1 <= rank < logits.shape[1]:
                raise ValueError(f"rank: expected one of the {logits.shape[1] - 1} other classes, from 1, got {rank}")
            target = logits.scatter(1, y[:, None], -torch.inf).topk(rank, dim=1).indices[:, rank - 1]
        return ascend(
            lambda moved: _lead(forward(model, moved).logits, y, target).sum(),
            x,
            epsilon=epsilon,
            step_size=step_size,
            steps=steps,
            box=box,
            generator=generator,
        )


def random_search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    epsilon: float = 8 / 255,
    steps: int = 100,
    box: tuple[float, float] | None = (0.0, 1.0),
) -> Tensor:
    """Raise the lead of another class by trying changes at random, without gradients: finds what masked gradients hide.

    Andriushchenko, Croce, Flammarion, Hein 2020 (arXiv:1912.00049), Algorithm 1, for inputs of any shape: every entry moves by + or -
    epsilon; a step draws anew the signs of a share of the entries, which falls from all to one in a hundred, and keeps what helps.

    Args:
        model, x, y, epsilon, box: as for `margin_attack`.
        generator: of all draws.
        steps: number of trials, >= 1.
    Returns:
        (N, ...) without gradient.
    Raises:
        ValueError: fewer than one step.
    """
    check_counts(steps=steps)
    low, high = (-torch.inf, torch.inf) if box is None else box
    wide = (len(x), *[1] * (x.ndim - 1))

    def drawn() -> Tensor:
        return torch.rand(x.shape, generator=generator, device=generator.device).to(x.device)

    with torch.no_grad(), evaluating(model):
        best, lead = x, _lead(forward(model, x).logits, y)
        signs = torch.ones_like(x)
        for step in range(steps):
            tried = torch.where(drawn() < 0.01 ** (step / steps), torch.where(drawn() < 0.5, 1.0, -1.0).to(x), signs)
            moved = (x + epsilon * tried).clamp(low, high)
            now = _lead(forward(model, moved).logits, y)
            better = now > lead
            lead = torch.where(better, now, lead)
            best, signs = (torch.where(better.view(wide), new, old) for new, old in ((moved, best), (tried, signs)))
    return best


def _lead(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """Of the best other class, or the target, over the label's, (N,)."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    if target is None:
        return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own
    return logits.gather(1, target[:, None]).squeeze(1) - own
