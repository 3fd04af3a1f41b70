"""Which questions a teacher explains when only a share of them may be explained, and what each choice is worth.

A student answers every question once without and once with an explanation; whatever the budget, nothing more is asked. Two predictions of
its right answer, without and with, are the teacher's model of its mind (`preceptor.teachers.mental_models`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preceptor.losses.checks import check_choice

Strategy = Literal["utility", "no-intervention", "intervention", "random"]
"""``utility``: largest p_with - p_without first; ``no-intervention``: smallest p_without; ``intervention``: largest p_with; by lot."""


def rank_interventions(
    without: ArrayLike, with_help: ArrayLike, strategy: Strategy = "utility", *, deceive: bool = False, seed: int = 0
) -> NDArray[np.int64]:
    """Order questions by how much an explanation is needed; of equal ones the earlier comes first.

    Saha, Hase, Bansal 2023 (arXiv:2306.09299). With predicted probabilities this is the paper's intervention function, with the student's
    true ones its oracle. Teacher confidence is ``intervention`` of the teacher's own probabilities, least student confidence
    ``no-intervention`` of the student's smallest ones.

    Args:
        without: p that the student is right without help, shape (n,).
        with_help: p that it is right with the explanation, shape (n,).
        strategy: see `Strategy`.
        deceive: the smallest utility first: the order of a misleading teacher.
        seed: of ``random``.
    Returns:
        Positions, the first to be explained first, shape (n,).
    Raises:
        ValueError: shapes that differ, a number outside [0, 1], an unknown strategy, or ``deceive`` with another than ``utility``.
    """
    check_choice(Strategy, strategy=strategy)
    if deceive and strategy != "utility":
        raise ValueError(f"deceive: expected the strategy utility, got {strategy!r}")
    p_without, p_with = _probabilities(without=without, with_help=with_help)
    if strategy == "random":
        return np.random.default_rng(seed).permutation(len(p_without))
    key = {"utility": p_without - p_with, "no-intervention": p_without, "intervention": -p_with}[strategy]
    return np.argsort(-key if deceive else key, kind="stable")


def rank_by_errors(right: ArrayLike) -> NDArray[np.int64]:
    """The oracle that explains what the student gets wrong without help, in the order of questions, and the rest only then."""
    return np.argsort(_answers(right=right)[0], kind="stable")


def num_explained(budget: float, num: int) -> int:
    """How many of ``num`` questions a budget allows: floor(b n), where 0.29 of 100 are 29.

    Raises:
        ValueError: the budget is outside [0, 1].
    """
    if not 0 <= budget <= 1:
        raise ValueError(f"budget: expected a share in [0, 1], got {budget}")
    return math.floor(round(budget * num, 9))


def budget_curve(order: ArrayLike, without: ArrayLike, with_help: ArrayLike, budgets: Sequence[float]) -> NDArray[np.float64]:
    """Accuracy at each budget: the first questions of an order are answered with help, the others without.

    Args:
        order: every position once, shape (n,).
        without: whether the answer without help is right, shape (n,).
        with_help: whether the answer with the explanation is right, shape (n,).
        budgets: shares in [0, 1].
    Returns:
        In [0, 1], shape (budgets,). At 0 and 1 it does not depend on the order.
    Raises:
        ValueError: no question, shapes that differ, an order that is none, or a budget outside [0, 1].
    """
    right, helped = _answers(without=without, with_help=with_help)
    places = np.asarray(order)
    if places.shape != right.shape or not np.array_equal(np.sort(places), np.arange(len(right))):
        raise ValueError(f"order: expected each of the {len(right)} positions once, got {places.tolist()[:10]}")
    gained = np.concatenate([[0], np.cumsum((helped.astype(int) - right)[places])])
    return np.array([(right.sum() + gained[num_explained(budget, len(right))]) / len(right) for budget in budgets])


def random_line(without: ArrayLike, with_help: ArrayLike, budgets: Sequence[float]) -> NDArray[np.float64]:
    """What `budget_curve` is on average over orders by lot: a straight line, but for the floor of numbers of questions."""
    right, helped = _answers(without=without, with_help=with_help)
    shares = np.array([num_explained(budget, len(right)) for budget in budgets]) / len(right)
    return right.mean() + shares * (helped.mean() - right.mean())


def gain_over_random(order: ArrayLike, without: ArrayLike, with_help: ArrayLike) -> float:
    """Area between `budget_curve` and the line of lots over all numbers of explained questions, in [-1, 1]: one number for a ranking."""
    num = np.size(without)
    budgets = [k / num for k in range(num + 1)]
    above = budget_curve(order, without, with_help, budgets) - random_line(without, with_help, budgets)
    return float(above[1:-1].sum() / num)  # by trapezoids: both ends are 0


def _probabilities(**values: ArrayLike) -> list[NDArray[np.float64]]:
    found = {name: np.asarray(value, dtype=float) for name, value in values.items()}
    first = next(iter(found.values()))
    for name, value in found.items():
        if value.ndim != 1 or value.shape != first.shape:
            raise ValueError(f"{name}: expected one probability for each of {first.size} questions, got shape {value.shape}")
        wrong = value[~((value >= 0) & (value <= 1))]
        if wrong.size:
            raise ValueError(f"{name}: expected probabilities in [0, 1], got {wrong[0]}")
    return list(found.values())


def _answers(**values: ArrayLike) -> list[NDArray[np.bool_]]:
    found = {name: np.asarray(value).astype(bool) for name, value in values.items()}
    first = next(iter(found.values()))
    for name, value in found.items():
        if value.ndim != 1 or value.shape != first.shape or not value.size:
            raise ValueError(f"{name}: expected right or wrong for each of {first.size} questions, at least one, got shape {value.shape}")
    return list(found.values())
