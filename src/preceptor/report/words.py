"""What a report says in words: paired differences, the verdict in one sentence, and what to take away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preceptor.report.numbers import Measure, Result, finite, headline, join, lookup, measure_of, rows_in_order, significant


def difference(measure: Measure, pair: Mapping[str, Any], *, turn: int = 1, plus: bool = False) -> tuple[str, str]:
    """A paired difference and its interval ("" without one) as texts, both times ``turn``; ``plus`` writes the sign of a rise."""
    mean, ends = turn * pair["mean"], [pair.get("low"), pair.get("high")]
    text = f"{'+' if plus and mean > 0 else ''}{measure.number(mean)}{' points' if measure.unit == ' %' else ''}".replace("-", "−")
    low, *high = sorted(turn * end for end in ends if finite(end)) or [0.0]
    return text, measure.interval(low, high[0]) if high else ""


def _common_seeds(result: Result, pair: Mapping[str, Any]) -> int:
    seeds = {row.get("name"): {seed.get("seed") for seed in row.get("seeds") or []} for row in result.get("rows") or []}
    return len(seeds.get(pair["method"], set()) & seeds.get(pair["baseline"], set()))


def _by(result: Result, pair: Mapping[str, Any], *, turn: int, plus: bool = False) -> str:
    """``3.1 points (95 % interval 2.2 to 4.0, 5 seeds)``."""
    measure, seeds = headline(result), _common_seeds(result, pair)
    text, interval = difference(measure, pair, turn=turn, plus=plus)
    of = "" if measure.key == "accuracy" else f" {'of ' * (measure.unit == ' %')}{measure.label}"
    facts = [f"95 % interval {interval}"] * bool(interval) + [f"{seeds} seed{'s' * (seeds != 1)}"] * bool(seeds)
    return f"{text}{of} ({', '.join(facts)})" if facts else text + of


def verdict(result: Result) -> tuple[str, str]:
    """The result in one sentence, and its tone: ``shown``, ``not shown at this size``, ``contradicted``, ``too few seeds`` or ``""``."""
    measure = headline(result)
    up = measure.sign or 1
    pairs = [pair for pair in result.get("paired") or [] if pair.get("metric") == measure.key and finite(pair.get("mean"))]
    pairs.sort(key=lambda pair: -up * pair["mean"])
    if not pairs:
        return _alone(result), ""
    best, worst = pairs[0], pairs[-1]
    shown = [pair for pair in pairs if pair.get("verdict") == "shown"]
    if shown:
        first = shown[0]
        others = [name for name in dict.fromkeys(pair["method"] for pair in shown) if name != first["method"]]
        so_too = f"; so {'does' if len(others) == 1 else 'do'} {join(others)}" if others else ""
        return f"{first['method']} beats {first['baseline']} by {_by(result, first, turn=up)}{so_too}", "shown"
    if all(pair.get("verdict") == "too few seeds" for pair in pairs):
        side, turn = ("ahead of", up) if up * best["mean"] >= 0 else ("behind", -up)
        gap = _by(result, {**best, "low": None}, turn=turn)
        return f"Too few seeds for a verdict: {best['method']} is {side} {best['baseline']} by {gap}", "too few seeds"
    nobody = f"No method beats {join(list(dict.fromkeys(pair['baseline'] for pair in pairs)), 'or')} at this size"
    if worst.get("verdict") == "contradicted":
        return f"{nobody}; {worst['method']} is worse than {worst['baseline']} by {_by(result, worst, turn=-up)}", "contradicted"
    return f"{nobody}; closest is {best['method']} with a difference of {_by(result, best, turn=up, plus=True)}", "not shown at this size"


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
