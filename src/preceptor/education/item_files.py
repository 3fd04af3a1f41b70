"""Files of multiple-choice items."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preceptor.catalog import nearest
from preceptor.education.multiple_choice import LETTERS, Item
from preceptor.education.tables import Row, check_columns, read_rows


def read_items(path: Path, columns: Mapping[str, str] | None = None) -> tuple[list[Item], int]:
    """Read items from JSON Lines or CSV.

    Columns are ``question``, ``answer`` (a letter), and ``options``, a list, or one column for each letter, ``A``, ``B`` ..., empty ones
    left out; ``id``, ``category``, ``age_group`` and ``year`` where there are any.

    Args:
        path: of the file.
        columns: names in the file of these columns, where they differ.
    Returns:
        The items that have an answer, and how many have none.
    Raises:
        ValueError: an unknown column (the nearest is named), an item without question or with fewer than 2 or more than 7 options, an id
            twice, or no answer in any item.
    """
    rows = read_rows(path)
    names = {name: name for name in ("id", "question", "options", "answer", "category", "age_group", "year", *LETTERS)}
    for name, given in (columns or {}).items():
        if name not in names:
            raise ValueError(f"columns: expected one of {', '.join(names)}, got {name!r}{nearest(name, names)}")
        names[name] = given
    check_columns(rows, [names["question"], names["answer"], *(columns or {}).values()], path)
    known = {name for row in rows for name in row}
    if names["options"] not in known:
        check_columns(rows, [names["A"], names["B"]], path)
    items, missing, ids = [], 0, set()
    for number, row in enumerate(rows, start=1):
        item = _item(row, names, number, path)
        if item.id in ids:
            raise ValueError(f"{path}: expected every id once, got {item.id!r} twice")
        ids.add(item.id)
        missing += not item.answer
        items += [item] if item.answer else []
    if not items:
        raise ValueError(f"{path}: expected an answer in column {names['answer']!r}, got missing ones only")
    return items, missing


def _item(row: Row, names: Mapping[str, str], number: int, path: Path) -> Item:
    def text(name: str) -> str:
        value = row.get(names[name])
        return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()

    options = row.get(names["options"])
    if options is None:
        options = [value for value in (text(letter) for letter in LETTERS) if value]
    elif isinstance(options, str):
        options = _listed(options, number, path)
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        got = f"{len(options)} options" if isinstance(options, list) else f"options {str(options)[:40]!r}"
        raise ValueError(f"{path}: expected 2 to {len(LETTERS)} options in row {number}, got {got}")
    if not text("question"):
        raise ValueError(f"{path}: expected a question in row {number}, got none")
    return Item(
        id=text("id") or str(number),
        question=text("question"),
        options=tuple(str(option).strip() for option in options),
        answer=text("answer"),
        category=text("category"),
        age_group=text("age_group"),
        year=text("year"),
    )


def _listed(text: str, number: int, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"{path}: expected options as a JSON list in row {number}, got {text[:40]!r}") from None
