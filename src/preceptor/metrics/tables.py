"""Checked looks into tables: sequences of mappings, one a row, as ``polars.DataFrame(rows)`` or ``pandas.DataFrame(rows)`` take them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]
"""One row of a table: column -> value."""


def cell(row: Row, column: str, number: int) -> Any:
    """The value in a column.

    Args:
        row: of a table.
        column: its name.
        number: of the row, for the error.
    Raises:
        ValueError: there is no such column; the nearest is named.
    """
    if column not in row:
        raise ValueError(f"row {number}{_of(row)}: expected a column {column!r}, got {', '.join(row)}{nearest(column, row)}")
    return row[column]


def numbers(table: Sequence[Row], column: str, *, infinite: bool = False) -> np.ndarray:
    """A column as (N,) float64.

    Args:
        table: N rows.
        column: its name.
        infinite: whether a number may be infinite.
    Raises:
        ValueError: there is no such column, or a value is no number, NaN, or infinite.
    """
    values = np.empty(len(table))
    for number, row in enumerate(table):
        value = cell(row, column, number)
        known = isinstance(value, (int, float, np.integer, np.floating)) and not math.isnan(value)
        if not known or (math.isinf(value) and not infinite):
            raise ValueError(f"{column} of row {number}{_of(row)}: expected a {'' if infinite else 'finite '}number, got {value!r}")
        values[number] = value
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say after a name that is not known; "" where no name is."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f" (nearest: {near[0]})" if near else ""


def _of(row: Row) -> str:
    """Who a row is about, where it says so."""
    said = [str(row[column]) for column in ("teacher", "language") if column in row]
    return f" ({', '.join(said)})" if said else ""
