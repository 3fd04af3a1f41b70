"""Early warning: how well students at risk are told apart after a part of their series, when only so many can be helped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preceptor.education.panel import Panel
from preceptor.education.scores import score
from preceptor.education.series_networks import SeriesTraining
from preceptor.education.series_scores import by_group, flags, ranking
from preceptor.education.trajectories import Classifier, classify


def alert_threshold(scores: np.ndarray, budget: float) -> float:
    """The least score at which an alert, score >= threshold, goes to at most a share ``budget`` of n; infinite where ties allow none.

    Raises:
        ValueError: a budget outside [0, 1], or no score.
    """
    if not 0 <= budget <= 1:
        raise ValueError(f"budget: expected a share in [0, 1], got {budget}")
    if not scores.size:
        raise ValueError("scores: expected at least one, got none")
    values, counts = np.unique(scores, return_counts=True)
    allowed = counts[::-1].cumsum()[::-1] <= budget * scores.size + 1e-9
    return float(values[allowed][0]) if allowed.any() else float("inf")


def dropout_labels(panel: Panel, *, gap: int, completed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Who dropped out, and when: silent through the last ``gap`` steps of the record and not known to have completed.

    A student without such a silence is still enrolled as far as the record goes: not "has not dropped out" but unknown.

    Args:
        panel: values are 0 where nothing happened.
        gap: steps of silence, in [1, T].
        completed: (U,) bool; None: nobody is known to.
    Returns:
        Labels (U,): 1 dropped out, 0 completed, -1 unknown (leave them out: ``panel.take(labels >= 0)``). And the step (U,) after the last
        activity, at which a dropout began: what is read from there on knows the outcome.
    Raises:
        ValueError: a gap out of range.
    """
    steps = panel.values.shape[1]
    if not 1 <= gap <= steps:
        raise ValueError(f"gap: expected a number in [1, {steps}], got {gap}")
    active = (panel.values != 0).any(-1) & panel.mask
    last = np.where(active, np.arange(steps) + 1, 0).max(1)
    done = np.zeros(len(last), bool) if completed is None else np.asarray(completed, bool)
    return np.where(done, 0, np.where(steps - last >= gap, 1, -1)), last


def early_warning(
    train: Panel,
    test: Panel,
    method: Classifier,
    *,
    at: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 1.0),
    budget: float = 0.1,
    ended: tuple[np.ndarray, np.ndarray] | None = None,
    groups: np.ndarray | None = None,
    radius: int | None = None,
    training: SeriesTraining | None = None,
    seed: int = 0,
) -> dict[int, dict[str, float]]:
    """A classifier of the larger of two labels, at several times: it learns from other students, up to the same time.

    Args:
        train: with labels (U,) of two kinds, the larger being the one to warn of.
        test: other students, series as long, with labels (V,).
        method: see `preceptor.education.trajectories.classify`.
        at: shares of the series that are known.
        budget: share of the test students who can be given an alert at each time.
        ended: steps at which the outcome of training (U,) and test students (V,) was there; who has it by the time of a warning is left
            out of both, since their series know it (the risk set of a landmark analysis). None: outcomes come after the series.
        groups: (V,) of the test students; adds ``recall/GROUP`` and ``flagged/GROUP`` at the common threshold.
        radius: of warping.
        training: of a network.
        seed: of trees or of a network.
    Returns:
        By known steps: ``auc``, ``average_precision``, ``positives``, ``n`` of the students at risk; ``log_loss`` and ``ece`` (NaN for
        neighbours, whose margins are no chances); ``flagged``, ``precision`` and ``recall`` of the alerts.
    Raises:
        ValueError: labels of more or fewer than two kinds, or left with one kind at some time.
    """
    if train.labels is None or test.labels is None or len(np.unique(train.labels)) != 2:
        raise ValueError("labels: expected two kinds in training and labels in test, got others")
    larger, steps = np.max(train.labels), train.values.shape[1]
    found = {}
    for share in at:
        known = max(1, round(share * steps))
        seen, asked = (np.ones(len(part.values), bool) if ended is None else ended[i] > known for i, part in enumerate((train, test)))
        if not asked.any() or len(np.unique(train.labels[seen])) < 2:
            raise ValueError(f"ended: expected students with both labels in training and some in test after {known} steps, got none")
        told = classify(train.take(seen), test.take(asked), method, prefix=share, radius=radius, training=training, seed=seed)[1]
        labels = (test.labels[asked] == larger).astype(int)
        threshold = alert_threshold(told, budget)
        row = ranking(told, labels) | flags(told >= threshold, labels)
        chances = score(told, labels) if method not in ("nearest", "nearest-dtw") else {"log_loss": np.nan, "ece": np.nan}
        row |= {name: float(chances[name]) for name in ("log_loss", "ece")}
        if groups is not None:
            for group, scores in by_group(told, labels, groups[asked], threshold=threshold).items():
                row |= {f"recall/{group}": scores["recall"], f"flagged/{group}": scores["flagged"]}
        found[known] = row
    return found
