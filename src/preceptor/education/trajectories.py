"""Classes of students' series, from all or the first part of them, by scikit-learn, by the nearest series, or by a network."""

from __future__ import annotations

from typing import Literal

import numpy as np

from preceptor.core.optional import require
from preceptor.education.dtw import dtw_matrix
from preceptor.education.panel import Panel, z_scored
from preceptor.education.series_networks import SeriesTraining, classify_by_network

Classifier = Literal["logistic", "boosting", "nearest", "nearest-dtw", "gru", "tcn"]
"""Logistic regression or boosted trees on features; the label of the nearest series, by Euclid or by warping; networks on the series."""


def features(panel: Panel, *, last: int = 7, period: int = 7) -> np.ndarray:
    """(U, 7): mean, standard deviation, slope, mean of the last values, longest and last run of zeros, entropy over the days of a season.

    Only known values count; all from the first dimension.
    """
    x, mask = panel.values[..., 0] * panel.mask, panel.mask
    count = np.maximum(mask.sum(1), 1)
    mean = x.sum(1) / count
    away = (x - mean[:, None]) * mask
    t = np.arange(x.shape[1]) * mask
    centred = (t - (t.sum(1) / count)[:, None]) * mask
    slope = (centred * away).sum(1) / np.maximum((centred**2).sum(1), 1e-12)
    recent = x[:, -last:].sum(1) / np.maximum(mask[:, -last:].sum(1), 1)
    zero = mask & (x == 0)
    run, longest = np.zeros(len(x)), np.zeros(len(x))
    for step in range(x.shape[1]):
        run = np.where(zero[:, step], run + 1, np.where(mask[:, step], 0, run))
        longest = np.maximum(longest, run)
    days = np.stack([np.abs(x[:, day::period]).sum(1) for day in range(period)], 1)
    share = days / np.maximum(days.sum(1, keepdims=True), 1e-12)
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum(1)
    return np.stack([mean, np.sqrt((away**2).sum(1) / count), slope, recent, longest, run, entropy], 1)


def classify(
    train: Panel,
    test: Panel,
    method: Classifier,
    *,
    prefix: float = 1.0,
    radius: int | None = None,
    training: SeriesTraining | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Learn the labels of some students and tell those of others, from the first part of their series.

    Args:
        train: with labels (U,).
        test: of other students.
        method: see `Classifier`.
        prefix: share of the series that is known, in (0, 1].
        radius: of warping.
        training: of a network.
        seed: of the trees, or of a network.
    Returns:
        Labels (V,), and for two classes the chance, or for a neighbour the margin, of the larger label, (V,).
    Raises:
        ValueError: no labels, only one class, or a prefix outside (0, 1].
    """
    if train.labels is None or train.labels.ndim != 1 or len(np.unique(train.labels)) < 2:
        raise ValueError("labels: expected one per student and at least two classes, got fewer")
    if not 0 < prefix <= 1:
        raise ValueError(f"prefix: expected a share in (0, 1], got {prefix}")
    steps = max(1, round(prefix * train.values.shape[1]))
    known, asked = train.first(steps), test.first(steps)
    labels = np.asarray(train.labels)
    if method in ("nearest", "nearest-dtw"):
        a, b = (z_scored(part, past=steps).values for part in (asked, known))
        distance = dtw_matrix(a, b, radius=radius if method == "nearest-dtw" else 0)  # without a band's width warping is Euclid
        positive = labels == labels.max()
        margin = distance[:, ~positive].min(1) - distance[:, positive].min(1)
        return labels[distance.argmin(1)], margin
    if method in ("gru", "tcn"):
        return classify_by_network(known, asked, method, training=training, seed=seed)
    if method == "logistic":
        pipeline = require("sklearn.pipeline", extra="education", purpose="classification")
        scaling = require("sklearn.preprocessing", extra="education", purpose="classification")
        linear = require("sklearn.linear_model", extra="education", purpose="classification")
        model = pipeline.make_pipeline(scaling.StandardScaler(), linear.LogisticRegression(max_iter=1000))
    elif method == "boosting":
        model = require("sklearn.ensemble", extra="education", purpose="classification").HistGradientBoostingClassifier(
            max_iter=60, min_samples_leaf=5, random_state=seed
        )
    else:
        raise ValueError(f"method: expected logistic, boosting, nearest, nearest-dtw, gru or tcn, got {method!r}")
    model.fit(features(known), labels)
    given = features(asked)
    return model.predict(given), model.predict_proba(given)[:, -1]
