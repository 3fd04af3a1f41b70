"""The statistics of a study: a summary over seeds, paired comparisons by the verdict rule, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from preceptor.miniature.claim import Arms, Claim, Verdict, decide, t_interval


def summary(arm: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean and 95 % Student t interval of every metric over the seeds of one arm.

    Args:
        arm: seed -> metric -> value, the same metrics for every seed.
    Returns:
        metric -> ``{"mean", "low", "high"}`` in units of the metric; low and high are None with one seed.
    Raises:
        ValueError: no seeds, metrics that differ between seeds, or a value that is not finite.
    """
    if not arm:
        raise ValueError("arm: expected at least one seed, got none")
    first, *others = arm
    for seed in others:
        if arm[seed].keys() != arm[first].keys():
            raise ValueError(f"metrics of seed {seed}: expected {sorted(arm[first])} like seed {first}, got {sorted(arm[seed])}")
    summaries: dict[str, dict[str, float | None]] = {}
    for metric in arm[first]:
        for seed, metrics in arm.items():
            if not math.isfinite(metrics[metric]):
                raise ValueError(f"{metric} of seed {seed}: expected a finite number, got {metrics[metric]}")
        mean, low, high = t_interval([metrics[metric] for metrics in arm.values()])
        summaries[metric] = {"mean": mean, "low": low, "high": high}
    return summaries


def paired(arms: Arms, *, methods: Sequence[str], baseline: str, metrics: Mapping[str, Literal["higher", "lower"]]) -> list[dict[str, Any]]:
    """Compare every method with the baseline in every metric, as one family of claims of `preceptor.miniature.claim`.

    Each further metric makes every verdict of the family more cautious: name the few that the study is about.

    Args:
        arms: arm -> seed -> metric -> value; methods and baseline with the same seeds.
        methods: arms that should be better.
        baseline: the arm that they are compared with.
        metrics: metric -> which way is better.
    Returns:
        One entry per method and metric: ``metric``, ``method``, ``baseline`` and the fields of `Verdict`. Differences are the
        method minus the baseline: where lower is better, a method that is better has negative ones.
    Raises:
        ValueError: as `preceptor.miniature.claim.decide`.
    """
    claims = [
        Claim(name=f"{method} beats {baseline} in {metric}", method=method, baseline=baseline, metric=metric, direction=direction)
        for method in methods
        for metric, direction in metrics.items()
    ]
    return [
        {"metric": claim.metric, "method": claim.method, "baseline": claim.baseline, **asdict(verdict), **_difference(claim, verdict)}
        for claim, verdict in zip(claims, decide(claims, arms), strict=True)
    ]


def _difference(claim: Claim, verdict: Verdict) -> dict[str, float | None]:
    """Method minus baseline; a verdict counts in the direction of its claim."""
    if claim.direction == "higher":
        return {"mean": verdict.mean, "low": verdict.low, "high": verdict.high}
    low, high = (None if bound is None else -bound for bound in (verdict.high, verdict.low))
    return {"mean": -verdict.mean, "low": low, "high": high}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other point beats: one that costs no more, is no worse, and differs.

    Args:
        points: (cost, quality) of each candidate; lower cost and higher quality are better.
    Returns:
        Indices into ``points``, by rising cost; equal points are all kept.
    Raises:
        ValueError: a coordinate is not finite.
    """
    for index, point in enumerate(points):
        if not all(map(math.isfinite, point)):
            raise ValueError(f"points[{index}]: expected finite cost and quality, got {point}")
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front
