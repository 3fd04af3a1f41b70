"""Losses from a few classes of the teacher: limits, a slow reference, gradients, and the fused versions beside them."""

import math

import pytest
import torch

from preceptor.losses.divergence import forward_kl
from preceptor.losses.linear import linear_sparse_cross_entropy, linear_topk_kl
from preceptor.losses.sparse import signal_kl, sparse_cross_entropy, topk_kl
from preceptor.models.heads import Head


def logits(*shape, seed=0):
    return 2 * torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def top(teacher, k, temperature=1.0):
    log_p = (teacher / temperature).log_softmax(-1)
    values, indices = log_p.topk(k, dim=-1)
    return indices, values


@pytest.mark.parametrize("tail", [False, True])
def test_all_classes_are_the_full_kl(tail):
    student, teacher = logits(2, 4, 3, 7)
    found = topk_kl(student, *top(teacher, 7, 2.0), tail=tail, temperature=2.0)
    torch.testing.assert_close(found, forward_kl(student, teacher, temperature=2.0))


@pytest.mark.parametrize("tail", [False, True])
def test_it_is_a_divergence_below_the_full_one(tail):
    student, teacher = logits(2, 50, 9)
    indices, values = top(teacher, 3)
    found = topk_kl(student, indices, values, tail=tail)
    assert (found >= 0).all()
    torch.testing.assert_close(topk_kl(student + 3, indices, values, tail=tail), found)
    if tail:
        assert (found <= forward_kl(student, teacher) + 1e-12).all()
        torch.testing.assert_close(topk_kl(teacher, indices, values, tail=True), torch.zeros(50, dtype=torch.double))
        torch.testing.assert_close(topk_kl(student, *top(teacher, 8), tail=True), forward_kl(student, teacher))  # a bucket of one class


def test_reference():
    student, teacher = logits(2, 5, 6)
    indices, values = top(teacher, 2)
    for n in range(5):
        p = [math.exp(v) for v in values[n].tolist()]
        weight = [math.exp(z) for z in student[n].tolist()]
        q = [weight[i] / sum(weight) for i in indices[n].tolist()]
        bucket = sum(a * math.log(a / b) for a, b in zip([*p, 1 - sum(p)], [*q, 1 - sum(q)], strict=True))
        renormalised = sum(a / sum(p) * math.log(a / sum(p) / b) for a, b in zip(p, q, strict=True))
        assert math.isclose(topk_kl(student, indices, values, tail=True)[n].item(), bucket, rel_tol=1e-9)
        assert math.isclose(topk_kl(student, indices, values)[n].item(), renormalised, rel_tol=1e-9)
        crossed = -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
        assert math.isclose(sparse_cross_entropy(student, indices, values.exp())[n].item(), crossed, rel_tol=1e-9)


def test_gradient():
    student, teacher = logits(2, 3, 5)
    student.requires_grad_()
    indices, values = top(teacher, 2)
    for tail in (False, True):
        assert torch.autograd.gradcheck(lambda s, tail=tail: topk_kl(s, indices, values, tail=tail, temperature=2.0), (student,))
    assert torch.autograd.gradcheck(lambda s: sparse_cross_entropy(s, indices, values.exp(), temperature=0.5), (student,))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_fused_ones_agree(temperature):
    hidden, weight = logits(4, 3, 5), logits(11, 5, seed=1)
    indices, values = top(logits(4, 3, 11, seed=2), 4)
    student = hidden @ weight.T
    head = Head(weight)
    for tail in (False, True):
        torch.testing.assert_close(
            topk_kl(student, indices, values, tail=tail, temperature=temperature),
            linear_topk_kl(hidden, head, indices, values, tail=tail, temperature=temperature),
        )
    torch.testing.assert_close(
        sparse_cross_entropy(student, indices, values.exp(), temperature=temperature),
        linear_sparse_cross_entropy(hidden, head, indices, values.exp(), temperature=temperature),
    )


def test_classes_that_cannot_be_and_half_precision_stay_finite():
    student, teacher = logits(2, 6, 8)
    student[:, 0] = teacher[:, :5] = -torch.inf
    student.requires_grad_()
    indices, values = top(teacher, 4)
    for tail in (False, True):
        for dtype in (torch.double, torch.bfloat16):
            found = topk_kl(student.to(dtype), indices, values.to(dtype), tail=tail)
            assert found.isfinite().all()
            (gradient,) = torch.autograd.grad(found.sum(), student)
            assert gradient.isfinite().all()


def test_a_signal_says_which_loss_it_is():
    student, teacher = logits(2, 4, 6)
    indices, values = top(teacher, 3, 2.0)
    found = signal_kl(student, {"top_indices": indices, "top_logprobs": values, "tail": None}, temperature=2.0)
    assert torch.equal(found, topk_kl(student, indices, values, tail=True, temperature=2.0))
    found = signal_kl(student, {"sample_indices": indices, "sample_weights": values.exp()}, temperature=2.0)
    assert torch.equal(found, sparse_cross_entropy(student, indices, values.exp(), temperature=2.0))
    assert torch.equal(signal_kl(student, {"logits": teacher}, temperature=2.0), forward_kl(student, teacher, temperature=2.0))


@pytest.mark.parametrize(
    ("indices", "values", "error", "words"),
    [
        (torch.zeros(4, 2), torch.zeros(4, 2), TypeError, "indices: expected integers"),
        (torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 3), ValueError, r"expected shape \(4,\) \+ \(k,\)"),
        (torch.full((4, 2), 6), torch.zeros(4, 2), ValueError, r"expected values in \[0, 5\], got 6"),
        (torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 2, dtype=torch.int64), TypeError, "values: expected a floating-point"),
    ],
)
def test_bad_input(indices, values, error, words):
    for loss in (topk_kl, sparse_cross_entropy):
        with pytest.raises(error, match=words):
            loss(torch.zeros(4, 6), indices, values)
