import math

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from preceptor.metrics.calibration import adaptive_ece, classwise_ece, ece, reliability_curve

ERRORS = (ece, classwise_ece, adaptive_ece)


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


def test_one_bin_is_the_gap_of_the_means():
    logits, labels = data()
    expected = abs(float((logits.argmax(1) == labels).double().mean() - logits.softmax(1).amax(1).mean()))
    assert math.isclose(ece(logits, labels, bins=1), expected, rel_tol=1e-9)
    assert math.isclose(adaptive_ece(logits, labels, bins=1), expected, rel_tol=1e-9)


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


@pytest.mark.parametrize("metric", [*ERRORS, reliability_curve])
def test_bad_input_is_named(metric):
    with pytest.raises(ValueError, match="logits: expected at least one example, got none"):
        metric(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="bins: expected at least 1, got 0"):
        metric(*data(), bins=0)
