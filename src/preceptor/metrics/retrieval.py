"""How often a query finds its answer."""

from __future__ import annotations

from torch import Tensor

from preceptor.losses.checks import check_counts


def recall_at(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Whether one of the right candidates is among the k with the highest scores; the mean over queries is recall@k.

    Args:
        scores: shape (Q, C); of equal ones the first counts as higher.
        relevant: bool, shape (Q, C).
        k: at least 1; more than C means all.
    Returns:
        bool, shape (Q,).
    Raises:
        ValueError: shapes differ, or k < 1.
    """
    check_counts(k=k)
    if scores.ndim != 2 or scores.shape != relevant.shape:
        raise ValueError(f"relevant: expected shape (queries, candidates) like scores {tuple(scores.shape)}, got {tuple(relevant.shape)}")
    return relevant.gather(1, scores.argsort(dim=1, descending=True, stable=True)[:, :k]).any(dim=1)
