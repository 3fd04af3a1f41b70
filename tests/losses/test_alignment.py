"""Likelihoods of chunks: sums, boundaries, merging, and the divergences."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from preceptor.losses.alignment import Divergence, boundary_log_probs, chunk_divergence, chunk_sums, log1mexp, merge_chunks

DIVERGENCES = pytest.mark.parametrize("divergence", get_args(Divergence))
ZERO_AT_AGREEMENT = ("abs", "total_variation", "reverse_kl", "limit")


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Log-likelihoods of a student and its teacher."""
    torch.manual_seed(0)
    student, teacher = -8 * torch.rand(2, 3, 7, dtype=torch.double) - 0.01
    return student, teacher


@pytest.mark.parametrize("x", [-1e-12, -1e-6, -0.3, -math.log(2), -1.0, -50.0])
def test_log1mexp_is_accurate(x):
    expected = math.log(-math.expm1(x)) if x > -math.log(2) else math.log1p(-math.exp(x))
    assert math.isclose(log1mexp(torch.tensor(x, dtype=torch.double)).item(), expected, rel_tol=1e-14)


def test_log1mexp_has_a_finite_gradient_at_both_ends():
    x = torch.tensor([-1e-12, -1e-3, -1.0, -700.0], dtype=torch.double, requires_grad=True)
    log1mexp(x).sum().backward()
    expected = [-math.exp(v) / -math.expm1(v) for v in x.tolist()]
    torch.testing.assert_close(x.grad, torch.tensor(expected, dtype=torch.double))


def reference(b: float, a: float, divergence: str, tau: float, epsilon: float) -> float:
    """One chunk, from the equations."""
    if divergence == "abs":
        return abs(a - b)
    if divergence == "limit":
        x, y = a - epsilon, b - epsilon
        return (x - y) + x * math.log(y / x)
    x, y = a / tau - epsilon, b / tau - epsilon
    p, q = math.exp(x), math.exp(y)
    return {
        "binary_ce": -(p * math.log(q) + (1 - p) * math.log(1 - q)),
        "total_variation": abs(p - q),
        "reverse_kl": q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)),
    }[divergence]


@DIVERGENCES
@pytest.mark.parametrize("tau", [1.0, 100.0])
def test_reference(pair, divergence, tau):
    values = chunk_divergence(*pair, divergence=divergence, temperature=tau, epsilon=1e-4)
    expected = [reference(b, a, divergence, tau, 1e-4) for b, a in zip(*(side.flatten().tolist() for side in pair), strict=True)]
    torch.testing.assert_close(values.flatten(), torch.tensor(expected, dtype=torch.double), rtol=1e-9, atol=1e-13)


@DIVERGENCES
def test_agreement_is_the_minimum_and_has_no_gradient(pair, divergence):
    teacher = pair[1]
    student = teacher.clone().requires_grad_()
    values = chunk_divergence(student, teacher, divergence=divergence)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert gradient.abs().max() < 1e-12
    if divergence in ZERO_AT_AGREEMENT:
        assert values.abs().max() < 1e-14
    else:
        x = teacher / 100 - 1e-6
        entropy = -(x.exp() * x - torch.expm1(x) * torch.log(-torch.expm1(x)))
        torch.testing.assert_close(values.detach(), entropy)
    for step in (0.5, -0.005):
        assert (chunk_divergence(teacher + step * teacher, teacher, divergence=divergence) > values).all()


@DIVERGENCES
@pytest.mark.parametrize("tau", [1.0, 100.0])
def test_it_falls_as_the_student_comes_nearer_from_either_side(divergence, tau):
    teacher = torch.tensor(-3.0, dtype=torch.double)
    for ladder in (torch.linspace(-9.0, -3.0, 40), torch.linspace(-0.001, -3.0, 40)):
        student = ladder.double().requires_grad_()
        values = chunk_divergence(student, teacher.expand(40), divergence=divergence, temperature=tau)
        assert (values.diff() < 0).all()
        (gradient,) = torch.autograd.grad(values.sum(), student)
        assert (gradient[:-1].sign() == (student - teacher).sign()[:-1]).all()  # below 0 exactly where the student gives too little


def test_gradient_of_the_default(pair):
    student, teacher = pair[0].requires_grad_(), pair[1]
    (gradient,) = torch.autograd.grad(chunk_divergence(student, teacher, temperature=7.0, epsilon=1e-3).sum(), student)
    x, y = teacher / 7 - 1e-3, student.detach() / 7 - 1e-3
    torch.testing.assert_close(gradient, (y.exp() - x.exp()) / (7 * (1 - y.exp())))


@pytest.mark.parametrize("divergence", ["binary_ce", "reverse_kl", "limit"])
def test_gradcheck(pair, divergence):
    student, teacher = pair
    torch.autograd.gradcheck(lambda b: chunk_divergence(b, teacher, divergence=divergence, temperature=5.0), (student.requires_grad_(),))


def test_the_teacher_gets_no_gradient(pair):
    teacher = pair[1].requires_grad_()
    assert not chunk_divergence(pair[0], teacher).requires_grad


def test_the_limit_is_the_divergence_at_a_high_temperature(pair):
    student, teacher = pair
    tau = 1e6
    apart, least = (chunk_divergence(side, teacher, temperature=tau, epsilon=1e-13) for side in (student, teacher))
    torch.testing.assert_close(tau * (apart - least), chunk_divergence(student, teacher, divergence="limit"), rtol=1e-3, atol=1e-3)


@DIVERGENCES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_certain_and_hopeless_chunks_stay_finite(divergence, dtype):
    student = torch.tensor([0.0, 0.0, -3e4, -3e4, -1e-3], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([0.0, -3e4, 0.0, -3e4, -1e-3], dtype=dtype)
    values = chunk_divergence(student, teacher, divergence=divergence)
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert torch.isfinite(torch.autograd.grad(values.sum(), student)[0]).all()


def test_chunk_sums():
    torch.manual_seed(0)
    values = torch.randn(2, 6, dtype=torch.double)
    spans = torch.tensor([[[0, 1], [1, 3], [3, 4], [5, 7]], [[0, 2], [2, 6], [0, 0], [0, 0]]])
    sums = chunk_sums(values, spans)
    for text in range(2):
        for chunk, (start, stop) in enumerate(spans[text].tolist()):
            expected = sum(values[text, u - 1].item() for u in range(max(start, 1), stop))
            assert math.isclose(sums[text, chunk].item(), expected, abs_tol=1e-12)


def test_chunk_sums_without_chunks_keep_the_graph():
    values = torch.randn(2, 5, requires_grad=True)
    for spans in (torch.zeros(2, 3, 2, dtype=torch.int64), torch.zeros(2, 0, 2, dtype=torch.int64)):
        sums = chunk_sums(values, spans)
        assert sums.shape == spans.shape[:2]
        (gradient,) = torch.autograd.grad(sums.sum(), values)
        assert (gradient == 0).all()


def test_boundaries():
    torch.manual_seed(0)
    log_probs = torch.randn(2, 4, 5, dtype=torch.double).log_softmax(-1)
    spans = torch.tensor([[[0, 1], [1, 3], [3, 5]], [[1, 2], [2, 3], [0, 0]]])
    inputs = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    ends = boundary_log_probs(log_probs, spans, torch.tensor([0, 3]), inputs=inputs)
    probability = log_probs.exp()[..., [0, 3]].sum(-1).log()
    expected = torch.zeros(2, 3, dtype=torch.double)  # 0 where the text is over, and for padding
    expected[0, 0], expected[0, 1], expected[1, 0] = probability[0, 0], probability[0, 2], probability[1, 1]
    torch.testing.assert_close(ends, expected)
    assert (boundary_log_probs(log_probs, spans, torch.arange(5)) <= 0).all()
    torch.testing.assert_close(boundary_log_probs(log_probs, spans, torch.arange(5)), torch.zeros(2, 3, dtype=torch.double))
    with pytest.raises(ValueError, match="boundary: expected at least one token that begins a word, got none"):
        boundary_log_probs(log_probs, spans, torch.zeros(0, dtype=torch.int64))


def test_merging():
    spans = torch.tensor([[0, 1, 0, 2], [1, 3, 2, 3], [3, 4, 3, 5], [0, 0, 0, 0], [4, 5, 5, 6], [6, 7, 6, 8], [7, 9, 9, 10], [0, 0, 0, 0]])
    keep = torch.tensor([False, True, False, True, False, False, False, False])
    merged = merge_chunks(spans.unsqueeze(0), keep.unsqueeze(0))[0]
    # after the second the boundary stays; a chunk that does not count, a skipped token of either side and the end close a run
    assert merged[:5].tolist() == [[0, 3, 0, 3], [3, 4, 3, 5], [4, 5, 5, 6], [6, 7, 6, 8], [7, 9, 9, 10]]
    assert (merged[5:] == 0).all()
    packed = merge_chunks(spans.unsqueeze(0), torch.ones(1, 8, dtype=torch.bool))[0]
    assert packed[:6].tolist() == spans[spans[:, 1] > 0].tolist()
    assert merge_chunks(torch.zeros(2, 0, 4, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a finite number > 0, got 0.0"),
        ({"epsilon": -1.0}, "epsilon: expected a finite number > 0, got -1.0"),
        ({"divergence": "kl"}, "divergence: expected one of binary_ce, abs, total_variation, reverse_kl, limit, got 'kl'"),
    ],
)
def test_bad_options_are_refused(pair, options, message):
    with pytest.raises(ValueError, match=message):
        chunk_divergence(*pair, **options)


def test_other_shapes_are_refused(pair):
    with pytest.raises(ValueError, match=r"teacher: expected shape \(3, 7\) like student, got \(7,\)"):
        chunk_divergence(pair[0], pair[1][0])
