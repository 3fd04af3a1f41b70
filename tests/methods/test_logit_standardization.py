"""Logit standardization."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from tests.parity import check_folder
from tests.test_parity import GOLDEN
from torch import Tensor, nn

from preceptor.core.state import State
from preceptor.losses.divergence import forward_kl
from preceptor.losses.hard import hard_loss
from preceptor.methods.logit_standardization import CARD, LogitStandardization, miniature, standardize_logits


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """Logits of student and teacher, 6 examples of 5 classes."""
    torch.manual_seed(0)
    return 3 * torch.randn(6, 5, dtype=torch.double), 2 + 5 * torch.randn(6, 5, dtype=torch.double)


def z_kl(student: Tensor, teacher: Tensor, **options: float) -> Tensor:
    return forward_kl(standardize_logits(student, **options), standardize_logits(teacher, **options), temperature=2.0)


def test_defaults_are_those_of_the_card():
    method = LogitStandardization()
    assert (method.temperature, method.soft_weight, method.hard_weight) == (2.0, 9.0, 0.1)
    assert (method.side, method.eps, method.ddof) == ("both", 1e-7, 1)
    assert CARD.slug == "logit-standardization"


@pytest.mark.parametrize(("ddof", "spread"), [(1, statistics.stdev), (0, statistics.pstdev)])
def test_reference(logits, ddof, spread):
    for row, got in zip(logits[0].tolist(), standardize_logits(logits[0], ddof=ddof, eps=0.01).tolist(), strict=True):
        expected = [(v - statistics.fmean(row)) / (spread(row) + 0.01) for v in row]
        assert all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("ddof", [0, 1])
def test_rows_have_mean_0_and_spread_1_and_keep_their_order(logits, ddof):
    standard = standardize_logits(logits[0], eps=0.0, ddof=ddof)
    std, mean = torch.std_mean(standard, dim=-1, correction=ddof)
    torch.testing.assert_close(mean, torch.zeros(6, dtype=torch.double), rtol=0, atol=1e-15)
    torch.testing.assert_close(std, torch.ones(6, dtype=torch.double))
    assert torch.equal(standard.argsort(dim=-1), logits[0].argsort(dim=-1))
    assert (standard.abs() <= 4 / math.sqrt(4 + ddof) + 1e-12).all()  # (C - 1) / sqrt(C) with the unbiased spread


def test_another_axis(logits):
    torch.testing.assert_close(standardize_logits(logits[0].T, dim=0), standardize_logits(logits[0]).T)


def test_scale_and_shift_of_either_side_do_not_matter(logits):
    student, teacher = logits
    a, b, c, d = torch.rand(4, 6, 1, dtype=torch.double) + 0.1
    torch.testing.assert_close(z_kl(a * student + b, c * teacher - d, eps=0.0), z_kl(student, teacher, eps=0.0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(z_kl(a * student + b, c * teacher - d), z_kl(student, teacher), rtol=1e-5, atol=1e-7)
    assert z_kl(2 * teacher + 1, teacher, eps=0.0).max() < 1e-14
    assert z_kl(-teacher, teacher).min() > 0.01
    assert (forward_kl(2 * student, teacher) - forward_kl(student, teacher)).abs().min() > 1e-3  # as they are, it does


def test_equals_distillation_with_a_temperature_for_each_example_and_side(logits):
    student, teacher = logits
    own, other = (2 * x.std(dim=-1) for x in logits)
    torch.testing.assert_close(z_kl(student, teacher, eps=0.0), forward_kl(student, teacher, temperature=own, teacher_temperature=other))


def test_the_gradient_moves_neither_mean_nor_scale(logits):
    student = logits[0].requires_grad_()
    (gradient,) = torch.autograd.grad(z_kl(student, logits[1], eps=0.0).sum(), student)
    zeros = torch.zeros(6, dtype=torch.double)
    torch.testing.assert_close(gradient.sum(-1), zeros, rtol=0, atol=1e-14)
    torch.testing.assert_close((gradient * student.detach()).sum(-1), zeros, rtol=0, atol=1e-13)
    assert gradient.abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("masked", [False, True])
def test_gradient(logits, masked):
    student, teacher = logits
    hidden = torch.zeros(6, 5, dtype=torch.bool)
    hidden[:, 3] = masked

    def loss(x: Tensor) -> Tensor:
        return z_kl(x.masked_fill(hidden, -torch.inf), teacher.masked_fill(hidden, -torch.inf))

    assert torch.autograd.gradcheck(loss, (student.requires_grad_(),))


def test_the_paper_s_two_students_change_places():
    teacher = torch.tensor([[4.0, 2.0, 1.0]])
    near, alike = torch.tensor([[2.4, 2.5, 1.4]]), torch.tensor([[40.0, 20.0, 10.0]])  # near in value, or in the right order
    assert forward_kl(near, teacher) < forward_kl(alike, teacher)
    assert z_kl(alike, teacher) < z_kl(near, teacher)


def test_masked_classes_count_in_neither_mean_nor_spread(logits):
    masked = torch.cat([logits[0], torch.full((6, 2), -torch.inf, dtype=torch.double)], dim=1).requires_grad_()
    standard = standardize_logits(masked)
    assert torch.isneginf(standard[:, 5:]).all()
    torch.testing.assert_close(standard[:, :5], standardize_logits(logits[0]))
    (gradient,) = torch.autograd.grad(standard[:, :5].square().mul(torch.arange(5)).sum(), masked)
    assert gradient.isfinite().all()
    assert (gradient[:, 5:] == 0).all()
    lonely = torch.tensor([[-torch.inf, 3.0, -torch.inf], [-torch.inf] * 3])
    assert standardize_logits(lonely).tolist() == [[-math.inf, 0.0, -math.inf], [-math.inf] * 3]


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
def test_a_row_without_spread_is_0_with_a_gradient_of_its_own_size(value):
    rows = torch.full((2, 7), value, requires_grad=True)
    standard = standardize_logits(rows)
    torch.testing.assert_close(standard, torch.zeros(2, 7), rtol=0, atol=1e-2)
    (gradient,) = torch.autograd.grad(z_kl(rows, torch.arange(7.0).expand(2, 7)).sum(), rows)
    assert 0 < gradient.abs().max() < 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_precision(dtype, size):
    torch.manual_seed(0)
    student, teacher = (torch.randn(1, 10).mul(size).clamp(-5e4, 5e4).to(dtype) for _ in range(2))
    student.requires_grad_()
    loss = z_kl(student, teacher)
    expected = z_kl(student.detach().double(), teacher.double())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3 if size < 1 else 1e-5, atol=1e-6)  # eps is 1e-4 of the smallest
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


def test_two_classes_leave_only_their_order():
    student = torch.tensor([[3.0, 1.0], [-5.0, 2.0]], dtype=torch.double, requires_grad=True)
    standard = standardize_logits(student, eps=0.0)
    torch.testing.assert_close(standard, torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.double) / math.sqrt(2))
    assert torch.autograd.grad(standard[:, 0].sum(), student)[0].abs().max() < 1e-15
    with pytest.warns(UserWarning, match="of two classes only the order is left"):
        LogitStandardization().transform(student, student.detach(), {}, State(total_steps=1))


@pytest.mark.parametrize(("side", "changed"), [("both", (True, True)), ("teacher", (False, True)), ("student", (True, False))])
def test_loss_of_the_method(logits, side, changed):
    student, teacher = logits
    roles = {"student": nn.Identity(), "teacher": nn.Module()}
    roles["teacher"].forward = lambda x: teacher
    batch = {"x": student, "y": torch.tensor([0, 1, 2, 3, 4, 0])}
    method, state = LogitStandardization(side=side, temperature=3.0), State(total_steps=1)
    terms = method.loss(batch, method.signal(batch, roles, state), roles, state)
    assert terms.keys() == {"hard", "soft"}
    torch.testing.assert_close(terms["hard"], 0.1 * hard_loss(student, batch))
    s, t = (standardize_logits(x) if yes else x for x, yes in zip(logits, changed, strict=True))
    torch.testing.assert_close(terms["soft"], 81 * forward_kl(s, t, temperature=3.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a finite number > 0, got 0.0"),
        ({"side": "none"}, "side: expected one of both, teacher, student, got 'none'"),
        ({"ddof": 2}, "ddof: expected 0 or 1, got 2"),
        ({"eps": -1.0}, "eps: expected a number >= 0, got -1.0"),
        ({"soft_weight": math.nan}, "soft_weight: expected a number >= 0, got nan"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LogitStandardization(**options)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"logits: expected at least 2 classes to standardise, got shape \(3, 1\)"):
        standardize_logits(torch.zeros(3, 1))
    assert standardize_logits(torch.ones(3, 1), ddof=0).tolist() == [[0.0]] * 3
    with pytest.raises(TypeError, match=r"logits: expected a floating-point tensor, got torch\.int64"):
        standardize_logits(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="eps: expected a number >= 0, got -1"):
        standardize_logits(torch.zeros(3, 2), eps=-1)
    with pytest.raises(ValueError, match="ddof: expected 0 or 1, got 3"):
        standardize_logits(torch.zeros(3, 2), ddof=3)
    assert standardize_logits(torch.zeros(0, 4)).shape == (0, 4)


def test_parity():
    lines = [line for line in check_folder(GOLDEN) if line.slug == "logit-standardization"]
    assert len(lines) == 2
    assert {line.status for line in lines} == {"ok"}


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-teacher", "ce", "classic-kd", "logit-standardization"}
    assert all(arm["worst"] <= arm["accuracy"] and arm["steadiness"] <= 0 for arm in run.arms.values())
    assert all(-1 <= arm["correlation"] <= 1 for arm in run.arms.values())
    assert run.arms["ce"]["steadiness"] == 0 > run.arms["classic-kd"]["steadiness"]
    assert run.arms["logit-standardization"]["steadiness"] == 0
