"""What happened in a review, one JSON line per event, on the disk before anything goes on."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from pydantic import ConfigDict, Field, ValidationError

from preceptor.core.files import sync, sync_folder
from preceptor.education.personalise.records import Strict, one_line

Move = Literal[
    "interest", "reference grain", "reference fix", "depth", "realism", "mathematics", "wording", "format", "accept", "reject", "write"
]  # fmt: skip
"""What a teacher does: set the interest, make the reference narrower or broader, correct a wrong or outdated one, change depth or
difficulty, fix realism, fix mathematics or the answer, change wording or reading level, change format or number of items, accept, reject or
start over, write by hand."""
MOVES: tuple[Move, ...] = get_args(Move)

Kind = Literal["open", "draft", "edit", "ask", "accept", "reject", "stop"]
"""Shown to the teacher; drafted by the generator; changed by hand; asked to be drafted again; delivered; not delivered; left for later."""


class Event(Strict):
    """One event.

    Attributes:
        time: seconds since 1970.
        actor: ``teacher``, ``model`` or ``system``.
        kind: see `Kind`.
        problem, variant: ids.
        moves: labels of what the teacher did, several where several fit.
        text: the draft or edited text, the note of ``ask``, or why.
        solution: of a draft or an edit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    time: float
    actor: Literal["teacher", "model", "system"]
    kind: Kind
    problem: str = ""
    variant: str = ""
    moves: tuple[Move, ...] = Field(default=())
    text: str = ""
    solution: str = ""


class EventLog:
    """A file of events that only grows. A line that a kill cut short is taken away when the file is opened again.

    Args:
        path: the file, made when missing.
        clock: seconds since 1970.
    Raises:
        ValueError: a line that is no event, or another session has the file open.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path, self.clock = path, clock
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ValueError(f"{path}: expected no other review on it, got one that is running") from None
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        try:
            self.events = parse_events(whole.decode("utf-8", errors="replace"), path)
        except ValueError:
            self.close()
            raise
        sync_folder(path.parent)

    def add(self, kind: Kind, actor: Literal["teacher", "model", "system"], **rest: str | Sequence[Move]) -> Event:
        """Write an event with the time of now, and bring it to the disk."""
        event = Event.model_validate({"time": self.clock(), "kind": kind, "actor": actor, **rest})
        self._file.write(event.model_dump_json().encode() + b"\n")
        sync(self._file)
        self.events.append(event)
        return event

    def close(self) -> None:
        """Close the file; another session may go on."""
        self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def parse_events(text: str, path: Path) -> list[Event]:
    """Events from JSON lines.

    Raises:
        ValueError: names the line that is none.
    """
    events = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            events.append(Event.model_validate_json(line))
        except ValidationError as error:
            raise ValueError(f"{path}: expected an event at line {number}, got {one_line(error)}") from None
    return events


def read_events(path: Path) -> list[Event]:
    """Read a file of events, also while it is being written; a last line without its end is left out.

    Raises:
        ValueError: no such file, or a line that is no event.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected an existing file, got none")
    text = path.read_bytes()
    return parse_events(text[: text.rfind(b"\n") + 1].decode("utf-8", errors="replace"), path)
