"""A rubric: categories, each a statement that is true or false of a text, or a question with levels, read from YAML and checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from preceptor.catalog import nearest
from preceptor.education.agreement import MISSING, Weights

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Example(_Strict):
    """One text with the answer to the statement, true or false or a level, and why."""

    comment: Text
    answer: bool | Text
    explanation: str = ""


class Category(_Strict):
    """One question to a text.

    Attributes:
        statement: true or false of a text; with levels, what they answer, such as "How sure is the student?".
        polarity: false: where the statement is true of a text, its label is 0, as in "the comment is written in English" for non-English.
        levels: answers from the lowest to the highest, whose labels are 0, 1, ...; none: true or false.
        weights: how wrong it is to take one level for another.
    """

    name: Text
    statement: Text
    polarity: bool = True
    levels: tuple[Text, ...] = ()
    weights: Weights = "quadratic"  # of the weighted kappas the usual one
    examples: tuple[Example, ...] = ()

    @model_validator(mode="after")
    def _answers_fit(self) -> Category:
        words = [bare(level) for level in self.levels]
        if len(words) == 1 or len(set(words)) < len(words):
            raise ValueError(f"{self.name}: expected at least 2 levels that differ, got {', '.join(self.levels)}")
        if self.levels and not self.polarity:
            raise ValueError(f"{self.name}: expected no polarity with levels: turn their order")
        if "weights" in self.model_fields_set and not self.levels:
            raise ValueError(f"{self.name}: expected levels with weights, got none")
        for example in self.examples:
            if isinstance(example.answer, bool) == bool(self.levels) or (self.levels and bare(str(example.answer)) not in words):
                wanted = ", ".join(self.levels) or "true, false"
                raise ValueError(f"{self.name}: expected answers of examples out of {wanted}, got {example.answer!r}")
        return self

    @property
    def choices(self) -> tuple[str, ...]:
        """Words to answer with."""
        return self.levels or ("true", "false")

    @property
    def labels(self) -> tuple[str, ...]:
        """How each label, 0, 1, ..., is written."""
        return self.levels or ("0", "1")

    def label(self, choice: int) -> int:
        """The label of a choice by its number."""
        return choice if self.levels else int((choice == 0) == self.polarity)

    def read(self, text: str) -> int | None:
        """The label in a cell of a table, a level by its word or its number; `MISSING` for nothing, None for what is no label."""
        codes = {str(code): code for code in range(len(self.labels))} | {f"{code}.0": code for code in range(len(self.labels))}
        if any(bare(level).replace(".", "").isdigit() for level in self.levels):
            codes = {}  # levels that are numbers themselves
        codes |= {"": MISSING, "nan": MISSING, "none": MISSING}
        codes |= {bare(level): code for code, level in enumerate(self.levels)} if self.levels else {"true": 1, "false": 0}
        return codes.get(bare(text))


class Rubric(_Strict):
    """Categories by name. ``task`` says what the texts are, in one sentence, to whoever labels them."""

    task: Text = "Decide whether a statement about a comment is true or false."
    categories: Annotated[tuple[Category, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> Rubric:
        names = [category.name for category in self.categories]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"categories: expected every name once, got {twice!r} twice")
        return self

    @property
    def names(self) -> list[str]:
        """Of the categories, in order."""
        return [category.name for category in self.categories]

    def version(self, category: Category, style: str) -> str:
        """What tells two wordings of one question apart: the style and a hash of everything that its prompts hold."""
        held = category.model_dump(exclude={"weights"} if category.levels else {"weights", "levels"})
        whole = json.dumps([self.task, held, style], sort_keys=True)
        return f"{style}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def bare(text: str) -> str:
    """An answer without what stands around it: quotes, stars, a full stop, white space; in small letters."""
    return " ".join(text.strip("\"'`*. \n\t").lower().split())


def read_rubric(path: Path) -> Rubric:
    """Read a rubric from a YAML file.

    Raises:
        ValueError: no such file, no YAML, or no rubric; one line that names the field, with the nearest name of an unknown one.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected an existing file, got none")
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML, got {' '.join(str(error).split())}") from None
    try:
        return parse_rubric(described)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_rubric(described: object) -> Rubric:
    """Check what a YAML file holds; see `read_rubric`."""
    if not isinstance(described, dict):
        raise ValueError(f"rubric: expected a mapping with categories, got {type(described).__name__}")
    try:
        return Rubric.model_validate_json(json.dumps(described))  # JSON has lists where the models have tuples
    except (TypeError, ValidationError) as error:
        raise ValueError(_explained(error)) from None


def _explained(error: TypeError | ValidationError) -> str:
    """One finding as one line."""
    if isinstance(error, TypeError):
        return f"rubric: expected texts, lists and true or false, got another value ({error})"
    every = error.errors(include_url=False)
    found = next((one for one in every if one["type"] == "extra_forbidden"), every[0])  # a misspelt name is missing too
    where = ".".join(map(str, found["loc"]))
    if found["type"] == "extra_forbidden":
        level = sum(isinstance(part, int) for part in found["loc"])
        fields = list((Rubric, Category, Example)[level].model_fields)
        return f"{where}: expected one of {', '.join(fields)}, got {found['loc'][-1]!r}{nearest(str(found['loc'][-1]), fields)}"
    if found["type"] == "value_error":
        return found["msg"].removeprefix("Value error, ")
    if found["type"] == "missing":
        return f"{where}: expected a value, got nothing"
    what = found["msg"].removeprefix("Input should be ")
    return f"{where}: expected {what[:1].lower()}{what[1:]}, got {found['input']!r}"
