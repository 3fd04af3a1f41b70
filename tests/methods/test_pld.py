"""Plackett-Luce distillation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tests.parity import check_folder
from tests.test_parity import GOLDEN
from torch import Tensor, nn

from preceptor.core.state import State
from preceptor.losses.ranking import plackett_luce_nll, teacher_optimal_ranking
from preceptor.methods.pld import CARD, PLD, miniature, pld_loss


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, 6 examples of 5 classes, and labels."""
    torch.manual_seed(0)
    return *(3 * torch.randn(2, 6, 5, dtype=torch.double)), torch.tensor([0, 1, 2, 3, 4, 0])


def test_defaults_are_those_of_the_card():
    method = PLD()
    assert (method.teacher_temperature, method.weights, method.use_labels) == (1.0, "teacher", True)
    assert CARD.slug == "pld"


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_reference(logits, temperature):
    student, teacher, labels = logits
    got = pld_loss(*logits, teacher_temperature=temperature)
    for i, y in enumerate(labels.tolist()):
        s, t = student[i].tolist(), teacher[i].tolist()
        order = [y, *sorted((c for c in range(5) if c != y), key=lambda c: -t[c])]
        mass = sum(math.exp(v / temperature) for v in t)
        expected = sum(
            math.exp(t[c] / temperature) / mass * (math.log(sum(math.exp(s[d]) for d in order[k:])) - s[c]) for k, c in enumerate(order)
        )
        assert math.isclose(got[i].item(), expected, rel_tol=1e-12)


def test_shifts_and_the_names_of_classes_do_not_matter(logits):
    student, teacher, labels = logits
    expected = pld_loss(*logits)
    shift = torch.randn(2, 6, 1, dtype=torch.double)
    torch.testing.assert_close(pld_loss(student + shift[0], teacher + shift[1], labels), expected)
    order = torch.randperm(5)
    torch.testing.assert_close(pld_loss(student[:, order], teacher[:, order], order.argsort()[labels]), expected)


def test_special_weights(logits):
    student, teacher, labels = logits
    hard = F.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(pld_loss(*logits, weights="ce"), hard)
    sure = teacher.scatter(1, labels[:, None], 50.0).clamp(max=50.0) - 100 * (1 - F.one_hot(labels, 5))
    torch.testing.assert_close(pld_loss(student, sure, labels), hard, rtol=1e-12, atol=1e-12)
    ranking = teacher_optimal_ranking(teacher, labels)
    torch.testing.assert_close(5 * pld_loss(*logits, weights="uniform"), plackett_luce_nll(student, ranking))
    falling = torch.tensor([15.0, 7.0, 3.0, 1.0, 0.0], dtype=torch.double)  # 2^(C - k) - 1
    torch.testing.assert_close(pld_loss(*logits, weights="position"), plackett_luce_nll(student, ranking, falling / 26))
    given = torch.rand(6, 5, dtype=torch.double)
    torch.testing.assert_close(pld_loss(*logits, weights=given), plackett_luce_nll(student, ranking, given))
    torch.testing.assert_close(pld_loss(*logits, weights=given[0]), plackett_luce_nll(student, ranking, given[:1].expand(6, 5)))
    assert pld_loss(torch.zeros(2, 2000), torch.randn(2, 2000), torch.tensor([3, 4]), weights="position").isfinite().all()


def test_two_classes_and_one(logits):
    student, teacher, labels = logits[0][:, :2], logits[1][:, :2], logits[2] % 2
    own = teacher.softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    torch.testing.assert_close(pld_loss(student, teacher, labels), own * F.cross_entropy(student, labels, reduction="none"))
    for weights in ("teacher", "uniform", "ce", "position"):
        assert (pld_loss(student[:, :1], teacher[:, :1], labels * 0, weights=weights) == 0).all()


def test_the_teacher_counts_by_order_and_by_mass(logits):
    student, teacher, labels = logits
    swapped = teacher[:, [0, 1, 2, 4, 3]]  # in the first three examples, two classes that are no label
    assert (pld_loss(student, swapped, labels) - pld_loss(*logits))[:3].abs().min() > 1e-4
    weights = torch.rand(5, dtype=torch.double)
    torch.testing.assert_close(pld_loss(student, teacher**3 + teacher, labels, weights=weights), pld_loss(*logits, weights=weights))


def test_without_labels_the_teacher_ranks_alone(logits):
    student, teacher, _ = logits
    torch.testing.assert_close(pld_loss(student, teacher, None), pld_loss(student, teacher, teacher.argmax(-1)))


def test_it_is_convex_and_its_gradient_right(logits):
    student, teacher, labels = logits
    assert torch.autograd.gradcheck(lambda s: pld_loss(s, teacher, labels), (student.requires_grad_(),))
    row = student[0].detach()
    hessian = torch.autograd.functional.hessian(lambda s: pld_loss(s[None], teacher[:1], labels[:1]).sum(), row)
    assert torch.linalg.eigvalsh(hessian).min() > -1e-12
    torch.testing.assert_close(hessian.sum(-1), torch.zeros(5, dtype=torch.double), rtol=0, atol=1e-12)


def test_no_gradient_reaches_the_teacher(logits):
    student, teacher, labels = (x.requires_grad_() if x.is_floating_point() else x for x in logits)
    pld_loss(student, teacher, labels).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("weights", ["teacher", "each"])
def test_ignored_items_cost_nothing(logits, weights):
    student, teacher, labels = logits
    given = torch.rand(6, 5, dtype=torch.double) if weights == "each" else "teacher"
    whole = pld_loss(*logits, weights=given)
    labels = labels.clone()
    labels[[1, 4]] = -100
    student.requires_grad_()
    loss = pld_loss(student, teacher, labels, weights=given, ignore_index=-100)
    assert (loss[[1, 4]] == 0).all()
    torch.testing.assert_close(loss[[0, 2, 3, 5]], whole[[0, 2, 3, 5]])
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert (gradient[[1, 4]] == 0).all()
    assert gradient[0].abs().sum() > 0
    none = pld_loss(student, teacher, torch.full((6,), -100), ignore_index=-100)
    assert (none == 0).all()
    assert (torch.autograd.grad(none.sum(), student)[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_precision(dtype, size):
    torch.manual_seed(0)
    student, teacher = (torch.randn(1, 10).mul(size).clamp(-5e4, 5e4).to(dtype) for _ in range(2))
    student.requires_grad_()
    loss = pld_loss(student, teacher, torch.tensor([3]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss.double(), pld_loss(student.detach().double(), teacher.double(), torch.tensor([3])), rtol=1e-5, atol=1e-6
    )
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


def test_masked_classes():
    student = torch.tensor([[1.0, 0.0, -torch.inf], [0.0, 1.0, 2.0], [-torch.inf] * 3], requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0, -torch.inf], [0.5, -torch.inf, -torch.inf], [-torch.inf] * 3])
    labels = torch.tensor([1, 1, 0])
    loss = pld_loss(student, teacher, labels)
    assert loss.isfinite().all()
    torch.testing.assert_close(loss[0], pld_loss(student[:1, :2], teacher[:1, :2], labels[:1])[0])
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("weights", ["teacher", (0.5, 0.3, 0.2, 0.0)])
@pytest.mark.parametrize("use_labels", [True, False])
def test_loss_of_the_method(weights, use_labels):
    torch.manual_seed(0)
    batch = {"x": torch.randn(5, 3, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2])}
    roles, state = {"student": nn.Linear(3, 4).double(), "teacher": nn.Linear(3, 4).double()}, State(total_steps=1)
    method = PLD(teacher_temperature=2.0, weights=weights, use_labels=use_labels)
    terms = method.loss(batch, method.signal(batch, roles, state), roles, state)
    given = weights if isinstance(weights, str) else torch.tensor(weights, dtype=torch.double)
    student, teacher = (roles[role](batch["x"]) for role in ("student", "teacher"))
    expected = pld_loss(student, teacher, batch["y"] if use_labels else None, teacher_temperature=2.0, weights=given)
    assert terms.keys() == {"ranking"}
    torch.testing.assert_close(terms["ranking"], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_temperature": 0.0}, "teacher_temperature: expected a finite number > 0, got 0.0"),
        ({"weights": "equal"}, "weights: expected one of teacher, uniform, ce, position, got 'equal'"),
        ({"weights": (0.0, 0.0)}, "weights: expected a sum above 0 for every item, got weights that sum to 0"),
        ({"weights": (1.0, -0.5)}, "weights: expected finite numbers >= 0, got one of -0.5"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PLD(**options)


def test_wrong_input_is_refused(logits):
    student, teacher, labels = logits
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 4\], got 5"):
        pld_loss(student, teacher, labels + 1)
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 4\], got -1"):
        pld_loss(student, teacher, labels - 1, ignore_index=-100)
    with pytest.raises(ValueError, match="teacher: expected 5 classes like student, got 4"):
        pld_loss(student, teacher[:, :4], labels)
    with pytest.raises(ValueError, match=r"weights: expected shape \(5,\) or \(6, 5\), a number for each rank, got \(4,\)"):
        pld_loss(*logits, weights=torch.ones(4))
    with pytest.raises(ValueError, match=r"labels: expected shape \(6,\) for logits \(6, 5\), got \(5,\)"):
        pld_loss(student, teacher, labels[:5], ignore_index=-100)


def test_parity():
    lines = [line for line in check_folder(GOLDEN) if line.slug == "pld"]
    assert len(lines) == 2
    assert {line.status for line in lines} == {"ok"}


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-teacher", "ce", "classic-kd", "uniform", "sharp", "pld"}
    assert all(math.isfinite(value) for arm in run.arms.values() for value in arm.values())
