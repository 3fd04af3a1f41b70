import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.preprocessing import KBinsDiscretizer
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from preceptor.metrics.calibration import (
    adaptive_ece,
    classwise_ece,
    confidence_brier,
    correctness_auroc,
    ece,
    ks_error,
    mce,
    reliability_curve,
)

quantile_ece = partial(adaptive_ece, edges="quantiles")
BINNED = (ece, classwise_ece, adaptive_ece, quantile_ece, mce)
ERRORS = (*BINNED, ks_error, partial(ks_error, classwise=True))


def data(n=500, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.double)
    labels = torch.where(torch.rand(n, generator=generator) < 0.5, logits.argmax(1), torch.randint(classes, (n,), generator=generator))
    return logits, labels


def logits_of(probs):
    return torch.tensor(probs, dtype=torch.double).log()


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_ece_against_torchmetrics(bins):
    logits, labels = data()
    expected = multiclass_calibration_error(logits.softmax(1), labels, num_classes=5, n_bins=bins, norm="l1")
    assert math.isclose(ece(logits, labels, bins=bins), float(expected), rel_tol=1e-6)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_classwise_ece_is_the_mean_of_binary_errors(bins):
    logits, labels = data()
    probs = logits.softmax(1)
    # torchmetrics' binary error scores the positive class's probability against its frequency, as the definition asks for each class
    expected = [float(binary_calibration_error(probs[:, c], (labels == c).long(), n_bins=bins, norm="l1")) for c in range(5)]
    assert math.isclose(classwise_ece(logits, labels, bins=bins), np.mean(expected), rel_tol=1e-6)


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_errors_against_scikit_learn(strategy):
    logits, labels = data(n=450)
    confidence, predicted = logits.softmax(1).max(1)
    correct = (predicted == labels).long()
    accuracy, mean = calibration_curve(correct, confidence.numpy(), n_bins=15, strategy=strategy)
    if strategy == "uniform":
        curve = reliability_curve(logits, labels)
        assert np.allclose(curve.accuracy, accuracy, rtol=0, atol=1e-12)
        assert np.allclose(curve.confidence, mean, rtol=0, atol=1e-12)
    else:  # 450 examples in 15 bins: 30 in each, so that its quantiles and our runs are the same bins
        assert math.isclose(adaptive_ece(logits, labels), np.abs(accuracy - mean).mean(), rel_tol=1e-9)


@pytest.mark.parametrize(("n", "bins"), [(500, 15), (37, 6), (3, 15), (1, 4)])
def test_errors_against_slow_loops(n, bins):
    logits, labels = data(n=n)
    probs = logits.softmax(1)
    items = sorted((float(p.max()), float(p.argmax() == y)) for p, y in zip(probs, labels, strict=True))

    def gap(members):
        return abs(sum(hit - p for p, hit in members))

    def width(p):
        return next(m for m in range(bins) if m / bins < p <= (m + 1) / bins)

    wide = [[item for item in items if width(item[0]) == m] for m in range(bins)]
    assert math.isclose(ece(logits, labels, bins=bins), sum(map(gap, wide)) / n, rel_tol=1e-9)
    runs = [[items[i] for i in run] for run in np.array_split(np.arange(n), bins)]
    assert math.isclose(adaptive_ece(logits, labels, bins=bins), sum(map(gap, runs)) / n, rel_tol=1e-9)
    total = 0.0
    for c in range(5):
        pairs = [(float(p[c]), float(y == c)) for p, y in zip(probs, labels, strict=True)]
        total += sum(gap([pair for pair in pairs if width(pair[0]) == m]) for m in range(bins))
    assert math.isclose(classwise_ece(logits, labels, bins=bins), total / (5 * n), rel_tol=1e-9)


def test_perfect_and_worst_calibration():
    # of 10 predictions at confidence 0.7, 7 are right; the class probabilities are right as well
    logits = logits_of([[0.7, 0.3]] * 10)
    labels = torch.tensor([0] * 7 + [1] * 3)
    for error in ERRORS:
        assert error(logits, labels) < 1e-12
    sure = torch.tensor([[100.0, 0.0, 0.0]]).expand(6, 3)
    wrong = torch.ones(6, dtype=torch.long)
    assert math.isclose(ece(sure, wrong), 1)
    assert math.isclose(adaptive_ece(sure, wrong), 1)
    assert math.isclose(classwise_ece(sure, wrong), 2 / 3)
    assert math.isclose(mce(sure, wrong), 1)
    assert math.isclose(ks_error(sure, wrong), 1)


def test_one_bin_is_the_gap_of_the_means():
    logits, labels = data()
    expected = abs(float((logits.argmax(1) == labels).double().mean() - logits.softmax(1).amax(1).mean()))
    assert math.isclose(ece(logits, labels, bins=1), expected, rel_tol=1e-9)
    for error in (adaptive_ece, quantile_ece, mce):
        assert math.isclose(error(logits, labels, bins=1), expected, rel_tol=1e-9)
    assert expected <= ks_error(logits, labels) <= 1


def test_order_of_examples_does_not_matter_even_among_ties():
    logits = torch.tensor([[200.0, 0.0, 0.0]]).repeat(40, 1)  # every confidence is exactly 1
    logits[:10] = torch.tensor([1.0, 0.0, 0.0])
    labels = (torch.arange(40) % 4 == 0).long()
    for seed in range(5):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
        for error in ERRORS:
            assert math.isclose(error(logits[order], labels[order]), error(logits, labels), rel_tol=1e-9)


def test_bin_edges_belong_to_the_bin_below():
    # a confidence of exactly 1/2 is the upper edge of the first bin of two: alone there, apart from the next larger
    logits = torch.tensor([[0.0, 0.0], [0.01, 0.0]], dtype=torch.double)
    curve = reliability_curve(logits, torch.tensor([0, 0]), bins=2)
    assert curve.count.tolist() == [1, 1]
    assert curve.confidence[0] == 0.5


def test_reliability_curve_gives_ece_back_and_leaves_empty_bins_out():
    logits, labels = data(n=60)
    curve = reliability_curve(logits, labels)
    assert int(curve.count.sum()) == 60
    assert (curve.count > 0).all()
    assert (curve.confidence.diff() > 0).all()
    weighted = (curve.count * (curve.accuracy - curve.confidence).abs()).sum() / 60
    assert math.isclose(weighted, ece(logits, labels), rel_tol=1e-12)


@pytest.mark.parametrize(("n", "bins"), [(40, 10), (500, 15), (37, 6), (400, 25), (30, 15), (3, 15), (1, 4)])
@pytest.mark.parametrize("digits", [16, 2, 1])
def test_quantile_bins_are_those_of_scikit_learn(n, bins, digits):
    logits, labels = data(n=n)
    confidence, predicted = logits.softmax(1).max(1)
    if digits < 16:  # confidences occur more than once, or so often that quantiles coincide
        confidence = confidence.round(decimals=digits).clamp(0.3, 0.9)
        rest = ((1 - confidence) / 4)[:, None].expand(n, 5)
        logits = rest.scatter(1, predicted[:, None], confidence[:, None]).log()
        confidence, predicted = logits.softmax(1).max(1)
    correct = (predicted == labels).double()
    cutter = KBinsDiscretizer(bins, encode="ordinal", strategy="quantile", quantile_method="averaged_inverted_cdf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of bins that it joined
        index = cutter.fit_transform(confidence[:, None].numpy())[:, 0]
    gaps = [abs(float((correct - confidence)[torch.from_numpy(index == m)].sum())) for m in np.unique(index)]
    assert math.isclose(quantile_ece(logits, labels, bins=bins), sum(gaps) / n, rel_tol=1e-9)


def test_both_kinds_of_equal_mass_agree_where_bins_are_full():
    logits, labels = data(n=600)
    assert math.isclose(adaptive_ece(logits, labels, bins=12), quantile_ece(logits, labels, bins=12), rel_tol=1e-12)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_largest_gap(bins):
    logits, labels = data()
    expected = multiclass_calibration_error(logits.softmax(1), labels, num_classes=5, n_bins=bins, norm="max")
    assert math.isclose(mce(logits, labels, bins=bins), float(expected), rel_tol=1e-5)  # torchmetrics computes in float32
    curve = reliability_curve(logits, labels, bins=bins)
    shares = [int(n) / 500 * abs(float(a - c)) for a, c, n in zip(curve.accuracy, curve.confidence, curve.count, strict=True)]
    assert math.isclose(mce(logits, labels, bins=bins, weighted=True), max(shares), rel_tol=1e-12)
    error = ece(logits, labels, bins=bins)
    assert mce(logits, labels, bins=bins, weighted=True) - 1e-12 <= error <= mce(logits, labels, bins=bins) + 1e-12


def test_ks_error_against_a_slow_loop():
    logits, labels = data(n=60)
    logits[:20] = logits[20:40]  # confidences that occur twice
    probs = logits.softmax(1)

    def largest(pairs):
        sums = [abs(sum(p - hit for p, hit in pairs if p <= limit)) for limit, _ in pairs]
        return max(sums) / len(pairs)

    own = [(float(p.max()), float(p.argmax() == y)) for p, y in zip(probs, labels, strict=True)]
    assert math.isclose(ks_error(logits, labels), largest(own), rel_tol=1e-9)
    each = [largest([(float(p[c]), float(y == c)) for p, y in zip(probs, labels, strict=True)]) for c in range(5)]
    assert math.isclose(ks_error(logits, labels, classwise=True), np.mean(each), rel_tol=1e-9)


def test_ks_error_is_the_gap_of_the_means_where_all_are_right_or_all_wrong():
    logits, _ = data()
    confidence = logits.softmax(1).amax(1).mean()
    assert math.isclose(ks_error(logits, logits.argmax(1)), 1 - confidence, rel_tol=1e-9)
    assert math.isclose(ks_error(logits, logits.argmin(1)), confidence, rel_tol=1e-9)


def test_brier_score_and_auroc_of_the_confidence_against_scikit_learn():
    logits, labels = data()
    logits[:50] = logits[50:100]  # ties
    confidence, predicted = logits.softmax(1).max(1)
    correct = predicted == labels
    assert math.isclose(confidence_brier(logits, labels).mean(), brier_score_loss(correct, confidence), rel_tol=1e-9)
    assert math.isclose(correctness_auroc(logits, labels), roc_auc_score(correct, confidence), rel_tol=1e-9)
    assert confidence_brier(logits, labels).shape == (500,)


def test_auroc_of_perfect_reversed_and_silent_confidence():
    sure, unsure = [0.9, 0.1], [0.6, 0.4]
    logits = logits_of([sure, sure, unsure])
    assert correctness_auroc(logits, torch.tensor([0, 0, 1])) == 1
    assert correctness_auroc(logits, torch.tensor([1, 1, 0])) == 0
    assert correctness_auroc(logits_of([sure, sure]), torch.tensor([0, 1])) == 0.5
    assert correctness_auroc(logits, torch.tensor([0, 0, 0])).isnan()
    assert correctness_auroc(logits, torch.tensor([1, 1, 1])).isnan()


@pytest.mark.parametrize("metric", [*ERRORS, confidence_brier, correctness_auroc, reliability_curve])
def test_no_examples_are_refused(metric):
    with pytest.raises(ValueError, match="logits: expected at least one example, got none"):
        metric(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("metric", [*BINNED, reliability_curve])
def test_bad_bins_are_named(metric):
    with pytest.raises(ValueError, match="bins: expected at least 1, got 0"):
        metric(*data(), bins=0)


def test_unknown_bins_are_named():
    with pytest.raises(ValueError, match="edges: expected one of runs, quantiles, got 'width'"):
        adaptive_ece(*data(), edges="width")
