"""Influence of training examples on a validation loss: what a little more weight of an example would do to it.

With the parameters theta of a model near a minimum of L = (1/N) sum_i w_i l_i, and the mean loss V on validation data (Koh, Liang 2017,
arXiv:1703.04730):
    I_i = -<v, grad l_i>,   (H + damping) v = grad V,
and a change of w_i by d changes V by d I_i / N, to first order: I < 0 is helpful. H is the Hessian of L or its Gauss-Newton part. No
gradient of a single example is formed: one forward-mode pass along v gives <v, grad l_i> of a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from preceptor.losses.checks import check_choice, check_counts, check_positive
from preceptor.losses.numeric import upcast
from preceptor.models.functional import Weights, along, logits_at

Curvature = Literal["gauss-newton", "exact", "identity"]
"""``identity``: alignment of gradients, without solving anything."""

Solver = Literal["cg", "lissa"]
"""Conjugate gradients, or the iteration v <- v + (g - A v) / scale."""

Layers = Literal["all", "last"]
"""Which parameters count: all that require grad, or those of the last layer that has some."""


class Part(NamedTuple):
    """A batch and its losses."""

    inputs: Any  # (n, ...), or a mapping of keywords
    losses: Callable[[Tensor], Tensor]  # logits (n, ..., classes) -> (n,)
    weights: Tensor | None = None  # w >= 0 (n,); None: all 1


def influence_scores(
    model: nn.Module,
    train: Sequence[Part],
    valid: Sequence[Part],
    *,
    curvature: Curvature = "gauss-newton",
    solver: Solver = "cg",
    layers: Layers = "all",
    damping: float = 1e-2,
    iterations: int = 50,
) -> Tensor:
    """Influence of every training example on the mean validation loss, with the model in eval mode.

    Args:
        model: not changed.
        train: batches, on the model's device.
        valid: batches, likewise; their weights do not count.
        curvature: H; Gauss-Newton is positive also away from a minimum, where the losses are convex in the logits. Where they are not, as
            of standardised logits, conjugate gradients stop before the first direction that is not.
        solver: how the linear system is solved.
        layers: which parameters count.
        damping: added to H, > 0.
        iterations: at most so many products with H; both solvers stop at a residual of 1e-10.

    Returns:
        I, shape (N,), in nats, in the order of ``train``.

    Raises:
        ValueError: no training or no validation example, no parameter that requires grad, a number or word out of range, or an exact
            Hessian that is not positive.
    """
    check_choice(Curvature, curvature=curvature)
    check_choice(Solver, solver=solver)
    check_choice(Layers, layers=layers)
    check_positive(damping=damping)
    check_counts(iterations=iterations)
    names = _names(model, layers)
    parameters = dict(model.named_parameters())
    weights = {name: upcast(parameters[name].detach()).requires_grad_() for name in names}
    with torch.enable_grad():
        upward = _mean_gradient(model, weights, [part._replace(weights=None) for part in valid], "valid")
        if curvature == "identity":
            direction = upward
        else:

            def product(vector: Tensor) -> Tensor:
                return _product(model, weights, train, vector, curvature) + damping * vector

            if solver == "cg":
                direction = conjugate_gradients(product, upward, iterations=iterations, truncate=curvature == "gauss-newton")
            else:
                direction = lissa(product, upward, iterations=iterations)
    step = _unflat(direction, weights)
    found = [along(lambda w, part=part: part.losses(logits_at(model, w, part.inputs)), weights, step)[1] for part in train]
    if not sum(map(len, found)):
        raise ValueError("train: expected at least one example, got none")
    return -torch.cat(found)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], target: Tensor, *, iterations: int, tolerance: float = 1e-10, truncate: bool = False
) -> Tensor:
    """Solve A v = g for a positive A that is known by its products with vectors.

    Args:
        product: v -> A v, both (P,).
        target: g, shape (P,).
        iterations: at most so many products.
        tolerance: relative residual at which to stop.
        truncate: stop before a direction without positive curvature, at g itself where it is the first, instead of an error.

    Returns:
        v, shape (P,).

    Raises:
        ValueError: a direction has no positive curvature, and ``truncate`` is off.
    """
    solution, residual = torch.zeros_like(target), target.clone()
    direction, size = residual.clone(), residual @ residual
    goal = tolerance**2 * size
    for _ in range(iterations):
        if size <= goal:
            break
        image = product(direction)
        curved = direction @ image
        if truncate and not curved > 0:
            return solution if solution.any() else target
        if not curved > 0:
            raise ValueError(f"curvature: expected positive, got {float(curved):.3g}; take gauss-newton, or more damping")
        length = size / curved
        solution, residual = solution + length * direction, residual - length * image
        before, size = size, residual @ residual
        direction = residual + size / before * direction
    return solution


def lissa(product: Callable[[Tensor], Tensor], target: Tensor, *, iterations: int, scale: float = 1.0, tolerance: float = 1e-10) -> Tensor:
    """Solve A v = g by v <- v + (g - A v) / scale; where the residual grows, the scale was too small and is doubled.

    Args:
        product: v -> A v, both (P,).
        target: g, shape (P,).
        iterations: at most so many products.
        scale: to begin with, > 0; it has to end above half the largest eigenvalue of A.
        tolerance: relative residual at which to stop.

    Returns:
        v, shape (P,).
    """
    solution, residual = torch.zeros_like(target), target
    size = start = target.norm()
    for _ in range(iterations):
        if size <= tolerance * start:
            break
        tried = solution + residual / scale
        left = target - product(tried)
        if left.norm() < size:
            solution, residual, size = tried, left, left.norm()
        else:
            scale *= 2
    return solution


def _names(model: nn.Module, layers: Layers) -> list[str]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError(f"model: expected a parameter that requires grad, got none in {type(model).__name__}")
    last = names[-1].rpartition(".")[0]
    return names if layers == "all" else [name for name in names if name.rpartition(".")[0] == last]


def _flat(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.detach().flatten() for value in values])


def _unflat(vector: Tensor, like: Weights) -> dict[str, Tensor]:
    pieces = vector.split([value.numel() for value in like.values()])
    return {name: piece.view_as(value) for (name, value), piece in zip(like.items(), pieces, strict=True)}


def _weighted(part: Part, logits: Tensor) -> Tensor:
    losses = part.losses(logits)
    return (losses if part.weights is None else part.weights * losses).sum()


def _mean_gradient(model: nn.Module, weights: Weights, parts: Sequence[Part], what: str) -> Tensor:
    total, count = torch.zeros_like(_flat(list(weights.values()))), 0
    for part in parts:
        logits = logits_at(model, weights, part.inputs)
        total += _flat(torch.autograd.grad(_weighted(part, logits), list(weights.values()), allow_unused=True, materialize_grads=True))
        count += len(logits)
    if not count:
        raise ValueError(f"{what}: expected at least one example, got none")
    return total / count


def _product(model: nn.Module, weights: Weights, parts: Sequence[Part], vector: Tensor, curvature: Curvature) -> Tensor:
    """H v of the mean of the weighted losses."""
    total, count, values = torch.zeros_like(vector), 0, list(weights.values())
    step = _unflat(vector, weights)
    for part in parts:
        logits = logits_at(model, weights, part.inputs)
        count += len(logits)
        if curvature == "exact":
            first = torch.autograd.grad(_weighted(part, logits), values, create_graph=True, allow_unused=True, materialize_grads=True)
            slope = sum(((g * step[name]).sum() for name, g in zip(weights, first, strict=True)), start=logits.sum() * 0)
        else:
            _, moved = along(lambda w, part=part: logits_at(model, w, part.inputs), weights, step)
            heights = logits.detach().requires_grad_()
            (first,) = torch.autograd.grad(_weighted(part, heights), heights, create_graph=True)
            (bent,) = torch.autograd.grad((first * moved).sum(), heights)
            slope = (logits * bent).sum()
        total += _flat(torch.autograd.grad(slope, values, allow_unused=True, materialize_grads=True))
    return total / max(count, 1)
