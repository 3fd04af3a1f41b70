"""Scaling laws of autoregressive models: what is read off them, and the miniature. The fitter is tested in tests/scaling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from preceptor.methods.scaling_autoregressive import (
    Growth,
    best_size,
    beyond_training,
    crossing,
    frontier,
    information_growth,
    miniature,
    reducible_share,
)
from preceptor.scaling.fitting import fit
from preceptor.scaling.forms import POWER_CONSTANT


def test_the_reducible_share():
    np.testing.assert_allclose(reducible_share([4.0, 2.0], 2.0), [0.5, 0.0])


def test_the_frontier_of_learning_curves_is_found():
    """Curves L(N, C) whose lower envelope is N = C^0.7 / 10 exactly, in a random order with dominated points."""
    rows = []
    for size in np.geomspace(1e2, 1e6, 30):
        best = (10 * size) ** (1 / 0.7)
        for compute in best * np.geomspace(0.05, 20, 41):
            rows.append((compute, size, compute**-0.1 * (1 + 0.05 * math.log(compute / best) ** 2)))
    order = np.random.default_rng(0).permutation(len(rows))
    found = frontier(*np.array(rows)[order].T)
    assert math.isclose(found.exponent, 0.7, abs_tol=0.02)
    assert math.isclose(found.scale * 1e7**found.exponent, 1e7**0.7 / 10, rel_tol=0.2)
    with pytest.raises(ValueError, match=r"^compute: expected an envelope of inner sizes over a decade, got 0 points of 0 sizes"):
        frontier([1, 10, 100], [5, 5, 5], [3, 2, 1])
    with pytest.raises(ValueError, match=r"^compute: expected an envelope of inner sizes over a decade, got 2 points of 2 sizes"):
        frontier([1, 2, 4, 8], [5, 6, 7, 8], [4, 3, 2, 1])


def test_the_frontier_keeps_only_points_that_no_cheaper_one_beats():
    compute, size, loss = [0.1, 1, 10, 20, 100, 1000], [0.1, 1, 10, 999, 100, 1000], [4.0, 3.0, 2.0, 2.5, 1.0, 0.5]
    assert math.isclose(frontier(compute, size, loss).exponent, 1.0, rel_tol=1e-9)


def test_both_rules_of_growth_spend_the_budget_and_the_old_one_warns():
    n, d = best_size([1e20, 1e22], known=(1e20, 1e9))
    np.testing.assert_allclose(n, [1e9, 1e10])
    np.testing.assert_allclose(6 * n * d, [1e20, 1e22])
    with pytest.warns(UserWarning, match="superseded"):
        n, _ = best_size(1e22, known=(1e20, 1e9), rule="henighan")
    assert math.isclose(n, 1e9 * 100**0.7)
    with pytest.raises(ValueError, match=r"^rule: expected 'hoffmann' or 'henighan', got 'kaplan'"):
        best_size(1, known=(1, 1), rule="kaplan")


def test_two_laws_contradict_each_other_where_they_cross():
    x = np.geomspace(1e3, 1e12, 10)
    of_compute = fit(POWER_CONSTANT, x, 1 + 10 * x**-0.2)
    of_data = fit(POWER_CONSTANT, x, 1.5 + 3 * x**-0.3)

    def gap(c):
        return of_compute.predict([c])[0] - of_data.predict([2 * c**0.4])[0]

    found = crossing(of_compute, of_data, Growth(0.4, 2.0))
    assert gap(found / 1.01) > 0 > gap(found * 1.01)
    assert crossing(of_data, of_compute, Growth(1.0, 1.0), within=(1e10, 1e12)) is None


def test_information_grows_with_the_logarithm_of_size():
    size = np.geomspace(1e5, 1e9, 9)
    loss = 3 * size**-0.05
    slope, start = information_growth(size, loss, loss * (1 - 0.02 * np.log(size / 3e4)))
    assert math.isclose(slope, 0.02, rel_tol=1e-9)
    assert math.isclose(start, 3e4, rel_tol=1e-6)


def test_loss_elsewhere_follows_the_loss_not_the_size():
    size = np.geomspace(1e5, 1e9, 9)
    loss = 1 + size**-0.1
    on_loss, on_size = beyond_training(0.5 + 2 * loss, loss, size)
    assert math.isclose(on_loss, 2, rel_tol=1e-6)
    assert abs(on_size) < 1e-9


def test_the_spectrum_of_a_linear_autoencoder_has_its_known_exponent():
    """The best autoencoder of rank N on a spectrum i^-1.5 leaves sum over i > N of i^-1.5, about 2 N^-0.5."""
    spectrum = np.arange(1, 4_000_000, dtype=float) ** -1.5
    left = 2 * (4e6) ** -0.5 + spectrum.sum() - np.cumsum(spectrum)
    sizes = np.geomspace(30, 3000, 12).round().astype(int)
    found = fit(POWER_CONSTANT, sizes, left[sizes - 1]).parameters
    assert math.isclose(found["alpha"], 0.5, abs_tol=0.01)
    assert found["E"] < 1e-3


def test_miniature():
    found = miniature(0, "smoke")
    assert set(found.arms) == {"untrained-last", "line", "least-squares", "scaling-autoregressive"}
    assert found.arms["scaling-autoregressive"]["exponent_error"] < found.arms["untrained-last"]["exponent_error"]
