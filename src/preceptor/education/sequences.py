"""Sequences of answers to learn from: cleaned rows, windows of a fixed length, splits by student, and a stream of batches.

Cleaning is that of pykt's preprocessing of EdNet: rows without question, time, elapsed time, answer or a known tag go; an answer is correct
when it is the question's. A student is never in two parts of a split, and a window never holds two students.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from preceptor.core.optional import require
from preceptor.core.types import Batch
from preceptor.education.ednet import QUESTIONS, scan_answers

if TYPE_CHECKING:
    import pyarrow

PAD = -1
Tags = Literal["mean", "expand"]
"""A question with m tags is one step, or m steps of which only the first may be judged: the others see its answer."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What sequences need of the questions, by number.

    Attributes:
        answer: (Q,), 1-4; -1 where there is no such question.
        tags: (Q, M), padded with -1.
    """

    answer: np.ndarray
    tags: np.ndarray

    @property
    def num_tags(self) -> int:
        """One more than the largest tag."""
        return int(self.tags.max(initial=PAD)) + 1


def questions_from(table: pyarrow.Table) -> Questions:
    """Look-up arrays from the table of `preceptor.education.ednet_text.question_rows`.

    Raises:
        ValueError: no question.
    """
    numbers, tags = table["question"].to_numpy(), table["tags"].to_pylist()
    if not len(numbers):
        raise ValueError("questions: expected at least one, got none")
    size = int(numbers.max()) + 1
    answer = np.full(size, -1, np.int8)
    answer[numbers] = table["answer"].to_numpy()
    matrix = np.full((size, max(1, *map(len, tags))), PAD, np.int16)
    for number, row in zip(numbers, tags, strict=True):
        matrix[number, : len(row)] = row
    return Questions(answer=answer, tags=matrix)


def read_questions(folder: Path) -> Questions:
    """The questions of a converted folder.

    Raises:
        ValueError: it has no table of questions.
    """
    parquet = require("pyarrow.parquet", extra="education", purpose="EdNet's content tables")
    if not (folder / QUESTIONS).is_file():
        raise ValueError(f"folder: expected {QUESTIONS} in {folder}; convert with --contents, the zip or folder that holds questions.csv")
    return questions_from(parquet.read_table(folder / QUESTIONS))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Cleaned rows, whole students one after the other, each in order of time; all arrays (n,)."""

    user: np.ndarray
    question: np.ndarray
    correct: np.ndarray
    timestamp: np.ndarray  # ms
    elapsed: np.ndarray  # ms


def clean(table: pyarrow.Table, questions: Questions) -> Answers:
    """Keep what can be learned from, and mark what is correct.

    Args:
        table: rows of KT1 as `preceptor.education.ednet.convert` writes them, any number of whole students.
        questions: their answers and tags.
    """
    present = np.ones(table.num_rows, bool)
    columns = {}
    for name in ("user", "question", "answer", "timestamp", "elapsed"):
        column = table[name]
        if column.null_count:
            present &= column.is_valid().to_numpy()
            column = column.fill_null(0)
        columns[name] = column.to_numpy()
    number = columns["question"].astype(np.int32)
    known = (number >= 0) & (number < len(questions.answer))
    number = np.where(known, number, 0)
    right = questions.answer[number]
    present &= known & (right >= 0) & (questions.tags[number, 0] >= 0)
    correct = ((columns["answer"] == right) & (right > 0)).astype(np.int8)
    return Answers(
        user=columns["user"][present],
        question=number[present],
        correct=correct[present],
        timestamp=columns["timestamp"][present],
        elapsed=columns["elapsed"][present],
    )


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows of students' sequences, padded with -1.

    Attributes:
        user: (n,).
        start: (n,) steps of the student before the window.
        item: (n, L) number of the question, or of the tag.
        correct: (n, L) 0 or 1.
        elapsed: (n, L) ms.
        first: (n, L) bool: the step may be judged, it is the first of its answer.
    """

    user: np.ndarray
    start: np.ndarray
    item: np.ndarray
    correct: np.ndarray
    elapsed: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    @property
    def judged(self) -> np.ndarray:
        """(n, L) bool: steps that a tracer is scored on; not the first of a window, which has no history there."""
        judged = self.first.copy()
        judged[:, :1] = False
        return judged

    def take(self, rows: np.ndarray) -> Windows:
        """Some windows, by number or by a mask."""
        return Windows(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def windows(answers: Answers, questions: Questions, *, min_len: int = 3, max_len: int = 200, tags: Tags = "mean") -> Windows:
    """Cut students' sequences into windows.

    Args:
        answers: of whole students.
        questions: for the tags.
        min_len: students with fewer answers are left out.
        max_len: L >= 2; what remains after the last full window is padded.
        tags: see `Tags`.
    Raises:
        ValueError: max_len < 2, or another word for ``tags``.
    """
    if max_len < 2:
        raise ValueError(f"max_len: expected at least 2, got {max_len}")
    if tags not in ("mean", "expand"):
        raise ValueError(f"tags: expected 'mean' or 'expand', got {tags!r}")
    _, inverse, counts = np.unique(answers.user, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[inverse] >= min_len)
    item, first = answers.question[rows], np.ones(len(rows), bool)
    if tags == "expand":
        per_row = (questions.tags[item] >= 0).sum(1)
        own = questions.tags[item]
        item = own[own >= 0].astype(np.int32)
        rows = np.repeat(rows, per_row)
        first = np.diff(rows, prepend=-1) != 0
    user = answers.user[rows]
    begins = np.flatnonzero(np.diff(user, prepend=-1) != 0)
    lengths = np.diff(begins, append=len(user))
    place = np.arange(len(user)) - np.repeat(begins, lengths)
    per_user = -(-lengths // max_len)
    row = np.repeat(np.cumsum(per_user) - per_user, lengths) + place // max_len
    column = place % max_len
    total = int(per_user.sum())

    def laid(values: np.ndarray, kind: Any, empty: Any) -> np.ndarray:
        made = np.full((total, max_len), empty, kind)
        made[row, column] = values
        return made

    return Windows(
        user=np.repeat(user[begins], per_user),
        start=(np.arange(total) - np.repeat(np.cumsum(per_user) - per_user, per_user)) * max_len,
        item=laid(item, np.int32, PAD),
        correct=laid(answers.correct[rows], np.int8, PAD),
        elapsed=laid(answers.elapsed[rows], np.int32, PAD),
        first=laid(first, bool, False),
    )


def scan_windows(
    folder: Path,
    *,
    users: np.ndarray | None = None,
    groups: Sequence[int] | None = None,
    min_len: int = 3,
    max_len: int = 200,
    tags: Tags = "mean",
) -> Iterator[Windows]:
    """The windows of a converted folder, one row group at a time.

    Args:
        folder: of `preceptor.education.ednet.convert`, with questions; of actions (KT2 to KT4) the answers are made on the way.
        users: only these students; None: all.
        groups: only these row groups, in this order; None: all.
        min_len: see `windows`.
        max_len: see `windows`.
        tags: see `windows`.
    Raises:
        ValueError: no such file.
    """
    questions = read_questions(folder)
    for table in scan_answers(folder, groups=groups):
        answers = clean(table, questions)
        if users is not None:
            kept = np.isin(answers.user, users)
            answers = Answers(**{field.name: getattr(answers, field.name)[kept] for field in fields(answers)})
        yield windows(answers, questions, min_len=min_len, max_len=max_len, tags=tags)


def load_windows(folder: Path, **options: Any) -> Windows:
    """All windows of `scan_windows` in memory; the same options.

    Raises:
        ValueError: nothing is left after cleaning.
    """
    parts = list(scan_windows(folder, **options))
    whole = Windows(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Windows)})
    if not len(whole):
        raise ValueError(
            "answers: expected students with answers to questions of known tags, got none after cleaning:"
            " all are missing, too few for a student, or of unknown questions"
        )
    return whole


def split_students(users: np.ndarray, *, test_rate: float = 0.2, folds: int = 5, seed: int = 0) -> Mapping[str, np.ndarray]:
    """``test`` and ``fold-0`` to ``fold-K``: every student in exactly one of them.

    Args:
        users: numbers of students, repeats allowed.
        test_rate: share of the test part, in (0, 1).
        folds: parts of the rest, >= 2.
        seed: of the draw.
    Raises:
        ValueError: fewer students than parts, or an argument out of range.
    """
    if not 0 < test_rate < 1 or folds < 2:
        raise ValueError(f"test_rate, folds: expected a share in (0, 1) and at least 2, got {test_rate} and {folds}")
    known = np.unique(users)
    if len(known) < folds + 1:
        raise ValueError(f"students: expected at least {folds + 1} for a test part and {folds} folds, got {len(known)}")
    drawn = np.random.default_rng(seed).permutation(known)
    held = min(max(1, round(test_rate * len(known))), len(known) - folds)
    parts = np.array_split(drawn[held:], folds)
    return {"test": np.sort(drawn[:held]), **{f"fold-{number}": np.sort(part) for number, part in enumerate(parts)}}


def batch_of(part: Windows) -> Batch:
    """Windows as a batch: ``x`` {item, correct} (N, T), ``y`` (N, T) 0 or 1, ``mask`` of the judged steps, ``id`` the first row's student.

    Padding is item -1; T is that of the longest window.
    """
    longest = max(1, int((part.item >= 0).sum(1).max(initial=1)))
    item, correct = (torch.from_numpy(column[:, :longest].astype(np.int64)) for column in (part.item, part.correct))
    return {
        "x": {"item": item, "correct": correct.clamp(min=0)},
        "y": correct.clamp(min=0),
        "mask": torch.from_numpy(part.judged[:, :longest]).float(),
        "id": torch.from_numpy(part.user.astype(np.int64)),
    }
