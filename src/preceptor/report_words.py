"""What a report says in words: paired differences, the verdict in one sentence, and what to take away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preceptor.report_numbers import Measure, Result, finite, headline, lookup, measure_of, rows_in_order, significant


def difference(measure: Measure, pair: Mapping[str, Any], *, signed: bool) -> tuple[str, str]:
    """A paired difference and its interval, as texts; without ``signed`` it is turned so that above zero is an improvement."""
    turn = 1 if signed or measure.sign >= 0 else -1
    mean, ends = turn * pair["mean"], [pair.get("low"), pair.get("high")]
    points = "" if measure.unit != " %" else " points" if measure.key == "accuracy" or signed else f" points of {measure.label}"
    unit = points or ("" if signed else f" {measure.label}")
    text = (("+" if signed and mean > 0 else "") + measure.number(mean)).replace("-", "−") + unit
    if not all(map(finite, ends)):
        return text, ""
    low, high = sorted(turn * end for end in ends if finite(end))
    return text, measure.interval(low, high)


def _common_seeds(result: Result, pair: Mapping[str, Any]) -> int:
    seeds = {row.get("name"): {seed.get("seed") for seed in row.get("seeds") or []} for row in result.get("rows") or []}
    return len(seeds.get(pair["method"], set()) & seeds.get(pair["baseline"], set()))


def _by(result: Result, pair: Mapping[str, Any]) -> str:
    """``3.1 points (95 % interval 2.2 to 4.0, 5 seeds)``."""
    text, interval = difference(headline(result), pair, signed=False)
    seeds = _common_seeds(result, pair)
    facts = [f"95 % interval {interval}"] * bool(interval) + [f"{seeds} seed{'s' * (seeds != 1)}"] * bool(seeds)
    return f"{text} ({', '.join(facts)})" if facts else text


def verdict(result: Result) -> tuple[str, str]:
    """The result in one sentence, and its tone: ``shown``, ``not shown at this size``, ``contradicted``, ``too few seeds`` or ``""``."""
    measure = headline(result)
    pairs = [pair for pair in result.get("paired") or [] if pair.get("metric") == measure.key and finite(pair.get("mean"))]
    pairs.sort(key=lambda pair: -pair["mean"] if measure.sign >= 0 else pair["mean"])
    if not pairs:
        return _alone(result), ""
    by_verdict = {name: [pair for pair in pairs if pair.get("verdict") == name] for name in ("shown", "contradicted", "too few seeds")}
    best = pairs[0]
    if shown := by_verdict["shown"]:
        others = " and ".join(dict.fromkeys(pair["method"] for pair in shown[1:] if pair["method"] != shown[0]["method"]))
        so_too = f"; so {'do' if ' and ' in others else 'does'} {others}" if others else ""
        return f"{shown[0]['method']} beats {shown[0]['baseline']} by {_by(result, shown[0])}{so_too}", "shown"
    if len(by_verdict["too few seeds"]) == len(pairs):
        below = best["mean"] * (measure.sign or 1) < 0
        turned = {**best, "mean": -best["mean"], "low": None} if below else {**best, "low": None}
        side = "behind" if below else "ahead of"
        return f"Too few seeds for a verdict: {best['method']} is {side} {best['baseline']} by {_by(result, turned)}", "too few seeds"
    baselines = {pair["baseline"] for pair in pairs}
    nobody = f"No method beats {best['baseline'] if len(baselines) == 1 else 'its baseline'} at this size"
    if worse := by_verdict["contradicted"]:
        names = " and ".join(dict.fromkeys(pair["method"] for pair in worse))
        return f"{nobody}; {names} {'is' if len(worse) == 1 else 'are'} worse than {worse[0]['baseline']}", "contradicted"
    return f"{nobody}; closest is {best['method']} with a gain of {_by(result, best)}", "not shown at this size"


def _alone(result: Result) -> str:
    """What can be said without a comparison: how good the student is, and how far from its teacher."""
    measure = headline(result)
    found = {row.get("name", ""): lookup(row, measure.key) for row in rows_in_order(result) if row.get("role") != "teacher"}
    scores = {name: score[0] for name, score in found.items() if score}
    if not scores:
        return "No results yet"
    name = max(scores, key=lambda name: (measure.sign or 1) * scores[name])
    sentence = f"{name} reaches {measure.text(scores[name])} {measure.label if measure.label.isupper() else measure.label.lower()}"
    teacher = next((lookup(row, measure.key) for row in rows_in_order(result) if row.get("role") == "teacher"), None)
    return f"{sentence}; its teacher {measure.text(teacher[0])}" if teacher else sentence


def champion(result: Result) -> Mapping[str, Any] | None:
    """The student to put forward: the best method whose gain is shown, else the best student on the metric of the study."""
    measure, rows = headline(result), rows_in_order(result)
    students = [(row, score[0]) for row in rows if row.get("role") != "teacher" and (score := lookup(row, measure.key))]
    pairs = result.get("paired") or []
    shown = {pair.get("method") for pair in pairs if pair.get("metric") == measure.key and pair.get("verdict") == "shown"}
    pool = [(row, score) for row, score in students if row.get("name") in shown] or students
    return max(pool, key=lambda entry: (measure.sign or 1) * entry[1])[0] if pool else None


def takeaways(result: Result) -> list[tuple[str, str]]:
    """The student to put forward against its teacher and its baselines: a number to print large, and what it is."""
    student, measure, rows = champion(result), headline(result), rows_in_order(result)
    score = lookup(student, measure.key) if student else None
    if not student or not score:
        return []
    others = [row for row in rows if row is not student and row.get("role") in ("teacher", "baseline")]
    against = [f"{row.get('name')} {measure.text(found[0])}" for row in others if (found := lookup(row, measure.key))]
    taken = [(measure.text(score[0]), "; ".join([f"{measure.label} of {student.get('name')}", *against]))]
    teacher = next((row for row in rows if row.get("role") == "teacher"), {})
    for key, words in (("parameters", "fewer parameters than the teacher"), ("macs", "fewer operations per example")):
        small, large = lookup(student, key), lookup(teacher, key)
        if small and large and large[0] > small[0] > 0:
            texts = f"{measure_of(key).text(small[0])} for {measure_of(key).text(large[0])}"
            taken.append((f"{significant(large[0] / small[0])} ×", f"{words}: {texts}"))
    for batch in ("1", "64"):
        fast, slow = (((row.get("cost") or {}).get("latency_ms") or {}).get(batch) or {} for row in (student, teacher))
        if finite(fast.get("p50")) and finite(slow.get("p50")) and slow["p50"] > fast["p50"] > 0:
            texts = f"{significant(fast['p50'])} ms for {significant(slow['p50'])} ms"
            taken.append((f"{slow['p50'] / fast['p50']:.1f} ×", f"faster than the teacher at batch {batch}: {texts}"))
    if agreement := lookup(student, "agreement"):
        taken.append((measure_of("agreement").text(agreement[0]), "of the test examples get the teacher's answer"))
    return taken
