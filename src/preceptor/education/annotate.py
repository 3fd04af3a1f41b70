"""Label texts by a rubric with a language model: one question for each text and category, joined to people's labels on the id."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from preceptor.catalog import nearest
from preceptor.education.agreement import MISSING
from preceptor.education.comments import Comments
from preceptor.education.rubric import Category, Rubric, bare
from preceptor.teachers.chat import Answer, Chat, Settings

Style = Literal["zero-shot", "few-shot", "reasoning"]
"""The statement alone; with the examples of the rubric; with examples that explain before they answer."""

STYLES: tuple[Style, ...] = ("zero-shot", "few-shot", "reasoning")
Reading = Literal["text", "log-probs"]
"""Where a label comes from: the word that is written, or the likeliest of the words, for models too small to keep to a form."""

SHOTS = 3  # examples that a prompt shows at most, the paper's 3-shot
_MARKER = "Label:"
_TOKENS = {"zero-shot": 8, "few-shot": 8, "reasoning": 256}


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What a model said.

    Attributes:
        labels: (N, C) labels from 0, `MISSING` where no answer was one.
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
    """Ask about every text and category, greedily, and again where the answer is none of the words.

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
    words = [category.choices for _ in comments.ids for category in rubric.categories]
    if reading == "log-probs":
        choices = chat.choose(chats, words, progress=progress)
        tries = [[choice.answer] for choice in choices]
        said = [choice.index for choice in choices]
        whys = [choice.failed for choice in choices]
    else:
        most = max([_TOKENS[style], *(len(word) for row in words[: len(rubric.categories)] for word in row)])
        tries, said, whys = _written(chats, words, chat, Settings(max_tokens=most), asks, progress)
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
    lines = [rubric.task, f"{'Question' if category.levels else 'Statement'}: {category.statement}"]
    if style != "zero-shot":
        for example in category.examples[:SHOTS]:
            answer = str(example.answer) if category.levels else str(example.answer).lower()
            reason = f"{example.explanation} " if style == "reasoning" and example.explanation else ""
            lines += ["", _quoted(example.comment), f"{reason}{_MARKER} {answer}" if style == "reasoning" else f"{_MARKER} {answer}"]
        lines.append("")
    lines += [f"({about})"] if about else []
    asked = "Which answer fits this comment?" if category.levels else "Is the statement true of this comment?"
    words = ("one of " if category.levels else "one word, ") + _alternatives(category.choices)
    order = f'Explain in one sentence. Then write "{_MARKER}" and {words}.' if style == "reasoning" else f"Answer with {words}."
    return "\n".join([*lines, _quoted(text), f"{asked} {order}"])


def parse_answer(text: str, choices: Sequence[str] = ("true", "false")) -> int | None:
    """The number of the choice that stands after the last marker, quotes and a full stop left out; None for anything else."""
    said = bare(re.split(re.escape(_MARKER), text, flags=re.IGNORECASE)[-1])
    return next((number for number, choice in enumerate(choices) if bare(choice) == said), None)


def _written(
    chats: list[list[dict[str, str]]],
    words: Sequence[Sequence[str]],
    chat: Chat,
    settings: Settings,
    asks: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[list[Answer]], list[int | None], list[str]]:
    """Of each prompt all answers, which of its words the last one says, and why it says none."""
    tries: list[list[Answer]] = [[] for _ in chats]
    said: list[int | None] = [None] * len(chats)
    pending = list(range(len(chats)))
    for _ in range(asks):
        settled = len(chats) - len(pending)
        tell = None if progress is None else (lambda done, _, settled=settled: progress(settled + done, len(chats)))
        again = []
        for place, answer in zip(pending, chat.ask([chats[i] for i in pending], settings, progress=tell), strict=True):
            tries[place].append(answer)
            said[place] = None if answer.failed else parse_answer(answer.text, words[place])
            if said[place] is None and not answer.failed:
                wrong = {"role": "assistant", "content": answer.text or "(nothing)"}
                chats[place] = [*chats[place], wrong, {"role": "user", "content": _again(words[place])}]
                again.append(place)
        pending = again
    whys = [
        "" if answer is not None else row[-1].failed or f"expected {' or '.join(choices)}, got {' '.join(row[-1].text.split())[:60]!r}"
        for answer, row, choices in zip(said, tries, words, strict=True)
    ]
    return tries, said, whys


def _alternatives(words: Sequence[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _again(words: Sequence[str]) -> str:
    count = " two" if len(words) == 2 else ""
    return f'That is not {_alternatives(words)}. Write "{_MARKER}" and one of these{count} words, and nothing else.'


def _quoted(text: str) -> str:
    inside = re.sub(r"</?\s*comment\s*>", lambda found: found[0].replace("<", "‹").replace(">", "›"), text, flags=re.IGNORECASE)
    return f"<comment>{inside}</comment>"
