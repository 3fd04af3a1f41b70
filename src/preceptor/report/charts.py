"""The charts of a report, each drawn from the dictionary of a ``result.json``; a chart without data is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from preceptor.report.numbers import Result, count, finite, headline, join, lookup, measure_of, rows_in_order
from preceptor.report.svg import GREY, INK, PAPER, SERIES, Look, baseline_of, looks, svg_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE_POINTS = 120  # a curve with more is averaged over windows


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart: what it shows, the SVG element, what can be read from it, and the arms in it."""

    title: str
    svg: str
    caption: str
    names: tuple[str, ...]


def _show_units(axes: Axes, result: Result) -> None:
    """Write the vertical axis of the study's metric, in percent where it is a share."""
    measure = headline(result)
    if measure.unit == " %":
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    axes.set_ylabel(measure.label)


def _log_counts(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic horizontal axis with room around the values and readable ticks."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = min(values), max(values)
    room = max(1.35, math.sqrt(4 * low / high))
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 50 else (1.0,)))
    axes.xaxis.set_major_formatter(lambda value, _: count(value))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _numbers(values: Sequence[object] | None) -> np.ndarray:
    return np.array([value if finite(value) else math.nan for value in values or []], dtype=float)


def _windows(values: np.ndarray) -> np.ndarray:
    """Means over at most `CURVE_POINTS` windows."""
    if len(values) <= CURVE_POINTS:
        return values
    return np.array([window.mean() for window in np.array_split(values, CURVE_POINTS)])


Line = tuple[np.ndarray, np.ndarray]


def _draw_lines(axes: Axes, lines: Mapping[str, Sequence[Line]], look: Mapping[str, Look]) -> None:
    """Thin lines per seed, a thick one for their mean where the seeds share their steps."""
    for name, seeds in lines.items():
        colour, several = look[name].colour, len(seeds) > 1
        for x, y in seeds:
            axes.plot(x, y, color=colour, linewidth=0.7 if several else 1.6, alpha=0.45 if several else 1)
        if several and all(np.array_equal(x, seeds[0][0]) for x, _ in seeds):
            mean = np.mean([y for _, y in seeds], axis=0)
            axes.plot(seeds[0][0], mean, color=colour, linewidth=1.6, marker=look[name].marker, markevery=max(1, len(mean) // 6))
    axes.set_xlabel("Step")


def curve_charts(result: Result) -> list[Chart]:
    """Training loss and validation metric against steps, one thin line per seed."""
    look, key, measure = looks(result), result.get("headline_metric") or "accuracy", headline(result)
    losses: dict[str, list[Line]] = {}
    scores: dict[str, list[Line]] = {}
    for curve in result.get("curves") or []:
        name, step, loss = str(curve.get("name")), _numbers(curve.get("step")), _numbers(curve.get("loss"))
        if len(step) == len(loss) and np.isfinite(loss).any():
            losses.setdefault(name, []).append((_windows(step), _windows(loss)))
        valid = [point for point in curve.get("valid") or [] if finite(point.get(key))]
        if valid:
            scores.setdefault(name, []).append((_numbers([p.get("step") for p in valid]), _numbers([p[key] for p in valid])))
    seeds = "thin lines are seeds, the thick line is their mean" if len(result.get("seeds") or []) > 1 else "one line per arm"
    charts = []
    if losses:
        title = "Training loss"
        with svg_axes(title) as (axes, svg):
            _draw_lines(axes, losses, look)
            values = np.concatenate([y[np.isfinite(y)] for lines in losses.values() for _, y in lines])
            if values.min() > 0 and values.max() > 20 * values.min():
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axes.yaxis.set_minor_formatter(lambda value, _: "")
            axes.set_ylabel("Loss")
        smooth = (
            " Averaged over windows of steps." if any(len(curve.get("loss") or []) > CURVE_POINTS for curve in result["curves"]) else ""
        )
        caption = f"{seeds.capitalize()}.{smooth} Each method minimises a loss of its own: compare the shapes, not the heights."
        charts.append(Chart(title=title, svg=svg[0], caption=caption, names=tuple(losses)))
    if scores:
        title = f"Validation {measure.label if measure.label.isupper() else measure.label.lower()}"
        with svg_axes(title) as (axes, svg):
            _draw_lines(axes, scores, look)
            _show_units(axes, result)
        ends = (f"{name} {measure.text(float(np.mean([y[-1] for _, y in lines])))}" for name, lines in scores.items())
        charts.append(Chart(title=title, svg=svg[0], caption=f"{seeds.capitalize()}. At the end: {', '.join(ends)}.", names=tuple(scores)))
    return charts


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value with its interval; without one the ends are the value itself."""

    name: str
    x: float
    mean: float
    low: float
    high: float


def _point(name: object, x: float, mean: float, low: object, high: object) -> Point:
    if finite(low) and finite(high):
        return Point(name=str(name), x=x, mean=mean, low=low, high=high)
    return Point(name=str(name), x=x, mean=mean, low=mean, high=mean)


def _draw_point(axes: Axes, point: Point, look: Look, x: float, *, hollow: bool = False) -> None:
    spread = [[max(0.0, point.mean - point.low)], [max(0.0, point.high - point.mean)]]
    axes.errorbar(
        [x],
        [point.mean],
        yerr=spread if point.high > point.low else None,
        color=look.colour,
        marker=look.marker,
        markersize=8 if look.marker == "*" else 6,
        markerfacecolor=PAPER if hollow else look.colour,
        elinewidth=1.2,
        zorder=3,
    )


def _side_by_side(points: Sequence[Point], step: float) -> Iterator[tuple[Point, float]]:
    """Points with the same x, moved apart on a logarithmic axis by the factor ``step``."""
    for _, group in groupby(sorted(points, key=lambda point: point.x), key=lambda point: point.x):
        same = list(group)
        for place, point in enumerate(same):
            yield point, point.x * step ** (place - (len(same) - 1) / 2)


def sweep_points(result: Result) -> list[Point]:
    """The measured points of the sweep."""
    return [
        _point(p.get("name"), p["value"], p["mean"], p.get("low"), p.get("high"))
        for p in (result.get("sweep") or {}).get("points") or []
        if finite(p.get("mean")) and finite(p.get("value")) and p["value"] > 0
    ]


def standing(point: Point, other: Point | None, sign: int) -> str:
    """``ahead of`` or ``behind`` where the two intervals do not overlap, ``level with`` where they do, "" without two intervals."""
    if other is None or point.name == other.name or point.low == point.high or other.low == other.high:
        return ""
    if point.low <= other.high and other.low <= point.high:
        return "level with"
    return "ahead of" if sign * point.mean > sign * other.mean else "behind"


def sweep_charts(result: Result) -> list[Chart]:
    """The metric against the swept quantity; the marker of a method whose interval overlaps the baseline's is hollow."""
    points, measure, look, baseline = sweep_points(result), headline(result), looks(result), baseline_of(result)
    if not points:
        return []
    names = tuple(dict.fromkeys(point.name for point in points))
    base = {point.x: point for point in points if point.name == baseline}
    places: dict[str, dict[str, list[str]]] = {}
    axis = str((result.get("sweep") or {}).get("axis") or "value")
    title = f"{measure.label} against {axis}"
    with svg_axes(title, height=3.0) as (axes, svg):
        for name in names:
            line = sorted((point for point in points if point.name == name), key=lambda point: point.x)
            axes.plot([p.x for p in line], [p.mean for p in line], color=look[name].colour, linewidth=1.2)
        for point, x in _side_by_side(points, 1.03):
            place = standing(point, base.get(point.x), measure.sign or 1)
            _draw_point(axes, point, look[point.name], x, hollow=place == "level with")
            if place:
                places.setdefault(point.name, {}).setdefault(place, []).append(f"{point.x:,g}")
        _log_counts(axes, [point.x for point in points])
        ticks = sorted({point.x for point in points})
        if len(ticks) <= 8:
            axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_xlabel(axis[:1].upper() + axis[1:])
        _show_units(axes, result)
    caption = "".join(
        f"{name} is {join([f'{place} {baseline} at {join(where)}' for place, where in found.items()])}. " for name, found in places.items()
    )
    rule = "Level (a hollow marker) means that the two 95 % intervals overlap." if places else ""
    return [Chart(title=title, svg=svg[0], caption=caption + rule, names=names)]


def pareto_front(points: Sequence[Point], sign: int) -> list[Point]:
    """The points that no other beats on both x (lower is better) and mean (higher is better for ``sign`` 1, lower for -1), by x."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, -sign * point.mean)):
        if not front or sign * point.mean > sign * front[-1].mean:
            front.append(point)
    return front


def front_charts(result: Result) -> list[Chart]:
    """The metric against parameters and against training time, with the Pareto front ringed."""
    measure, look, charts = headline(result), looks(result), []
    for key, label in (("parameters", "Parameters"), ("train_seconds", "Training time (s)")):
        points = []
        for row in rows_in_order(result):
            x, score = lookup(row, key), lookup(row, measure.key)
            if x and x[0] > 0 and score:
                points.append(_point(row.get("name"), x[0], *score))
        if len(points) < 2:
            continue
        front = pareto_front(points, measure.sign or 1)
        title = f"{measure.label} against {label.removesuffix(' (s)').lower()}"
        with svg_axes(title) as (axes, svg):
            for point, x in _side_by_side(points, 1.09):
                _draw_point(axes, point, look[point.name], x)
                if point in front:
                    axes.plot(
                        [x], [point.mean], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=0.9
                    )
            axes.plot(
                [p.x for p in front], [p.mean for p in front], color=INK, linewidth=0.8, linestyle="--", drawstyle="steps-post", alpha=0.6
            )
            _log_counts(axes, [point.x for point in points])
            axes.set_xlabel(label)
            _show_units(axes, result)
        caption = f"Ringed, joined by the dashed line, is the Pareto front: {join([point.name for point in front])}."
        charts.append(Chart(title=title, svg=svg[0], caption=caption, names=tuple(point.name for point in points)))
    return charts


def reliability_charts(result: Result) -> list[Chart]:
    """One small reliability diagram per arm: accuracy against confidence, with the share of examples per bin along the foot."""
    look, rows, charts = looks(result), {row.get("name"): row for row in rows_in_order(result)}, []
    for curve in result.get("reliability") or []:
        confidence, accuracy, number = (_numbers(curve.get(key)) for key in ("confidence", "accuracy", "count"))
        if len(confidence) != len(accuracy) or not np.isfinite(accuracy).any():
            continue
        name = str(curve.get("name"))
        colour = look[name].colour if name in look else SERIES[0]
        kept = np.isfinite(confidence) & np.isfinite(accuracy)
        with svg_axes(f"Reliability of {name}", width=2.1, height=2.1) as (axes, svg):
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
            if len(number) == len(confidence) and np.nansum(number) > 0:
                share = number[kept] / np.nansum(number)
                axes.bar(confidence[kept], 0.3 * share / share.max(), width=0.04, color=GREY, alpha=0.45)
            axes.plot(confidence[kept], accuracy[kept], color=colour, marker="o", markersize=4, linewidth=1.4)
            axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="Confidence", ylabel="Accuracy")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_ticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
        ece = lookup(rows.get(name, {}), "ece")
        charts.append(Chart(title=name, svg=svg[0], caption=f"ECE {measure_of('ece').text(ece[0])}" if ece else "", names=(name,)))
    return charts
