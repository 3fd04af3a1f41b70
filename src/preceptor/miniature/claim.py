"""The one rule that turns seeds into a verdict.

A claim says that one arm of an experiment beats another in one metric. Both arms are run with the same seeds, and for every seed the
difference in the paper's direction is taken, so that it is positive when the claim is right. With d the n differences and m the margin:

    t = (mean(d) - m) / (sd(d) / sqrt(n)),   p = P(|T| >= |t|),

where T follows Student's distribution with n - 1 degrees of freedom. Holm's step-down (Scandinavian Journal of Statistics 6, 1979) over
all claims of the study turns p into ``p_holm``. Then:

- **too few seeds**: n < 5, whatever the values;
- **shown**: p_holm <= 0.05 and mean(d) > m;
- **contradicted**: p_holm <= 0.05 and mean(d) < m;
- **not shown at this size**: everything else.

The test is two-sided although a claim has a direction: of studies in which no claim is true, at most 5 % take a side anywhere, and about
half of those with a false **shown**. The 95 % interval is that of one claim alone, without Holm.

Differences that are all equal (spread below 1e-12 of the values) have no t statistic, and identical runs are not independent evidence.
They get the p of the sign test, 2^(1 - n), or 1 when they equal the margin: one such claim needs 6 seeds to be shown.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from preceptor.core.optional import require

LEVEL = 0.95
"""Coverage of every interval; 1 - LEVEL is the largest family-wise error of a study's verdicts."""

MIN_SEEDS = 5
"""Fewest seeds that may decide a claim."""

_SAME = 1e-12  # relative to the values compared: below it a spread is rounding, not evidence

Arms = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Measurements of an experiment: arm -> seed -> metric -> value."""

VerdictName = Literal["shown", "not shown at this size", "contradicted", "too few seeds"]
"""What the rule can say."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement of a paper that a miniature measures: ``method`` beats ``baseline`` in ``metric`` by more than ``margin``.

    Args:
        name: the statement in words.
        method: arm that should be better.
        baseline: arm that it is compared with.
        metric: name of the measured number.
        direction: which way is better, ``"higher"`` or ``"lower"``.
        margin: how much better, in units of the metric; negative for "worse by less than".
    Raises:
        ValueError: the arms are the same, the direction is another word, or the margin is not finite.
    """

    name: str
    method: str
    baseline: str
    metric: str
    direction: Literal["higher", "lower"] = "higher"
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.method == self.baseline:
            raise ValueError(f"baseline: expected another arm than the method, got {self.baseline!r} for both")
        if self.direction not in ("higher", "lower"):
            raise ValueError(f"direction: expected 'higher' or 'lower', got {self.direction!r}")
        if not math.isfinite(self.margin):
            raise ValueError(f"margin: expected a finite number, got {self.margin}")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the seeds say about one claim. Differences are positive in the direction of the claim."""

    mean: float  # mean paired difference, in units of the metric
    low: float | None  # lower end of its 95 % interval; None with one seed
    high: float | None  # upper end
    p_value: float  # two-sided, of "mean = margin"; 1 with one seed
    p_holm: float  # adjusted over the claims of the study, >= p_value
    n: int  # seeds
    verdict: VerdictName


def t_interval(values: Sequence[float], *, level: float = LEVEL) -> tuple[float, float | None, float | None]:
    """Mean of ``values`` with its Student t interval.

    Args:
        values: one number per seed, finite, at least one.
        level: coverage, in (0, 1).
    Returns:
        Mean, low, high; low and high are None for one value, and equal to the mean for equal values.
    Raises:
        ValueError: no values, a value that is not finite, or a level outside (0, 1).
    """
    if not values:
        raise ValueError("values: expected at least one, got none")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values: expected finite numbers, got {list(values)}")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number in (0, 1), got {level}")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None, None
    special = require("scipy.special", extra="study", purpose="intervals")
    half = float(special.stdtrit(len(values) - 1, (1 + level) / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: the k-th smallest of n times (n - k + 1), made non-decreasing, at most 1.

    Args:
        p_values: in [0, 1], any order.
    Returns:
        Adjusted values in the order given.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def decide(claims: Sequence[Claim], arms: Arms) -> tuple[Verdict, ...]:
    """Apply the rule of this module to all claims of one study; ``claims`` is the family that Holm adjusts over.

    Args:
        claims: what is claimed, fixed before the runs.
        arms: measured values; for each claim both arms have the same seeds.
    Returns:
        One verdict per claim, in order.
    Raises:
        ValueError: an arm or a metric that was not measured, arms with different seeds, no seeds, or a value that is not finite.
    """
    samples = [_paired(claim, arms) for claim in claims]
    p_values = [_p_value(differences, claim.margin, scale) for claim, (differences, scale) in zip(claims, samples, strict=True)]
    verdicts = []
    for claim, (differences, _), p_value, p_holm in zip(claims, samples, p_values, holm(p_values), strict=True):
        mean, low, high = t_interval(differences)
        word: VerdictName = "not shown at this size"
        if len(differences) < MIN_SEEDS:
            word = "too few seeds"
        elif p_holm <= 1 - LEVEL:
            word = "shown" if mean > claim.margin else "contradicted"
        verdicts.append(Verdict(mean=mean, low=low, high=high, p_value=p_value, p_holm=p_holm, n=len(differences), verdict=word))
    return tuple(verdicts)


def _paired(claim: Claim, arms: Arms) -> tuple[list[float], float]:
    """Differences by seed in the direction of the claim, and the largest magnitude among the values compared."""
    method, baseline = (_column(claim.metric, arm, arms) for arm in (claim.method, claim.baseline))
    if method.keys() != baseline.keys():
        raise ValueError(
            f"seeds of {claim.method} and {claim.baseline}: expected the same, got {sorted(method)} and {sorted(baseline)}"
            f" (unpaired: {sorted(method.keys() ^ baseline.keys())})"
        )
    if not method:
        raise ValueError(f"seeds of {claim.method} and {claim.baseline}: expected at least one, got none")
    sign = 1.0 if claim.direction == "higher" else -1.0
    scale = max(abs(value) for column in (method, baseline) for value in column.values())
    return [sign * (method[seed] - baseline[seed]) for seed in sorted(method)], scale


def _column(metric: str, arm: str, arms: Arms) -> dict[int, float]:
    """One metric of one arm by seed, checked."""
    if arm not in arms:
        raise ValueError(f"arm: expected one of {sorted(arms)}, got {arm!r}")
    column = {}
    for seed, metrics in arms[arm].items():
        if metric not in metrics:
            raise ValueError(f"metric of {arm}, seed {seed}: expected one of {sorted(metrics)}, got {metric!r}")
        if not math.isfinite(metrics[metric]):
            raise ValueError(f"{metric} of {arm}, seed {seed}: expected a finite number, got {metrics[metric]}")
        column[seed] = metrics[metric]
    return column


def _p_value(differences: Sequence[float], margin: float, scale: float) -> float:
    """Two-sided p of "the mean difference equals the margin", as the module docstring says."""
    n = len(differences)
    if n == 1:
        return 1.0
    excess = statistics.fmean(differences) - margin
    deviation = statistics.stdev(differences)
    if deviation <= _SAME * scale:
        return 1.0 if abs(excess) <= _SAME * scale else 2.0 ** (1 - n)
    special = require("scipy.special", extra="study", purpose="p-values")
    return float(2 * special.stdtr(n - 1, -abs(excess) / (deviation / math.sqrt(n))))
