"""Cross-entropy with labels or targets."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from preceptor.losses.hard import hard_loss


def test_labels_agree_with_torch():
    logits, labels = torch.randn(6, 5, dtype=torch.double), torch.tensor([0, 4, 2, 2, 1, 3])
    torch.testing.assert_close(hard_loss(logits, {"y": labels}), F.cross_entropy(logits, labels, reduction="none"))
    torch.testing.assert_close(hard_loss(logits, {"y": labels.int()}), hard_loss(logits, {"y": labels}))


def test_targets_agree_with_torch_and_come_before_labels():
    logits, targets = torch.randn(6, 5, dtype=torch.double), torch.rand(6, 5, dtype=torch.double).softmax(-1)
    value = hard_loss(logits, {"y": torch.zeros(6, dtype=torch.int64), "targets": targets})
    torch.testing.assert_close(value, F.cross_entropy(logits, targets, reduction="none"))
    one_hot = F.one_hot(torch.tensor([1, 0, 4, 2, 2, 3]), 5).double()
    torch.testing.assert_close(hard_loss(logits, {"targets": one_hot}), hard_loss(logits, {"y": one_hot.argmax(-1)}))


def test_tokens():
    logits, labels = torch.randn(2, 3, 5, dtype=torch.double), torch.tensor([[0, 1, 2], [4, 3, 2]])
    torch.testing.assert_close(hard_loss(logits, {"y": labels}), F.cross_entropy(logits.mT, labels, reduction="none"))


def test_a_class_without_probability_costs_nothing_where_the_target_has_none():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]], dtype=torch.double, requires_grad=True)
    value = hard_loss(logits, {"targets": torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.double)})
    torch.testing.assert_close(value, F.cross_entropy(logits[:, :2], torch.tensor([[0.5, 0.5]], dtype=torch.double), reduction="none"))
    value.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_label_without_probability_costs_the_largest_finite_surprise():
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [-torch.inf] * 3, [3.0, 1.0, -torch.inf]], dtype=torch.double, requires_grad=True)
    value = hard_loss(logits, {"y": torch.tensor([2, 1, 0])})
    expected = [-math.log(torch.finfo(torch.double).tiny), math.log(3), math.log1p(math.exp(-2))]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.double))
    value.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.tensor([0, -100]), ValueError, r"labels: expected values in \[0, 4\], got -100"),
        (torch.tensor([0, 5]), ValueError, r"labels: expected values in \[0, 4\], got 5"),
        (torch.tensor([-1, 0]), ValueError, r"labels: expected values in \[0, 4\], got -1"),
        (torch.tensor([0]), ValueError, r"labels: expected shape \(2,\) for logits \(2, 5\), got \(1,\)"),
        (torch.tensor([0.0, 1.0]), TypeError, r"labels: expected integers, got torch.float32"),
    ],
)
def test_wrong_labels_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        hard_loss(torch.zeros(2, 5), {"y": labels})


def test_wrong_targets_are_refused():
    with pytest.raises(ValueError, match=r"targets: expected shape \(2, 5\) like logits, got \(2, 4\)"):
        hard_loss(torch.zeros(2, 5), {"targets": torch.zeros(2, 4)})
