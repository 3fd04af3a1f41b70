"""What students think of variants: how much they prefer specific ones to broad ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preceptor.core.optional import require
from preceptor.education.tables import check_columns, read_rows

SPECIFIC = 3
"""Grain from which on a variant counts as specific: a topic or a reference of the student's own."""


@dataclass(frozen=True, kw_only=True)
class Rating:
    """What one student said of one variant: a rating such as 1 to 5, the variant's grain, its match with the student, and the teacher.

    ``place`` is that of the problem among the teacher's, from 1; 0 where it is not known.
    """

    student: str
    teacher: str
    grain: int
    match: float
    rating: float
    place: int = 0


@dataclass(frozen=True, kw_only=True)
class Term:
    """A coefficient with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Reactions:
    """What ratings say.

    Attributes:
        contrast: specific less broad, the mean over students who rated both of the difference of their means, with its t interval.
        students: who rated both.
        grains: grain -> mean rating less that of the lowest grain, from the mixed model.
        match: points of rating per unit of match, from the mixed model; NaN where match is the same within all grains.
        student_variance, teacher_variance: of the random intercepts; the second is NaN with one teacher.
        converged: whether the mixed model did.
    """

    contrast: Term
    students: int
    grains: dict[int, Term]
    match: Term
    student_variance: float
    teacher_variance: float
    converged: bool


def contrast(ratings: Sequence[Rating]) -> tuple[Term, int]:
    """Within students, specific less broad, and the number of students who rated both.

    Raises:
        ValueError: no student rated both.
    """
    own: dict[str, tuple[list[float], list[float]]] = {}
    for rating in ratings:
        own.setdefault(rating.student, ([], []))[rating.grain >= SPECIFIC].append(rating.rating)
    gaps = np.array([np.mean(specific) - np.mean(broad) for broad, specific in own.values() if broad and specific])
    if not len(gaps):
        raise ValueError("ratings: expected a student who rated a specific and a broad variant, got none")
    mean = float(gaps.mean())
    if len(gaps) == 1:
        return Term(value=mean, low=math.nan, high=math.nan), 1
    special = require("scipy.special", extra="study", purpose="intervals")
    half = float(special.stdtrit(len(gaps) - 1, 0.975)) * float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return Term(value=mean, low=mean - half, high=mean + half), len(gaps)


def reaction_report(ratings: Sequence[Rating]) -> Reactions:
    """The contrast within students, and the mixed model y = beta_grain + gamma match + student + teacher, students within teachers.

    Raises:
        ValueError: no student rated both a specific and a broad variant, or a rating or a match is not finite.
        ImportError: statsmodels is missing.
    """
    for rating in ratings:
        if not (math.isfinite(rating.rating) and math.isfinite(rating.match)):
            raise ValueError(f"ratings: expected finite numbers, got {rating.rating} with match {rating.match} from {rating.student}")
    between, students = contrast(ratings)
    formulas = require("statsmodels.formula.api", extra="study", purpose="mixed models")
    pandas = require("pandas", extra="study", purpose="mixed models")
    table = pandas.DataFrame([vars(rating) for rating in ratings])
    grains = sorted({rating.grain for rating in ratings})
    dummies = np.stack([table["grain"] == grain for grain in grains], axis=1).astype(float)
    with_match = bool(np.linalg.matrix_rank(np.column_stack([dummies, table["match"]])) > len(grains))
    fixed = " + ".join(["C(grain)"] * (len(grains) > 1) + ["match"] * with_match) or "1"
    several = table["teacher"].nunique() > 1
    nested = {"groups": "teacher", "vc_formula": {"student": "0 + C(student)"}} if several else {"groups": "student"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is in ``converged``
        fitted = formulas.mixedlm(f"rating ~ {fixed}", table, re_formula="1", **nested).fit(reml=True)
    intervals = fitted.conf_int()

    def term(name: str) -> Term:
        low, high = (float(end) for end in intervals.loc[name])
        return Term(value=float(fitted.params[name]), low=low, high=high)

    return Reactions(
        contrast=between,
        students=students,
        grains={grain: term(f"C(grain)[T.{grain}]") for grain in grains[1:]},
        match=term("match") if with_match else Term(value=math.nan, low=math.nan, high=math.nan),
        student_variance=float(fitted.vcomp[0] if several else np.asarray(fitted.cov_re)[0, 0]),
        teacher_variance=float(np.asarray(fitted.cov_re)[0, 0]) if several else math.nan,
        converged=bool(fitted.converged),
    )


def read_ratings(path: Path) -> list[Rating]:
    """Read a CSV or JSON Lines file with the columns of `Rating`, ``place`` where there is one.

    Raises:
        ValueError: no such file or column, or a value that is no number; the row is named.
    """
    rows = read_rows(path)
    check_columns(rows, ("student", "teacher", "grain", "match", "rating"), path)
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(
                Rating(
                    student=str(row["student"]),
                    teacher=str(row["teacher"]),
                    grain=int(row["grain"]),
                    match=float(row["match"]),
                    rating=float(row["rating"]),
                    place=int(row.get("place") or 0),
                )
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: expected numbers for grain, match, rating and place in row {number}, got {error}") from None
    return found
