"""What the losses of `preceptor.losses.linear` are given: checked, and brought to the rows that count."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from preceptor.losses.checks import INTEGERS, check_choice, check_floating, check_positive, check_unit_interval
from preceptor.losses.linear_filter import similar
from preceptor.losses.linear_rows import Softmax
from preceptor.losses.numeric import upcast
from preceptor.models.heads import Head

Kind = Literal[
    "forward_kl",
    "reverse_kl",
    "skew_forward_kl",
    "skew_reverse_kl",
    "generalized_jsd",
    "js_distance",
    "symmetric_kl",
    "total_variation",
]
"""A name in `preceptor.losses.divergence.DIVERGENCES`."""

_SHARES: dict[Kind, float] = {
    "skew_forward_kl": 0.1,
    "skew_reverse_kl": 0.1,
    "generalized_jsd": 0.5,
    "js_distance": 0.9,
    "symmetric_kl": 0.9,
}


def check_head(hidden: Tensor, head: Head, name: str = "") -> None:
    """Refuse hidden states and a head that do not fit; ``name`` is whose they are.

    Raises:
        TypeError: one of them is not floating point.
        ValueError: naming what does not fit.
    """
    check_floating(**{f"{name}hidden": hidden, f"{name}head": head.weight})
    shape = tuple(head.weight.shape)
    if len(shape) != 2 or hidden.ndim < 1 or hidden.shape[-1] != shape[-1]:
        raise ValueError(f"{name}hidden: expected shape (..., D) for a head of shape (V, D) = {shape}, got {tuple(hidden.shape)}")
    if head.bias is not None and head.bias.shape != shape[:1]:
        raise ValueError(f"{name}head: expected a bias of shape {shape[:1]}, got {tuple(head.bias.shape)}")


def rows_that_count(hidden: Tensor, mask: Tensor | None, filter_mass: float) -> Tensor | None:
    """Numbers of the rows that count, (rows,) int64, ordered by similarity for a filter; None: all, as they come.

    Raises:
        ValueError: the mask has not one entry per row.
    """
    if mask is not None and mask.shape != hidden.shape[:-1]:
        raise ValueError(f"mask: expected shape {tuple(hidden.shape[:-1])} (one per row), got {tuple(mask.shape)}")
    index = None if mask is None else (mask != 0).flatten().nonzero()[:, 0]
    if filter_mass > 0 and torch.is_grad_enabled():
        states = hidden.detach().reshape(-1, hidden.shape[-1])
        index = similar(states) if index is None else index[similar(states[index])]
    return index


def labels_of(
    hidden: Tensor, head: Head, targets: Tensor, mask: Tensor | None, ignore_index: int, filter_mass: float
) -> tuple[Tensor, Tensor]:
    """The rows that count, and their targets as (rows, 1)."""
    check_head(hidden, head)
    if targets.dtype not in INTEGERS:
        raise TypeError(f"targets: expected integers, got {targets.dtype}")
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(f"targets: expected shape {tuple(hidden.shape[:-1])} for hidden {tuple(hidden.shape)}, got {tuple(targets.shape)}")
    named = targets != ignore_index
    index = rows_that_count(hidden, named if mask is None else named & (mask != 0), filter_mass)
    assert index is not None
    labels = targets.flatten()[index].long()[:, None]
    _check_range("targets", labels, head)
    return index, labels


def classes_of(
    hidden: Tensor, head: Head, indices: Tensor, values: Tensor, mask: Tensor | None, filter_mass: float
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The rows that count, and their indices and values as (rows, k)."""
    check_head(hidden, head)
    check_floating(values=values)
    if indices.dtype not in INTEGERS:
        raise TypeError(f"indices: expected integers, got {indices.dtype}")
    if indices.ndim != hidden.ndim or indices.shape[:-1] != hidden.shape[:-1] or values.shape != indices.shape:
        wanted = f"{tuple(hidden.shape[:-1])} + (k,)"
        raise ValueError(f"indices: expected shape {wanted}, and as many values, got {tuple(indices.shape)} and {tuple(values.shape)}")
    index = rows_that_count(hidden, mask, filter_mass)
    flat, given = indices.reshape(-1, indices.shape[-1]).long(), values.detach().reshape(-1, indices.shape[-1])
    if index is not None:
        flat, given = flat[index], given[index]
    _check_range("indices", flat, head)
    return index, flat, given.to(upcast(hidden[:0]).dtype)


def softmax_of(hidden: Tensor, head: Head | None, temperature: float | Tensor, index: Tensor | None) -> Softmax:
    """The softmax of a head over the rows that count; without a head, of the logits ``hidden`` themselves."""
    check_positive(temperature=temperature)
    if isinstance(temperature, Tensor):
        if temperature.ndim >= hidden.ndim:
            raise ValueError(f"temperature: expected a number or shape {tuple(hidden.shape[:-1])}, got {tuple(temperature.shape)}")
        rows = temperature.detach().to(upcast(hidden[:0])).expand(hidden.shape[:-1]).reshape(-1, 1)
        temperature = rows if index is None else rows[index]
    masked = None
    if head is not None and head.bias is not None and head.soft_cap is None:  # a soft cap turns -inf into a finite logit
        infinite = torch.isneginf(head.bias.detach())
        masked = infinite if infinite.any() else None
    return Softmax(temperature=temperature, masked=masked)


def resolve(kind: Kind, share: float | None) -> tuple[str, float]:
    """The divergence to compute and its share, with those that are another one at an end of [0, 1].

    Raises:
        ValueError: an unknown kind, a share for one that has none, or one outside [0, 1].
    """
    check_choice(Kind, kind=kind)
    if share is None:
        share = _SHARES.get(kind, 0.0)
    elif kind not in _SHARES:
        raise ValueError(f"share: expected None for {kind}, got {share}")
    check_unit_interval(share=share)
    match kind, share:
        case "skew_forward_kl", 0:
            return "forward_kl", 0.0
        case "skew_reverse_kl", 0:
            return "reverse_kl", 0.0
        case "generalized_jsd", 0 | 1:
            return "reverse_kl" if share else "forward_kl", 0.0
        case "js_distance", _:
            return "generalized_jsd", 1 - share
    return kind, share


def _check_range(name: str, indices: Tensor, head: Head) -> None:
    wrong = (indices < 0) | (indices >= len(head.weight))
    if wrong.any():
        raise ValueError(f"{name}: expected values in [0, {len(head.weight) - 1}], got {indices[wrong][0].item()}")
