"""A teacher's model of its student's mind, by examples: what it saw the student answer, without and with explanations.

No weights are updated. Whoever answers, explains or predicts is a function: `chooser` and `preceptor.teachers.instructions.writer` make
them of a `Chat`; a table or any classifier will do as well.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from preceptor.teachers.chat import Chat, Prompt
from preceptor.teachers.instructions import Write

Choose = Callable[[Sequence[Prompt], Sequence[Sequence[str]]], Sequence[Sequence[float]]]
"""N prompts, options of each -> log-probability of every option in nats, under the whole vocabulary; -inf where it is not known."""

_FINAL = re.compile(r"(?:^|(?<=[.!?\n]))\s*so,? the (?:correct )?answer is[^.\n]*\.?\s*$", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question with its options and the right one among them.

    Raises:
        ValueError: fewer than two different options, or an answer that is none of them.
    """

    question: str
    options: tuple[str, ...]
    answer: str

    def __post_init__(self) -> None:
        if len(set(self.options)) < 2 or self.answer not in self.options:
            raise ValueError(f"answer: expected one of at least 2 different options {self.options}, got {self.answer!r}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One watched answer of the student; ``explanation`` is None where it had none."""

    item: Item
    said: str | None  # None: no answer could be read, which counts as wrong
    explanation: str | None = None

    @property
    def right(self) -> bool:
        """Whether the student said the right answer."""
        return self.said == self.item.answer


def chooser(chat: Chat) -> Choose:
    """Log-probabilities from a chat whose backend tells them; a question that failed knows none."""
    return lambda prompts, options: [choice.log_probs for choice in chat.choose(prompts, options)]


def without_answer(explanation: str, *, sentences: int | None = None) -> str:
    """An explanation without a last sentence "so the answer is ...", so that the label itself is not handed over.

    Args:
        explanation: any text.
        sentences: only so many of its first ones stay, 1 for arithmetic in the paper.
    """
    text = _FINAL.sub("", explanation.strip()).strip()
    return text if sentences is None else " ".join(_SENTENCE.split(text)[:sentences])


def answer_prompt(item: Item, demonstrations: Sequence[Record] = (), explanation: str | None = None) -> str:
    """What a student is asked; an explanation stands where its own would, and only the answer is left to say."""
    shown = [_shown(record.item, record.explanation, record.said) for record in demonstrations if record.said is not None]
    return "\n\n".join([*shown, _shown(item, explanation, None)])


def answer_all(
    choose: Choose, items: Sequence[Item], explanations: Sequence[str | None], demonstrations: Sequence[Record] = ()
) -> list[Record]:
    """Let a student answer: the likeliest option, the first of equal ones; none where it knows no probability.

    Raises:
        ValueError: not one explanation, or None, for each item.
    """
    if len(explanations) != len(items):
        raise ValueError(f"explanations: expected {len(items)}, one or None for each item, got {len(explanations)}")
    prompts = [answer_prompt(item, demonstrations, text) for item, text in zip(items, explanations, strict=True)]
    records = []
    for item, text, found in zip(items, explanations, choose(prompts, [item.options for item in items]), strict=True):
        best = max(found, default=-math.inf)
        said = item.options[list(found).index(best)] if best > -math.inf else None
        records.append(Record(item=item, said=said, explanation=text))
    return records


def explain_all(write: Write, items: Sequence[Item], demonstrations: Sequence[Record] = (), *, sentences: int | None = None) -> list[str]:
    """Let a teacher explain, without handing over the answer.

    Args:
        write: the teacher.
        items: questions.
        demonstrations: explained items to write like; `personalised` ones make explanations that this student understands.
        sentences: see `without_answer`.
    """
    shown = "\n\n".join(f"{_asked(record.item)}\nExplanation: {record.explanation}" for record in demonstrations if record.explanation)
    task = "Explain to a student how to find the answer, in few sentences."
    prompts = ["\n\n".join(part for part in (task, shown, f"{_asked(item)}\nExplanation:") if part) for item in items]
    return [without_answer(text, sentences=sentences) for text in write(prompts)]


def personalised(without: Sequence[Record], with_help: Sequence[Record]) -> list[Record]:
    """The explained records that made the difference: wrong without help, right with it."""
    return [helped for alone, helped in zip(without, with_help, strict=True) if helped.right and not alone.right]


def watched(records: Sequence[Record], count: int, *, seed: int = 0) -> list[Record]:
    """So many watched answers to learn from, by lot; of yes-or-no questions half with each answer *of the student*, as far as there are.

    Args:
        records: of training items, all without or all with explanations; those without a readable answer are left out.
        count: at least 1.
        seed: of the lot.
    Returns:
        At most ``count``; fewer where there are not more. Empty: rank by lot, nothing is known of the student.
    Raises:
        ValueError: count < 1.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    pool = [record for record in records if record.said is not None]
    random.Random(seed).shuffle(pool)
    answers = sorted({record.said for record in pool if record.said is not None})
    if len(answers) != 2 or len({record.item.options for record in pool}) != 1:
        return pool[:count]
    sides = [[record for record in pool if record.said == answer] for answer in answers]
    return [record for pair in zip_longest(*sides) for record in pair if record is not None][:count]


@dataclass(frozen=True, kw_only=True)
class MentalModel:
    """Predicts a student's answers after a few that were watched.

    Args:
        choose: whoever predicts, usually the teacher's own model.
        records: watched answers, without help for predictions without, with explanations for predictions with.
        show_answer: each example also tells the right answer, as in the paper's model of explained answers.
        renormalise: probabilities among the options instead of the whole vocabulary.
    """

    choose: Choose
    records: Sequence[Record]
    show_answer: bool = True
    renormalise: bool = False

    def predict(self, items: Sequence[Item], explanations: Sequence[str | None] | None = None) -> list[float]:
        """Probability that the student says the right answer to each item, in [0, 1].

        Raises:
            ValueError: not one explanation, or None, for each item.
        """
        texts = [None] * len(items) if explanations is None else list(explanations)
        if len(texts) != len(items):
            raise ValueError(f"explanations: expected {len(items)}, one or None for each item, got {len(texts)}")
        task = "Predict what the student answers."
        shown = [f"{self._case(record.item, record.explanation)} {record.said}" for record in self.records if record.said is not None]
        prompts = ["\n\n".join([task, *shown, self._case(item, text)]) for item, text in zip(items, texts, strict=True)]
        predicted = []
        for item, found in zip(items, self.choose(prompts, [item.options for item in items]), strict=True):
            said = [math.exp(log_prob) for log_prob in found] or [0.0] * len(item.options)
            total = sum(said) if self.renormalise else 1.0
            predicted.append(min(said[item.options.index(item.answer)] / total, 1.0) if total else 1 / len(item.options))
        return predicted

    def _case(self, item: Item, explanation: str | None) -> str:
        lines = [_asked(item)]
        if self.show_answer:
            lines.append(f"Correct answer: {item.answer}")
        if explanation is not None:
            lines.append(f"Explanation given to the student: {explanation}")
        return "\n".join([*lines, "Answer of the student:"])


def _asked(item: Item) -> str:
    return f"Question: {item.question}\nOptions: {', '.join(item.options)}"


def _shown(item: Item, explanation: str | None, said: str | None) -> str:
    reason = "" if explanation is None else f" {explanation} So the answer is"
    return f"{_asked(item)}\nAnswer:{reason}" + ("" if said is None else f" {said}")
