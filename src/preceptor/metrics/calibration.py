"""Whether predicted probabilities mean what they say: calibration errors, the reliability curve, and how confidence ranks right and wrong.

Every error compares predicted probabilities with observed frequencies, in [0, 1], 0 for perfect calibration. They are statistics of a set:
the mean of the errors of two halves is not the error of the whole. All are biased upwards on small sets, so bins and
examples belong beside them. Where only probabilities are at hand, their logarithms are logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from preceptor.losses.checks import check_choice, check_counts
from preceptor.metrics.checks import checked_pair

Edges = Literal["runs", "quantiles"]
"""Bins of equal mass: runs of examples whose lengths differ by one at most, or what lies between sample quantiles."""


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


def adaptive_ece(logits: Tensor, labels: Tensor, *, bins: int = 15, edges: Edges = "runs") -> Tensor:
    """Expected calibration error of the predicted class, bins of equal mass, in the formula of `ece`.

    ``runs``: the bins of Nguyen and O'Connor 2015 (arXiv:1508.05154): examples sorted by confidence are cut into ``bins`` runs whose
    lengths differ by one at most, the longer ones first.
    Deviation: examples of one confidence count with their mean accuracy, so that the order of ties (many a confidence is exactly 1)
    does not matter.

    ``quantiles``: bins [q_(m-1), q_m) between the m / M quantiles, the last one closed; examples of one confidence share a bin. So does
    scikit-learn's KBinsDiscretizer (from 1.9 on; quantiles by averaged inverted CDF, bins narrower than 1e-8 joined), which the code of
    Liu et al. 2024 (arXiv:2404.13016) calls. Both are the same where M divides N and no confidence occurs twice.

    Args:
        logits: shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
        bins: M >= 1; more bins than examples leaves one example per bin.
        edges: see `Edges`.
    Returns:
        0-dimensional, float64, in [0, 1].
    Raises:
        ValueError: bins < 1, or another word for edges; see `preceptor.metrics.checks.checked_pair` for the rest.
    """
    logits, labels = checked_pair(logits, labels)
    check_counts(bins=bins)
    check_choice(Edges, edges=edges)
    confidence, correct = _confidence(logits, labels)
    if edges == "quantiles":
        cuts = np.percentile(confidence.cpu().numpy(), np.linspace(0, 100, bins + 1), method="averaged_inverted_cdf")
        cuts = torch.from_numpy(cuts[np.ediff1d(cuts, to_begin=np.inf) > 1e-8][1:-1]).to(confidence.device)
        index = torch.bucketize(confidence, cuts, right=True)
        return _bin_sums(correct - confidence, index, len(cuts) + 1).abs().sum() / len(labels)
    distinct, group = confidence.unique(sorted=True, return_inverse=True)
    tie_accuracy = _bin_sums(correct, group, len(distinct)) / group.bincount(minlength=len(distinct))
    gap = (tie_accuracy[group] - confidence)[confidence.argsort()]
    return torch.stack([run.sum().abs() for run in gap.tensor_split(bins)]).sum() / len(labels)


def mce(logits: Tensor, labels: Tensor, *, bins: int = 15, weighted: bool = False) -> Tensor:
    """Maximum calibration error of the predicted class, over the bins of `ece` that are not empty.

    Guo et al. 2017 (arXiv:1706.04599), Eq. 5: max_m |acc(B_m) - conf(B_m)|, at least `ece`.

    Args:
        logits: shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
        bins: >= 1.
        weighted: multiply each gap by the bin's share of the examples: the largest summand of `ece`, at most that, another quantity. It
            is what the code of Liu et al. 2024 (arXiv:2404.13016) calls MCE.
    Returns:
        0-dimensional, float64, in [0, 1].
    Raises:
        ValueError: bins < 1; see `preceptor.metrics.checks.checked_pair` for the rest.
    """
    curve = reliability_curve(logits, labels, bins=bins)
    gap = (curve.accuracy - curve.confidence).abs()
    return (gap * curve.count / curve.count.sum() if weighted else gap).max()


def ks_error(logits: Tensor, labels: Tensor, *, classwise: bool = False) -> Tensor:
    """Kolmogorov-Smirnov calibration error: no bins.

    Gupta et al. 2021 (arXiv:2006.12800), Sec. 3: the largest gap between the cumulated confidence and the cumulated accuracy,
        max_s |sum_(i: c_i <= s) (c_i - a_i)| / N,
    at least |mean c - mean a|, and equal to it where every prediction is right, or every one wrong. Examples of one confidence count
    together. (The code of arXiv:2404.13016 calls its function with confidence and correctness swapped, which is another quantity.)

    Args:
        logits: shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
        classwise: the mean over classes of the error of the class's probability against its frequency.
    Returns:
        0-dimensional, float64, in [0, 1].
    Raises:
        ValueError, TypeError: see `preceptor.metrics.checks.checked_pair`.
    """
    logits, labels = checked_pair(logits, labels)
    if not classwise:
        return _largest_sum(*_confidence(logits, labels))
    probs = logits.double().softmax(dim=1)
    hits = F.one_hot(labels, probs.shape[1]).double()
    return torch.stack([_largest_sum(p, hit) for p, hit in zip(probs.unbind(1), hits.unbind(1), strict=True)]).mean()


def _largest_sum(predicted: Tensor, happened: Tensor) -> Tensor:
    """Of the sums of ``predicted - happened`` over all up to a value of ``predicted``, the largest magnitude, divided by N."""
    distinct, group = predicted.unique(sorted=True, return_inverse=True)
    return _bin_sums(predicted - happened, group, len(distinct)).cumsum(0).abs().max() / len(predicted)


def confidence_brier(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of the confidence c in the predicted class from whether it is the label: (c - a)^2, the top-1 Brier score.

    Args:
        logits: shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
    Returns:
        Shape (N,), float64, in [0, 1].
    Raises:
        ValueError, TypeError: see `preceptor.metrics.checks.checked_pair`.
    """
    confidence, correct = _confidence(*checked_pair(logits, labels))
    return (confidence - correct).square()


def correctness_auroc(logits: Tensor, labels: Tensor) -> Tensor:
    """How well the confidence tells right predictions from wrong ones: the area under the ROC curve, which no calibration error sees.

    The chance that a right prediction has a higher confidence than a wrong one, ties counted half (Mann-Whitney).

    Args:
        logits: shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
    Returns:
        0-dimensional, float64, in [0, 1]; 0.5 for a confidence that says nothing, NaN where all predictions are right or all wrong.
    Raises:
        ValueError, TypeError: see `preceptor.metrics.checks.checked_pair`.
    """
    confidence, correct = _confidence(*checked_pair(logits, labels))
    right, wrong = confidence[correct == 1], confidence[correct == 0].sort().values
    below = torch.searchsorted(wrong, right) + torch.searchsorted(wrong, right, right=True)
    return below.sum().double() / (2 * len(right) * len(wrong))


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
