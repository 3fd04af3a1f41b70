"""How far raters agree beyond chance, with bootstrap intervals over what they rated.

Items with equal ratings are counted once: every coefficient is a function of how often each distinct row of ratings occurs, and resampling
N items with replacement is one multinomial draw of these counts. So a thousand draws of a million items cost about as much as one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

MISSING = -1
"""The code of a rating that was not given."""

Weights = Literal["nominal", "linear", "quadratic"]
"""How wrong it is to say v where u is right: 1 where they differ, |v - u|, or (v - u)^2."""

_CELLS = 2**22  # counts kept at one time while drawing


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval, the percentiles of the draws; all NaN where it is undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Pair:
    """How two raters agree.

    Attributes:
        kappa: Cohen's, weighted where that was asked for.
        observed: share of the items with equal ratings.
        pabak: the kappa of raters who use all K categories alike, (K observed - 1) / (K - 1); 2 observed - 1 for two categories.
        items: rated by both.
        shares: of every category, of each of the two raters, (2, K).
    """

    kappa: Estimate
    observed: float
    pabak: float
    items: int
    shares: tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Table:
    """Distinct rows of ratings and how often each occurs.

    Attributes:
        rows: (K, R) codes, `MISSING` where there is none.
        counts: (1 + draws, K): first in the data, then in every draw.
        categories: codes are below it.
    """

    rows: np.ndarray
    counts: np.ndarray
    categories: int


def tabulate(ratings: np.ndarray, *, categories: int | None = None, draws: int = 0, seed: int = 0) -> Table:
    """Count distinct rows, and draw counts of resampled items.

    Args:
        ratings: (N, R) whole numbers from 0, `MISSING` for none; N may be 0.
        categories: how many there are; None: as many as the largest code says, at least 2.
        draws: of the bootstrap, >= 0.
        seed: of the draws.
    Raises:
        ValueError: another shape, ratings that are no codes, or no such number of categories or draws.
    """
    ratings = np.asarray(ratings)
    if ratings.ndim != 2 or not ratings.shape[1]:
        raise ValueError(f"ratings: expected shape (items, raters), got {ratings.shape}")
    if ratings.size and not np.issubdtype(ratings.dtype, np.integer):
        raise ValueError(f"ratings: expected whole numbers, {MISSING} for a missing one, got {ratings.dtype}")
    low, high = (int(ratings.min()), int(ratings.max())) if ratings.size else (MISSING, MISSING)
    categories = max(2, high + 1) if categories is None else categories
    if categories < 2:
        raise ValueError(f"categories: expected at least 2, got {categories}")
    if low < MISSING or high >= categories:
        raise ValueError(f"ratings: expected codes 0 to {categories - 1}, or {MISSING} for none, got {low if low < MISSING else high}")
    if draws < 0:
        raise ValueError(f"draws: expected a number >= 0, got {draws}")
    rows, counts = _distinct(ratings, categories)
    return Table(rows, np.concatenate([counts[None], _drawn(counts, draws, seed)]), categories)


def cohen(table: Table, first: int, second: int, *, weights: Weights = "nominal") -> np.ndarray:
    """Cohen's kappa of two raters on what both rated: 1 - sum(w O) / sum(w E), for equal weights (p_o - p_e) / (1 - p_e).

    Args:
        table: see `tabulate`.
        first: column of one rater.
        second: column of the other.
        weights: how much a difference counts.
    Returns:
        (1 + draws,); NaN where both used one and the same category only, or rated nothing in common.
    """
    joint = _joint(table, first, second)
    total = joint.sum((1, 2))
    distance = _distance(table.categories, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.einsum("bu,bv,uv->b", joint.sum(2), joint.sum(1), distance) / total**2
        return np.where(expected > 0, 1 - (joint * distance).sum((1, 2)) / total / expected, math.nan)


def fleiss(table: Table) -> np.ndarray:
    """Fleiss' kappa of all raters, on the items that all of them rated.

    Returns:
        (1 + draws,); NaN where there is no such item, or only one category was used.
    Raises:
        ValueError: fewer than two raters.
    """
    raters = table.rows.shape[1]
    if raters < 2:
        raise ValueError(f"ratings: expected at least 2 raters, got {raters}")
    complete = (table.rows != MISSING).all(1)
    votes, counts = _votes(table)[complete], table.counts[:, complete]
    agreeing = ((votes**2).sum(1) - raters) / (raters * (raters - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        total = counts.sum(1)
        expected = (((counts @ votes) / (total * raters)[:, None]) ** 2).sum(1)
        return np.where(expected < 1, (counts @ agreeing / total - expected) / (1 - expected), math.nan)


def krippendorff(table: Table, *, weights: Weights = "nominal") -> np.ndarray:
    """Krippendorff's alpha, 1 - observed / expected disagreement, which takes missing ratings.

    Ratings of an item count in pairs, each with 1 / (ratings of the item - 1); an item with fewer than two counts nothing. ``quadratic`` is
    the interval form.

    Returns:
        (1 + draws,); NaN where fewer than two categories were used.
    """
    votes = _votes(table)
    rated = votes.sum(1)
    share = np.where(rated > 1, 1 / np.maximum(rated - 1, 1), 0.0)
    pairs = votes[:, :, None] * votes[:, None, :] - votes[:, :, None] * np.eye(table.categories)
    joint = np.einsum("bk,kuv->buv", table.counts, pairs * share[:, None, None])
    marginal, total = joint.sum(2), joint.sum((1, 2))
    distance = _distance(table.categories, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.einsum("bu,bv,uv->b", marginal, marginal, distance) / (total - 1)
        return np.where(expected > 0, 1 - (joint * distance).sum((1, 2)) / expected, math.nan)


def agreement(
    first: Sequence[int] | np.ndarray,
    second: Sequence[int] | np.ndarray,
    *,
    weights: Weights = "nominal",
    categories: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Pair:
    """Everything to report about two raters.

    Args:
        first: (N,) codes of one rater, `MISSING` for none.
        second: (N,) of the other, in the same order.
        weights: of kappa.
        categories: see `tabulate`.
        draws: of the bootstrap; 0 leaves the interval out.
        seed: of the draws.
    Raises:
        ValueError: two lengths, or what `tabulate` refuses.
    """
    if len(first) != len(second):
        raise ValueError(f"second: expected {len(first)} ratings like first, got {len(second)}")
    table = tabulate(np.stack([np.asarray(first), np.asarray(second)], axis=1), categories=categories, draws=draws, seed=seed)
    return pair(table, 0, 1, weights=weights)


def pair(table: Table, first: int, second: int, *, weights: Weights = "nominal") -> Pair:
    """The same for two columns of a table; see `agreement`."""
    joint = _joint(table, first, second)[0]
    items = joint.sum()
    observed = float(np.trace(joint) / items) if items else math.nan
    shares = tuple(tuple((side / max(items, 1)).tolist()) for side in (joint.sum(1), joint.sum(0)))
    return Pair(
        kappa=estimate(cohen(table, first, second, weights=weights)),
        observed=observed,
        pabak=(table.categories * observed - 1) / (table.categories - 1),
        items=int(items),
        shares=(shares[0], shares[1]),
    )


def estimate(values: np.ndarray) -> Estimate:
    """The value in the data, which comes first, and the percentiles 2.5 and 97.5 of the draws where it is defined."""
    value, draws = float(values[0]), values[1:][np.isfinite(values[1:])]
    if math.isnan(value) or not len(draws):
        return Estimate(value=value)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(value=value, low=float(low), high=float(high))


def _distinct(ratings: np.ndarray, categories: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows and their counts; rows are numbers in base ``categories`` + 1 where these stay small."""
    base, raters = categories + 1, ratings.shape[1]
    if base**raters > 2**20:
        rows, counts = np.unique(ratings, axis=0, return_counts=True)
        return rows.astype(np.int64), counts
    codes = np.zeros(len(ratings), dtype=np.int64)
    for column in ratings.T:
        codes = codes * base + (column.astype(np.int64) + 1)
    counts = np.bincount(codes, minlength=1)
    kept = np.flatnonzero(counts)
    powers = base ** np.arange(raters)[::-1]
    return kept[:, None] // powers % base - 1, counts[kept]


def _drawn(counts: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Counts of ``draws`` samples of as many items, with replacement."""
    total = int(counts.sum())
    if not draws or not total:
        return np.zeros((draws, len(counts)), dtype=np.int64)
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // len(counts))
    parts = [generator.multinomial(total, counts / total, size=min(step, draws - at)) for at in range(0, draws, step)]
    return np.concatenate(parts)


def _joint(table: Table, first: int, second: int) -> np.ndarray:
    """(1 + draws, K, K): how often one rater said u and the other v."""
    left, right = table.rows[:, first], table.rows[:, second]
    both = (left != MISSING) & (right != MISSING)
    cells = np.zeros((int(both.sum()), table.categories**2))
    cells[np.arange(len(cells)), left[both] * table.categories + right[both]] = 1
    return (table.counts[:, both] @ cells).reshape(-1, table.categories, table.categories)


def _votes(table: Table) -> np.ndarray:
    """(K, categories): how many raters chose each category."""
    return (table.rows[:, :, None] == np.arange(table.categories)).sum(1).astype(float)


def _distance(categories: int, weights: Weights) -> np.ndarray:
    gap = np.abs(np.subtract.outer(np.arange(categories), np.arange(categories))).astype(float)
    if weights == "nominal":
        return (gap > 0).astype(float)
    if weights not in ("linear", "quadratic"):
        raise ValueError(f"weights: expected 'nominal', 'linear' or 'quadratic', got {weights!r}")
    return gap if weights == "linear" else gap**2
