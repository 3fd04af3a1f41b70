"""Decoupled distillation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from preceptor.core.state import State
from preceptor.losses.divergence import forward_kl
from preceptor.losses.hard import hard_loss
from preceptor.methods.dkd import CARD, DKD, decoupled_kl


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and labels."""
    generator = torch.Generator().manual_seed(4)
    student, teacher = 2 * torch.randn(2, 8, 5, generator=generator, dtype=torch.double)
    return student, teacher, torch.tensor([0, 1, 2, 3, 4, 2, 2, 0])


def test_defaults_are_those_of_the_card():
    method = DKD()
    assert (method.temperature, method.alpha, method.beta, method.hard_weight, method.warmup_epochs) == (4.0, 1.0, 8.0, 1.0, 20)
    assert (CARD.slug, CARD.needs) == ("dkd", ("teacher", "logits", "labels"))


def test_reference(logits):
    student, teacher, labels = logits
    tckd, nckd = decoupled_kl(student, teacher, labels, temperature=2.0)
    for i, y in enumerate(labels.tolist()):
        q, p = ([math.exp(v / 2) / sum(math.exp(w / 2) for w in z) for v in z] for z in (student[i].tolist(), teacher[i].tolist()))
        target = p[y] * math.log(p[y] / q[y]) + (1 - p[y]) * math.log((1 - p[y]) / (1 - q[y]))
        assert math.isclose(tckd[i].item(), target, rel_tol=1e-9)
        rest = [(a / (1 - p[y]), b / (1 - q[y])) for c, (a, b) in enumerate(zip(p, q, strict=True)) if c != y]
        assert math.isclose(nckd[i].item(), sum(a * math.log(a / b) for a, b in rest), rel_tol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_parts_make_up_the_divergence(logits, temperature):
    student, teacher, labels = logits
    tckd, nckd = decoupled_kl(student, teacher, labels, temperature=temperature)
    p_target = (teacher / temperature).softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    whole = forward_kl(student, teacher, temperature=temperature)
    torch.testing.assert_close(tckd + (1 - p_target) * nckd, whole, rtol=1e-11, atol=1e-13)


def test_gradient_of_the_identity(logits):
    student, teacher, labels = logits
    student.requires_grad_()
    tckd, nckd = decoupled_kl(student, teacher, labels)
    weight = 1 - (teacher / 4).softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    gradients = [torch.autograd.grad(v.sum(), student)[0] for v in (tckd + weight * nckd, forward_kl(student, teacher, temperature=4.0))]
    torch.testing.assert_close(*gradients)


def test_two_classes_have_no_part_among_the_others(logits):
    student, teacher, _ = logits
    labels = torch.arange(8) % 2
    tckd, nckd = decoupled_kl(student[:, :2], teacher[:, :2], labels)
    assert (nckd == 0).all()
    torch.testing.assert_close(tckd, forward_kl(student[:, :2], teacher[:, :2], temperature=4.0))


def test_the_target_logit_does_not_reach_the_part_among_the_others(logits):
    student, teacher, labels = logits
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(decoupled_kl(student, teacher, labels)[1].sum(), student)
    assert (gradient.gather(-1, labels[:, None]) == 0).all()
    assert gradient.abs().sum() > 0


def test_a_certain_teacher_still_teaches_about_the_others():
    teacher = torch.tensor([[60.0, 3.0, 1.0, 0.0]])
    student = torch.zeros(1, 4, requires_grad=True)
    tckd, nckd = decoupled_kl(student, teacher, torch.tensor([0]), temperature=1.0)
    torch.testing.assert_close(tckd, torch.tensor([math.log(4)]))
    torch.testing.assert_close(nckd, forward_kl(torch.zeros(1, 3), teacher[:, 1:]))
    assert torch.isfinite(torch.autograd.grad((tckd + nckd).sum(), student)[0]).all()


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.05), (9, 0.5), (19, 1.0), (200, 1.0)])
def test_warm_up(epoch, expected):
    torch.manual_seed(0)
    roles = {"student": nn.Linear(3, 4).double(), "teacher": nn.Linear(3, 4).double()}
    batch = {"x": torch.randn(5, 3, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2])}
    method = DKD(alpha=0.5, beta=3.0, hard_weight=0.25)
    state = State(total_steps=1, epoch=epoch)
    with torch.no_grad():
        signal = method.signal(batch, roles, state)
    terms = method.loss(batch, signal, roles, state)
    tckd, nckd = decoupled_kl(roles["student"](batch["x"]), roles["teacher"](batch["x"]), batch["y"])
    torch.testing.assert_close(terms["target"], expected * 16 * 0.5 * tckd)
    torch.testing.assert_close(terms["others"], expected * 16 * 3 * nckd)
    torch.testing.assert_close(terms["hard"], 0.25 * hard_loss(roles["student"](batch["x"]), batch))


def test_no_warm_up():
    roles = {"student": nn.Linear(3, 4), "teacher": nn.Linear(3, 4)}
    batch = {"x": torch.randn(5, 3), "y": torch.tensor([0, 1, 3, 2, 2])}
    signal = {"logits": roles["teacher"](batch["x"])}
    first, later = (DKD(warmup_epochs=n).loss(batch, signal, roles, State(total_steps=1, epoch=e))["others"] for n, e in ((0, 0), (20, 50)))
    torch.testing.assert_close(first, later)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature: expected a finite number > 0, got -1.0"),
        ({"beta": -1.0}, "beta: expected a number >= 0, got -1.0"),
        ({"warmup_epochs": -1}, "warmup_epochs: expected a number >= 0, got -1"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DKD(**options)


def test_wrong_input_is_refused(logits):
    student, teacher, labels = logits
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 4\], got 5"):
        decoupled_kl(student, teacher, labels + 1)
    with pytest.raises(ValueError, match="teacher: expected 5 classes like student, got 4"):
        decoupled_kl(student, teacher[:, :4], labels)
