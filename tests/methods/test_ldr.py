"""LDR-KL and ALDR-KL as a method."""

import pytest
import torch
from torch import nn

from preceptor.core.state import State
from preceptor.losses.ldr import adaptation_cost, adapted, ldr, normalised
from preceptor.methods.ldr import CARD, LDR


def world():
    torch.manual_seed(0)
    roles = {"student": nn.Linear(3, 4).double(), "teacher": nn.Linear(3, 4).double()}
    return roles, {"x": torch.randn(5, 3, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2]), "id": torch.tensor([7, 2, 0, 4, 9])}


def turn(method, roles, batch, state):
    method.prepare(batch, roles, state)
    terms = method.loss(batch, method.signal(batch, roles, state), roles, state)
    method.after_step(batch, {}, roles, state)
    return terms


def test_defaults_are_those_of_the_card():
    method = LDR()
    assert (method.lam, method.margin, method.alpha, method.adaptive, method.normalise) == (10.0, 0.1, 2.0, "table", "l1")
    assert (CARD.slug, CARD.needs) == ("ldr", ("labels",))


def test_the_table_moves_at_the_end_of_the_step_and_only_for_those_seen():
    roles, batch = world()
    method, state = LDR(lam=1.0), State(total_steps=2)
    scores = normalised(roles["student"](batch["x"]), "l1")
    first = adapted(scores, torch.ones(5), base=1.0, strength=2.0)
    second = adapted(scores, first, base=1.0, strength=2.0)
    for lam in (first, second):
        method.prepare(batch, roles, state)
        terms = [method.hard(roles["student"](batch["x"]), batch, state) for _ in range(2)]  # asked twice: the same answer
        expected = ldr(roles["student"](batch["x"]), batch["y"], lam=lam, margin=0.1, normalise="l1")
        torch.testing.assert_close(terms[0]["hard"], expected - adaptation_cost(lam, 4, base=1.0, strength=2.0))
        torch.testing.assert_close(terms[1]["hard"], terms[0]["hard"])
        method.after_step(batch, {}, roles, state)
        table = state.memory["ldr/lambda"]
        torch.testing.assert_close(table[batch["id"]], lam)
        unseen = torch.ones(10, dtype=torch.bool)
        unseen[batch["id"]] = False
        assert (table[unseen] == 1.0).all()
        assert state.log["lambda"] == pytest.approx(lam.mean().item())
    assert set(state.memory) == {"ldr/lambda"}
    assert not torch.allclose(first, second)


def test_masked_examples_and_examples_of_others_leave_the_table_alone():
    roles, batch = world()
    method, state = LDR(lam=1.0), State(total_steps=1)
    turn(method, roles, {**batch, "mask": torch.tensor([1.0, 0, 1, 1, 1])}, state)
    assert state.memory["ldr/lambda"][2] == 1.0
    before = state.memory["ldr/lambda"].clone()
    method.prepare(batch, roles, state)
    method.hard(roles["student"](batch["x"]), batch, state)
    method.after_step({**batch, "id": batch["id"][:1]}, {}, roles, state)
    changed = state.memory["ldr/lambda"] != before
    assert changed.nonzero().flatten().tolist() == [7]


def test_an_example_twice_in_a_batch_gets_the_mean():
    roles, batch = world()
    method, state = LDR(lam=1.0), State(total_steps=1)
    turn(method, roles, {**batch, "id": torch.tensor([3, 3, 0, 1, 2])}, state)
    lam = adapted(normalised(roles["student"](batch["x"]), "l1"), torch.ones(5), base=1.0, strength=2.0)
    assert state.memory["ldr/lambda"][3].item() == pytest.approx(lam[:2].mean().item())


def test_an_unfinished_step_is_forgotten():
    roles, batch = world()
    method, state = LDR(lam=1.0), State(total_steps=1)
    method.hard(roles["student"](batch["x"]) * 100, batch, state)
    turn(method, roles, batch, state)
    lam = adapted(normalised(roles["student"](batch["x"]), "l1"), torch.ones(5), base=1.0, strength=2.0)
    torch.testing.assert_close(state.memory["ldr/lambda"][batch["id"]], lam)


def test_without_a_table():
    roles, batch = world()
    state = State(total_steps=1)
    logits = roles["student"](batch["x"])
    plain = turn(LDR(adaptive="none", normalise="softplus"), roles, batch, state)["hard"]
    torch.testing.assert_close(plain, ldr(logits, batch["y"], lam=10.0, margin=0.1, normalise="softplus"))
    huge = turn(LDR(alpha=1e12), roles, batch, state)["hard"]
    torch.testing.assert_close(huge, ldr(logits, batch["y"], lam=10.0, margin=0.1, normalise="l1"))
    state.memory.clear()
    exact = turn(LDR(adaptive="exact", lam=1.0), roles, batch, state)["hard"]
    assert not state.memory
    lams = torch.linspace(0.51, 1.0, 2000, dtype=torch.double)
    values = [ldr(logits, batch["y"], lam=lam.expand(5), margin=0.1, normalise="l1") for lam in lams]
    best = torch.stack([v - adaptation_cost(lam, 4, base=1.0, strength=2.0) for v, lam in zip(values, lams, strict=True)]).amax(0)
    torch.testing.assert_close(exact, best, rtol=0, atol=1e-5)


def test_probabilities_and_a_teacher():
    roles, batch = world()
    state = State(total_steps=1)
    probs = torch.rand(5, 4, dtype=torch.double).softmax(-1)
    for adaptive in ("none", "table", "exact"):
        assert torch.isfinite(turn(LDR(adaptive=adaptive), roles, {**batch, "targets": probs}, state)["hard"]).all()
    terms = turn(LDR(soft_weight=0.5), roles, batch, state)
    teacher = roles["teacher"](batch["x"]).softmax(-1)
    expected = ldr(roles["student"](batch["x"]), teacher, lam=10.0, margin=0.1, normalise="l1")
    torch.testing.assert_close(terms["soft"], 0.5 * expected)
    with pytest.raises(ValueError, match=r"^soft_weight: expected 0 without a teacher, got 0.5$"):
        LDR(soft_weight=0.5).signal(batch, {}, state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.0}, r"^alpha: expected a number > 1, got 1.0$"),
        ({"lam": -1.0}, r"^lam: expected a finite number > 0, got -1.0$"),
        ({"margin": -0.1}, r"^margin: expected a finite number >= 0, got -0.1$"),
        ({"member": "cs"}, r"^adaptive: expected none for the member cs, got 'table'$"),
        ({"adaptive": "maybe"}, r"^adaptive: expected one of table, exact, none, got 'maybe'$"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        LDR(**options)
