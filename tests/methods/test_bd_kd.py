"""Balanced divergences for online distillation."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.losses.divergence import forward_kl, reverse_kl
from preceptor.methods.bd_kd import BDKD, CARD, balanced_divergence, miniature
from preceptor.methods.mutual import Mutual
from preceptor.metrics.calibration import ece
from preceptor.models.reference import MLP
from preceptor.teachers.cache import from_cache

SIZES = {
    "large": lambda n, c: torch.randn(n, c).sign() * 1e4,
    "equal": torch.zeros,
    "sure": lambda n, c: 1e4 * torch.eye(c)[torch.arange(n) % c],
    "ordinary": lambda n, c: 3 * torch.randn(n, c),
}


@pytest.fixture
def world() -> tuple[dict, dict, State]:
    """A batch, a student with a teacher that learns, and a state."""
    torch.manual_seed(0)
    batch = {"x": torch.randn(5, 3, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2]), "id": torch.arange(5)}
    roles = {"student": nn.Linear(3, 4).double(), "online_teacher": MLP(inputs=3, hidden=(6,), classes=4).double()}
    return batch, roles, State(total_steps=1)


def logits(n: int = 40, c: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, c, dtype=torch.double) * torch.linspace(0.1, 4, n, dtype=torch.double)[:, None], torch.randn(n, c).double()


def entropy(z: torch.Tensor, temperature: float) -> torch.Tensor:
    return torch.distributions.Categorical(logits=z / temperature).entropy()


def softmax(z: list[float], temperature: float) -> list[float]:
    total = sum(math.exp(v / temperature) for v in z)
    return [math.exp(v / temperature) / total for v in z]


def test_defaults_are_those_of_the_card():
    method = BDKD()
    assert (method.temperature, method.gamma, method.weight, method.teacher_weight) == (4.0, 2.0, 1.0, 1.0)
    assert (method.kappa, method.reverse, method.online) == (None, 1.0, True)
    assert (CARD.slug, CARD.kind) == ("bd-kd", "online")


@pytest.mark.parametrize("kappa", [None, 0.3])
def test_reference(world, kappa):
    batch, roles, state = world
    method = BDKD(temperature=2.0, gamma=3.0, weight=0.7, teacher_weight=0.4, kappa=kappa)
    terms = method.loss(batch, {}, roles, state)
    seen = set()
    for i, y in enumerate(batch["y"].tolist()):
        z = {role: roles[role](batch["x"][i : i + 1])[0].tolist() for role in roles}
        q, p = (softmax(z[role], 2.0) for role in ("student", "online_teacher"))
        h_q, h_p = (-sum(v * math.log(v) for v in x) for x in (q, p))
        forward = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        reverse = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        if kappa is None:
            d, n = (3.0, 1.0) if h_q < h_p else (1.0, 3.0)
        else:
            d, n = (1 + 2 / (1 + math.exp(-sign * (h_p - h_q) / kappa)) for sign in (1, -1))
        seen.add(d > n)
        wanted = {
            "hard": -math.log(softmax(z["student"], 1.0)[y]),
            "balanced": 0.7 * 4 * (d * forward + n * reverse),
            "teacher_hard": -math.log(softmax(z["online_teacher"], 1.0)[y]),
            "teacher_mutual": 0.4 * 4 * reverse,
        }
        assert terms.keys() == wanted.keys()
        for name, value in wanted.items():
            assert math.isclose(terms[name][i].item(), value, rel_tol=1e-9), name
    assert seen == {True, False}


def test_networks_that_agree_have_nothing_to_teach():
    student, _ = logits()
    student.requires_grad_()
    found = balanced_divergence(student, student)
    assert (found.loss == 0).all()
    assert (found.forward_weight == 1).all()
    assert (found.reverse_weight == 1).all()
    (gradient,) = torch.autograd.grad(found.loss.sum(), student)
    assert gradient.abs().max() < 1e-15


def test_equal_entropies_of_different_predictions_raise_nothing():
    teacher = torch.tensor([[2.0, 0.0]], dtype=torch.double)
    found = balanced_divergence(teacher.roll(1, dims=-1), teacher, temperature=1.0)  # two classes exchanged: the same entropy to the bit
    assert found.loss > 0.5
    torch.testing.assert_close(found.forward_weight, torch.ones(1, dtype=torch.double))
    smooth = balanced_divergence(teacher.roll(1, dims=-1), teacher, temperature=1.0, gamma=3.0, kappa=0.1)
    torch.testing.assert_close(smooth.forward_weight, torch.full((1,), 2.0, dtype=torch.double))


def test_without_balance_it_is_the_symmetric_divergence_of_jeffreys():
    student, teacher = logits()
    p, q = teacher.div(4).softmax(-1), student.div(4).softmax(-1)
    found = balanced_divergence(student, teacher, gamma=1.0).loss
    torch.testing.assert_close(found, ((p - q) * (p.log() - q.log())).sum(-1))
    torch.testing.assert_close(found, balanced_divergence(teacher, student, gamma=1.0).loss)


def test_the_surer_network_decides_which_divergence_is_raised():
    student, teacher = logits()
    surer = entropy(student, 4.0) < entropy(teacher, 4.0)
    assert surer.any()
    assert not surer.all()
    found, swapped = balanced_divergence(student, teacher, gamma=3.0), balanced_divergence(teacher, student, gamma=3.0)
    assert torch.equal(found.forward_weight, torch.where(surer, 3.0, 1.0).double())
    assert torch.equal(found.reverse_weight, torch.where(surer, 1.0, 3.0).double())
    assert torch.equal(swapped.forward_weight, found.reverse_weight)
    assert torch.equal(swapped.reverse_weight, found.forward_weight)
    wanted = found.forward_weight * forward_kl(student, teacher, temperature=4.0) + found.reverse_weight * reverse_kl(
        student, teacher, temperature=4.0
    )
    torch.testing.assert_close(found.loss, wanted)


def test_neither_a_shift_of_logits_nor_the_order_of_classes_matters():
    student, teacher = logits()
    found = balanced_divergence(student, teacher)
    order = torch.randperm(6)
    for other in (balanced_divergence(student + 7, teacher - 3), balanced_divergence(student[:, order], teacher[:, order])):
        assert torch.equal(other.forward_weight, found.forward_weight)
        assert torch.equal(other.reverse_weight, found.reverse_weight)
        torch.testing.assert_close(other.loss, found.loss)


def test_a_student_made_surer_turns_the_weights_where_the_entropies_meet():
    student, teacher = torch.tensor([[1.0, 0.2, -0.5]], dtype=torch.double), torch.tensor([[0.0, 2.0, -1.0]], dtype=torch.double)
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(middle * student, 4.0) > entropy(teacher, 4.0) else (low, middle)
    for scale, d, n in ((low - 1e-6, 1.0, 2.0), (high + 1e-6, 2.0, 1.0)):
        found = balanced_divergence(scale * student, teacher)
        assert (found.forward_weight.item(), found.reverse_weight.item()) == (d, n)


def test_of_two_classes_it_is_the_closed_form():
    a, b = torch.tensor([0.5, -3.0, 2.0, 0.1]).double(), torch.tensor([2.0, 1.0, -0.3, 0.0]).double()
    found = balanced_divergence(torch.stack((a, 0 * a), -1), torch.stack((b, 0 * b), -1), temperature=1.0)
    p, q = torch.sigmoid(b), torch.sigmoid(a)
    lift = torch.nn.functional.softplus(a) - torch.nn.functional.softplus(b)  # log of the ratio of the second class, teacher to student
    forward, reverse = p * (b - a) + lift, q * (a - b) - lift
    d = torch.where(a.abs() > b.abs(), 2.0, 1.0)  # of two classes the larger gap is the surer one
    torch.testing.assert_close(found.forward_weight, d.double())
    torch.testing.assert_close(found.loss, d * forward + (3 - d) * reverse)


def test_smooth_weights_tend_to_the_rule_and_to_equal_ones():
    student, teacher = logits()
    rule = balanced_divergence(student, teacher, gamma=3.0)
    narrow, wide = (balanced_divergence(student, teacher, gamma=3.0, kappa=kappa) for kappa in (1e-6, 1e6))
    torch.testing.assert_close(narrow.forward_weight, rule.forward_weight)
    torch.testing.assert_close(narrow.reverse_weight, rule.reverse_weight)
    torch.testing.assert_close(wide.forward_weight, torch.full((40,), 2.0).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("gamma", [1.0, 2.5])
def test_gradient(gamma):
    student, teacher = logits(8)
    assert torch.autograd.gradcheck(lambda s: balanced_divergence(s, teacher, gamma=gamma).loss, (student.requires_grad_(),))


def test_weights_are_constants_also_where_they_are_smooth():
    student, teacher = logits()
    student.requires_grad_()
    found = balanced_divergence(student, teacher, kappa=0.2)
    assert not found.forward_weight.requires_grad
    assert not found.reverse_weight.requires_grad
    parts = [kl(student, teacher, temperature=4.0) for kl in (forward_kl, reverse_kl)]
    wanted = sum((w * part).sum() for w, part in zip(found[1:], parts, strict=True))
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (found.loss.sum(), wanted)))


@pytest.mark.parametrize("own", ["student", "online_teacher"])
def test_each_network_s_loss_teaches_that_network_alone(world, own):
    batch, roles, state = world
    terms = BDKD().loss(batch, {}, roles, state)
    names = ("hard", "balanced") if own == "student" else ("teacher_hard", "teacher_mutual")
    (other,) = roles.keys() - {own}
    for name in names:
        for role, learns in ((own, True), (other, False)):
            gradients = torch.autograd.grad(terms[name].sum(), list(roles[role].parameters()), allow_unused=True, retain_graph=True)
            assert all((gradient is not None and bool(gradient.any())) == learns for gradient in gradients), (name, role)


def test_at_temperature_1_without_balance_and_reverse_term_it_is_mutual_learning_to_the_bit(world):
    batch, roles, _ = world
    twins = {"student": copy.deepcopy(roles["student"]), "peer": copy.deepcopy(roles["online_teacher"])}
    for method, networks in ((BDKD(temperature=1.0, gamma=1.0, reverse=0.0), roles), (Mutual(), twins)):
        train(method, networks, [batch], torch.optim.Adam([p for role in networks.values() for p in role.parameters()], 0.1), steps=20)
    for ours, theirs in zip(roles.values(), twins.values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_teacher_that_is_taught_nothing_learns_as_if_alone(world):
    batch, roles, state = world
    terms = BDKD(teacher_weight=0.0).loss(batch, {}, roles, state)
    assert (terms["teacher_mutual"] == 0).all()
    alone = nn.functional.cross_entropy(roles["online_teacher"](batch["x"]), batch["y"], reduction="none")
    torch.testing.assert_close(terms["teacher_hard"], alone)


def test_the_teacher_that_learns_has_the_given_one_s_form_and_weights_of_its_own(world):
    batch, roles, _ = world
    given = MLP(inputs=3, hidden=(6,), classes=4).requires_grad_(False)
    made = BDKD().extra_roles({"student": roles["student"], "teacher": given}, batch)["online_teacher"]
    assert [p.shape for p in made.parameters()] == [p.shape for p in given.parameters()]
    assert all(p.requires_grad for p in made.parameters())  # a frozen teacher is the usual one
    assert not any(torch.equal(a, b) for a, b in zip(made.parameters(), given.parameters(), strict=True))
    assert BDKD().extra_roles({**roles, "teacher": given}, batch) == {}  # the user's own is kept


def test_a_frozen_teacher_is_used_as_it_is_given(world):
    batch, roles, state = world
    given = {"student": roles["student"], "teacher": roles["online_teacher"]}
    method = BDKD(online=False)
    assert method.extra_roles(given, batch) == {}
    before = copy.deepcopy(given)
    train(method, given, [batch], torch.optim.SGD(given["student"].parameters(), 0.3), steps=2)
    assert all(torch.equal(a, b) for a, b in zip(given["teacher"].parameters(), before["teacher"].parameters(), strict=True))
    assert not torch.equal(given["student"].weight, before["student"].weight)
    online, offline = BDKD().loss(batch, {}, roles, state), method.loss(batch, method.signal(batch, given, state), given, state)
    assert offline.keys() == {"hard", "balanced"}
    assert all(torch.equal(offline[name], online[name]) for name in offline)


def test_a_cache_cannot_hold_what_a_teacher_says_while_it_learns():
    cache = type("Named", (), {"spec": type("Spec", (), {"kind": "logits", "k": None})(), "folder": "kept"})()
    with pytest.raises(ValueError, match=r"cache kept: expected online False of BDKD, to learn from a cache, got True"):
        from_cache(BDKD(), cache)
    assert from_cache(BDKD(online=False), cache) == BDKD(online=False)


@pytest.mark.parametrize(("one", "other"), list(itertools.product(SIZES, SIZES)))
@pytest.mark.parametrize("kappa", [None, 0.5])
def test_finite_at_any_size_of_logits(one, other, kappa):
    torch.manual_seed(0)
    student = SIZES[one](6, 5).requires_grad_()
    found = balanced_divergence(student, SIZES[other](6, 5), temperature=1.0, kappa=kappa)
    (gradient,) = torch.autograd.grad(found.loss.sum(), student)
    assert all(value.isfinite().all() for value in (*found, gradient))
    assert (found.loss >= 0).all()


def test_a_very_sure_teacher_does_not_make_the_reverse_divergence_explode():
    student, teacher = torch.zeros(1, 3), torch.tensor([[1e4, 0.0, 0.0]])
    found = balanced_divergence(student, teacher, temperature=1.0)
    # KL(q || p) with log p at least -30: 2/3 of 30, less the student's entropy; the teacher is the surer one
    assert math.isclose(found.loss.item(), math.log(3) + 2 * (20 - math.log(3)), rel_tol=1e-6)


@pytest.mark.parametrize("masked", ["student", "teacher", "both"])
def test_masked_classes_stay_finite(masked):
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    for name, z in (("student", student), ("teacher", teacher)):
        if masked in (name, "both"):
            z[:, 4] = -torch.inf
    found = balanced_divergence(student.requires_grad_(), teacher)
    (gradient,) = torch.autograd.grad(found.loss.sum(), student)
    assert all(value.isfinite().all() for value in (*found, gradient))
    if masked == "both":
        torch.testing.assert_close(found.loss, balanced_divergence(student[:, :4], teacher[:, :4]).loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    student, teacher = (z.to(dtype) for z in logits())
    found, wanted = balanced_divergence(student, teacher), balanced_divergence(student.float(), teacher.float())
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


def test_one_example_is_a_row_of_many_none_is_none_and_one_class_says_nothing():
    student, teacher = logits()
    whole = balanced_divergence(student.view(4, 10, 6), teacher.view(4, 10, 6))
    assert whole.loss.shape == (4, 10)
    torch.testing.assert_close(balanced_divergence(student[:1], teacher[:1]).loss, whole.loss[0, :1])
    assert balanced_divergence(student[:0], teacher[:0]).loss.shape == (0,)
    assert (balanced_divergence(student[:, :1], teacher[:, :1]).loss == 0).all()


def test_bad_input_is_refused():
    z = torch.zeros(2, 3)
    for options, message in (
        ({"gamma": 0.5}, r"^gamma: expected at least 1, got 0\.5$"),
        ({"gamma": math.inf}, r"^gamma: expected a finite number > 0, got inf$"),
        ({"kappa": 0.0}, r"^kappa: expected a finite number > 0, got 0\.0$"),
        ({"reverse": -1.0}, r"^reverse: expected a number >= 0, got -1\.0$"),
        ({"temperature": 0.0}, r"^temperature: expected a finite number > 0, got 0\.0$"),
    ):
        with pytest.raises(ValueError, match=message):
            BDKD(**options)
        with pytest.raises(ValueError, match=message):
            balanced_divergence(z, z, **options)
    for options, message in (
        ({"weight": 0.0}, r"^weight: expected a finite number > 0, got 0\.0$"),
        ({"teacher_weight": -1.0}, r"^teacher_weight: expected a number >= 0, got -1\.0$"),
    ):
        with pytest.raises(ValueError, match=message):
            BDKD(**options)
    with pytest.raises(ValueError, match=r"^teacher: expected 3 classes like student, got 4$"):
        balanced_divergence(z, torch.zeros(2, 4))
    with pytest.raises(TypeError, match=r"^teacher: expected a floating-point tensor, got torch\.int64$"):
        balanced_divergence(z, z.long())


def test_the_calibration_error_that_judges_it():
    generator = torch.Generator().manual_seed(0)
    errors = []
    for n in (1_000, 100_000):  # labels drawn from what is predicted: perfect calibration
        predicted = torch.randn(n, 4, generator=generator)
        errors.append(float(ece(predicted, predicted.softmax(-1).multinomial(1, generator=generator)[:, 0])))
    assert errors[1] < 0.01 < errors[0]
    always_sure = 50 * torch.eye(2)[torch.zeros(100, dtype=torch.int64)]
    assert math.isclose(ece(always_sure, torch.arange(100) % 2), 0.5, rel_tol=1e-9)


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-teacher", "ce", "mutual", "mutual-t4", "unbalanced", "even", "bd-kd"}
    assert all(math.isfinite(value) for arm in run.arms.values() for value in arm.values())
    assert run == miniature(1, "smoke")
