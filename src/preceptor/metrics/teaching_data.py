"""How good data are that a language model wrote for teaching others, before any student learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from preceptor.metrics.perplexity import LARGEST
from preceptor.metrics.tables import Row, cell, numbers

INTRINSIC = ("distinct_prompts", "distinct_responses", "rubric", "perplexity")
"""The columns of the intrinsic score."""

FEATURES = (*INTRINSIC, "prompt_length", "response_length")
"""What `explain` explains a benchmark by."""

_SAME = 1e-12  # relative spread below which a column is constant


def distinctness(embeddings: ArrayLike) -> float:
    """One minus the mean cosine of different rows.

    1 - (|sum_i u_i|^2 - m) / (n (n - 1)), u_i = e_i / |e_i|, m the rows that are not 0: exact, and no matrix of n x n.

    Args:
        embeddings: (N, D), N >= 2. A row of zeros has cosine 0 with all others.
    Returns:
        0 where all rows point the same way, 1 where they are orthogonal, at most N / (N - 1).
    Raises:
        ValueError: another shape, fewer than two rows, or a number that is not finite.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"embeddings: expected shape (N, D) with at least 2 rows, got {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"embeddings: expected finite numbers, got others in row {int(np.argmin(np.isfinite(rows).all(1)))}")
    largest = np.abs(rows).max(axis=1, initial=0.0, keepdims=True)
    rows = rows / np.where(largest > 0, largest, 1)  # squares neither overflow nor vanish
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units = rows / np.where(lengths > 0, lengths, 1)
    cosines = float(np.square(units.sum(0)).sum()) - float((lengths > 0).sum())
    return max(1 - cosines / (len(rows) * (len(rows) - 1)), 0.0)


def intrinsic_z(table: Sequence[Row], columns: Sequence[str] = INTRINSIC, *, by: str | None = None) -> np.ndarray:
    """The mean of standardised columns; it is relative to the rows that are there: one teacher more moves all.

    Args:
        table: N rows.
        columns: to standardise, with the population standard deviation; ``perplexity`` enters as -ln(1 + min(perplexity, 1e6)). One without
            spread contributes 0.
        by: a column: standardise within its groups; None: over all rows.
    Returns:
        (N,), mean 0 over all rows, or over those of each group.
    Raises:
        ValueError: no columns, fewer than two rows to standardise, a column that is missing or not finite (a perplexity may be),
            or a perplexity below 0.
    """
    if not columns:
        raise ValueError("columns: expected at least one, got none")
    values = np.column_stack([_entering(table, name) for name in columns])
    groups: list[Any] = [None if by is None else cell(row, by, number) for number, row in enumerate(table)]
    found = np.zeros(len(table))
    for group in dict.fromkeys(groups or [None]):
        rows = np.array([one == group for one in groups], dtype=bool)
        if rows.sum() < 2:
            of = "" if by is None else f" of {by} {group!r}"
            raise ValueError(f"table: expected at least 2 rows{of} to standardise, got {int(rows.sum())}")
        found[rows] = _standardised(values[rows]).mean(axis=1)
    return found


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Principal components of features, largest first, and a linear regression on them. K components of F features.

    Attributes:
        variance: (K,) shares of the variance of the features, sum 1.
        loadings: (K, F) directions of length 1, the largest entry of each positive.
        weights: (K,) change of the target per unit of a component.
        r2: (K,) R^2 of the regression on the first 1, 2, ... K components, rising. With K = N - 1 it is 1 whatever the target.
    """

    variance: np.ndarray
    loadings: np.ndarray
    weights: np.ndarray
    r2: np.ndarray


def explain(table: Sequence[Row], columns: Sequence[str] = FEATURES, *, target: str = "result") -> Explanation:
    """Principal components of standardised columns, and how well they foretell another one.

    Args:
        table: N >= 3 rows.
        columns: F features, as they are; one without spread counts for nothing.
        target: what is explained.
    Raises:
        ValueError: fewer rows, no columns with spread, a target without spread, or a column that is missing or not finite.
    """
    if len(table) < 3 or not columns:
        raise ValueError(f"table: expected at least 3 rows and a column, got {len(table)} rows and {len(columns)} columns")
    y = numbers(table, target)
    y = y - y.mean()
    features = _standardised(np.column_stack([numbers(table, name) for name in columns]))
    left, sizes, loadings = np.linalg.svd(features, full_matrices=False)
    known = sizes > _SAME * max(len(table), len(columns)) * max(sizes.max(), 1.0)
    if not known.any() or np.abs(y).max() <= _SAME * np.abs(numbers(table, target)).max():
        raise ValueError(f"table: expected columns and {target} with different values, got constant ones")
    left, sizes, loadings = left[:, known], sizes[known], loadings[known]
    turned = np.sign(loadings[np.arange(len(loadings)), np.abs(loadings).argmax(1)])
    along = (left * turned).T @ y
    return Explanation(
        variance=sizes**2 / (sizes**2).sum(),
        loadings=loadings * turned[:, None],
        weights=along / sizes,
        r2=np.cumsum(along**2) / (y @ y),
    )


def _standardised(values: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and population standard deviation 1; 0 where a column is constant."""
    spread = values.std(axis=0)
    constant = spread <= _SAME * np.abs(values).max(axis=0)
    return np.where(constant, 0.0, (values - values.mean(axis=0)) / np.where(constant, 1.0, spread))


def _entering(table: Sequence[Row], name: str) -> np.ndarray:
    """A column as it enters the intrinsic score."""
    if name != "perplexity":
        return numbers(table, name)
    values = numbers(table, name, infinite=True)
    if values.size and values.min() < 0:
        raise ValueError(f"perplexity of row {int(values.argmin())}: expected a number >= 0, got {values.min()}")
    return -np.log1p(np.minimum(values, LARGEST))
