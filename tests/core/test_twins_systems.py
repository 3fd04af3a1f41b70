"""Very different methods through the one loop, each against a hand-written twin: averages, auxiliary networks, bandits, federations."""

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from tests.core.small import CrossEntropy, assert_same_weights, batches, net, vector
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from preceptor.core.method import Method, Phase
from preceptor.core.run import train

STEPS = 5


def soft_cross_entropy(target_logits, logits):
    return -(F.softmax(target_logits, -1) * F.log_softmax(logits, -1)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class MeanTeacher(Method):
    """Two noisy views; the student on one follows its own moving average on the other."""

    decay: float = 0.8
    noise: float = 0.3

    def prepare(self, batch, roles, state):
        noise = self.noise * torch.randn(2, *batch["x"].shape, generator=state.rng, dtype=batch["x"].dtype)
        return {**batch, "one": batch["x"] + noise[0], "two": batch["x"] + noise[1]}

    def signal(self, batch, roles, state):
        return {"one": roles["ema"](batch["one"]), "two": roles["ema"](batch["two"])}

    def loss(self, batch, signal, roles, state):
        one, two = roles["student"](batch["one"]), roles["student"](batch["two"])
        return {
            "hard": F.cross_entropy(one, batch["y"], reduction="none"),
            "same": 0.5 * (soft_cross_entropy(signal["two"], one) + soft_cross_entropy(signal["one"], two)),
        }

    def after_step(self, batch, records, roles, state):
        for kept, present in zip(roles["ema"].parameters(), roles["student"].parameters(), strict=True):
            kept.mul_(self.decay).add_(present, alpha=1 - self.decay)


def test_mean_teacher():
    student, data = net(0), batches(STEPS)
    ema = copy.deepcopy(student)
    optimizer = torch.optim.SGD(student.parameters(), 0.3, momentum=0.9)
    train(MeanTeacher(), {"student": student, "ema": ema}, data, optimizer, steps=STEPS, seed=2)

    twin, draws = net(0), torch.Generator().manual_seed(2)
    history = [vector(twin)]
    average = copy.deepcopy(twin).requires_grad_(False)
    optimizer = torch.optim.SGD(twin.parameters(), 0.3, momentum=0.9)
    for batch in data:
        noise = torch.randn(2, 8, 4, generator=draws, dtype=torch.double)
        views = [batch["x"] + 0.3 * noise[0], batch["x"] + 0.3 * noise[1]]
        optimizer.zero_grad()
        logits = [twin(view) for view in views]
        targets = [average(view) for view in views]
        same = soft_cross_entropy(targets[1], logits[0]).mean() / 2 + soft_cross_entropy(targets[0], logits[1]).mean() / 2
        (F.cross_entropy(logits[0], batch["y"]) + same).backward()
        optimizer.step()
        history.append(vector(twin))
        vector_to_parameters(0.8 * parameters_to_vector(average.parameters()) + 0.2 * history[-1], average.parameters())
    assert_same_weights(student, twin)
    assert_same_weights(ema, average)
    closed = 0.8**STEPS * history[0] + sum(0.2 * 0.8 ** (STEPS - s) * history[s] for s in range(1, STEPS + 1))
    torch.testing.assert_close(vector(ema), closed, rtol=1e-12, atol=1e-14)
    assert all(p.grad is None for p in ema.parameters())


class Velocity(nn.Module):
    """A velocity field v(x, t) in two dimensions."""

    def __init__(self, seed):
        super().__init__()
        self.body = net(seed, features=3, hidden=8, outputs=2)

    def forward(self, x, t):
        return self.body(torch.cat([x, t], -1))


@dataclass(frozen=True, kw_only=True)
class FlowMap(Method):
    """A one-step generator: it learns where the teacher's velocity and that of its own samples (learned beside it) disagree."""

    seen: list = field(default_factory=list, repr=False)

    def phases(self):
        return (
            Phase(name="generator", trains=("student",), signal=self.velocity, loss=self.generator_loss, update=self.update),
            Phase(name="auxiliary", trains=("auxiliary",), signal=self.signal, loss=self.auxiliary_loss, update=self.update),
        )

    def velocity(self, batch, roles, state):
        samples = roles["student"](batch["z"])
        points = (1 - batch["t"]) * batch["noise"] + batch["t"] * samples
        return {"teacher": roles["teacher"](points, batch["t"])}

    def generator_loss(self, batch, signal, roles, state):
        self.seen.append((state.step, "generator", flags(roles)))
        points = (1 - batch["t"]) * batch["noise"] + batch["t"] * roles["student"](batch["z"])
        return {"gap": (roles["auxiliary"](points, batch["t"]) - signal["teacher"]).square().sum(-1)}

    def auxiliary_loss(self, batch, signal, roles, state):
        self.seen.append((state.step, "auxiliary", flags(roles)))
        samples = roles["student"](batch["z"])
        points = (1 - batch["t"]) * batch["noise"] + batch["t"] * samples
        return {"flow": (roles["auxiliary"](points, batch["t"]) - (samples - batch["noise"])).square().sum(-1)}


def flags(roles):
    return {name: {p.requires_grad for p in module.parameters()} for name, module in roles.items()}


def prior(count, size=8):
    draws = torch.Generator().manual_seed(4)
    return [
        {
            "z": torch.randn(size, 2, generator=draws, dtype=torch.double),
            "noise": torch.randn(size, 2, generator=draws, dtype=torch.double),
            "t": torch.rand(size, 1, generator=draws, dtype=torch.double),
        }
        for _ in range(count)
    ]


def test_flow_map_with_two_phases():
    student, teacher, auxiliary, method = net(0, features=2, outputs=2), Velocity(1), Velocity(2), FlowMap()
    roles = {"student": student, "teacher": teacher, "auxiliary": auxiliary}
    optimizers = {"generator": torch.optim.Adam(student.parameters(), 0.05), "auxiliary": torch.optim.Adam(auxiliary.parameters(), 0.1)}
    records = []
    train(method, roles, prior(STEPS), optimizers, steps=STEPS, progress=records.append)

    twin, beside = net(0, features=2, outputs=2), Velocity(2)
    of_twin, of_beside = torch.optim.Adam(twin.parameters(), 0.05), torch.optim.Adam(beside.parameters(), 0.1)
    for batch in prior(STEPS):
        z, noise, t = batch["z"], batch["noise"], batch["t"]
        samples = twin(z)
        points = (1 - t) * noise + t * samples
        gap = (beside(points, t) - teacher(points, t).detach()).square().sum(-1).mean()
        slopes = torch.autograd.grad(gap, list(twin.parameters()))
        assert all(slope.abs().max() > 0 for slope in slopes)  # through the auxiliary network, which stays as it is
        for parameter, slope in zip(twin.parameters(), slopes, strict=True):
            parameter.grad = slope
        of_twin.step()
        samples = twin(z).detach()
        points = (1 - t) * noise + t * samples
        flow = (beside(points, t) - (samples - noise)).square().sum(-1).mean()
        of_beside.zero_grad()
        flow.backward()
        of_beside.step()
    assert_same_weights(student, twin)
    assert_same_weights(auxiliary, beside)
    assert vector(teacher).equal(vector(Velocity(1)))

    expected = {"generator": {"student": {True}, "teacher": {False}, "auxiliary": {False}}}
    expected["auxiliary"] = {"student": {False}, "teacher": {False}, "auxiliary": {True}}
    assert method.seen == [(step, name, expected[name]) for step in range(STEPS) for name in ("generator", "auxiliary")]
    assert flags(roles) == {name: {True} for name in roles}
    assert set(records[0].losses) == {"generator/gap", "generator/total", "auxiliary/flow", "auxiliary/total"}


class Tasks:
    """A stream that draws tasks by their estimated use, and learns it from feedback."""

    def __init__(self, count=4, size=6):
        self.scores, self.size = torch.zeros(count, dtype=torch.double), size
        self.draws = torch.Generator().manual_seed(8)

    def __next__(self):
        task = torch.multinomial(self.scores.softmax(0), self.size, replacement=True, generator=self.draws)
        return {"id": task, "x": F.one_hot(task, len(self.scores)).double()}

    def scan(self):
        return [{"id": torch.arange(len(self.scores)), "x": torch.eye(len(self.scores), dtype=torch.double)}]

    def feedback(self, task, score):
        self.scores.index_add_(0, task, score)

    def state_dict(self):
        return {"scores": self.scores, "draws": self.draws.get_state()}

    def load_state_dict(self, state):
        self.scores = state["scores"]
        self.draws.set_state(state["draws"])


def reward(task, action):
    """One action is right for each task."""
    return (action == task % 3).double()


@dataclass(frozen=True, kw_only=True)
class Bandit(Method):
    """Policy gradient on played actions; the source hears how surprising each reward was."""

    def prepare(self, batch, roles, state):
        action = torch.multinomial(roles["student"](batch["x"]).softmax(-1), 1, generator=state.rng).squeeze(1)
        return {**batch, "action": action, "reward": reward(batch["id"], action)}

    def signal(self, batch, roles, state):
        return {"advantage": batch["reward"] - state.memory.get("baseline", 0.0)}

    def loss(self, batch, signal, roles, state):
        log_probs = F.log_softmax(roles["student"](batch["x"]), -1)
        return {"policy": -signal["advantage"] * log_probs.gather(1, batch["action"][:, None]).squeeze(1)}

    def after_step(self, batch, records, roles, state):
        baseline = state.memory.get("baseline", 0.0)
        state.source.feedback(batch["id"], (batch["reward"] - baseline).abs())
        state.memory["baseline"] = 0.9 * baseline + 0.1 * float(batch["reward"].mean())


def test_bandit_with_feedback_to_the_source():
    student, tasks, drawn = net(0), Tasks(), []

    @dataclass(frozen=True, kw_only=True)
    class Watched(Bandit):
        def after_step(self, batch, records, roles, state):
            drawn.append(batch["id"])
            super().after_step(batch, records, roles, state)

    state = train(Watched(), {"student": student}, tasks, torch.optim.SGD(student.parameters(), 1.0), steps=STEPS, seed=6)

    twin, draws, policy = net(0), torch.Generator().manual_seed(8), torch.Generator().manual_seed(6)
    scores, baseline = torch.zeros(4, dtype=torch.double), 0.0
    for step in range(STEPS):
        task = torch.multinomial(scores.softmax(0), 6, replacement=True, generator=draws)
        assert torch.equal(task, drawn[step])
        log_probs = twin(torch.eye(4, dtype=torch.double)[task]).log_softmax(-1)
        action = torch.multinomial(log_probs.detach().exp(), 1, generator=policy)[:, 0]
        gain = torch.tensor([float(a == k % 3) for a, k in zip(action.tolist(), task.tolist(), strict=True)], dtype=torch.double)
        twin.zero_grad()
        (-(gain - baseline) * log_probs[torch.arange(6), action]).mean().backward()
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.sub_(parameter.grad)
        for k, score in zip(task.tolist(), (gain - baseline).abs().tolist(), strict=True):
            scores[k] += score
        baseline = 0.9 * baseline + 0.1 * float(gain.mean())
    assert_same_weights(student, twin)
    torch.testing.assert_close(tasks.scores, scores, rtol=1e-12, atol=1e-14)
    assert state.memory["baseline"] == baseline
    assert tasks.scores.softmax(0).std() > 0.01  # the sampler is no longer uniform
    unmoved = [next(stream)["id"] for stream in [Tasks()] for _ in range(STEPS)]
    assert not all(torch.equal(a, b) for a, b in zip(drawn, unmoved, strict=True))


@dataclass(frozen=True, kw_only=True)
class Federated(Method):
    """FedAvg: clients train alone from the server's weights, then their weights are averaged by number of examples."""

    gradient_free = True
    local_steps: int = 3
    rate: float = 0.2

    def prepare(self, batch, roles, state):
        trained = []
        for data, labels in zip(batch["data"], batch["labels"], strict=True):
            client = copy.deepcopy(roles["student"])
            examples = [{"x": data, "y": labels, "id": torch.arange(len(data))}]
            train(CrossEntropy(), {"student": client}, examples, torch.optim.SGD(client.parameters(), self.rate), steps=self.local_steps)
            trained.append(vector(client))
        return {**batch, "weights": torch.stack(trained)}

    def update(self, compute, optimizer, batch, roles, state):
        share = batch["size"] / batch["size"].sum()
        with torch.no_grad():
            vector_to_parameters((share[:, None] * batch["weights"]).sum(0), roles["student"].parameters())

    def after_step(self, batch, records, roles, state):
        state.memory[f"clients/{state.step}"] = batch["weights"]
        state.memory[f"server/{state.step}"] = vector(roles["student"])


def cohorts(count, sizes):
    groups = [[batches(1, size, seed=10 * step + k)[0] for k, size in enumerate(sizes)] for step in range(count)]
    return [
        {
            "id": torch.arange(len(sizes)),
            "size": torch.tensor(sizes, dtype=torch.double),
            "data": [client["x"] for client in group],
            "labels": [client["y"] for client in group],
        }
        for group in groups
    ]


def test_federated_averaging_with_training_inside_prepare():
    student, rounds = net(0), cohorts(STEPS, (4, 4, 4, 4))
    before = torch.get_rng_state()
    state = train(Federated(), {"student": student}, rounds, {}, steps=STEPS)
    assert torch.equal(torch.get_rng_state(), before)

    twin = net(0)
    for batch in rounds:
        clients = []
        for x, y in zip(batch["data"], batch["labels"], strict=True):
            client = copy.deepcopy(twin)
            for _ in range(3):
                slopes = torch.autograd.grad(F.cross_entropy(client(x), y), list(client.parameters()))
                with torch.no_grad():
                    for parameter, slope in zip(client.parameters(), slopes, strict=True):
                        parameter.sub_(0.2 * slope)
            clients.append(client)
        with torch.no_grad():
            for parameters in zip(twin.parameters(), *(client.parameters() for client in clients), strict=True):
                parameters[0].copy_(sum(parameters[1:]) / len(clients))
    assert_same_weights(student, twin)
    for step in range(STEPS):
        clients, server = state.memory[f"clients/{step}"], state.memory[f"server/{step}"]
        assert len(clients) == 4
        assert clients.std(0).max() > 1e-3  # they learned different things
        torch.testing.assert_close(server, clients.mean(0), rtol=1e-12, atol=1e-14)
    assert all(p.grad is None for p in student.parameters())


def test_federated_average_is_weighted_by_examples():
    student = net(0)
    state = train(Federated(), {"student": student}, cohorts(1, (2, 6, 8)), {}, steps=1)
    a, b, c = state.memory["clients/0"]
    torch.testing.assert_close(vector(student), (2 * a + 6 * b + 8 * c) / 16, rtol=1e-12, atol=1e-14)
