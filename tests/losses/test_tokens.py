"""Shifting logits, labels and mask together."""

from __future__ import annotations

import pytest
import torch

from preceptor.losses.divergence import forward_kl
from preceptor.losses.tokens import shift_tokens


def test_each_position_predicts_the_next_token():
    labels = torch.tensor([[5, 6, 7, -100], [1, -100, 3, 4]])
    logits = torch.arange(2 * 4 * 8, dtype=torch.double).reshape(2, 4, 8)
    targets, counts, (shifted,) = shift_tokens(labels, logits)
    assert torch.equal(targets, torch.tensor([[6, 7, 0], [0, 3, 4]]))
    assert torch.equal(counts, torch.tensor([[True, True, False], [False, True, True]]))
    assert torch.equal(shifted, logits[:, :3])


def test_the_mask_moves_with_the_labels_and_joins_them():
    labels, mask = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 0, 1, 1]])
    _, counts, _ = shift_tokens(labels, mask=mask)
    assert counts.tolist() == [[False, True, True]]
    assert shift_tokens(labels, mask=mask, ignore_index=4)[1].tolist() == [[False, True, False]]


def test_only_the_logits_before_counted_tokens_get_a_gradient():
    student = torch.randn(2, 5, 4, dtype=torch.double, requires_grad=True)
    teacher = torch.randn(2, 5, 4, dtype=torch.double)
    labels = torch.tensor([[-100, -100, 2, 1, -100], [0, 1, 2, 3, -100]])
    _, counts, (s, t) = shift_tokens(labels, student, teacher)
    (forward_kl(s, t) * counts).sum().backward()
    assert student.grad is not None
    moved = student.grad.abs().sum(-1) > 0
    assert moved.tolist() == [[False, True, True, False, False], [True, True, True, False, False]]


def test_right_padding_changes_nothing():
    student, teacher = torch.randn(2, 3, 4, 6, dtype=torch.double)
    labels = torch.randint(6, (3, 4))
    padding = torch.randn(3, 2, 6, dtype=torch.double)
    _, counts, (s, t) = shift_tokens(labels, student, teacher)
    _, more, (ps, pt) = shift_tokens(
        torch.cat([labels, torch.full((3, 2), -100)], 1), torch.cat([student, padding], 1), torch.cat([teacher, -padding], 1)
    )
    torch.testing.assert_close((forward_kl(ps, pt) * more).sum() / more.sum(), (forward_kl(s, t) * counts).sum() / counts.sum())


def test_one_token_predicts_nothing():
    targets, counts, (logits,) = shift_tokens(torch.tensor([[3]]), torch.randn(1, 1, 4))
    assert targets.shape == counts.shape == (1, 0)
    assert logits.shape == (1, 0, 4)


def test_shapes_that_do_not_fit_are_refused():
    labels = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"logits 1: expected shape \(2, 4\) \+ \(vocabulary,\) like labels, got \(2, 3, 5\)"):
        shift_tokens(labels, torch.zeros(2, 4, 5), torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 4\) like labels, got \(2, 3\)"):
        shift_tokens(labels, mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="at least one token"):
        shift_tokens(torch.zeros(2, 0, dtype=torch.int64))
