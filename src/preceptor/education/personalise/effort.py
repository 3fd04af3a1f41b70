"""What a review cost: active minutes, turns, characters, how much of the drafts stayed, and whether teachers become faster."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from preceptor.education.personalise.events import MOVES, Event

IDLE = 120.0
"""Seconds: a longer gap between two events is a pause, and no part of it is work; the card."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The effort for one variant, one problem, or all of a log.

    Attributes:
        minutes: active, pauses and the generator's time left out.
        turns: edits and new prompts.
        characters: written by the teacher, in notes and, of edits, what was put in or changed.
        distance: between first draft and final text, 0 to 1, the mean over accepted variants; NaN where none was.
        drafts: written by the generator.
        discarded: share of the drafts that were asked for again or rejected.
        variants: opened or decided.
        moves: how often each label was given.
    """

    minutes: float
    turns: int
    characters: int
    distance: float
    drafts: int
    discarded: float
    variants: int
    moves: Mapping[str, int]

    @property
    def ownership(self) -> float:
        """Share of the model's text that was kept."""
        return 1 - self.distance


@dataclass(frozen=True, kw_only=True)
class Curve:
    """y = a_j + b log n: the slope with its 95 % interval over teachers, and how many teachers and problems (or ratings) it is from."""

    slope: float
    low: float
    high: float
    teachers: int
    problems: int


def effort_report(events: Sequence[Event]) -> tuple[Effort, dict[str, Effort]]:
    """The effort of everything, and by problem in the order in which they came.

    Args:
        events: of one teacher, in the order in which they happened.
    Raises:
        ValueError: times that go backwards.
    """
    seconds: dict[str, float] = {}
    for before, event in pairwise(events):
        gap = event.time - before.time
        if gap < 0:
            raise ValueError(f"events: expected times that do not decrease, got {event.time:g} after {before.time:g}")
        if gap <= IDLE and event.actor == "teacher":
            seconds[event.problem] = seconds.get(event.problem, 0.0) + gap
    problems = dict.fromkeys(event.problem for event in events if event.problem)
    parts = {problem: _effort([e for e in events if e.problem == problem], seconds.get(problem, 0.0)) for problem in problems}
    return _effort(events, sum(seconds.values())), parts


def learning_curve(minutes: Mapping[str, Sequence[float]], *, draws: int = 1000, seed: int = 0) -> Curve:
    """Whether teachers become faster: the slope of log minutes on the log of the problem's place, b < 0 for faster.

    Each teacher has an intercept of its own, so only what changes within a teacher counts.

    Args:
        minutes: teacher -> active minutes of the first, second, ... problem, > 0.
        draws: of the bootstrap over teachers; 0 leaves the interval out.
        seed: of the draws.
    Raises:
        ValueError: no teacher with two problems, or minutes that are not above 0.
    """
    points = {}
    for teacher, values in minutes.items():
        times = np.asarray(values, dtype=float)
        if not (np.isfinite(times).all() and (times > 0).all()):
            raise ValueError(f"minutes of {teacher}: expected finite numbers above 0, got {float(times.min()):g}")
        points[teacher] = (np.arange(1, len(times) + 1), np.log(times))
    return _curve("minutes", points, draws, seed)


def quality_curve(ratings: Mapping[str, Sequence[tuple[int, float]]], *, draws: int = 1000, seed: int = 0) -> Curve:
    """Whether teachers' problems become more interesting: the slope of ratings on the log of the problem's place, b > 0 for better.

    Args:
        ratings: teacher -> place of the problem among the teacher's, from 1, and a student's rating of it; several for one place may be.
        draws, seed: as in `learning_curve`.
    Raises:
        ValueError: no teacher with ratings of two problems, a place below 1, or a rating that is not finite.
    """
    points = {}
    for teacher, rows in ratings.items():
        table = np.array(rows, dtype=float).reshape(-1, 2)
        if not np.isfinite(table).all() or (table[:, 0] < 1).any():
            raise ValueError(f"ratings of {teacher}: expected places of at least 1 and finite ratings, got others")
        points[teacher] = (table[:, 0], table[:, 1])
    return _curve("ratings", points, draws, seed)


def _curve(name: str, points: Mapping[str, tuple[np.ndarray, np.ndarray]], draws: int, seed: int) -> Curve:
    """The slope of y = a_j + b log n over teachers j, from n and y of each."""
    sums = []
    for places, values in points.values():
        if len(set(places.tolist())) > 1:
            x, y = np.log(places) - np.log(places).mean(), values - values.mean()
            sums.append((x @ y, x @ x, len(places)))
    if not sums:
        raise ValueError(f"{name}: expected a teacher with at least 2 problems, got none")
    table = np.array(sums)
    slope = float(table[:, 0].sum() / table[:, 1].sum())
    low = high = math.nan
    if draws and len(table) > 1:
        chosen = np.random.default_rng(seed).integers(0, len(table), size=(draws, len(table)))
        drawn = table[chosen, 0].sum(1) / table[chosen, 1].sum(1)
        low, high = map(float, np.percentile(drawn, [2.5, 97.5]))
    return Curve(slope=slope, low=low, high=high, teachers=len(table), problems=int(table[:, 2].sum()))


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: insertions, deletions and replacements of one character.

    Myers 1999 (J. ACM 46(3)), in the form of Hyyro 2003: a column of the table is two sets of bits, one for +1 and one for -1.
    """
    if not first or not second:
        return len(first) or len(second)
    places: dict[str, int] = {}
    for i, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << i
    full = (1 << len(first)) - 1
    top = 1 << (len(first) - 1)
    plus, minus, distance = full, 0, len(first)
    for character in second:
        equal = places.get(character, 0)
        diagonal = (((equal & plus) + plus) ^ plus) | equal | minus
        across_plus, across_minus = minus | (~(diagonal | plus) & full), plus & diagonal
        distance += bool(across_plus & top) - bool(across_minus & top)
        across_plus, across_minus = (across_plus << 1 | 1) & full, across_minus << 1 & full
        plus, minus = across_minus | (~(diagonal | across_plus) & full), across_plus & diagonal
    return distance


def changed_share(first: str, second: str) -> float:
    """Edit distance by the length of the longer text, 0 for equal texts, 1 where nothing stayed."""
    return edit_distance(first, second) / max(len(first), len(second), 1)


def _effort(events: Sequence[Event], seconds: float) -> Effort:
    by_variant: dict[str, list[Event]] = {}
    for event in events:
        if event.variant:
            by_variant.setdefault(event.variant, []).append(event)
    distances, characters, discarded = [], 0, 0
    for own in by_variant.values():
        drafts = [event.text for event in own if event.kind == "draft"]
        final = [event.text for event in own if event.kind == "accept"]
        if drafts and final:
            distances.append(changed_share(drafts[0], final[-1]))
        discarded += sum(event.kind == "ask" for event in own) + any(event.kind == "reject" for event in own) * bool(drafts)
        text = ""
        for event in own:
            if event.kind == "ask":
                characters += len(event.text)
            elif event.kind == "edit":
                characters += edit_distance(text, event.text) - max(0, len(text) - len(event.text))
            text = event.text if event.kind in ("draft", "edit") else text
    drafts = sum(event.kind == "draft" for event in events)
    labels = Counter(move for event in events for move in event.moves)
    return Effort(
        minutes=seconds / 60,
        turns=sum(event.kind in ("edit", "ask") for event in events),
        characters=characters,
        distance=float(np.mean(distances)) if distances else math.nan,
        drafts=drafts,
        discarded=discarded / drafts if drafts else 0.0,
        variants=len(by_variant),
        moves={move: labels[move] for move in MOVES if labels[move]},
    )
