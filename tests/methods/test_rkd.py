"""Relational distillation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from preceptor.core.state import State
from preceptor.losses.hard import hard_loss
from preceptor.methods.rkd import CARD, RKD, miniature
from preceptor.models.reference import CNN, MLP
from preceptor.models.taps import forward

LAYERS = {"student_layers": ("fc:input",), "teacher_layers": ("fc:input",)}


@pytest.fixture
def world() -> tuple[dict, dict, State]:
    """A batch and two networks with embeddings of different dimensions, in double precision."""
    torch.manual_seed(0)
    batch = {"x": torch.randn(6, 5, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2, 0]), "id": torch.arange(6)}
    roles = {"student": MLP(inputs=5, hidden=(4,), classes=4).double(), "teacher": MLP(inputs=5, hidden=(7,), classes=4).double()}
    return batch, roles, State(total_steps=1)


def terms_of(method: RKD, world: tuple[dict, dict, State]) -> dict[str, Tensor]:
    batch, roles, state = world
    with torch.no_grad():
        signal = method.signal(batch, roles, state)
    return method.loss(batch, signal, roles, state)


def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def slow_distances(points: list[list[float]]) -> list[list[float]]:
    distances = [[math.dist(a, b) for b in points] for a in points]
    positive = [d for row in distances for d in row if d > 0]
    mean = sum(positive) / len(positive)
    return [[d / mean for d in row] for row in distances]


def slow_cosine(points: list[list[float]], i: int, j: int, k: int) -> float:
    a, b = ([x - y for x, y in zip(points[m], points[i], strict=True)] for m in (j, k))
    length = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0


def test_defaults_are_those_of_the_card():
    method = RKD()
    assert (method.distance_weight, method.angle_weight, method.hard_weight, method.coupled) == (25.0, 50.0, 1.0, True)
    assert CARD.slug == "rkd"
    assert {"teacher", "features", "labels"} <= set(CARD.needs)


def test_reference(world):
    batch, roles, _ = world
    terms = terms_of(RKD(**LAYERS, distance_weight=2.0, angle_weight=3.0, hard_weight=0.5), world)
    s, t = (forward(roles[role], batch["x"], ("fc:input",)).features["fc:input"].tolist() for role in ("student", "teacher"))
    n = range(6)
    a, b = slow_distances(s), slow_distances(t)
    distance = sum(huber(a[i][j], b[i][j]) for i in n for j in n) / 36
    angle = sum(huber(slow_cosine(s, i, j, k), slow_cosine(t, i, j, k)) for i in n for j in n for k in n) / 216
    assert terms["distance"].ndim == terms["angle"].ndim == 0
    assert math.isclose(terms["distance"].item(), 2 * distance, rel_tol=1e-9)
    assert math.isclose(terms["angle"].item(), 3 * angle, rel_tol=1e-9)
    torch.testing.assert_close(terms["hard"], 0.5 * hard_loss(roles["student"](batch["x"]), batch))


def test_agreement_up_to_rotation_translation_and_scale_costs_nothing(world):
    batch, roles, state = world
    method = RKD(**LAYERS)
    student = forward(roles["student"], batch["x"], ("fc:input",)).features["fc:input"].detach()
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.double))
    moved = {"features": {"fc:input": 3 * student @ rotation + 5}}
    terms = method.loss(batch, moved, roles, state)
    assert max(terms["distance"].item(), terms["angle"].item()) < 1e-12


def test_the_order_of_examples_does_not_count(world):
    batch, roles, state = world
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    before = terms_of(RKD(**LAYERS), world)
    after = terms_of(RKD(**LAYERS), ({key: value[order] for key, value in batch.items()}, roles, state))
    for name in ("distance", "angle"):
        torch.testing.assert_close(after[name], before[name])


def test_masked_examples_have_no_relations(world):
    batch, roles, state = world
    masked = {**batch, "mask": torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])}
    kept = {key: value[[0, 2, 3, 5]] for key, value in batch.items()}
    a, b = terms_of(RKD(**LAYERS), (masked, roles, state)), terms_of(RKD(**LAYERS), (kept, roles, state))
    for name in ("distance", "angle"):
        torch.testing.assert_close(a[name], b[name])


@pytest.mark.parametrize("count", [0, 1])
def test_examples_without_relations_leave_zero_with_a_gradient(world, count):
    batch, roles, state = world
    terms = terms_of(RKD(**LAYERS), ({key: value[:count] for key, value in batch.items()}, roles, state))
    assert terms["distance"].item() == terms["angle"].item() == 0
    (terms["distance"] + terms["angle"]).backward()
    assert torch.isfinite(roles["student"].get_submodule("hidden1.linear").weight.grad).all()


def test_maps_are_flattened(world):
    batch, _, state = world
    batch["x"] = torch.randn(6, 1, 4, 4, dtype=torch.double)
    roles = {"student": CNN(channels=(2, 3), classes=4).double(), "teacher": CNN(channels=(4, 6), classes=4).double()}
    terms = terms_of(RKD(student_layers=("block2",), teacher_layers=("block2",)), (batch, roles, state))
    assert terms["distance"] > 0
    assert torch.isfinite(terms["angle"])


def test_every_pair_counts(world):
    method = RKD(student_layers=("fc:input", "hidden1:input"), teacher_layers=("fc:input", "fc:input"))
    both = terms_of(method, world)
    single = [terms_of(RKD(student_layers=(name,), teacher_layers=("fc:input",)), world) for name in ("fc:input", "hidden1:input")]
    torch.testing.assert_close(both["angle"], single[0]["angle"] + single[1]["angle"])


def test_gradient(world):
    batch, roles, state = world
    method = RKD(student_layers=("hidden1:input",), teacher_layers=("fc:input",))
    signal = {"features": {k: v.detach() for k, v in method.signal(batch, roles, state)["features"].items()}}

    def relations(x: Tensor) -> Tensor:
        terms = method.loss({**batch, "x": x}, signal, roles, state)
        return terms["distance"] + terms["angle"]

    assert torch.autograd.gradcheck(relations, (batch["x"].clone().requires_grad_(),))


def test_gradients_stop_at_the_teacher(world):
    batch, roles, state = world
    method = RKD(**LAYERS)
    terms = method.loss(batch, method.signal(batch, roles, state), roles, state)
    (terms["distance"] + terms["angle"]).backward()
    assert all(p.grad is None for p in roles["teacher"].parameters())
    assert roles["student"].get_submodule("hidden1.linear").weight.grad.abs().sum() > 0


@pytest.mark.parametrize("layers", [{}, {"student_layers": ("fc:input",)}])
def test_layers_that_make_no_pairs_are_refused(world, layers):
    batch, roles, state = world
    method = RKD(**layers)
    for call in (lambda: method.extra_roles(roles, batch), lambda: method.signal(batch, roles, state)):
        with pytest.raises(
            ValueError, match=r"rkd: expected student_layers and teacher_layers.*student has hidden1, .*teacher has hidden1"
        ):
            call()


@pytest.mark.parametrize("name", ["distance_weight", "angle_weight", "hard_weight"])
def test_hyper_parameters_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected a number >= 0, got -1.0"):
        RKD(**{name: -1.0})


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-teacher", "ce", "rkd"}
    assert all(math.isfinite(value) for arm in run.arms.values() for value in arm.values())
    assert run == miniature(1, "smoke")
    assert run.arms["rkd"] != run.arms["ce"]
