"""What a multiple-choice test says: accuracy with its interval, badly formatted answers, habits of position, and who is better."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from preceptor.catalog import nearest
from preceptor.education.multiple_choice import LETTERS, NONE, Item, Sitting, right

Z95 = 1.959963984540054  # of the standard normal distribution, two-sided 95 %
OVERALL = "overall"

Group = Literal["category", "age_group", "year"]
"""What items can be grouped by."""

GROUPS: tuple[Group, ...] = ("category", "age_group", "year")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of some items; accuracy, its ends and ``bad`` in percent.

    Attributes:
        accuracy: an answer without a letter counts as wrong; over several orders the mean.
        low, high: Wilson's 95 % interval, counted as if every item were answered once.
        bad: answers in which no letter was found.
        items: how many.
        chance: what guessing gets on average.
        spread: standard deviation of the accuracy over the orders; 0 with one.
        balanced: the accuracy if every letter were right equally often, which takes a habit of letters out; see `balanced`.
    """

    accuracy: float
    low: float
    high: float
    bad: float
    items: int
    chance: float
    spread: float
    balanced: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One model less another on the same items, in percentage points, with the 95 % interval of a bootstrap over items.

    ``p_value``: two-sided, of the exact sign test over the items where they differ; with one order this is McNemar's exact test.
    """

    difference: float
    low: float
    high: float
    p_value: float
    better: int  # items where the first is better
    worse: int


def credit(items: Sequence[Item], sitting: Sitting) -> np.ndarray:
    """(N,) share of the orders in which each item was answered right."""
    return np.array([np.mean([one == right(item) != NONE for one in row]) for item, row in zip(items, sitting.chosen, strict=True)])


def score(items: Sequence[Item], sitting: Sitting, *, by: Group = "category") -> dict[str, Score]:
    """Scores of all items, `OVERALL`, and of each group in order of appearance.

    Args:
        items: N.
        sitting: of these.
        by: what groups them; an item without it counts in `OVERALL` only.
    Raises:
        ValueError: no items, another number of answers, or an unknown ``by``.
    """
    if by not in GROUPS:
        raise ValueError(f"by: expected one of {', '.join(GROUPS)}, got {by!r}{nearest(by, GROUPS)}")
    if not items or len(items) != len(sitting.chosen):
        raise ValueError(f"sitting: expected answers to {len(items)} items, at least 1, got {len(sitting.chosen)}")
    names = [{"category": item.category, "age_group": item.age_group, "year": item.year}[by] for item in items]
    groups = {OVERALL: list(range(len(items)))}
    groups |= {name: [i for i, own in enumerate(names) if own == name] for name in dict.fromkeys(names) if name}
    credits = credit(items, sitting)
    return {name: _score(items, sitting, credits, rows) for name, rows in groups.items()}


def balanced(items: Sequence[Item], chosen: Sequence[Sequence[int]]) -> float:
    """Accuracy in percent if the right option stood at every letter equally often, from the orders that were asked.

    Mean over letters of the share answered right where that letter is right, among items with as many options; then over these, each with
    its number of items. A model that follows a letter with probability w and else knows a share a gets w / k + (1 - w) a, as it does when
    its options are turned through every position, where this is the accuracy itself.

    Args:
        items: N.
        chosen: of each the options that were chosen; see `Sitting`.
    Returns:
        NaN where some letter is never right, so that nobody can tell; an item that names no single right option counts as wrong.
    """
    sizes: Counter[int] = Counter()
    found: dict[int, list[list[bool]]] = {}
    for item, row in zip(items, chosen, strict=True):
        options = len(item.options)
        if right(item) != NONE:
            sizes[options] += 1
            letters = found.setdefault(options, [[] for _ in item.options])
            for shift, one in enumerate(row):
                letters[(right(item) - shift) % options].append(one == right(item))
    if not all(answers for letters in found.values() for answers in letters):
        return math.nan
    return 100 * sum(sizes[k] * float(np.mean([np.mean(answers) for answers in letters])) for k, letters in found.items()) / len(items)


def accuracy_table(categories: Sequence[str], answers: Sequence[str], predictions: Sequence[str | None]) -> dict[str, tuple]:
    """Accuracy in percent, badly formatted answers in percent and items, overall and by category; None counts as wrong.

    Raises:
        ValueError: different lengths, or nothing.
    """
    if not answers or not len(categories) == len(answers) == len(predictions):
        raise ValueError(f"predictions: expected as many as answers, at least 1, got {len(predictions)} for {len(answers)}")
    groups = {OVERALL: range(len(answers))}
    groups |= {name: [i for i, one in enumerate(categories) if one == name] for name in dict.fromkeys(categories)}
    return {
        name: (
            100 * sum(predictions[i] == answers[i] for i in rows) / len(rows),
            100 * sum(predictions[i] is None for i in rows) / len(rows),
            len(rows),
        )
        for name, rows in groups.items()
    }


def letters(sitting: Sitting) -> dict[str, int]:
    """How often each letter was chosen, and ``none``."""
    counts = Counter(place for row in sitting.places for place in row)
    used = max((place for place in counts if place != NONE), default=NONE) + 1
    return {**{LETTERS[place]: counts[place] for place in range(max(used, 2))}, "none": counts[NONE]}


def wilson(share: float, items: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share in [0, 1] of ``items`` >= 1:  (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Raises:
        ValueError: another share, or no items.
    """
    if not 0 <= share <= 1 or items < 1:
        raise ValueError(f"share: expected a number in [0, 1] of at least 1 item, got {share} of {items}")
    middle = share + Z95**2 / (2 * items)
    half = Z95 * math.sqrt(share * (1 - share) / items + Z95**2 / (4 * items**2))
    scale = 1 + Z95**2 / items
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p of "both are equally likely" from the counts of items that only one, and only the other, answered right."""
    if better < 0 or worse < 0:
        raise ValueError(f"counts: expected numbers >= 0, got {better} and {worse}")
    total = better + worse
    tail = sum(math.comb(total, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**total)


def compare_sittings(items: Sequence[Item], first: Sitting, second: Sitting, *, draws: int = 10000, seed: int = 0) -> Comparison:
    """Two models on the same items.

    Args:
        items: N.
        first: whose difference is positive where it is better.
        second: the other.
        draws: of the bootstrap.
        seed: of the draws.
    """
    gaps = credit(items, first) - credit(items, second)
    values, counts = np.unique(gaps, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(gaps), counts / len(gaps), size=draws) @ values / len(gaps)
    low, high = (100 * np.percentile(drawn, [2.5, 97.5])).tolist()
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    return Comparison(difference=100 * float(gaps.mean()), low=low, high=high, p_value=mcnemar(better, worse), better=better, worse=worse)


def _score(items: Sequence[Item], sitting: Sitting, credits: np.ndarray, rows: Sequence[int]) -> Score:
    share = float(credits[rows].mean())
    low, high = wilson(share, len(rows))
    orders = max(len(sitting.chosen[i]) for i in rows)
    by_order = [
        np.mean([sitting.chosen[i][k] == right(items[i]) != NONE for i in rows if k < len(sitting.chosen[i])]) for k in range(orders)
    ]
    asked = [place for i in rows for place in sitting.places[i]]
    return Score(
        accuracy=100 * share,
        low=100 * low,
        high=100 * high,
        bad=100 * sum(place == NONE for place in asked) / len(asked),
        items=len(rows),
        chance=100 * float(np.mean([1 / len(items[i].options) for i in rows])),
        spread=100 * float(np.std(by_order, ddof=1)) if orders > 1 else 0.0,
        balanced=balanced([items[i] for i in rows], [sitting.chosen[i] for i in rows]),
    )
