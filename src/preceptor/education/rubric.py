"""A rubric: categories, each a statement that is true or false of a text, read from YAML and checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from preceptor.catalog import nearest

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Example(_Strict):
    """One text with the answer to the statement, and why."""

    comment: Text
    answer: bool
    explanation: str = ""


class Category(_Strict):
    """One question to a text.

    ``polarity`` false: where the statement is true of a text, its label is 0, as in "the comment is written in English" for non-English.
    """

    name: Text
    statement: Text
    polarity: bool = True
    examples: tuple[Example, ...] = ()

    def label(self, answer: bool) -> int:
        """The label, 0 or 1, that an answer to the statement gives."""
        return int(answer == self.polarity)


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
        whole = json.dumps([self.task, category.model_dump(), style], sort_keys=True)
        return f"{style}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


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
