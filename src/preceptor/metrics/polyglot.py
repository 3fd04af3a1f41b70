"""Polyglot scores: what was measured of data and of the students who learned from them, joined, and what the score hangs on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from preceptor.core.optional import require
from preceptor.metrics.recovered import Extrinsic
from preceptor.metrics.tables import Row, cell, nearest
from preceptor.metrics.teaching_data import intrinsic_z

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The weights of the intrinsic score that `robustness` goes through."""


def polyglot_score(z: ArrayLike, pgr: ArrayLike, alpha: float = 0.5) -> np.ndarray:
    """PG_alpha = alpha z + (1 - alpha) PGR.

    Args:
        z: intrinsic scores, any shape.
        pgr: recovered gaps, same shape.
        alpha: in [0, 1]; 1 is z alone, 0 is PGR alone.
    Raises:
        ValueError: different shapes, or alpha outside [0, 1].
    """
    left, right = np.asarray(z, dtype=np.float64), np.asarray(pgr, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"pgr: expected shape {left.shape} like z, got {right.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a number in [0, 1], got {alpha}")
    if alpha in (0, 1):
        return (left if alpha else right).copy()  # a side that does not count may be unknown
    return alpha * left + (1 - alpha) * right


def polyglot_table(
    intrinsic: Sequence[Row], gains: Sequence[Extrinsic], *, alpha: float = 0.5, by: str | None = None
) -> list[dict[str, Any]]:
    """Join what was measured of data and of students, and add ``z`` and ``pg``.

    Args:
        intrinsic: rows with ``teacher``, ``language`` and the columns of `INTRINSIC`; other columns are kept.
        gains: one for each of these rows, in any order.
        alpha: see `polyglot_score`.
        by: see `intrinsic_z`.
    Raises:
        ValueError: a teacher and language that one side has twice or lacks (the nearest is named), or what `intrinsic_z` refuses.
    """
    keys = [(cell(row, "teacher", number), cell(row, "language", number)) for number, row in enumerate(intrinsic)]
    known = {(one.teacher, one.language): one for one in gains}
    _check_same_keys(keys, [(one.teacher, one.language) for one in gains])
    z = intrinsic_z(intrinsic, by=by)
    scores = polyglot_score(z, [known[key].pgr for key in keys], alpha)
    return [
        {**row, **asdict(known[key]), "z": float(mine), "pg": float(score)}
        for row, key, mine, score in zip(intrinsic, keys, z, scores, strict=True)
    ]


def by_teacher(table: Sequence[Row]) -> list[dict[str, Any]]:
    """Means over languages of a `polyglot_table`, best ``pg`` first: ``teacher``, ``z``, ``pgr``, ``pg``, ``gain``, ``result``.

    A language without a recovered gap (NaN) is left out of ``pgr`` and ``pg``; ``languages`` counts the others, and where there is none the
    means are NaN and the teacher comes last. ``inverted`` counts languages whose reference is not better than the base: there ``gain`` is
    what to read.
    """
    groups: dict[str, list[Row]] = {}
    for row in table:
        groups.setdefault(row["teacher"], []).append(row)
    found = []
    for teacher, rows in groups.items():
        known = [row for row in rows if not math.isnan(row["pgr"])]
        means = {name: fmean(row[name] for row in rows) for name in ("z", "gain", "result")}
        recovered = {name: fmean(row[name] for row in known) if known else math.nan for name in ("pgr", "pg")}
        inverted = sum(bool(row["inverted"]) for row in rows)
        found.append({"teacher": teacher, **means, **recovered, "languages": len(known), "inverted": inverted})
    return sorted(found, key=lambda row: (math.isnan(row["pg"]), -row["pg"]))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN for fewer than two values or for equal ones only.

    Args:
        x, y: (N,), finite.
    Raises:
        ValueError: different shapes, or a number that is not finite.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (x, y)]
    if sides[0].ndim != 1 or sides[0].shape != sides[1].shape or not np.isfinite(sides).all():
        raise ValueError(f"x, y: expected as many finite numbers, got shapes {sides[0].shape} and {sides[1].shape}")
    if len(sides[0]) < 2 or min(map(np.ptp, sides)) == 0:
        return math.nan
    stats = require("scipy.stats", extra="study", purpose="rank correlations")
    ranks = [stats.rankdata(side) - (len(side) + 1) / 2 for side in sides]
    return float(np.dot(*ranks) / math.sqrt(np.dot(ranks[0], ranks[0]) * np.dot(ranks[1], ranks[1])))


def robustness(table: Sequence[Row], alphas: Sequence[float] = ALPHAS) -> np.ndarray:
    """How much the order of teachers hangs on alpha: rank correlations of their mean scores.

    Args:
        table: of `polyglot_table`, every row with a recovered gap.
        alphas: A numbers in [0, 1].
    Returns:
        (A, A), symmetric, 1 on the diagonal; NaN where all teachers are level.
    Raises:
        ValueError: see `polyglot_score` and `spearman`.
    """
    means = by_teacher(table)
    scores = [polyglot_score([row["z"] for row in means], [row["pgr"] for row in means], alpha) for alpha in alphas]
    return np.array([[spearman(one, other) for other in scores] for one in scores])


def size_correlation(table: Sequence[Row], sizes: Mapping[str, float]) -> float:
    """Rank correlation of the size of teachers, or its logarithm, with their mean score.

    Args:
        table: of `polyglot_table`.
        sizes: by teacher, for example in parameters; others than those of the table are left out.
    Raises:
        ValueError: a teacher without a size; the nearest name is given.
    """
    means = by_teacher(table)
    for row in means:
        if row["teacher"] not in sizes:
            raise ValueError(f"sizes: expected {row['teacher']!r}, got none{nearest(row['teacher'], sizes)}")
    return spearman([sizes[row["teacher"]] for row in means], [row["pg"] for row in means])


def _check_same_keys(intrinsic: Sequence[tuple[str, str]], gains: Sequence[tuple[str, str]]) -> None:
    for name, keys, others in (("intrinsic", intrinsic, gains), ("gains", gains, intrinsic)):
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"{name}: expected {' / '.join(twice)} once, got it {keys.count(twice)} times")
        lacking = next((key for key in others if key not in keys), None)
        if lacking is not None:
            near = nearest(" / ".join(lacking), [" / ".join(key) for key in keys])
            raise ValueError(f"{name}: expected a row of {' / '.join(lacking)}, got none{near}")
