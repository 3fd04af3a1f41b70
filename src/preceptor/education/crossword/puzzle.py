"""A grid of crossing words: where each stands, how good the grid is, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

EMPTY = "."
Direction = Literal["across", "down"]
Spot = tuple[str, int, int, Direction]
"""An answer and the row, column and direction of its first letter."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A word in the grid: its number there, and row and column of its first letter, from 0."""

    number: int
    direction: Direction
    row: int
    column: int
    answer: str

    def cells(self) -> list[tuple[int, int]]:
        """Row and column of every letter."""
        down = self.direction == "down"
        return [(self.row + i * down, self.column + i * (not down)) for i in range(len(self.answer))]


@dataclass(frozen=True, kw_only=True)
class Stats:
    """How good a grid is.

    Attributes:
        words: placed, FW.
        linked: cells that belong to two words, LL.
        letters: filled cells, L.
        area: cells of the smallest rectangle around them.
        fill: FR = L / area.
        links: LR = LL / L.
        score: (FW + LL / 2) FR LR, and 10 times the share of the preferred words that are placed.
    """

    words: int
    linked: int
    letters: int
    area: int
    fill: float
    links: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Puzzle:
    """A grid, cut to the smallest rectangle around its words.

    Attributes:
        rows: one text per row, `EMPTY` where there is no letter.
        entries: by number, across before down.
        stats: see `Stats`.
        left_out: words that found no place, and among them those longer than the grid.
        too_long: those.
        tries: grids that were begun in the search.
        rounds: repairs in all of them; the same search with these limits gives the same puzzle, however fast the machine.
    """

    rows: tuple[str, ...]
    entries: tuple[Entry, ...]
    stats: Stats
    left_out: tuple[str, ...] = ()
    too_long: tuple[str, ...] = ()
    tries: int = 0
    rounds: int = 0

    def transposed(self) -> Puzzle:
        """The mirror image: across is down."""
        spots: list[Spot] = [(e.answer, e.column, e.row, "across" if e.direction == "down" else "down") for e in self.entries]
        mirror = puzzle_of(spots)
        return Puzzle(
            rows=mirror.rows,
            entries=mirror.entries,
            stats=self.stats,
            left_out=self.left_out,
            too_long=self.too_long,
            tries=self.tries,
            rounds=self.rounds,
        )


def puzzle_of(
    spots: Sequence[Spot],
    *,
    preferred: Iterable[str] = (),
    left_out: Sequence[str] = (),
    too_long: Sequence[str] = (),
    tries: int = 0,
    rounds: int = 0,
) -> Puzzle:
    """Number the words, row by row where one starts, and cut the grid to them.

    Raises:
        ValueError: two words have different letters in one cell.
    """
    grid: dict[tuple[int, int], str] = {}
    for answer, row, column, direction in spots:
        for i, letter in enumerate(answer):
            cell = (row + i, column) if direction == "down" else (row, column + i)
            if grid.setdefault(cell, letter) != letter:
                raise ValueError(f"grid: expected one letter in row {cell[0]}, column {cell[1]}, got {grid[cell]} and {letter}")
    top, left = min((r for r, _ in grid), default=0), min((c for _, c in grid), default=0)
    height, width = max((r for r, _ in grid), default=-1) + 1 - top, max((c for _, c in grid), default=-1) + 1 - left
    rows = tuple("".join(grid.get((top + r, left + c), EMPTY) for c in range(width)) for r in range(height))
    numbers: dict[tuple[int, int], int] = {}
    entries = []
    for answer, row, column, direction in sorted(spots, key=lambda spot: (spot[1], spot[2], spot[3])):
        number = numbers.setdefault((row, column), len(numbers) + 1)
        entries.append(Entry(number=number, direction=direction, row=row - top, column=column - left, answer=answer))
    return Puzzle(
        rows=rows,
        entries=tuple(entries),
        stats=stats_of(entries, preferred=preferred),
        left_out=tuple(left_out),
        too_long=tuple(too_long),
        tries=tries,
        rounds=rounds,
    )


def stats_of(entries: Sequence[Entry], *, preferred: Iterable[str] = ()) -> Stats:
    """Measure a grid by its cells."""
    seen: dict[tuple[int, int], int] = {}
    for entry in entries:
        for cell in entry.cells():
            seen[cell] = seen.get(cell, 0) + 1
    wanted = set(preferred)
    height, width = ((max(side) - min(side) + 1) if side else 0 for side in ([cell[axis] for cell in seen] for axis in (0, 1)))
    placed = sum(entry.answer in wanted for entry in entries)
    return measured(
        words=len(entries),
        linked=sum(count == 2 for count in seen.values()),
        letters=len(seen),
        area=height * width,
        preferred=placed / len(wanted) if wanted else 0.0,
    )


def measured(*, words: int, linked: int, letters: int, area: int, preferred: float) -> Stats:
    """The score of the counts; ``preferred`` is the share of the preferred words that are placed."""
    fill, links = (letters / area, linked / letters) if letters else (0.0, 0.0)
    score = (words + linked / 2) * fill * links + 10 * preferred
    return Stats(words=words, linked=linked, letters=letters, area=area, fill=fill, links=links, score=score)


def flaws(puzzle: Puzzle) -> list[str]:
    """What is wrong with a grid, one line each: it is read anew, cell by cell, and nothing but its rows and entries is believed."""
    found = []
    answers = [entry.answer for entry in puzzle.entries]
    found += [f"{answer} stands twice" for answer in sorted({a for a in answers if answers.count(a) > 1})]
    runs = _runs(puzzle.rows)
    placed: dict[tuple[Direction, int, int], str] = {(e.direction, e.row, e.column): e.answer for e in puzzle.entries}
    keys: set[tuple[Direction, int, int]] = {*runs, *placed}
    for key in sorted(keys):
        if runs.get(key) != placed.get(key):
            found.append(f"{key[0]} from row {key[1]}, column {key[2]}: the grid reads {runs.get(key)}, the entry {placed.get(key)}")
    covered = {cell for entry in puzzle.entries for cell in entry.cells()}
    filled = {(r, c) for r, row in enumerate(puzzle.rows) for c, letter in enumerate(row) if letter != EMPTY}
    found += [f"row {r}, column {c}: a letter of no word" for r, c in sorted(filled - covered)]
    if len(puzzle.entries) > 1 and len(reached(crossings(puzzle.entries))) < len(puzzle.entries):
        found.append("the words do not all hang together")
    starts = sorted({(entry.row, entry.column) for entry in puzzle.entries})
    found += [
        f"{entry.answer} has number {entry.number}"
        for entry in puzzle.entries
        if starts[entry.number - 1 :][:1] != [(entry.row, entry.column)]
    ]
    return found


def crossings(entries: Sequence[Entry]) -> dict[int, set[int]]:
    """Which entries share a cell, by their place in the sequence."""
    owners: dict[tuple[int, int], list[int]] = {}
    for number, entry in enumerate(entries):
        for cell in entry.cells():
            owners.setdefault(cell, []).append(number)
    linked: dict[int, set[int]] = {number: set() for number in range(len(entries))}
    for sharing in owners.values():
        for one in sharing:
            linked[one] |= set(sharing) - {one}
    return linked


def reached(linked: Mapping[int, set[int]]) -> set[int]:
    """What can be reached from the first node of a graph."""
    seen: set[int] = set()
    edge = set(list(linked)[:1])
    while edge:
        seen |= edge
        edge = {other for node in edge for other in linked[node]} - seen
    return seen


def _runs(rows: Sequence[str]) -> dict[tuple[Direction, int, int], str]:
    """Every run of two letters or more, across and down, by direction and start."""
    found: dict[tuple[Direction, int, int], str] = {}
    columns = ["".join(column) for column in zip(*rows, strict=True)]
    for lines, down in ((rows, False), (columns, True)):
        for line, text in enumerate(lines):
            at = 0
            for run in text.split(EMPTY):
                if len(run) > 1:
                    found[("down", at, line) if down else ("across", line, at)] = run
                at += len(run) + 1
    return found
