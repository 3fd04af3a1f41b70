"""Which questions are explained, and what an order of them is worth."""

from __future__ import annotations

import numpy as np
import pytest

from preceptor.teachers.interventions import (
    budget_curve,
    gain_over_random,
    num_explained,
    random_line,
    rank_by_errors,
    rank_interventions,
)

RNG = np.random.default_rng(0)
WITHOUT, WITH = RNG.random(50), RNG.random(50)
RIGHT, HELPED = RNG.random(50) < 0.6, RNG.random(50) < 0.7
BUDGETS = [k / 50 for k in range(51)]


def test_orders_are_those_of_plain_sorting():
    utility = sorted(range(50), key=lambda i: WITHOUT[i] - WITH[i])
    assert rank_interventions(WITHOUT, WITH).tolist() == utility
    assert rank_interventions(WITHOUT, WITH, "no-intervention").tolist() == sorted(range(50), key=lambda i: WITHOUT[i])
    assert rank_interventions(WITHOUT, WITH, "intervention").tolist() == sorted(range(50), key=lambda i: -WITH[i])
    assert rank_interventions(WITHOUT, WITH, deceive=True).tolist() == utility[::-1]


def test_equal_utilities_keep_the_order_of_questions_also_for_a_misleading_teacher():
    for deceive in (False, True):
        assert rank_interventions(np.full(9, 0.3), np.full(9, 0.4), deceive=deceive).tolist() == list(range(9))


def test_monotone_maps_of_utility_change_nothing_but_those_of_its_parts_do():
    utility = WITH - WITHOUT
    mapped = (np.exp(utility) - np.exp(-1)) / (np.exp(1) - np.exp(-1))
    assert np.array_equal(rank_interventions(np.zeros(50), mapped), rank_interventions(WITHOUT, WITH))
    assert not np.array_equal(rank_interventions(WITHOUT**4, WITH), rank_interventions(WITHOUT, WITH))


def test_lots_follow_their_seed():
    first, again, other = (rank_interventions(WITHOUT, WITH, "random", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert sorted(first) == list(range(50))


@pytest.mark.parametrize(("budget", "num", "count"), [(0.29, 100, 29), (0.0, 7, 0), (1.0, 7, 7), (0.6, 5, 3), (0.4, 7, 2), (0.999, 10, 9)])
def test_floors_do_not_fall_to_rounding(budget, num, count):
    assert num_explained(budget, num) == count


def test_a_curve_is_that_of_a_loop():
    order = rank_interventions(WITHOUT, WITH)
    for budget, value in zip(BUDGETS, budget_curve(order, RIGHT, HELPED, BUDGETS), strict=True):
        chosen = set(order[: round(budget * 50)].tolist())
        assert value == pytest.approx(np.mean([HELPED[i] if i in chosen else RIGHT[i] for i in range(50)]), abs=1e-12)


def test_ends_do_not_depend_on_the_order_and_true_utility_bounds_every_order():
    best = budget_curve(rank_interventions(RIGHT, HELPED), RIGHT, HELPED, BUDGETS)
    worst = budget_curve(rank_interventions(RIGHT, HELPED, deceive=True), RIGHT, HELPED, BUDGETS)
    assert (np.diff(best, 2) <= 1e-12).all()  # concave
    assert (np.diff(worst, 2) >= -1e-12).all()  # convex
    for seed in range(20):
        curve = budget_curve(rank_interventions(WITHOUT, WITH, "random", seed=seed), RIGHT, HELPED, BUDGETS)
        assert curve[0] == pytest.approx(RIGHT.mean())
        assert curve[-1] == pytest.approx(HELPED.mean())
        assert (curve <= best + 1e-12).all()
        assert (curve >= worst - 1e-12).all()


def test_the_line_is_the_mean_over_lots():
    curves = [budget_curve(np.random.default_rng(seed).permutation(50), RIGHT, HELPED, [0.4]) for seed in range(4000)]
    assert np.mean(curves) == pytest.approx(random_line(RIGHT, HELPED, [0.4])[0], abs=0.003)


def test_the_gain_is_the_area_by_trapezoids():
    order = rank_interventions(WITHOUT, WITH)
    above = budget_curve(order, RIGHT, HELPED, BUDGETS) - random_line(RIGHT, HELPED, BUDGETS)
    assert gain_over_random(order, RIGHT, HELPED) == pytest.approx(np.trapezoid(above, BUDGETS), abs=1e-12)
    assert gain_over_random(rank_interventions(RIGHT, HELPED), RIGHT, HELPED) > 0
    assert gain_over_random(rank_interventions(RIGHT, HELPED, deceive=True), RIGHT, HELPED) < 0


def test_the_oracle_of_errors_explains_errors_first():
    order = rank_by_errors(RIGHT)
    errors = int((~RIGHT).sum())
    assert not RIGHT[order[:errors]].any()
    assert RIGHT[order[errors:]].all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_interventions([0.5], [0.5, 0.4]), r"with_help: expected one probability for each of 1 questions, got shape \(2,\)"),
        (lambda: rank_interventions([1.5], [0.5]), r"without: expected probabilities in \[0, 1\], got 1.5"),
        (lambda: rank_interventions([0.5], [float("nan")]), r"with_help: expected probabilities in \[0, 1\], got nan"),
        (
            lambda: rank_interventions([0.5], [0.5], "best"),
            r"strategy: expected one of utility, no-intervention, intervention, random, got 'best'",
        ),
        (lambda: rank_interventions([0.5], [0.5], "random", deceive=True), r"deceive: expected the strategy utility, got 'random'"),
        (lambda: num_explained(1.1, 5), r"budget: expected a share in \[0, 1\], got 1.1"),
        (lambda: budget_curve([0, 0], [1, 0], [1, 1], [0.5]), r"order: expected each of the 2 positions once, got \[0, 0\]"),
        (
            lambda: budget_curve([], [], [], [0.5]),
            r"without: expected right or wrong for each of 0 questions, at least one, got shape \(0,\)",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
