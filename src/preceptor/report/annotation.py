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
from preceptor.education.annotate import Annotation
from preceptor.education.comments import Comments
from preceptor.education.label_student import Distilled
from preceptor.education.reliability import Line, Reliability, regression
from preceptor.education.rubric import Category, Rubric
from preceptor.report.annotation_parts import (
    SHOWN,
    TONES,
    agreement,
    counts,
    figures,
    gallery,
    labels,
    missing,
    pairs,
    student,
    with_interval,
)
from preceptor.report.frame import frame
from preceptor.report.numbers import join
from preceptor.report.sheet import charts, escape, facts, money, now, number


def annotation_result(
    comments: Comments,
    rubric: Rubric,
    annotation: Annotation,
    found: Sequence[Reliability | None],
    *,
    model: str,
    style: str,
    draws: int = 1000,
    student: Distilled | None = None,
) -> dict[str, Any]:
    """Everything that the page says.

    Args:
        comments: N texts with people's labels, if any.
        rubric: C categories.
        annotation: of ``comments``.
        found: agreement with people in each category.
        model: who labelled.
        style: of the prompts.
        draws: of the bootstrap.
        student: who learned from the labels.
    """
    categories, points = [], []
    for place, (category, rated) in enumerate(zip(rubric.categories, found, strict=True)):
        labels = annotation.labels[:, place]
        people = {name: given[:, place] for name, given in comments.people.items() if (given[:, place] != MISSING).any()}
        if rated:
            points += [(category.name, name, rated.human_human.value, one.kappa.value) for name, one in rated.model.items()]
        categories.append(
            {
                "name": category.name,
                "statement": category.statement,
                "version": rubric.version(category, style),
                "labelled": int((labels != MISSING).sum()),
                "positive": int((labels >= 1).sum()),
                "levels": {level: int((labels == code).sum()) for code, level in enumerate(category.levels)},
                "weights": category.weights if category.levels else "",
                "people": {name: float((given >= 1).sum() / (given != MISSING).sum()) for name, given in people.items()},
                "reliability": None if rated is None else _plain(rated),
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
        "student": None if student is None else _student_result(rubric, student),
    }


def write_annotation(result: Mapping[str, Any], comments: Comments, rubric: Rubric, annotation: Annotation, out: Path) -> Path:
    """Write ``labels.csv`` into a folder, a column for each category with the version of its prompt, and the page ``report.html``."""
    versions = [f"{one['name']}@{one['version']}" for one in result["categories"]]
    write_labels(out / "labels.csv", versions, comments.ids, rubric, annotation.labels)
    return write_whole(out / "report.html", render(result))


def write_labels(path: Path, columns: Sequence[str], ids: Sequence[str], rubric: Rubric, labels: np.ndarray) -> Path:
    """Write a CSV file with an id and C columns: 0 and 1, or the words of the levels; nothing for a missing label."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", *columns])
    for key, row in zip(ids, labels.tolist(), strict=True):
        cells = zip(rubric.categories, row, strict=True)
        writer.writerow([key, *("" if code == MISSING else category.labels[code] for category, code in cells)])
    return write_whole(path, text.getvalue())


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What a terminal shows."""
    for one in result["categories"]:
        found, words = one["reliability"], f"{counts(one) or one['positive']} of {one['labelled']} labelled comments"
        if found:
            kappas = [f"people {number(found['human_human']['value'], '.3f')}"] * bool(found["people"])
            kappas.append(f"people and model {with_interval(found['human_model'])}")
            words += f"; kappa {', '.join(kappas)}: {found['gate']} ({found['reason']})"
        yield f"{one['name']}: {words}"
    for one in (result["student"] or {"categories": []})["categories"]:
        if one["weight"] == 0:
            yield f"student, {one['name']}: not learned, nothing shows that the model agrees with people"
        elif one["reliability"]:
            kappa = with_interval(one["reliability"]["human_model"])
            yield f"student, {one['name']}: weight {one['weight']:.3f}; kappa with people {kappa}"
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


def _student_result(rubric: Rubric, student: Distilled) -> dict[str, Any]:
    rows = zip(rubric.names, student.weights.tolist(), student.reliability, strict=True)
    return {
        "learned_from": student.learned_from,
        "categories": [{"name": name, "weight": weight, "reliability": None if one is None else _plain(one)} for name, weight, one in rows],
    }


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
    for place, category in enumerate(rubric.categories):
        given = np.stack([labels[:, place] for labels in comments.people.values()], 1) if comments.people else np.zeros((0, 0))
        model = annotation.labels[:, place]
        rows = [
            (i, said.pop())
            for i, row in enumerate(given)
            if len(said := set(row[row != MISSING].tolist())) == 1 and model[i] != MISSING and model[i] not in said
        ]
        queues.append([_disagreement(comments, category, i, people, int(model[i])) for i, people in rows[:SHOWN]])
    longest = max(map(len, queues), default=0)
    return [queue[i] for i in range(longest) for queue in queues if i < len(queue)][:SHOWN]


def _disagreement(comments: Comments, category: Category, row: int, people: int, model: int) -> dict[str, Any]:
    known = {"id": comments.ids[row], "text": comments.texts[row][:400], "category": category.name}
    return {**known, "people": category.labels[people], "model": category.labels[model]}


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
    yield "Agreement", agreement(result)
    yield "Pictures", charts(list(figures(result)))
    yield "Labels", labels(result)
    yield "A student of these labels", student(result)
    yield "Where people agree and the model does not", gallery(result)
    yield "Without a label", missing(result)
    yield "Pairs of raters", pairs(result)
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
