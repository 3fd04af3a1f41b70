"""Models as functions of their weights, and derivatives along directions of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.models.functional import along, logits_at


@pytest.fixture
def model() -> nn.Module:
    """A small network in training mode, with dropout and normalisation."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 5)).double()


def weights_of(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def directions(weights):
    return {name: torch.randn_like(value) for name, value in weights.items()}


def test_other_weights_stand_in_and_nothing_changes(model):
    x = torch.randn(6, 3, dtype=torch.double)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: value + 1 for name, value in weights_of(model).items()}
    got = logits_at(model, {"4.weight": weights["4.weight"]}, x)
    assert all(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name]), name
    model.eval()
    torch.testing.assert_close(got, nn.functional.linear(model[:4](x), weights["4.weight"], model[4].bias))


def test_gradients_flow_to_the_weights(model):
    x = torch.randn(6, 3, dtype=torch.double)
    weights = {name: value.requires_grad_() for name, value in weights_of(model).items()}
    found = torch.autograd.grad(logits_at(model, weights, x).pow(2).sum(), list(weights.values()))
    assert all(gradient.any() for gradient in found)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_forward_mode_and_differences_agree_with_the_gradient(model):
    x = torch.randn(6, 3, dtype=torch.double)
    weights = weights_of(model)
    direction = directions(weights)
    value, slope = along(lambda w: logits_at(model, w, x), weights, direction)
    again, close = along(lambda w: logits_at(model, w, x), weights, direction, differences=True)
    torch.testing.assert_close(value, logits_at(model, weights, x))
    torch.testing.assert_close(again, value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(close, slope, rtol=1e-6, atol=1e-6)  # central differences, h about 1e-5
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    out = logits_at(model, leaves, x)
    probe = torch.randn_like(out)
    gradient = torch.autograd.grad((out * probe).sum(), list(leaves.values()))
    expected = sum((g * d).sum() for g, d in zip(gradient, direction.values(), strict=True))
    torch.testing.assert_close((slope * probe).sum(), expected)


def test_no_direction_no_slope(model):
    x = torch.randn(6, 3, dtype=torch.double)
    weights = weights_of(model)
    zero = {name: torch.zeros_like(value) for name, value in weights.items()}
    for differences in (False, True):
        _, slope = along(lambda w: logits_at(model, w, x), weights, zero, differences=differences)
        assert not slope.any()


class Cubed(torch.autograd.Function):
    """Has a backward pass and no forward mode."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


def test_differences_where_forward_mode_is_missing():
    x = torch.tensor([[2.0]], dtype=torch.double)
    value, slope = along(lambda w: Cubed.apply(w["a"] * x), {"a": torch.tensor(1.0).double()}, {"a": torch.tensor(3.0).double()})
    torch.testing.assert_close(value, x**3, rtol=1e-8, atol=0)
    torch.testing.assert_close(slope, 3 * x**2 * 6, rtol=1e-8, atol=0)


def test_a_model_in_half_precision_runs_in_single_precision(model):
    x = torch.randn(6, 3)
    model.float()
    weights = weights_of(model)
    expected = logits_at(model, weights, x)
    model.bfloat16()
    some = {name: value.float() for name, value in weights_of(model).items() if name.startswith("0.")}
    got = logits_at(model, some, x.bfloat16())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)
    assert logits_at(model, {}, x.bfloat16()).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_language_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes)).double()
    x = {"input_ids": torch.randint(0, 11, (2, 5))}
    weights = weights_of(model)
    direction = directions(weights)
    value, slope = along(lambda w: logits_at(model, w, x), weights, direction)
    _, close = along(lambda w: logits_at(model, w, x), weights, direction, differences=True)
    assert value.shape == slope.shape == (2, 5, 11)
    torch.testing.assert_close(slope, close, rtol=1e-5, atol=1e-5)


class OldStyle(torch.autograd.Function):
    """Without `setup_context`, which function transforms ask for."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, upstream):
        return 2 * ctx.saved_tensors[0] * upstream


def test_differences_where_transforms_are_refused_and_errors_of_the_function_come_through():
    weights, direction = {"w": torch.tensor([1.0, 3.0]).double()}, {"w": torch.tensor([1.0, -1.0]).double()}
    _, slope = along(lambda w: OldStyle.apply(w["w"]), weights, direction)
    torch.testing.assert_close(slope, torch.tensor([2.0, -6.0]).double(), rtol=1e-6, atol=1e-6)
    with pytest.raises(RuntimeError, match="must match"):
        along(lambda w: w["w"] + torch.zeros(3), weights, direction)
