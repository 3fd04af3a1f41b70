"""The numbers of a report as texts: measures and their units, and the columns of the tables.

Everything here reads the dictionary of a ``result.json`` and treats a missing, null or non-finite value as not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

Result = Mapping[str, Any]
ROLES = ("teacher", "baseline", "method")


def significant(value: float) -> str:
    """Three significant digits without an exponent: 0.123, 12.7, 1234."""
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def count(value: float) -> str:
    """A count with a decimal prefix: 12.7 k, 1.2 M."""
    for prefix in ("", " k", " M", " G"):
        if abs(value) < 999.5:
            return f"{value:.3g}{prefix}"
        value /= 1000
    return f"{significant(value)} T"


def duration(seconds: float) -> str:
    """Seconds as 12.3 s, 3.4 min or 2.1 h."""
    if seconds < 99.95:
        return f"{significant(seconds)} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def tenths(value: float) -> str:
    """A share in [0, 1] as percent with one decimal, without the sign."""
    return f"{100 * value:.1f}"


def hundredths(value: float) -> str:
    """A share in [0, 1] as percent with two decimals, without the sign."""
    return f"{100 * value:.2f}"


def thousandths(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}"


def join(words: Sequence[str], last: str = "and") -> str:
    """A, B and C."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One column: how a value is written and which direction is better (1 higher, -1 lower, 0 neither)."""

    key: str
    label: str
    number: Callable[[float], str]
    unit: str = ""
    sign: int = 0

    def text(self, value: float) -> str:
        """The value with its unit."""
        return self.number(value) + self.unit

    def interval(self, low: float, high: float) -> str:
        """``low to high``, without the unit."""
        return f"{self.number(low)} to {self.number(high)}".replace("-", "−")


HEADLINE = (
    Measure(key="accuracy", label="Accuracy", number=tenths, unit=" %", sign=1),
    Measure(key="nll", label="NLL", number=thousandths, sign=-1),
    Measure(key="ece", label="ECE", number=tenths, unit=" %", sign=-1),
    Measure(key="robust_accuracy", label="Accuracy under attack", number=tenths, unit=" %", sign=1),
    Measure(key="agreement", label="Agreement with teacher", number=tenths, unit=" %", sign=1),
    Measure(key="rank", label="Mean rank", number=significant, sign=-1),
)
COSTS = (
    Measure(key="parameters", label="Parameters", number=count, sign=-1),
    Measure(key="macs", label="MACs", number=count, sign=-1),
)
TRAINING = (
    Measure(key="train_seconds", label="Training time", number=duration, sign=-1),
    Measure(key="tokens_per_second", label="Tokens per second", number=significant, sign=1),
    Measure(key="peak_memory_mb", label="Peak memory", number=significant, unit=" MB", sign=-1),
)
MORE = (
    Measure(key="top5", label="Top-5 accuracy", number=tenths, unit=" %", sign=1),
    Measure(key="brier", label="Brier score", number=thousandths, sign=-1),
    Measure(key="classwise_ece", label="Classwise ECE", number=hundredths, unit=" %", sign=-1),
    Measure(key="adaptive_ece", label="Adaptive ECE", number=hundredths, unit=" %", sign=-1),
    Measure(key="perplexity", label="Perplexity", number=significant, sign=-1),
    Measure(key="kl_to_teacher", label="KL to teacher (nats)", number=thousandths, sign=-1),
    Measure(key="rank_correlation", label="Rank correlation of logits", number=thousandths, sign=1),
    Measure(key="teacher_seconds", label="Teacher time", number=duration),
    Measure(key="steps", label="Steps", number=count),
    Measure(key="checkpoint_bytes", label="Checkpoint", number=count, unit="B", sign=-1),
)
KNOWN = {measure.key: measure for measure in HEADLINE + COSTS + TRAINING + MORE}


def measure_of(key: str) -> Measure:
    """The measure of a metric's key; one that is not known is shown as a plain number."""
    return KNOWN.get(key) or Measure(key=key, label=key.replace("_", " "), number=significant)


def headline(result: Result) -> Measure:
    """The measure that the study is about."""
    return measure_of(result.get("headline_metric") or "accuracy")


def finite(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a number to show."""
    return isinstance(value, int | float) and math.isfinite(value)


def rows_in_order(result: Result) -> list[Mapping[str, Any]]:
    """The arms: teacher first, then baselines, then methods, each group in its given order."""
    return sorted(result.get("rows") or [], key=lambda row: ROLES.index(row["role"]) if row.get("role") in ROLES else len(ROLES))


def lookup(row: Mapping[str, Any], key: str) -> tuple[float, float | None, float | None] | None:
    """Mean, low and high of one measure of one arm: from its summary, else the plain mean over its seeds, else its cost."""
    summary = (row.get("summary") or {}).get(key) or {}
    if finite(summary.get("mean")):
        low, high = summary.get("low"), summary.get("high")
        return (summary["mean"], low, high) if finite(low) and finite(high) else (summary["mean"], None, None)
    seeds = row.get("seeds") or []
    values = [v for v in ((seed.get("metrics") or {}).get(key, seed.get(key)) for seed in seeds) if finite(v)]
    value = sum(values) / len(values) if values else (row.get("cost") or {}).get(key)
    return (value, None, None) if finite(value) else None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One value of a table: its text, a second line (interval or p95), and whether it is the best of the students."""

    value: float
    text: str
    detail: str = ""
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table, a cell per arm, None where nothing was measured."""

    measure: Measure
    cells: tuple[Cell | None, ...]


def _cell(row: Mapping[str, Any], measure: Measure) -> Cell | None:
    kind, _, batch = measure.key.partition("/")
    if kind == "latency_ms":
        latency = ((row.get("cost") or {}).get("latency_ms") or {}).get(batch) or {}
        if not finite(latency.get("p50")):
            return None
        detail = f"p95 {measure.number(latency['p95'])}" if finite(latency.get("p95")) else ""
        return Cell(value=latency["p50"], text=measure.text(latency["p50"]), detail=detail)
    found = lookup(row, measure.key)
    if found is None:
        return None
    mean, low, high = found
    detail = "" if low is None or high is None else measure.interval(low, high)
    return Cell(value=mean, text=measure.text(mean), detail=detail)


def _mark_best(measure: Measure, cells: Sequence[Cell | None], rows: Sequence[Mapping[str, Any]]) -> tuple[Cell | None, ...]:
    """Mark the best student; equals at the precision shown are all marked, and none is when all students are equal."""
    students = [cell for cell, row in zip(cells, rows, strict=True) if cell and row.get("role") != "teacher"]
    if measure.sign == 0 or len({cell.text for cell in students}) < 2:
        return tuple(cells)
    best = max(students, key=lambda cell: measure.sign * cell.value).text
    return tuple(
        Cell(value=cell.value, text=cell.text, detail=cell.detail, best=cell.text == best and row.get("role") != "teacher")
        if cell
        else None
        for cell, row in zip(cells, rows, strict=True)
    )


def columns(result: Result, measures: Sequence[Measure]) -> list[Column]:
    """The measured columns for the arms of `rows_in_order`; a measure that no arm has is left out."""
    rows = rows_in_order(result)
    table = [(measure, [_cell(row, measure) for row in rows]) for measure in measures]
    return [Column(measure=measure, cells=_mark_best(measure, cells, rows)) for measure, cells in table if any(cells)]


def headline_measures(result: Result) -> list[Measure]:
    """The measures of the headline table: the metric of the study, the standing ones, and latency for every batch size measured."""
    batches = {batch for row in result.get("rows") or [] for batch in (row.get("cost") or {}).get("latency_ms") or {}}
    latency = [
        Measure(key=f"latency_ms/{batch}", label=f"Latency, batch {batch}", number=significant, unit=" ms", sign=-1)
        for batch in sorted(batches, key=lambda batch: (len(batch), batch))
    ]
    return [*dict.fromkeys((headline(result), *HEADLINE)), *COSTS, *latency, *TRAINING]


def more_measures(result: Result) -> list[Measure]:
    """Everything else that was measured, metrics that preceptor does not know by name included."""
    shown = {measure.key for measure in headline_measures(result)}
    extra = {key for row in result.get("rows") or [] for key in row.get("summary") or {}}
    return [measure for measure in [*MORE, *(measure_of(key) for key in sorted(extra - KNOWN.keys()))] if measure.key not in shown]
