"""Answering and learning, batch by batch."""

import copy

import pytest
import torch
from torch import nn

from preceptor.core.method import Method
from preceptor.core.online import Online
from preceptor.core.stream import Repeated


class Follow(Method):
    """Moves its outputs towards those of a stream; answers are from before the update."""

    def loss(self, batch, signal, roles, state):
        outputs = roles["student"](batch["x"])
        state.memory["prediction"] = outputs.detach()
        state.memory["seen"] = state.memory.get("seen", 0) + 1
        wanted = next(state.streams["wanted"])["x"] + torch.randn(1, generator=state.rng).double()
        return {"squares": (outputs - wanted).square().mean(dim=1)}


def online(**options):
    torch.manual_seed(0)
    student = nn.Linear(3, 2).double()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    wanted = Repeated([{"x": torch.full((2,), float(i), dtype=torch.double)} for i in range(3)])
    return Online(Follow(), {"student": student}, {"student": optimizer}, streams={"wanted": wanted}, **options)


def inputs(num=4, seed=0):
    return torch.randn(num, 3, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def weights(one):
    return copy.deepcopy(one.roles["student"].state_dict())


def test_an_answer_is_from_before_the_update_and_a_reset_repeats_the_stream():
    one = online()
    one.roles["student"].eval()
    runs = []
    for _ in range(3):
        before = weights(one)
        answers = [one.adapt({"x": inputs(seed=i)}) for i in range(4)]
        torch.testing.assert_close(answers[0], inputs() @ before["weight"].T + before["bias"])
        runs.append(torch.stack(answers))
        assert not torch.equal(weights(one)["weight"], before["weight"])
        assert not one.roles["student"].training
        assert one.state.step == 4
        one.reset()
        assert torch.equal(weights(one)["weight"], before["weight"])
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_several_updates_answer_with_the_last():
    single, double = online(), online(updates=2)
    first, second = (single.adapt({"x": inputs()}) for _ in range(2))
    answer = double.adapt({"x": inputs()})
    assert torch.equal(answer, second)
    assert not torch.equal(answer, first)
    assert torch.equal(weights(single)["weight"], weights(double)["weight"])


def test_a_batch_that_is_not_finite_is_answered_and_leaves_no_trace():
    one = online()
    one.adapt({"x": inputs()})
    before = weights(one)
    bad = inputs(seed=1)
    bad[0, 0] = torch.inf
    answer = one.adapt({"x": bad})
    assert one.skipped == 1
    assert one.state.memory["seen"] == 1
    assert answer.shape == (4, 2)
    assert torch.equal(weights(one)["weight"], before["weight"])
    one.adapt({"x": inputs()})
    assert not torch.equal(weights(one)["weight"], before["weight"])


def test_a_window_learns_when_it_has_been_renewed():
    def predict(batch, roles):
        seen.append(len(batch["x"]))
        return roles["student"](batch["x"])

    seen, steps = [], []
    one = online(window=3, predict=predict)
    for i in range(7):
        before = weights(one)
        x = inputs(1, seed=i)
        torch.testing.assert_close(one.adapt({"x": x}), x @ before["weight"].T + before["bias"])
        steps.append(one.state.step)
    assert steps == [0, 0, 1, 1, 1, 2, 2]
    assert seen == [1, 2, 3, 3, 3]


def test_bad_settings():
    with pytest.raises(ValueError, match="updates: expected at least 1, got 0"):
        online(updates=0)
    with pytest.raises(ValueError, match="predict: expected a function beside a window, got None"):
        online(window=4)
