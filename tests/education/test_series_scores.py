"""Scores of alarms, classes and forecasts against slow loops and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from preceptor.education.anomalies import detect
from preceptor.education.forecasting import conformal_radius, forecast, mase, mase_scale
from preceptor.education.panel import panel_of, rolling_origins, synthetic_panel
from preceptor.education.scores import auc
from preceptor.education.series_networks import SeriesTraining
from preceptor.education.series_scores import average_precision, by_group, compare_forecasts, detection, flags, ranking

RANDOM = np.random.default_rng(0)


def test_average_precision_is_that_of_scikit_learn_also_with_ties():
    for scores in (RANDOM.standard_normal(40), RANDOM.integers(0, 4, 40).astype(float), np.zeros(40)):
        labels = RANDOM.integers(0, 2, 40)
        assert math.isclose(average_precision(scores, labels), average_precision_score(labels, scores), rel_tol=1e-12)
    assert average_precision(np.zeros(40), labels) == labels.mean()  # chance
    assert math.isnan(average_precision(np.zeros(3), np.zeros(3)))


def test_groups_share_one_threshold():
    scores, labels, groups = RANDOM.random(60), RANDOM.integers(0, 2, 60), np.repeat(["a", "b", "c"], 20)
    found = by_group(scores, labels, groups, threshold=0.7)
    assert list(found) == ["a", "b", "c"]
    for group, row in found.items():
        s, y = scores[groups == group], labels[groups == group]
        assert row["auc"] == auc(s, y) == ranking(s, y)["auc"]
        assert row["flagged"] == np.mean(s >= 0.7)
        assert math.isclose(row["recall"], sum((s >= 0.7) & (y == 1)) / sum(y))
        assert math.isclose(row["precision"], np.mean(y[s >= 0.7]))
    assert all(math.isnan(value) for value in flags(np.zeros(0, bool), np.zeros(0)).values())


def test_delays_by_hand():
    events = np.array([[0, 1, 1, 1, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1, 1, 1, 1]])
    scores = np.array([[0, 0, 0, 5, 5, 0, 0, 0, 0], [0, 9, 0, 0, 0, 0, 0, 0, 0], [0, 5, 0, 0, 0, 9, 9, 0, 0.0]])
    found = detection(scores, events, 5.0)
    assert found == {"events": 4, "found": 0.5, "delay": (2 + 2 + 1 + 0) / 4, "delay_found": 1, "false_alarms": 3 / 17}
    late = detection(scores, events, 5.0, grace=1)  # the alarm one step after the first event of the third student counts
    assert late == {"events": 4, "found": 0.75, "delay": (2 + 3 + 1 + 0) / 4, "delay_found": 1, "false_alarms": 1 / 15}
    high = detection(scores, events, 9.0)
    assert (high["found"], high["delay"], high["delay_found"], high["false_alarms"]) == (0.25, (3 + 2 + 1 + 0) / 4, 0, 1 / 17)
    mask = np.ones(events.shape, bool)
    mask[2, 5] = mask[1, 1] = False  # no alarm where nothing is known
    masked = detection(scores, events, 5.0, mask=mask)
    assert (masked["delay"], masked["false_alarms"]) == ((2 + 2 + 1 + 1) / 4, 2 / 16)
    nothing = detection(scores, np.zeros(events.shape), 99.0)
    assert math.isnan(nothing["found"])
    assert math.isnan(nothing["delay"])
    assert nothing["false_alarms"] == 0


def test_an_event_that_is_touched_once_is_not_a_whole_event_found():
    """Points of an event never share a hit: the detector of one hit per event has the recall of its points, not 1."""
    events = np.repeat([[0, 1]], 10, 1).reshape(1, 20)
    scores = np.zeros((1, 20))
    scores[0, 19] = 1.0
    assert detection(scores, events, 1.0)["delay"] == 9
    assert average_precision(scores.ravel(), events.ravel()) < 0.6


def test_a_lower_threshold_is_never_later_nor_quieter():
    panel = synthetic_panel("changes", 0, students=30)
    scores = -detect(panel, "seasonal", past_only=True)
    rows = [detection(scores, panel.labels, threshold) for threshold in (0.5, 1.0, 1.5, 2.0, 2.5)]
    for name, sign in (("found", -1), ("delay", 1), ("false_alarms", -1)):
        values = [sign * row[name] for row in rows]
        assert values == sorted(values)


def test_comparing_forecasts_against_a_slow_loop():
    panel = synthetic_panel("activity", 0, students=20)
    x = panel.values[..., 0].copy()
    x[RANDOM.random(x.shape) < 0.1] = np.nan
    x[3] = 0
    panel = panel_of(x, labels=panel.labels)
    found = compare_forecasts(panel, 7, ["seasonal-naive", "holt-winters"], origins=3, alpha=0.2, groups=panel.labels)
    for method, row in found.items():
        errors, inside, widths, residuals = [], [], [], []
        for past, future in rolling_origins(84, 7, count=3):
            said = forecast(panel.first(past.stop), 7, method)
            radius = conformal_radius(np.array(residuals), alpha=0.2) if residuals else None
            for u in range(20):
                differences = [abs(x[u, t] - x[u, t - 7]) for t in range(7, past.stop) if np.isfinite(x[u, t] - x[u, t - 7])]
                scale = np.mean(differences)
                off = [(abs(said[u, t - future.start] - x[u, t])) for t in range(future.start, future.stop) if np.isfinite(x[u, t])]
                errors.append((panel.labels[u], np.mean(off) / scale if scale else math.nan))
                if scale:
                    inside += [e <= radius * scale for e in off] if radius is not None else []
                    widths += [2 * radius * scale for _ in off] if radius is not None else []
                    residuals += [e / scale for e in off]
        assert math.isclose(row["mase"], np.nanmean([e for _, e in errors]), rel_tol=1e-9)
        assert row["excluded"] == np.mean([math.isnan(e) for _, e in errors]) == 0.05
        assert math.isclose(row["coverage"], np.mean(inside), rel_tol=1e-9)
        assert math.isclose(row["width"], np.mean(widths), rel_tol=1e-9)
        for group in (0, 1):
            assert math.isclose(row[f"mase/{group}"], np.nanmean([e for g, e in errors if g == group]), rel_tol=1e-9)
    once = compare_forecasts(panel, 7, ["naive"], origins=1)["naive"]
    assert math.isnan(once["coverage"])
    assert math.isnan(once["width"])


def test_networks_are_compared_as_the_others_are():
    panel = synthetic_panel("activity", 0, students=12)
    found = compare_forecasts(panel, 7, ["gru", "tcn"], origins=1, training=SeriesTraining(width=4, epochs=1))
    assert all(0 < row["mase"] < 2 for row in found.values())


def test_missing_values_are_never_judged():
    x, said = RANDOM.random((2, 30)), RANDOM.random((2, 5))
    truth = RANDOM.random((2, 5))
    truth[0, 2] = np.nan
    truth[1] = np.nan
    found = mase(said, truth, x)
    assert math.isclose(found[0], np.nanmean(np.abs(said - truth)[0]) / np.abs(x[0, 7:] - x[0, :-7]).mean(), rel_tol=1e-12)
    assert math.isnan(found[1])
    x[1] = np.nan
    assert math.isnan(mase_scale(x)[1])


def test_bad_input_is_refused():
    for call, message in (
        (
            lambda: detection(np.zeros((2, 3)), np.zeros((2, 4)), 0.0),
            r"^events: expected shape \(U, T\) \(2, 3\) like scores, got \(2, 4\)$",
        ),
        (lambda: detection(np.zeros((2, 3)), np.zeros((2, 3)), 0.0, grace=-1), r"^grace: expected at least 0, got -1$"),
        (lambda: compare_forecasts(panel_of(np.zeros((1, 20))), 7, ["naive"]), r"^steps: expected at least 23 for 3 origins of 7, got 20$"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
