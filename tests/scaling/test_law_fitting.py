"""The fitter: its objective against a plain loop, exact recovery, robustness, refusals."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from tests.parity import case_label, check_case, load_adapter

from preceptor.scaling import fitting
from preceptor.scaling.fitting import bootstrap, drop_highest, fit, objective
from preceptor.scaling.forms import LAWS, POWER, POWER_CONSTANT, PRODUCT, SEPARABLE, LogLaw
from preceptor.scaling.points import read_points

SHARED = Path(__file__).parents[3] / "shared"
GOLDEN = SHARED / "golden" / "scaling-autoregressive.json"
CHINCHILLA = SHARED / "data" / "chinchilla_figure4_points.csv"
TRUTH = {"A": 400.0, "B": 2000.0, "E": 1.8, "alpha": 0.34, "beta": 0.37}


def grid(n=6):
    sizes = np.array([(a, b) for a in np.geomspace(1e7, 1e10, n) for b in np.geomspace(1e9, 1e11, n)])
    return sizes, TRUTH["E"] + TRUTH["A"] * sizes[:, 0] ** -TRUTH["alpha"] + TRUTH["B"] * sizes[:, 1] ** -TRUTH["beta"]


def ladder(seed, noise=0.003):
    x = np.geomspace(1e4, 1e9, 12)
    return x, (2 + (1e3 / x) ** 0.24) * np.exp(noise * np.random.default_rng(seed).standard_normal(12))


def points_of(form):
    rng = np.random.default_rng(3)
    x = np.exp(rng.uniform(5, 15, (9, len(form.axes))))
    return x, rng.uniform(0.5, 4, 9), form.starts(np.log(x) - np.log(x).mean(0), np.zeros(9))[7] + 0.1


@pytest.mark.parametrize("delta", [1e-3, 0.3, math.inf])
def test_the_objective_is_a_plain_loop_of_the_equation(delta):
    x, loss = grid(3)
    a, b, e, alpha, beta = theta = [6.0, 7.0, 0.5, 0.3, 0.35]
    expected = 0.0
    for (n, d), value in zip(x.tolist(), loss.tolist(), strict=True):
        r = math.log(math.exp(a) * n**-alpha + math.exp(b) * d**-beta + math.exp(e)) - math.log(value)
        expected += r * r / 2 if abs(r) <= delta else delta * (abs(r) - delta / 2)
    found = objective(SEPARABLE, np.array(theta), SEPARABLE.design(np.log(x)), np.log(loss), delta=delta)[0]
    assert math.isclose(found, expected, rel_tol=1e-10)


@pytest.mark.parametrize("form", LAWS.values(), ids=LAWS)
def test_the_gradient_is_that_of_finite_differences(form):
    x, y, theta = points_of(form)
    u = np.log(x) - np.log(x).mean(0)
    if isinstance(form, LogLaw):
        theta[1] = math.log(-0.5 / u.min())
    design, weights = form.design(u), np.arange(9.0)

    def value(at):
        return objective(form, at, design, np.log(y), delta=0.2, weights=weights)[0]

    gradient = objective(form, theta, design, np.log(y), delta=0.2, weights=weights)[1]
    steps = 1e-6 * np.eye(len(theta))
    numeric = np.array([(value(theta + step) - value(theta - step)) / 2e-6 for step in steps])
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-7)


def test_every_law_is_recovered_from_points_without_noise():
    x, loss = grid()
    found = fit(SEPARABLE, x, loss)
    for name, value in TRUTH.items():
        assert math.isclose(found.parameters[name], value, rel_tol=1e-4), name
    assert found.warnings == ()
    x, loss = ladder(0, noise=0)
    found = fit(POWER_CONSTANT, x, loss).parameters
    assert math.isclose(found["E"], 2, rel_tol=1e-4)
    assert math.isclose(found["alpha"], 0.24, rel_tol=1e-4)
    assert math.isclose(found["A"], 1e3**0.24, rel_tol=1e-4)
    found = fit(POWER, x, 7 * x**-0.3).parameters
    assert math.isclose(found["A"], 7, rel_tol=1e-6)
    x = np.array([(n, 1.0) for n in (1, 2, 4, 8, 16)] + [(1.0, n) for n in (2, 4, 8, 16)])
    found = fit(PRODUCT, x, 1.2 + 0.8 * x[:, 0] ** -0.18 * x[:, 1] ** -0.31).parameters
    np.testing.assert_allclose([found[name] for name in ("A", "E", "p_e", "p_d")], [0.8, 1.2, 0.18, 0.31], rtol=1e-4)


@pytest.mark.parametrize("beta", [0.6, 1.0, 2.5])
def test_the_log_law_is_recovered_and_changes_its_units(beta):
    data = np.geomspace(1e8, 1e11, 9)
    score = (np.log(1e-6) + 1.1 * np.log(data)) ** beta
    found = fit(LogLaw(), data, score)
    np.testing.assert_allclose([found.parameters[n] for n in ("beta", "alpha", "log_A")], [beta, 1.1, math.log(1e-6)], rtol=1e-3)
    np.testing.assert_allclose(found.predict(data), score, rtol=1e-6)
    other, scaled = fit(LogLaw(), 1000 * data, score), fit(LogLaw(), data, 7 * score)
    assert math.isclose(other.parameters["log_A"], found.parameters["log_A"] - found.parameters["alpha"] * math.log(1000), rel_tol=1e-3)
    assert math.isclose(scaled.parameters["F"], 7 * found.parameters["F"], rel_tol=1e-4)
    assert math.isclose(scaled.parameters["k"], found.parameters["k"], rel_tol=1e-3)
    assert np.isnan(found.predict([1.0])).all()  # log A + alpha log 1 < 0


def test_units_of_size_and_loss_change_coefficients_only():
    x, loss = ladder(1)
    one, other, bits = fit(POWER_CONSTANT, x, loss), fit(POWER_CONSTANT, 50 * x, loss), fit(POWER_CONSTANT, x, loss / math.log(2))
    alpha = one.parameters["alpha"]
    assert math.isclose(other.parameters["alpha"], alpha, rel_tol=1e-5)
    assert math.isclose(other.parameters["A"], 50**alpha * one.parameters["A"], rel_tol=1e-4)
    assert math.isclose(bits.parameters["E"], one.parameters["E"] / math.log(2), rel_tol=1e-6)
    assert math.isclose(bits.objective, one.objective, rel_tol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_one_wrong_run_does_not_move_the_robust_fit(seed):
    x, loss = ladder(seed)
    clean = fit(POWER_CONSTANT, x, loss).parameters
    loss[4] *= 1.3
    robust, squares = fit(POWER_CONSTANT, x, loss).parameters, fit(POWER_CONSTANT, x, loss, delta=math.inf).parameters
    assert 1.97 < clean["E"] < 2.03
    assert abs(robust["alpha"] - 0.24) < 0.03 < abs(squares["alpha"] - 0.24)


def test_weights_count_points_as_often():
    x, loss = ladder(2)
    counts = np.array([1, 2, 0, 1, 3, 1, 1, 0, 2, 1, 1, 1])
    weighted = fit(POWER_CONSTANT, x, loss, weights=counts)
    repeated = fit(POWER_CONSTANT, np.repeat(x, counts), np.repeat(loss, counts))
    assert math.isclose(weighted.objective, repeated.objective, rel_tol=1e-6)
    np.testing.assert_allclose(weighted.predict(x), repeated.predict(x), rtol=1e-5)


def test_a_known_parameter_stays_and_limits_hold():
    x, loss = ladder(0)
    assert math.isclose(fit(POWER_CONSTANT, x, loss, bounds={"E": (1.9, 1.9)}).parameters["E"], 1.9, rel_tol=1e-12)
    assert fit(POWER_CONSTANT, x, loss, bounds={"alpha": (0.3, 0.5)}).parameters["alpha"] >= 0.3
    with pytest.raises(ValueError, match=r"^bounds: expected some of E, alpha, got 'alfa', nearest: 'alpha'$"):
        fit(POWER_CONSTANT, x, loss, bounds={"alfa": (0, 1)})
    with pytest.raises(ValueError, match=r"^bounds: expected 0 < low <= high for E, got \(0, 1\)$"):
        fit(POWER_CONSTANT, x, loss, bounds={"E": (0, 1)})


def test_intervals_cover_are_seeded_and_keep_sweeps():
    x, loss = ladder(0)
    found = fit(POWER_CONSTANT, x, loss)
    one, same, other = (bootstrap(found, draws=60, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.samples, same.samples)
    assert not np.array_equal(one.samples, other.samples)
    low, high = one.interval(lambda p: p["E"])
    assert low < 2.0 < high
    assert high - low < 0.2
    band = one.band([1e6])
    assert band[0, 0] <= found.predict([1e6])[0] <= band[1, 0]
    assert found.interval(lambda p: p["E"]) is None
    sweeps = ["a"] * 3 + ["b"] * 9
    seen = []
    fitted = fitting._Search.descend

    def watch(self, start, weights):
        seen.append(weights)
        return fitted(self, start, weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting._Search, "descend", watch)
        bootstrap(found, draws=5, strata=sweeps)
    assert all(weights[:3].sum() == 3 and weights[3:].sum() == 9 for weights in seen)


def test_few_sizes_get_no_interval_but_a_warning():
    x, loss = np.tile(np.geomspace(1e4, 1e7, 5), 3), np.tile(2 + np.geomspace(1e4, 1e7, 5) ** -0.2, 3)
    found = bootstrap(fit(POWER_CONSTANT, x, loss), draws=5)
    assert found.samples is None
    assert "no intervals: expected at least 6 distinct sizes for a bootstrap, got 5" in found.warnings
    with pytest.raises(ValueError, match=r"^draws: expected at least 1, got 0$"):
        bootstrap(found, draws=0)


@pytest.mark.parametrize(
    ("form", "x", "y", "message"),
    [
        (POWER_CONSTANT, [1, 2, 3], [3, 2, 1], "points: expected at least 4 for the 3 parameters of the law power-constant, got 3"),
        (POWER_CONSTANT, [1, 2, 3, 4], [3, 2, -1, 1], "loss: expected finite numbers above 0, got -1.0 in row 2"),
        (POWER_CONSTANT, [1, 2, 3, 4], [3, math.nan, 0, 1], "loss: expected finite numbers above 0, got nan in row 1 and 1 more"),
        (POWER_CONSTANT, [1, 0, 3, 4], [3, 2, 1, 1], "x: expected finite numbers above 0, got 0.0 in row 1"),
        (POWER_CONSTANT, [5, 5, 5, 5], [3, 2, 1, 1], "x: expected at least two sizes to identify alpha, got 5 in every row"),
        (LogLaw(), [1, 2, 3, 4], [3, 2, 0, 1], "score: expected finite numbers above 0, got 0.0 in row 2"),
        (POWER_CONSTANT, [1, 2, 3, 4], [3, 2], "loss: expected one number for each of the 4 rows, got shape (2,)"),
        (PRODUCT, [1, 2, 3, 4], [3, 2, 1, 1], "x: expected 2 columns (Ne, Nd) for the law product, got shape (4, 1)"),
    ],
)
def test_bad_points_are_refused(form, x, y, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit(form, x, y)


def test_points_that_cannot_identify_the_law_are_refused_or_named():
    sizes = np.geomspace(1, 100, 8)
    one_axis = np.stack([sizes, np.full(8, 3.0)], axis=1)
    with pytest.raises(ValueError, match=r"^Nd: expected at least two sizes to identify p_d, got 3 in every row$"):
        fit(PRODUCT, one_axis, 1 + 1 / sizes)
    with pytest.raises(ValueError, match=r"single sweep in which they move together: it identifies p_e \+ p_d only"):
        fit(PRODUCT, np.stack([sizes, 5 * sizes], axis=1), 1 + 1 / sizes)
    with pytest.raises(ValueError, match=r"^N, D: expected sizes that move apart"):
        fit(SEPARABLE, np.stack([sizes, sizes**2], axis=1), 1 + 1 / sizes)
    pure = fit(POWER_CONSTANT, sizes, 3 * sizes**-0.5)
    assert pure.warnings == ("E: no irreducible loss is visible in these points",)
    flat = fit(POWER_CONSTANT, sizes, np.full(8, 2.0))
    assert flat.unidentified == ("a", "e")
    assert math.isnan(flat.parameters["A"])
    assert math.isnan(flat.parameters["E"])
    assert any("alpha: at its bound 0, the loss does not fall with x" in line for line in flat.warnings)
    assert any("not identified by these points (singular Hessian)" in line for line in flat.warnings)
    np.testing.assert_allclose(flat.predict(sizes), 2)
    still = fit(LogLaw(), sizes, np.full(8, 2.0))
    assert still.unidentified == ("log_k",)
    assert math.isclose(still.parameters["F"], 2, rel_tol=1e-3)
    assert all(math.isnan(still.parameters[name]) for name in ("k", "alpha", "log_A"))
    line = fit(LogLaw(), sizes, 1 + np.exp(sizes / 40))
    assert any(warning.startswith("beta: at its bound 10, the curvature is not identified") for warning in line.warnings)


def test_drop_highest_leaves_the_order():
    x, y = drop_highest([1, 2, 3, 4], [5.0, 9.0, 1.0, 7.0], 2)
    assert x.tolist() == [1, 3]
    assert y.tolist() == [5, 1]
    with pytest.raises(ValueError, match=r"^drop: expected a number in \[0, 2\), got 2$"):
        drop_highest([1, 2], [1, 2], 2)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the fixture holds other people's data and stays where it is")
@pytest.mark.parametrize("index", [0, 1])
def test_parity(index):
    case = json.loads(GOLDEN.read_text())["cases"][index]
    adapter = load_adapter("scaling-autoregressive")
    assert check_case("scaling-autoregressive", case_label(case, index), case, adapter.run).status == "ok"


@pytest.mark.skipif(not CHINCHILLA.exists(), reason="the points are other people's data and stay where they are")
def test_the_points_of_a_published_figure_are_fitted_again():
    points = read_points(CHINCHILLA)
    x, loss = drop_highest(points.sizes(SEPARABLE)[0], points.column("loss"), 5)
    assert len(loss) == 240
    found = fit(SEPARABLE, x, loss)
    assert found.objective < 1.01828e-3
    assert math.isclose(found.parameters["E"], 1.8172, abs_tol=1e-3)
    assert math.isclose(found.parameters["alpha"], 0.3473, abs_tol=1e-3)
    assert math.isclose(found.parameters["beta"], 0.3672, abs_tol=1e-3)
    theta = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])  # Hoffmann et al., before rounding
    value = objective(SEPARABLE, theta, SEPARABLE.design(np.log(x)), np.log(loss), delta=1e-3)[0]
    assert math.isclose(value, 1.23116e-3, rel_tol=1e-4)
