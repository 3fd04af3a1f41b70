"""The tables and charts of a page about labels: agreement, labels, disagreements, the student."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from preceptor.report.sheet import between, chip, escape, figure, number, table
from preceptor.report.svg import GREY, INK, SERIES, svg_axes

TONES = {"scale": "good", "do not scale": "bad", "undetermined": "calm"}
SHOWN = 12  # comments that are shown in full, of the disagreements and of the failures


def counts(category: Mapping[str, Any]) -> str:
    """How often each level was chosen; "" without levels."""
    return ", ".join(f"{level} {count}" for level, count in category["levels"].items())


def with_interval(estimate: Mapping[str, float]) -> str:
    """A number and its interval as text."""
    if not math.isfinite(estimate["low"]):
        return number(estimate["value"], ".3f")
    return f"{number(estimate['value'], '.3f')} ({number(estimate['low'], '.3f')} to {number(estimate['high'], '.3f')})"


def agreement(result: Mapping[str, Any]) -> str:
    """Kappas of every category, and the gate."""
    rows = []
    for one in result["categories"]:
        found = one["reliability"]
        if found:
            gate = f"{chip(found['gate'], TONES[found['gate']])}<small>{escape(found['reason'])}</small>"
            items = [pair["items"] for pair in found["model"].values()]
            rows.append(
                (
                    escape(one["name"]),
                    [_cell(found["human_human"]), _cell(found["human_model"]), str(max(items)), str(found["positives"]), gate],
                )
            )
    head = ["Category", "Kappa of people", "Kappa of people and model", "Comments", "Fewest positives", "Gate"]
    note = (
        "Cohen's kappa, means over pairs, with 95 % intervals. The gate asks people to agree, and the model to reach a share of the lower"
        " end of their interval; beside it stands what was needed. Of levels kappa is weighted, and positives are labels other than the"
        " commonest. A model that agrees less where people agree less shares their difficulties; it need not understand."
    )
    return f"{table('Agreement', head, rows, words=['Gate'])}<p class=note>{note}</p>" if rows else ""


def _cell(estimate: Mapping[str, float]) -> str:
    return between(estimate["value"], estimate["low"], estimate["high"], ".3f")


def figures(result: Mapping[str, Any]) -> Iterator[str]:
    """Kappas by category and against each other, and how common each category is."""
    rated = [one for one in result["categories"] if one["reliability"]]
    if rated:
        with svg_axes("Kappas", height=max(2.2, 0.42 * len(rated) + 1)) as (axes, svg):
            for offset, colour, marker, key in ((0.14, GREY, "X", "human_human"), (-0.14, SERIES[0], "o", "human_model")):
                for place, one in enumerate(reversed(rated)):
                    found = one["reliability"][key]
                    if math.isfinite(found["value"]):
                        axes.plot(found["value"], place + offset, color=colour, marker=marker, linestyle="none")
                        if math.isfinite(found["low"]):
                            axes.plot([found["low"], found["high"]], [place + offset] * 2, color=colour, linewidth=1.6)
            axes.axvline(0, color=INK, linewidth=0.8)
            axes.set_yticks(range(len(rated)), [one["name"] for one in reversed(rated)])
            axes.set(xlabel="Kappa", ylim=(-0.6, len(rated) - 0.4))
            axes.set_xlim(right=1.02)
        yield figure("Agreement by category", svg[0], "Crosses: two people. Dots: people and model. Lines: 95 % intervals.")
    points = [(one["people"], one["model"]) for one in result["points"] if math.isfinite(one["people"]) and math.isfinite(one["model"])]
    if len(points) > 2:
        line = result["line"]
        with svg_axes("Kappas against each other", height=3.0) as (axes, svg):
            x = np.array([one for one, _ in points])
            axes.plot(x, [one for _, one in points], color=SERIES[0], marker="o", linestyle="none")
            ends = np.array([x.min(), x.max()])
            if math.isfinite(line["slope"]):
                axes.plot(ends, line["intercept"] + line["slope"] * ends, color=INK, linewidth=1.2, linestyle="--")
            axes.set(xlabel="Kappa of people", ylabel="Kappa of a person and the model")
        words = (
            f"One dot per person and category; the line has slope {number(line['slope'], '.2f')}, r = {number(line['correlation'], '.2f')}."
        )
        yield figure("Does the model agree where people do?", svg[0], words)
    with svg_axes("Share of positives", height=max(2.2, 0.42 * len(result["categories"]) + 1)) as (axes, svg):
        for place, one in enumerate(reversed(result["categories"])):
            if one["labelled"]:
                axes.barh(place, 100 * one["positive"] / one["labelled"], color=SERIES[0], alpha=0.55, height=0.6)
            axes.plot(
                [100 * share for share in one["people"].values()], [place] * len(one["people"]), color=GREY, marker="X", linestyle="none"
            )
        axes.set_yticks(range(len(result["categories"])), [one["name"] for one in reversed(result["categories"])])
        axes.set_xlabel("Comments with the label (%)")
        axes.set_xlim(left=0)
    yield figure(
        "How common each category is", svg[0], "Bars: the model, of what it labelled." + " Crosses: people." * bool(rated) + _above(result)
    )


def labels(result: Mapping[str, Any]) -> str:
    """What was asked, and how often it was so."""
    rows = [
        (
            escape(one["name"]),
            [
                escape(one["statement"]),
                escape(counts(one) or one["positive"]),
                str(one["labelled"]),
                f"<small>{escape(one['version'])}</small>",
            ],
        )
        for one in result["categories"]
    ]
    return table("Labels", ["Category", "Statement", "Positive", "Labelled", "Prompt"], rows, words=["Statement", "Prompt"])


def _above(result: Mapping[str, Any]) -> str:
    return " Of levels: those above the lowest." * any(one["levels"] for one in result["categories"])


def student(result: Mapping[str, Any]) -> str:
    """A student's kappas beside the model's."""
    if not result["student"]:
        return ""
    rows = []
    for one, model in zip(result["student"]["categories"], result["categories"], strict=True):
        kappas = [_cell(found["human_model"]) if found else "–" for found in (model["reliability"], one["reliability"])]
        rows.append((escape(one["name"]), [number(one["weight"], ".3f"), *kappas]))
    note = (
        f"It learned from the model's labels of {result['student']['learned_from']:,} comments that no person labelled. A category counted"
        " with the kappa of people and model, and not where that is 0 or not known. Both are compared with people on the other comments."
    )
    head = ["Category", "Weight", "Kappa of people and model", "Kappa of people and student"]
    return f"{table('Student', head, rows)}<p class=note>{note}</p>"


def gallery(result: Mapping[str, Any]) -> str:
    """Comments on which people agree and the model does not."""
    items = "".join(
        f"<li><b>{escape(one['category'])}</b>{escape(one['text'])}<small>people {escape(one['people'])}, model {escape(one['model'])};"
        f" id {escape(one['id'])}</small></li>"
        for one in result["disagreements"]
    )
    return f'<ul class="gallery">{items}</ul>' if items else ""


def missing(result: Mapping[str, Any]) -> str:
    """Questions without a label, and why."""
    rows = [(escape(one["id"]), [escape(one["category"]), escape(one["why"])]) for one in result["failures"][:SHOWN]]
    more = len(result["failures"]) - len(rows)
    note = f"<p class=note>And {more} more, see result.json.</p>" if more else ""
    return table("Without a label", ["Comment", "Category", "Why"], rows, words=["Category", "Why"]) + note if rows else ""


def pairs(result: Mapping[str, Any]) -> str:
    """Every pair of raters, folded away."""
    rows = []
    for one in result["categories"]:
        found = one["reliability"]
        if found:
            named = {**found["people"], **{f"{person} and model": pair for person, pair in found["model"].items()}}
            for place, (names, pair) in enumerate(named.items()):
                shares = ", ".join(f"{100 * sum(share[1:]):.1f} %" for share in pair["shares"])
                cells = [escape(names), _cell(pair["kappa"]), number(pair["observed"], ".3f"), number(pair["pabak"], ".3f")]
                rows.append((escape(one["name"]) if place == 0 else "", [*cells, str(pair["items"]), shares]))
    head = ["Category", "Raters", "Kappa", "Equal labels", "PABAK", "Comments", "Positives"]
    note = "PABAK is what kappa would be if both categories were equally common; where the two differ much, the category is rare."
    whole = f"{table('Pairs', head, rows, words=['Raters'])}<p class=note>{note}</p>" if rows else ""
    return f"<details><summary>Show all pairs</summary>{whole}</details>" if whole else ""
