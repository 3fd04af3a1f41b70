"""Measured points: read from a CSV file or gathered from a folder of runs, with columns found by their names."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from preceptor.catalog import nearest
from preceptor.scaling.answers import FLOPS
from preceptor.scaling.forms import Array, Form

HEADERS: dict[str, tuple[str, ...]] = {
    "N": ("n", "size", "model size", "parameters", "params"),
    "D": ("d", "data", "tokens", "training tokens", "examples"),
    "C": ("c", "compute", "flop", "flops", "training flop", "training flops"),
    "Ne": ("ne", "n_e", "encoder", "encoder parameters"),
    "Nd": ("nd", "n_d", "decoder", "decoder parameters"),
    "loss": ("loss", "nll", "test loss"),
    "score": ("score", "accuracy", "bleu", "comet"),
    "sweep": ("sweep",),
    "source": ("source", "mixture", "pretraining"),
}
"""Quantity -> headings that are taken for it, whatever their case; underscores count as spaces."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """A table of runs.

    Attributes:
        source: where it was read, for error messages.
        table: heading -> cells, as text or numbers.
        chosen: quantity of `HEADERS` -> heading, where the reader of the table says so.
    """

    source: str
    table: Mapping[str, list[Any]]
    chosen: Mapping[str, str]

    def __len__(self) -> int:
        return len(next(iter(self.table.values()), []))

    def heading(self, quantity: str) -> str | None:
        """The heading that holds a quantity, or None."""
        if quantity in self.chosen:
            return self.chosen[quantity]
        plain = {heading.lower().replace("_", " "): heading for heading in self.table}
        return next((plain[name.replace("_", " ")] for name in HEADERS.get(quantity, ()) if name.replace("_", " ") in plain), None)

    def has(self, quantity: str) -> bool:
        """Whether a quantity is there, or follows from C = 6 N D."""
        return self.heading(quantity) is not None or (
            quantity in ("N", "D", "C") and all(self.heading(other) is not None for other in {"N", "D", "C"} - {quantity})
        )

    def column(self, quantity: str) -> Array:
        """A quantity of all rows, (n,).

        Raises:
            ValueError: no such column (the nearest is named), or a cell that is no number above 0 (its line is named).
        """
        heading = self.heading(quantity)
        if heading is None and self.has(quantity):
            if quantity == "C":
                return FLOPS * self.column("N") * self.column("D")
            return self.column("C") / FLOPS / self.column("D" if quantity == "N" else "N")
        if heading is None:
            known = HEADERS.get(quantity, (quantity,))
            near = next((found for found in (nearest(name, self.table) for name in known) if found), "")
            raise ValueError(
                f"{quantity}: expected a column out of {', '.join(known)} in {self.source}, got {', '.join(self.table)}{near};"
                f" name it: --columns {quantity}=HEADING"
            )
        return np.array([_number(cell, f"{self.source}, row {row}, {heading}") for row, cell in enumerate(self.table[heading], start=1)])

    def sizes(self, form: Form, x: str = "N") -> tuple[Array, tuple[str, ...]]:
        """The columns (n, axes) that a law is fitted in, and their quantities; ``x`` is that of a law with one axis of no name."""
        names = tuple(x if axis == "x" else axis for axis in form.axes)
        return np.stack([self.column(name) for name in names], axis=1), names

    def strata(self) -> list[str] | None:
        """The sweep of each row, where the table has such a column."""
        return self.names("sweep")

    def names(self, quantity: str) -> list[str] | None:
        """A quantity that is no number, of all rows; None where the table has no such column."""
        heading = self.heading(quantity)
        return None if heading is None else [str(cell) for cell in self.table[heading]]


def read_points(path: Path, *, columns: Mapping[str, str] | None = None, method: str | None = None) -> Points:
    """Read points.

    Args:
        path: a CSV file with headings in its first line, or a folder with run directories of ``preceptor distill`` or ``compare``
            anywhere in it: a row per trained student, with its ``parameters``, ``examples`` seen, ``compute`` in FLOP and all its metrics.
        columns: quantity -> heading, where `HEADERS` does not have it.
        method: of the runs, when there are several.
    Raises:
        ValueError: one line: nothing there, no rows, an unknown quantity or heading (the nearest is named), several methods.
    """
    chosen = dict(columns or {})
    table = _runs(path, method) if path.is_dir() else _csv(path)
    for quantity, heading in chosen.items():
        if quantity not in HEADERS:
            raise ValueError(f"columns: expected one of {', '.join(HEADERS)} before the equals sign, got {quantity!r}")
        if heading not in table:
            raise ValueError(f"columns: expected a heading of {path} out of {', '.join(table)}, got {heading!r}{nearest(heading, table)}")
    return Points(source=path.name, table=table, chosen=chosen)


def _csv(path: Path) -> dict[str, list[Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"points: expected a CSV file or a folder of runs, got {path}: {reason}") from None
    if len(rows) < 2:
        raise ValueError(f"points: expected headings and rows in {path}, got {len(rows)} lines")
    heads = [head.strip() for head in rows[0]]
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(heads):
            raise ValueError(f"points: expected {len(heads)} cells in row {number} of {path}, got {len(row)}")
    return {head: [row[i].strip() for row in rows[1:]] for i, head in enumerate(heads)}


def _runs(folder: Path, method: str | None) -> dict[str, list[Any]]:
    found = [row for path in sorted(folder.rglob("result.json")) for row in run_rows(json.loads(path.read_text(encoding="utf-8")))]
    if not found:
        raise ValueError(f"runs: expected run directories with result.json in {folder}, got none")
    names = list(dict.fromkeys(row["method"] for row in found))
    if method is not None and method not in names:
        raise ValueError(f"method: expected one out of {', '.join(names)}, got {method!r}{nearest(method, names)}")
    if method is None and len(names) > 1:
        raise ValueError(f"method: expected a choice, as the runs are of several, got {', '.join(names)}; give --method")
    rows = [row for row in found if method in (None, row["method"])]
    return {head: [row.get(head, "") for row in rows] for head in dict.fromkeys(key for row in rows for key in row)}


def run_rows(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The trained students of one ``result.json``, a row each; none where it is no run's or study's.

    Compute counts 2 FLOP per multiply-accumulate forward and 4 backward, the student's alone.
    """
    if result.get("kind") not in ("run", "study"):
        return
    training = (yaml.safe_load(result.get("recipe") or "") or {}).get("training") or {}
    for row in result.get("rows") or []:
        if row.get("role") == "teacher":
            continue
        cost = row.get("cost") or {}
        for trial in row.get("seeds") or []:
            facts: dict[str, Any] = {"method": row["name"], "seed": trial["seed"], "parameters": cost.get("parameters")}
            if training.get("batch_size") and trial.get("steps"):
                facts["examples"] = training["batch_size"] * trial["steps"]
                if cost.get("macs"):
                    facts["compute"] = FLOPS * cost["macs"] * facts["examples"]
            yield facts | dict(trial["metrics"])


def _number(cell: Any, where: str) -> float:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: expected a number, got {cell!r}") from None
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{where}: expected a finite number above 0, got {cell}")
    return value
