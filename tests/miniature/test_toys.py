"""Networks in two halves, their samples, and rows in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.symbols import ContextLM, TextLM
from preceptor.miniature.toys import Halves, LastSymbols, Rows, ToySampler, fit_rows, small_network
from preceptor.models.heads import head, hidden_states
from preceptor.models.taps import forward


@pytest.fixture
def network() -> Halves:
    """Four symbols, two of them seen, and what it says is not uniform."""
    torch.manual_seed(0)
    body = LastSymbols(symbols=4, context=2, joint=True)
    return Halves(body, nn.Linear(body.size, 4))


def test_the_halves_make_up_the_whole(network):
    x = {"input_ids": torch.randint(4, (3, 5)), "use_cache": False}
    layer = head(network)
    torch.testing.assert_close(hidden_states(network, x) @ layer.weight.T + layer.bias, forward(network, x).logits)
    assert layer.weight is network.output.weight


def test_a_position_sees_its_symbol_and_the_one_before():
    ids = torch.tensor([[3, 1]])
    joint = LastSymbols(symbols=4, context=2, joint=True)(ids)
    assert joint.argmax(-1).tolist() == [[3, 13]]  # 0 3 and 3 1
    apart = LastSymbols(symbols=4, context=2)(ids)
    assert apart.shape == (1, 2, 8)
    assert apart.view(1, 2, 2, 4).argmax(-1).tolist() == [[[0, 3], [3, 1]]]


def test_samples_follow_the_network(network):
    prompt = {"input_ids": torch.ones(20000, 1, dtype=torch.int64), "attention_mask": torch.ones(20000, 1, dtype=torch.int64)}
    sampler = ToySampler()
    sampler.sync(network)
    written = sampler.sample(prompt, max_new_tokens=2, seed=3)
    expected = forward(network, {"input_ids": torch.tensor([[1]])}).logits[0, 0].log_softmax(-1)
    shares = torch.bincount(written.ids[:, 0], minlength=4) / 20000
    assert (shares - expected.exp()).abs().max() < 0.02
    torch.testing.assert_close(written.log_probs[:, 0], expected[written.ids[:, 0]].detach())
    assert torch.equal(written.ids, sampler.sample(prompt, max_new_tokens=2, seed=3).ids)
    assert not torch.equal(written.ids, sampler.sample(prompt, max_new_tokens=2, seed=4).ids)


def test_rows_come_once_per_epoch_and_from_where_they_were():
    whole = {"y": torch.arange(7), "id": torch.arange(7)}
    rows = Rows(whole, batch_size=3, seed=1)
    epochs = [[next(rows) for _ in range(3)] for _ in range(2)]
    orders = [torch.cat([batch["id"] for batch in epoch]).tolist() for epoch in epochs]
    assert orders[0] != orders[1]
    assert [sorted(order) for order in orders] == [list(range(7))] * 2
    assert [batch["epoch"] for epoch in epochs for batch in epoch] == [0, 0, 0, 1, 1, 1]
    assert torch.cat([batch["id"] for batch in rows.scan()]).tolist() == list(range(7))
    position = rows.state_dict()
    following = next(rows)["id"]
    again = Rows(whole, batch_size=3, seed=1)
    again.load_state_dict(position)
    assert torch.equal(next(again)["id"], following)


def test_a_small_network_is_one_of_contexts_in_two_halves():
    torch.manual_seed(0)
    halves = small_network(symbols=4, context=2, hidden=8)
    torch.manual_seed(0)
    whole = TextLM(ContextLM(symbols=4, context=2, hidden=8))
    ids = torch.randint(4, (3, 5))
    torch.testing.assert_close(halves(input_ids=ids)["logits"], whole(ids))


def test_training_on_rows_learns_them_and_tells_of_every_update():
    torch.manual_seed(0)
    student = small_network(symbols=4, context=1, hidden=8)
    ids = torch.arange(4).repeat(5)[:, None]
    rows = {"x": {"input_ids": ids}, "y": (ids + 1) % 4, "mask": torch.ones_like(ids), "id": torch.arange(20)}
    seen = []
    options = {"batch_size": 5, "learning_rate": 0.05, "steps": 60, "seed": 0}
    fit_rows(CrossEntropy(), {"student": student}, rows, **options, progress=lambda record: seen.append(record.step))
    assert torch.equal(forward(student, rows["x"]).logits.argmax(-1), rows["y"])
    assert seen == list(range(1, 61))
