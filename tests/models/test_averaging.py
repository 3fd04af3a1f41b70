"""Averages of networks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from preceptor.models.averaging import fed_average


def networks(number=3):
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(number)]
    for times, net in enumerate(nets):
        for _ in range(times + 1):
            net(torch.randn(8, 3))
    return [net.state_dict() for net in nets]


def test_identical_networks_and_equal_weights():
    first, *rest = networks()
    same = fed_average([first, copy.deepcopy(first), copy.deepcopy(first)], [3, 5, 7])
    assert all(torch.equal(value, first[name]) for name, value in same.items())
    mean = fed_average([first, *rest], [4, 4, 4])
    for name in ("0.weight", "1.running_mean"):
        torch.testing.assert_close(mean[name], torch.stack([each[name] for each in (first, *rest)]).mean(0))
    assert int(mean["1.num_batches_tracked"]) == 1  # a counter: that of the first


def test_weights_are_numbers_of_samples():
    nets = networks(2)
    mean = fed_average(nets, [30, 10])
    torch.testing.assert_close(mean["0.bias"], 0.75 * nets[0]["0.bias"] + 0.25 * nets[1]["0.bias"])
    assert torch.equal(fed_average(nets, [0, 1])["0.bias"], nets[1]["0.bias"])
    half = [{name: value.bfloat16() if value.is_floating_point() else value for name, value in net.items()} for net in nets]
    assert fed_average(half, [1, 2])["0.weight"].dtype == torch.bfloat16


def test_bad_input():
    nets = networks(2)
    for call, message in (
        (lambda: fed_average([], []), "weights: expected one for each of at least one network"),
        (lambda: fed_average(nets, [1]), "weights: expected one for each of at least one network, got 1 for 2"),
        (lambda: fed_average(nets, [0, 0]), "weights: expected finite numbers >= 0, not all 0"),
        (lambda: fed_average(nets, [2, -1]), "weights: expected finite numbers >= 0"),
        (lambda: fed_average([nets[0], {}], [1, 1]), "state_dicts: expected the same names"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
