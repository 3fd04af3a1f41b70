"""Newly drawn copies of a model."""

import copy

import pytest
import torch
from torch import nn

from preceptor.core.run import fingerprint
from preceptor.models.fresh import fresh_copy
from preceptor.models.reference import CNN, MLP


class Mixed(nn.Module):
    """A network with parameters that no layer redraws."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((2,), 3.0))
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.fc = nn.Linear(4, 2)


@pytest.mark.parametrize("make", [lambda: CNN(channels=(3, 5), classes=4, norm="batch"), lambda: MLP(inputs=5, hidden=(4,)), Mixed])
def test_same_form_other_weights(make):
    torch.manual_seed(0)
    model = make().double().eval()
    next(model.parameters()).requires_grad_(False)
    before = fingerprint(model)
    torch.manual_seed(0)  # the state that the model was drawn from
    fresh = fresh_copy(model)
    assert fingerprint(model) == before
    assert {k: (v.shape, v.dtype) for k, v in fresh.state_dict().items()} == {k: (v.shape, v.dtype) for k, v in model.state_dict().items()}
    assert [p.requires_grad for p in fresh.parameters()] == [p.requires_grad for p in model.parameters()]
    assert not fresh.training
    drawn = [name for name, p in model.named_parameters() if p.ndim > 1]
    for name in drawn:  # no value comes back, so the draws are not the model's moved on by a few either
        assert not torch.isin(fresh.get_parameter(name), model.get_parameter(name)).any(), name


def test_the_same_random_state_gives_the_same_copy():
    model = CNN(channels=(3, 5), classes=4)
    copies = []
    for _ in range(2):
        torch.manual_seed(1)
        copies.append(fingerprint(fresh_copy(model)))
    assert copies[0] == copies[1] != fingerprint(fresh_copy(model))


def test_what_no_layer_redraws_keeps_its_value_and_statistics_start_over():
    model = Mixed()
    model.norm.running_mean.fill_(7.0)
    with torch.no_grad():
        model.scale.fill_(2.0)
    fresh = fresh_copy(model)
    assert torch.equal(fresh.scale, model.scale)
    assert fresh.scale is not model.scale
    assert (fresh.norm.running_mean == 0).all()


def test_a_transformer_is_built_from_its_configuration():
    import transformers

    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4, num_channels=1
    )
    model = transformers.ViTForImageClassification(config)
    fresh = fresh_copy(model)
    assert type(fresh) is type(model)
    assert not torch.equal(fresh.vit.embeddings.cls_token, model.vit.embeddings.cls_token)
    assert fresh.config is not model.config


def test_a_model_that_cannot_be_redrawn_is_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

    with pytest.raises(ValueError, match="model: expected layers with reset_parameters, got Bare, which has none"):
        fresh_copy(copy.deepcopy(Bare()))
