"""Hinton's distillation."""

from __future__ import annotations

import math

import pytest
import torch
from tests.parity import check_folder
from tests.test_parity import GOLDEN
from torch import nn

from preceptor.core.state import State
from preceptor.losses.hard import hard_loss
from preceptor.methods.classic_kd import CARD, ClassicKD


@pytest.fixture
def world() -> tuple[dict, dict, State]:
    """A batch, a student with its teacher, and a state."""
    torch.manual_seed(0)
    batch = {"x": torch.randn(5, 3, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2]), "id": torch.arange(5)}
    return batch, {"student": nn.Linear(3, 4).double(), "teacher": nn.Linear(3, 4).double()}, State(total_steps=1)


def terms_of(method: ClassicKD, world: tuple[dict, dict, State]) -> dict[str, torch.Tensor]:
    batch, roles, state = world
    with torch.no_grad():
        signal = method.signal(batch, roles, state)
    return method.loss(batch, signal, roles, state)


def test_defaults_are_those_of_the_card():
    method = ClassicKD()
    assert (method.temperature, method.alpha) == (4.0, 0.9)
    assert (CARD.slug, CARD.needs) == ("classic-kd", ("teacher", "logits", "labels"))


def test_reference(world):
    batch, roles, _ = world
    terms = terms_of(ClassicKD(temperature=3.0, alpha=0.7), world)
    assert terms.keys() == {"hard", "soft"}
    for i, y in enumerate(batch["y"].tolist()):
        s, t = (roles[role](batch["x"][i]).tolist() for role in ("student", "teacher"))
        q, p = ([math.exp(v / 3) / sum(math.exp(w / 3) for w in z) for v in z] for z in (s, t))
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert math.isclose(terms["soft"][i].item(), 0.7 * 9 * kl, rel_tol=1e-9)
        hard = -s[y] + math.log(sum(map(math.exp, s)))
        assert math.isclose(terms["hard"][i].item(), 0.3 * hard, rel_tol=1e-9)


def test_row_gradient(world):
    batch, roles, _ = world
    student_logits = roles["student"](batch["x"]).detach().requires_grad_()
    roles["student"] = nn.Module()
    roles["student"].forward = lambda x: student_logits
    terms_of(ClassicKD(), world)["soft"].sum().backward()
    q, p = ((z / 4).softmax(-1) for z in (student_logits.detach(), roles["teacher"](batch["x"]).detach()))
    torch.testing.assert_close(student_logits.grad, 0.9 * 4 * (q - p))


def test_a_student_equal_to_its_teacher_learns_from_labels_alone(world):
    batch, roles, _ = world
    roles["student"].load_state_dict(roles["teacher"].state_dict())
    with torch.no_grad():
        roles["student"].bias += 3.0  # a shift of all logits changes no prediction
    terms = terms_of(ClassicKD(), world)
    assert terms["soft"].abs().max() < 1e-14
    torch.testing.assert_close(terms["hard"], 0.1 * hard_loss(roles["student"](batch["x"]), batch))


def test_alpha_ends(world):
    batch, roles, _ = world
    ends = terms_of(ClassicKD(alpha=0.0), world)
    assert (ends["soft"] == 0).all()
    torch.testing.assert_close(ends["hard"], hard_loss(roles["student"](batch["x"]), batch))
    assert (terms_of(ClassicKD(alpha=1.0), world)["hard"] == 0).all()


def test_gradients_stop_at_the_teacher(world):
    batch, roles, state = world
    method = ClassicKD()
    terms = method.loss(batch, method.signal(batch, roles, state), roles, state)
    (terms["hard"] + terms["soft"]).sum().backward()
    assert roles["teacher"].weight.grad is None
    assert roles["student"].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a finite number > 0, got 0.0"),
        ({"alpha": 1.1}, r"alpha: expected a number in \[0, 1\], got 1.1"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ClassicKD(**options)


def test_teacher_with_other_classes_is_refused(world):
    world[1]["teacher"] = nn.Linear(3, 7).double()
    with pytest.raises(ValueError, match="teacher: expected 4 classes like student, got 7"):
        terms_of(ClassicKD(), world)


def test_parity():
    lines = [line for line in check_folder(GOLDEN) if line.slug == "classic-kd"]
    assert len(lines) == 10
    assert {line.status for line in lines} == {"ok"}
