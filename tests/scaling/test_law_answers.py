"""Closed forms against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from preceptor.scaling.answers import (
    best_share,
    budget_for,
    compute_for,
    compute_optimal,
    data_for,
    optimal_split,
    share_interval,
    size_for,
    suboptimality,
)
from preceptor.scaling.fitting import fit
from preceptor.scaling.foresight import foresight, straight_line
from preceptor.scaling.forms import LAWS, POWER_CONSTANT, LogLaw

JOINT = {"A": 482.0, "B": 2085.0, "E": 1.817, "alpha": 0.348, "beta": 0.366}
PRODUCT = {"A": 0.8, "E": 1.2, "p_e": 0.18, "p_d": 0.31}


def test_the_size_for_a_loss_gives_that_loss():
    law = {"A": 5.2, "E": 2.0, "alpha": 0.24}
    for size in (1e4, 1e9):
        assert math.isclose(size_for(law, 2 + 5.2 * size**-0.24), size, rel_tol=1e-9)
    assert size_for(law, 2.0) == math.inf
    assert size_for(law, [1.5, 3.0])[0] == math.inf
    assert size_for({**law, "alpha": 0.0}, 3.0) in (0.0, math.inf)


def test_the_best_size_is_the_numeric_minimum():
    compute = 5.76e23
    n, d, loss = compute_optimal(JOINT, compute)
    assert math.isclose(n * d, compute / 6, rel_tol=1e-12)
    sizes = np.exp(np.linspace(math.log(n) - 1, math.log(n) + 1, 2_000_001))
    losses = JOINT["E"] + JOINT["A"] * sizes ** -JOINT["alpha"] + JOINT["B"] * (compute / 6 / sizes) ** -JOINT["beta"]
    assert math.isclose(sizes[losses.argmin()], n, rel_tol=2e-6)
    assert math.isclose(losses.min(), loss, rel_tol=1e-12)
    assert math.isclose(compute_for(JOINT, loss), compute, rel_tol=1e-9)
    assert compute_for(JOINT, 1.8) == math.inf
    ten = compute_optimal(JOINT, 10 * compute)
    power = JOINT["alpha"] * JOINT["beta"] / (JOINT["alpha"] + JOINT["beta"])
    assert math.isclose((ten.loss - JOINT["E"]) / (loss - JOINT["E"]), 10**-power, rel_tol=1e-9)


def test_answers_take_the_draws_of_a_bootstrap():
    draws = {name: np.array([value, 1.1 * value]) for name, value in JOINT.items()}
    assert compute_optimal(draws, 1e22).first.shape == (2,)
    assert math.isclose(compute_optimal(draws, 1e22).first[0], compute_optimal(JOINT, 1e22).first)
    assert compute_for(draws, 2.2).shape == (2,)
    assert np.isfinite(compute_for(draws, 2.2)).all()
    assert compute_for(draws, 1.9).tolist()[1] == math.inf


@pytest.mark.parametrize("costs", [(1.0, 1.0), (2.0, 3.0)])
def test_the_best_split_is_the_numeric_minimum(costs):
    budget = 40.0
    encoder, decoder, loss = optimal_split(PRODUCT, budget, costs=costs)
    assert math.isclose(costs[0] * encoder + costs[1] * decoder, budget, rel_tol=1e-12)
    tried = np.linspace(0.01, budget / costs[0] - 0.01, 400_001)
    losses = PRODUCT["E"] + PRODUCT["A"] * tried ** -PRODUCT["p_e"] * ((budget - costs[0] * tried) / costs[1]) ** -PRODUCT["p_d"]
    assert abs(tried[losses.argmin()] - encoder) < 2e-4
    assert math.isclose(losses.min(), loss, rel_tol=1e-9)
    assert math.isclose(budget_for(PRODUCT, loss, costs=costs), budget, rel_tol=1e-9)
    assert math.isclose(best_share(PRODUCT, costs=costs), encoder / (encoder + decoder), rel_tol=1e-12)


def test_another_split_costs_what_the_law_says():
    best = float(best_share(PRODUCT))
    assert math.isclose(best, 0.18 / 0.49)
    assert math.isclose(suboptimality(PRODUCT, best), 1)
    share, budget = 0.7, 10.0
    by_law = PRODUCT["A"] * (share * budget) ** -0.18 * ((1 - share) * budget) ** -0.31
    assert math.isclose(suboptimality(PRODUCT, share), by_law / (optimal_split(PRODUCT, budget).loss - 1.2), rel_tol=1e-12)
    turned = {**PRODUCT, "p_e": 0.31, "p_d": 0.18}
    assert math.isclose(suboptimality(turned, 1 - share), suboptimality(PRODUCT, share), rel_tol=1e-12)
    assert best_share({**PRODUCT, "p_d": 0.18}) == 0.5
    low, high = share_interval(PRODUCT)
    assert low < best < high
    assert math.isclose(suboptimality(PRODUCT, high), 1.05, abs_tol=1e-3)


def test_data_for_a_score_give_that_score():
    law = {"log_A": math.log(1e-6), "alpha": 1.1, "beta": 1.2}
    score = (law["log_A"] + 1.1 * math.log(3e10)) ** 1.2
    assert math.isclose(data_for(law, score), 3e10, rel_tol=1e-9)


def test_foresight_holds_out_the_largest_sizes():
    x = np.repeat(np.geomspace(1e4, 1e9, 10), 2)
    loss = 2 + (1e3 / x) ** 0.24
    seen = foresight(POWER_CONSTANT, x, loss)
    assert seen.held == (16, 17, 18, 19)
    assert seen.mean["law"] < 1e-5 < seen.mean["line"]
    assert math.isclose(seen.largest["last"], loss[15] / loss[19] - 1, rel_tol=1e-9)
    assert foresight(POWER_CONSTANT, x[:8], loss[:8]) is not None
    assert foresight(POWER_CONSTANT, x[::2][:4], loss[::2][:4]) is None
    with pytest.raises(ValueError, match=r"^holdout: expected a share in \(0, 1\), got 1$"):
        foresight(POWER_CONSTANT, x, loss, share=1)
    data = np.geomspace(1e3, 1e6, 8)
    assert foresight(LogLaw(), data, np.log(data) ** 2).mean["law"] < 1e-4


def test_the_law_product_is_held_against_a_law_in_the_total():
    layers = np.array([2, 4, 6, 8, 12, 16, 24, 48, 64]) / 6
    sizes = np.array([[n, 1.0] for n in layers] + [[1.0, n] for n in layers if n != 1] + [[c, c] for c in (4.0, 8.0, 16.0)])
    loss = 1.2 + 0.8 * sizes[:, 0] ** -0.18 * sizes[:, 1] ** -0.31
    seen = foresight(LAWS["product"], sizes, loss, starts=6)
    assert seen.mean["law"] < 1e-4
    assert seen.mean["total"] > 0.01  # what counts is where the parameters sit
    kept = np.delete(np.arange(len(loss)), seen.held)
    rival = fit(POWER_CONSTANT, sizes[kept].sum(1), loss[kept], starts=6).predict(sizes[list(seen.held)].sum(1))
    assert seen.mean["total"] == pytest.approx(np.abs(rival / loss[list(seen.held)] - 1).mean())
    same = np.array([[n, 10 - n] for n in range(1, 10)] + [[30.0, 30.0]])
    fixed = foresight(LAWS["product"], same, 1.2 + 0.8 * same[:, 0] ** -0.18 * same[:, 1] ** -0.31, starts=6)
    assert fixed is not None
    assert "total" not in fixed.mean  # the runs that are kept have one total
    assert "total" not in foresight(POWER_CONSTANT, sizes[:9, 0], loss[:9]).mean


def test_a_straight_line():
    x = np.geomspace(1, 100, 5)
    np.testing.assert_allclose(straight_line(x, 3 * x**-0.5, [1000.0]), 3 * 1000**-0.5)
    np.testing.assert_allclose(straight_line(x, 2 + np.log(x), [1000.0], of_scores=True), 2 + math.log(1000))
