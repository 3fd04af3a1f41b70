"""The text of EdNet's logs as tables: columns of the four levels, numbers for ids and letters, what is odd counted and kept or left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from preceptor.catalog import nearest
from preceptor.core.optional import require
from preceptor.education.ednet_actions import Responses

if TYPE_CHECKING:
    import pyarrow

Level = Literal["KT1", "KT2", "KT3", "KT4"]
"""Questions and answers; actions; with reading and lectures; with choices, players and payments."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "KT1": ("timestamp", "solving_id", "question_id", "user_answer", "elapsed_time"),
    "KT2": ("timestamp", "action_type", "item_id", "source", "user_answer", "platform"),
}
COLUMNS["KT3"] = COLUMNS["KT2"]
COLUMNS["KT4"] = ("timestamp", "action_type", "cursor_time", *COLUMNS["KT2"][2:])

ACTIONS = frozenset(
    {"enter", "respond", "submit", "quit", "pay", "refund", "enroll_coupon", "text_enter"}
    | {f"{what}_{media}" for what in ("play", "pause") for media in ("audio", "video")}
    | {f"{undo}{word}_choice" for undo in ("", "undo_") for word in ("erase", "eliminate")}  # the paper's text, and its example
)
_MAX_BYTES = 64 * 2**20  # text parsed at one time: bounds memory where students are long
_NUMBERS = {"timestamp": "int64", "solving_id": "int32", "elapsed_time": "int64", "cursor_time": "int64"}


@dataclass(kw_only=True)
class Conversion:
    """What a conversion read and what it left out.

    Attributes:
        level: of the logs.
        rows: kept.
        users: with at least one row.
        empty: students without a row.
        skipped: member -> why it could not be read.
        malformed: lines with another number of fields, and values that are not what their column holds (kept as missing).
        other_answers: answers outside a-d, kept: they are never correct.
        unknown_actions: action -> rows, kept.
        responses: where those of a log of actions went when answers were made of them; else 0.
    """

    level: str
    rows: int = 0
    users: int = 0
    empty: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    malformed: int = 0
    other_answers: int = 0
    unknown_actions: dict[str, int] = field(default_factory=dict)
    responses: Responses = field(default_factory=Responses)


def question_rows(text: bytes) -> pyarrow.Table:
    """``questions.csv`` with numbers for its ids: tags are lists, empty for ``-1``; what is no id becomes 0.

    Raises:
        ValueError: a column is missing, with the nearest of those that came.
    """
    pyarrow = require("pyarrow", extra="education", purpose="EdNet's content tables")
    table = read_csv(text)
    wanted = ("question_id", "bundle_id", "explanation_id", "correct_answer", "part", "tags", "deployed_at")
    for name in wanted:
        if name not in table.column_names and name not in ("deployed_at", "explanation_id"):
            known = table.column_names
            raise ValueError(f"questions.csv: expected a column {name!r}, got {', '.join(known)}{nearest(name, known)}")
    columns = {name: table[name].to_pylist() if name in table.column_names else [None] * table.num_rows for name in wanted}
    tags = [[int(tag) for tag in re.findall(r"-?\d+", str(value)) if int(tag) >= 0] for value in columns["tags"]]
    return pyarrow.table(
        {
            "question": pyarrow.array([_digits(v) for v in columns["question_id"]], pyarrow.int32()),
            "bundle": pyarrow.array([_digits(v) for v in columns["bundle_id"]], pyarrow.int32()),
            "explanation": pyarrow.array([_digits(v) for v in columns["explanation_id"]], pyarrow.int32()),
            "answer": pyarrow.array([_letter(v) for v in columns["correct_answer"]], pyarrow.int8()),
            "part": pyarrow.array([_digits(v) for v in columns["part"]], pyarrow.int8()),
            "tags": pyarrow.array(tags, pyarrow.list_(pyarrow.int16())),
            "deployed": pyarrow.array([_digits(v) for v in columns["deployed_at"]], pyarrow.int64()),
        }
    )


def header_of(text: bytes) -> bytes:
    """The first line that is not empty."""
    return text.lstrip(b"\r\n").partition(b"\n")[0].strip()


def check_header(header: bytes, report: Conversion) -> None:
    """Refuse columns that are not those of the level; the first file decides on the level where none was asked for."""
    got = header.decode("utf-8", "replace").split(",")
    levels = [report.level] if report.level else ["KT1", "KT2", "KT4"]
    for level in levels:
        if set(got) == set(COLUMNS[level]):
            report.level = level
            return
    wanted = max((COLUMNS[level] for level in levels), key=lambda columns: len(set(columns) & set(got)))
    strange = next((name for name in got if name not in wanted), None)
    missing = next((name for name in wanted if name not in got), None)
    what = f"unknown {strange!r}{nearest(strange, wanted)}" if strange is not None else f"no {missing!r}"
    raise ValueError(f"columns: expected {', '.join(wanted)}, got {what}")


def batches(texts: Iterator[tuple[int, bytes]], users: int) -> Iterator[tuple[bytes, list[tuple[int, bytes]]]]:
    """Students together as long as their headers are the same and the text is short enough."""
    batch: list[tuple[int, bytes]] = []
    header, size = b"", 0
    for user, text in texts:
        found = header_of(text)
        if batch and (found != header or len(batch) >= users or size > _MAX_BYTES):
            yield header, batch
            batch, size = [], 0
        header = found
        batch.append((user, text))
        size += len(text)
    if batch:
        yield header, batch


def read_batch(header: bytes, batch: Sequence[tuple[int, bytes]], report: Conversion) -> pyarrow.Table:
    """Students with one header as a table, in order of student, time and file; what is odd goes to the report."""
    pieces = [b"user," + header]
    for user, text in batch:
        number = b"%d," % user
        body = text.lstrip(b"\r\n").partition(b"\n")[2].strip(b"\r\n")
        if body:
            pieces.append(number + body.replace(b"\n", b"\n" + number))
    table = _read_log(b"\n".join(pieces), report)
    kept = _encoded(table, report)
    user, time = (kept[name].to_numpy() for name in ("user", "timestamp"))
    later, same = np.diff(time) >= 0, np.diff(user) == 0
    if not (later | ~same).all():
        kept = kept.take(np.lexsort((time, user)))  # lexsort is stable: the order of the file decides between equal times
    report.rows += kept.num_rows
    return kept


def _read_log(text: bytes, report: Conversion) -> pyarrow.Table:
    """Parse with types, or where a value does not fit, as words that are then made numbers one by one."""
    pyarrow = require("pyarrow", extra="education", purpose="EdNet's logs")
    skipped: list[int] = []

    def skip(row: Any) -> str:
        skipped.append(int(row.actual_columns > 2 or bool(row.text and row.text.rpartition(",")[2].strip())))
        return "skip"

    names = text[: text.index(b"\n")].decode().split(",")
    words = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    types = {name: getattr(pyarrow, _NUMBERS[name])() if name in _NUMBERS else words for name in names if name != "user"}
    try:
        table = read_csv(text, {"user": pyarrow.int32(), **types}, skip)
    except pyarrow.ArrowInvalid:
        skipped.clear()
        clean = text.decode("utf-8", "replace").encode()
        table = read_csv(clean, {name: pyarrow.int32() if name == "user" else words for name in names}, skip)
        for name, kind in _NUMBERS.items():
            if name in names:
                table = table.set_column(names.index(name), name, _as_numbers(table[name], kind, report))
    report.malformed += sum(skipped)
    return table.unify_dictionaries().combine_chunks()


def read_csv(text: bytes, types: dict[str, Any] | None = None, skip: Callable[[Any], str] | None = None) -> pyarrow.Table:
    """Parse CSV, with the types of columns where they are given; an empty field is missing."""
    pyarrow = require("pyarrow", extra="education", purpose="EdNet's logs")
    csv = require("pyarrow.csv", extra="education", purpose="EdNet's logs")
    given = csv.ConvertOptions(column_types=types, strings_can_be_null=True) if types else None
    return csv.read_csv(pyarrow.BufferReader(text), parse_options=csv.ParseOptions(invalid_row_handler=skip), convert_options=given)


def _as_numbers(column: Any, kind: str, report: Conversion) -> pyarrow.Array:
    pyarrow = require("pyarrow", extra="education", purpose="EdNet's logs")
    largest = np.iinfo(kind).max
    values, lost = [], 0
    for word in column.to_pylist():
        found = None if word is None else re.fullmatch(r"\s*(-?\d+)(?:\.0*)?\s*", word)
        fits = found is not None and abs(int(found[1])) <= largest
        values.append(int(found[1]) if found is not None and fits else None)
        lost += word is not None and not fits
    report.malformed += lost
    return pyarrow.array(values, getattr(pyarrow, kind)())


def _encoded(table: pyarrow.Table, report: Conversion) -> pyarrow.Table:
    """The columns that are kept; a row without a time is no event and counts as malformed."""
    pyarrow = require("pyarrow", extra="education", purpose="EdNet's logs")
    timed = table["timestamp"].is_valid()
    if table["timestamp"].null_count:
        report.malformed += table["timestamp"].null_count
        table = table.filter(timed).unify_dictionaries().combine_chunks()
    answer = _codes(table["user_answer"], _letter, np.int8)
    report.other_answers += int(np.count_nonzero(answer.fill_null(1).to_numpy(zero_copy_only=False) == 0))
    common = {"user": table["user"], "timestamp": table["timestamp"]}
    if report.level == "KT1":
        question = _codes(table["question_id"], _question, np.int16)
        report.malformed += question.null_count - table["question_id"].null_count
        elapsed = table["elapsed_time"].to_numpy()
        missing = np.isnan(elapsed) if elapsed.dtype.kind == "f" else None
        elapsed = np.nan_to_num(elapsed).clip(-1, 2**31 - 1).astype(np.int32)
        own = {"solving": table["solving_id"], "question": question, "answer": answer, "elapsed": pyarrow.array(elapsed, mask=missing)}
        return pyarrow.table({**common, **own})
    action = table["action_type"].cast(pyarrow.string())
    for value in action.value_counts().to_pylist():
        if value["values"] is not None and value["values"] not in ACTIONS:
            known = report.unknown_actions
            known[value["values"]] = known.get(value["values"], 0) + value["counts"]
    words = {name: table[column].cast(pyarrow.string()) for name, column in (("item", "item_id"), ("source", "source"))}
    own = {"action": action, **words, "answer": answer, "platform": table["platform"].cast(pyarrow.string())}
    return pyarrow.table({**common, **own, **({"cursor": table["cursor_time"]} if report.level == "KT4" else {})})


def _codes(column: Any, code: Callable[[str], int | None], kind: type[np.integer]) -> pyarrow.Array:
    """Numbers for the words of a dictionary column; None from ``code``, like a missing word, is missing."""
    pyarrow = require("pyarrow", extra="education", purpose="EdNet's logs")
    column = column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
    values = [None if word is None else code(word) for word in column.dictionary.to_pylist()]
    table = np.array([0 if value is None else value for value in values] + [0], dtype=kind)
    gone = np.array([value is None for value in values] + [True])
    index = column.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    return pyarrow.array(table[index], mask=gone[index])


def _letter(word: str | None) -> int:
    """1-4 for a-d, 0 for anything else."""
    return {"a": 1, "b": 2, "c": 3, "d": 4}.get((word or "").strip(), 0)


def _question(word: str) -> int | None:
    found = re.fullmatch(r"q(\d{1,5})", word.strip())
    return int(found[1]) if found and int(found[1]) < 2**15 else None


def _digits(value: Any) -> int:
    found = re.search(r"-?\d+", str(value))
    return int(found[0]) if found else 0


def dictionaries(level: str) -> list[str]:
    """The columns that repeat a few values, stored by number."""
    return ["question", "answer"] if level == "KT1" else ["action", "item", "source", "answer", "platform"]
