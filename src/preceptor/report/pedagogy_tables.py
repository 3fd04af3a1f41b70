"""The tables of a multiple-choice test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from preceptor.education.scoring import OVERALL
from preceptor.report.pedagogy_charts import COSTS, cost_text
from preceptor.report.sheet import between, chip, escape, money, number, table

BAD = 5.0  # percent of badly formatted answers from which the paper leaves a model out


def accuracy(result: Mapping[str, Any]) -> str:
    """Every model, overall and by group."""
    cyclic = result["order"] == "cyclic"
    head = ["Model", "Overall", "Spread over orders" if cyclic else "Letters balanced", "Bad format", *result["categories"]]
    rows = []
    for one in result["models"]:
        total = one["scores"][OVERALL]
        cells = [between(total["accuracy"], total["low"], total["high"], ".1f")]
        cells.append(number(total["spread"] if cyclic else total["balanced"], ".1f"))
        cells.append(number(total["bad"], ".1f") + (f" {chip('much', 'bad')}" if total["bad"] >= BAD else ""))
        for name in result["categories"]:
            part = one["scores"][name]
            cells.append(between(part["accuracy"], part["low"], part["high"], ".1f"))
        rows.append((escape(one["name"]), cells))
    counts = ", ".join(f"{name} {result['models'][0]['scores'][name]['items']}" for name in result["categories"])
    note = f"Percent right, with Wilson's 95 % interval; an answer without a letter is wrong. Items: {counts or result['items']}."
    note += "" if cyclic else " Letters balanced: what it would be if every letter were right equally often, free of a habit of letters."
    return f"{table('Accuracy', head, rows)}<p class=note>{escape(note)}</p>"


def pairs(result: Mapping[str, Any]) -> str:
    """Every two models, the surest differences first."""
    rows = []
    for pair in sorted(result["pairs"], key=lambda pair: pair["p_value"])[:60]:
        cells = [between(pair["difference"], pair["low"], pair["high"], "+.1f"), f"{pair['better']} : {pair['worse']}"]
        cells += [number(pair[key], ".3f") if pair[key] >= 0.001 else "&lt; 0.001" for key in ("p_value", "p_holm")]
        cells.append(chip("differ", "good") if pair["p_holm"] <= 0.05 else chip("not told apart", "calm"))
        rows.append((f"{escape(pair['first'])} − {escape(pair['second'])}", cells))
    test = "McNemar's exact test" if result["order"] == "given" else "exact sign test over items"
    note = f"Percentage points on the same items; better : worse counts the items where they differ; {test}, Holm over all pairs."
    head = ["Models", "Difference", "Better : worse", "p", "p (Holm)", "Verdict"]
    return f"{table('Pairs', head, rows, words=['Verdict'])}<p class=note>{note}</p>" if rows else ""


def costs(result: Mapping[str, Any]) -> str:
    """Every model with a price, the cheapest first."""
    on = {point["name"] for point in result["frontier"]}
    rows = []
    for point in sorted(result["points"], key=lambda point: (math.isnan(point["cost"]), point["cost"])):
        where = "" if point["here"] else "<small>measured elsewhere</small>"
        cost = "–" if math.isnan(point["cost"]) else cost_text(result["basis"], point["cost"])
        mark = chip("on the frontier", "good") if point["name"] in on else ""
        rows.append((escape(point["name"]) + where, [cost, number(point["accuracy"], ".1f"), escape(point["released"] or "–"), mark]))
    spent = ", ".join(f"{one['name']} {money(one['spent'])} for {one['tokens']:,} tokens" for one in result["models"])
    note = f"Spent here: {spent}. A model without a price is not on the frontier."
    head = ["Model", COSTS[result["basis"]], "Right (%)", "Released", "Frontier"]
    return f"{table('Costs', head, rows, words=['Frontier'])}<p class=note>{escape(note)}</p>"


def over_time(result: Mapping[str, Any]) -> str:
    """The frontier at one cost, and at one accuracy, by the date from which it holds."""
    rows, wanted = [], result["at_accuracy"]
    for step in result["progress"]:
        price = "–" if wanted is None or not math.isfinite(step["price"]) else cost_text(result["basis"], step["price"])
        rows.append((escape(step["date"]), [number(step["value"], ".1f"), *[price] * (wanted is not None)]))
    head = ["Released by", f"Best for at most {cost_text(result['basis'], result['at_cost'])} (%)"]
    head += [] if wanted is None else [f"Least cost of {wanted:g} %"]
    return table("Over time", head, rows) if len(rows) > 1 else ""
