"""MTARD."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.parity import check_case, load_adapter
from torch import nn

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.losses.divergence import forward_kl
from preceptor.methods.mtard import CARD, MTARD, miniature, soft_target_loss, softened_entropy
from preceptor.models.reference import MLP


def logits(seed=0):
    return torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.double) * 3


def world():
    torch.manual_seed(0)
    data = examples_from((torch.rand(40, 6, dtype=torch.double), torch.arange(40) % 4), 4)
    roles = {name: MLP(inputs=6, hidden=(width,), classes=4).double() for name, width in WIDTHS.items()}
    return data, roles


WIDTHS = {"student": 5, "teacher": 9, "robust_teacher": 7}


def run(method, roles, data, *, steps=4, **rest):
    optimizer = torch.optim.SGD(roles["student"].parameters(), lr=0.5)
    return train(method, roles, Source(data, batch_size=20), {"student": optimizer}, steps=steps, **rest)


def test_defaults_are_those_of_the_card():
    method = MTARD()
    assert (method.epsilon, method.step_size, method.attack_steps, method.start_noise) == (8 / 255, 2 / 255, 10, 1e-3)
    assert (method.weight_rate, method.temperature_rate, method.robust_weight, method.power) == (0.025, 1e-3, 0.5, 1.0)
    assert (method.temperature, method.min_temperature, method.max_temperature, method.eps) == (1.0, 1.0, 10.0, 1e-5)
    assert CARD.slug == "mtard"


def test_reference():
    student, teacher = logits()
    loss, entropy = (
        soft_target_loss(student, teacher, temperature=2.0, eps=1e-3),
        softened_entropy(teacher, temperature=2.0, eps=1e-3),
    )
    for i in range(6):
        q = [math.exp(t / 2) for t in teacher[i].tolist()]
        q = [v / sum(q) for v in q]
        log_z = math.log(sum(map(math.exp, student[i].tolist())))
        entries = [p * (math.log(p + 1e-3) - (s - log_z)) for p, s in zip(q, student[i].tolist(), strict=True)]
        assert math.isclose(loss[i].item(), sum(entries) / 4, rel_tol=1e-12)
        assert math.isclose(entropy[i].item(), -sum(p * math.log(p + 1e-3) for p in q) / 4, rel_tol=1e-12)


def test_it_is_a_kl_but_for_the_guard():
    student, teacher = logits()
    kl = forward_kl(student, teacher)
    torch.testing.assert_close(soft_target_loss(student, teacher, eps=0.0, reduction="examples"), kl)
    torch.testing.assert_close(4 * soft_target_loss(student, teacher, eps=0.0), kl)
    excess = soft_target_loss(student, teacher) - kl / 4
    assert (excess >= -1e-16).all()
    assert (excess <= 1e-5).all()
    own = soft_target_loss(teacher, teacher)
    assert (own >= 0).all()
    assert (own <= 1e-5).all()
    torch.testing.assert_close(soft_target_loss(student + 3, teacher - 7), soft_target_loss(student, teacher))


def test_entropy_grows_with_temperature():
    _, teacher = logits()
    values = torch.stack([softened_entropy(teacher, temperature=t, eps=0.0) for t in (1.0, 1.5, 3.0, 10.0)])
    assert (values.diff(dim=0) > 0).all()
    torch.testing.assert_close(
        softened_entropy(teacher, temperature=1e6, eps=0.0, reduction="examples"), torch.full((6,), math.log(4)).double()
    )


def test_gradient():
    student, teacher = logits()
    assert torch.autograd.gradcheck(lambda x: soft_target_loss(x, teacher, temperature=3.0), (student.requires_grad_(),))
    teacher.requires_grad_()
    soft_target_loss(student, teacher).sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_are_finite(dtype):
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[1e4, -torch.inf, -1e4]] * 2, dtype=dtype)
    loss = soft_target_loss(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor([1e-5 / 3, 2e4 / 3]), rtol=2e-3, atol=1e-8)
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()
    masked = torch.tensor([[1.0, -torch.inf, 2.0]], dtype=dtype)
    assert soft_target_loss(masked, masked).isfinite().all()
    assert softened_entropy(teacher).isfinite().all()


def test_one_class_one_example_and_none():
    assert soft_target_loss(torch.ones(1, 1), torch.ones(1, 1)).abs() < 1.1e-5
    assert soft_target_loss(torch.ones(0, 3), torch.ones(0, 3)).shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.5}, r"temperature: expected a number in \[1, 10\], got 0.5"),
        ({"weight_rate": 1.5}, r"weight_rate: expected a number in \[0, 1\], got 1.5"),
        ({"epsilon": -0.1}, "epsilon: expected a number >= 0, got -0.1"),
        ({"start_noise": -1.0}, "start_noise: expected a number >= 0, got -1.0"),
        ({"attack_steps": 0}, "attack_steps: expected at least 1, got 0"),
        ({"reduction": "mean"}, "reduction: expected one of entries, examples, got 'mean'"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        MTARD(**options)


def test_each_teacher_sees_its_own_inputs_and_the_attack_keeps_its_bounds():
    data, roles = world()
    batch = data.batch(torch.arange(20))
    method, state = MTARD(epsilon=0.1, step_size=0.03), State(total_steps=1)
    with torch.no_grad():
        made = method.prepare(batch, roles, state)
    inputs, says = made["mtard/inputs"], made["mtard/teachers"]
    assert torch.equal(inputs["natural"], batch["x"])
    moved = inputs["robust"]
    assert 0.05 < (moved - batch["x"]).abs().max() <= 0.1 + 1e-12
    assert 0 <= moved.min() <= moved.max() <= 1
    torch.testing.assert_close(says["natural"], roles["teacher"](batch["x"]).detach())
    torch.testing.assert_close(says["robust"], roles["robust_teacher"](moved).detach())
    harm = [F.cross_entropy(roles["student"](x), batch["y"]) for x in (batch["x"], moved)]
    assert harm[1] > harm[0] + 0.01


@pytest.mark.parametrize("start_noise", [0.0, 1e-3, None])
def test_starts_differ_and_a_ball_of_no_size_is_the_input(start_noise):
    data, roles = world()
    batch = data.batch(torch.arange(20))

    def attacked(**options):
        with torch.no_grad():
            return MTARD(start_noise=start_noise, **options).prepare(batch, roles, State(total_steps=1))["mtard/inputs"]["robust"]

    assert torch.equal(attacked(epsilon=0.0), batch["x"])
    moved = attacked(epsilon=0.1, step_size=1e-9, attack_steps=1)
    expected = {0.0: 0.0, 1e-3: 6e-4, None: 0.04}[start_noise]
    assert math.isclose((moved - batch["x"]).abs().mean(), expected, rel_tol=0.3, abs_tol=1e-8)


def test_the_course_is_that_of_the_equations():
    data, roles = world()
    source = Source(data, batch_size=20)
    method = MTARD(weight_rate=0.4, temperature_rate=0.2, start_noise=0.0, decay_at=(0.5,))
    student = copy.deepcopy(roles["student"])
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    weights, temperatures, first = [0.5, 0.5], [1.0, 1.0], None
    for step in range(4):
        batch = next(source)
        fixed = MTARD(start_noise=0.0)
        with torch.no_grad():
            made = fixed.prepare(batch, {**roles, "student": student}, State(total_steps=1))
        losses, entropies = [], []
        for lesson, temperature in zip(("natural", "robust"), temperatures, strict=True):
            q = (made["mtard/teachers"][lesson] / temperature).softmax(1)
            losses.append((q * ((q + 1e-5).log() - student(made["mtard/inputs"][lesson]).log_softmax(1))).mean())
            entropies.append(-(q * (q + 1e-5).log()).mean())
        optimizer.zero_grad()
        sum(w * loss for w, loss in zip(weights, losses, strict=True)).backward()
        optimizer.step()
        first = first or [loss.item() for loss in losses]
        rate = 1.0 if step < 2 else 0.1
        up = 1.0 if entropies[0] < entropies[1] else -1.0
        temperatures = [min(max(t + sign * rate * 0.2, 1.0), 10.0) for t, sign in zip(temperatures, (up, -up), strict=True)]
        left = [loss.item() / f for loss, f in zip(losses, first, strict=True)]
        weights = [w - rate * 0.4 * (w - r / sum(left)) for w, r in zip(weights, left, strict=True)]
    state = run(method, roles, data)
    for name, parameter in roles["student"].named_parameters():
        torch.testing.assert_close(parameter, student.get_parameter(name))
    for i, lesson in enumerate(("natural", "robust")):
        assert math.isclose(state.memory[f"mtard/weight/{lesson}"], weights[i], rel_tol=1e-9)
        assert math.isclose(state.memory[f"mtard/temperature/{lesson}"], temperatures[i], rel_tol=1e-9)
    assert temperatures[0] != temperatures[1]
    assert abs(weights[0] - 0.5) > 1e-4


def test_rates_of_nought_keep_everything():
    data, roles = world()
    state = run(MTARD(weight_rate=0.0, temperature_rate=0.0, robust_weight=1.0, temperature=2.0), roles, data)
    kept = {key: value for key, value in state.memory.items() if "first" not in key}
    assert kept == {
        "mtard/weight/natural": 0.0,
        "mtard/weight/robust": 1.0,
        "mtard/temperature/natural": 2.0,
        "mtard/temperature/robust": 2.0,
    }


def test_without_a_robust_teacher_the_teacher_gives_both_lessons():
    _, roles = world()
    given = roles.pop("robust_teacher")
    assert MTARD().extra_roles(roles, {}) == {"robust_teacher": roles["teacher"]}
    assert MTARD().extra_roles({**roles, "robust_teacher": given}, {}) == {}


def test_inputs_outside_the_box_are_refused_unless_there_is_none():
    data, roles = world()
    batch = {**data.batch(torch.arange(20)), "x": data.inputs[:20] * 3}
    with pytest.raises(ValueError, match=r"^x: expected inputs in \[0, 1\], got"):
        MTARD().prepare(batch, roles, State(total_steps=1))
    assert MTARD(box=None).prepare(batch, roles, State(total_steps=1))["mtard/inputs"]["robust"].max() > 1


def test_batch_norm_is_not_moved_by_the_attack():
    data, roles = world()
    roles["student"] = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)).double()
    before = copy.deepcopy(roles["student"].state_dict())
    MTARD().prepare(data.batch(torch.arange(20)), roles, State(total_steps=1))
    assert all(torch.equal(value, before[key]) for key, value in roles["student"].state_dict().items())
    assert all(parameter.grad is None for parameter in roles["student"].parameters())
    run(MTARD(), roles, data, steps=3)
    assert roles["student"][1].num_batches_tracked == 6


def test_parity():
    path = Path(__file__).parents[1] / "golden" / "mtard.json"
    for case in json.loads(path.read_text())["cases"]:
        line = check_case("mtard", "case", case, load_adapter("mtard").run)
        assert line.status == "ok", line.reason


def test_miniature_is_complete():
    arms = miniature(0, "smoke").arms
    assert set(arms) >= {"natural", "pgd-training", "robust-teacher-alone", "fixed-weights", "mtard"}
    for arm in arms.values():
        assert arm["worst_case"] <= arm["pgd20"] <= arm["accuracy"]
        assert math.isclose(arm["weighted"], (arm["accuracy"] + arm["pgd20"]) / 2)
