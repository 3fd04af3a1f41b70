"""Files of open answers: reading them, and writing what scorers say."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preceptor.core.files import write_whole
from preceptor.education.open_answers import SCORES, Rating, has_image
from preceptor.education.tables import Row, by_id, check_columns, read_rows


@dataclass(frozen=True, kw_only=True)
class AnswerFile:
    """N answers; what a file does not have is "", or None for a score."""

    ids: tuple[str, ...]
    problems: tuple[str, ...]
    texts: tuple[str, ...]
    scores: tuple[int | None, ...]
    feedback: tuple[str, ...]
    solutions: tuple[str, ...]


def read_answers(path: Path, *, scored: bool = False) -> AnswerFile:
    """Read ``id`` and ``answer``, and what there is of ``problem``, ``score``, ``feedback`` and ``solution``.

    Answers that show a picture are left out: no scorer of text sees it.

    Args:
        path: CSV or JSON Lines.
        scored: whether every answer must have a score.
    Raises:
        ValueError: a column is lacking (the nearest is named), an id is missing or twice, a score is none, or no answer is left.
    """
    rows = read_rows(path)
    check_columns(rows, ["id", "answer", *["score"] * scored], path)
    kept = {key: row for key, row in by_id(rows, "id", path).items() if not has_image(_text(row, "answer") + _text(row, "problem"))}
    scores = tuple(_score(row.get("score"), f"{path}: score of {key}") for key, row in kept.items())
    if not kept or (scored and None in scores):
        what = "a score of every answer" if kept else "at least one answer without a picture"
        raise ValueError(f"{path}: expected {what}, got {'missing ones' if kept else 'none'}")
    columns = {name: tuple(_text(row, name) for row in kept.values()) for name in ("problem", "answer", "feedback", "solution")}
    return AnswerFile(
        ids=tuple(kept),
        problems=columns["problem"],
        texts=columns["answer"],
        scores=scores,
        feedback=columns["feedback"],
        solutions=columns["solution"],
    )


def write_ratings(path: Path, answers: AnswerFile, ratings: Sequence[Rating], flaws: Sequence[Sequence[str]]) -> Path:
    """Write a CSV file with a row for each answer: what it says, score, feedback, what is wrong with that, why there is no score.

    `read_answers` takes it, so that one scorer can learn from another.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "problem", "answer", "score", "feedback", "flaws", "failed"])
    for key, problem, answer, one, found in zip(answers.ids, answers.problems, answers.texts, ratings, flaws, strict=True):
        score = "" if one.score is None else one.score
        writer.writerow([key, problem, answer, score, one.feedback, "; ".join(found), one.failed])
    return write_whole(path, text.getvalue())


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value)


def _score(value: Any, where: str) -> int | None:
    text = "" if value is None else str(value).strip().removesuffix(".0")
    if not text:
        return None
    if text not in map(str, SCORES):
        raise ValueError(f"{where}: expected a whole number {SCORES[0]} to {SCORES[-1]}, got {value!r}")
    return int(text)
