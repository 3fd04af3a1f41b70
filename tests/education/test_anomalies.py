"""Scores of strange values against slow loops, and what a detector that sees only the past may know."""

import math
import statistics

import numpy as np
import pytest

from preceptor.education.anomalies import cumulated, detect
from preceptor.education.forecasting import holt_winters, smooth
from preceptor.education.panel import Panel, panel_of

RANDOM = np.random.default_rng(0)


def counts(students=3, steps=40, missing=0.2):
    x = RANDOM.poisson(4.0, (students, steps)).astype(float)
    return panel_of(np.where(RANDOM.random(x.shape) < missing, np.nan, x))


@pytest.mark.parametrize("past_only", [False, True])
@pytest.mark.parametrize("method", ["seasonal", "robust"])
def test_residuals_against_a_slow_loop(method, past_only):
    panel = counts()
    found = detect(panel, method, past_only=past_only)
    x, known = panel.values[..., 0], panel.mask

    def same(u, t):
        return [s for s in range(t % 7, t if past_only else 40, 7) if known[u, s]]

    for u in range(3):
        for t in range(40):
            days = same(u, t)
            if not known[u, t] or len(days) < (2 if past_only else 1):
                assert found[u, t] == 0
                continue
            median = statistics.median(x[u, days])
            if method == "seasonal":
                expected = (x[u, t] - median) / math.sqrt(median + 1)
            else:
                spread = statistics.pstdev(x[u, [s for s in range(t if past_only else 40) if known[u, s]]])
                expected = (x[u, t] - median) / (1.4826 * statistics.median(abs(x[u, days] - median)) + 0.1 * spread + 1e-9)
            assert math.isclose(found[u, t], expected, rel_tol=1e-7, abs_tol=1e-9)


def test_surprise_is_the_negative_log_likelihood_of_the_one_step_error():
    x = RANDOM.poisson(4.0, (2, 40)).astype(float)
    whole, past = (detect(panel_of(x), "likelihood", past_only=only) for only in (False, True))
    error = x - holt_winters(x, period=7, alpha=0.15, beta=0.01, gamma=0.2, horizon=1).fitted
    assert not past[:, :16].any()
    for t in range(16, 40):
        sigma = np.sqrt((error[:, 14:t] ** 2).mean(1))
        expected = [-statistics.NormalDist(0, s).pdf(e) for e, s in zip(error[:, t], sigma, strict=True)]
        np.testing.assert_allclose(past[:, t], -np.log(-np.array(expected)), rtol=1e-9)
    error = x - smooth(x, period=7, horizon=1).fitted
    sigma = np.sqrt((error**2).mean(1, keepdims=True))
    np.testing.assert_allclose(whole, error**2 / (2 * sigma**2) + np.log(sigma * math.sqrt(2 * math.pi)), rtol=1e-9)
    np.testing.assert_allclose(whole.mean(1), np.log(2 * math.pi * math.e * sigma[:, 0] ** 2) / 2, rtol=1e-9)  # a normal's entropy
    assert not detect(panel_of(x[:, :10]), "likelihood").any()  # no two seasons


@pytest.mark.parametrize("method", ["seasonal", "robust", "likelihood", "value"])
def test_scores_of_the_past_never_change_with_the_future_and_the_missing_score_nothing(method):
    panel = counts()
    later = Panel(values=np.concatenate([panel.values[:, :25], panel.values[:, 25:] + 9], 1), mask=panel.mask)
    first, second = (detect(part, method, past_only=True) for part in (panel, later))
    assert np.array_equal(first[:, :25], second[:, :25])
    assert not np.array_equal(first[:, 25:], second[:, 25:])
    assert first[:, :25].any()
    assert not first[~panel.mask].any()
    hidden = Panel(values=np.where(panel.mask[..., None], panel.values, 1e6), mask=panel.mask)
    assert np.array_equal(detect(hidden, method), detect(panel, method))


def test_robust_scores_have_no_unit_and_a_constant_series_none():
    x = RANDOM.random((2, 50))
    np.testing.assert_allclose(detect(panel_of(1e3 * x + 7), "robust"), detect(panel_of(x), "robust"), rtol=1e-5)
    assert not detect(panel_of(np.full((1, 30), 5.0)), "robust").any()


def test_cumulated_scores_against_a_slow_loop():
    scores, expected, total = RANDOM.standard_normal((2, 30)), np.zeros((2, 30)), [0.0, 0.0]
    for t in range(30):
        for u in range(2):
            total[u] = max(0.0, total[u] + scores[u, t] - 0.3)
            expected[u, t] = total[u]
    np.testing.assert_allclose(cumulated(scores, drift=0.3), expected, rtol=1e-12)
    assert not cumulated(np.zeros(5)).any()


def test_a_forest_is_not_of_the_past_and_other_names_are_refused():
    panel = counts()
    assert np.array_equal(detect(panel, "isolation"), detect(panel, "isolation"))
    with pytest.raises(ValueError, match=r"^past_only: expected False with isolation, whose forest sees all series, got True$"):
        detect(panel, "isolation", past_only=True)
    with pytest.raises(ValueError, match=r"^method: expected seasonal, robust, likelihood, value or isolation, got 'lof'$"):
        detect(panel, "lof")  # pyright: ignore[reportArgumentType]
