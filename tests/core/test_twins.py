"""Very different methods through the one loop, each against a plain PyTorch loop written by hand: logits, peers, rollouts, attacks."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tests.core.small import assert_same_weights, batches, net, vector
from torch import nn

from preceptor.core.method import Method, Phase, evaluating
from preceptor.core.run import train
from preceptor.core.state import State

STEPS = 5


def kl(teacher_logits, student_logits, temperature=1.0):
    log_p, log_q = F.log_softmax(teacher_logits / temperature, -1), F.log_softmax(student_logits / temperature, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class LogitKD(Method):
    temperature: float = 4.0
    alpha: float = 0.9

    def signal(self, batch, roles, state):
        return {"logits": roles["teacher"](batch["x"])}

    def loss(self, batch, signal, roles, state):
        logits = roles["student"](batch["x"])
        return {
            "hard": (1 - self.alpha) * F.cross_entropy(logits, batch["y"], reduction="none"),
            "soft": self.alpha * self.temperature**2 * kl(signal["logits"], logits, self.temperature),
        }


def test_logit_distillation():
    student, teacher, data = net(0), net(1, hidden=9), batches(STEPS)
    twin, taught = copy.deepcopy(student), vector(teacher)
    train(LogitKD(), {"student": student, "teacher": teacher}, data, torch.optim.SGD(student.parameters(), 0.1, momentum=0.9), steps=STEPS)

    optimizer = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9)
    for batch in data:
        optimizer.zero_grad()
        logits = twin(batch["x"])
        soft = F.kl_div(F.log_softmax(logits / 4, -1), F.softmax(teacher(batch["x"]).detach() / 4, -1), reduction="batchmean")
        (0.1 * F.cross_entropy(logits, batch["y"]) + 0.9 * 16 * soft).backward()
        optimizer.step()
    assert_same_weights(student, twin)
    assert torch.equal(vector(teacher), taught)
    assert (vector(student) - vector(net(0))).abs().max() > 0.01


@dataclass(frozen=True, kw_only=True)
class Mutual(Method):
    weight: float = 1.0

    def phases(self):
        return (Phase(name="peers", trains=("a", "b"), signal=self.signal, loss=self.loss, update=self.update),)

    def loss(self, batch, signal, roles, state):
        a, b = roles["a"](batch["x"]), roles["b"](batch["x"])
        return {
            "ce_a": F.cross_entropy(a, batch["y"], reduction="none"),
            "ce_b": F.cross_entropy(b, batch["y"], reduction="none"),
            "kl_a": self.weight * kl(b.detach(), a),
            "kl_b": self.weight * kl(a.detach(), b),
        }


def peers_after(weight):
    a, b = net(0), net(1)
    optimizer = torch.optim.SGD([*a.parameters(), *b.parameters()], 0.2)
    train(Mutual(weight=weight), {"a": a, "b": b}, batches(STEPS), optimizer, steps=STEPS)
    return a, b


def test_mutual_learning():
    a, b = peers_after(1.0)
    twins = [net(0), net(1)]
    optimizers = [torch.optim.SGD(twin.parameters(), 0.2) for twin in twins]
    for batch in batches(STEPS):
        logits = [twin(batch["x"]) for twin in twins]
        fixed = [z.detach() for z in logits]
        for mine, other, optimizer in zip(logits, reversed(fixed), optimizers, strict=True):
            optimizer.zero_grad()
            (F.cross_entropy(mine, batch["y"]) + kl(other, mine).mean()).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert_same_weights(a, twins[0])
    assert_same_weights(b, twins[1])

    alone_a, alone_b = peers_after(0.0)
    x = batches(1, 64, seed=9)[0]["x"]
    assert kl(a(x), b(x)).mean() < kl(alone_a(x), alone_b(x)).mean()  # the peers pull each other together


class TinyLM(nn.Module):
    """Logits (N, length, vocabulary) of a GRU language model."""

    def __init__(self, seed, vocabulary=11, width=8):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.gru, self.dropout = nn.GRU(width, width, batch_first=True), nn.Dropout(0.5)
        self.double()

    def forward(self, tokens):
        return self.head(self.dropout(self.gru(self.embedding(tokens))[0]))


END = 0


@dataclass(frozen=True, kw_only=True)
class OnPolicy(Method):
    """Reverse KL on the student's own continuations."""

    length: int = 6

    def prepare(self, batch, roles, state):
        tokens, going, masks = batch["x"], torch.ones(len(batch["x"]), dtype=torch.bool), []
        with evaluating(roles["student"]) as student:
            for _ in range(self.length):
                probs = F.softmax(student(tokens)[:, -1], -1)
                drawn = torch.multinomial(probs, 1, generator=state.rng).squeeze(1).masked_fill(~going, END)
                tokens, masks = torch.cat([tokens, drawn[:, None]], 1), [*masks, going]
                going = going & (drawn != END)
        return {**batch, "tokens": tokens, "mask": torch.stack(masks, 1).double()}

    def signal(self, batch, roles, state):
        return {"log_probs": F.log_softmax(roles["teacher"](batch["tokens"][:, :-1])[:, -self.length :], -1)}

    def loss(self, batch, signal, roles, state):
        log_q = F.log_softmax(roles["student"](batch["tokens"][:, :-1])[:, -self.length :], -1)
        return {"reverse": (log_q.exp() * (log_q - signal["log_probs"])).sum(-1)}

    def after_step(self, batch, records, roles, state):
        state.memory[f"tokens/{state.step}"] = batch["tokens"]
        state.memory[f"mask/{state.step}"] = batch["mask"]


def test_on_policy_rollouts():
    student, teacher, start = TinyLM(0), TinyLM(1), TinyLM(0)
    prompts = [{"x": torch.randint(1, 11, (16, 2), generator=torch.Generator().manual_seed(i))} for i in range(STEPS)]
    torch.manual_seed(3)
    roles = {"student": student, "teacher": teacher}
    optimizer = torch.optim.Adam(student.parameters(), 0.05)
    state = train(OnPolicy(), roles, prompts, optimizer, steps=STEPS, micro=4, seed=5, clip=1.0)

    twin, draws = TinyLM(0), torch.Generator().manual_seed(5)
    optimizer = torch.optim.Adam(twin.parameters(), 0.05)
    torch.manual_seed(3)
    for step, prompt in enumerate(prompts):
        rows = prompt["x"]
        twin.eval()
        alive = [True] * len(rows)
        weights = torch.zeros(len(rows), 6, dtype=torch.double)
        with torch.no_grad():
            for position in range(6):
                drawn = torch.multinomial(twin(rows)[:, -1].softmax(-1), 1, generator=draws)
                for row in range(len(rows)):
                    weights[row, position] = float(alive[row])
                    drawn[row] = drawn[row] if alive[row] else END
                    alive[row] = alive[row] and int(drawn[row]) != END
                rows = torch.cat([rows, drawn], 1)
            count = weights.sum()
            target = teacher.eval()(rows[:, :-1])
        assert torch.equal(rows, state.memory[f"tokens/{step}"])
        twin.train()
        optimizer.zero_grad()
        for part in range(4):
            rows_of = slice(part * 4, part * 4 + 4)
            log_q = twin(rows[rows_of, :-1])[:, -6:].log_softmax(-1)
            log_p = target[rows_of, -6:].log_softmax(-1)
            ((log_q.exp() * (log_q - log_p)).sum(-1) * weights[rows_of]).sum().div(count).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
    assert_same_weights(student, twin)

    masks = torch.stack([state.memory[f"mask/{step}"] for step in range(STEPS)])
    assert 0 < masks.mean() < 1  # some continuations end early, and what follows the end does not count
    with torch.no_grad():  # replaying the first rollout needs the first student; the trained one says something else
        first = OnPolicy().prepare(prompts[0], {"student": start}, State(total_steps=1, seed=5))["tokens"]
        last = OnPolicy().prepare(prompts[0], {"student": student}, State(total_steps=1, seed=5))["tokens"]
    assert torch.equal(first, state.memory["tokens/0"])
    assert not torch.equal(first, last)


def attack(model, x, y, *, radius=0.3, size=0.1, turns=4):
    """Projected gradient ascent on the cross-entropy inside a max-norm ball."""
    moved = x
    with evaluating(model), torch.enable_grad():
        for _ in range(turns):
            moved = moved.detach().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(model(moved), y), moved)
            moved = x + (moved + size * slope.sign() - x).clamp(-radius, radius)
    return moved.detach()


@dataclass(frozen=True, kw_only=True)
class TwoTeachers(Method):
    """A clean and a robust teacher; the weight of each follows how far its loss has come down."""

    rate: float = 0.3

    def prepare(self, batch, roles, state):
        state.memory.setdefault("weight", 0.5)
        return {**batch, "attacked": attack(roles["student"], batch["x"], batch["y"])}

    def signal(self, batch, roles, state):
        return {"clean": roles["clean"](batch["x"]), "robust": roles["robust"](batch["attacked"])}

    def loss(self, batch, signal, roles, state):
        weight = state.memory["weight"]
        return {
            "clean": (1 - weight) * kl(signal["clean"], roles["student"](batch["x"])),
            "robust": weight * kl(signal["robust"], roles["student"](batch["attacked"])),
        }

    def after_step(self, batch, records, roles, state):
        weight = state.memory["weight"]
        clean, robust = float(records["student"]["clean"]) / (1 - weight), float(records["student"]["robust"]) / weight
        clean /= state.memory.setdefault("first/clean", clean)
        robust /= state.memory.setdefault("first/robust", robust)
        state.memory["weight"] = (1 - self.rate) * weight + self.rate * robust / (clean + robust)
        before = F.cross_entropy(roles["student"](batch["x"]), batch["y"])
        state.log["rise"] = float(F.cross_entropy(roles["student"](batch["attacked"]), batch["y"]) - before)


def test_attack_with_two_teachers_and_moving_weights():
    student, data, records = net(0), batches(STEPS), []
    clean, robust = net(1), net(2)
    roles = {"student": student, "clean": clean, "robust": robust}
    optimizer = torch.optim.SGD(student.parameters(), 0.5)
    state = train(TwoTeachers(), roles, data, optimizer, steps=STEPS, progress=records.append)

    twin, weight, firsts = net(0), 0.5, None
    optimizer = torch.optim.SGD(twin.parameters(), 0.5)
    weights = [weight]
    for batch in data:
        x, y = batch["x"], batch["y"]
        moved = x.clone()
        for _ in range(4):
            moved.requires_grad_()
            slope = torch.autograd.grad(F.cross_entropy(twin(moved), y), moved)[0]
            moved = torch.min(torch.max(moved.detach() + 0.1 * slope.sign(), x - 0.3), x + 0.3)
        assert F.cross_entropy(twin(moved), y) > F.cross_entropy(twin(x), y)  # the attack works
        assert (moved - x).abs().max() <= 0.3 + 1e-12
        optimizer.zero_grad()
        gaps = [kl(clean(x), twin(x)).mean(), kl(robust(moved), twin(moved)).mean()]
        ((1 - weight) * gaps[0] + weight * gaps[1]).backward()
        optimizer.step()
        firsts = firsts or [gap.item() for gap in gaps]
        c, r = (gap.item() / first for gap, first in zip(gaps, firsts, strict=True))
        weight = 0.7 * weight + 0.3 * r / (c + r)
        weights.append(weight)
    assert_same_weights(student, twin)
    assert abs(state.memory["weight"] - weight) < 1e-12
    assert len(set(weights)) >= STEPS  # they really move
    assert all(record.extras["rise"] > 0 for record in records)
