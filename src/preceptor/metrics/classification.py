"""How well logits predict labels: one value per example, so that means, intervals and paired tests can be made of them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from preceptor.losses.checks import check_counts
from preceptor.metrics.checks import checked_pair


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the most likely class is the label; of equal logits the lowest class wins.

    Args:
        logits: shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
    Returns:
        Shape (N,), 0 or 1.
    Raises:
        ValueError, TypeError: see `preceptor.metrics.checks.checked_pair`.
    """
    return top_k(logits, labels, k=1)


def top_k(logits: Tensor, labels: Tensor, *, k: int) -> Tensor:
    """Whether the label is among the k most likely classes; of equal logits the lowest class comes first.

    Args:
        logits: shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
        k: from 1 to the number of classes.
    Returns:
        Shape (N,), 0 or 1.
    Raises:
        ValueError: k out of range; see `preceptor.metrics.checks.checked_pair` for the rest.
    """
    logits, labels = checked_pair(logits, labels)
    check_counts(k=k)
    if k > logits.shape[1]:
        raise ValueError(f"k: expected at most the {logits.shape[1]} classes, got {k}")
    own = logits.gather(1, labels[:, None])
    tied_before = (logits == own).cumsum(dim=1).gather(1, labels[:, None]).squeeze(1) - 1
    return ((logits > own).sum(dim=1) + tied_before < k).to(logits.dtype)


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of the label under softmax(logits).

    Args:
        logits: shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
    Returns:
        Shape (N,), >= 0, in nats; infinite where the label's logit is -inf.
    Raises:
        ValueError, TypeError: see `preceptor.metrics.checks.checked_pair`.
    """
    logits, labels = checked_pair(logits, labels)
    return F.cross_entropy(logits, labels, reduction="none")


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of the predicted probabilities from the label.

    Brier 1950 (Monthly Weather Review 78, 1), the original form, which sums over classes:
        sum_c (p_c - 1[c = y])^2,   p = softmax(logits).

    Args:
        logits: shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
    Returns:
        Shape (N,), in [0, 2], no unit.
    Raises:
        ValueError, TypeError: see `preceptor.metrics.checks.checked_pair`.
    """
    logits, labels = checked_pair(logits, labels)
    return (logits.softmax(dim=1) - F.one_hot(labels, logits.shape[1])).square().sum(dim=1)
