"""Multiple-choice tests for language models: prompts, letters read from answers, options in every position, and habits of letters."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from preceptor.catalog import nearest
from preceptor.teachers.chat import Answer, Chat, Choice, Settings

LETTERS = "ABCDEFG"
NONE = -1
"""The option of an answer in which no letter was found."""

Parsing = Literal["strict-official", "lenient", "log-probs"]
"""The released code's four forms of an answer; more forms; or no text at all: the letter with the largest log-probability."""

PARSINGS: tuple[Parsing, ...] = ("strict-official", "lenient", "log-probs")
LetterPrior = Literal["none", "empty", "test"]
"""What is taken off the log-probabilities of letters: nothing; what an empty question gives; or their means over the questions asked."""

Order = Literal["given", "cyclic"]
"""Options as they stand; or once for each cyclic shift, so that each option stands at every letter once."""

_OPENED = ".()?:*"
_SPOKEN = re.compile(r"(?i:answer)\s*(?:is|:|=)?\s*[:\"'*(\[]*\s*([A-G])\b(?!')")
_ALONE = re.compile(r"(?<![A-Za-z])([A-G])(?![A-Za-z'])")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question with 2 to 7 options; ``answer`` is the letter of the right one, or what stands in its place and matches none."""

    id: str
    question: str
    options: tuple[str, ...]
    answer: str
    category: str = ""
    age_group: str = ""
    year: str = ""


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """What one model answered.

    Attributes:
        model: its name.
        chosen: of each item, for each order asked, the number of the option chosen, `NONE` where no letter was found.
        places: the same as the place where it stood, 0 for "A".
        answers: the same, as the chat gave them.
        priors: of each item the log-probabilities of its letters that were taken off; see `LetterPrior`.
    """

    model: str
    chosen: tuple[tuple[int, ...], ...]
    places: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[Answer, ...], ...]
    priors: tuple[tuple[float, ...], ...] = ()


def draw_shots(items: Sequence[Item], count: int, *, seed: int = 0) -> dict[str, list[Item]]:
    """Solved examples of every category, held out of the test: one of each age group first, as the paper has it, then of any.

    Args:
        items: N.
        count: of each category; fewer where a category has too few items to keep half of them for the test.
        seed: of the draw.
    Raises:
        ValueError: a negative count.
    """
    if count < 0:
        raise ValueError(f"shots: expected a number >= 0, got {count}")
    found: dict[str, list[Item]] = {}
    for category in dict.fromkeys(item.category for item in items):
        pool = [item for item in items if item.category == category]
        draw = random.Random(f"{seed} {category}")
        usable = draw.sample([item for item in pool if right(item) != NONE], sum(right(item) != NONE for item in pool))
        groups = {item.age_group: item for item in reversed(usable)}
        first = [groups[name] for name in sorted(groups)] if len(groups) > 1 else []
        ordered = list(dict.fromkeys([*first, *usable]))
        found[category] = ordered[: min(count, len(pool) // 2)]
    return found


def held_out(items: Sequence[Item], shots: Mapping[str, Sequence[Item]]) -> list[Item]:
    """The items that are neither a solved example nor ask the same as one."""
    shown = {_bare(item.question) for examples in shots.values() for item in examples}
    return [item for item in items if _bare(item.question) not in shown]


def sit(
    items: Sequence[Item],
    chat: Chat,
    *,
    shots: Mapping[str, Sequence[Item]] | None = None,
    order: Order = "given",
    parsing: Parsing = "strict-official",
    letter_prior: LetterPrior = "none",
    max_tokens: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Sitting:
    """Ask a model all items, greedily, each on its own.

    Args:
        items: N.
        chat: the model.
        shots: solved examples by category; see `draw_shots`.
        order: of the options.
        parsing: of the answers; ``log-probs`` lets the model write nothing.
        letter_prior: choose the letter whose log-probability is most above its prior; with ``log-probs`` only. ``test`` in cyclic order
            takes off exactly what a model adds to a letter as such (Zheng et al. 2024, arXiv:2309.03882, estimate it in this way); in the
            given order also what it knows, where some letter is right more often. ``empty`` costs questions, see `empty_priors`.
        max_tokens: of an answer; a model that thinks aloud needs many.
        progress: called with the number of questions done, and of all.
    Raises:
        ValueError: no items, an unknown order or parsing, or a letter prior without log-probabilities.
        ChatStopped: see `preceptor.teachers.chat.Chat.ask`.
        Interrupted: the same.
    """
    if not items:
        raise ValueError("items: expected at least one to test with, got none")
    for name, value, choices in (
        ("order", order, ("given", "cyclic")),
        ("parsing", parsing, PARSINGS),
        ("letter_prior", letter_prior, ("none", "empty", "test")),
    ):
        if value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}{nearest(value, choices)}")
    if letter_prior != "none" and parsing != "log-probs":
        raise ValueError(f"letter_prior: expected parsing 'log-probs' with it, got {parsing!r}")
    priors = empty_priors(items, chat, shots=shots) if letter_prior == "empty" else ()
    asked = [(item, shift) for item in items for shift in shifts(item, order)]
    prompts = [prompt(item, (shots or {}).get(item.category, ()), shift=shift) for item, shift in asked]
    if parsing == "log-probs":
        choices = chat.choose(prompts, [list(LETTERS[: len(item.options)]) for item, _ in asked], progress=progress)
        answers = [choice.answer for choice in choices]
        places = [NONE if choice.index is None else choice.index for choice in choices]
        if letter_prior == "test":
            priors = _mean_priors(items, [(len(item.options), choice) for choice, (item, _) in zip(choices, asked, strict=True)])
        if priors:
            off = [prior for item, prior in zip(items, priors, strict=True) for _ in shifts(item, order)]
            places = [NONE if at == NONE else _raised(choice, prior) for at, choice, prior in zip(places, choices, off, strict=True)]
    else:
        answers = chat.ask(prompts, Settings(max_tokens=max_tokens), progress=progress)
        places = [_place(answer.text, parsing, len(item.options)) for answer, (item, _) in zip(answers, asked, strict=True)]
    chosen = [NONE if at == NONE else (at + shift) % len(item.options) for at, (item, shift) in zip(places, asked, strict=True)]
    ends = [0]
    for item in items:
        ends.append(ends[-1] + len(shifts(item, order)))
    cuts = list(pairwise(ends))
    return Sitting(
        model=chat.model,
        chosen=tuple(tuple(chosen[a:b]) for a, b in cuts),
        places=tuple(tuple(places[a:b]) for a, b in cuts),
        answers=tuple(tuple(answers[a:b]) for a, b in cuts),
        priors=priors,
    )


def empty_priors(items: Sequence[Item], chat: Chat, *, shots: Mapping[str, Sequence[Item]] | None = None) -> tuple[tuple[float, ...], ...]:
    """How a model likes letters as such: asked once for every category and number of options, its examples before an empty question.

    Zhao et al. 2021 (arXiv:2102.09690), Sec. 5, calibrate by such an input.

    Args:
        items: N.
        chat: a model that tells log-probabilities.
        shots: see `sit`.
    Returns:
        Of each item a log-probability for each of its letters, in nats, together 1; a letter that an endpoint has not among its likeliest
        tokens counts as the least likely of those that it has.
    Raises:
        ValueError: the model tells none.
        ChatStopped, Interrupted: see `sit`.
    """
    kinds = list(dict.fromkeys((item.category, len(item.options)) for item in items))
    empty = [Item(id="", question="", options=("",) * options, answer="", category=category) for category, options in kinds]
    prompts = [prompt(item, (shots or {}).get(item.category, ())) for item in empty]
    found = {}
    for kind, choice in zip(kinds, chat.choose(prompts, [list(LETTERS[:options]) for _, options in kinds]), strict=True):
        if choice.index is None:
            raise ValueError(f"letter_prior: expected log-probabilities of letters for an empty question, got none ({choice.failed})")
        found[kind] = _known(choice.log_probs)
    return tuple(found[item.category, len(item.options)] for item in items)


def prompt(item: Item, shots: Sequence[Item] = (), *, shift: int = 0) -> str:
    """One message: solved examples, each with its bare letter, then the question, and three orders.

    The option at letter j is option (j + shift) mod k of the item; the examples keep their order.
    """
    lines = []
    if shots:
        lines += ["Here are solved multiple-choice questions.", ""]
        for example in shots:
            lines += [*_laid_out(example, 0), example.answer, ""]
        lines += ["Now answer this real question in the same way:"]
    lines += [*_laid_out(item, shift), ""]
    lines += ["Answer only the real question.", "Give only the letter of your answer.", "Stop right after the letter."]
    return "\n".join(lines)


def shifts(item: Item, order: Order) -> range:
    """By how many places the options of an item are turned."""
    return range(len(item.options) if order == "cyclic" else 1)


def right(item: Item) -> int:
    """The number of the right option; `NONE` where the answer names no single option, which no prediction matches."""
    place = LETTERS.find(item.answer) if len(item.answer) == 1 else NONE
    return place if place < len(item.options) else NONE


def strict_letter(text: str | None) -> str | None:
    """The letter of an answer in one of the four forms of the released code, the first that fits; else None.

    A letter A to G that begins the text, at its end or before one of ``. ( ) ? : *`` or white space; after a closed ``<think>``, or in a
    text that begins with ``## Step 1``, the letter at the end; or a last line that is a letter, perhaps with a closing quote.
    """
    if not text:
        return None
    start = text.lstrip()
    if start[:1] and start[0] in LETTERS and (len(start) == 1 or start[1] in _OPENED or start[1].isspace()):
        return start[0]
    end = text.removesuffix("\n")
    if text.startswith("<think>") and "</think>" in text and end[-1:] and end[-1] in LETTERS:
        return end[-1]
    closed = re.sub(r"[.\s]+$", "", text)
    if text.startswith("## Step 1") and closed[-1] in LETTERS:
        return closed[-1]
    _, newline, last = end.removesuffix('"').rpartition("\n")
    return last if newline and len(last) == 1 and last in LETTERS else None


def lenient_letter(text: str | None) -> str | None:
    """The letter of an answer in more forms: the strict ones, "(A)", "a", "the answer is C", "**B**", or the only letter that stands alone.

    Where several letters stand alone and none is called the answer, None.
    """
    found = strict_letter(text)
    if found or not text:
        return found
    rest = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL).strip()
    if len(rest.strip(" .()[]*\"'")) == 1 and rest.strip(" .()[]*\"'").upper() in LETTERS:
        return rest.strip(" .()[]*\"'").upper()
    spoken = _SPOKEN.findall(rest)
    if spoken:
        return spoken[-1]
    alone = set(_ALONE.findall(rest))
    return alone.pop() if len(alone) == 1 else None


def _mean_priors(items: Sequence[Item], asked: Sequence[tuple[int, Choice]]) -> tuple[tuple[float, ...], ...]:
    """Of each item the means of the log-probabilities over all questions with as many options, scaled to sum to 1."""
    said: dict[int, list[tuple[float, ...]]] = {}
    for options, choice in asked:
        if choice.index is not None:
            said.setdefault(options, []).append(_known(choice.log_probs))
    means = {options: _known([math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]) for options, rows in said.items()}
    return tuple(means.get(len(item.options), (0.0,) * len(item.options)) for item in items)


def _raised(choice: Choice, prior: Sequence[float]) -> int:
    """The letter whose log-probability is most above its prior, of equal ones the first."""
    gains = [log_p - q for log_p, q in zip(choice.log_probs, prior, strict=True)]
    return gains.index(max(gains))


def _known(log_probs: Sequence[float]) -> tuple[float, ...]:
    """Scaled to sum to 1; a letter that an endpoint does not tell counts as the least likely of those that it does."""
    least = min(log_p for log_p in log_probs if log_p > -math.inf)
    raised = [max(log_p, least) for log_p in log_probs]
    total = max(raised) + math.log(sum(math.exp(log_p - max(raised)) for log_p in raised))
    return tuple(log_p - total for log_p in raised)


def _place(text: str, parsing: Parsing, options: int) -> int:
    letter = (strict_letter if parsing == "strict-official" else lenient_letter)(text)
    place = NONE if letter is None else LETTERS.index(letter)
    return place if place < options else NONE


def _laid_out(item: Item, shift: int) -> list[str]:
    turned = [item.options[(place + shift) % len(item.options)] for place in range(len(item.options))]
    return [item.question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, turned, strict=False))]


def _bare(question: str) -> str:
    return " ".join(re.findall(r"\w+", question.lower()))
