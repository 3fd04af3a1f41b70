import math

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as oracle

from preceptor.metrics.classification import accuracy, brier, nll, top_k


def data(n=200, classes=7, seed=0, dtype=torch.double):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, classes, generator=generator, dtype=dtype), torch.randint(classes, (n,), generator=generator)


def test_against_independent_libraries():
    logits, labels = data()
    probs = logits.softmax(1).numpy()
    assert math.isclose(accuracy(logits, labels).mean(), sklearn.metrics.accuracy_score(labels, logits.argmax(1)))
    for k in range(1, 8):
        expected = sklearn.metrics.top_k_accuracy_score(labels, logits.numpy(), k=k, labels=np.arange(7)) if k < 7 else 1.0
        assert math.isclose(top_k(logits, labels, k=k).mean(), expected)
        torchmetrics = oracle.multiclass_accuracy(logits, labels, num_classes=7, top_k=k, average="micro")
        assert math.isclose(top_k(logits, labels, k=k).mean(), float(torchmetrics), rel_tol=1e-6)
    assert math.isclose(nll(logits, labels).mean(), sklearn.metrics.log_loss(labels, probs, labels=np.arange(7)), rel_tol=1e-12)
    expected = sklearn.metrics.brier_score_loss(labels, probs, labels=np.arange(7), scale_by_half=False)
    assert math.isclose(brier(logits, labels).mean(), expected, rel_tol=1e-12)


def test_brier_matches_a_loop_and_its_limits():
    logits, labels = data(n=5, classes=3)
    for row, label, value in zip(logits.tolist(), labels.tolist(), brier(logits, labels).tolist(), strict=True):
        total = sum(map(math.exp, row))
        assert math.isclose(value, sum((math.exp(z) / total - (c == label)) ** 2 for c, z in enumerate(row)), rel_tol=1e-12)
    sure = torch.tensor([[0.0, 1000.0], [1000.0, 0.0], [3.0, 3.0]])
    assert brier(sure, torch.tensor([1, 1, 0])).tolist() == [0.0, 2.0, 0.5]


def test_a_shift_of_the_logits_changes_nothing_and_examples_do_not_mix():
    logits, labels = data()
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    for metric in (accuracy, nll, brier, lambda a, b: top_k(a, b, k=3)):
        values = metric(logits, labels)
        assert values.shape == (200,)
        torch.testing.assert_close(metric(logits + 5, labels), values)
        assert torch.equal(metric(logits[order], labels[order]), values[order])


def test_equal_logits_go_to_the_lowest_class():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0]]).expand(4, 4)
    labels = torch.arange(4)
    assert accuracy(logits, labels).tolist() == [0, 1, 0, 0]
    assert torch.equal(accuracy(logits, labels), (logits.argmax(1) == labels).float())
    assert top_k(logits, labels, k=2).tolist() == [0, 1, 1, 0]
    assert top_k(logits, labels, k=3).tolist() == [0, 1, 1, 1]
    assert top_k(logits, labels, k=4).tolist() == [1, 1, 1, 1]


def test_ruled_out_classes_and_half_precision():
    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    assert math.isclose(nll(logits, torch.tensor([0])).item(), math.log(2), rel_tol=1e-6)
    assert nll(logits, torch.tensor([2])).item() == math.inf
    half, labels = data(dtype=torch.float32)
    half = half.bfloat16()
    assert nll(half, labels).dtype == torch.float32
    assert torch.equal(nll(half, labels), nll(half.float(), labels))


def test_no_gradient_and_no_edit():
    logits, labels = data()
    copy = logits.clone().requires_grad_()
    assert not nll(copy, labels).requires_grad
    assert torch.equal(copy, logits)


@pytest.mark.parametrize(
    ("logits", "labels", "error", "words"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), ValueError, "logits: expected at least one example, got none"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), ValueError, r"logits: expected shape \(examples, classes\), got \(3,\)"),
        (torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), ValueError, "at least 2 classes, got 1"),
        (torch.zeros(2, 3).long(), torch.zeros(2, dtype=torch.long), TypeError, "logits: expected a floating tensor, got torch.int64"),
        (torch.full((2, 3), math.nan), torch.zeros(2, dtype=torch.long), ValueError, "no NaN, got 2 bad rows of 2"),
        (torch.full((2, 3), -math.inf), torch.zeros(2, dtype=torch.long), ValueError, "finite largest value"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), ValueError, r"labels: expected shape \(2,\) like the logits, got \(3,\)"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError, "labels: expected 0 to 2, got 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), ValueError, "labels: expected 0 to 2, got -1 to 0"),
        (torch.zeros(2, 3), torch.zeros(2), TypeError, "labels: expected integers, got torch.float32"),
    ],
)
def test_bad_input_is_named(logits, labels, error, words):
    for metric in (accuracy, nll, brier, lambda a, b: top_k(a, b, k=1)):
        with pytest.raises(error, match=words) as info:
            metric(logits, labels)
        assert "\n" not in str(info.value)


@pytest.mark.parametrize("k", [0, -1, 8])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"k: expected .*, got {k}"):
        top_k(*data(), k=k)
