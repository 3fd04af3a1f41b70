"""Federated training with curricula."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.parity import check_folder
from tests.test_parity import GOLDEN
from torch import nn

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.stream import as_stream
from preceptor.data.rows import join
from preceptor.losses.hard import hard_loss
from preceptor.methods.fl_curricula import FLCurricula, sample_scores
from preceptor.models.averaging import fed_average
from preceptor.models.taps import forward

PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "decay": 0.0, "learning_rate": 0.1}


def make_clients(sizes=(12, 20, 33, 15), spread=1.0):
    generator = torch.Generator().manual_seed(2)
    clients, start = [], 0
    for i, size in enumerate(sizes):
        x = spread * torch.randn(size, 4, dtype=torch.double, generator=generator)
        clients.append({"x": x, "y": torch.randint(3, (size,), generator=generator), "id": torch.arange(start, start + size)})
        clients[-1]["x"][:, 0] += 2.0 * i * (clients[-1]["y"] == 0)
        start += size
    return clients


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def run(method, student, clients=None, *, steps=4, seed=0, **roles):
    logs = []
    source = as_stream(make_clients() if clients is None else clients)
    state = train(method, {"student": student, **roles}, source, {}, steps=steps, seed=seed, progress=logs.append)
    return state, logs


def test_one_full_batch_step_of_all_clients_is_one_central_step():
    student, clients = network(), make_clients()
    central = copy.deepcopy(student)
    whole = join(clients)
    gradient = torch.autograd.grad(F.cross_entropy(central(whole["x"]), whole["y"]), list(central.parameters()))
    method = FLCurricula(fraction=1.0, batch_size=100, a=0.0, **PLAIN)  # a batch larger than the data: T = 1
    run(method, student, clients, steps=1)
    for p, before, g in zip(student.parameters(), central.parameters(), gradient, strict=True):
        torch.testing.assert_close(p, before - 0.1 * g)


def test_one_round_by_hand():
    """Local training of one client as the equations have it, with the order and the passes that the stream gives."""
    student, clients = network(), make_clients((50,))
    method = FLCurricula(fraction=1.0, local_epochs=3, batch_size=10, weight_decay=0.01, decay=0.1)
    drawn = []

    class Noted(Method):
        def loss(self, batch, signal, roles, state):
            drawn.append(batch["id"])
            return {"hard": hard_loss(forward(roles["student"], batch["x"]).logits, batch)}

    by_hand = copy.deepcopy(student)
    run(FLCurricula(**{**vars(method), "local": Noted()}), student, clients, steps=1)
    assert len(drawn) == 18  # (50 // 10 + 1) * 3
    order = sample_scores([by_hand], clients[0]).argsort(stable=True)
    assert set(torch.cat(drawn[:4]).tolist()) == set(order[:32].tolist())
    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    for t, rows in enumerate(drawn):
        loss = F.cross_entropy(by_hand(clients[0]["x"][rows]), clients[0]["y"][rows])
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for p, v, g in zip(by_hand.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g + 0.01 * p)
                p.sub_(0.01 * (1 + 0.1 * t) ** -0.75 * v)
    for p, q in zip(student.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_orders_decide_what_is_seen_first():
    clients = make_clients((60,))
    seen = {}

    class First(Method):
        def loss(self, batch, signal, roles, state):
            seen.setdefault(name, batch["id"])
            return {"hard": hard_loss(forward(roles["student"], batch["x"]).logits, batch)}

    scores = sample_scores([network()], clients[0])
    for name in ("curr", "anti", "rand"):
        run(FLCurricula(ordering=name, fraction=1.0, minimum=1, b=0.1, batch_size=6, local=First()), network(), clients, steps=1)
    assert set(seen["curr"].tolist()) == set(scores.argsort()[:6].tolist())
    assert set(seen["anti"].tolist()) == set(scores.argsort()[-6:].tolist())
    assert set(seen["rand"].tolist()) not in (set(seen["curr"].tolist()), set(seen["anti"].tolist()))


def test_all_samples_at_once_have_no_order():
    vanilla = {"pace": "step", "a": 1.0, "b": 1.0, "fraction": 0.5}
    seen = []

    class Sizes(Method):
        def loss(self, batch, signal, roles, state):
            seen.append(len(batch["id"]))
            return {"hard": hard_loss(forward(roles["student"], batch["x"]).logits, batch)}

    run(FLCurricula(**vanilla, local=Sizes()), network(), make_clients((60,)), steps=1)
    assert seen == [10] * 7


def test_the_server_keeps_part_of_itself():
    frozen, half, full = network(), network(), network()
    start = copy.deepcopy(frozen.state_dict())
    for net, momentum in ((frozen, 1.0), (half, 0.5), (full, 0.0)):
        run(FLCurricula(server_momentum=momentum, fraction=0.5), net, steps=1)
    assert all(torch.equal(value, start[name]) for name, value in frozen.state_dict().items())
    middle = fed_average([start, full.state_dict()], [1, 1])
    for name, value in half.state_dict().items():
        torch.testing.assert_close(value, middle[name])
        assert not torch.equal(value, start[name])


def test_aggregation_is_a_function():
    calls = []

    def first_only(local, sizes):
        calls.append(sizes)
        return dict(local[0])

    run(FLCurricula(aggregate=first_only, fraction=0.5), network(), steps=2)
    assert [len(sizes) for sizes in calls] == [2, 2]
    assert sum(map(sum, calls)) == 80  # all four clients in one sweep


def test_every_client_takes_part_once_in_a_sweep():
    state, logs = run(FLCurricula(fraction=0.3), network(), make_clients((12,) * 5), steps=10)
    assert state.memory["fl/participations"].tolist() == [2] * 5  # one of five in a round
    assert ["pool" in record.extras for record in logs] == [True, False, False, False, False] * 2
    assert logs[0].items == 12


def test_the_pool_of_clients_grows_from_the_easiest():
    clients = make_clients((12,) * 8)
    options = {"client_ordering": "curr", "client_pace": "linear", "client_a": 0.5, "client_b": 0.25, "fraction": 0.25}
    student = network()
    scores = torch.stack([sample_scores([student], client).mean() for client in clients])
    state = State(total_steps=8, source=as_stream(clients))
    batch = FLCurricula(**options).prepare(clients[0], {"student": student}, state)
    assert set((batch["id"] // 12).unique().tolist()) == set(scores.argsort()[:2].tolist())
    assert state.log["pool"] == 2
    assert state.log["client_score"] == pytest.approx(float(scores.mean()))
    final, logs = run(FLCurricula(**options), student, clients, steps=8)
    pools = [record.extras["pool"] for record in logs if "pool" in record.extras]
    assert pools[0] == 2
    assert pools == sorted(pools)
    assert pools[-1] == 8
    assert int(final.memory["fl/participations"].sum()) == 2 * 8 - sum(size % 2 for size in pools)
    hardest = FLCurricula(**{**options, "client_ordering": "anti"})
    batch = hardest.prepare(clients[0], {"student": network()}, State(total_steps=8, source=as_stream(clients)))
    assert set((batch["id"] // 12).unique().tolist()) == set(scores.argsort()[-2:].tolist())


def test_a_pool_smaller_than_a_round_gives_a_short_round():
    options = {"client_ordering": "curr", "client_pace": "linear", "client_a": 2.0, "client_b": 0.0, "fraction": 0.5}
    state, logs = run(FLCurricula(**options), network(), make_clients((12,) * 8), steps=2)
    assert logs[0].items == 12
    assert int((state.memory["fl/participations"] > 0).sum()) < 8  # some never take part: the counts say so


@pytest.mark.parametrize("scoring", ["global", "local", "both", "expert"])
def test_whose_losses_count(scoring):
    clients, student, expert = make_clients((30, 30)), network(), network()
    with torch.no_grad():
        expert[2].weight.copy_(expert[2].weight.flip(0))
    method = FLCurricula(scoring=scoring, fraction=1.0)
    state = State(total_steps=3, source=as_stream(clients))
    roles = {"student": student, "teacher": expert}
    first = method.prepare(clients[0], roles, state)
    kept = any(name.startswith("fl/local/0/") for name in state.memory)
    assert kept == (scoring in ("local", "both"))
    at = [(i // 30) for i in first["id"][[0, 30]].tolist()]
    state.step, state.log = 1, {}
    method.prepare(clients[0], roles, state)
    owns = []
    for weights, _ in sorted(zip(first["local"], at, strict=True), key=lambda pair: pair[1]):
        owns.append(copy.deepcopy(student))
        owns[-1].load_state_dict(weights)
    models = {
        "global": [[student]] * 2,
        "local": [[own] for own in owns],
        "both": [[student, own] for own in owns],
        "expert": [[expert]] * 2,
    }
    wanted = sum(float(sample_scores(each, c).mean()) for each, c in zip(models[scoring], clients, strict=True)) / 2
    assert state.log["client_score"] == pytest.approx(wanted)


def test_an_expert_is_asked_for():
    with pytest.raises(ValueError, match="scoring 'expert' needs a role 'teacher'"):
        FLCurricula(scoring="expert").extra_roles({"student": network()}, make_clients()[0])
    assert FLCurricula().extra_roles({"student": network()}, make_clients()[0]) == {}


def test_scores():
    client, net = make_clients((9,))[0], network()
    losses = sample_scores([net], client)
    logits = net(client["x"]).detach()
    torch.testing.assert_close(losses, -logits.log_softmax(-1)[torch.arange(9), client["y"]])
    twice = copy.deepcopy(net)
    twice[2].weight.data.mul_(2)
    torch.testing.assert_close(sample_scores([net, twice], client), (losses + sample_scores([twice], client)) / 2)
    errors = sample_scores([net], client, difficulty="error")
    assert torch.equal(errors, (logits.argmax(1) != client["y"]).double())
    state = State(total_steps=1, source=as_stream([client]))
    FLCurricula(difficulty="error").prepare(client, {"student": net}, state)
    assert state.log["client_score"] == pytest.approx(float(errors.mean()))


def test_scoring_leaves_the_model_alone():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).double().train()
    before, draws = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    client = make_clients((9,))[0]
    sample_scores([net], client)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(p.grad is None for p in net.parameters())
    run(FLCurricula(fraction=1.0), net, [client], steps=1)
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])  # buffers are averaged too
    assert net[1].num_batches_tracked == before["1.num_batches_tracked"]  # counters are the server's


def test_a_local_method_sees_the_server():
    class Proximal(Method):
        def loss(self, batch, signal, roles, state):
            pairs = zip(roles["student"].parameters(), roles["server"].parameters(), strict=True)
            return {
                "hard": hard_loss(forward(roles["student"], batch["x"]).logits, batch),
                "near": 1e3 * sum((p - q).pow(2).sum() for p, q in pairs),
            }

    free, held = network(), network()
    start = copy.deepcopy(free.state_dict())
    for net, local in ((free, None), (held, Proximal())):
        run(FLCurricula(fraction=1.0, local=local, **{**PLAIN, "learning_rate": 1e-4}), net, steps=2)
    moved = [sum(float((v - start[k]).abs().sum()) for k, v in net.state_dict().items()) for net in (free, held)]
    assert moved[1] < 0.9 * moved[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "fraction: expected"),
        ({"fraction": 1.5}, "fraction: expected"),
        ({"scoring": "teacher"}, "scoring: expected one of global"),
        ({"difficulty": "hard"}, "difficulty: expected one of loss"),
        ({"client_ordering": "easy"}, "client_ordering: expected one of curr"),
        ({"client_pace": "cubic"}, "name: expected one of linear"),
        ({"b": -0.1}, "b: expected"),
        ({"minimum": 0}, "minimum: expected at least 1"),
        ({"server_momentum": 2.0}, "server_momentum: expected"),
        ({"weight_decay": -1.0}, "decay, weight_decay: expected numbers >= 0"),
    ],
)
def test_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        FLCurricula(**options)


def test_parity():
    lines = [line for line in check_folder(GOLDEN) if line.slug == "fl-curricula"]
    assert len(lines) == 3
    assert {line.status for line in lines} == {"ok"}
