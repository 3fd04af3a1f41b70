"""Networks of linear layers with sigmoids between them, and what is taken for one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from preceptor.models.reference import CNN, MLP
from preceptor.models.sigmoids import chain, check_sigmoids, linear_layers
from preceptor.models.taps import forward


def network(*between, last=()):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), *between, nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3), *last)


X = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(1))


class Formula(nn.Module):
    """A sigmoid written out, and layers that are not defined in the order in which they run."""

    def __init__(self, late):
        super().__init__()
        self.first, self.second = (nn.Linear(6, 6) for _ in range(2))
        self.late = late

    def forward(self, x):
        one, two = (self.second, self.first) if self.late else (self.first, self.second)
        return two(1 / (1 + torch.exp(-one(x.flatten(1)))))


@pytest.mark.parametrize(
    "model",
    [
        network(nn.Sigmoid()),
        network(nn.Sigmoid(), last=(nn.Sigmoid(),)),
        network(nn.Sigmoid(), nn.Identity()),
        nn.Sequential(nn.Flatten(), nn.LayerNorm(6, elementwise_affine=False), nn.Linear(6, 3)),
        MLP(inputs=6, hidden=(5, 4), classes=3, activation="sigmoid"),
        Formula(late=False),
    ],
    ids=["usual", "sigmoid-last", "identity", "one-layer", "reference", "formula"],
)
def test_it_runs_like_its_layers_in_a_chain(model):
    check_sigmoids(model, X)
    layers = linear_layers(model)
    names = list(layers)
    seen = forward(model, X, (*names, *(f"{name}:input" for name in names))).features
    given, logits = chain(seen[f"{names[0]}:input"], [layer.parameters() for layer in layers.values()])
    for name, one, other in zip(names, given, logits, strict=True):
        torch.testing.assert_close(one, seen[f"{name}:input"])
        torch.testing.assert_close(other, seen[name])


def test_a_layer_may_have_no_bias():
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Sigmoid(), nn.Linear(5, 3))
    check_sigmoids(model, X.flatten(1))
    torch.testing.assert_close(
        chain(X.flatten(1), [layer.parameters() for layer in linear_layers(model).values()])[1][-1], model(X.flatten(1))
    )


KIND = "student: expected linear layers with sigmoids between, got "


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (network(nn.ReLU()), KIND + "Sequential, in which 3 is not given the sigmoid of 1"),
        (network(nn.Sigmoid(), nn.Dropout(0.5)), KIND + "Sequential, in which 4 is not given the sigmoid of 1"),
        (network(nn.Sigmoid(), nn.LayerNorm(5)), KIND + "Sequential, which also trains 3.weight"),
        (Formula(late=True), KIND + "Formula, in which second is not given the sigmoid of first"),
        (MLP(inputs=6, hidden=(5,), classes=3), KIND + "MLP, in which fc is not given the sigmoid of hidden1.linear"),
        (CNN(channels=(2,), classes=3), KIND + "CNN, which also trains block1.conv.weight"),
        (nn.Sequential(nn.Flatten()), KIND + "Sequential without a linear layer"),
        (nn.Sequential(nn.Linear(3, 3)), r"student: expected a vector per example (N, D) at 0, got (7, 2, 3)"),
    ],
)
def test_other_networks_are_refused_in_one_line(model, message):
    with pytest.raises(ValueError, match="expected") as refused:
        check_sigmoids(model, X)
    assert str(refused.value) == message


def test_what_is_frozen_may_stand_outside():
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(6).requires_grad_(False), nn.Linear(6, 3))
    check_sigmoids(model, X)
