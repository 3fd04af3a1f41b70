"""Streams of classes and their learners: against plain loops, at their limits, and what each keeps of a task."""

import math

import pytest
import torch
import torch.nn.functional as F

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.metrics.classification import accuracy
from preceptor.miniature.class_streams import EWC, ClassStream, LwF, Replay, fisher_diagonal, run_order, run_orders
from preceptor.miniature.worlds import Labels, seeded
from preceptor.models.reference import MLP

LEARNERS = pytest.mark.parametrize("learner", [Labels(), EWC(strength=5.0), LwF(), Replay(share=0.4)], ids=lambda m: type(m).__name__)


def network(seed):
    return seeded(lambda: MLP(inputs=4, hidden=(6,), classes=4).double(), seed)


def clouds(seed, count):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    return examples_from((3 * torch.eye(4)[labels].double() + torch.randn(count, 4, dtype=torch.double, generator=generator), labels), 4)


def stream(**options):
    return ClassStream(
        **({"train": clouds(0, 40), "test": clouds(1, 48), "network": network, "batch_size": 4, "learning_rate": 0.05} | options)
    )


def learn(learner, tasks, roles, state, learning_rate=0.05):
    """Train on parts of the stream's classes, one after another."""
    optimizer = torch.optim.SGD(roles["student"].parameters(), lr=learning_rate)
    for label in tasks:
        part = stream().train
        source = Source(part.subset((part.labels == label).nonzero()[:, 0]), batch_size=4, seed=0)
        train(learner, roles, source, optimizer, steps=state.step + source.batches_per_epoch, state=state)


def test_naive_learning_against_a_plain_loop():
    world, order = stream(), [2, 0, 3, 1]
    model = network(5)
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    expected = []
    for label in order:
        part = world.train.subset((world.train.labels == label).nonzero()[:, 0])
        source = Source(part, batch_size=4, seed=5)
        for _ in range(source.batches_per_epoch):
            batch = next(source)
            adam.zero_grad()
            F.cross_entropy(model(batch["x"]), batch["y"]).backward()
            adam.step()
        test = world.test.batch(torch.arange(48))
        right = accuracy(model(test["x"]), test["y"])
        expected.append([right[test["y"] == c].mean().item() for c in range(4)])
    found = run_order(order, Labels(), world, 5)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.double), rtol=0, atol=1e-12)
    assert found[0, 2] == 1
    assert found[0, [0, 1, 3]].max() < 0.2


@LEARNERS
def test_orders_that_begin_alike_share_it_and_each_is_as_if_it_ran_alone(learner):
    orders = [[0, 1, 2, 3], [3, 1, 0, 2], [0, 1, 3, 2], [0, 1, 2, 3], [3, 1, 2, 0]]
    before = torch.random.get_rng_state()
    together = run_orders(orders, learner, stream(), 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    for order, found in zip(orders, together, strict=True):
        assert torch.equal(found, run_order(order, learner, stream(), 3))
    assert torch.equal(together[0, :2], together[2, :2])
    assert not torch.equal(together[0], run_order(orders[0], learner, stream(), 4))


def test_draws_go_on_from_task_to_task():
    draws = []

    class Drawing(Labels):
        def prepare(self, batch, roles, state):
            draws.append(torch.rand((), generator=state.rng).item())
            return batch

    run_order([1, 0, 3, 2], Drawing(), stream(), 0)
    assert len(draws) == len(set(draws)) == 4 * 3


def test_groups_are_learned_together_and_classes_in_none_are_left_out():
    pairs = stream(groups=[(0, 1), (3, 2)])
    found = run_order([1, 0], Labels(), pairs, 0)
    assert found.shape == (2, 2)
    assert found[0, 1] > 0.8
    assert found[0, 0] < 0.2
    assert run_order([1, 0, 2], Labels(), stream(groups=[(0,), (2,), (3,)]), 0).shape == (3, 3)


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4]])
def test_an_order_holds_every_group_once(order):
    with pytest.raises(ValueError, match=r"^orders: expected each of the groups 0 to 3 once, got \["):
        run_order(order, Labels(), stream(), 0)


@pytest.mark.parametrize("learner", [EWC(strength=0.0), Replay(share=0.0)], ids=lambda m: type(m).__name__)
def test_a_learner_that_keeps_nothing_is_naive(learner):
    assert torch.equal(run_order([0, 1, 2, 3], learner, stream(), 0), run_order([0, 1, 2, 3], Labels(), stream(), 0))


def test_fisher_against_single_gradients():
    model, batch = network(0), clouds(2, 10).batch(torch.arange(10))
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y in zip(batch["x"], batch["y"], strict=True):
        model.zero_grad()
        torch.log_softmax(model(x[None]), dim=-1)[0, y].backward()
        for name, p in model.named_parameters():
            expected[name] += p.grad.square() / 10
    halves = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 3), slice(3, 10))]
    torch.testing.assert_close(fisher_diagonal(model, halves), expected)


def test_springs_pull_as_those_of_all_tasks_together():
    learner, state = EWC(strength=0.7), State(total_steps=0)
    roles = {"student": network(0)}
    kept = []
    for label in (0, 1, 2):
        learn(learner, [label], roles, state)
        part = stream().train
        task = part.batch((part.labels == label).nonzero()[:, 0])
        weights = {name: p.detach().clone() for name, p in roles["student"].named_parameters()}
        kept.append((fisher_diagonal(roles["student"], [task]), weights))
    batch = clouds(3, 8).batch(torch.arange(8))
    named = dict(roles["student"].named_parameters())
    with torch.no_grad():
        for i, p in enumerate(named.values()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=torch.double), alpha=0.1)
    slow = sum((fisher[name] * (p - rest[name]).square()).sum() for fisher, rest in kept for name, p in named.items())
    found = learner.loss(batch, {}, roles, state)
    assert found["springs"].ndim == 0
    expected = torch.autograd.grad(0.7 * slow, list(named.values()))
    torch.testing.assert_close(torch.autograd.grad(found["springs"], list(named.values())), expected)


def test_strong_springs_hold_what_mattered():
    moved = {}
    for strength in (0.0, 50.0):
        roles, state = {"student": network(0)}, State(total_steps=0)
        learn(EWC(strength=strength), [0], roles, state)
        before = {name: p.detach().clone() for name, p in roles["student"].named_parameters()}
        stiffness = {name: torch.as_tensor(state.memory[f"ewc/stiffness/{name}"]) for name in before}
        learn(EWC(strength=strength), [1, 2], roles, state)
        moved[strength] = sum(
            float((stiffness[name] * (p.detach() - before[name]).square()).sum()) for name, p in roles["student"].named_parameters()
        )
    assert moved[50.0] < 0.5 * moved[0.0]


def test_learning_without_forgetting_remembers_the_network_and_its_classes():
    learner, state, roles = LwF(), State(total_steps=0), {"student": network(0)}
    batch = clouds(3, 8).batch(torch.arange(8))
    roles |= learner.extra_roles(roles, batch)
    for task, label in enumerate([2, 0, 3, 1], start=1):
        terms = learner.loss(batch, learner.signal(batch, roles, state), roles, state)
        assert ("previous" in terms) == (task > 1)
        assert terms.get("previous", torch.zeros(8)).abs().max() < 1e-12  # when a task begins the two networks are the same
        learn(learner, [label], roles, state)
        assert state.memory["lwf/tasks"] == task
        assert torch.as_tensor(state.memory["lwf/known"]).tolist() == sorted([2, 0, 3, 1][:task])
        assert all(torch.equal(a, b) for a, b in zip(roles["student"].parameters(), roles["previous"].parameters(), strict=True))


@pytest.mark.parametrize(("tasks", "weight"), [(1, 1 / 2), (2, 4 / 3), (3, 9 / 4), (4, 16 / 5)])
def test_weight_and_divergence_of_learning_without_forgetting(tasks, weight):
    torch.manual_seed(0)
    old, batch, known = torch.randn(8, 4, dtype=torch.double), clouds(3, 8).batch(torch.arange(8)), [0, 1, 3]
    roles, state = {"student": network(0)}, State(total_steps=0)
    state.memory |= {"lwf/tasks": tasks, "lwf/known": torch.tensor(known)}
    p, q = (logits[:, known].softmax(-1) for logits in (old, roles["student"](batch["x"])))
    found = LwF().loss(batch, {"logits": old}, roles, state)["previous"]
    torch.testing.assert_close(found, weight * (p * (p.log() - q.log())).sum(-1))


def test_replay_keeps_its_share_of_every_task_and_adds_no_example_twice():
    learner, state, roles = Replay(share=0.3), State(total_steps=0), {"student": network(0)}
    for count, label in enumerate([1, 3, 0], start=1):
        learn(learner, [label], roles, state)
        kept = torch.as_tensor(state.memory["replay/y"]).tolist()
        assert kept == [c for c in [1, 3, 0][:count] for _ in range(3)]  # 30 % of 10
        part = stream().train
        ids = torch.as_tensor(state.memory["replay/id"])
        assert len(ids.unique()) == len(ids)
        assert torch.equal(torch.as_tensor(state.memory["replay/x"]), part.batch(ids)["x"])
    batch = clouds(4, 4).batch(torch.arange(4))
    joined = learner.prepare(batch, roles, state)
    assert len(joined["y"]) == 8
    assert torch.equal(joined["x"][:4], batch["x"])
    added = joined["id"][4:]
    assert len(added.unique()) == 4
    assert torch.isin(added, ids).all()
    large = clouds(4, 40).batch(torch.arange(40))
    assert len(learner.prepare(large, roles, state)["y"]) == 49  # all nine that are kept


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EWC(strength=-1.0), r"^strength: expected a number >= 0, got -1.0$"),
        (lambda: EWC(strength=math.nan), r"^strength: expected a number >= 0, got nan$"),
        (lambda: Replay(share=1.5), r"^share: expected a number in \[0, 1\], got 1.5$"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
