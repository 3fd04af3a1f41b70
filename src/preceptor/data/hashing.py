"""Random numbers without state: a counter-based hash of an example's id, so that any split of the data draws the same ones."""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 with the same low 64 bits."""
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def hash_ids(ids: Tensor, *keys: int) -> Tensor:
    """Hash every id together with the keys: the output function of SplitMix64 (Steele, Lea, Flood 2014), once per key.

    Args:
        ids: int64, any shape.
        keys: further integers (seed, epoch, number of the draw); their order matters.
    Returns:
        int64 of the same shape; all 64 bits are uniform.
    """
    value = ids
    for key in (0, *keys):
        value = (value ^ _signed(key)) + _signed(_GOLDEN)
        value = (value ^ _shift_right(value, 30)) * _signed(_FIRST)
        value = (value ^ _shift_right(value, 27)) * _signed(_SECOND)
        value = value ^ _shift_right(value, 31)
    return value


def uniform(ids: Tensor, *keys: int) -> Tensor:
    """One number in [0, 1) for every id, float64 with 53 random bits; arguments as in `hash_ids`."""
    return _shift_right(hash_ids(ids, *keys), 11).double() / (1 << 53)


def integers(high: int, ids: Tensor, *keys: int) -> Tensor:
    """One integer in [0, high) for every id, int64; further arguments as in `hash_ids`."""
    return (uniform(ids, *keys) * high).long()


def generator(*keys: int) -> torch.Generator:
    """A CPU generator seeded by the keys."""
    return torch.Generator().manual_seed(int(hash_ids(torch.tensor(keys[0]), *keys[1:])))
