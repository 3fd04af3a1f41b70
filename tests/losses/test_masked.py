"""Divergences of logits with value and gradient in one pass: equal to those that autograd makes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from preceptor.losses.divergence import DIVERGENCES
from preceptor.losses.masked import masked_divergence
from preceptor.metrics.cost import peak_tensor_mb

KINDS = list(DIVERGENCES)


def pair(*shape: int, dtype: torch.dtype = torch.double) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, *shape, dtype=dtype, generator=generator)
    return student.requires_grad_(), teacher


def compare(student, teacher, kind, weights, *, mask=None, **options):
    ours = masked_divergence(student, teacher, kind=kind, mask=mask, **options)
    plain = DIVERGENCES[kind](student, teacher, **options)
    if mask is not None:
        plain = torch.where(mask != 0, plain, 0.0)
    torch.testing.assert_close(ours, plain)
    gradients = [torch.autograd.grad((value * weights).sum(), student)[0] for value in (ours, plain)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_values_and_gradients_are_those_of_the_plain_divergence(kind, temperature):
    student, teacher = pair(3, 5, 11)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    weights = torch.rand(3, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    compare(student, teacher, kind, weights, mask=mask, temperature=temperature)
    compare(student, teacher, kind, weights, temperature=temperature)


@pytest.mark.parametrize("kind", KINDS)
def test_many_blocks(kind):
    student, teacher = pair(40, 20_000)
    compare(student, teacher, kind, torch.arange(40.0, dtype=torch.double), mask=torch.arange(40) % 3 != 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_classes_that_cannot_be(kind, side):
    student, teacher = pair(4, 7)
    cannot = torch.zeros(4, 7, dtype=torch.bool)
    cannot[0, 2] = cannot[1, 3:] = cannot[2] = True  # the third item has no class left
    if side != "teacher":
        student = student.detach().masked_fill(cannot, -math.inf).requires_grad_()
    if side != "student":
        teacher = teacher.masked_fill(cannot, -math.inf)
    compare(student, teacher, kind, torch.ones(4, dtype=torch.double))


def test_the_share_is_handed_on():
    student, teacher = pair(4, 7)
    found = masked_divergence(student, teacher, kind="generalized_jsd", share=0.2)
    torch.testing.assert_close(found, DIVERGENCES["generalized_jsd"](student, teacher, beta=0.2))


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "generalized_jsd"])
def test_gradcheck(kind):
    student, teacher = pair(3, 5)
    assert torch.autograd.gradcheck(lambda s: masked_divergence(s, teacher, kind=kind), student)


def test_nothing_of_the_size_of_the_logits_beside_their_gradient():
    student, teacher = pair(64, 50_000, dtype=torch.float)
    size = student.numel() * 4 / 1e6
    mask = torch.arange(64) % 2 == 0
    ours = peak_tensor_mb(lambda: masked_divergence(student, teacher, mask=mask).sum().backward())
    student.grad = None
    plain = peak_tensor_mb(lambda: DIVERGENCES["forward_kl"](student, teacher).sum().backward())
    assert ours < 2.7 * size < 4 * size < plain  # one gradient, scaled once, and some rows


def test_no_gradient_is_made_where_none_is_wanted():
    student, teacher = pair(3, 5)
    with torch.no_grad():
        assert not masked_divergence(student, teacher).requires_grad
    assert not masked_divergence(student.detach(), teacher).requires_grad


def test_mixed_precision_leaves_float32_alone():
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    for kind, divergence in (("forward_kl", DIVERGENCES["forward_kl"]), ("reverse_kl", DIVERGENCES["reverse_kl"])):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = masked_divergence(student.requires_grad_(), teacher, kind=kind)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, divergence(student, teacher))


def test_empty_and_half_precision():
    student, teacher = pair(0, 5)
    assert masked_divergence(student, teacher).shape == (0,)
    student, teacher = pair(3, 5)
    half = student.detach().bfloat16().requires_grad_()
    found = masked_divergence(half, teacher.bfloat16())
    torch.testing.assert_close(found, DIVERGENCES["forward_kl"](half, teacher.bfloat16()))
    found.sum().backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kind": "kl"}, "kind: expected one of forward_kl"),
        ({"share": 0.5}, "share: expected None for forward_kl, got 0.5"),
        ({"mask": torch.ones(2)}, r"mask: expected shape \(3,\)"),
        ({"temperature": 0.0}, "temperature: expected"),
    ],
)
def test_bad_arguments(options, expected):
    student, teacher = pair(3, 5)
    with pytest.raises(ValueError, match=expected):
        masked_divergence(student, teacher, **options)
    with pytest.raises(ValueError, match="teacher"):
        masked_divergence(student, teacher[:2])
