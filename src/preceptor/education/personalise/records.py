"""What a personalised task is made of, as JSON: problems, profiles, a catalogue of interests, variants."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Record = TypeVar("Record", bound="Strict")


class Strict(BaseModel):
    """A record that refuses unknown fields and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(Strict):
    """A task of the curriculum.

    Attributes:
        id: its name.
        text: as it stands in the book.
        solution: arithmetic that gives the answer, such as ``3 * 4 + 2``; with several questions one for each, ``3 * 4; 12 + 2``.
        skill: what it trains.
        template: the text with slots such as ``{thing}``, for drafts without a model; empty where there is none.
        slots: what stands in the slots where a topic says nothing else.
        free_numbers: numbers of the text that a variant may change.
        ranges: unit -> least and largest number that may stand beside it, such as ``{"km/h": (1, 120)}``.
        context_matters: the context is the mathematics (dice, a calendar): it is not personalised.
    """

    id: str = Field(min_length=1)
    text: str = Field(min_length=1)
    solution: str = Field(min_length=1)
    skill: str = ""
    template: str = ""
    slots: dict[str, str] = {}
    free_numbers: tuple[float, ...] = ()
    ranges: dict[str, tuple[float, float]] = {}
    context_matters: bool = False


class Profile(Strict):
    """What a student said about interests. Nothing is inferred from who a student is.

    Attributes:
        student: a number or pseudonym; never a name, and never part of a prompt.
        topics: topic -> weight, >= 0; empty: no survey, the class's mean is taken.
        references: topic -> name of an artist, a team, a game -> weight, >= 0.
    """

    student: str = Field(min_length=1)
    topics: dict[str, float] = {}
    references: dict[str, dict[str, float]] = {}

    @model_validator(mode="after")
    def _weights(self) -> Profile:
        for name, weights in (("topics", self.topics), *((f"references.{t}", r) for t, r in self.references.items())):
            if weights and not (all(0 <= weight < float("inf") for weight in weights.values()) and sum(weights.values()) > 0):
                raise ValueError(f"{name} of {self.student}: expected weights >= 0, one of them above, got {weights}")
        return self

    def weight(self, topic: str) -> float:
        """w: the topic's share of all topics."""
        total = sum(self.topics.values())
        return self.topics.get(topic, 0.0) / total if total else 0.0

    def reference_weight(self, topic: str, reference: str) -> float:
        """r: the reference's share within its topic."""
        known = self.references.get(topic, {})
        total = sum(known.values())
        return known.get(reference, 0.0) / total if total else 0.0


class Reference(Strict):
    """Something known that may be named: from which age on, and when somebody last looked whether it still fits."""

    min_age: int = 0
    checked: datetime.date | None = None


class Topic(Strict):
    """An interest: words that show it in a text, what it puts in the slots of templates, and what may be named."""

    words: tuple[str, ...] = ()
    slots: dict[str, str] = {}
    references: dict[str, Reference] = {}


class Catalogue(Strict):
    """The topics that may be used; a reference that is not here is never used."""

    topics: dict[str, Topic]

    @classmethod
    def read(cls, path: Path) -> Catalogue:
        """Read a JSON or YAML file.

        Raises:
            ValueError: no such file, or it is no catalogue; one line.
        """
        if not path.is_file():
            raise ValueError(f"{path}: expected an existing file, got none")
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected a catalogue of topics, got {one_line(error)}") from None

    def references(self) -> dict[str, str]:
        """Every reference with its topic."""
        return {reference: name for name, topic in self.topics.items() for reference in topic.references}


class Draft(Strict):
    """What a generator writes: the task, and the arithmetic that gives its answer."""

    text: str = Field(min_length=1)
    solution: str = Field(min_length=1)


class Variant(Strict):
    """A task for some students.

    Attributes:
        id: problem and target.
        problem: id of the problem.
        students: who gets it.
        topic: the interest, "" for the original.
        reference: what is named, "" for nothing.
        text, solution: of the newest draft.
    """

    id: str
    problem: str
    students: tuple[str, ...]
    topic: str = ""
    reference: str = ""
    text: str = ""
    solution: str = ""


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read JSON lines.

    Raises:
        ValueError: no such file, a line that is no such record (it is named), or no line at all.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected an existing file, got none")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                found.append(kind.model_validate_json(line))
            except ValidationError as error:
                raise ValueError(f"{path}: expected a {kind.__name__} at line {number}, got {one_line(error)}") from None
    if not found:
        raise ValueError(f"{path}: expected at least one {kind.__name__}, got none")
    return found


def lines_of(records: Sequence[BaseModel]) -> str:
    """Records as JSON lines."""
    return "".join(json.dumps(record.model_dump(mode="json"), ensure_ascii=False) + "\n" for record in records)


def one_line(error: Exception) -> str:
    """What is wrong first, in one line."""
    if isinstance(error, ValidationError):
        first: Any = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}"
    return " ".join(str(error).split())
