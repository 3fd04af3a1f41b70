"""Laying out a crossword: greedy placing, restarts, and repair by hill climbing."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence

from preceptor.core.signals import deferred_signals
from preceptor.education.crossword.board import Board, Place
from preceptor.education.crossword.puzzle import Puzzle, puzzle_of

PATIENCE = 250
"""Repairs in a row without a better grid, after which a new try begins."""


def build_grid(
    words: Iterable[str],
    *,
    size: int | tuple[int, int] = 13,
    preferred: Iterable[str] = (),
    restarts: int | None = 60,
    rounds: int | None = None,
    patience: int = PATIENCE,
    seconds: float | None = None,
    target_words: int | None = None,
    target_fill: float = 0.0,
    greedy: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> Puzzle:
    """Lay out words so that they cross, as many and as densely as can be found: the best of many tries by the score of `Stats`.

    Args:
        words: answers of letters A-Z, see `normalize`; equal ones count once. Words longer than the grid are reported, never cut.
        size: cells of a side, or height and width, at least 2.
        preferred: words that should be in the grid: each is worth 10 / their number.
        restarts: tries at most; None: until the time is up.
        rounds: repairs at most, of all tries together; None: no limit. With ``restarts`` later tries are begun and not repaired.
        patience: a try ends after so many repairs in a row that gain nothing; 0 repairs nothing.
        seconds: time at most; a first grid is always made. The puzzle tells how far the search came.
        target_words: a grid with so many words and a fill of ``target_fill`` ends the search.
        target_fill: FR in [0, 1].
        greedy: how often a word goes where it crosses most, else to any place that crosses, in [0, 1].
        seed: of all choices.
        progress: called after each try with its number, the repairs so far and the best score.
    Returns:
        The best grid; an empty one when there is no word that fits. A signal ends the search, and the best so far is returned.
    Raises:
        ValueError: an argument out of its range, no limit of the search, or a word that is no run of letters A-Z.
    """
    height, width = (size, size) if isinstance(size, int) else size
    _check(height, width, restarts, rounds, patience, seconds, greedy)
    given = list(dict.fromkeys(words))
    for word in given:
        if not word or not all("A" <= letter <= "Z" for letter in word):
            raise ValueError(f"words: expected letters A to Z, got {word!r}")
    too_long = [word for word in given if len(word) > max(height, width)]
    usable = [word for word in given if 2 <= len(word) <= max(height, width)]
    wanted = frozenset(preferred)
    grid = Board(usable, height, width, frozenset(i for i, word in enumerate(usable) if word in wanted))
    best: tuple[float, dict[int, Place]] = (-math.inf, {})
    tries = repairs = 0
    start = time.perf_counter()

    def over() -> bool:
        late = seconds is not None and time.perf_counter() - start >= seconds
        return late or bool(caught) or _reached(best[1], usable, grid, target_words, target_fill)

    def repaired() -> bool:
        return rounds is not None and repairs >= rounds

    with deferred_signals() as caught:
        while usable and (not tries or not (over() or (repaired() if restarts is None else tries >= restarts))):
            rng = random.Random(f"{seed} {tries}")
            tries += 1
            _begin(grid, rng, greedy)
            now, kept = grid.score(), grid.places
            best = max(best, (now, kept), key=lambda found: found[0])
            idle = 0
            while idle < patience and len(kept) > 1 and not repaired() and not over():
                repairs += 1
                grid.load(kept)
                grid.load(grid.without_some(max(1, round(len(kept) / 4)), rng))
                grid.fill(_shuffled(grid, rng), rng, greedy)
                new = grid.score()
                idle = 0 if new > now else idle + 1
                if new >= now:
                    now, kept = new, grid.places
                    best = max(best, (now, kept), key=lambda found: found[0])
            if progress is not None:
                progress(tries, repairs, best[0])
    grid.load(best[1])
    placed = {usable[word] for word in best[1]}
    return puzzle_of(
        grid.spots(),
        preferred=wanted & set(usable),
        left_out=[word for word in given if word not in placed],
        too_long=too_long,
        tries=tries,
        rounds=repairs,
    )


def _begin(grid: Board, rng: random.Random, greedy: float) -> None:
    """A fresh grid: the first word across in the middle, then all others."""
    order = _shuffled(grid, rng)
    grid.load({})
    for word in order:
        length = grid.lengths[word]
        direction = int(length > grid.width)
        rows, columns = (length, 1) if direction else (1, length)
        if rows <= grid.height and columns <= grid.width:
            row, column = (grid.height - rows) // 2, (grid.width - columns) // 2
            grid.put((word, (row + 1) * grid.row + column + 1, direction))
            break
    grid.fill(order, rng, greedy)


def _shuffled(grid: Board, rng: random.Random) -> list[int]:
    """The words in random order, longer ones first with probability 1/2."""
    order = list(range(len(grid.words)))
    rng.shuffle(order)
    if rng.random() < 0.5:
        order.sort(key=lambda word: -grid.lengths[word])
    return order


def _reached(best: dict[int, Place], words: Sequence[str], grid: Board, target_words: int | None, target_fill: float) -> bool:
    """Whether the best grid is as good as was asked for."""
    if target_words is None or len(best) < min(target_words, len(words)):
        return False
    if target_fill <= 0:
        return True
    full = Board(words, grid.height, grid.width, grid.preferred)
    full.load(best)
    return puzzle_of(full.spots()).stats.fill >= target_fill


def _check(height: int, width: int, restarts: int | None, rounds: int | None, patience: int, seconds: float | None, greedy: float) -> None:
    if min(height, width) < 2:
        raise ValueError(f"size: expected at least 2 cells, got {height} x {width}")
    if restarts is None and rounds is None and seconds is None:
        raise ValueError("restarts: expected a limit of restarts, rounds or seconds, got none")
    for name, value, least in (("restarts", restarts, 1), ("rounds", rounds, 0), ("patience", patience, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if seconds is not None and not seconds >= 0:
        raise ValueError(f"seconds: expected a number >= 0, got {seconds}")
    if not 0 <= greedy <= 1:
        raise ValueError(f"greedy: expected a number in [0, 1], got {greedy}")
