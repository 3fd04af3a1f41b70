"""Crossword grids: what is found in ten seconds, against the greedy search that a user would write.

The baseline keeps the grid in a dictionary, looks at every crossing of every word, places it where it crosses most and starts over until
the time is up; it is judged by the same score. Both run in turn in one process, with one seed each per repeat.

    python benchmarks/crossword.py [--json] [--seconds 10] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from preceptor.education.crossword.answers import leaks
from preceptor.education.crossword.grid import build_grid
from preceptor.education.crossword.library import library_clues
from preceptor.education.crossword.puzzle import Puzzle, Spot, flaws, puzzle_of
from preceptor.miniature.school_words import SCHOOL_WORDS

Cell = tuple[int, int]


def baseline(words: Sequence[str], size: int, seconds: float, seed: int) -> tuple[Puzzle, int]:
    """The best of as many greedy grids as the time allows, and how many there were."""
    rng = random.Random(seed)
    start, best, tries = time.perf_counter(), puzzle_of([]), 0
    while not tries or time.perf_counter() - start < seconds:
        tries += 1
        order = list(words)
        rng.shuffle(order)
        if rng.random() < 0.5:
            order.sort(key=len, reverse=True)
        grid: dict[Cell, str] = {}
        owner: dict[Cell, set[str]] = {}
        spots: list[Spot] = []
        moved = True
        while order and moved:
            moved = False
            for word in list(order):
                spot = place(word, grid, owner, size, rng)
                if spot is not None:
                    spots.append(spot)
                    order.remove(word)
                    moved = True
        found = puzzle_of(spots)
        best = max(best, found, key=lambda puzzle: puzzle.stats.score)
    return best, tries


def place(word: str, grid: dict[Cell, str], owner: dict[Cell, set[str]], size: int, rng: random.Random) -> Spot | None:
    """Place a word where it crosses most others, the first one in the middle."""
    if not grid:
        spots = [(0, size // 2, (size - len(word)) // 2, "across")] if len(word) <= size else []
    else:
        spots = []
        for (r, c), letter in grid.items():
            for i, own in enumerate(word):
                if own == letter:
                    for direction, row, column in (("across", r, c - i), ("down", r - i, c)):
                        crossed = fits(word, row, column, direction, grid, owner, size)
                        if crossed:
                            spots.append((crossed, row, column, direction))
    if not spots:
        return None
    most = max(spot[0] for spot in spots)
    _, row, column, direction = rng.choice([spot for spot in spots if spot[0] == most])
    down = direction == "down"
    for i, letter in enumerate(word):
        cell = (row + i * down, column + i * (not down))
        grid[cell] = letter
        owner.setdefault(cell, set()).add(direction)
    return word, row, column, "down" if down else "across"


def fits(word: str, row: int, column: int, direction: str, grid: dict[Cell, str], owner: dict[Cell, set[str]], size: int) -> int:
    """How many words are crossed there; 0 where it may not stand."""
    down = direction == "down"
    dr, dc = int(down), int(not down)
    last = (row + dr * (len(word) - 1), column + dc * (len(word) - 1))
    if min(row, column) < 0 or max(last) >= size or (row - dr, column - dc) in grid or (last[0] + dr, last[1] + dc) in grid:
        return 0
    crossed = 0
    for i, letter in enumerate(word):
        cell = (row + dr * i, column + dc * i)
        if cell in grid:
            if grid[cell] != letter or direction in owner[cell]:
                return 0
            crossed += 1
        elif (cell[0] + dc, cell[1] + dr) in grid or (cell[0] - dc, cell[1] - dr) in grid:
            return 0
    return crossed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    english = list(dict.fromkeys(clue.letters for clue in library_clues() if not leaks(clue.text, clue.letters)))
    random.Random(0).shuffle(english)
    rows = []
    for name, words, size in (("75 Italian school words", SCHOOL_WORDS, 13), ("300 names of functions", english[:300], 21)):
        found: dict[str, list[Puzzle]] = {"ours": [], "greedy": []}
        speed: dict[str, list[float]] = {"ours": [], "greedy": []}
        for seed in range(options.repeats):
            start = time.perf_counter()
            ours = build_grid(words, size=size, restarts=None, seconds=options.seconds, seed=seed)
            speed["ours"].append((ours.tries + ours.rounds) / (time.perf_counter() - start))
            start = time.perf_counter()
            greedy, tries = baseline(words, size, options.seconds, seed)
            speed["greedy"].append(tries / (time.perf_counter() - start))
            for arm, puzzle in (("ours", ours), ("greedy", greedy)):
                if flaws(puzzle):
                    raise SystemExit(f"{name}, {arm}: {flaws(puzzle)[0]}")
                found[arm].append(puzzle)
        row: dict[str, object] = {"name": f"crossword: {name}, {size} x {size}", "seconds": options.seconds, "repeats": options.repeats}
        for arm, puzzles in found.items():
            row |= {
                f"{arm}_{key}": statistics.median(getattr(p.stats, key) for p in puzzles) for key in ("words", "fill", "links", "score")
            }
            row[f"{arm}_grids_per_second"] = statistics.median(speed[arm])
        for key in ("words", "fill", "score"):
            row[f"{key}_ratio"] = statistics.median(
                getattr(a.stats, key) / getattr(b.stats, key) for a, b in zip(found["ours"], found["greedy"], strict=True)
            )
        rows.append(row)
        if not options.json:
            print(json.dumps(row, indent=1))
    result = {"rows": rows, "python": platform.python_version(), "machine": platform.machine()}
    path = Path(__file__).parent / "results" / "crossword.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.json:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
