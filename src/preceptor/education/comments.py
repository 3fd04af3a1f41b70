"""Texts to label, and people's labels of them, from files: joined on an id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preceptor.catalog import nearest
from preceptor.education.agreement import MISSING
from preceptor.education.rubric import Category, Rubric
from preceptor.education.tables import Row, by_id, check_columns, read_rows


@dataclass(frozen=True, kw_only=True)
class Comments:
    """Texts to label.

    Attributes:
        ids: N, each once, as text.
        texts: N.
        about: N lines of context, such as which lecture a text is under; may be empty.
        people: (N, C) labels from 0, `MISSING` for none, by the name of who gave them.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    about: tuple[str, ...]
    people: Mapping[str, np.ndarray]


def read_comments(
    path: Path,
    rubric: Rubric,
    *,
    id_column: str = "id",
    text_column: str = "comment",
    context: Sequence[str] = (),
    people: Mapping[str, Path | None] | None = None,
    people_columns: str = "{person}:{category}",
) -> Comments:
    """Read texts, and people's labels from columns beside them or from files with an id and a column for each category.

    Columns ``PERSON:CATEGORY`` are found by themselves.

    Args:
        path: CSV or JSON Lines.
        rubric: whose categories may be labelled.
        id_column: the same in all files.
        text_column: of ``path``.
        context: columns that go into the prompt beside the text, such as the names of the course and the lecture.
        people: files of labels by the name of a person, None for columns of ``path``; categories that are lacking are missing.
        people_columns: how columns of these persons are called, such as ``annotator_{person}_{category}``.
    Raises:
        ValueError: an unknown column or category (the nearest is named), an id that is missing, twice or in no comment, a label outside
            the rubric, or no label of a person at all.
    """
    rows = read_rows(path)
    check_columns(rows, (id_column, text_column, *context), path)
    found = by_id(rows, id_column, path)
    index = {key: number for number, key in enumerate(found)}
    columns = list(dict.fromkeys(name for row in rows for name in row))
    labels: dict[str, np.ndarray] = {}
    for column in columns:
        person, colon, category = column.partition(":")
        if colon and person and column not in (id_column, text_column, *context):
            place = _category(rubric, category, f"{path}: column {column!r}")
            table = labels.setdefault(person, _none(len(found), rubric))
            table[:, place] = [
                _label(row.get(column), rubric.categories[place], f"{path}: {column} of {key}") for key, row in found.items()
            ]
    for person, file in (people or {}).items():
        if file is None:
            labels[person] = _from_columns(found, columns, person, rubric, people_columns, path)
            continue
        if person in labels:
            raise ValueError(f"human: expected labels of {person!r} in one place, got columns of {path} and {file}")
        labels[person] = _from_file(file, person, rubric, id_column, index)
    for person, table in labels.items():
        if not (table != MISSING).any():
            raise ValueError(f"human: expected labels of {person!r}, got missing ones only")
    return Comments(
        ids=tuple(found),
        texts=tuple(_text(row.get(text_column)) for row in found.values()),
        about=tuple("; ".join(f"{name}: {_text(row.get(name))}" for name in context) for row in found.values()),
        people=labels,
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _none(items: int, rubric: Rubric) -> np.ndarray:
    return np.full((items, len(rubric.categories)), MISSING)


def _category(rubric: Rubric, name: str, where: str) -> int:
    if name not in rubric.names:
        raise ValueError(f"{where}: expected a category out of {', '.join(rubric.names)}, got {name!r}{nearest(name, rubric.names)}")
    return rubric.names.index(name)


def _label(value: Any, category: Category, where: str) -> int:
    """The code of a person's label."""
    code = category.read(_text(value))
    if code is None:
        wanted = f"one of {', '.join(category.levels)}" if category.levels else "a label 0 or 1, true or false"
        raise ValueError(f"{where}: expected {wanted}, or nothing, got {value!r}{nearest(str(value), category.levels)}")
    return code


def _from_columns(rows: Mapping[str, Row], known: Sequence[str], person: str, rubric: Rubric, pattern: str, path: Path) -> np.ndarray:
    """Labels of one person from the columns that a pattern names."""
    if "{person}" not in pattern or "{category}" not in pattern:
        raise ValueError(f"human columns: expected a pattern with {{person}} and {{category}}, got {pattern!r}")
    columns = [pattern.replace("{person}", person).replace("{category}", name) for name in rubric.names]
    if not set(columns) & set(known):
        check_columns(list(rows.values()), columns[:1], path)
    table = _none(len(rows), rubric)
    for place, column in enumerate(columns):
        if column in known:
            table[:, place] = [_label(row.get(column), rubric.categories[place], f"{path}: {column} of {key}") for key, row in rows.items()]
    return table


def _from_file(file: Path, person: str, rubric: Rubric, id_column: str, index: Mapping[str, int]) -> np.ndarray:
    """Labels of one person, in the order of the comments."""
    rows: list[Row] = read_rows(file)
    check_columns(rows, (id_column,), file)
    known = list(dict.fromkeys(name for row in rows for name in row))
    shared = [name for name in rubric.names if name in known]
    if not shared:
        raise ValueError(f"{file}: expected columns out of {', '.join(rubric.names)}, got {', '.join(known)}")
    table = _none(len(index), rubric)
    for key, row in by_id(rows, id_column, file).items():
        if key not in index:
            raise ValueError(f"{file}: expected ids of the comments, got {key!r}{nearest(key, index)}")
        for name in shared:
            place = rubric.names.index(name)
            table[index[key], place] = _label(row.get(name), rubric.categories[place], f"{file}: {name} of {key} by {person}")
    return table
