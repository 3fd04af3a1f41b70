"""The statistics of a study: a summary over seeds, paired comparisons by the verdict rule, the Pareto front, what distillation moved."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any, Literal

import numpy as np

from preceptor.core.optional import require
from preceptor.metrics.fidelity import kappa, same_answer, trace_fidelity
from preceptor.miniature.claim import Arms, Claim, Verdict, decide, holm, t_interval


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


def ranks(arms: Arms, metric: str, direction: Literal["higher", "lower"]) -> dict[str, dict[str, float | None]]:
    """Mean rank of every arm over the seeds, with its 95 % Student t interval; 1 is best, equals share the mean of their ranks.

    Args:
        arms: arm -> seed -> metric -> value, all with the same seeds.
        metric: which.
        direction: which way is better.
    Returns:
        arm -> ``{"mean", "low", "high"}``; low and high are None with one seed.
    """
    sign = -1 if direction == "higher" else 1
    found: dict[str, list[float]] = {name: [] for name in arms}
    for seed in next(iter(arms.values())):
        values = {name: sign * by_seed[seed][metric] for name, by_seed in arms.items()}
        for name, value in values.items():
            better, equal = (sum(other < value for other in values.values()), sum(other == value for other in values.values()))
            found[name].append(better + (equal + 1) / 2)
    return {name: dict(zip(("mean", "low", "high"), t_interval(places), strict=True)) for name, places in found.items()}


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


Row = Mapping[str, Any]

_CELL = ("task", "student", "size", "teacher", "loss", "temperature", "noise")
_PAIRS = (("size", "gain", "student"), ("teacher_accuracy", "gain", "teacher"), ("agreement", "accuracy", ""), ("fidelity", "accuracy", ""))


def kd_study(table: Sequence[Row]) -> dict[str, Any]:
    """Accuracy, agreement and fidelity over a grid of students, teachers, losses and tasks, and what goes with what.

    Ramesh et al. 2025 (arXiv:2505.15442). Deviations: gains are averaged for each student (each teacher) before they are correlated with
    its size (accuracy), since cells that share a model are no independent evidence; p-values of fewer than 8 points are exact; the t-test
    pairs students and tasks, not seeds; Holm's adjustment over all tests.

    Args:
        table: one row for each answer of a model, with ``item``, ``task``, ``student`` (who answered), ``size`` (a number), ``teacher``,
            ``loss``, ``temperature``, ``noise``, ``correct`` (bool), ``answer`` (None: it could not be read) and ``trace`` (the reasoning
            without the answer). ``teacher`` is None for a model that had none: each student before distillation or trained without,
            and each teacher, once for every item.
    Returns:
        ``cells``, one entry for each task, student, teacher, loss, temperature and noise: these, ``items``, ``unread`` (share of
        answers), ``accuracy``, ``gain`` (less that without a teacher), ``relative_gain``, ``teacher_accuracy``, ``agreement``, the same
        where the teacher is right and wrong (``agreement_right``, ``agreement_wrong``), ``kappa`` and ``fidelity``.
        ``correlations``, of Spearman, one entry for each task and pair: ``task``, ``x``, ``y``, ``value``, ``p_value``, ``p_holm``, ``n``.
        ``tests``: the paired t-test "with a teacher against none" (``value`` is t, ``effect`` the mean gain over its standard deviation)
        and the one-way analysis of variance "gain by loss" (F, and the share of the variance that the losses explain).
        What is undefined is NaN, with the ``reason``, "" elsewhere.
    Raises:
        ImportError: scipy is missing (one line says what to install).
        ValueError: no row with a teacher, a student or a teacher without rows of its own in a task, or an item that the teacher has not
            answered once.
    """
    groups: defaultdict[tuple[Any, ...], list[Row]] = defaultdict(list)
    alone: defaultdict[tuple[Any, Any], list[Row]] = defaultdict(list)
    for row in table:
        if row["teacher"] is None:
            alone[row["task"], row["student"]].append(row)
        else:
            groups[tuple(row[column] for column in _CELL)].append(row)
    if not groups:
        raise ValueError("table: expected rows with a teacher, got none")
    cells = [_cell(dict(zip(_CELL, key, strict=True)), rows, alone) for key, rows in groups.items()]
    correlations = []
    for task in dict.fromkeys(cell["task"] for cell in cells):
        here = [cell for cell in cells if cell["task"] == task]
        for x, y, unit in _PAIRS:
            points = list(_averaged(here, unit, (x, y)).values()) if unit else [(cell[x], cell[y]) for cell in here]
            correlations.append({"task": task, "x": x, "y": y, **_spearman(points)})
    tests = [
        {"name": "with a teacher against none", **_paired_t(_averaged(cells, ("task", "student"), ("gain",)).values())},
        {"name": "gain by loss", **_variance(cells)},
    ]
    defined = [entry for entry in (*correlations, *tests) if not entry["reason"]]
    for entry, p_holm in zip(defined, holm([entry["p_value"] for entry in defined]), strict=True):
        entry["p_holm"] = p_holm
    return {"cells": cells, "correlations": correlations, "tests": tests}


def _cell(key: dict[str, Any], rows: Sequence[Row], alone: Mapping[tuple[Any, Any], Sequence[Row]]) -> dict[str, Any]:
    """One entry of ``cells``."""
    for who in ("student", "teacher"):
        if (key["task"], key[who]) not in alone:
            raise ValueError(f"table: expected rows of {who} {key[who]!r} without a teacher on task {key['task']!r}, got none")
    by_item: defaultdict[Any, list[Row]] = defaultdict(list)
    for row in alone[key["task"], key["teacher"]]:
        by_item[row["item"]].append(row)
    for row in rows:
        if len(by_item[row["item"]]) != 1:
            raise ValueError(
                f"table: expected one answer of teacher {key['teacher']!r} to item {row['item']!r} of task {key['task']!r}, got"
                f" {len(by_item[row['item']])}"
            )
    given = [by_item[row["item"]][0] for row in rows]
    answers, known = [row["answer"] for row in rows], [row["answer"] for row in given]
    same = same_answer(answers, known).tolist()
    right = [bool(row["correct"]) for row in given]
    accuracy = fmean(row["correct"] for row in rows)
    before = fmean(row["correct"] for row in alone[key["task"], key["student"]])
    return {
        **key,
        "items": len(rows),
        "unread": answers.count(None) / len(rows),
        "accuracy": accuracy,
        "gain": accuracy - before,
        "relative_gain": (accuracy - before) / before if before else math.nan,
        "teacher_accuracy": fmean(row["correct"] for row in alone[key["task"], key["teacher"]]),
        "agreement": fmean(same),
        "agreement_right": _mean([one for one, yes in zip(same, right, strict=True) if yes]),
        "agreement_wrong": _mean([one for one, yes in zip(same, right, strict=True) if not yes]),
        "kappa": kappa(answers, known),
        "fidelity": float(trace_fidelity([row["trace"] for row in rows], [row["trace"] for row in given]).mean()),
    }


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _averaged(cells: Sequence[Row], unit: str | tuple[str, ...], columns: Sequence[str]) -> dict[Any, tuple[float, ...]]:
    """Means of some columns over the cells of each unit."""
    groups: defaultdict[Any, list[Row]] = defaultdict(list)
    for cell in cells:
        groups[cell[unit] if isinstance(unit, str) else tuple(cell[column] for column in unit)].append(cell)
    return {key: tuple(fmean(cell[column] for cell in group) for column in columns) for key, group in groups.items()}


def _undefined(n: int, reason: str) -> dict[str, Any]:
    return {"value": math.nan, "p_value": math.nan, "p_holm": math.nan, "effect": math.nan, "n": n, "reason": reason}


def _spearman(points: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    """Rank correlation of points (x, y); its effect is itself."""
    if len(points) < 3:
        return _undefined(len(points), "fewer than 3 points")
    columns = np.array(points).T.round(12)  # values that only rounding parts share a rank
    if (np.ptp(columns, axis=1) == 0).any():
        return _undefined(len(points), "all values are equal")
    stats = require("scipy.stats", extra="study", purpose="the statistics of a study")
    x, y = stats.rankdata(columns, axis=1)
    value, p_value = stats.pearsonr(x, y)
    if len(points) < 8:
        p_value = stats.permutation_test((x,), lambda x, axis: (x * y).sum(axis), permutation_type="pairings", vectorized=True).pvalue
    return {**_undefined(len(points), ""), "value": float(value), "p_value": float(p_value), "effect": float(value)}


def _paired_t(gains: Iterable[tuple[float, ...]]) -> dict[str, Any]:
    """The t-test of gains against 0."""
    values = [gain for (gain,) in gains]
    if len(values) < 3:
        return _undefined(len(values), "fewer than 3 pairs of student and task")
    spread = float(np.std(values, ddof=1))
    if spread < 1e-12:
        return _undefined(len(values), "all gains are equal")
    found = require("scipy.stats", extra="study", purpose="the statistics of a study").ttest_1samp(values, 0.0)
    known = {"value": float(found.statistic), "p_value": float(found.pvalue), "effect": fmean(values) / spread}
    return {**_undefined(len(values), ""), **known}


def _variance(cells: Sequence[Row]) -> dict[str, Any]:
    """One-way analysis of variance of the gains by loss."""
    groups = [np.array([cell["gain"] for cell in cells if cell["loss"] == loss]) for loss in dict.fromkeys(cell["loss"] for cell in cells)]
    if len(groups) < 2 or min(map(len, groups)) < 2:
        return _undefined(len(cells), "fewer than 2 losses of 2 cells each")
    values = np.concatenate(groups)
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    total = float(((values - values.mean()) ** 2).sum())
    if within < 1e-12:
        return _undefined(len(cells), "all gains of a loss are equal")
    found = require("scipy.stats", extra="study", purpose="the statistics of a study").f_oneway(*groups)
    known = {"value": float(found.statistic), "p_value": float(found.pvalue), "effect": 1 - within / total}
    return {**_undefined(len(cells), ""), **known}
