"""A given pattern of black and white cells, filled with words: a constraint satisfaction problem.

A variable is a slot, a run of white cells; its values are the words of its length; two slots that cross have one letter there, and no word
stands twice. The values of a slot are one whole number, a bit for each word, so that one operation takes away all words with a letter that
a crossing forbids. Search keeps every crossing arc consistent (Mackworth 1977), branches on the slot with the fewest words for its failures
so far (Boussemart et al. 2004), and starts over with more patience each time (Walsh 1999): a search that ends within its patience has
proven that there is no filling.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from preceptor.education.crossword.puzzle import Direction, Puzzle, Spot, puzzle_of

BLACK, WHITE = "#", "-"
PATIENCE, GROWTH = 60, 1.5
"""Dead ends after which the first try ends, and how many times more the next may have."""

_LOOKED_AT = 16  # words of a slot that are weighed against each other before one is tried
_ANY = (1 << 26) - 1
_MARKS = [bytes(49 if i == ord(letter) else 48 for i in range(256)) for letter in ascii_uppercase]  # a letter is "1", all others "0"


class NoFilling(ValueError):
    """There is no filling, or none was found; ``proven`` tells which."""

    def __init__(self, message: str, *, proven: bool) -> None:
        super().__init__(message)
        self.proven = proven


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A run of at least two white cells: row and column of its first one, from 0, and the number of each in the whole grid."""

    row: int
    column: int
    direction: Direction
    cells: tuple[int, ...]

    def __str__(self) -> str:
        return f"the {len(self.cells)} cells {self.direction} from row {self.row + 1}, column {self.column + 1}"


@dataclass(frozen=True, kw_only=True)
class Template:
    """A pattern: its rows of `BLACK`, `WHITE` and given letters, and its slots, row by row and then column by column."""

    rows: tuple[str, ...]
    slots: tuple[Slot, ...]

    @property
    def longest(self) -> int:
        """Cells of the longest slot."""
        return max(len(slot.cells) for slot in self.slots)


def read_template(path: Path) -> Template:
    """Read a text file with one line for each row, see `template_of`; empty lines are no rows.

    Raises:
        ValueError: no such file, or what `template_of` refuses.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected an existing file, got none")
    try:
        return template_of([line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()])
    except ValueError as error:  # a wrong encoding is one too
        raise ValueError(f"{path}: {error}") from None


def template_of(rows: Sequence[str]) -> Template:
    """A pattern of rows of equal length: ``#`` is black, ``-`` white, a letter A-Z white and given.

    Raises:
        ValueError: rows of different lengths, another sign, a white cell without a white neighbour, or white cells that do not all hang
            together. Rows and columns are counted from 1.
    """
    grid = tuple(row.upper() for row in rows)
    height, width = len(grid), len(grid[0]) if grid else 0
    white: dict[tuple[int, int], int] = {}
    for r, row in enumerate(grid):
        if len(row) != width:
            raise ValueError(f"template: expected {width} cells in row {r + 1} as in row 1, got {len(row)}")
        for c, sign in enumerate(row):
            if sign not in f"{BLACK}{WHITE}{ascii_uppercase}":
                raise ValueError(f"template: expected # (black), - (white) or a letter A to Z in row {r + 1}, column {c + 1}, got {sign!r}")
            if sign != BLACK:
                white[r, c] = r * width + c
    slots = []
    lines: tuple[tuple[Direction, int, int], ...] = (("across", 0, 1), ("down", 1, 0))
    for direction, dr, dc in lines:
        for r, c in white:
            if (r - dr, c - dc) in white or (r + dr, c + dc) not in white:
                continue
            cells = []
            while (r + dr * len(cells), c + dc * len(cells)) in white:
                cells.append(white[r + dr * len(cells), c + dc * len(cells)])
            slots.append(Slot(row=r, column=c, direction=direction, cells=tuple(cells)))
    if not slots:
        raise ValueError(f"template: expected white cells (-) side by side, got {height} rows of {width} without")
    joined = {slots[0].cells[0]}
    while reached := {cell for slot in slots if joined & set(slot.cells) for cell in slot.cells} - joined:
        joined |= reached
    for (r, c), cell in white.items():
        if cell not in joined:
            raise ValueError(f"template: expected white cells that all hang together, got row {r + 1}, column {c + 1} apart from the first")
    return Template(rows=grid, slots=tuple(slots))


def fill_template(
    template: Template, words: Iterable[str], *, seconds: float | None = None, restarts: int | None = None, seed: int = 0
) -> Puzzle:
    """Fill a pattern so that every slot is a word and none stands twice.

    Without a limit the search ends when it has found a filling or proven that there is none. The same seed gives the same filling; limits
    decide only whether it is found.

    Args:
        template: see `template_of`.
        words: answers of letters A-Z; equal ones count once.
        seconds: time at most; None: no limit.
        restarts: tries at most, at least 1; None: no limit.
        seed: of all choices.
    Raises:
        NoFilling: these words cannot fill it, or no filling was found within the limits.
        ValueError: a limit out of its range, or a word that is no run of letters A-Z.
    """
    if seconds is not None and not seconds >= 0:
        raise ValueError(f"seconds: expected a number >= 0, got {seconds}")
    if restarts is not None and restarts < 1:
        raise ValueError(f"restarts: expected at least 1, got {restarts}")
    end = math.inf if seconds is None else time.perf_counter() + seconds
    filler = Filler(template, words)
    tries = 0
    while restarts is None or tries < restarts:
        filler.begin(random.Random(f"{seed} {tries}"), dead_ends=round(PATIENCE * GROWTH**tries), until=end)
        tries += 1
        try:
            found = next(filler.fillings(), None)
        except _TriedEnough:
            if time.perf_counter() >= end:
                break
            continue
        if found is None:
            raise NoFilling(f"template: these words cannot fill it, as {filler.dead} dead ends prove", proven=True)
        spots: list[Spot] = [(word, slot.row, slot.column, slot.direction) for slot, word in zip(template.slots, found, strict=True)]
        used = set(found)
        left_out = [word for word in filler.words if word not in used]
        return puzzle_of(spots, left_out=left_out, too_long=[word for word in left_out if len(word) > template.longest], tries=tries)
    raise NoFilling(
        f"template: expected a filling in {f'{seconds:g} seconds' if restarts is None or tries < restarts else f'{restarts} tries'}, got "
        f"{filler.dead} dead ends in {tries} tries; there may be one: give more time, more words or more black cells",
        proven=False,
    )


class _TriedEnough(Exception):
    """A try has met as many dead ends as it may, or the time is up."""


class Filler:
    """The search. ``domains`` are the words that each slot may have, ``letters`` those of each cell, as sets of bits."""

    def __init__(self, template: Template, words: Iterable[str]) -> None:
        self.words = list(dict.fromkeys(words))
        for word in self.words:
            if not word or not set(word) <= set(ascii_uppercase):
                raise ValueError(f"words: expected letters A to Z, got {word!r}")
        self.slots = [slot.cells for slot in template.slots]
        lengths = Counter(map(len, self.slots))
        self.known = {length: [word for word in self.words if len(word) == length] for length in lengths}
        for length, count in sorted(lengths.items()):
            if count > len(self.known[length]):
                raise NoFilling(f"template: expected {count} words of {length} letters, got {len(self.known[length])}", proven=True)
        self.having = {length: [_marked(known, at) for at in range(length)] for length, known in self.known.items()}
        self.through: dict[int, list[tuple[int, int]]] = {}  # slots that share a cell, with its place in each
        for number, cells in enumerate(self.slots):
            for at, cell in enumerate(cells):
                self.through.setdefault(cell, []).append((number, at))
        self.equals = [[other for other, cells in enumerate(self.slots) if len(cells) == len(own) and cells != own] for own in self.slots]
        self.failures = [1] * len(self.slots)
        self.dead = 0
        self.domains = [(1 << len(self.known[len(cells)])) - 1 for cells in self.slots]
        signs = "".join(template.rows)
        self.letters = {cell: 1 << ord(signs[cell]) - 65 if signs[cell].isalpha() else _ANY for cell in self.through}
        for slot, domain in zip(template.slots, self.domains, strict=True):
            if not self._allowed(domain, slot.cells, self.letters):
                pattern = "".join(signs[cell] for cell in slot.cells)
                raise NoFilling(f"template: expected a word {pattern} for {slot}, got none", proven=True)
        wrong = self.narrow(self.domains, self.letters, range(len(self.slots)))
        if wrong is not None:
            raise NoFilling(f"template: expected a word that all crossings allow for {template.slots[wrong]}, got none", proven=True)
        self.begin(random.Random(0))

    def begin(self, rng: random.Random, *, dead_ends: float = math.inf, until: float = math.inf) -> None:
        """Set what the next search chooses by, and when it gives up."""
        self.rng, self.last, self.until = rng, self.dead + dead_ends, until

    def fillings(self) -> Iterator[list[str]]:
        """Every filling, a word for each slot; one that is found once is not found again."""
        for domains in self._search(self.domains.copy(), self.letters.copy()):
            yield [self.known[len(cells)][domain.bit_length() - 1] for cells, domain in zip(self.slots, domains, strict=True)]

    def _search(self, domains: list[int], letters: dict[int, int]) -> Iterator[list[int]]:
        while True:
            slot = min(
                (number for number, domain in enumerate(domains) if domain & (domain - 1)),
                key=lambda number: domains[number].bit_count() / self.failures[number],
                default=None,
            )
            if slot is None:
                yield domains
                return
            word = self._likeliest(slot, domains)
            below, signs = domains.copy(), letters.copy()
            below[slot] = word
            if self._holds(below, signs, slot):
                yield from self._search(below, signs)
            domains[slot] ^= word
            if not self._holds(domains, letters, slot):
                return

    def _holds(self, domains: list[int], letters: dict[int, int], changed: int) -> bool:
        """Whether every slot keeps a word when one has changed; a dead end is counted."""
        wrong = self.narrow(domains, letters, [changed])
        if wrong is None:
            return True
        self.failures[wrong] += 1
        self.dead += 1
        if self.dead >= self.last or time.perf_counter() >= self.until:
            raise _TriedEnough
        return False

    def narrow(self, domains: list[int], letters: dict[int, int], changed: Iterable[int]) -> int | None:
        """Take away every word that no words of the crossing slots allow, in place; return a slot that is left without, or None."""
        waiting = dict.fromkeys(changed)
        while waiting:
            slot, _ = waiting.popitem()
            cells = self.slots[slot]
            domain = domains[slot] = self._allowed(domains[slot], cells, letters)
            if not domain:
                return slot
            for at, (cell, marks) in enumerate(zip(cells, self.having[len(cells)], strict=True)):
                before = left = letters[cell]
                while before:
                    bit = before & -before
                    before ^= bit
                    if not domain & marks[bit.bit_length() - 1]:
                        left ^= bit
                if left != letters[cell]:
                    letters[cell] = left
                    waiting.update(dict.fromkeys(other for other, place in self.through[cell] if (other, place) != (slot, at)))
            if not domain & (domain - 1):  # one word, which no other slot may have
                for other in self.equals[slot]:
                    if domains[other] & domain:
                        domains[other] ^= domain
                        waiting[other] = None
                        if not domains[other]:
                            return other
        return None

    def _allowed(self, domain: int, cells: Sequence[int], letters: dict[int, int]) -> int:
        """The words of a domain whose letters all cells may have."""
        for cell, marks in zip(cells, self.having[len(cells)], strict=True):
            forbidden = _ANY & ~letters[cell]
            while forbidden and domain:
                bit = forbidden & -forbidden
                forbidden ^= bit
                domain &= ~marks[bit.bit_length() - 1]
        return domain

    def _likeliest(self, slot: int, domains: list[int]) -> int:
        """Of some words of a slot, drawn at random, the one that leaves the slots that it crosses most words, as a bit."""
        domain, cells = domains[slot], self.slots[slot]
        known = self.known[len(cells)]
        rooms: dict[tuple[int, str], float] = {}

        def room(word: int) -> float:
            total = 0.0
            for at, letter in enumerate(known[word.bit_length() - 1]):
                if (at, letter) not in rooms:
                    rooms[at, letter] = sum(
                        math.log(1 + (domains[other] & self.having[len(self.slots[other])][place][ord(letter) - 65]).bit_count())
                        for other, place in self.through[cells[at]]
                        if other != slot
                    )
                total += rooms[at, letter]
            return total

        drawn = []
        for _ in range(min(_LOOKED_AT, domain.bit_count())):
            start = self.rng.randrange(domain.bit_length())
            high = domain >> start << start
            drawn.append(high & -high)
        return max(dict.fromkeys(drawn), key=room)


def _marked(words: Sequence[str], at: int) -> list[int]:
    """For every letter A-Z the set of the words that have it at a place; bit i is word i."""
    column = "".join(word[at] for word in reversed(words)).encode()
    return [int(column.translate(mark) or b"0", 2) for mark in _MARKS]
