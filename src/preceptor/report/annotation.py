"""The result of labelling comments by a rubric: a dictionary for ``result.json``, a page, and lines for a terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from preceptor.core.files import write_whole
from preceptor.education.agreement import MISSING
from preceptor.education.annotate import Annotation, Comments
from preceptor.education.reliability import Line, Reliability, regression, reliability
from preceptor.education.rubric import Rubric
from preceptor.report.frame import frame
from preceptor.report.numbers import join
from preceptor.report.sheet import between, charts, chip, escape, facts, figure, money, now, number, table
from preceptor.report.svg import GREY, INK, SERIES, svg_axes

TONES = {"scale": "good", "do not scale": "bad", "undetermined": "calm"}
SHOWN = 12  # comments that are shown in full, of the disagreements and of the failures


def annotation_result(
    comments: Comments, rubric: Rubric, annotation: Annotation, *, model: str, style: str, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Everything that the page says.

    Args:
        comments: N texts with people's labels, if any.
        rubric: C categories.
        annotation: of ``comments``.
        model: who labelled.
        style: of the prompts.
        draws: of the bootstrap.
        seed: of the draws.
    """
    categories, points = [], []
    for place, category in enumerate(rubric.categories):
        labels = annotation.labels[:, place]
        people = {name: given[:, place] for name, given in comments.people.items() if (given[:, place] != MISSING).any()}
        found = reliability(people, labels, draws=draws, seed=seed) if people else None
        if found:
            points += [(category.name, name, found.human_human.value, one.kappa.value) for name, one in found.model.items()]
        categories.append(
            {
                "name": category.name,
                "statement": category.statement,
                "version": rubric.version(category, style),
                "labelled": int((labels != MISSING).sum()),
                "positive": int((labels == 1).sum()),
                "people": {name: float((given == 1).sum() / (given != MISSING).sum()) for name, given in people.items()},
                "reliability": None if found is None else _plain(found),
            }
        )
    tries = [len(one) for row in annotation.answers for one in row]
    cost, tokens, total = annotation.cost(), annotation.tokens(), len(comments.ids)
    return {
        "kind": "annotation",
        "title": f"Labels of {total} comments in {len(categories)} {'category' if len(categories) == 1 else 'categories'}",
        "created": now(),
        "model": model,
        "style": style,
        "comments": total,
        "people": list(comments.people),
        "categories": categories,
        "line": asdict(_line(points)),
        "points": [{"category": name, "person": person, "people": x, "model": y} for name, person, x, y in points],
        "cost": {"money": cost, "per_comment": cost / total, "tokens": tokens, "tokens_per_comment": tokens / total},
        "questions": len(tries),
        "asked_again": sum(count > 1 for count in tries),
        "failures": _failures(comments, rubric, annotation),
        "disagreements": _disagreements(comments, rubric, annotation),
        "bootstrap": draws,
    }


def write_annotation(result: Mapping[str, Any], comments: Comments, annotation: Annotation, out: Path) -> Path:
    """Write ``labels.csv`` into a folder, a column for each category with the version of its prompt, and the page ``report.html``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", *(f"{one['name']}@{one['version']}" for one in result["categories"])])
    for key, row in zip(comments.ids, annotation.labels.tolist(), strict=True):
        writer.writerow([key, *("" if value == MISSING else value for value in row)])
    write_whole(out / "labels.csv", text.getvalue())
    return write_whole(out / "report.html", render(result))


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What a terminal shows."""
    for one in result["categories"]:
        found, words = one["reliability"], f"{one['positive']} of {one['labelled']} labelled comments"
        if found:
            kappas = [f"people {number(found['human_human']['value'], '.3f')}"] * bool(found["people"])
            kappas.append(f"people and model {_with_interval(found['human_model'])}")
            words += f"; kappa {', '.join(kappas)}: {found['gate']} ({found['reason']})"
        yield f"{one['name']}: {words}"
    missing = len(result["failures"])
    if missing:
        yield f"without a label: {missing} of {result['questions']}"
    yield f"cost {money(result['cost']['money'])}, {money(result['cost']['per_comment'])} per comment; {result['cost']['tokens']} tokens"


def render(result: Mapping[str, Any]) -> str:
    """The page as HTML text."""
    sentence, tone = _verdict(result)
    return frame(
        title=result["title"],
        kicker=("annotation", result["model"], result["style"]),
        verdict=f"{escape(sentence)}.",
        tone=tone,
        tiles=((escape(big), words) for big, words in _tiles(result)),
        sections=_sections(result),
        created=result["created"],
    )


def _plain(found: Reliability) -> dict[str, Any]:
    """As plain values; pairs of people become ``A and B``."""
    pairs = {" and ".join(names): asdict(one) for names, one in found.people.items()}
    return {**asdict(found), "people": pairs}


def _line(points: Sequence[tuple[str, str, float, float]]) -> Line:
    return regression([x for _, _, x, _ in points], [y for _, _, _, y in points])


def _failures(comments: Comments, rubric: Rubric, annotation: Annotation) -> list[dict[str, str]]:
    return [
        {"id": key, "category": name, "why": why}
        for key, row in zip(comments.ids, annotation.failed, strict=True)
        for name, why in zip(rubric.names, row, strict=True)
        if why
    ]


def _disagreements(comments: Comments, rubric: Rubric, annotation: Annotation) -> list[dict[str, Any]]:
    """Comments on which all people agree and the model does not, by category in turn."""
    queues: list[list[dict[str, Any]]] = []
    for place, name in enumerate(rubric.names):
        given = np.stack([labels[:, place] for labels in comments.people.values()], 1) if comments.people else np.zeros((0, 0))
        model = annotation.labels[:, place]
        rows = [
            i
            for i, row in enumerate(given)
            if len(said := set(row[row != MISSING].tolist())) == 1 and model[i] != MISSING and model[i] not in said
        ]
        queues.append(
            [{"id": comments.ids[i], "text": comments.texts[i][:400], "category": name, "model": int(model[i])} for i in rows[:SHOWN]]
        )
    longest = max(map(len, queues), default=0)
    return [queue[i] for i in range(longest) for queue in queues if i < len(queue)][:SHOWN]


def _verdict(result: Mapping[str, Any]) -> tuple[str, str]:
    gates = {one["name"]: one["reliability"]["gate"] for one in result["categories"] if one["reliability"]}
    by = {gate: [name for name, found in gates.items() if found == gate] for gate in TONES}
    if not gates:
        return f"{result['model']} labelled {result['comments']} comments; nobody's labels to compare with were given", "calm"
    if by["scale"]:
        rest = f"; not {join(by['do not scale'], 'or')}" if by["do not scale"] else ""
        unknown = f"; {join(by['undetermined'])} cannot be judged from this sample" if by["undetermined"] else ""
        return f"{result['model']} can be left to label {join(by['scale'])}{rest}{unknown}", "good"
    if by["do not scale"]:
        unknown = f"; {join(by['undetermined'])} cannot be judged from this sample" if by["undetermined"] else ""
        return f"{result['model']} should not be left to label {join(by['do not scale'], 'or')}{unknown}", "bad"
    return f"No category can be judged from this sample: {result['categories'][0]['reliability']['reason']}", "calm"


def _tiles(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    found = [one["reliability"] for one in result["categories"] if one["reliability"]]
    if found:
        for key, words in (("human_model", "people and model"), ("human_human", "two people")):
            values = [one[key]["value"] for one in found if math.isfinite(one[key]["value"])]
            if values:
                yield number(float(np.mean(values)), ".2f"), f"mean kappa of {words}, over {len(values)} categories"
        yield f"{sum(one['gate'] == 'scale' for one in found)} of {len(found)}", "categories pass the gate"
    yield money(result["cost"]["per_comment"]), f"per comment; {money(result['cost']['money'])} in all, in the unit of the prices"
    yield f"{result['cost']['tokens_per_comment']:,.0f}", "tokens per comment, read and written"
    missing = len(result["failures"])
    yield f"{100 * missing / result['questions']:.3g} %", f"without a label: {missing} of {result['questions']} questions"


def _sections(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Agreement", _agreement(result)
    yield "Pictures", charts(list(_figures(result)))
    yield "Labels", _labels(result)
    yield "Where people agree and the model does not", _gallery(result)
    yield "Without a label", _missing(result)
    yield "Pairs of raters", _pairs(result)
    yield (
        "How this was made",
        facts(
            [
                ("Model", result["model"]),
                ("Style", result["style"]),
                ("People", ", ".join(result["people"])),
                ("Questions", f"{result['questions']}, {result['asked_again']} asked again"),
                ("Intervals", f"95 %, percentiles of {result['bootstrap']} draws of the comments"),
            ]
        ),
    )


def _agreement(result: Mapping[str, Any]) -> str:
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
        "Cohen's kappa, means over pairs, with 95 % intervals. The gate: people agree to 0.7, and the model to 0.7 times the lower end of"
        " their interval. A model that agrees less where people agree less shares their difficulties; it need not understand."
    )
    return f"{table('Agreement', head, rows, words=['Gate'])}<p class=note>{note}</p>" if rows else ""


def _cell(estimate: Mapping[str, float]) -> str:
    return between(estimate["value"], estimate["low"], estimate["high"], ".3f")


def _figures(result: Mapping[str, Any]) -> Iterator[str]:
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
    yield figure("How common each category is", svg[0], "Bars: the model, of what it labelled." + " Crosses: people." * bool(rated))


def _labels(result: Mapping[str, Any]) -> str:
    rows = [
        (
            escape(one["name"]),
            [escape(one["statement"]), str(one["positive"]), str(one["labelled"]), f"<small>{escape(one['version'])}</small>"],
        )
        for one in result["categories"]
    ]
    return table("Labels", ["Category", "Statement", "True", "Labelled", "Prompt"], rows, words=["Statement", "Prompt"])


def _gallery(result: Mapping[str, Any]) -> str:
    items = "".join(
        f"<li><b>{escape(one['category'])}</b>{escape(one['text'])}<small>people {1 - one['model']}, model {one['model']};"
        f" id {escape(one['id'])}</small></li>"
        for one in result["disagreements"]
    )
    return f'<ul class="gallery">{items}</ul>' if items else ""


def _missing(result: Mapping[str, Any]) -> str:
    rows = [(escape(one["id"]), [escape(one["category"]), escape(one["why"])]) for one in result["failures"][:SHOWN]]
    more = len(result["failures"]) - len(rows)
    note = f"<p class=note>And {more} more, see result.json.</p>" if more else ""
    return table("Without a label", ["Comment", "Category", "Why"], rows, words=["Category", "Why"]) + note if rows else ""


def _pairs(result: Mapping[str, Any]) -> str:
    rows = []
    for one in result["categories"]:
        found = one["reliability"]
        if found:
            named = {**found["people"], **{f"{person} and model": pair for person, pair in found["model"].items()}}
            for place, (names, pair) in enumerate(named.items()):
                shares = ", ".join(f"{100 * share[1]:.1f} %" for share in pair["shares"])
                cells = [escape(names), _cell(pair["kappa"]), number(pair["observed"], ".3f"), number(pair["pabak"], ".3f")]
                rows.append((escape(one["name"]) if place == 0 else "", [*cells, str(pair["items"]), shares]))
    head = ["Category", "Raters", "Kappa", "Equal labels", "PABAK", "Comments", "Positives"]
    note = "PABAK is what kappa would be if both categories were equally common; where the two differ much, the category is rare."
    whole = f"{table('Pairs', head, rows, words=['Raters'])}<p class=note>{note}</p>" if rows else ""
    return f"<details><summary>Show all pairs</summary>{whole}</details>" if whole else ""


def _with_interval(estimate: Mapping[str, float]) -> str:
    if not math.isfinite(estimate["low"]):
        return number(estimate["value"], ".3f")
    return f"{number(estimate['value'], '.3f')} ({number(estimate['low'], '.3f')} to {number(estimate['high'], '.3f')})"
