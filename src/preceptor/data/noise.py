"""Wrong labels on purpose: the protocols of studies of noisy labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from preceptor.data.examples import Examples
from preceptor.data.hashing import generator
from preceptor.losses.checks import check_unit_interval


def redrawn_labels(labels: Tensor, *, rate: float, num_classes: int, seed: int) -> Tensor:
    """Uniform noise: each label is, with this chance, drawn anew from all classes, so that rate (1 - 1 / C) of them become wrong.

    Args:
        labels: int64 (N,), in [0, C).
        rate: in [0, 1].
        num_classes: C.
        seed: of the choice and the draw.
    Returns:
        int64 (N,).
    Raises:
        ValueError: rate outside its range.
    """
    chosen = _chosen(labels, rate, seed)
    drawn = torch.randint(num_classes, labels.shape, generator=generator(seed, 1)).to(labels)
    return torch.where(chosen, drawn, labels)


def confused_labels(labels: Tensor, *, rate: float, num_classes: int, seed: int, confusion: Sequence[int] | None = None) -> Tensor:
    """Noise that depends on the class: each label becomes, with this chance, the class that its own is taken for.

    Args:
        labels: int64 (N,), in [0, C).
        rate: in [0, 1].
        num_classes: C.
        seed: of the choice.
        confusion: C classes, what each is taken for; None: the next one, the last for the first.
    Returns:
        int64 (N,).
    Raises:
        ValueError: rate outside its range, or a confusion that does not name a class for each.
    """
    if confusion is None:
        confusion = [(label + 1) % num_classes for label in range(num_classes)]
    if len(confusion) != num_classes or not all(0 <= label < num_classes for label in confusion):
        raise ValueError(f"confusion: expected {num_classes} classes in [0, {num_classes}), got {list(confusion)}")
    return torch.where(_chosen(labels, rate, seed), torch.as_tensor(confusion).to(labels)[labels], labels)


def relabelled(examples: Examples, labels: Tensor) -> Examples:
    """The same examples with other labels.

    Args:
        examples: a whole set or a part of one; not changed.
        labels: int64 (n,), in [0, num_classes), in the order of the part.
    Raises:
        ValueError: another number of labels, or one out of range.
    """
    if labels.shape != examples.labels.shape:
        raise ValueError(f"labels: expected shape {tuple(examples.labels.shape)}, got {tuple(labels.shape)}")
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < examples.num_classes):
        raise ValueError(f"labels: expected values in [0, {examples.num_classes}), got {int(labels.min())} to {int(labels.max())}")
    changed = examples.all_labels.clone()
    changed[examples.ids] = labels.to(changed)
    return Examples(examples.inputs, changed, num_classes=examples.num_classes, name=examples.name, rows=examples.ids)


def _chosen(labels: Tensor, rate: float, seed: int) -> Tensor:
    check_unit_interval(rate=rate)
    return (torch.rand(labels.shape, generator=generator(seed, 0), dtype=torch.float64) < rate).to(labels.device)
