"""How good predicted chances are: AUC, accuracy, log-loss, calibration, and each by the length of a student's history."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_BINS = 10


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Chance that a positive item scores above a negative one, ties counting one half; NaN without both kinds. Arrays (n,)."""
    positive = labels == 1
    count = int(positive.sum())
    if count in (0, len(labels)):
        return math.nan
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((rank[positive].sum() - count * (count + 1) / 2) / (count * (len(labels) - count)))


def score(probability: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """Scores of chances (n,) against answers (n,) of 0 and 1.

    ``auc``, ``accuracy`` at 0.5, ``log_loss`` in nats, ``ece``, the calibration error of 10 bins, and ``n``; all but ``n`` are NaN without
    an item.
    """
    if not len(correct):
        return dict.fromkeys(("auc", "accuracy", "log_loss", "ece"), math.nan) | {"n": 0.0}
    clipped = probability.clip(1e-7, 1 - 1e-7)
    bins = (probability * _BINS).astype(int).clip(0, _BINS - 1)
    gap = np.abs(np.bincount(bins, probability - correct, minlength=_BINS)).sum() / len(correct)
    return {
        "auc": auc(probability, correct),
        "accuracy": float(((probability >= 0.5) == (correct == 1)).mean()),
        "log_loss": float(-np.where(correct == 1, np.log(clipped), np.log(1 - clipped)).mean()),
        "ece": float(gap),
        "n": float(len(correct)),
    }


def by_history(
    probability: np.ndarray, correct: np.ndarray, history: np.ndarray, edges: Sequence[int] = (1, 5, 10, 20, 50, 100, 200)
) -> dict[str, dict[str, float]]:
    """`score` of the items whose history is as long as each range says: "1-4", ..., "200+"; ranges without an item are left out."""
    found = {}
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        inside = (history >= low) & (history < (high if high is not None else math.inf))
        if inside.any():
            found[f"{low}+" if high is None else f"{low}-{high - 1}"] = score(probability[inside], correct[inside])
    return found
