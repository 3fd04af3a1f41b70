"""What a variant must keep of its problem, and what it may name."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from preceptor.education.personalise.arithmetic import numbers_in, operations, value_of
from preceptor.education.personalise.records import Catalogue, Problem, Profile, Variant

Kind = Literal["answer", "numbers", "operations", "length", "reading", "interest", "realism", "reference", "stranger", "privacy"]

LENGTH = 0.3
"""A variant may be so much longer or shorter, as a share of the problem's words; the card."""
PARTS = ";"
"""Between the parts of a solution, one for each question of the problem."""

_SLACK = 3  # words that any variant may add or leave out
_WORD = {"en": 3 * 11.8, "it": 8.0}  # what one long word, three syllables or eight letters more, moves the level by, times the words
_VOWELS = re.compile(r"[aeiouyàèéìòóù]+", re.IGNORECASE)


@dataclass(frozen=True)
class Failure:
    """What a check found, in words."""

    kind: Kind
    message: str


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What variants are checked against.

    Attributes:
        catalogue: what may be used.
        profiles: of the whole class.
        lang: of the tasks, ``it`` or ``en``.
        age: of the students.
        today: day on which references must not be out of date.
        fresh_days: a reference that was looked at longer ago is out of date.
        grades: how far the reading level may move, in school years, besides what one long word does to it.
    """

    catalogue: Catalogue
    profiles: Sequence[Profile] = ()
    lang: Literal["it", "en"] = "en"
    age: int = 12
    today: datetime.date = field(default_factory=datetime.date.today)
    fresh_days: int = 365
    grades: float = 1.0


def check(variant: Variant, problem: Problem, rules: Rules) -> list[Failure]:
    """Check a variant against its problem.

    Args:
        variant: with text and solution.
        problem: what it was made from.
        rules: see `Rules`.
    Returns:
        Every failure; none for a variant that may be used.
    """
    found = [*_mathematics(variant, problem, rules.lang), *_wording(variant, problem, rules)]
    if variant.topic:
        found += _interest(variant, rules)
    return [*found, *_names(variant, rules)]


def reading_level(text: str, lang: Literal["it", "en"]) -> float:
    """How hard a text is to read, in school years: Flesch-Kincaid for English; Gulpease for Italian, turned so that 10 points are a year.

    Syllables are runs of vowels. A text of a few sentences gives a rough number.
    """
    sentences = max(1, len(re.findall(r"[.!?…]+(?:\s|$)", text)))
    words = re.findall(r"[^\W\d_]+", text)
    if not words:
        return 0.0
    if lang == "it":
        letters = sum(map(len, words))
        return (100 - (89 + (300 * sentences - 10 * letters) / len(words))) / 10
    syllables = sum(max(1, len(_VOWELS.findall(word))) for word in words)
    return 0.39 * len(words) / sentences + 11.8 * syllables / len(words) - 15.59


def _mathematics(variant: Variant, problem: Problem, lang: str) -> list[Failure]:
    found = []
    asked, written = problem.solution.split(PARTS), variant.solution.split(PARTS)
    if len(asked) != len(written):
        return [Failure("answer", f"the solution has {len(written)} parts, not {len(asked)}")]
    for number, (old, new) in enumerate(zip(asked, written, strict=True), start=1):
        where = f" of part {number}" * (len(asked) > 1)
        try:
            wanted, got = value_of(old), value_of(new)
        except ValueError as error:
            return [Failure("answer", str(error))]
        if wanted != got:
            found.append(Failure("answer", f"the answer{where} is {_shown(got)}, not {_shown(wanted)}"))
        elif operations(old) != operations(new):
            words = [" ".join(operations(text)) for text in (new, old)]
            found.append(Failure("operations", f"the operations{where} are {words[0]}, not {words[1]}"))
    before, after = numbers_in(problem.text, lang=lang), numbers_in(variant.text, lang=lang)
    free = Counter(Fraction(str(number)) for number in problem.free_numbers)
    missing, added = before - after - free, after - before
    spare = sum((before & free).values()) - sum((before & after & free).values())
    if missing:
        found.append(Failure("numbers", f"missing: {', '.join(map(_shown, sorted(missing.elements())))}"))
    if sum(added.values()) > spare:
        found.append(Failure("numbers", f"not in the problem: {', '.join(map(_shown, sorted(added.elements())))}"))
    return found


def _wording(variant: Variant, problem: Problem, rules: Rules) -> list[Failure]:
    found = []
    before, after = len(problem.text.split()), len(variant.text.split())
    if abs(after - before) > max(_SLACK, LENGTH * before):
        found.append(Failure("length", f"{after} words, the problem has {before}"))
    levels = [reading_level(text, rules.lang) for text in (problem.text, variant.text)]
    allowed = rules.grades + _WORD[rules.lang] / max(1, after)
    if levels[1] - levels[0] > allowed:
        found.append(Failure("reading", f"{levels[1] - levels[0]:.1f} years harder to read"))
    elif levels[0] - levels[1] > allowed:
        found.append(Failure("reading", f"{levels[0] - levels[1]:.1f} years easier to read"))
    for unit, (low, high) in problem.ranges.items():
        number, sign = r"(\d+(?:[.,]\d+)?)", re.escape(unit)
        for pair in re.findall(rf"{number}\s*{sign}(?!\w)|(?<!\w){sign}\s*{number}", variant.text):
            amount = float("".join(pair).replace(",", "."))
            if not low <= amount <= high:
                found.append(Failure("realism", f"{amount:g} {unit} is not within {low:g} to {high:g}"))
    return found


def _interest(variant: Variant, rules: Rules) -> list[Failure]:
    topic = rules.catalogue.topics.get(variant.topic)
    if topic is None:
        return [Failure("interest", f"{variant.topic!r} is not in the catalogue")]
    found = []
    if variant.reference:
        reference = topic.references.get(variant.reference)
        if reference is None:
            found.append(Failure("reference", f"{variant.reference!r} is not in the catalogue"))
        else:
            if rules.age < reference.min_age:
                found.append(Failure("reference", f"{variant.reference!r} is from {reference.min_age} years on, the class is {rules.age}"))
            if reference.checked is not None and (rules.today - reference.checked).days > rules.fresh_days:
                found.append(Failure("reference", f"{variant.reference!r} was last looked at on {reference.checked}"))
        if not mentions(variant.text, variant.reference):
            found.append(Failure("interest", f"{variant.reference!r} is not named"))
    elif not any(mentions(variant.text, word, endings=2) for word in (variant.topic, *topic.words, *topic.slots.values())):
        found.append(Failure("interest", f"nothing of {variant.topic!r} is in the text"))
    return found


def _names(variant: Variant, rules: Rules) -> list[Failure]:
    """What may not be named: an interest that is not the one of this variant, and a student."""
    known = {**rules.catalogue.references(), **{ref: t for p in rules.profiles for t, refs in p.references.items() for ref in refs}}
    others = [name for name in known if name != variant.reference and mentions(variant.text, name)]
    found = [Failure("stranger", f"{name!r} is not what this variant is about") for name in others if name not in variant.reference]
    named = [profile.student for profile in rules.profiles if mentions(variant.text, profile.student) and not profile.student.isdigit()]
    return [*found, *(Failure("privacy", "a student is named") for _ in named[:1])]


def mentions(text: str, words: str, *, endings: int = 0) -> bool:
    """Whether whole words stand in a text, in either case, the last with up to ``endings`` letters more."""
    return re.search(rf"(?<!\w){re.escape(words.lower())}\w{{0,{endings}}}(?!\w)", text.lower()) is not None


def _shown(number: Fraction) -> str:
    return f"{float(number):g}" if number.denominator != 1 else str(number)
