"""Rows of a CSV or JSON Lines file, with the names of their columns checked."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from preceptor.catalog import nearest

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, by its ending: ``.csv`` (``.tsv``) with headings, all values text, or ``.jsonl`` with one object a line.

    Raises:
        ValueError: no such file, another ending, no rows, a row that is none; the line is named.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected an existing file, got none")
    if path.suffix not in (".csv", ".tsv", ".jsonl"):
        raise ValueError(f"{path}: expected a file that ends in .csv, .tsv or .jsonl, got {path.suffix or 'no ending'!r}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got byte {error.object[error.start]:#x} at {error.start}") from None
    rows = _objects(text, path) if path.suffix == ".jsonl" else _records(text, path, "\t" if path.suffix == ".tsv" else ",")
    if not rows:
        raise ValueError(f"{path}: expected at least one row, got none")
    return rows


def check_columns(rows: Sequence[Row], wanted: Iterable[str], path: Path) -> None:
    """Refuse rows without a column.

    Raises:
        ValueError: names the column, those that there are and the nearest.
    """
    known = list(dict.fromkeys(name for row in rows for name in row))
    for name in wanted:
        if name not in known:
            raise ValueError(f"{path}: expected a column {name!r}, got {', '.join(known)}{nearest(name, known)}")


def by_id(rows: Sequence[Row], column: str, path: Path) -> dict[str, Row]:
    """Rows by their id as text.

    Raises:
        ValueError: an id is missing or occurs twice.
    """
    found: dict[str, Row] = {}
    for number, row in enumerate(rows, start=1):
        key = str(row.get(column) if row.get(column) is not None else "").strip()
        if not key:
            raise ValueError(f"{path}: expected an id in column {column!r} of row {number}, got none")
        if key in found:
            raise ValueError(f"{path}: expected every id once, got {key!r} twice")
        found[key] = row
    return found


def _records(text: str, path: Path, delimiter: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path}: expected {len(reader.fieldnames or [])} columns at line {reader.line_num}, got another number")
            rows.append(dict(row))
    except csv.Error as error:
        raise ValueError(f"{path}: expected CSV at line {reader.line_num}, got {error}") from None
    return rows


def _objects(text: str, path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}: expected JSON at line {number}, got {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}: expected an object at line {number}, got {type(row).__name__}")
            rows.append(row)
    return rows
