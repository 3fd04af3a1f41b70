"""The error on the line between two networks."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from preceptor.metrics.landscape import error_barrier, errors_on_line
from preceptor.models.reference import MLP


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return tuple(MLP(inputs=4, hidden=(8,), classes=3).double() for _ in range(2))


def loss(model: nn.Module) -> float:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(50, 4, generator=generator, dtype=torch.double), torch.randint(3, (50,), generator=generator)
    return float(nn.functional.cross_entropy(model(x), y).detach())


def test_of_equal_networks_there_is_no_barrier():
    first, _ = pair()
    errors = errors_on_line(first, copy.deepcopy(first), loss)
    assert len(errors) == 11
    assert all(math.isclose(error, loss(first), rel_tol=1e-12) for error in errors)
    assert math.isclose(error_barrier(errors), 0.0, abs_tol=1e-12)


def test_against_a_loop_over_weights():
    first, second = pair()
    before = copy.deepcopy((first.state_dict(), second.state_dict()))
    wanted = []
    for step in range(5):
        model = MLP(inputs=4, hidden=(8,), classes=3).double()
        for p, a, b in zip(model.parameters(), first.parameters(), second.parameters(), strict=True):
            p.data = a.data + step / 4 * (b.data - a.data)
        wanted.append(loss(model))
    found = errors_on_line(first, second, loss, points=5)
    assert all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(found, wanted, strict=True))
    assert (found[0], found[-1]) == (loss(first), loss(second))
    assert errors_on_line(second, first, loss, points=5) == pytest.approx(found[::-1], rel=1e-12)
    for model, kept in zip((first, second), before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_a_convex_loss_has_no_barrier_above_the_worse_end():
    torch.manual_seed(0)
    first, second = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    errors = errors_on_line(first, second, loss)
    assert max(errors) == max(errors[0], errors[-1])
    assert math.isclose(error_barrier(errors), abs(errors[0] - errors[-1]) / 2, rel_tol=1e-12)


def test_a_network_with_its_units_in_another_order_is_the_same_function_behind_a_barrier():
    torch.manual_seed(0)
    first = MLP(inputs=4, hidden=(8,), classes=3).double()
    x = torch.randn(200, 4, dtype=torch.double)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()

    def error(model: nn.Module) -> float:
        return float((model(x).argmax(1) != y).double().mean())

    optimizer = torch.optim.Adam(first.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(first(x), y).backward()
        optimizer.step()
    second, order = copy.deepcopy(first), torch.arange(8).roll(1)
    with torch.no_grad():
        for p, q in zip(first.hidden1.linear.parameters(), second.hidden1.linear.parameters(), strict=True):
            q.copy_(p[order])
        second.fc.weight.copy_(first.fc.weight[:, order])
    errors = errors_on_line(first, second, error)
    assert errors[0] == errors[-1] < 0.1
    assert error_barrier(errors) > 0.1


def test_whole_numbers_among_the_buffers_stay_whole():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    second = copy.deepcopy(first)
    first(torch.randn(8, 2))
    counted = errors_on_line(first, second, lambda model: float(model[1].num_batches_tracked), points=3)
    assert counted == [1.0, 0.0, 0.0]


def test_bad_input_is_refused():
    first, second = pair()
    with pytest.raises(ValueError, match=r"^points: expected at least 2, got 1$"):
        errors_on_line(first, second, loss, points=1)
    with pytest.raises(ValueError, match=r"^second: expected the names and shapes of first, got a difference at 'fc.weight'$"):
        errors_on_line(first, MLP(inputs=4, hidden=(9,), classes=3).double(), loss)
    with pytest.raises(ValueError, match=r"^errors: expected at least 2, got 1$"):
        error_barrier([0.5])
