"""Random numbers without state: a counter-based hash of an example's id, so that any split of the data draws the same ones."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def _seed(keys: tuple[int, ...]) -> int:
    """64 bits that depend on every key and on their order; 0 for no key."""
    value = 0
    for key in keys:
        value = ((value ^ key) + _GOLDEN) & _MASK
        value = ((value ^ (value >> 30)) * _FIRST) & _MASK
        value = ((value ^ (value >> 27)) * _SECOND) & _MASK
        value ^= value >> 31
    return value


def _signed(value: int) -> int:
    """The int64 with the same bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def hash_ids(ids: Tensor, *keys: int) -> Tensor:
    """Number ``id`` (from 0) of the SplitMix64 stream (Steele, Lea, Flood 2014) whose seed is made of the keys.

    Args:
        ids: int64, any shape.
        keys: further integers (seed, epoch, number of the draw); their order matters.
    Returns:
        int64 of the same shape; all 64 bits are uniform.
    """
    value = (ids + 1) * _signed(_GOLDEN) + _signed(_seed(keys))
    value = (value ^ _shift_right(value, 30)) * _signed(_FIRST)
    value = (value ^ _shift_right(value, 27)) * _signed(_SECOND)
    return value ^ _shift_right(value, 31)


def uniform(ids: Tensor, *keys: int) -> Tensor:
    """One number in [0, 1) for every id, float64 with 53 random bits; arguments as in `hash_ids`."""
    return _shift_right(hash_ids(ids, *keys), 11).double() / (1 << 53)


def integers(high: int, ids: Tensor, *keys: int) -> Tensor:
    """One integer in [0, high) for every id, int64; further arguments as in `hash_ids`."""
    return (uniform(ids, *keys) * high).long()


def generator(*keys: int) -> torch.Generator:
    """A CPU generator seeded by the keys."""
    return torch.Generator().manual_seed(_seed(keys))
