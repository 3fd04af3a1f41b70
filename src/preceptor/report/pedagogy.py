"""The result of a multiple-choice test of several models: a dictionary for ``result.json``, a page, and lines for a terminal."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from preceptor.core.files import write_whole
from preceptor.education.frontier import Steps, frontier, hypervolume, progress, steps
from preceptor.education.multiple_choice import LETTERS, NONE, Item, Sitting, right, shifts
from preceptor.education.prices import Basis, Offer, offer_of
from preceptor.education.scoring import OVERALL, Group, compare_sittings, letters, score
from preceptor.miniature.claim import holm
from preceptor.report.frame import frame
from preceptor.report.numbers import join
from preceptor.report.pedagogy_charts import cost_text, figures
from preceptor.report.pedagogy_tables import BAD, accuracy, costs, over_time, pairs
from preceptor.report.sheet import charts, escape, facts, money, now, number

GROUP_NAMES: Mapping[Group, tuple[str, str]] = {
    "category": ("category", "categories"),
    "age_group": ("age group", "age groups"),
    "year": ("year", "years"),
}


def pedagogy_result(
    items: Sequence[Item],
    sittings: Sequence[Sitting],
    *,
    source: str,
    order: str,
    parsing: str,
    shots: int,
    by: Group = "category",
    offers: Sequence[Offer] = (),
    basis: Basis = "input",
    at_cost: float = 0.1,
    at_accuracy: float | None = None,
    max_bad: float | None = None,
    left_out: int = 0,
    draws: int = 10000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that the page says.

    Args:
        items: N, the same for all models.
        sittings: one per model.
        source: name of the file.
        order: of the options.
        parsing: of the answers.
        shots: solved examples in each prompt, at most.
        by: what groups the items.
        offers: prices, dates, and accuracies of models measured elsewhere.
        basis: what the frontier takes for cost.
        at_cost: where the frontier is followed over time.
        at_accuracy: percent whose least cost is followed over time.
        max_bad: percent of badly formatted answers from which a model stays out of the frontier; None: none does.
        left_out: items without an answer in the file.
        draws: of the bootstrap of a pair.
        seed: of the draws.
    """
    models = [_model(items, sitting, offer_of(sitting.model, offers), basis, by) for sitting in sittings]
    models.sort(key=lambda one: -one["scores"][OVERALL]["accuracy"])
    pairs = [
        {"first": a.model, "second": b.model, **asdict(compare_sittings(items, a, b, draws=draws, seed=seed))}
        for a, b in combinations(sittings, 2)
    ]
    for pair, p_holm in zip(pairs, holm([pair["p_value"] for pair in pairs]), strict=True):
        pair["p_holm"] = p_holm
    tested = {name.partition("@")[0] for name in (sitting.model for sitting in sittings)}
    points = [
        {
            "name": one["name"],
            "cost": one["cost"],
            "accuracy": one["scores"][OVERALL]["accuracy"],
            "released": one["released"],
            "here": True,
        }
        for one in models
        if max_bad is None or one["scores"][OVERALL]["bad"] < max_bad
    ] + [
        {"name": offer.model, "cost": offer.cost(basis), "accuracy": offer.accuracy, "released": offer.released, "here": False}
        for offer in offers
        if not math.isnan(offer.accuracy) and offer.model.partition("@")[0] not in tested
    ]
    unclear = sum(right(item) == NONE for item in items)
    warnings = [f"{left_out} items of the file have no answer and were left out"] * bool(left_out)
    warnings += [f"{unclear} items name no single right option, so that every answer to them is wrong"] * bool(unclear)
    warnings += [
        f"{one['name']} gave {one['scores'][OVERALL]['bad']:.3g} % badly formatted answers"
        for one in models
        if one["scores"][OVERALL]["bad"] >= BAD
    ]
    warnings += filter(None, (_later(one, items) for one in models))
    return {
        "kind": "pedagogy",
        "title": f"{len(items)} multiple-choice items, {len(models)} {'model' if len(models) == 1 else 'models'}",
        "created": now(),
        "source": source,
        "order": order,
        "parsing": parsing,
        "shots": shots,
        "by": by,
        "items": len(items),
        "categories": [name for name in models[0]["scores"] if name != OVERALL],
        "expected_letters": _expected(items, order),
        "models": models,
        "pairs": pairs,
        "basis": basis,
        **_front(points, at_cost, at_accuracy),
        "warnings": warnings,
    }


def write_pedagogy(result: Mapping[str, Any], items: Sequence[Item], sittings: Sequence[Sitting], out: Path) -> Path:
    """Write ``answers.csv`` into a folder, one line per model, item and order of the options, and the page ``report.html``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "id", "category", "shift", "letter", "option", "right", "said"])
    for sitting in sittings:
        for item, chosen, places, answers in zip(items, sitting.chosen, sitting.places, sitting.answers, strict=True):
            for shift, (option, place, answer) in enumerate(zip(chosen, places, answers, strict=True)):
                letter = "" if place == NONE else LETTERS[place]
                said = answer.failed or " ".join(answer.text.split())[:200]
                known = "" if option == NONE else LETTERS[option]
                writer.writerow([sitting.model, item.id, item.category, shift, letter, known, int(option == right(item) != NONE), said])
    write_whole(out / "answers.csv", text.getvalue())
    return write_whole(out / "report.html", render(result))


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What a terminal shows."""
    for one in result["models"]:
        total = one["scores"][OVERALL]
        yield (
            f"{one['name']}: {total['accuracy']:.1f} % ({total['low']:.1f} to {total['high']:.1f}), {total['bad']:.1f} % badly formatted,"
            f" chance {total['chance']:.1f} %, cost {money(one['spent'])}"
        )
        if result["order"] == "given" and not math.isnan(total["balanced"]):
            yield f"{one['name']}: {total['balanced']:.1f} % if every letter were right equally often"
    for pair in result["pairs"]:
        yield f"{pair['first']} - {pair['second']}: {_points(pair)}, p = {pair['p_value']:.2g} (Holm {pair['p_holm']:.2g})"
    for step in result["frontier"]:
        yield f"on the frontier: {step['name']}, {step['accuracy']:.1f} % for {cost_text(result['basis'], step['cost'])}"
    for warning in result["warnings"]:
        yield f"warning: {warning}"


def render(result: Mapping[str, Any]) -> str:
    """The page as HTML text."""
    sentence, tone = _verdict(result)
    return frame(
        title=result["title"],
        kicker=("pedagogy", result["source"], result["parsing"]),
        verdict=f"{escape(sentence)}.",
        tone=tone,
        tiles=((escape(big), words) for big, words in _tiles(result)),
        sections=_sections(result),
        created=result["created"],
    )


def _model(items: Sequence[Item], sitting: Sitting, offer: Offer, basis: Basis, by: Group) -> dict[str, Any]:
    answers = [answer for row in sitting.answers for answer in row]
    spent = sum(answer.cost for answer in answers)
    return {
        "name": sitting.model,
        "scores": {name: asdict(one) for name, one in score(items, sitting, by=by).items()},
        "letters": letters(sitting),
        "letter_prior": _prior(sitting),
        "spent": spent,
        "tokens": sum(answer.prompt_tokens + answer.completion_tokens for answer in answers),
        "failed": sum(bool(answer.failed) for answer in answers),
        "cost": spent if basis == "run" else offer.cost(basis),
        "released": offer.released,
        "parameters": offer.parameters,
    }


def _prior(sitting: Sitting) -> dict[str, float]:
    """Mean over items of the probability of each letter that was taken off."""
    longest = max(map(len, sitting.priors), default=0)
    return {LETTERS[k]: float(np.mean([math.exp(prior[k]) for prior in sitting.priors if k < len(prior)])) for k in range(longest)}


def _later(model: Mapping[str, Any], items: Sequence[Item]) -> str:
    """A warning where a model came out after items were written: it may have read them."""
    years = [int(found[0]) for item in items if (found := re.search(r"\b\d{4}\b", item.year))]
    before = [year for year in years if model["released"] and year < int(model["released"][:4])]
    if not before:
        return ""
    since = f"{min(before)}" if min(before) == max(before) else f"{min(before)} to {max(before)}"
    return f"{model['name']} came out in {model['released']}, after {len(before)} of the items ({since}): it may have learned from them"


def _expected(items: Sequence[Item], order: str) -> dict[str, float]:
    """How often each letter is right, over all questions asked."""
    found = dict.fromkeys(LETTERS, 0)
    for item in items:
        if right(item) != NONE:
            for shift in shifts(item, "cyclic" if order == "cyclic" else "given"):
                found[LETTERS[(right(item) - shift) % len(item.options)]] += 1
    return {letter: times for letter, times in found.items() if times}


def _front(points: list[dict[str, Any]], at_cost: float, at_accuracy: float | None) -> dict[str, Any]:
    cost, accuracy = [point["cost"] for point in points], [point["accuracy"] for point in points]
    kept = [points[i] for i in frontier(cost, accuracy)]
    dated = progress(cost, accuracy, [point["released"] for point in points])
    known = [point["cost"] for point in points if point["cost"] > 0]
    low, high = (min(known), 10 * max(known)) if known else (0.01, 10.0)

    def at(date: str, found: Steps) -> dict[str, Any]:
        price = math.nan if at_accuracy is None else found.price(at_accuracy)
        return {"date": date, "value": found.value(at_cost), "price": price, "area": hypervolume(found, low=low, high=high, base=0.0)}

    return {
        "points": points,
        "frontier": kept,
        "at_cost": at_cost,
        "at_accuracy": at_accuracy,
        "area": hypervolume(steps(cost, accuracy), low=low, high=high, base=0.0),
        "area_between": [low, high],
        "progress": [at(date, found) for date, found in dated],
    }


def _points(pair: Mapping[str, Any]) -> str:
    return f"{number(pair['difference'], '+.1f')} points ({number(pair['low'], '+.1f')} to {number(pair['high'], '+.1f')})"


def _verdict(result: Mapping[str, Any]) -> tuple[str, str]:
    best = result["models"][0]
    total = best["scores"][OVERALL]
    words = f"{best['name']} answers {total['accuracy']:.1f} % right"
    if total["low"] <= total["chance"]:
        return f"{words}, which is not told from guessing ({total['chance']:.1f} %)", "calm"
    if len(result["models"]) == 1:
        return f"{words}; guessing gets {total['chance']:.1f} %", "good"
    beaten = []
    for pair in result["pairs"]:
        turn = {pair["first"]: 1, pair["second"]: -1}.get(best["name"], 0)
        if turn * pair["difference"] > 0 and pair["p_holm"] <= 0.05:
            beaten.append(pair["second"] if turn == 1 else pair["first"])
    if len(beaten) == len(result["models"]) - 1:
        return f"{words}, more than every other model here", "good"
    if beaten:
        return f"{words}, more than {join(beaten)}; the others cannot be told from it", "good"
    return f"{words}; no other model here can be told from it", "calm"


def _tiles(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    total = result["models"][0]["scores"][OVERALL]
    yield f"{total['accuracy']:.1f} %", f"the best, {result['models'][0]['name']}; 95 % interval {total['low']:.1f} to {total['high']:.1f}"
    yield f"{total['chance']:.1f} %", "what guessing gets"
    groups = len(result["categories"]) or 1
    yield str(result["items"]), f"items in {groups} {GROUP_NAMES[result['by']][groups > 1]}"
    questions = sum(sum(one["letters"].values()) for one in result["models"])
    yield f"{questions:,}", "questions asked" + (", options in every position" if result["order"] == "cyclic" else "")
    if result["frontier"]:
        cheap = [one for one in result["frontier"] if one["cost"] <= result["at_cost"]]
        if cheap:
            yield (
                f"{cheap[-1]['accuracy']:.1f} %",
                f"the best for at most {cost_text(result['basis'], result['at_cost'])}: {cheap[-1]['name']}",
            )


def _sections(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "What to know", "".join(f"<p>{escape(text[:1].upper() + text[1:])}.</p>" for text in result["warnings"])
    yield "Accuracy", accuracy(result)
    yield "Pictures", charts(list(figures(result)))
    yield "Is the difference real?", pairs(result)
    yield "What it costs", costs(result)
    yield "Over time", over_time(result)
    yield (
        "How this was made",
        facts(
            [
                ("Items", result["source"]),
                ("Options", "in the order of the file" if result["order"] == "given" else "in every cyclic order, averaged"),
                (
                    "Reading of answers",
                    result["parsing"] + ", less a prior of the letters" * any(m["letter_prior"] for m in result["models"]),
                ),
                ("Solved examples", f"at most {result['shots']} of each category, held out" if result["shots"] else "none"),
                ("Intervals", "Wilson, 95 %; of differences a bootstrap over items"),
            ]
        ),
    )
