"""Alerts within a budget, who dropped out, and classifiers that never learn from an outcome that is there."""

import math

import numpy as np
import pytest

from preceptor.education.early_warning import alert_threshold, dropout_labels, early_warning
from preceptor.education.panel import Panel, panel_of, synthetic_panel
from preceptor.education.scores import auc, score
from preceptor.education.series_networks import SeriesTraining
from preceptor.education.trajectories import classify

RANDOM = np.random.default_rng(0)


def test_alerts_stay_within_the_budget_and_use_it():
    scores = RANDOM.standard_normal(50)
    for budget in (0.0, 0.02, 0.1, 0.33, 1.0):
        assert (scores >= alert_threshold(scores, budget)).sum() == math.floor(budget * 50 + 1e-9)
    tied = np.array([1.0, 2.0, 2.0, 2.0, 0.0])
    assert alert_threshold(tied, 0.4) == math.inf  # three share the second place
    assert alert_threshold(tied, 0.6) == 2
    assert alert_threshold(np.array([3.0, *tied]), 0.4) == 3


def test_who_is_still_enrolled_is_unknown():
    x = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    labels, last = dropout_labels(panel_of(x), gap=3, completed=np.array([False, False, True, False, True]))
    assert labels.tolist() == [1, -1, 0, 1, 0]
    assert last.tolist() == [2, 4, 1, 0, 6]
    assert dropout_labels(panel_of(x), gap=3)[0].tolist() == [1, -1, 1, 1, -1]
    hidden = Panel(values=x[..., None].astype(float), mask=np.arange(6) < np.array([6, 6, 6, 6, 2])[:, None])
    assert dropout_labels(hidden, gap=3)[1].tolist() == [2, 4, 1, 0, 2]


def test_a_warning_is_a_classifier_on_what_was_known_with_a_threshold():
    panel = synthetic_panel("activity", 0, students=120)
    train, test = panel.take(slice(60)), panel.take(slice(60, None))
    groups = np.arange(60) % 2
    found = early_warning(train, test, "logistic", at=(0.25, 1.0), budget=0.2, groups=groups)
    assert list(found) == [21, 84]
    for steps, row in found.items():
        told = classify(train.first(steps), test.first(steps), "logistic")[1]
        assert row["auc"] == auc(told, test.labels)
        assert row["ece"] == score(told, test.labels)["ece"]
        flagged = np.argsort(-told)[:12]
        assert row["flagged"] == 0.2
        assert math.isclose(row["precision"], test.labels[flagged].mean())
        assert math.isclose(row["recall/1"], test.labels[flagged[groups[flagged] == 1]].sum() / test.labels[groups == 1].sum())
        assert math.isclose((row["flagged/0"] + row["flagged/1"]) / 2, 0.2)
    margins = early_warning(train, test, "nearest", at=(1.0,))[84]
    assert math.isnan(margins["ece"])
    assert margins["auc"] > 0.8
    network = early_warning(train, test, "gru", at=(0.5,), training=SeriesTraining(width=4, epochs=1))[42]
    assert 0 <= network["ece"] <= 1


def test_who_has_the_outcome_is_no_longer_warned_of_and_teaches_nothing():
    """Leavers fall silent at their end: with them in the sample the late warning knows the outcome."""
    random = np.random.default_rng(0)
    end = random.integers(5, 40, 200)
    labels = (random.random(200) < 0.5).astype(int)
    x = random.poisson(3.0, (200, 40)) * ((np.arange(40) < end[:, None]) | (labels[:, None] == 0))
    panel = panel_of(x.astype(float), labels=labels)
    outcome = np.where(labels == 1, end, 41)
    train, test, ended = panel.take(slice(120)), panel.take(slice(120, None)), (outcome[:120], outcome[120:])
    late, honest = (early_warning(train, test, "logistic", at=(0.75,), ended=when)[30] for when in (None, ended))
    assert late["auc"] > 0.8
    assert abs(honest["auc"] - 0.5) < 0.2
    assert honest["n"] == (outcome[120:] > 30).sum()
    changed = Panel(values=np.where((outcome <= 30)[:, None, None], 99.0, panel.values), mask=panel.mask, labels=labels)
    assert early_warning(changed.take(slice(120)), changed.take(slice(120, None)), "logistic", at=(0.75,), ended=ended)[30] == honest


def test_bad_input_is_refused():
    panel = synthetic_panel("activity", 0, students=20)
    three = Panel(values=panel.values, mask=panel.mask, labels=np.arange(20) % 3)
    gone = (np.zeros(20), np.zeros(20))
    for call, message in (
        (lambda: alert_threshold(np.zeros(3), 1.5), r"^budget: expected a share in \[0, 1\], got 1\.5$"),
        (lambda: alert_threshold(np.zeros(0), 0.5), r"^scores: expected at least one, got none$"),
        (lambda: dropout_labels(panel, gap=0), r"^gap: expected a number in \[1, 84\], got 0$"),
        (lambda: early_warning(three, panel, "nearest"), r"^labels: expected two kinds in training and labels in test, got others$"),
        (lambda: early_warning(panel, panel, "nearest", ended=gone), r"^ended: expected students with both labels in training and some in"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
