"""A teacher without its smallest weights: masks by magnitude, their schedule, and a context in which a model wears them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from preceptor.losses.checks import check_choice, check_counts, check_floating, check_unit_interval
from preceptor.models.taps import find_layer

Scope = Literal["layer", "global"]
"""The share is zeroed in every layer, or in all layers together, which can empty one of them."""

_MASKED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def magnitude_mask(weight: Tensor, ratio: float) -> Tensor:
    """Which entries stay when the smallest magnitudes are dropped.

    Masters (arXiv:2512.22238): m = 1[|w| >= lambda_r]. Exactly round(r numel) entries are dropped, of equal ones those that come first,
    so that masks are nested in r.

    Args:
        weight: any shape, finite.
        ratio: r in [0, 1].
    Returns:
        The same shape, bool.
    Raises:
        TypeError: weight is not floating point.
        ValueError: ratio outside [0, 1].
    """
    check_floating(weight=weight)
    check_unit_interval(ratio=ratio)
    sizes = weight.detach().flatten()
    sizes = (sizes.float() if sizes.dtype in (torch.float16, torch.bfloat16) else sizes).abs()
    dropped = sizes.argsort(stable=True)[: round(ratio * sizes.numel())]
    return torch.ones_like(sizes, dtype=torch.bool).index_fill_(0, dropped, False).view(weight.shape)


@dataclass(frozen=True)
class MaskSchedule:
    """The share of weights that a teacher lacks at iteration i: r_max - step floor(i M / I) with M = r_max / step + 1 stages.

    Masters (arXiv:2512.22238), Eq. 3, with i from 0; at and after the last iteration 0.

    Args:
        r_max: share at the start, in [0, 1]; a multiple of step.
        step: what each stage gives back, in (0, 1].
        iterations: I, at least 1.
    Raises:
        ValueError: a number outside its range, or r_max is no multiple of step.
    """

    r_max: float
    step: float
    iterations: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_stages(self.r_max, self.step)
        check_counts(iterations=self.iterations)

    def __call__(self, i: int) -> float:
        """Ratio at iteration i >= 0."""
        stages = round(self.r_max / self.step) + 1
        return round(max(self.r_max - self.step * (i * stages // self.iterations), 0.0), 12)


def check_stages(r_max: float, step: float) -> None:
    """Refuse a schedule that does not end at 0.

    Raises:
        ValueError: naming the number.
    """
    check_unit_interval(r_max=r_max)
    if not 0 < step <= 1:
        raise ValueError(f"step: expected a number in (0, 1], got {step}")
    stages = r_max / step
    if abs(stages - round(stages)) > 1e-6:
        raise ValueError(f"r_max: expected a multiple of step {step}, such as {round(stages) * step:g}, got {r_max}")


@contextmanager
def masked_teacher(model: nn.Module, ratio: float, *, layers: Sequence[str] | None = None, scope: Scope = "layer") -> Iterator[nn.Module]:
    """Let a model go without its smallest weights for a moment; they come back bit for bit, also after an exception.

    Args:
        model: edited in place inside the context.
        ratio: share of entries that are 0, in [0, 1].
        layers: names of the layers whose ``weight`` is masked; None: all linear and convolutional ones but the output layer. Embeddings,
            norms and biases stay whole, and so does a weight that an output layer or an embedding shares.
        scope: see `Scope`.
    Raises:
        TypeError: a weight is not floating point (quantised: dequantise it first).
        ValueError: ratio outside [0, 1], an unknown layer or scope, or no layer to mask.
    """
    check_unit_interval(ratio=ratio)
    check_choice(Scope, scope=scope)
    weights = masked_weights(model, layers)
    if scope == "layer":
        masks = [magnitude_mask(weight, ratio) for weight in weights]
    else:
        whole = magnitude_mask(torch.cat([weight.detach().flatten() for weight in weights]), ratio)
        parts = whole.split([weight.numel() for weight in weights])
        masks = [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]
    kept = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight.masked_fill_(~mask, 0.0)
        yield model
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


def masked_weights(model: nn.Module, layers: Sequence[str] | None = None) -> list[Tensor]:
    """The weights that `masked_teacher` masks, each once.

    Raises:
        ValueError: an unknown layer, one without a weight, or none at all.
    """
    if layers is not None:
        found = [(name, find_layer(model, name)._parameters.get("weight")) for name in layers]
        for name, weight in found:
            if weight is None:
                raise ValueError(f"layers: expected layers with a weight, got {name!r}, which has none")
        chosen = [weight for _, weight in found if weight is not None]
    else:
        candidates = [module for module in model.modules() if isinstance(module, _MASKED)]
        whole = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} | {
            id(module.weight) for module in candidates[-1:]
        }
        chosen = [module.weight for module in candidates if id(module.weight) not in whole]
    weights = list({id(weight): weight for weight in chosen}.values())
    if not weights:
        raise ValueError(f"layers: expected linear or convolutional layers besides the last one, got {type(model).__name__} without any")
    return weights
