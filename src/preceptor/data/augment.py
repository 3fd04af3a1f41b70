"""Augmentation seeded by (id, epoch): teacher and student, every rank and every batch split see the same view of an example.

An augmentation is a frozen dataclass called with a batch (``x``, ``id``, ``epoch``); it returns a new batch and leaves the old one as it
is. Its ``repr`` is its description: a cache of teacher signals records it and refuses another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.core.types import Batch
from preceptor.data.examples import Examples
from preceptor.data.hashing import hash_ids, integers, uniform
from preceptor.data.sources import Augment

# One number per draw, so that no two draws of one seed are the same.
_ROW, _COLUMN, _FLIP, _PARTNER, _RATIO = range(1, 6)


def _images(batch: Batch) -> tuple[str | None, Tensor]:
    """The images (N, channels, height, width) of a batch and their key in ``x``, None when ``x`` is the images."""
    x = batch["x"]
    found = [(key, value) for key, value in x.items() if value.ndim == 4] if isinstance(x, dict) else [(None, x)] if x.ndim == 4 else []
    if len(found) != 1:
        shapes = {key: tuple(value.shape) for key, value in x.items()} if isinstance(x, dict) else tuple(x.shape)
        raise ValueError(f"x: expected one tensor of images (N, channels, height, width), got {shapes}")
    return found[0]


def _with_images(batch: Batch, key: str | None, images: Tensor) -> Batch:
    return {**batch, "x": images if key is None else {**batch["x"], key: images}}


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Pad with zeros, then cut a window of the old size at a random place.

    Args:
        padding: pixels on every side, >= 1; the shift is uniform in [-padding, padding] for rows and for columns.
        seed: of the shifts.
    """

    padding: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.padding < 1:
            raise ValueError(f"padding: expected at least 1 pixel, got {self.padding}")

    def __call__(self, batch: Batch) -> Batch:
        """The batch with ``x`` (N, channels, height, width) shifted."""
        key, images = _images(batch)
        height, width = images.shape[2:]
        shifts = 2 * self.padding + 1
        top = integers(shifts, batch["id"], self.seed, batch["epoch"], _ROW).to(images.device)
        left = integers(shifts, batch["id"], self.seed, batch["epoch"], _COLUMN).to(images.device)
        windows = F.pad(images, (self.padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view: every place of the window
        cut = windows[torch.arange(len(images), device=images.device), :, top, left]
        return _with_images(batch, key, cut)


@dataclass(frozen=True, kw_only=True)
class Flip:
    """Mirror left and right.

    Args:
        rate: probability, in (0, 1].
        seed: of the choice.
    """

    rate: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: expected a number in (0, 1], got {self.rate}")

    def __call__(self, batch: Batch) -> Batch:
        """The batch with some images of ``x`` (N, channels, height, width) mirrored."""
        key, images = _images(batch)
        chosen = (uniform(batch["id"], self.seed, batch["epoch"], _FLIP) < self.rate).to(images.device)
        return _with_images(batch, key, torch.where(chosen[:, None, None, None], images.flip(3), images))


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Several augmentations, one after the other.

    Args:
        steps: the first one first.
    """

    steps: tuple[Augment, ...]

    def __call__(self, batch: Batch) -> Batch:
        """The batch after all steps."""
        for step in self.steps:
            batch = step(batch)
        return batch


@dataclass(frozen=True, kw_only=True)
class Mixup:
    r"""Mix every example with another one.

    Zhang, Cisse, Dauphin, Lopez-Paz 2017 (arXiv:1710.09412), Sec. 2:
        x = lambda x_i + (1 - lambda) x_j,   targets = lambda onehot(y_i) + (1 - lambda) onehot(y_j),   lambda ~ Beta(alpha, alpha).

    Deviation: j is uniform over the whole training set and lambda is drawn per example, both by (id, epoch), where the paper pairs the
    examples of one batch with one lambda: the view of an example must not depend on the batch it is in.

    Args:
        examples: the training set, from which partners are drawn; its inputs are floats.
        alpha: of the Beta distribution, > 0.
        view: what both images go through before they are mixed, the partner by its own (id, epoch).
        seed: of partners, ratios and, for a data set that draws as it reads, of the partner (as in `Source`).
    """

    examples: Examples = field(repr=False)
    alpha: float = 0.2
    view: Augment | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.alpha <= 0:
            raise ValueError(f"alpha: expected a number above 0, got {self.alpha}")

    def __call__(self, batch: Batch) -> Batch:
        """The batch with ``x`` mixed and ``targets`` (N, C), probabilities; ``y`` stays that of the example itself.

        For what else is to be mixed, ``partner`` (N,) is the other example's id and ``ratio`` (N,) the share of the example itself.
        """
        ids, epoch = batch["id"], batch["epoch"]
        partners = integers(len(self.examples), ids, self.seed, epoch, _PARTNER)
        ratio = _beta_quantile(self.alpha, uniform(ids, self.seed, epoch, _RATIO))
        seeds = hash_ids(self.examples.ids[partners], self.seed, epoch)
        own, other = batch, {**self.examples.batch(partners, seeds=seeds), "epoch": epoch}
        if self.view is not None:
            own, other = self.view(own), self.view(other)
        if isinstance(own["x"], dict):
            x = {key: _mix(value, other["x"][key], ratio) for key, value in own["x"].items()}
        else:
            x = _mix(own["x"], other["x"], ratio)
        classes = self.examples.num_classes
        targets = _mix(F.one_hot(own["y"], classes).to(torch.get_default_dtype()), F.one_hot(other["y"], classes), ratio)
        return {**own, "x": x, "targets": targets, "partner": other["id"], "ratio": ratio}


@lru_cache(maxsize=8)
def _beta_table(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower half of the distribution function of Beta(alpha, alpha) and where it is reached."""
    power = min(alpha, 1.0)
    t = np.linspace(0.0, 0.5**power, 4097)  # t = lambda^alpha for alpha < 1: the density over t has no pole at 0
    quantile = t ** (1 / power)
    density = (1 - quantile) ** (alpha - 1) * (quantile ** (alpha - 1) if alpha > 1 else 1.0)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return mass / (2 * mass[-1]), t


def _beta_quantile(alpha: float, probability: Tensor) -> Tensor:
    """Quantiles of Beta(alpha, alpha) for probabilities in [0, 1), float64, to about 1e-5."""
    lower = torch.minimum(probability, 1 - probability)
    mass, t = _beta_table(alpha)
    quantile = torch.from_numpy(np.interp(lower.numpy(), mass, t)) ** (1 / min(alpha, 1.0))
    return torch.where(probability < 0.5, quantile, 1 - quantile)


def _mix(a: Tensor, b: Tensor, ratio: Tensor) -> Tensor:
    """ratio a + (1 - ratio) b in the type of ``a``; ratio (N,) for tensors (N, ...)."""
    if not a.is_floating_point():
        raise TypeError(f"x: expected floating point inputs to mix, got {a.dtype}")
    return torch.lerp(b.to(a), a, ratio.to(a).reshape(-1, *[1] * (a.ndim - 1)))


def augmentation(examples: Examples, *, crop: int = 0, flip: float = 0.0, mixup: float = 0.0, seed: int = 0) -> Augment | None:
    """The usual augmentation of a training set: crop, then flip, then mixup of such views.

    Args:
        examples: the training set.
        crop: pixels of padding, 0 for none.
        flip: probability of mirroring, in [0, 1].
        mixup: alpha, 0 for none.
        seed: of all of them.
    Returns:
        None when everything is off.
    """
    steps: list[Augment] = []
    if crop:
        steps.append(Crop(padding=crop, seed=seed))
    if flip:
        steps.append(Flip(rate=flip, seed=seed))
    view = Chain(steps=tuple(steps)) if steps else None
    return Mixup(examples=examples, alpha=mixup, view=view, seed=seed) if mixup else view
