"""Networks over series see the past alone, and far enough back."""

import pytest
import torch

from preceptor.models.series import SeriesGRU, SeriesTCN


def made(name, steps):
    torch.manual_seed(0)
    network = SeriesGRU(2, 3, width=5) if name == "gru" else SeriesTCN(2, 3, steps=steps, width=5)
    return network.double().eval()


@pytest.mark.parametrize("name", ["gru", "tcn"])
@pytest.mark.parametrize("steps", [1, 6, 40])
def test_an_output_sees_every_earlier_step_and_no_later_one(name, steps):
    network = made(name, steps)
    x = torch.randn(2, steps, 2, dtype=torch.double, requires_grad=True)
    said = network(x)
    assert said.shape == (2, steps, 3)
    middle = steps // 2
    (reached,) = torch.autograd.grad(said[0, middle].sum(), x, retain_graph=True)
    assert not reached[1].any()
    assert not reached[0, middle + 1 :].any()
    (reached,) = torch.autograd.grad(said[0, -1].sum(), x)
    if name == "gru":
        assert (reached[0].abs().sum(-1) > 0).all()
    else:  # a path of rectified units may be closed, but the first step is in reach
        assert network.reach >= steps


def test_the_reach_is_that_of_its_convolutions():
    network = SeriesTCN(1, 1, steps=30, width=4, dropout=0.0).double()
    for weight in network.parameters():  # all paths open: positive weights and inputs
        torch.nn.init.constant_(weight, 0.1)
    x = torch.ones(1, 80, 1, dtype=torch.double, requires_grad=True)
    (reached,) = torch.autograd.grad(network(x)[0, -1].sum(), x)
    assert int((reached != 0).sum()) == network.reach
    assert len(SeriesTCN(1, 1, steps=5).blocks) == 1  # a block of kernel 3 and dilation 1 sees 5 steps
    assert len(SeriesTCN(1, 1, steps=6).blocks) == 2


def test_gradient():
    for name in ("gru", "tcn"):
        network = made(name, 4)
        x = torch.randn(1, 4, 2, dtype=torch.double, requires_grad=True)
        assert torch.autograd.gradcheck(network, (x,))
