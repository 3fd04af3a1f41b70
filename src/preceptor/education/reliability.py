"""How far a model's labels agree with people's, and which categories may be left to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from preceptor.education.agreement import MISSING, Estimate, Pair, Weights, cohen, estimate, krippendorff, pair, tabulate
from preceptor.education.rubric import Rubric

Gate = Literal["scale", "do not scale", "undetermined"]
"""Leave a category to the model; do not; or nobody can tell from this sample."""

LEAST_KAPPA = 0.7  # of people among themselves; the paper keeps the categories with substantial agreement
LEAST_SHARE = 0.7  # of the lower end of people's kappa that the model has to reach
LEAST_POSITIVES = 10  # by each person: with fewer, an interval is too wide to decide anything


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """One category.

    Attributes:
        people: each pair of people, by their names.
        model: each person with the model.
        human_human: mean kappa of the pairs of people.
        human_model: mean kappa of people with the model.
        alpha: Krippendorff's, of all people.
        positives: the fewest of any person; of more than two labels, those that are not the commonest.
        gate: the verdict, and why.
    """

    people: Mapping[tuple[str, str], Pair]
    model: Mapping[str, Pair]
    human_human: Estimate
    human_model: Estimate
    alpha: Estimate
    positives: int
    gate: Gate
    reason: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """Least squares ``y = intercept + slope x``, with the correlation; NaN where x or y do not vary."""

    slope: float
    intercept: float
    correlation: float
    points: int


def reliability(
    people: Mapping[str, np.ndarray],
    model: np.ndarray,
    *,
    categories: int = 2,
    weights: Weights = "nominal",
    draws: int = 1000,
    seed: int = 0,
    least_kappa: float = LEAST_KAPPA,
    least_share: float = LEAST_SHARE,
) -> Reliability:
    """Agreement of one category, and the gate: people agree, kappa >= 0.7, and the model agrees with them at least 0.7 times as much.

    Args:
        people: (N,) labels from 0 by name, -1 for none; at least one person.
        model: (N,).
        categories: labels are below it.
        weights: of kappa and alpha, how wrong it is to take one label for another.
        draws: of the bootstrap over texts, the same texts for all coefficients.
        seed: of the draws.
        least_kappa: of people among themselves.
        least_share: the model's kappa is at least this share of the lower end of people's interval.
    Raises:
        ValueError: no person.
    """
    if not people:
        raise ValueError("people: expected labels of at least one person, got none")
    names = list(people)
    table = tabulate(np.stack([*people.values(), model], axis=1), categories=categories, draws=draws, seed=seed)
    pairs = {(names[i], names[j]): (i, j) for i, j in combinations(range(len(names)), 2)}
    between = _mean([cohen(table, i, j, weights=weights) for i, j in pairs.values()])
    against = _mean([cohen(table, i, len(names), weights=weights) for i in range(len(names))])
    only = tabulate(np.stack(list(people.values()), axis=1), categories=categories, draws=draws, seed=seed)
    positives = min(_positives(labels, categories) for labels in people.values())
    human_human, human_model = estimate(between), estimate(against)
    gate, reason = _gate(human_human, human_model, positives, least_kappa, least_share)
    return Reliability(
        people={key: pair(table, *places, weights=weights) for key, places in pairs.items()},
        model={name: pair(table, i, len(names), weights=weights) for i, name in enumerate(names)},
        human_human=human_human,
        human_model=human_model,
        alpha=estimate(krippendorff(only, weights=weights)),
        positives=positives,
        gate=gate,
        reason=reason,
    )


def reliabilities(
    people: Mapping[str, np.ndarray],
    model: np.ndarray,
    rubric: Rubric,
    *,
    draws: int = 1000,
    seed: int = 0,
    least_kappa: float = LEAST_KAPPA,
    least_share: float = LEAST_SHARE,
) -> list[Reliability | None]:
    """`reliability` of every category; None where nobody labelled it.

    Args:
        people: (N, C) labels by name.
        model: (N, C).
        rubric: of C categories.
        draws, seed, least_kappa, least_share: see `reliability`.
    """
    found: list[Reliability | None] = []
    for place, category in enumerate(rubric.categories):
        given = {name: labels[:, place] for name, labels in people.items() if (labels[:, place] != MISSING).any()}
        found.append(
            reliability(
                given,
                model[:, place],
                categories=len(category.labels),
                weights=category.weights,
                draws=draws,
                seed=seed,
                least_kappa=least_kappa,
                least_share=least_share,
            )
            if given
            else None
        )
    return found


def regression(x: Sequence[float], y: Sequence[float]) -> Line:
    """The line through points, those that are not finite left out: the paper's is of kappas with the model on kappas of people."""
    pairs = np.array([(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)], dtype=float).reshape(-1, 2)
    centred = pairs - pairs.mean(0) if len(pairs) else pairs
    (xx, xy), (_, yy) = (centred.T @ centred).tolist()
    slope = xy / xx if xx > 0 else math.nan
    correlation = xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else math.nan
    intercept = float(pairs[:, 1].mean() - slope * pairs[:, 0].mean()) if len(pairs) else math.nan
    return Line(slope=slope, intercept=intercept, correlation=correlation, points=len(pairs))


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean(values, axis=0) if values else np.full(1, math.nan)


def _positives(labels: np.ndarray, categories: int) -> int:
    given = np.bincount(labels[labels != MISSING], minlength=categories)
    return int(given[1] if categories == 2 else given.sum() - given.max())


def _gate(people: Estimate, model: Estimate, positives: int, least_kappa: float, least_share: float) -> tuple[Gate, str]:
    if math.isnan(people.value):
        return "undetermined", "no kappa between two people"
    if positives < LEAST_POSITIVES:
        return "undetermined", f"{positives} positives, {LEAST_POSITIVES} are needed"
    if math.isnan(model.value):
        return "undetermined", "no kappa with the model"
    if people.value < least_kappa:
        return "do not scale", f"people agree to {people.value:.2f}, {least_kappa:g} is needed"
    low = people.value if math.isnan(people.low) else people.low
    if model.value < least_share * low:
        return "do not scale", f"the model agrees to {model.value:.2f}, {least_share * low:.2f} is needed"
    return "scale", f"the model agrees to {model.value:.2f}, {least_share * low:.2f} is needed"
