"""Answers of a crossword and the rules that every clue must keep."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

MIN_LETTERS = 3
MIN_WORDS, MAX_WORDS = 2, 25
STEM = 5
"""Letters at the start of an answer that no word of its clue may share."""

_LIGATURES = str.maketrans({"Æ": "AE", "Œ": "OE", "Ø": "O", "Ł": "L"})  # letters that no decomposition splits
_DROPPED = re.compile(r"['’‘ʼ`´\s‐‑‒–—-]")  # apostrophes, spaces, hyphens
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True)
class Clue:
    """A clue of an answer.

    Attributes:
        answer: as it is written, with accents and spaces.
        text: what the solver reads.
        source: the sentence that it was made from; "" where there is none.
        score: of the verifiers, in [0, 1]; 1 where none was asked.
        doubt: why a verifier rejects it; "" where none does.
    """

    answer: str
    text: str
    source: str = ""
    score: float = 1.0
    doubt: str = ""

    @property
    def letters(self) -> str:
        """What goes into the grid."""
        return normalize(self.answer)


def normalize(answer: str) -> str:
    """An answer as letters A-Z: without accents (Unicode NFD), apostrophes, spaces and hyphens, in upper case.

    Raises:
        ValueError: nothing is left, or something that is no letter of the Latin alphabet.
    """
    letters = _DROPPED.sub("", fold(answer))
    if not letters:
        raise ValueError(f"answer: expected letters, got {answer!r}")
    for letter in letters:
        if not "A" <= letter <= "Z":
            raise ValueError(f"answer: expected letters A to Z, accents, apostrophes, spaces and hyphens, got {letter!r} in {answer!r}")
    return letters


def fold(text: str) -> str:
    """Upper case without accents; what is no letter stays."""
    decomposed = unicodedata.normalize("NFD", text.upper().translate(_LIGATURES))
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def words_of(text: str) -> list[str]:
    """The words of a text, folded: runs of letters and digits."""
    return _WORD.findall(fold(text))


def leaks(clue: str, answer: str) -> bool:
    """Whether a clue gives its answer away: contains it, within a word or over several, or a word that starts with its first 5 letters.

    Args:
        clue: as it is read.
        answer: as `normalize` returns it.
    """
    words = words_of(clue)
    if any(answer in word or word.startswith(answer[:STEM]) for word in words):
        return True
    ends = {0}
    for word in words:
        ends.add(max(ends) + len(word))
    joined = "".join(words)
    at = joined.find(answer)
    while at >= 0:  # "ice cream" for ICECREAM, but not "nice cream"
        if at in ends and at + len(answer) in ends:
            return True
        at = joined.find(answer, at + 1)
    return False


def why_not(clue: Clue, *, side: int) -> str:
    """Why a clue cannot be used in a grid whose longest side has ``side`` cells, in words; "" where it can."""
    try:
        letters = clue.letters
    except ValueError as error:
        return str(error)
    words = len(clue.text.split())
    if len(letters) < MIN_LETTERS:
        return f"fewer than {MIN_LETTERS} letters"
    if len(letters) > side:
        return f"{len(letters)} letters, longer than the grid's {side}"
    if not MIN_WORDS <= words <= MAX_WORDS:
        return f"a clue of {words} words, not {MIN_WORDS} to {MAX_WORDS}"
    if leaks(clue.text, letters):
        return "its clue gives it away"
    return ""


def keep_good(clues: Iterable[Clue], *, side: int) -> tuple[list[Clue], list[tuple[Clue, str]]]:
    """Of each answer the clue without a doubt and with the highest score, the first of equal ones, that keeps the rules.

    No clue serves two answers.

    Args:
        clues: of any answers, several of one answer too.
        side: cells of the grid's longer side.
    Returns:
        What is kept, in the order in which the answers came, and what is not, with the reason; another clue of an answer that has one
        is left out silently.
    """
    best: dict[str, Clue] = {}
    dropped: list[tuple[Clue, str]] = []
    texts: dict[str, str] = {}
    given = list(clues)
    for clue in sorted(given, key=lambda clue: (bool(clue.doubt), -clue.score)):
        reason = why_not(clue, side=side)
        if reason:
            dropped.append((clue, reason))
            continue
        text = " ".join(words_of(clue.text))
        if clue.letters in best:
            continue
        if text in texts:
            dropped.append((clue, f"the clue of {texts[text]} too"))
            continue
        best[clue.letters], texts[text] = clue, clue.letters
    order = {clue: number for number, clue in reversed(list(enumerate(given)))}
    useless = {clue.answer for clue, _ in dropped} - {clue.answer for clue in best.values()}
    return sorted(best.values(), key=order.__getitem__), [(clue, why) for clue, why in dropped if clue.answer in useless]
