"""Series of learners: distances, forecasts, classes, clusters, anomalies."""

import math

import numpy as np
import pytest

from preceptor.education.anomalies import change_points, detect
from preceptor.education.dtw import dtw, dtw_matrix, dtw_path
from preceptor.education.forecasting import (
    conformal_radius,
    forecast,
    holt_winters,
    mase,
    pinball,
    smape,
    smooth,
)
from preceptor.education.panel import Panel, carried, panel_from_events, panel_of, rolling_origins, synthetic_panel, z_scored
from preceptor.education.partitions import adjusted_rand, cluster, k_medoids
from preceptor.education.series_networks import SeriesTraining
from preceptor.education.trajectories import classify, features

RANDOM = np.random.default_rng(0)
A, B = RANDOM.standard_normal(11), RANDOM.standard_normal(8)


def all_paths(n, m):
    """Every warping path of two lengths, by recursion."""
    if (n, m) == (1, 1):
        yield [(0, 0)]
        return
    for i, j in ((n - 1, m), (n, m - 1), (n - 1, m - 1)):
        if min(i, j) >= 1:
            for path in all_paths(i, j):
                yield [*path, (n - 1, m - 1)]


@pytest.mark.parametrize(("n", "m", "radius"), [(4, 4, None), (4, 5, None), (5, 4, 0), (3, 5, 1), (5, 5, 1), (5, 5, 0)])
def test_warping_is_the_best_of_all_paths(n, m, radius):
    a, b = A[:n], B[:m]

    def inside(i, j):
        if radius is None:
            return True
        low, high, extra = (i, j, m - n) if n <= m else (j, i, n - m)
        return low - radius <= high <= low + extra + radius

    costs = [sum((a[i] - b[j]) ** 2 for i, j in path) for path in all_paths(n, m) if all(inside(i, j) for i, j in path)]
    assert math.isclose(dtw(a, b, radius=radius), math.sqrt(min(costs)), rel_tol=1e-12)


def test_warping_is_a_symmetric_lower_bound_of_euclid():
    c = RANDOM.standard_normal(11)
    assert dtw(A, A) == 0
    assert dtw(A, B) == dtw(B, A)
    assert dtw(A, c) <= np.linalg.norm(A - c)
    assert math.isclose(dtw(A, c, radius=0), np.linalg.norm(A - c), rel_tol=1e-12)
    by_radius = [dtw(A, c, radius=r) for r in range(12)]
    assert by_radius == sorted(by_radius, reverse=True)
    assert by_radius[-1] == dtw(A, c)
    assert dtw(np.repeat(B, 3), B) == 0  # a slower copy
    path, distance = dtw_path(A, B)
    assert (path[0], path[-1]) == ((0, 0), (10, 7))
    assert math.isclose(distance, math.sqrt(sum((A[i] - B[j]) ** 2 for i, j in path)), rel_tol=1e-12)


def test_all_pairs_at_once_are_the_pairs():
    first, second = RANDOM.standard_normal((4, 7, 2)), RANDOM.standard_normal((3, 9, 2))
    for radius in (None, 2):
        found = dtw_matrix(first, second, radius=radius)
        np.testing.assert_allclose(found, [[dtw(a, b, radius=radius) for b in second] for a in first], rtol=1e-12)
    assert (np.diag(dtw_matrix(first)) == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_smoothing_repeats_what_is_level_trend_and_season_when_it_starts_there(seed):
    random = np.random.default_rng(seed)
    season = random.standard_normal((2, 7))
    t = np.arange(1, 45)
    x = 3.0 + 0.4 * t + season[:, (t - 1) % 7]
    start = (np.full(2, 3.0), np.full(2, 0.4), season)
    found = holt_winters(x[:, :35], period=7, alpha=random.random(), beta=random.random(), gamma=random.random(), horizon=9, start=start)
    np.testing.assert_allclose(found.fitted, x[:, :35], atol=1e-10)
    np.testing.assert_allclose(found.level, np.broadcast_to(3.0 + 0.4 * t[:35], (2, 35)), atol=1e-10)
    np.testing.assert_allclose(found.forecast, x[:, 35:], atol=1e-10)


def test_smoothing_against_a_slow_loop():
    x, (a, b, g, m) = RANDOM.standard_normal(12).tolist(), (0.3, 0.2, 0.4, 3)
    level = sum(x[:3]) / 3
    trend, season = (sum(x[3:6]) / 3 - level) / 3, [value - level for value in x[:3]]
    for t, value in enumerate(x):
        new = a * (value - season[t]) + (1 - a) * (level + trend)
        season.append(g * (value - level - trend) + (1 - g) * season[t])
        level, trend = new, b * (new - level) + (1 - b) * trend
    expected = [level + k * trend + season[12 - m + 1 + (k - 1) % m + m - 1] for k in range(1, 8)]
    found = holt_winters(np.array([x, x]), period=3, alpha=a, beta=np.array([b, b]), gamma=g, horizon=7)
    np.testing.assert_allclose(found.forecast, [expected, expected], rtol=1e-12)


def test_the_seasonal_forecast_repeats_and_its_own_error_is_1():
    x = np.tile(RANDOM.standard_normal(7), 4)[None]
    assert np.array_equal(forecast(panel_of(x), 10, "seasonal-naive"), x[:, :10])
    noisy = RANDOM.standard_normal((3, 40))
    np.testing.assert_allclose(mase(noisy[:, :-7], noisy[:, 7:], noisy), 1)
    assert math.isnan(mase(np.zeros((1, 2)), np.zeros((1, 2)), np.zeros((1, 30)))[0])


def test_smoothing_without_a_season_is_that_of_statsmodels():
    from statsmodels.tsa.holtwinters import Holt, SimpleExpSmoothing

    x = 5 + RANDOM.standard_normal((3, 30)).cumsum(1)
    known = {"initialization_method": "known"}
    ways = {
        "simple": lambda row, a, b: SimpleExpSmoothing(row, **known, initial_level=row[0]).fit(smoothing_level=a, optimized=False),
        "holt": lambda row, a, b: Holt(row, **known, initial_level=2 * row[0] - row[1], initial_trend=row[1] - row[0]).fit(
            smoothing_level=a, smoothing_trend=b, optimized=False
        ),
    }
    for method, fit in ways.items():
        found = smooth(x, period=7, horizon=4, method=method)
        for u, row in enumerate(x):
            fits = [fit(row, a, b) for a in (0.05, 0.15, 0.3, 0.6) for b in (0.01, 0.1, 0.3)]
            best = min(fits, key=lambda made: ((made.fittedvalues - row)[2:] ** 2).sum())
            np.testing.assert_allclose(found.fitted[u], best.fittedvalues, rtol=1e-9)
            np.testing.assert_allclose(found.forecast[u], best.forecast(4), rtol=1e-9)
    line = panel_of(np.arange(9.0)[None])
    np.testing.assert_allclose(forecast(line, 3, "holt"), [[9, 10, 11]], rtol=1e-9)  # the season is not needed
    assert (forecast(line, 3, "holt-winters") == 8).all()


def test_a_regression_with_a_short_past_sees_less_of_it():
    x = np.tile(RANDOM.random((3, 7)), 4) + 1e-3 * RANDOM.random((3, 28))
    assert np.abs(forecast(panel_of(x), 7, "ar") - x[:, :7]).max() < np.abs(x[:, -1:] - x[:, :7]).max() / 2
    assert np.array_equal(forecast(panel_of(x), 7, "ar"), forecast(panel_of(x), 7, "ar", lags=14))
    assert not np.array_equal(forecast(panel_of(x), 7, "ar"), forecast(panel_of(x), 7, "ar", lags=7))


@pytest.mark.parametrize("method", ["naive", "seasonal-naive", "simple", "holt", "holt-winters", "ar", "dlinear", "gru", "tcn"])
def test_forecasts_are_finite_also_for_short_constant_and_missing_series(method):
    brief = SeriesTraining(width=4, epochs=1)
    short = (np.ones((2, 5)), np.ones((2, 1)))
    for x in (np.zeros((2, 60)), np.full((2, 60), 4.0), *short, np.where(RANDOM.random((2, 60)) < 0.3, np.nan, 2.0)):
        found = forecast(panel_of(x), 3, method, training=brief)
        assert found.shape == (2, 3)
        assert np.isfinite(found).all()


def test_errors_against_slow_loops():
    f, x = RANDOM.standard_normal((2, 3, 4))
    assert math.isclose(
        smape(f, x), np.mean([2 * abs(a - b) / (abs(a) + abs(b)) for a, b in zip(f.ravel(), x.ravel(), strict=True)]), rel_tol=1e-12
    )
    assert smape(np.zeros(3), np.zeros(3)) == 0
    losses = [0.9 * (b - a) if b > a else 0.1 * (a - b) for a, b in zip(f.ravel(), x.ravel(), strict=True)]
    assert math.isclose(pinball(f, x, level=0.9), np.mean(losses), rel_tol=1e-12)


def test_conformal_intervals_cover():
    random = np.random.default_rng(0)
    assert conformal_radius(np.arange(1.0, 10.0), alpha=0.1) == 9
    assert conformal_radius(np.arange(1.0, 9.0), alpha=0.1) == math.inf
    covered = []
    for _ in range(2000):
        residuals = random.standard_normal(20)
        covered.append(abs(residuals[-1]) <= conformal_radius(residuals[:-1], alpha=0.1))
    assert np.mean(covered) > 0.9 - 3 * math.sqrt(0.09 / 2000)


def test_splits_in_time_never_hold_the_future_and_features_never_see_it():
    splits = list(rolling_origins(60, 10, count=3))
    assert [(past.stop, future.start, future.stop) for past, future in splits] == [(30, 30, 40), (40, 40, 50), (50, 50, 60)]
    with pytest.raises(ValueError, match=r"^steps: expected at least 32 for 3 origins of 10, got 31$"):
        list(rolling_origins(31, 10))
    x = RANDOM.standard_normal((4, 30))
    changed = x.copy()
    changed[:, 20:] += 5
    first, second = panel_of(x), panel_of(changed)
    assert np.array_equal(features(first.first(20)), features(second.first(20)))
    assert np.array_equal(z_scored(first, past=20).values[:, :20], z_scored(second, past=20).values[:, :20])
    assert np.array_equal(forecast(first.first(20), 3, "holt-winters"), forecast(second.first(20), 3, "holt-winters"))


def test_missing_is_not_zero():
    day = 86_400_000
    student, time = np.array([7, 7, 3, 7]), np.array([0, 3 * day, 2 * day, 3 * day + 5])
    found, students = panel_from_events(student, time, ends=np.array([9 * day, 3 * day]))
    assert students.tolist() == [3, 7]
    assert found.values[..., 0].tolist() == [[0, 0, 1, 0], [1, 0, 0, 2]]
    assert found.mask.tolist() == [[False, False, True, True], [True, True, True, True]]
    gap = panel_of(np.array([[np.nan, 1.0, np.nan, 3.0, np.nan]]))
    assert carried(gap).tolist() == [[0, 1, 1, 3, 3]]
    assert features(gap)[0, 0] == 2
    assert z_scored(panel_of(np.array([[1.0, np.nan, 3.0]])), past=3).values[0, :, 0].tolist() == [-1, 0, 1]
    constant = z_scored(panel_of(np.full((1, 6), 5.0)), past=6)
    assert not constant.values.any()
    assert detect(gap, "seasonal")[0, [0, 2, 4]].tolist() == [0, 0, 0]


def test_days_begin_where_they_are_said_to_and_kinds_stay_apart():
    hour, day = 3_600_000, 86_400_000
    time = np.array([23 * hour, 25 * hour, 47 * hour])
    by_event, _ = panel_from_events(np.zeros(3), time)
    by_day, _ = panel_from_events(np.zeros(3), time, begin=0.0)
    assert by_event.values[0, :, 0].tolist() == [2, 1]  # a day after the first event, 23 hours late
    assert by_day.values[0, :, 0].tolist() == [1, 2]
    shifted, _ = panel_from_events(np.zeros(3), time, begin=-2.0 * hour)  # midnight two hours earlier, east of there
    assert shifted.values[0, :, 0].tolist() == [0, 2, 1]
    assert shifted.mask.tolist() == [[False, True, True]]
    ended, _ = panel_from_events(np.zeros(3), time, begin=0.0, ends=np.array([0.5 * day]))
    assert ended.mask.tolist() == [[True, False]]
    kinds, _ = panel_from_events(np.array([1, 1, 2]), time, kind=np.array(["video", "quiz", "video"]), begin=0.0)
    assert kinds.values.tolist() == [[[0, 1], [1, 0]], [[0, 0], [0, 1]]]  # quiz, video
    with pytest.raises(ValueError, match=r"^begin: expected at most 82800000, the time of the first event, got 90000000\.0$"):
        panel_from_events(np.zeros(3), time, begin=25.0 * hour)


def test_a_part_of_the_students_keeps_all_that_is_theirs():
    panel = synthetic_panel("changes", 0, students=6)
    panel = Panel(values=panel.values, mask=panel.mask, labels=panel.labels, static=np.arange(12.0).reshape(6, 2))
    for rows in (np.array([4, 1]), slice(2, 4), np.arange(6) % 2 == 0):
        part = panel.take(rows)
        for name in ("values", "mask", "labels", "static"):
            assert np.array_equal(getattr(part, name), getattr(panel, name)[rows])
    assert panel_of(np.zeros((3, 2))).take(slice(1)).labels is None


def test_medoids_find_clusters_that_are_apart_and_rand_forgets_names():
    truth = np.repeat([0, 1, 2], 10)
    x = np.array([0.0, 10.0, 25.0])[truth] + RANDOM.random(30)
    found = k_medoids(np.abs(x[:, None] - x[None]), 3, seed=0)
    assert adjusted_rand(found, truth) == 1
    assert adjusted_rand((found + 1) % 3, truth) == 1
    from sklearn.metrics import adjusted_rand_score

    other = RANDOM.integers(0, 4, 30)
    assert math.isclose(adjusted_rand(other, truth), adjusted_rand_score(truth, other), rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("method", ["logistic", "boosting", "nearest", "nearest-dtw"])
def test_classifiers_tell_declining_students_also_early(method):
    panel = synthetic_panel("activity", 0, students=160)
    known, others = panel.take(slice(100)), panel.take(slice(100, None))
    accuracy = {}
    for prefix in (0.2, 1.0):
        labels, scores = classify(known, others, method, prefix=prefix, radius=3)
        assert labels.shape == scores.shape == (60,)
        accuracy[prefix] = (labels == others.labels).mean()
    assert accuracy[1.0] > 0.75


@pytest.mark.parametrize("metric", ["euclid", "dtw", "k-means", "mixture"])
def test_clusters_are_deterministic_and_complete(metric):
    panel = synthetic_panel("archetypes", 0, students=24)
    found = cluster(panel, 3, metric, restarts=2)
    assert set(found.tolist()) <= {0, 1, 2}
    assert np.array_equal(found, cluster(panel, 3, metric, restarts=2))


def test_change_points_are_found_and_none_in_noise():
    random = np.random.default_rng(0)
    x = np.concatenate([random.standard_normal(40), 4 + random.standard_normal(30), 1 + random.standard_normal(50)])
    found = change_points(x, penalty=3 * math.log(120))
    assert len(found) == 2
    assert abs(found[0] - 40) <= 2
    assert abs(found[1] - 70) <= 2
    assert change_points(np.ones(20)) == []
    short = x[36:46]

    def cost(cuts):
        return sum(((part - part.mean()) ** 2).sum() + 1.0 for part in np.split(short, cuts))

    ways = [[], *([i] for i in range(2, 9)), *([i, j] for i in range(2, 7) for j in range(i + 2, 9))]
    ways += [[i, j, k] for i in range(2, 5) for j in range(i + 2, 7) for k in range(j + 2, 9)]
    ways += [[2, 4, 6, 8]]
    assert math.isclose(cost(change_points(short, penalty=1.0)), min(map(cost, ways)), rel_tol=1e-12)


def test_bad_input_is_refused():
    panel = panel_of(np.zeros((3, 5)))
    for call, message in (
        (lambda: dtw(np.zeros(0), A), r"^a: expected a series \(n,\) or \(n, d\) with n >= 1, got shape \(0,\)$"),
        (lambda: dtw(A, B, radius=-1), r"^radius: expected at least 0, got -1$"),
        (lambda: dtw(A, np.zeros((3, 2))), r"^b: expected 1 dimension\(s\) like a, got 2$"),
        (lambda: panel_of(np.zeros((0, 5))), r"^panel: expected at least one student and one time, got none$"),
        (lambda: panel_from_events(np.zeros(0), np.zeros(0)), r"^events: expected at least one, got none$"),
        (lambda: holt_winters(np.zeros(5), period=7, alpha=0.1, beta=0.1, gamma=0.1, horizon=1), r"^x: expected at least two seasons of 7"),
        (lambda: forecast(panel, 0, "naive"), r"^horizon: expected at least 1, got 0$"),
        (lambda: forecast(panel_of(np.zeros((1, 50))), 1, "arima"), r"^method: expected naive, seasonal-naive, .*, got 'arima'$"),  # pyright: ignore
        (lambda: classify(panel, panel, "nearest"), r"^labels: expected one per student and at least two classes, got fewer$"),
        (lambda: cluster(panel, 4, "dtw"), r"^k: expected a number in \[1, 3\], got 4$"),
        (lambda: conformal_radius(A, alpha=1.0), r"^alpha: expected a number in \(0, 1\), got 1\.0$"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
