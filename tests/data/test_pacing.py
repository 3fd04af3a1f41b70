"""How a pool grows, in what order, and passes over a growing beginning of an order."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from preceptor.core.run import train
from preceptor.core.stream import Stream
from preceptor.data.curricula import Paced, Pacing, order_samples, pacing
from preceptor.methods.ce import CrossEntropy

NAMES = get_args(Pacing)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("a", "b", "steps", "items"), [(0.8, 0.2, 100, 500), (0.3, 0.0, 37, 11), (1.0, 1.0, 10, 64), (1.7, 0.5, 9, 3)])
def test_a_pool_grows_from_its_start_to_all(name, a, b, steps, items):
    grow = pacing(name, a, b, steps, items)
    sizes = [grow(t) for t in range(3 * steps)]
    assert sizes == sorted(sizes)
    assert all(type(size) is int and 1 <= size <= items for size in sizes)
    assert abs(sizes[0] - max(1, int(b * items))) <= (name == "log")
    assert all(size >= items - 1 for size in sizes[math.ceil(a * steps) :])
    assert grow(10**9) == items


def test_reference():
    items, first, full = 500, 100.0, 80.0
    forms = {
        "linear": lambda u: u,
        "quad": lambda u: u**2,
        "sqrt": lambda u: u**0.5,
        "exp": lambda u: (math.exp(10 * u) - 1) / (math.exp(10) - 1),
        "log": lambda u: 1 + math.log(u + math.exp(-10)) / 10,
    }
    for name, form in forms.items():
        grow = pacing(name, 0.8, 0.2, 100, items)
        for t in (3, 13, 41, 79):
            assert grow(t) == int(first + (items - first) * form(t / full)), (name, t)
    step = pacing("step", 0.8, 0.2, 100, items)
    assert [step(t) for t in (0, 79, 80, 100)] == [100, 100, 500, 500]


def test_all_at_once():
    for name in NAMES:
        assert {pacing(name, 0.0, 0.1, 10, 7)(t) for t in range(10)} == {7}
    assert {pacing("step", 1.0, 1.0, 10, 7)(t) for t in range(20)} == {7}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("cubic", 1, 1, 1, 1), "name: expected one of linear"),
        (("linear", -1, 1, 1, 1), "a: expected a finite number >= 0, got -1"),
        (("linear", math.inf, 1, 1, 1), "a: expected a finite"),
        (("linear", 1, 2, 1, 1), "b: expected"),
        (("linear", 1, 1, 0, 1), "total_steps: expected at least 1, got 0"),
        (("linear", 1, 1, 1, 0), "total_items: expected at least 1, got 0"),
    ],
)
def test_bad_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        pacing(*options)


def test_orders():
    losses = torch.rand(50, dtype=torch.double)
    curr = order_samples(losses, "curr")
    assert torch.equal(losses[curr], losses.sort().values)
    assert torch.equal(order_samples(losses, "anti"), curr.flip(0))
    drawn = order_samples(losses, "rand", generator=torch.Generator().manual_seed(1))
    assert sorted(drawn.tolist()) == list(range(50))
    assert not torch.equal(drawn, curr)
    ties = torch.tensor([1.0, torch.nan, 0.0, 1.0, torch.inf, 0.0, -torch.inf])
    assert order_samples(ties, "curr").tolist() == [2, 5, 0, 3, 1, 4, 6]
    assert order_samples(ties, "anti").tolist() == [0, 3, 2, 5, 1, 4, 6]
    assert set(order_samples(ties, "rand", generator=torch.Generator().manual_seed(1))[4:].tolist()) == {1, 4, 6}
    for call, message in (
        (lambda: order_samples(losses, "rand"), "generator: expected one for the order 'rand'"),
        (lambda: order_samples(losses[None], "curr"), r"losses: expected shape \(samples,\), got \(1, 50\)"),
        (lambda: order_samples(losses, "easy"), "mode: expected one of curr, anti, rand"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def rows(total):
    return {"x": torch.arange(total, dtype=torch.double)[:, None], "y": torch.arange(total) % 2, "id": torch.arange(total)}


def test_passes_over_what_is_in():
    order = torch.arange(20).flip(0)
    source = Paced(rows(20), order, lambda t: 4 + t, batch_size=3, minimum=5, seed=1)
    assert isinstance(source, Stream)
    first = [next(source)["id"] for _ in range(2)]
    assert sorted(torch.cat(first).tolist()) == [15, 16, 17, 18, 19]  # the minimum: 5, in batches of 3 and 2
    second = [next(source)["id"] for _ in range(2)]
    assert sorted(torch.cat(second).tolist()) == [14, 15, 16, 17, 18, 19]  # 4 + 2
    assert torch.equal(torch.cat([part["id"] for part in source.scan()]), order)
    few = Paced(rows(4), torch.arange(4), lambda t: 1, batch_size=10, minimum=32, seed=1)
    assert sorted(next(few)["id"].tolist()) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        Paced(rows(4), torch.arange(0), lambda t: 1, batch_size=10, seed=1)


def test_a_position_is_taken_up_again():
    make = lambda: Paced(rows(20), torch.arange(20), lambda t: 5 + t, batch_size=3, seed=1)  # noqa: E731
    source, other = make(), make()
    for _ in range(4):
        next(source)
    other.load_state_dict(source.state_dict())
    assert all(torch.equal(next(source)["id"], next(other)["id"]) for _ in range(9))


def test_it_serves_a_central_run():
    """An ordered run of the usual loop sees easy samples first and all of them at the end."""
    torch.manual_seed(0)
    seen = []

    class Watched(torch.nn.Linear):
        def forward(self, x):
            seen.append(set(x[:, 0].int().tolist()))
            return super().forward(x / 40)

    model = Watched(1, 2).double()
    losses = torch.arange(40.0).flip(0)
    source = Paced(rows(40), order_samples(losses, "curr"), pacing("linear", 0.5, 0.2, 40, 40), batch_size=8, seed=0)
    train(CrossEntropy(), {"student": model}, source, torch.optim.SGD(model.parameters(), lr=0.1), steps=40)
    assert seen[0] == set(range(32, 40))
    assert set().union(*seen[-10:]) == set(range(40))
