"""Matrices of small integers in few bits: Rice coding with one parameter per column, without a loop over items.

A number x of a column with parameter b is written as its b low bits and, in unary, x >> b zeros and a one (Rice 1979). The low bits of an
item stand together, padded to whole bytes; the unary parts of all items follow, padded once. Sorted ids are coded as differences: the
j-th smallest id of a list has differences of a size of its own, which is why every column has its own parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.integer]
Bytes = NDArray[np.uint8]

_MOST_BITS = 24


def rice_parameters(values: Integers) -> Bytes:
    """The parameter of each column that makes it shortest.

    Args:
        values: (items, columns), integers in [0, 2^31).
    Returns:
        (columns,), in [0, 24]; 0 where there are no items.
    """
    lengths = [len(values) * (bits + 1) + (values >> bits).sum(0, dtype=np.int64) for bits in range(_MOST_BITS + 1)]
    return np.argmin(np.stack(lengths), axis=0).astype(np.uint8)


def encode(values: Integers, parameters: Bytes) -> Bytes:
    """Code the items of one row.

    Args:
        values: (items, columns), integers in [0, 2^31).
        parameters: (columns,).
    Returns:
        (bytes,)
    """
    order, sizes = _planes(parameters)
    ordered = values[:, order].astype(np.int32)
    planes = np.empty((len(values), sum(sizes)), np.uint8)
    at = 0
    for s, size in enumerate(sizes):
        planes[:, at : at + size] = ordered[:, :size] >> s & 1
        at += size
    ends = np.cumsum((values >> parameters).ravel() + 1, dtype=np.int64)
    unary = np.zeros(ends[-1] if len(ends) else 0, np.uint8)
    unary[ends - 1] = 1
    return np.concatenate([np.packbits(planes, axis=1).ravel(), np.packbits(unary)])


def decode(rows: Sequence[Bytes], items: Sequence[int], parameters: Bytes) -> NDArray[np.int32]:
    """Read rows that `encode` wrote with the same parameters.

    Args:
        rows: one array of bytes for each row, at least one.
        items: the number of items of each.
        parameters: (columns,).
    Returns:
        (sum of items, columns), rows one after the other.
    """
    order, sizes = _planes(parameters)
    width, counts = -(-sum(sizes) // 8), np.asarray(items)
    low = np.concatenate([row[: n * width] for row, n in zip(rows, items, strict=True)]).reshape(counts.sum(), width)
    unary = [row[n * width :] for row, n in zip(rows, items, strict=True)]
    ones = np.flatnonzero(np.unpackbits(np.concatenate(unary)).view(bool))  # of bytes it takes several times as long
    values = np.diff(ones, prepend=-1).astype(np.int32) - 1
    lengths = np.array([len(part) for part in unary])
    first, start = (np.cumsum(n) - n for n in (counts * len(parameters), 8 * lengths))
    values[first[counts > 0]] = ones[first[counts > 0]] - start[counts > 0]  # counted from its own row, not from the one before
    values = values.reshape(-1, len(parameters)) << parameters
    planes = np.unpackbits(low, axis=1)
    ordered, at = np.zeros_like(values), 0
    for s, size in enumerate(sizes):
        ordered[:, :size] |= planes[:, at : at + size].astype(np.int32) << s
        at += size
    values[:, order] |= ordered
    return values


def _planes(parameters: Bytes) -> tuple[NDArray[np.intp], list[int]]:
    """Columns with the most low bits first, and how many of them have a bit number 0, 1, ..."""
    return np.argsort(-parameters.astype(int), kind="stable"), [int((parameters > s).sum()) for s in range(int(parameters.max(initial=0)))]
