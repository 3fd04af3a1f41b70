"""Attention transfer."""

from __future__ import annotations

import math

import pytest
import torch

from preceptor.core.state import State
from preceptor.data.examples import examples_from
from preceptor.losses.hard import hard_loss
from preceptor.methods.attention_transfer import CARD, AttentionTransfer, miniature
from preceptor.miniature.worlds import fit
from preceptor.models.reference import CNN
from preceptor.models.taps import forward

LAYERS = {"student_layers": ("block1", "block2"), "teacher_layers": ("block1", "block2")}


@pytest.fixture
def world() -> tuple[dict, dict, State]:
    """Images and two convolutional networks of different width, in double precision."""
    torch.manual_seed(0)
    batch = {"x": torch.randn(5, 1, 6, 6, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2]), "id": torch.arange(5)}
    roles = {"student": CNN(channels=(2, 3), classes=4).double(), "teacher": CNN(channels=(4, 6), classes=4).double()}
    return batch, roles, State(total_steps=1)


def terms_of(method: AttentionTransfer, world: tuple[dict, dict, State]) -> dict[str, torch.Tensor]:
    batch, roles, state = world
    with torch.no_grad():
        signal = method.signal(batch, roles, state)
    return method.loss(batch, signal, roles, state)


def test_defaults_are_those_of_the_card():
    method = AttentionTransfer()
    assert (method.attention_weight, method.hard_weight, method.p) == (1000.0, 1.0, 2)
    assert (CARD.slug, CARD.needs) == ("attention-transfer", ("teacher", "features", "labels"))


def slow_map(features: torch.Tensor, p: int) -> list[float]:
    channels, height, width = features.shape
    values = [sum(features[c, i, j].item() ** p for c in range(channels)) / channels for i in range(height) for j in range(width)]
    norm = math.sqrt(sum(v * v for v in values))
    return [v / norm for v in values]


@pytest.mark.parametrize("p", [2, 4])
def test_reference(world, p):
    batch, roles, _ = world
    terms = terms_of(AttentionTransfer(**LAYERS, p=p, attention_weight=10.0, hard_weight=0.5), world)
    for i in range(5):
        expected = 0.0
        for layer in ("block1", "block2"):
            s, t = (slow_map(forward(roles[role], batch["x"], (layer,)).features[layer][i], p) for role in ("student", "teacher"))
            expected += sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s)
        assert math.isclose(terms["attention"][i].item(), 10 * expected, rel_tol=1e-9)
    torch.testing.assert_close(terms["hard"], 0.5 * hard_loss(roles["student"](batch["x"]), batch))


def test_agreement_costs_nothing(world):
    world[1]["teacher"] = world[1]["student"]
    assert terms_of(AttentionTransfer(**LAYERS), world)["attention"].abs().max() < 1e-25


def test_the_scale_of_a_map_does_not_count(world):
    _, roles, _ = world
    method = AttentionTransfer(student_layers=("block1",), teacher_layers=("block1",))
    before = terms_of(method, world)["attention"]
    with torch.no_grad():
        roles["teacher"].get_submodule("block1.conv").weight.mul_(3)
        roles["teacher"].get_submodule("block1.conv").bias.mul_(3)
    torch.testing.assert_close(terms_of(method, world)["attention"], before)


def test_every_pair_counts_and_examples_stay_apart(world):
    batch, roles, state = world
    both = terms_of(AttentionTransfer(**LAYERS), world)["attention"]
    single = [terms_of(AttentionTransfer(student_layers=(n,), teacher_layers=(n,)), world)["attention"] for n in ("block1", "block2")]
    torch.testing.assert_close(both, single[0] + single[1])
    order = torch.tensor([3, 1, 4, 0, 2])
    permuted = terms_of(AttentionTransfer(**LAYERS), ({key: value[order] for key, value in batch.items()}, roles, state))
    torch.testing.assert_close(permuted["attention"], both[order])


def test_one_layer_may_stand_in_several_pairs(world):
    single = terms_of(AttentionTransfer(student_layers=("block2",), teacher_layers=("block2",)), world)["attention"]
    other = terms_of(AttentionTransfer(student_layers=("block1",), teacher_layers=("block2",)), world)["attention"]
    both = terms_of(AttentionTransfer(student_layers=("block2", "block1"), teacher_layers=("block2", "block2")), world)["attention"]
    torch.testing.assert_close(both, single + other)


def test_gradient(world):
    batch, roles, state = world
    method = AttentionTransfer(student_layers=("block1:input",), teacher_layers=("block2",), attention_weight=1.0)
    signal = {"features": {k: v.detach() for k, v in method.signal(batch, roles, state)["features"].items()}}
    x = batch["x"].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: method.loss({**batch, "x": x}, signal, roles, state)["attention"], (x,))


def test_gradients_stop_at_the_teacher(world):
    batch, roles, state = world
    method = AttentionTransfer(**LAYERS)
    method.loss(batch, method.signal(batch, roles, state), roles, state)["attention"].sum().backward()
    assert all(p.grad is None for p in roles["teacher"].parameters())
    assert roles["student"].get_submodule("block1.conv").weight.grad.abs().sum() > 0


def test_training_brings_the_maps_closer(world):
    batch, roles, _ = world
    method = AttentionTransfer(**LAYERS)
    before = terms_of(method, world)["attention"].mean().item()
    fit(method, roles, examples_from((batch["x"], batch["y"]), 4), steps=30, batch_size=5, learning_rate=0.02)
    assert terms_of(method, world)["attention"].mean().item() < 0.7 * before


@pytest.mark.parametrize("layers", [{}, {"student_layers": ("block1",)}, {**LAYERS, "teacher_layers": ("block1",)}])
def test_layers_that_make_no_pairs_are_refused(world, layers):
    batch, roles, state = world
    method = AttentionTransfer(**layers)
    for call in (lambda: method.extra_roles(roles, batch), lambda: method.signal(batch, roles, state)):
        with pytest.raises(ValueError, match=r"attention-transfer: expected student_layers and teacher_layers.*student has block1, "):
            call()


def test_vectors_are_refused(world):
    method = AttentionTransfer(student_layers=("fc:input",), teacher_layers=("fc:input",))
    with pytest.raises(ValueError, match=r"expected shape \(N, channels, height, width\)"):
        terms_of(method, world)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_weight": 0.0}, "attention_weight: expected a finite number > 0, got 0.0"),
        ({"hard_weight": -1.0}, "hard_weight: expected a number >= 0, got -1.0"),
        ({"p": 0}, "p: expected an integer >= 1, got 0"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AttentionTransfer(**options)


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-teacher", "ce", "attention-transfer"}
    assert all(math.isfinite(value) for arm in run.arms.values() for value in arm.values())
    assert run == miniature(1, "smoke")
    assert run.arms["attention-transfer"] != run.arms["ce"]
