"""Solutions in steps between tags, read from text and written: the thought template of SuperCorrect (Yang et al. 2025, arXiv:2410.09008).

<Step1> ... <Key>detail</Key> ... <Cause>why it is wrong</Cause><Correction>the step done right</Correction></Step1> ...
<Generalized>the strategy</Generalized> <Answer>...</Answer>
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Names of the tags, without brackets; ``step`` is followed by a number."""

    step: str = "Step"
    key: str = "Key"
    cause: str = "Cause"
    correction: str = "Correction"
    generalized: str = "Generalized"
    answer: str = "Answer"


TAGS = Tags()


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step, and where it is wrong why and how it goes; ``text`` keeps its key details with their tags."""

    text: str
    cause: str = ""
    correction: str = ""


@dataclass(frozen=True, kw_only=True)
class Worked:
    """A solution; without an answer it was cut off."""

    steps: tuple[Step, ...] = ()
    generalized: str = ""
    answer: str | None = None

    @property
    def first_flaw(self) -> int | None:
        """Number, from 1, of the first step that is marked as wrong; later ones may only follow from it."""
        return next((i for i, step in enumerate(self.steps, start=1) if step.cause or step.correction), None)


def read_steps(text: str, tags: Tags = TAGS) -> Worked:
    """Read a solution; white space around parts does not count.

    Tags may be written in small letters and with white space inside, and closing ones may be missing: a part ends where the next begins.
    Steps are numbered by their place, whatever numbers stand there. Of several answers the last counts. Text outside the parts is dropped.
    """
    names = {"step": tags.step, "generalized": tags.generalized, "answer": tags.answer}
    opening = re.compile("|".join(rf"(?P<{part}><\s*{re.escape(name)}\s*\d*\s*>)" for part, name in names.items()), re.IGNORECASE)
    found = list(opening.finditer(text))
    steps, generalized, answer = [], "", None
    for place, match in enumerate(found):
        part = text[match.end() : found[place + 1].start() if place + 1 < len(found) else len(text)]
        if match.lastgroup == "step":
            steps.append(_step(part, tags))
        elif match.lastgroup == "generalized":
            generalized = _before_end(part, tags.generalized)
        else:
            answer = _before_end(part, tags.answer)
    return Worked(steps=tuple(steps), generalized=generalized, answer=answer)


def read_trace(text: str, tags: Tags = TAGS) -> tuple[str, str]:
    """Cause and correction in a text, "" for what is not there."""
    cause, correction = (_inside(text, name, stop) for name, stop in ((tags.cause, tags.correction), (tags.correction, tags.cause)))
    return cause, correction


def write_trace(cause: str, correction: str, tags: Tags = TAGS) -> str:
    """Cause and correction in their tags; what is empty is left out."""
    parts = ((tags.cause, cause), (tags.correction, correction))
    return "".join(f"<{name}>{text}</{name}>" for name, text in parts if text)


def write_steps(worked: Worked, tags: Tags = TAGS) -> str:
    """Text from which `read_steps` reads the same, for parts without white space around them and without these tags inside."""
    lines = [
        f"<{tags.step}{i}>{step.text}{write_trace(step.cause, step.correction, tags)}</{tags.step}{i}>"
        for i, step in enumerate(worked.steps, start=1)
    ]
    if worked.generalized:
        lines.append(f"<{tags.generalized}>{worked.generalized}</{tags.generalized}>")
    if worked.answer is not None:
        lines.append(f"<{tags.answer}>{worked.answer}</{tags.answer}>")
    return "\n".join(lines)


def key_details(step: Step, tags: Tags = TAGS) -> list[str]:
    """What stands between the key tags of a step."""
    name = re.escape(tags.key)
    return [one.strip() for one in re.findall(rf"<\s*{name}\s*>(.*?)<\s*/\s*{name}\s*>", step.text, re.IGNORECASE | re.DOTALL)]


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are equal but for white space, ``$``, ``\\boxed{}``, thousands, simple fractions and decimals."""
    return _plain(one) == _plain(other)


def _plain(answer: str) -> str | Fraction:
    text = re.sub(r"\\boxed\{(.*)\}", r"\1", answer.strip().strip("$").rstrip("."))
    text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)|\\[,!;]|[\s$]", "", text).lower()
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return text


def _step(part: str, tags: Tags) -> Step:
    cause, correction = read_trace(part, tags)
    start = re.search(rf"<\s*(?:{re.escape(tags.cause)}|{re.escape(tags.correction)})\s*>", part, re.IGNORECASE)
    text = _before_end(part[: start.start()] if start else part, tags.step)
    return Step(text=text, cause=cause, correction=_before_end(correction, tags.step))


def _inside(text: str, name: str, stop: str) -> str:
    """What stands after an opening tag, up to its end, the other tag, or the end of the text."""
    found = re.search(
        rf"<\s*{re.escape(name)}\s*>(.*?)(?=<\s*/?\s*{re.escape(name)}\s*>|<\s*{re.escape(stop)}\s*>|\Z)", text, re.I | re.DOTALL
    )
    return found.group(1).strip() if found else ""


def _before_end(part: str, name: str) -> str:
    return re.split(rf"<\s*/\s*{re.escape(name)}\s*\d*\s*>", part, maxsplit=1, flags=re.IGNORECASE)[0].strip()
