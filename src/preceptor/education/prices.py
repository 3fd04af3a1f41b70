"""What models cost, when they came out, and what others measured: the table beside a multiple-choice test."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from preceptor.catalog import nearest
from preceptor.education.tables import Row, by_id, check_columns, read_rows

Basis = Literal["input", "blend", "run", "parameters"]
"""Cost of a model: its price per million tokens read; 0.8 of that and 0.2 of those written; what the test cost; or its size."""

COLUMNS = ("model", "input", "output", "released", "parameters", "accuracy")


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One model of a price list; NaN and "" stand for what is not known.

    Attributes:
        input, output: money per million tokens read and written.
        released: YYYY-MM or YYYY-MM-DD.
        parameters: how many it has.
        accuracy: in percent on the same items, measured elsewhere.
    """

    model: str
    input: float = math.nan
    output: float = math.nan
    released: str = ""
    parameters: float = math.nan
    accuracy: float = math.nan

    def cost(self, basis: Basis) -> float:
        """Its price; NaN for ``run``, which the list does not know."""
        return {"input": self.input, "blend": 0.8 * self.input + 0.2 * self.output, "run": math.nan, "parameters": self.parameters}[basis]


def read_offers(path: Path) -> list[Offer]:
    """Read a price list, CSV or JSON Lines: ``model``, and what there is of the other `COLUMNS`.

    Raises:
        ValueError: no column ``model``, an unknown one (the nearest is named), a model twice, or a value that is none.
    """
    rows = read_rows(path)
    check_columns(rows, ["model"], path)
    for name in dict.fromkeys(name for row in rows for name in row):
        if name not in COLUMNS:
            raise ValueError(f"{path}: expected columns out of {', '.join(COLUMNS)}, got {name!r}{nearest(name, COLUMNS)}")
    return [_offer(row, f"{path}: {model}") for model, row in by_id(rows, "model", path).items()]


def offer_of(model: str, offers: Sequence[Offer]) -> Offer:
    """The entry of a model by its name, or by what stands before the ``@`` of a local one; an empty one where there is none."""
    named = {offer.model: offer for offer in offers}
    return named.get(model) or named.get(model.partition("@")[0]) or Offer(model=model)


def _offer(row: Row, where: str) -> Offer:
    released = _text(row.get("released"))
    if released and not re.fullmatch(r"\d{4}-\d{2}(-\d{2})?", released):
        raise ValueError(f"{where}: expected released as YYYY-MM or YYYY-MM-DD, got {released!r}")
    numbers = {name: _number(row.get(name), name, where) for name in ("input", "output", "parameters", "accuracy")}
    if numbers["accuracy"] > 100:
        raise ValueError(f"{where}: expected accuracy in percent, got {numbers['accuracy']:g}")
    return Offer(model=_text(row["model"]), released=released, **numbers)


def _number(value: Any, name: str, where: str) -> float:
    text = _text(value)
    try:
        number = float(text) if text else math.nan
    except ValueError:
        number = -1.0
    if number < 0 or math.isinf(number):
        raise ValueError(f"{where}: expected {name} as a number >= 0, got {text!r}")
    return number


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
