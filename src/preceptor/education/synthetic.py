"""Made-up students in EdNet's true schema: a zip of one CSV per student, content tables included, with known chances of every answer.

A student answers bundles of questions; the chance of a correct answer is
    sigma(ability_u + affinity_{u,k} + rate_u log(1 + n) - difficulty_q),   n: answers to questions of the same first tag k so far.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from preceptor.core.optional import require
from preceptor.education.synthetic_actions import KINDS, actions_of

CHUNK = 2000
"""Students made at one time; the numbers of a student depend on the seed and on its chunk, not on how many are asked for."""

_START = 1_492_500_000_000  # ms, April 2017
_MISSING = 0.003  # share of answers that were not given
LETTERS = np.array(["a", "b", "c", "d"])


@dataclass(frozen=True, kw_only=True)
class School:
    """Sizes and spreads of a made-up school.

    Attributes:
        questions: at least 1.
        tags: at least 1.
        mean_length: answers of a student.
        spread: standard deviation of their logarithm; 0: all have as many.
        bundled: share of bundles with 2 to 5 questions.
        max_tags: of one question.
        ability: standard deviation, in logits.
        affinity: standard deviation of a student's offset for a tag, in logits.
        rate: mean gain per unit of log(1 + n), in logits.
        difficulty: standard deviation, in logits.
    """

    questions: int = 2000
    tags: int = 100
    mean_length: float = 120.0
    spread: float = 1.0
    bundled: float = 0.25
    max_tags: int = 3
    ability: float = 1.0
    affinity: float = 0.6
    rate: float = 0.3
    difficulty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("questions", "tags", "mean_length", "max_tags"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The questions of a school; arrays (Q,), question number i + 1 at i."""

    bundle: np.ndarray
    answer: np.ndarray  # 1-4
    part: np.ndarray
    tags: list[list[int]]
    difficulty: np.ndarray
    first: np.ndarray  # (bundles,) index of the first question
    size: np.ndarray  # (bundles,)


def contents(school: School, seed: int) -> Contents:
    """The questions, from the seed alone."""
    random = np.random.default_rng((seed, 0))
    sizes = np.where(random.random(school.questions) < school.bundled, random.integers(2, 6, school.questions), 1)
    bundle = np.repeat(np.arange(school.questions), sizes)[: school.questions]
    part = np.where(sizes[bundle] > 1, random.choice([3, 4, 6, 7], school.questions), random.choice([1, 2, 5], school.questions))
    counts = random.integers(1, min(school.max_tags, school.tags) + 1, school.questions)
    tags = [sorted(random.choice(school.tags, count, replace=False).tolist()) for count in counts]
    first = np.flatnonzero(np.diff(bundle, prepend=-1))
    return Contents(
        bundle=bundle,
        answer=random.integers(1, np.where(part == 2, 4, 5)),
        part=part,
        tags=tags,
        difficulty=school.difficulty * random.standard_normal(school.questions),
        first=first,
        size=np.diff(first, append=school.questions),
    )


def students(users: int, *, school: School, seed: int, table: Contents | None = None) -> Iterator[dict[str, np.ndarray]]:
    """The rows of students 1 to ``users``, a chunk of whole students at a time.

    Returns:
        user, timestamp, solving, question, answer (1-4; 0: not given), elapsed, and what no log would say: correct, and probability.
    Raises:
        ValueError: users < 1.
    """
    if users < 1:
        raise ValueError(f"users: expected at least 1, got {users}")
    table = table or contents(school, seed)
    for start in range(0, users, CHUNK):
        chunk = _chunk(start // CHUNK, school, seed, table)
        yield {name: column[chunk["user"] <= users] for name, column in chunk.items()}


def _chunk(number: int, school: School, seed: int, table: Contents) -> dict[str, np.ndarray]:
    random = np.random.default_rng((seed, 1, number))
    lengths = school.mean_length * np.exp(school.spread * random.standard_normal(CHUNK) - school.spread**2 / 2)
    bundles = np.maximum(1, np.rint(lengths / table.size.mean())).astype(np.int64).clip(max=20_000)
    owner = np.repeat(np.arange(CHUNK), bundles)
    picked = random.integers(0, len(table.size), len(owner))
    begins = np.cumsum(bundles) - bundles
    gap = random.exponential(60_000, len(owner)) + np.where(random.random(len(owner)) < 0.05, random.exponential(8.64e7, len(owner)), 0)
    start = random.random(CHUNK) * 3e10
    sizes = table.size[picked]
    row = np.repeat(np.arange(len(owner)), sizes)
    within = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    question = table.first[picked][row] + within
    user = owner[row]
    first_tag = np.array([tags[0] for tags in table.tags])[question]
    ability = school.ability * random.standard_normal(CHUNK)
    affinity = school.affinity * random.standard_normal((CHUNK, school.tags))
    rate = school.rate * random.gamma(2.0, 0.5, CHUNK)
    practice = _earlier(user * school.tags + first_tag)
    logit = ability[user] + affinity[user, first_tag] + rate[user] * np.log1p(practice) - table.difficulty[question]
    probability = 1 / (1 + np.exp(-logit))
    correct = random.random(len(row)) < probability
    choices = np.where(table.part[question] == 2, 3, 4)
    wrong = (table.answer[question] - 1 + random.integers(1, choices)) % choices + 1
    answer = np.where(random.random(len(row)) < _MISSING, 0, np.where(correct, table.answer[question], wrong))
    elapsed = np.exp(random.normal(9.9, 0.7, len(owner))).clip(500, 3.6e6).astype(np.int32)
    time = np.cumsum(gap + np.append(0, (elapsed * sizes)[:-1]))  # a bundle begins after the one before was submitted
    time = _START + start[owner] + time - time[begins][owner]
    return {
        "user": (user + 1 + number * CHUNK).astype(np.int32),
        "timestamp": time[row].astype(np.int64),
        "solving": (row - begins[user] + 1).astype(np.int32),
        "question": (question + 1).astype(np.int16),
        "answer": answer.astype(np.int8),
        "elapsed": elapsed[row],
        "correct": (answer == table.answer[question]).astype(np.int8),
        "probability": probability,
    }


def synthesize(users: int, path: Path, *, level: Literal["KT1", "KT2"] = "KT1", school: School | None = None, seed: int = 0) -> int:
    """Write ``KT1/u1.csv`` ... and ``contents/questions.csv`` to a zip; return the number of rows.

    Args:
        users: students, >= 1.
        path: the zip; made aside and renamed.
        level: answers, or the actions that these answers came from.
        school: sizes and spreads.
        seed: of everything.
    Raises:
        ValueError: an argument out of range.
    """
    if level not in ("KT1", "KT2"):
        raise ValueError(f"level: expected 'KT1' or 'KT2', got {level!r}")
    school = school or School()
    table = contents(school, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    rows = 0
    with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, text in _content_files(table).items():
            archive.writestr(f"contents/{name}", text)
        for chunk in students(users, school=school, seed=seed, table=table):
            made = chunk if level == "KT1" else actions_of(chunk, table, seed)
            rows += len(made["user"])
            for user, text in _files(made["user"], _answer_columns(made) if level == "KT1" else _action_columns(made)):
                archive.writestr(f"{level}/u{user}.csv", text)
    aside.replace(path)
    return rows


def _answer_columns(chunk: dict[str, np.ndarray]) -> dict[str, Any]:
    largest = int(chunk["question"].max(initial=0))
    return {
        "timestamp": chunk["timestamp"],
        "solving_id": chunk["solving"],
        "question_id": _words(chunk["question"], [f"q{i}" for i in range(largest + 1)]),
        "user_answer": _words(chunk["answer"], [None, *LETTERS]),
        "elapsed_time": chunk["elapsed"],
    }


def _action_columns(chunk: dict[str, np.ndarray]) -> dict[str, Any]:
    largest = int(chunk["number"].max(initial=0)) + 1
    names = [f"{letter}{i}" for letter in "bq" for i in range(largest)]
    return {
        "timestamp": chunk["timestamp"],
        "action_type": _words(chunk["kind"], KINDS),
        "item_id": _words(chunk["number"] + largest * (chunk["kind"] == 1), names),
        "source": _words(np.zeros_like(chunk["kind"]), ["sprint"]),
        "user_answer": _words(chunk["answer"], [None, *LETTERS]),
        "platform": _words(np.zeros_like(chunk["kind"]), ["mobile"]),
    }


def _words(codes: np.ndarray, words: Sequence[str | None]) -> Any:
    """A column of words by number; None is an empty field."""
    pyarrow: Any = require("pyarrow", extra="education", purpose="writing logs in EdNet's schema")
    return pyarrow.array(words, pyarrow.string()).take(pyarrow.array(codes.astype(np.int64)))


def _files(user: np.ndarray, columns: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
    """The CSV file of every student of a chunk."""
    pyarrow: Any = require("pyarrow", extra="education", purpose="writing logs in EdNet's schema")
    csv = require("pyarrow.csv", extra="education", purpose="writing logs in EdNet's schema")
    buffer = io.BytesIO()
    csv.write_csv(pyarrow.table(columns), buffer, csv.WriteOptions(include_header=False, quoting_style="none"))
    text = buffer.getvalue()
    head = ",".join(columns).encode() + b"\n"
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 10) + 1
    begin = 0
    for row in np.flatnonzero(np.diff(user, append=-1)):
        yield int(user[row]), head + text[begin : ends[row]]
        begin = int(ends[row])


def _content_files(table: Contents) -> dict[str, str]:
    lines = ["question_id,bundle_id,explanation_id,correct_answer,part,tags,deployed_at"]
    for i, tags in enumerate(table.tags):
        bundle = int(table.bundle[i]) + 1
        words = ";".join(map(str, tags))
        lines.append(f"q{i + 1},b{bundle},e{bundle},{LETTERS[table.answer[i] - 1]},{table.part[i]},{words},{_START - 1000 * i}")
    lectures = ["lecture_id,tags,part,video_length,deployed_at", "l1,0,5,240000,-1"]
    return {"questions.csv": "\n".join(lines) + "\n", "lectures.csv": "\n".join(lectures) + "\n"}


def _earlier(keys: np.ndarray) -> np.ndarray:
    """How many earlier entries are equal to each one."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    counts = np.arange(len(keys)) - np.repeat(begins, np.diff(begins, append=len(keys)))
    found = np.empty(len(keys), np.int64)
    found[order] = counts
    return found
