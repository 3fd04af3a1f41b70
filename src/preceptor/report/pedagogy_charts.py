"""The charts of a multiple-choice test: accuracies, habits of position, the frontier of cost and accuracy, and how it moved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from preceptor.education.scoring import OVERALL
from preceptor.report.numbers import count
from preceptor.report.sheet import figure, money
from preceptor.report.svg import GREY, INK, SERIES, svg_axes

COSTS = {
    "input": "Price per million tokens read",
    "blend": "Price per million tokens, 80 % read and 20 % written",
    "run": "Cost of this test",
    "parameters": "Parameters",
}
"""What the frontier may take for cost."""


def cost_text(basis: str, value: float) -> str:
    """A cost in words: money, or a number of parameters."""
    return f"{count(value)} parameters" if basis == "parameters" else money(value)


def figures(result: Mapping[str, Any]) -> Iterator[str]:
    """Accuracies, habits of position, and where there are prices and dates the frontier, all as HTML figures."""
    models = result["models"]
    with svg_axes("Accuracy", height=max(2.2, 0.36 * len(models) + 1)) as (axes, svg):
        for place, one in enumerate(reversed(models)):
            total = one["scores"][OVERALL]
            axes.plot([total["low"], total["high"]], [place] * 2, color=SERIES[0], linewidth=1.6)
            axes.plot(total["accuracy"], place, color=SERIES[0], marker="o")
        axes.axvline(models[0]["scores"][OVERALL]["chance"], color=INK, linewidth=0.8, linestyle="--")
        axes.set_yticks(range(len(models)), [_short(one["name"]) for one in reversed(models)])
        axes.set(xlabel="Right (%)", ylim=(-0.6, len(models) - 0.4), xlim=(0, 100))
    yield figure("Overall", svg[0], "Lines: 95 % intervals. Dashed: guessing.")
    yield _letters(result)
    known = [point for point in result["points"] if math.isfinite(point["cost"]) and math.isfinite(point["accuracy"])]
    if len(known) > 1:
        yield _frontier(result, known)
    if len(result["progress"]) > 1:
        yield _over_time(result)


def _letters(result: Mapping[str, Any]) -> str:
    expected, models = result["expected_letters"], result["models"][:6]
    names = sorted({*expected, *(name for one in models for name in one["letters"] if name != "none")})
    total = sum(expected.values()) or 1
    with svg_axes("Letters", height=2.7) as (axes, svg):
        axes.bar(range(len(names)), [100 * expected.get(name, 0) / total for name in names], color=GREY, alpha=0.35, width=0.8)
        for place, one in enumerate(models):
            asked = sum(one["letters"].values())
            shares = [100 * one["letters"].get(name, 0) / asked for name in names]
            at = [i + (place - (len(models) - 1) / 2) * 0.12 for i in range(len(names))]
            axes.plot(at, shares, color=SERIES[place], marker="os^Dv*"[place], linestyle="none", label=_short(one["name"]))
        axes.set_xticks(range(len(names)), names)
        axes.set(ylabel="Answers (%)", xlabel="Letter", ylim=(0, None))
        axes.legend(frameon=False, fontsize=8)
    return figure("Habits of position", svg[0], "Bars: how often each letter is right. Far from its bar, a model chooses by position.")


def _frontier(result: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> str:
    floor = min((point["cost"] for point in known if point["cost"] > 0), default=1.0) / 3  # where a price of 0 stands on the axis
    with svg_axes("Frontier", height=3.0) as (axes, svg):
        for here, colour, marker in ((False, GREY, "X"), (True, SERIES[0], "o")):
            chosen = [point for point in known if point["here"] == here]
            axes.plot(
                [max(p["cost"], floor) for p in chosen], [p["accuracy"] for p in chosen], color=colour, marker=marker, linestyle="none"
            )
        cost = [max(point["cost"], floor) for point in result["frontier"]]
        best = [point["accuracy"] for point in result["frontier"]]
        end = 1.5 * max(max(point["cost"], floor) for point in known)
        axes.step([*cost, end], [*best, best[-1]], where="post", color=INK, linewidth=1.2)
        for point in result["frontier"][-4:]:
            axes.annotate(
                _short(point["name"]), (max(point["cost"], floor), point["accuracy"]), (3, 4), textcoords="offset points", fontsize=7.5
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1000 else count(value))
        axes.set(xlabel=COSTS[result["basis"]], ylabel="Right (%)")
    zero = " A price of 0 stands at the left end." if any(point["cost"] == 0 for point in known) else ""
    words = "The line is the best accuracy for a price." + " Crosses were measured elsewhere." * any(not p["here"] for p in known)
    return figure("Cost and accuracy", svg[0], words + zero)


def _over_time(result: Mapping[str, Any]) -> str:
    dates, values = zip(*((one["date"], one["value"]) for one in result["progress"]), strict=True)
    with svg_axes("Over time", height=2.7) as (axes, svg):
        at = [_year(date) for date in dates]
        axes.step(at, values, where="post", color=SERIES[0], linewidth=1.6, marker="o")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}" if value % 1 < 1e-6 else "")
        axes.set_xticks(range(math.floor(at[0]), math.ceil(at[-1]) + 1))
        axes.set(xlabel="Released by (start of year)", ylabel="Best (%)", xlim=(at[0] - 0.1, at[-1] + 0.1))
    return figure(
        "The frontier over time",
        svg[0],
        f"The best accuracy for at most {cost_text(result['basis'], result['at_cost'])}, of the models out by then.",
    )


def _year(date: str) -> float:
    year, month, *day = map(int, date.split("-"))
    return year + (month - 1) / 12 + (day[0] - 1 if day else 0) / 365


def _short(name: str) -> str:
    plain = name.partition("@")[0]
    return plain if len(plain) <= 22 else f"{plain[:21]}…"
