"""Answers of a given shape: JSON that fits a pydantic model, and choices among options."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from preceptor.teachers.chat.types import Answer

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_SHOWN = 300  # characters of what does not fit
_INSTRUCTION = "Answer with one JSON value that fits this JSON schema, and with nothing else:"

Messages = tuple[dict[str, str], ...]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Structured(Generic[Model]):
    """What came of one prompt: a value, or in ``failed`` why the last of all ``answers`` does not fit."""

    value: Model | None
    failed: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which option is the most likely answer; ``index`` is None where there is none, and ``failed`` says why.

    ``log_probs``: of each option, in nats; -inf where an endpoint has it not among its likeliest tokens.
    """

    index: int | None
    option: str
    log_probs: tuple[float, ...]
    failed: str
    answer: Answer


def with_schema(messages: Messages, model: type[BaseModel]) -> Messages:
    """The messages, the last one of the user followed by the JSON schema of a model."""
    wanted = f"{_INSTRUCTION}\n{json.dumps(model.model_json_schema(), ensure_ascii=False)}"
    last = messages[-1]
    if last["role"] != "user":
        return (*messages, {"role": "user", "content": wanted})
    return (*messages[:-1], {"role": "user", "content": f"{last['content']}\n\n{wanted}"})


def parsed(answer: Answer, model: type[Model]) -> tuple[Model | None, str]:
    """The value in an answer, or one line that says why there is none.

    JSON is looked for in the whole text, in its fenced blocks, and between its outermost brackets.
    """
    failed = ""
    for candidate in _candidates(answer.text):
        try:
            return model.model_validate_json(candidate), ""
        except ValidationError as error:
            first = error.errors(include_url=False)
            if not failed or first[0]["type"] != "json_invalid":
                failed = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'value'}: {one['msg']}" for one in first)
    cut = f" (cut after {answer.completion_tokens} tokens)" if answer.finish == "length" else ""
    shown = " ".join(answer.text.split())
    return None, f"expected {model.__name__}, got {shown[:60]!r}{cut}: {' '.join(failed.split())}"[:_SHOWN]


def complaint(answer: Answer, failed: str) -> Messages:
    """What is said after an answer that does not fit."""
    wrong = {"role": "assistant", "content": answer.text or "(nothing)"}  # some endpoints refuse an empty message
    return (wrong, {"role": "user", "content": f"That does not fit: {failed}. Answer again, with the JSON value alone."})


def option_lists(options: Sequence[str] | Sequence[Sequence[str]], total: int) -> list[tuple[str, ...]]:
    """The options of each of ``total`` prompts.

    Raises:
        ValueError: fewer than 2, an empty one, one twice, or lists for another number of prompts.
    """
    common = all(isinstance(option, str) for option in options)
    lists = [tuple(map(str, options))] * total if common else [tuple(one) for one in options]
    if len(lists) != total:
        raise ValueError(f"options: expected texts, or a list for each of {total} prompts, got {len(lists)} lists")
    for texts in lists:
        if len(texts) < 2 or len({text.strip() for text in texts} - {""}) < len(texts):
            raise ValueError(f"options: expected at least 2 different texts, got {list(texts)}")
    return lists


def chosen(options: Sequence[str], answer: Answer) -> Choice:
    """The likeliest option; of equal ones the first."""
    scores = answer.log_probs or (-math.inf,) * len(options)
    failed = answer.failed or (
        "" if max(scores) > -math.inf else f"expected one of {', '.join(options)} among the likeliest tokens, got none"
    )
    index = None if failed else max(range(len(options)), key=lambda i: (scores[i], -i))
    return Choice(index=index, option="" if index is None else options[index], log_probs=scores, failed=failed, answer=answer)


def _candidates(text: str) -> Iterator[str]:
    yield text.strip()
    yield from _FENCED.findall(text)
    for opening, closing in ("{}", "[]"):
        start, end = text.find(opening), text.rfind(closing)
        if 0 <= start < end:
            yield text[start : end + 1]
