"""FitNets: hints."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from preceptor.core.state import State
from preceptor.data.examples import examples_from
from preceptor.losses.hard import hard_loss
from preceptor.methods.fitnets import CARD, FitNets, miniature
from preceptor.miniature.worlds import fit
from preceptor.models.reference import CNN, MLP
from preceptor.models.taps import forward


@pytest.fixture
def world() -> tuple[dict, dict, State]:
    """Images and two convolutional networks of different width, in double precision."""
    torch.manual_seed(0)
    batch = {"x": torch.randn(5, 1, 6, 6, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2]), "id": torch.arange(5)}
    roles = {"student": CNN(channels=(2, 3), classes=4).double(), "teacher": CNN(channels=(4, 6), classes=4).double()}
    return batch, roles, State(total_steps=1)


def terms_of(method: FitNets, world: tuple[dict, dict, State]) -> dict[str, torch.Tensor]:
    batch, roles, state = world
    roles |= {name: role for name, role in method.extra_roles(roles, batch).items() if name not in roles}
    with torch.no_grad():
        signal = method.signal(batch, roles, state)
    return method.loss(batch, signal, roles, state)


def test_defaults_are_those_of_the_card():
    method = FitNets()
    assert (method.hint_weight, method.hard_weight, method.norm) == (100.0, 1.0, "batch")
    assert (CARD.slug, CARD.needs) == ("fitnets", ("teacher", "features", "labels"))


def test_reference(world):
    batch, roles, _ = world
    method = FitNets(
        student_layers=("block1", "block2"), teacher_layers=("block1", "block2"), norm="none", hint_weight=7.0, hard_weight=0.5
    )
    terms = terms_of(method, world)
    expected = torch.zeros(5, dtype=torch.double)
    for regressor, layer in zip(roles["projector"], ("block1", "block2"), strict=True):
        student, teacher = (forward(roles[role], batch["x"], (layer,)).features[layer] for role in ("student", "teacher"))
        weight, bias = regressor[0].weight[:, :, 0, 0], regressor[0].bias
        for i in range(5):
            total = 0.0
            for row in range(teacher.shape[2]):
                for column in range(teacher.shape[3]):
                    regressed = torch.relu(weight @ student[i, :, row, column] + bias)
                    total = total + ((regressed - teacher[i, :, row, column]) ** 2).sum()
            expected[i] += total / teacher[i].numel()
    torch.testing.assert_close(terms["hint"], 7 * expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(terms["hard"], 0.5 * hard_loss(roles["student"](batch["x"]), batch))


def test_a_perfect_regressor_leaves_no_hint(world):
    batch, roles, _ = world
    roles["student"].load_state_dict((twin := CNN(channels=(2, 3), classes=4).double()).state_dict())
    roles["teacher"] = twin
    method = FitNets(student_layers=("block2",), teacher_layers=("block2",), norm="none")
    roles |= method.extra_roles(roles, batch)
    conv = roles["projector"][0][0]
    with torch.no_grad():
        conv.weight.copy_(torch.eye(3, dtype=torch.double)[:, :, None, None])
        conv.bias.zero_()
    assert terms_of(method, world)["hint"].abs().max() < 1e-20


def test_one_layer_may_stand_in_several_pairs(world):
    _batch, roles, _ = world
    method = FitNets(student_layers=("block2", "block1"), teacher_layers=("block2", "block2"), norm="none")
    both = terms_of(method, world)["hint"]
    regressors = roles["projector"]
    single = torch.zeros(5, dtype=torch.double)
    for regressor, layer in zip(regressors, ("block2", "block1"), strict=True):
        roles["projector"] = nn.ModuleList([regressor])
        single += terms_of(FitNets(student_layers=(layer,), teacher_layers=("block2",)), world)["hint"]
    torch.testing.assert_close(both, single)


def test_gradient(world):
    batch, roles, state = world
    method = FitNets(student_layers=("block1:input",), teacher_layers=("block2",), norm="none")
    roles |= method.extra_roles(roles, batch)
    signal = {"features": {k: v.detach() for k, v in method.signal(batch, roles, state)["features"].items()}}

    def hint(x: torch.Tensor) -> torch.Tensor:
        return method.loss({**batch, "x": x}, signal, roles, state)["hint"]

    assert torch.autograd.gradcheck(hint, (batch["x"].clone().requires_grad_(),))


def test_gradients_reach_student_and_regressor_but_not_the_teacher(world):
    _, roles, _ = world
    terms = terms_of(FitNets(student_layers=("block2",), teacher_layers=("block2",)), world)
    terms["hint"].sum().backward()
    assert all(p.grad is None for p in roles["teacher"].parameters())
    assert all(p.grad is not None for p in roles["projector"].parameters())
    assert roles["student"].get_submodule("block1.conv").weight.grad.abs().sum() > 0
    assert roles["student"].fc.weight.grad is None


@pytest.mark.parametrize(
    ("layers", "modules"),
    [
        (("block2", "block2"), [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]),
        (("block1:input", "block2"), [nn.AdaptiveAvgPool2d, nn.Conv2d, nn.BatchNorm2d, nn.ReLU]),
        (("block2", "block1:input"), [nn.AdaptiveAvgPool2d, nn.Conv2d, nn.BatchNorm2d, nn.ReLU]),
    ],
)
def test_regressors_fit_maps_of_any_size(world, layers, modules):
    batch, roles, _ = world
    method = FitNets(student_layers=layers[:1], teacher_layers=layers[1:])
    (regressor,) = method.extra_roles(roles, batch)["projector"]
    assert [type(module) for module in regressor] == modules
    student, teacher = (forward(roles[role], batch["x"], (layer,)).features[layer] for role, layer in zip(roles, layers, strict=True))
    assert regressor(student).shape == teacher.shape


def test_vectors_get_a_linear_regressor():
    roles = {"student": MLP(inputs=6, hidden=(3,), classes=4), "teacher": MLP(inputs=6, hidden=(8,), classes=4)}
    (regressor,) = FitNets(student_layers=("fc:input",), teacher_layers=("fc:input",)).extra_roles(roles, {"x": torch.randn(2, 6)})[
        "projector"
    ]
    assert (regressor.in_features, regressor.out_features) == (3, 8)


def test_building_regressors_changes_nothing(world):
    batch, roles, _ = world
    roles["student"] = CNN(channels=(2, 3), classes=4, norm="batch").double()
    before = {k: v.clone() for k, v in roles["student"].state_dict().items()}
    FitNets(student_layers=("block2",), teacher_layers=("block2",)).extra_roles(roles, batch)
    assert roles["student"].training
    assert all(torch.equal(v, before[k]) for k, v in roles["student"].state_dict().items())


def test_hints_bring_the_features_closer(world):
    batch, roles, _ = world
    method = FitNets(student_layers=("block2",), teacher_layers=("block2",), norm="none")
    roles |= method.extra_roles(roles, batch)
    before = terms_of(method, world)["hint"].mean().item()
    fit(method, roles, examples_from((batch["x"], batch["y"]), 4), steps=30, batch_size=5, learning_rate=0.02)
    assert terms_of(method, world)["hint"].mean().item() < 0.7 * before


@pytest.mark.parametrize(
    "layers", [{}, {"student_layers": ("block1",)}, {"student_layers": ("block1",), "teacher_layers": ("block1", "block2")}]
)
def test_layers_that_make_no_pairs_are_refused(world, layers):
    batch, roles, state = world
    method = FitNets(**layers)
    for call in (lambda: method.extra_roles(roles, batch), lambda: method.signal(batch, roles, state)):
        with pytest.raises(
            ValueError, match=r"fitnets: expected student_layers and teacher_layers.*student has block1, .*teacher has block1"
        ):
            call()


def test_features_of_different_kinds_are_refused(world):
    batch, roles, _ = world
    with pytest.raises(ValueError, match=r"fitnets: expected features of the same kind.*\(5, 3\) of the student and \(5, 6, 3, 3\)"):
        FitNets(student_layers=("fc:input",), teacher_layers=("block2",)).extra_roles(roles, batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hint_weight": 0.0}, "hint_weight: expected a finite number > 0, got 0.0"),
        ({"hard_weight": -1.0}, "hard_weight: expected a number >= 0, got -1.0"),
        ({"norm": "layer"}, "norm: expected 'batch' or 'none', got 'layer'"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FitNets(**options)


def test_mean_squared_error_is_the_oracle(world):
    batch, roles, _ = world
    method = FitNets(student_layers=("fc:input",), teacher_layers=("fc:input",), hint_weight=1.0)
    terms = terms_of(method, world)
    student, teacher = (forward(roles[role], batch["x"], ("fc:input",)).features["fc:input"] for role in ("student", "teacher"))
    torch.testing.assert_close(terms["hint"].mean(), F.mse_loss(roles["projector"][0](student), teacher))


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-teacher", "ce", "fitnets"}
    assert all(math.isfinite(value) for arm in run.arms.values() for value in arm.values())
    assert run == miniature(1, "smoke")
    assert run.arms["fitnets"] != run.arms["ce"]
