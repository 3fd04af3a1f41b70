"""Batch normalisation by the batch."""

import copy

import pytest
import torch
from torch import nn

from preceptor.models.norms import batch_norms, by_batch, train_norms_alone


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.9), nn.Linear(6, 3))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("track", [False, True])
def test_the_batch_normalises_without_dropout_and_everything_comes_back(training, track):
    net, x = model().train(training), 3 + torch.randn(10, 4)
    before = copy.deepcopy(net.state_dict())
    hidden = net[0](x)
    expected = net[3]((hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt())
    with by_batch(net, track=track):
        torch.testing.assert_close(net(x), expected)
    assert all(module.training == training for module in net.modules())
    assert net[1].track_running_stats
    same = all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert same != track
    if track:
        torch.testing.assert_close(net[1].running_mean, 0.1 * hidden.mean(0))


def test_everything_comes_back_after_an_exception():
    net = model()
    with pytest.raises(RuntimeError), by_batch(net):
        net(torch.ones(2, 5))
    assert net[1].track_running_stats
    assert net.training
    assert batch_norms(net) == [net[1]]


def test_norms_alone_train():
    net = model()
    train_norms_alone(net)
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["1.weight", "1.bias"]
    with pytest.raises(ValueError, match="expected layers of normalisation with weights, got Linear without"):
        train_norms_alone(nn.Linear(2, 2))
