"""Time series for education: forecast, classify, cluster, and flag what is strange in the sequences of learners.

Paper: Jin et al. 2024, Time Series Analysis for Education: Methods, Applications, and Future Directions (arXiv:2408.13960).
Claim: the survey has no experiments; what is measured here is what its tasks need of a method: warping where learners differ in pace, trend
and season where activity declines, and the learner's own week where a value is strange only on its day.
Equation: for warping D_ij = (a_i - b_j)^2 + min(D_{i-1,j}, D_{i,j-1}, D_{i-1,j-1}); for forecasts additive Holt-Winters, forecast_k =
l_T + k b_T + s; for anomalies z = (x_t - median of the student's same weekday) / sqrt(median + 1).
The parts are in `preceptor.education`: ``panel`` (series on one grid, with a mask; rolling origins), ``dtw``, ``forecasting``,
``trajectories`` (classes), ``partitions`` (clusters, how many), ``anomalies`` (also change points), ``series_networks`` (GRU and temporal
convolutions for classes and forecasts), ``series_scores`` and ``early_warning`` (what each is worth, per group and over time).
Deviations: none from a method, the design is our own. Smoothing chooses each student's parameters from a small grid, all students at
once. The miniature has no network: on a few hundred short series these baselines are the ones to beat.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from preceptor.core.types import Card
from preceptor.education.anomalies import Detector, detect
from preceptor.education.forecasting import Forecaster, forecast, mase
from preceptor.education.panel import synthetic_panel
from preceptor.education.partitions import Metric, adjusted_rand, cluster
from preceptor.education.scores import auc
from preceptor.education.trajectories import Classifier, classify
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size

CARD = Card(
    slug="time-series-education",
    title="Time series of learners: forecast, classify, cluster, detect",
    authors="Jin et al. 2024",
    arxiv="2408.13960",
    kind="survey",
    tasks=("education",),
    needs=(),
    equation="D_ij = (a_i - b_j)^2 + min of its three neighbours; l_T + k b_T + s; (x - median of the weekday) / sqrt(median + 1)",
    cost="seconds for some hundred students; warping is quadratic in the length and in the number of series",
    headline="a taxonomy of four tasks on four kinds of data, without experiments",
)

_HORIZON, _PERIOD = 14, 7

Plan = tuple[Classifier, Metric, Forecaster, Detector]


def miniature(seed: int, size: Size) -> Miniature:
    """Three shapes shifted by up to 5 of 24 steps, 30 students labelled; 84 days of counts, half of the students declining; odd weekends.

    ``accuracy`` is that of the labels of the other students, ``ari`` the adjusted Rand index of three clusters, ``mase`` the error of 14
    days over that of the seasonal naive forecast in the past, mean over students, ``auc`` that of the scores of strange days.
    """
    students = 150 if size == "full" else 20
    labelled = 30 if size == "full" else 10
    shapes = synthetic_panel("archetypes", seed, students=labelled + students)
    known, others = shapes.take(slice(labelled)), shapes.take(slice(labelled, None))
    activity = synthetic_panel("activity", seed, students=students)
    odd = synthetic_panel("anomalies", seed, students=students)
    past = activity.first(activity.values.shape[1] - _HORIZON)
    future = activity.values[:, -_HORIZON:, 0]
    assert others.labels is not None
    assert odd.labels is not None
    truth, strange = np.asarray(others.labels), np.asarray(odd.labels)

    def measured(labels: np.ndarray, clusters: np.ndarray, forecasts: np.ndarray, scores: np.ndarray) -> dict[str, float]:
        return {
            "accuracy": float((labels == truth).mean()),
            "ari": adjusted_rand(clusters, truth),
            "mase": float(np.nanmean(mase(forecasts, future, past.values[..., 0], period=_PERIOD))),
            "auc": auc(scores.ravel(), strange.ravel()),
        }

    plans: dict[str, Plan] = {
        "plain": ("nearest", "euclid", "seasonal-naive", "value"),
        "features": ("boosting", "k-means", "dlinear", "isolation"),
        "time-series-education": ("nearest-dtw", "dtw", "holt-winters", "seasonal"),
    }
    random = np.random.default_rng(seed)
    arms = {
        "untrained": measured(
            random.integers(0, 3, len(truth)),
            random.integers(0, 3, len(truth)),
            forecast(past, _HORIZON, "naive", period=_PERIOD),
            random.random(strange.shape),
        )
    }
    for name, (classifier, metric, forecaster, detector) in plans.items():
        arms[name] = measured(
            classify(known, others, classifier, seed=seed)[0],
            cluster(others, 3, metric, seed=seed),
            forecast(past, _HORIZON, forecaster, period=_PERIOD),
            detect(odd, detector, period=_PERIOD, seed=seed),
        )
    claims: tuple[tuple[str, str, Literal["higher", "lower"]], ...] = (
        ("warping tells shifted shapes apart better than Euclid, 30 labelled", "accuracy", "higher"),
        ("clusters by warping are the shapes", "ari", "higher"),
        ("Holt-Winters forecasts declining students better than the last week", "mase", "lower"),
        ("a residual to the student's weekday finds what the value does not", "auc", "higher"),
    )
    return Miniature(
        arms=arms,
        claims=tuple(
            Claim(name=name, method="time-series-education", baseline="plain", metric=metric, direction=direction)
            for name, metric, direction in claims
        ),
        notes=(f"{labelled} labelled and {students} other students; {students} students each for forecasts and for strange days",),
    )
