"""Agreement: facts of the coefficients, slow loops written from their definitions, and what a bootstrap is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from statsmodels.stats import inter_rater

from preceptor.education.agreement import MISSING, agreement, cohen, estimate, fleiss, krippendorff, pair, tabulate

ratings = st.integers(2, 4).flatmap(
    lambda raters: st.lists(st.lists(st.integers(-1, 3), min_size=raters, max_size=raters), min_size=1, max_size=30)
)


def slow_cohen(a, b, weights="nominal", categories=4):
    pairs = [(u, v) for u, v in zip(a, b, strict=True) if MISSING not in (u, v)]
    if not pairs:
        return math.nan

    def wrong(u, v):
        return {"nominal": float(u != v), "linear": abs(u - v), "quadratic": (u - v) ** 2}[weights]

    observed = sum(wrong(u, v) for u, v in pairs) / len(pairs)
    expected = sum(
        wrong(u, v) * sum(x == u for x, _ in pairs) * sum(y == v for _, y in pairs) / len(pairs) ** 2
        for u in range(categories)
        for v in range(categories)
    )
    return 1 - observed / expected if expected else math.nan


def slow_alpha(rows, power=None):
    def wrong(u, v):
        return float(u != v) if power is None else (u - v) ** 2

    units = [[v for v in row if v != MISSING] for row in rows]
    units = [unit for unit in units if len(unit) > 1]
    values = [v for unit in units for v in unit]
    observed = sum(wrong(u, v) / (len(unit) - 1) for unit in units for i, u in enumerate(unit) for j, v in enumerate(unit) if i != j)
    expected = sum(wrong(u, v) for i, u in enumerate(values) for j, v in enumerate(values) if i != j)
    return 1 - observed / len(values) / (expected / len(values) / (len(values) - 1)) if expected else math.nan


def slow_fleiss(rows):
    rows = [row for row in rows if MISSING not in row]
    if not rows:
        return math.nan
    raters = len(rows[0])
    agreeing = [sum(u == v for i, u in enumerate(row) for j, v in enumerate(row) if i != j) / raters / (raters - 1) for row in rows]
    values = [v for row in rows for v in row]
    expected = sum((values.count(c) / len(values)) ** 2 for c in set(values))
    return (sum(agreeing) / len(rows) - expected) / (1 - expected) if expected < 1 else math.nan


def same(got, expected):
    return (math.isnan(got) and math.isnan(expected)) or math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-12)


@settings(max_examples=60, deadline=None)
@given(ratings)
def test_reference(rows):
    table = tabulate(np.array(rows), categories=4)
    for weights in ("nominal", "linear", "quadratic"):
        got = float(cohen(table, 0, 1, weights=weights)[0])
        assert same(got, slow_cohen([row[0] for row in rows], [row[1] for row in rows], weights))
    assert same(float(fleiss(table)[0]), slow_fleiss(rows))
    assert same(float(krippendorff(table)[0]), slow_alpha(rows))
    assert same(float(krippendorff(table, weights="quadratic")[0]), slow_alpha(rows, 2))


def test_it_agrees_with_statsmodels_and_scikit_learn():
    rows = np.random.default_rng(0).integers(0, 4, (200, 3))
    rows[:, 1] = np.where(np.random.default_rng(1).random(200) < 0.6, rows[:, 0], rows[:, 1])
    table = tabulate(rows)
    assert math.isclose(fleiss(table)[0], inter_rater.fleiss_kappa(inter_rater.aggregate_raters(rows)[0]), rel_tol=1e-12)
    for ours, theirs in (("nominal", None), ("linear", "linear"), ("quadratic", "quadratic")):
        assert math.isclose(
            cohen(table, 0, 1, weights=ours)[0], metrics.cohen_kappa_score(rows[:, 0], rows[:, 1], weights=theirs), rel_tol=1e-12
        )


def test_facts():
    generator = np.random.default_rng(0)
    a = generator.integers(0, 2, 500)
    b = np.where(generator.random(500) < 0.2, 1 - a, a)
    kappa = agreement(a, b, draws=0).kappa.value
    assert agreement(a, a, draws=0).kappa.value == 1
    assert agreement(b, a, draws=0).kappa.value == pytest.approx(kappa, abs=1e-15)
    assert agreement(1 - a, 1 - b, draws=0).kappa.value == pytest.approx(kappa, abs=1e-15)  # swapping the names of both
    assert agreement(a, 1 - b, draws=0).kappa.value < 0
    for weights in ("linear", "quadratic"):
        assert agreement(a, b, weights=weights, draws=0).kappa.value == pytest.approx(kappa, abs=1e-15)  # two values have one distance
    assert agreement(a, np.zeros(500, int), draws=0).kappa.value == 0  # one rater says one thing
    assert math.isnan(agreement(np.ones(9, int), np.ones(9, int), draws=9).kappa.value)  # both do
    far = generator.integers(0, 2, 100_000)
    assert abs(agreement(far, generator.integers(0, 2, 100_000), draws=0).kappa.value) < 0.01


def test_missing_ratings_are_left_out_in_pairs():
    a, b = np.array([0, 1, 1, MISSING, 0, 1]), np.array([0, 1, 0, 1, MISSING, 1])
    whole, kept = agreement(a, b, draws=0), agreement(a[[0, 1, 2, 5]], b[[0, 1, 2, 5]], draws=0)
    assert whole == kept
    assert whole.items == 4
    assert whole.pabak == pytest.approx(2 * 0.75 - 1)
    assert whole.shares == ((0.25, 0.75), (0.5, 0.5))
    empty = agreement([MISSING], [1], draws=5)
    assert math.isnan(empty.kappa.value)
    assert empty.items == 0
    assert math.isnan(agreement([], [], draws=5).kappa.value)


def test_the_interval_is_that_of_resampled_comments():
    generator = np.random.default_rng(3)
    a = generator.integers(0, 2, 300)
    b = np.where(generator.random(300) < 0.2, 1 - a, a)
    found = agreement(a, b, draws=4000, seed=1).kappa
    slow = [slow_cohen(a[rows].tolist(), b[rows].tolist(), categories=2) for rows in generator.integers(0, 300, (1500, 300))]
    low, high = np.percentile(slow, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)
    assert agreement(a, b, seed=1) == agreement(a, b, seed=1) != agreement(a, b, seed=2)


def test_it_covers_the_truth_as_often_as_it_says():
    truth, inside = 0.6, 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        a = generator.integers(0, 2, 200)
        b = np.where(generator.random(200) < 0.2, 1 - a, a)
        found = agreement(a, b, draws=300, seed=seed).kappa
        inside += found.low <= truth <= found.high
    assert 180 <= inside <= 199


def test_many_raters_with_many_labels_are_counted_too():
    rows = np.random.default_rng(0).integers(-1, 6, (50, 9))
    table = tabulate(rows, draws=10)
    assert len(table.rows) == 50  # 7^9 codes are too many to count in one array
    assert same(float(krippendorff(table)[0]), slow_alpha(rows.tolist()))
    assert (table.counts.sum(1) == 50).all()
    assert pair(table, 0, 1).items == int(((rows[:, 0] >= 0) & (rows[:, 1] >= 0)).sum())


def test_a_value_that_no_draw_defines_has_no_interval():
    assert estimate(np.array([0.5, math.nan])).low is not None
    assert math.isnan(estimate(np.array([0.5, math.nan])).low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tabulate(np.array([[0, 2]]), categories=2), "ratings: expected codes 0 to 1, or -1 for none, got 2"),
        (lambda: tabulate(np.array([[0, -2]])), "ratings: expected codes 0 to 1, or -1 for none, got -2"),
        (lambda: tabulate(np.array([0, 1])), r"ratings: expected shape \(items, raters\), got \(2,\)"),
        (lambda: tabulate(np.array([[0.5, 1]])), "ratings: expected whole numbers, -1 for a missing one, got float64"),
        (lambda: tabulate(np.array([[0, 1]]), categories=1), "categories: expected at least 2, got 1"),
        (lambda: tabulate(np.array([[0, 1]]), draws=-1), "draws: expected a number >= 0, got -1"),
        (lambda: agreement([0, 1], [0]), "second: expected 2 ratings like first, got 1"),
        (lambda: agreement([0, 1], [0, 1], weights="cubic"), "weights: expected 'nominal', 'linear' or 'quadratic', got 'cubic'"),
        (lambda: fleiss(tabulate(np.array([[0]]))), "ratings: expected at least 2 raters, got 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
