"""Scaling laws of encoder-decoder models: what is read off them, and the miniature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from preceptor.methods.scaling_nmt import (
    baseline_loss,
    composition_table,
    count_sides,
    leave_one_out,
    miniature,
    quality_law,
    rising,
    saturation,
)
from preceptor.miniature.translators import LENGTH, Translator, machine_made, pairs
from preceptor.scaling.answers import best_share
from preceptor.scaling.fitting import fit
from preceptor.scaling.forms import POWER_CONSTANT, PRODUCT

TRUTH = {"A": 0.8, "p_e": 0.18, "p_d": 0.31, "E": 1.2}


def sweeps(unit=1.0):
    sizes = np.array([2, 4, 6, 8, 12, 16, 24, 48, 64]) / 6
    x = np.array([[n, 1.0] for n in sizes] + [[1.0, n] for n in sizes if n != 1]) * unit
    return x, TRUTH["E"] + TRUTH["A"] * (x[:, 0] / unit) ** -TRUTH["p_e"] * (x[:, 1] / unit) ** -TRUTH["p_d"]


def test_the_baseline_has_alpha_and_the_floor_and_units_change_nothing():
    x, loss = sweeps()
    large = fit(PRODUCT, *sweeps(unit=2e7))
    found = fit(PRODUCT, x, loss)
    assert math.isclose(found.predict([[1.0, 1.0]])[0], 2.0, rel_tol=1e-6)
    assert math.isclose(baseline_loss(large.parameters, 2e7, 2e7), 0.8, rel_tol=1e-4)
    for name in ("p_e", "p_d", "E"):
        assert math.isclose(large.parameters[name], TRUTH[name], rel_tol=1e-4)
    np.testing.assert_allclose(large.predict(2e7 * x), found.predict(x), rtol=1e-6)
    assert math.isclose(best_share(found.natural), 0.18 / 0.49, rel_tol=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_symmetric_models_are_foretold_from_two_sweeps_where_the_total_fails(seed):
    x, loss = sweeps()
    loss = loss + 0.003 * np.random.default_rng(seed).standard_normal(len(loss))
    mixed = np.array([[c, c] for c in (2.0, 4.0, 8.0, 16.0)])
    truth = 1.2 + 0.8 * mixed[:, 0] ** -0.49
    assert np.abs(fit(PRODUCT, x, loss).predict(mixed) - truth).max() < 0.02
    assert np.abs(fit(POWER_CONSTANT, x.sum(1), loss).predict(mixed.sum(1)) - truth).max() > 0.08
    one, other = leave_one_out(PRODUCT, x, loss, starts=2), leave_one_out(POWER_CONSTANT, x.sum(1), loss, starts=2)
    assert one.mean() < other.mean()


def test_parameters_of_each_side_are_counted_without_embeddings():
    model = Translator(4, 6)
    assert count_sides(model) == (3 * (4 * 8 + 4 * 4 + 8), 4 * 6 + 6 + 3 * (6 * 8 + 6 * 6 + 12))
    shared = nn.ModuleDict({"encoder": nn.ModuleDict({"embed": nn.Embedding(9, 3), "a": nn.Linear(3, 3)}), "decoder": nn.Linear(3, 2)})
    assert count_sides(shared) == (12, 8)
    with pytest.raises(ValueError, match=r"^model: expected parameters whose names begin with 'encoder', got none$"):
        count_sides(nn.ModuleDict({"decoder": nn.Linear(3, 2)}))


def test_runs_that_rise_with_size_are_flagged():
    assert rising([[1, 1], [2, 1], [2, 2], [1, 3]], [3.0, 2.0, 2.5, 2.6]) == (2,)
    assert rising([[1, 1], [2, 1]], [3.0, 3.001]) == ()


def test_quality_follows_a_power_of_the_loss():
    loss = np.array([1.2, 1.5, 1.8, 2.4])
    found = quality_law(loss, 60 * loss**-1.5)
    assert math.isclose(found.c, 60, rel_tol=1e-9)
    assert math.isclose(found.p, 1.5, rel_tol=1e-9)
    with pytest.raises(ValueError, match=r"^loss, bleu: expected at least 3 pairs of numbers above 0, got 3 and 3$"):
        quality_law([1, 2, 3], [10, 0, 3])


def test_saturation_is_seen_where_it_is_and_not_where_it_is_not():
    rng = np.random.default_rng(0)
    loss = np.linspace(1.0, 2.0, 15)
    noise = 0.05 * rng.standard_normal(15)
    assert saturation(loss, 40 - 10 * loss + noise) is None
    assert math.isclose(saturation(loss, 40 - 10 * np.maximum(loss, 1.5) + noise), 1.5, abs_tol=0.08)
    assert saturation(loss, 40 - 10 * np.minimum(loss, 1.5) + noise) is None  # bends the other way
    with pytest.raises(ValueError, match=r"^loss: expected at least 8 points to look for a break, got 7$"):
        saturation(loss[:7], loss[:7])


def test_compositions_get_a_law_each():
    x, loss = sweeps()
    runs = [("natural", "natural", *size, value) for size, value in zip(x, loss, strict=True)]
    runs += [("machine", "natural", *size, 1.6 + 0.4 * size[0] ** -0.1 * size[1] ** -0.1) for size in x]
    natural, machine = composition_table(runs)
    assert (natural.train, natural.test, machine.train) == ("natural", "natural", "machine")
    assert math.isclose(natural.p_sum, 0.49, rel_tol=1e-3)
    assert math.isclose(machine.p_sum, 0.2, rel_tol=1e-3)
    assert machine.reducible < natural.reducible


def test_the_little_task_is_to_sort():
    rows = pairs(5, 0)
    assert (rows["y"].diff(dim=1) >= 0).all()
    assert (rows["x"][:, 0].sort(dim=1).values == rows["y"]).all()
    assert (rows["x"][:, 1, 1:] == rows["y"][:, :-1]).all()
    assert Translator(3, 4)(rows["x"]).shape == (5, LENGTH, 10)


def test_a_model_writes_every_second_target():
    torch.manual_seed(0)
    rows, model = pairs(6, 0), Translator(3, 4).double()
    made = machine_made(rows, model)
    assert torch.equal(made["y"][::2], rows["y"][::2])
    assert torch.equal(made["x"][::2], rows["x"][::2])
    assert not torch.equal(made["y"][1::2], rows["y"][1::2])
    assert torch.equal(made["x"][:, 1, 1:], made["y"][:, :-1])
    assert torch.equal(made["y"][1::2], model(made["x"][1::2]).argmax(-1))  # greedy: each digit given those written before


def test_miniature():
    found = miniature(0, "smoke")
    assert set(found.arms) == {"untrained-mean", "total", "scaling-nmt"}
    assert found.arms["scaling-nmt"]["mixed_error"] < found.arms["total"]["mixed_error"]
