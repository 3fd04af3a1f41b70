"""Label texts by a rubric with a language model: one question for each text and category, joined to people's labels on the id."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from preceptor.catalog import nearest
from preceptor.education.agreement import MISSING
from preceptor.education.rubric import Category, Rubric
from preceptor.education.tables import Row, by_id, check_columns, read_rows
from preceptor.teachers.chat import Answer, Chat, Settings

Style = Literal["zero-shot", "few-shot", "reasoning"]
"""The statement alone; with the examples of the rubric; with examples that explain before they answer."""

STYLES: tuple[Style, ...] = ("zero-shot", "few-shot", "reasoning")
Reading = Literal["text", "log-probs"]
"""Where a label comes from: the word that is written, or the more likely of the two words, for models too small to keep to a form."""

SHOTS = 3  # examples that a prompt shows at most, the paper's 3-shot
_MARKER = "Label:"
_TOKENS = {"zero-shot": 8, "few-shot": 8, "reasoning": 256}
_ORDERS = {
    "zero-shot": 'Answer with one word, "true" or "false".',
    "few-shot": 'Answer with one word, "true" or "false".',
    "reasoning": f'Explain in one sentence. Then write "{_MARKER}" and one word, "true" or "false".',
}
_CHOICES = ("true", "false")
_AGAIN = f'That is not "true" or "false". Write "{_MARKER}" and one of these two words, and nothing else.'
_WORDS = {"true": 1, "false": 0, "1": 1, "0": 0, "1.0": 1, "0.0": 0, "": MISSING, "nan": MISSING, "none": MISSING}


@dataclass(frozen=True, kw_only=True)
class Comments:
    """Texts to label.

    Attributes:
        ids: N, each once, as text.
        texts: N.
        about: N lines of context, such as which lecture a text is under; may be empty.
        people: (N, C) labels 0 and 1, `MISSING` for none, by the name of who gave them.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    about: tuple[str, ...]
    people: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What a model said.

    Attributes:
        labels: (N, C) labels 0 and 1, `MISSING` where no answer was one.
        answers: of every text and category the answers to all tries, (N, C) lists.
        failed: (N, C): why there is no label, "" where there is one.
    """

    labels: np.ndarray
    answers: tuple[tuple[tuple[Answer, ...], ...], ...]
    failed: tuple[tuple[str, ...], ...]

    def cost(self) -> float:
        """Of all answers, whenever they were paid for."""
        return sum(answer.cost for row in self.answers for tries in row for answer in tries)

    def tokens(self) -> int:
        """Read and written for all answers."""
        return sum(answer.prompt_tokens + answer.completion_tokens for row in self.answers for tries in row for answer in tries)


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
            table[:, place] = [_label(row.get(column), f"{path}: {column} of {key}") for key, row in found.items()]
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


def annotate(
    comments: Comments,
    rubric: Rubric,
    chat: Chat,
    *,
    style: Style = "zero-shot",
    reading: Reading = "text",
    asks: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> Annotation:
    """Ask about every text and category, greedily, and again where the answer is neither true nor false.

    Args:
        comments: N texts.
        rubric: C categories.
        chat: who labels.
        style: of the prompts.
        reading: of the answers; ``log-probs`` does not go with ``reasoning``.
        asks: tries at most, >= 1.
        progress: called with the number of questions that are settled, and N C.
    Raises:
        ValueError: an unknown style, no examples for one that shows them, or no try.
        ChatStopped: see `preceptor.teachers.chat.Chat.ask`; what was answered is in the journal.
        Interrupted: the same.
    """
    if style not in STYLES:
        raise ValueError(f"style: expected one of {', '.join(STYLES)}, got {style!r}{nearest(style, STYLES)}")
    if reading not in ("text", "log-probs") or (reading == "log-probs" and style == "reasoning"):
        raise ValueError(f"reading: expected 'text', or 'log-probs' with zero-shot or few-shot, got {reading!r} with {style!r}")
    if asks < 1:
        raise ValueError(f"asks: expected at least 1, got {asks}")
    bare = next((category.name for category in rubric.categories if style != "zero-shot" and not category.examples), None)
    if bare is not None:
        raise ValueError(f"style: expected examples in every category for {style!r}, got none in {bare!r}")
    chats = [
        [{"role": "user", "content": prompt(rubric, category, text, style=style, about=about)}]
        for text, about in zip(comments.texts, comments.about, strict=True)
        for category in rubric.categories
    ]
    if reading == "log-probs":
        choices = chat.choose(chats, _CHOICES, progress=progress)
        tries = [[choice.answer] for choice in choices]
        said = [None if choice.index is None else choice.index == 0 for choice in choices]
        whys = [choice.failed for choice in choices]
    else:
        tries, said, whys = _written(chats, chat, Settings(max_tokens=_TOKENS[style]), asks, progress)
    width = len(rubric.categories)
    labels = np.full(len(chats), MISSING)
    for place, answer in enumerate(said):
        if answer is not None:
            labels[place] = rubric.categories[place % width].label(answer)
    return Annotation(
        labels=labels.reshape(-1, width),
        answers=tuple(tuple(map(tuple, tries[at : at + width])) for at in range(0, len(chats), width)),
        failed=tuple(tuple(whys[at : at + width]) for at in range(0, len(chats), width)),
    )


def prompt(rubric: Rubric, category: Category, text: str, *, style: Style, about: str = "") -> str:
    """The question about one text and one category.

    A text cannot close its own quotation, and what it says about labels stands before the last marker.
    """
    lines = [rubric.task, f"Statement: {category.statement}"]
    if style != "zero-shot":
        for example in category.examples[:SHOTS]:
            answer = str(example.answer).lower()
            reason = f"{example.explanation} " if style == "reasoning" and example.explanation else ""
            lines += ["", _quoted(example.comment), f"{reason}{_MARKER} {answer}" if style == "reasoning" else f"{_MARKER} {answer}"]
        lines.append("")
    lines += [f"({about})"] if about else []
    return "\n".join([*lines, _quoted(text), f"Is the statement true of this comment? {_ORDERS[style]}"])


def parse_answer(text: str) -> bool | None:
    """True or false after the last marker, quotes and the full stop left out; None for anything else."""
    word = re.split(re.escape(_MARKER), text, flags=re.IGNORECASE)[-1].strip().strip("\"'`*. \n").lower()
    return {"true": True, "false": False}.get(word)


def _written(
    chats: list[list[dict[str, str]]], chat: Chat, settings: Settings, asks: int, progress: Callable[[int, int], None] | None
) -> tuple[list[list[Answer]], list[bool | None], list[str]]:
    """Of each prompt all answers, what the last one says, and why it says nothing."""
    tries: list[list[Answer]] = [[] for _ in chats]
    said: list[bool | None] = [None] * len(chats)
    pending = list(range(len(chats)))
    for _ in range(asks):
        settled = len(chats) - len(pending)
        tell = None if progress is None else (lambda done, _, settled=settled: progress(settled + done, len(chats)))
        again = []
        for place, answer in zip(pending, chat.ask([chats[i] for i in pending], settings, progress=tell), strict=True):
            tries[place].append(answer)
            said[place] = None if answer.failed else parse_answer(answer.text)
            if said[place] is None and not answer.failed:
                wrong = {"role": "assistant", "content": answer.text or "(nothing)"}
                chats[place] = [*chats[place], wrong, {"role": "user", "content": _AGAIN}]
                again.append(place)
        pending = again
    whys = [
        "" if answer is not None else row[-1].failed or f"expected true or false, got {' '.join(row[-1].text.split())[:60]!r}"
        for answer, row in zip(said, tries, strict=True)
    ]
    return tries, said, whys


def _quoted(text: str) -> str:
    inside = re.sub(r"</?\s*comment\s*>", lambda found: found[0].replace("<", "‹").replace(">", "›"), text, flags=re.IGNORECASE)
    return f"<comment>{inside}</comment>"


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _none(items: int, rubric: Rubric) -> np.ndarray:
    return np.full((items, len(rubric.categories)), MISSING)


def _category(rubric: Rubric, name: str, where: str) -> int:
    if name not in rubric.names:
        raise ValueError(f"{where}: expected a category out of {', '.join(rubric.names)}, got {name!r}{nearest(name, rubric.names)}")
    return rubric.names.index(name)


def _label(value: Any, where: str) -> int:
    """The code of a person's label."""
    word = _text(value).strip().lower()
    if word not in _WORDS:
        raise ValueError(f"{where}: expected a label 0 or 1, true or false, or nothing, got {value!r}")
    return _WORDS[word]


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
            table[:, place] = [_label(row.get(column), f"{path}: {column} of {key}") for key, row in rows.items()]
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
            table[index[key], rubric.names.index(name)] = _label(row.get(name), f"{file}: {name} of {key} by {person}")
    return table
