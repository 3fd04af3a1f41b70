"""Whether predicted probabilities mean what they say: calibration errors and the reliability curve.

Every error is a mean over examples of |observed frequency - predicted probability| between bins, in [0, 1], 0 for perfect calibration.
They are statistics of a set: the mean of the errors of two halves is not the error of the whole. All are biased upwards on small sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from preceptor.losses.checks import check_counts
from preceptor.metrics.checks import checked_pair


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """The B bins of a reliability diagram that hold at least one example, by rising confidence; each field has shape (B,)."""

    confidence: Tensor  # mean confidence in the bin, in (0, 1], float64
    accuracy: Tensor  # share of correct predictions in the bin, in [0, 1], float64
    count: Tensor  # examples in the bin, int64


def _equal_width(values: Tensor, bins: int) -> Tensor:
    """Bin number of each value: bin b of [0, bins) holds (b / bins, (b + 1) / bins], and bin 0 holds 0 too."""
    edges = torch.linspace(0, 1, bins + 1, dtype=values.dtype, device=values.device)[1:-1]
    return torch.bucketize(values, edges)


def _confidence(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the predicted class, and whether it is the label; both (N,), float64."""
    probs = logits.double().softmax(dim=1)
    predicted = logits.argmax(dim=1)
    return probs.gather(1, predicted[:, None]).squeeze(1), (predicted == labels).double()


def _bin_sums(values: Tensor, index: Tensor, bins: int) -> Tensor:
    return torch.zeros(bins, dtype=torch.float64, device=values.device).index_add_(0, index, values)


def ece(logits: Tensor, labels: Tensor, *, bins: int = 15) -> Tensor:
    """Expected calibration error of the predicted class, bins of equal width.

    Guo, Pleiss, Sun, Weinberger 2017 (arXiv:1706.04599), Eq. 3, with its bins ((m - 1) / M, m / M]:
        ECE = sum_m |B_m| / N * |acc(B_m) - conf(B_m)|.

    Args:
        logits: shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
        bins: M >= 1; 15 is the paper's.
    Returns:
        0-dimensional, float64, in [0, 1].
    Raises:
        ValueError: bins < 1; see `preceptor.metrics.checks.checked_pair` for the rest.
    """
    logits, labels = checked_pair(logits, labels)
    check_counts(bins=bins)
    confidence, correct = _confidence(logits, labels)
    return _bin_sums(correct - confidence, _equal_width(confidence, bins), bins).abs().sum() / len(labels)


def classwise_ece(logits: Tensor, labels: Tensor, *, bins: int = 15) -> Tensor:
    """Calibration error of every class's probability, averaged over classes, bins of equal width.

    Kull et al. 2019 (arXiv:1910.12656), classwise-ECE; the same as the static calibration error of Nixon et al. 2019
    (arXiv:1904.01685). With B_{m,c} the examples whose probability of class c falls in bin m:
        (1 / C) sum_c sum_m |B_{m,c}| / N * |share of class c in B_{m,c} - mean probability of class c in B_{m,c}|.
    Every example counts in every class, also where the class is neither label nor prediction; values are therefore small for many classes.

    Args:
        logits: shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
        bins: >= 1, per class.
    Returns:
        0-dimensional, float64, in [0, 2 / classes].
    Raises:
        ValueError: bins < 1; see `preceptor.metrics.checks.checked_pair` for the rest.
    """
    logits, labels = checked_pair(logits, labels)
    check_counts(bins=bins)
    probs = logits.double().softmax(dim=1)
    num_classes = probs.shape[1]
    gap = F.one_hot(labels, num_classes) - probs
    cell = _equal_width(probs, bins) + bins * torch.arange(num_classes, device=probs.device)
    return _bin_sums(gap.flatten(), cell.flatten(), bins * num_classes).abs().sum() / (len(labels) * num_classes)


def adaptive_ece(logits: Tensor, labels: Tensor, *, bins: int = 15) -> Tensor:
    """Expected calibration error of the predicted class, bins of equal mass.

    The bins of Nguyen and O'Connor 2015 (arXiv:1508.05154), in the formula of `ece`: examples sorted by confidence are cut into
    ``bins`` runs whose lengths differ by one at most, the longer ones first.
    Deviation: examples of one confidence count with their mean accuracy, so that the order of ties (many a confidence is exactly 1)
    does not matter.

    Args:
        logits: shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
        bins: >= 1; more bins than examples leaves one example per bin.
    Returns:
        0-dimensional, float64, in [0, 1].
    Raises:
        ValueError: bins < 1; see `preceptor.metrics.checks.checked_pair` for the rest.
    """
    logits, labels = checked_pair(logits, labels)
    check_counts(bins=bins)
    confidence, correct = _confidence(logits, labels)
    distinct, group = confidence.unique(sorted=True, return_inverse=True)
    tie_accuracy = _bin_sums(correct, group, len(distinct)) / group.bincount(minlength=len(distinct))
    gap = (tie_accuracy[group] - confidence)[confidence.argsort()]
    return torch.stack([run.sum().abs() for run in gap.tensor_split(bins)]).sum() / len(labels)


def reliability_curve(logits: Tensor, labels: Tensor, *, bins: int = 15) -> Reliability:
    """The points of a reliability diagram, with the bins of `ece`.

    DeGroot and Fienberg 1983; Guo et al. 2017 (arXiv:1706.04599), Fig. 1. ``sum(count * |accuracy - confidence|) / N`` is `ece`.

    Args:
        logits: shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
        bins: >= 1.
    Returns:
        Mean confidence, accuracy and count of the bins that are not empty.
    Raises:
        ValueError: bins < 1; see `preceptor.metrics.checks.checked_pair` for the rest.
    """
    return reliability(*_confidence(*checked_pair(logits, labels)), bins=bins)


def reliability(confidence: Tensor, correct: Tensor, *, bins: int = 15) -> Reliability:
    """`reliability_curve` from what is left of predictions when their logits are gone.

    Args:
        confidence: probability of the predicted class, shape (N,), float64.
        correct: 1 where it is the label, shape (N,), float64.
        bins: >= 1.
    Raises:
        ValueError: bins < 1.
    """
    check_counts(bins=bins)
    index = _equal_width(confidence, bins)
    count = index.bincount(minlength=bins)
    held = count > 0
    sums = [_bin_sums(values, index, bins)[held] / count[held] for values in (confidence, correct)]
    return Reliability(confidence=sums[0], accuracy=sums[1], count=count[held])
