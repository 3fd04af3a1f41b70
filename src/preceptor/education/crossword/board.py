"""A board with words on it, as sets of cells.

A set of cells is one whole number, a bit for each cell, so that all places of a word are tried at once: with ``ok[c]`` the cells that can
take letter c, the cells where a word fits are the intersection of its ok sets, each shifted back by the letter's place in the word. Across
moves by 1 bit and down by a row of bits; a border of empty cells keeps rows apart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from preceptor.education.crossword.puzzle import Spot, measured

Place = tuple[int, int, int]
"""Number of a word, bit of its first letter, direction: 0 across, 1 down."""


@dataclass
class Board:
    """Words on a board of ``height`` by ``width`` cells."""

    words: Sequence[str]
    height: int
    width: int
    preferred: frozenset[int]
    places: dict[int, Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.row = self.width + 1  # one border column, shared by the end of a row and the start of the next
        self.steps = (1, self.row)
        start = self.row + 1
        self.inside = sum(((1 << self.width) - 1) << (start + r * self.row) for r in range(self.height))
        self.lengths = [len(word) for word in self.words]
        self.codes = [[ord(letter) - 65 for letter in word] for word in self.words]
        self.load({})

    def load(self, places: dict[int, Place]) -> None:
        """Start over with some words."""
        self.places = {}
        self.letters = [0] * 26
        self.used = [0, 0]
        self.filled = 0
        self.fresh: list[tuple[list[int], list[int]] | None] = [None, None]
        for place in places.values():
            self.put(place)

    def put(self, place: Place) -> None:
        """Place a word; nothing is checked."""
        word, at, direction = place
        step = self.steps[direction]
        cells = 0
        for code in self.codes[word]:
            bit = 1 << at
            self.letters[code] |= bit
            cells |= bit
            at += step
        self.used[direction] |= cells
        self.filled |= cells
        self.places[word] = place
        self.fresh = [None, None]

    def sets(self, direction: int) -> tuple[list[int], list[int]]:
        """For every letter: cells that it may take in a word of this direction, and those of them where it crosses one."""
        known = self.fresh[direction]
        if known is None:
            side = self.steps[1 - direction]
            free = self.inside & ~(self.filled | self.filled << side | self.filled >> side)
            others = self.filled & ~self.used[direction]
            cross = [cells & others for cells in self.letters]
            known = self.fresh[direction] = ([free | cells for cells in cross], cross)
        return known

    def fits(self, word: int, direction: int) -> tuple[int, int]:
        """Where a word may start and cross another: all such cells, and those of them with most crossings."""
        ok, cross = self.sets(direction)
        step = self.steps[direction]
        valid = ~(self.filled << step) & ~(self.filled >> self.lengths[word] * step)
        shift = 0
        for code in self.codes[word]:
            valid &= ok[code] >> shift
            if not valid:
                return 0, 0
            shift += step
        planes: list[int] = []  # a counter of crossings for every cell, plane i holding the bits of 2^i
        shift = 0
        for code in self.codes[word]:
            carry = (cross[code] >> shift) & valid
            for i, plane in enumerate(planes):
                if not carry:
                    break
                planes[i], carry = plane ^ carry, plane & carry
            if carry:
                planes.append(carry)
            shift += step
        some = 0
        for plane in planes:
            some |= plane
        best = some
        for plane in reversed(planes):
            best = best & plane or best
        return some, best

    def fill(self, order: Sequence[int], rng: random.Random, greedy: float) -> None:
        """Place what fits, pass after pass, until nothing does."""
        waiting = [word for word in order if word not in self.places]
        while waiting:
            left = []
            for word in waiting:
                found = [self.fits(word, 0), self.fits(word, 1)]
                kind = rng.random() < greedy  # a place with most crossings, or any with one
                if kind and found[0][1] and found[1][1]:
                    counts = [self._count(word, direction, found[direction][1]) for direction in (0, 1)]
                    sets = [found[d][1] if counts[d] == max(counts) else 0 for d in (0, 1)]
                else:
                    sets = [found[0][kind], found[1][kind]]
                total = sets[0].bit_count() + sets[1].bit_count()
                if not total:
                    left.append(word)
                    continue
                number = rng.randrange(total)
                direction = int(number >= sets[0].bit_count())
                cells = sets[direction]
                for _ in range(number - direction * sets[0].bit_count()):
                    cells &= cells - 1
                self.put((word, (cells & -cells).bit_length() - 1, direction))
            if len(left) == len(waiting):
                return
            waiting = left

    def _count(self, word: int, direction: int, cells: int) -> int:
        """Crossings of a word at the lowest of some cells."""
        cross, step = self.sets(direction)[1], self.steps[direction]
        at = (cells & -cells).bit_length() - 1
        return sum(cross[code] >> (at + i * step) & 1 for i, code in enumerate(self.codes[word]))

    def score(self) -> float:
        """Of the grid as it is; see `preceptor.education.crossword.puzzle.Stats`."""
        rows = columns = 0
        full, cells = (1 << self.width) - 1, self.filled >> (self.row + 1)
        while cells:
            line = cells & full
            if line:
                columns |= line
                rows += 1
            cells >>= self.row
        width = columns.bit_length() - ((columns & -columns).bit_length() - 1)  # words hang together: no row between them is empty
        return measured(
            words=len(self.places),
            linked=(self.used[0] & self.used[1]).bit_count(),
            letters=self.filled.bit_count(),
            area=rows * width,
            preferred=len(self.preferred & self.places.keys()) / len(self.preferred) if self.preferred else 0.0,
        ).score

    def without_some(self, count: int, rng: random.Random) -> dict[int, Place]:
        """The words less ``count`` random ones, none of which is a cut vertex of the crossing graph when it goes."""
        numbers = list(self.places)
        masks = [self._mask(self.places[word]) for word in numbers]
        linked = [sum(1 << j for j, other in enumerate(masks) if j != i and mask & other) for i, mask in enumerate(masks)]
        alive = (1 << len(numbers)) - 1
        order = list(range(len(numbers)))
        rng.shuffle(order)
        for i in order:
            rest = alive & ~(1 << i)
            if rest and _hangs_together(linked, rest):
                alive = rest
                count -= 1
                if not count:
                    break
        return {word: self.places[word] for i, word in enumerate(numbers) if alive >> i & 1}

    def _mask(self, place: Place) -> int:
        word, at, direction = place
        step = self.steps[direction]
        mask = 0
        for i in range(self.lengths[word]):
            mask |= 1 << (at + i * step)
        return mask

    def spots(self) -> list[Spot]:
        """Where the words stand, in rows and columns."""
        return [
            (self.words[word], at // self.row - 1, at % self.row - 1, "down" if direction else "across")
            for word, at, direction in self.places.values()
        ]


def _hangs_together(linked: Sequence[int], alive: int) -> bool:
    """Whether the living nodes of a graph, given by bit sets of neighbours, are connected."""
    seen, edge = 0, alive & -alive
    while edge:
        seen |= edge
        reach = 0
        while edge:
            low = edge & -edge
            reach |= linked[low.bit_length() - 1]
            edge ^= low
        edge = reach & alive & ~seen
    return seen == alive
