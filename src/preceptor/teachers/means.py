"""Means by class over one pass of a teacher through training data: of its embeddings, or of its predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.core.types import Batch
from preceptor.losses.numeric import upcast
from preceptor.metrics.cost import device_of, to_device


def means_by_class(model: nn.Module, batches: Iterable[Batch], read: Callable[[Any], Tensor], num_classes: int) -> tuple[Tensor, Tensor]:
    """Average what is read of the examples of each class, in eval mode and without gradient.

    Args:
        model: what ``read`` runs; batches are moved to its device.
        batches: with ``x`` and ``y``, finitely many, such as ``source.scan()``.
        read: inputs -> (N, D).
        num_classes: C; labels lie in [0, C).

    Returns:
        Means (C, D), rows of 0 for classes without an example, summed in float64 and returned at least in float32; and counts (C,).

    Raises:
        ValueError: no example in all batches, or a label out of range.
    """
    device = device_of(model)
    counts = torch.zeros(num_classes, dtype=torch.float64, device=device)
    sums, dtype = None, torch.float32
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            values, labels = read(to_device(batch["x"], device)), batch["y"].to(device)
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
                raise ValueError(f"labels: expected values in [0, {num_classes - 1}], got {int(labels.min())} to {int(labels.max())}")
            dtype = upcast(values).dtype
            sums = values.new_zeros(num_classes, values.shape[1], dtype=torch.float64) if sums is None else sums
            sums.index_add_(0, labels, values.double())
            counts += labels.bincount(minlength=num_classes)
    if sums is None or not counts.any():
        raise ValueError("batches: expected at least one example, got none")
    return (sums / counts.clamp_min(1)[:, None]).to(dtype), counts.long()
