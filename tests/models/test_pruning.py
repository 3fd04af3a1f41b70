"""Iterative magnitude pruning."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from preceptor.models.pruning import iterative_pruning
from preceptor.models.reference import CNN, MLP


def learn(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 20, generator=generator), torch.randint(3, (64,), generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.1)  # moments and decay move what is not held
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def network() -> MLP:
    torch.manual_seed(0)
    return MLP(inputs=20, hidden=(30, 20), classes=3)


def test_each_round_prunes_the_same_share_of_what_is_left():
    shares = iterative_pruning(network(), learn, rounds=5, rate=0.2)
    for j, share in enumerate(shares, start=1):
        assert math.isclose(share, 1 - 0.8**j, abs_tol=1e-3)  # 1,260 weights: rounded to one


def test_what_is_left_is_at_its_first_weights_and_the_rest_stays_0():
    model, first = network(), network()
    iterative_pruning(model, learn, rounds=3, rate=0.5)
    for name, module in first.named_modules():
        if isinstance(module, nn.Linear):
            pruned = model.get_submodule(name)
            assert torch.equal(pruned.weight_orig, module.weight)
            assert torch.equal(pruned.bias, module.bias)
    learn(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            gone = module.weight_mask == 0
            assert gone.any()
            assert not module.weight[gone].any()
            assert module.weight[~gone].all()


def test_one_round_prunes_the_smallest_of_all_layers_together():
    model, trained = network(), network()
    learn(trained)
    iterative_pruning(model, learn, rounds=1, rate=0.3)
    layers = [name for name, module in trained.named_modules() if isinstance(module, nn.Linear)]
    sizes = torch.cat([trained.get_submodule(name).weight.detach().abs().flatten() for name in layers])
    bound = sizes.sort().values[round(0.3 * len(sizes))]
    kept = torch.cat([model.get_submodule(name).weight_mask.flatten() for name in layers])
    assert torch.equal(kept.bool(), sizes >= bound)


def test_a_weight_once_pruned_is_never_taken_back():
    once, thrice = network(), network()
    iterative_pruning(once, learn, rounds=1, rate=0.3)
    iterative_pruning(thrice, learn, rounds=3, rate=0.3)
    for before, after in zip(once.modules(), thrice.modules(), strict=True):
        if isinstance(before, nn.Linear):
            assert (after.weight_mask <= before.weight_mask).all()


def test_kernels_are_pruned_and_scales_are_not():
    torch.manual_seed(0)
    model = CNN(channels=(4, 6), norm="batch")
    before = copy.deepcopy(dict(model.named_parameters()))
    iterative_pruning(model, lambda model: None, rounds=1, rate=0.5)
    masks = {name.removesuffix("_mask") for name, _ in model.named_buffers() if name.endswith("_mask")}
    assert masks == {name for name, p in before.items() if p.ndim > 1}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"^rounds: expected at least 1, got 0$"):
        iterative_pruning(network(), learn, rounds=0)
    for rate in (0.0, 1.0):
        with pytest.raises(ValueError, match=rf"^rate: expected a number in \(0, 1\), got {rate}$"):
            iterative_pruning(network(), learn, rounds=1, rate=rate)
    with pytest.raises(ValueError, match=r"^network: expected linear or convolutional layers, got ReLU, which has none$"):
        iterative_pruning(nn.ReLU(), learn, rounds=1)
