"""Balancers of teachers and of terms."""

from __future__ import annotations

import math

import pytest

from preceptor.losses.balance import balance_temperatures, balance_weights

HALVES = {"a": 0.5, "b": 0.5}


def test_equal_progress_keeps_equal_weights_and_the_laggard_gains():
    first = {"a": 2.0, "b": 0.1}
    assert balance_weights({"a": 1.0, "b": 0.05}, first, HALVES, rate=0.3) == HALVES
    moved = balance_weights({"a": 1.0, "b": 0.1}, first, HALVES, rate=0.3)
    assert math.isclose(moved["b"], 0.5 - 0.3 * (0.5 - 2 / 3))
    assert math.isclose(sum(moved.values()), 1)


def test_rate_one_gives_the_shares_and_rate_nought_the_weights():
    losses, first = {"a": 1.0, "b": 3.0, "c": 4.0}, dict.fromkeys("abc", 1.0)
    old = {"a": 0.2, "b": 0.3, "c": 0.5}
    assert balance_weights(losses, first, old, rate=1.0) == pytest.approx({"a": 0.125, "b": 0.375, "c": 0.5})
    assert balance_weights(losses, first, old, rate=0.0) == pytest.approx(old)
    squares = balance_weights(losses, first, old, rate=1.0, power=2.0)
    assert squares == pytest.approx({"a": 1 / 26, "b": 9 / 26, "c": 16 / 26})


def test_weights_stay_between_the_shares_seen():
    weights, shares = HALVES, []
    for step in range(50):
        losses = {"a": 1 + math.sin(step), "b": 1 + math.cos(3 * step)}
        weights = balance_weights(losses, {"a": 1.0, "b": 1.0}, weights, rate=0.2)
        shares.append(losses["a"] / (losses["a"] + losses["b"]))
        assert min(*shares, 0.5) <= weights["a"] <= max(*shares, 0.5)
        assert math.isclose(math.fsum(weights.values()), 1)


def test_nothing_left_to_learn_is_finite():
    nothing = {"a": 0.0, "b": 0.0}
    assert balance_weights(nothing, nothing, {"a": 0.3, "b": 0.7}, rate=1.0) == HALVES
    assert balance_weights({"a": 0.0, "b": 1.0}, {"a": 0.0, "b": 1.0}, HALVES, rate=1.0) == {"a": 0.0, "b": 1.0}
    assert balance_weights({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, nothing, rate=0.0) == HALVES


def test_temperatures_move_in_opposite_directions_by_the_rate():
    old = {"a": 3.0, "b": 4.0}
    assert balance_temperatures({"a": 0.7, "b": 0.2}, old, rate=0.25) == {"a": 2.75, "b": 4.25}
    assert balance_temperatures({"a": 0.1, "b": 0.2}, old, rate=0.25) == {"a": 3.25, "b": 3.75}
    assert balance_temperatures({"a": 0.2, "b": 0.2}, old, rate=0.25) == old


def test_temperatures_keep_their_bounds_and_negative_entropies_are_no_exception():
    assert balance_temperatures({"a": 0.7, "b": -1e-6}, {"a": 1.0, "b": 9.9}, rate=0.25) == {"a": 1.0, "b": 10.0}


def test_many_teachers_are_led_to_their_mean_entropy():
    old = dict.fromkeys("abc", 2.0)
    assert balance_temperatures({"a": 0.1, "b": 0.2, "c": 0.9}, old, rate=0.5) == {"a": 2.5, "b": 2.5, "c": 1.5}
    assert balance_temperatures(dict.fromkeys("abc", 0.1), old, rate=0.5) == old  # rounding moves nothing
