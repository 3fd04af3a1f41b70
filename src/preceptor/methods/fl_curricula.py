"""Ordered learning in federated training: a curriculum over each client's samples, and another over the clients.

Paper: Vahidian et al. 2023, When Do Curricula Work in Federated Learning? (arXiv:2212.12712).
Claim: where the classes of clients differ, samples in easy-to-hard order beat random and hard-to-easy order, and the more they differ the
larger the gain; where clients are alike the order makes little difference.
Equation: in a round each of m clients begins with the server's weights and orders its n samples by l_j = CE(model(x_j), y_j). Its step t
draws from the first g(t) of them, g by `preceptor.data.curricula.pacing`, at learning rate lr0 (1 + alpha t)^-gamma; then
    w_mean = sum_i (n_i / sum n) w_i,   w <- mu w + (1 - mu) w_mean.
A sweep over clients: score each by its mean l_j, order them, take the first g'(updates so far), shuffle, m of them in a round; a new sweep
when the pool is used up.

The source is the clients: a batch of its `scan` is the data of one client, and a step of the run is a round. Any source will do: that of
one pooled data set gives clients that are alike. The local optimizer is SGD of its own; that of the run has no effect.

Deviations: with the scores of two models the mean is taken, not the sum, so that clients that never trained compare with those that did.
The released evaluation looks at w_mean, ours at w; they differ only with mu > 0. Losses that are not finite rank last. Aggregation by other
rules is a function, other local objectives are a method (with the server's weights as role "server"); SCAFFOLD and FedNova are not here.
Scores of the first round are those of an untrained model: noise. Each sweep asks one number of every client.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from preceptor.core.method import Compute, Method, evaluating
from preceptor.core.reduce import num_examples
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.curricula import Ordering, Paced, Pacing, order_samples, pacing
from preceptor.data.hashing import generator
from preceptor.losses.checks import check_choice, check_counts, check_positive, check_unit_interval
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.claim import Claim
from preceptor.miniature.federated import federated_world, measured
from preceptor.miniature.run import Miniature, Size
from preceptor.models.averaging import fed_average
from preceptor.models.taps import forward

CARD = Card(
    slug="fl-curricula",
    title="Curricula over samples and clients in federated training",
    authors="Vahidian et al. 2023",
    arxiv="2212.12712",
    kind="curriculum",
    tasks=("classification",),
    needs=("labels",),
    equation="each client trains on the first g(t) samples by loss; w <- mu w + (1 - mu) sum_i (n_i / sum n) w_i",
    cost="local training of each client of the round, a forward pass over its data before, and over the data of all clients in each sweep",
    headline="easy-to-hard order helps more the more the classes of clients differ; no figure is quoted",
)

Scoring = Literal["global", "local", "both", "expert"]
"""Whose losses order samples and clients: the server's model, the client's own from its last round (the server's before), the mean of
these two, or the role "teacher"."""
Difficulty = Literal["loss", "error"]
"""Cross-entropy, or whether the prediction is wrong (0 or 1)."""
_CLIENTS, _SAMPLES = 2**40, 2**41
Aggregate = Callable[[Sequence[Mapping[str, Tensor]], Sequence[float]], dict[str, Tensor]]


def sample_scores(models: Sequence[nn.Module], batch: Batch, *, difficulty: Difficulty = "loss") -> Tensor:
    """How difficult models find samples, their mean: in eval mode, without gradient; weights, modes and statistics stay.

    Args:
        models: at least one, classifiers of ``batch["x"]``.
        batch: ``x`` and ``y``, N samples.
        difficulty: see `Difficulty`.

    Returns:
        Shape (N,), >= 0, in nats or errors.
    """
    found = []
    for model in models:
        with evaluating(model), torch.no_grad():
            logits = forward(model, batch["x"]).logits
        wrong = difficulty == "error"
        found.append((logits.argmax(-1) != batch["y"]).to(logits.dtype) if wrong else F.cross_entropy(logits, batch["y"], reduction="none"))
    return torch.stack(found).mean(0)


@dataclass(frozen=True, kw_only=True)
class FLCurricula(Method):
    """Federated averaging with curricula. ``fl/participations`` in the memory of the run counts how often each client took part."""

    coupled: ClassVar[bool] = True
    gradient_free: ClassVar[bool] = True

    fraction: float = 0.1  # of the clients in a round, in (0, 1]; the paper's 10 %
    scoring: Scoring = "global"  # whose losses; one of the paper's
    difficulty: Difficulty = "loss"  # the paper's; "error" is its variant
    ordering: Ordering = "curr"  # of a client's samples; the paper's
    pace: Pacing = "linear"  # of samples; released code
    a: float = 0.8  # share of local steps after which all samples are in, >= 0; released code
    b: float = 0.2  # share of samples at the start, in [0, 1]; released code
    client_ordering: Ordering = "rand"  # of clients; as in federated averaging, "curr" is the paper's second curriculum
    client_pace: Pacing = "step"  # of clients; with a = b = 1 all of them from the start
    client_a: float = 1.0  # share of client updates after which all clients are in, >= 0
    client_b: float = 1.0  # share of clients at the start, in [0, 1]
    minimum: int = 32  # samples in use at least; released code
    local_epochs: int = 1  # the paper has 1 to 10
    batch_size: int = 10  # of a client; the paper's
    learning_rate: float = 0.01  # lr0 > 0; the paper's
    momentum: float = 0.9  # in [0, 1]; the paper's
    weight_decay: float = 5e-4  # >= 0; the paper's
    decay: float = 1e-3  # alpha >= 0 of the local learning rate; released code
    decay_power: float = 0.75  # gamma of the local learning rate; released code
    server_momentum: float = 0.0  # mu in [0, 1]; released code, 1 freezes the server
    aggregate: Aggregate = fed_average  # w_mean from weights and numbers of samples; the paper's FedAvg
    local: Method | None = None  # what a client trains by; None: cross-entropy, the paper's

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_choice(Scoring, scoring=self.scoring)
        check_choice(Difficulty, difficulty=self.difficulty)
        check_choice(Ordering, ordering=self.ordering, client_ordering=self.client_ordering)
        check_counts(minimum=self.minimum, local_epochs=self.local_epochs, batch_size=self.batch_size)
        check_positive(fraction=self.fraction, learning_rate=self.learning_rate)
        check_unit_interval(fraction=self.fraction, momentum=self.momentum, server_momentum=self.server_momentum)
        pacing(self.pace, self.a, self.b, 1, 1)
        pacing(self.client_pace, self.client_a, self.client_b, 1, 1)
        if min(self.decay, self.weight_decay) < 0:
            raise ValueError(f"decay, weight_decay: expected numbers >= 0, got {self.decay} and {self.weight_decay}")

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """None; refuses, before the first step, a run without the expert that is to score."""
        if self.scoring == "expert" and "teacher" not in roles:
            raise ValueError(f"roles: scoring 'expert' needs a role 'teacher', got roles {sorted(roles)}")
        return {}

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Let the clients of the round train: ``id`` of their samples, ``local`` weights and numbers of samples, ``sizes``."""
        memory = state.memory
        queue = torch.as_tensor(memory.get("fl/queue", torch.zeros(0, dtype=torch.int64)))
        if not len(queue):
            queue = self._sweep(batch, roles, state)
        taken = torch.as_tensor(memory["fl/participations"])
        size = max(1, int(self.fraction * len(taken) + 1e-9))
        wanted, memory["fl/queue"] = queue[:size].tolist(), queue[size:]
        clients = {i: client for i, client in enumerate(_clients(batch, state)) if i in wanted}
        local = [self.train_client(i, clients[i], roles, state) for i in wanted]
        memory["fl/participations"] = taken.index_add(0, queue[:size], torch.ones_like(queue[:size]))
        ids = torch.cat([clients[i]["id"] for i in wanted])
        return {"id": ids, "local": local, "sizes": [num_examples(clients[i]) for i in wanted]}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return nothing: the losses are those of the clients."""
        return {}

    def update(self, compute: Compute, optimizer: Optimizer, batch: Batch, roles: Roles, state: State) -> None:
        """Average."""
        server = roles["student"].state_dict()
        mean = self.aggregate(batch["local"], batch["sizes"])
        roles["student"].load_state_dict(fed_average([server, mean], [self.server_momentum, 1 - self.server_momentum]))

    def _sweep(self, batch: Batch, roles: Roles, state: State) -> Tensor:
        """Score all clients and choose those of the rounds to come, in a random order."""
        scores = torch.stack([self._score(i, client, roles, state).mean() for i, client in enumerate(_clients(batch, state))]).cpu()
        taken = torch.as_tensor(state.memory.setdefault("fl/participations", torch.zeros(len(scores), dtype=torch.int64)))
        total = state.total_steps * max(1, int(self.fraction * len(scores) + 1e-9))
        draws = generator(state.seed, state.step, _CLIENTS)
        order = order_samples(scores, self.client_ordering, generator=draws)
        pool = order[: pacing(self.client_pace, self.client_a, self.client_b, total, len(scores))(int(taken.sum()))]
        state.log |= {"pool": float(len(pool)), "client_score": float(scores.mean())}
        return pool[torch.randperm(len(pool), generator=draws)]

    def _score(self, index: int, client: Batch, roles: Roles, state: State) -> Tensor:
        server, kept = roles["student"], f"fl/local/{index}/"
        own = {name.removeprefix(kept): value for name, value in state.memory.items() if name.startswith(kept)}
        models = [roles["teacher"] if self.scoring == "expert" else server]
        if own:
            net = copy.deepcopy(server)
            net.load_state_dict({name: torch.as_tensor(value) for name, value in own.items()})
            models = [net] if self.scoring == "local" else [server, net]
        return sample_scores(models, client, difficulty=self.difficulty)

    def train_client(self, index: int, client: Batch, roles: Roles, state: State) -> dict[str, Tensor]:
        """Return the weights of a client, by its number, after local training on its data from those of the server."""
        draws = generator(state.seed, state.step, _SAMPLES + index)
        order = order_samples(self._score(index, client, roles, state), self.ordering, generator=draws)
        steps = (len(order) // self.batch_size + 1) * self.local_epochs
        size = pacing(self.pace, self.a, self.b, steps, len(order))
        seed = int(torch.randint(2**62, (), generator=draws))
        source = Paced(client, order, size, batch_size=self.batch_size, minimum=self.minimum, seed=seed)
        net = copy.deepcopy(roles["student"])
        parameters = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)
        schedule = LambdaLR(optimizer, lambda t: (1 + self.decay * t) ** -self.decay_power)
        method = CrossEntropy() if self.local is None else self.local
        train(method, {"student": net, "server": roles["student"]}, source, optimizer, steps=steps, schedulers=schedule, seed=seed)
        weights = {name: value.detach().clone() for name, value in net.state_dict().items()}
        if self.scoring in ("local", "both"):
            state.memory |= {f"fl/local/{index}/{name}": value for name, value in weights.items()}
        return weights


def _clients(batch: Batch, state: State) -> Iterator[Batch]:
    """The data of all clients, on the device of the batch; without a source the batch is the only client."""
    for client in [batch] if state.source is None else state.source.scan():
        yield dict(send_to_device(client, batch["y"].device))


def miniature(seed: int, size: Size) -> Miniature:
    """Digits with noise at 20 clients, 40 rounds of 4 clients and 2 local epochs, partitions with beta 10 and 0.05.

    ``even`` and ``skewed`` are mean test accuracies of the last 10 rounds for the two, ``loss_by_skew`` their difference; of the skewed
    run ``best`` is the best round and ``personal`` the accuracy on each client's mix of classes after one more local training.
    """
    rounds = 40 if size == "full" else 2
    common: dict[str, Any] = {"fraction": 0.2 if size == "full" else 0.5, "local_epochs": 2 if size == "full" else 1}
    methods = {
        "vanilla": FLCurricula(pace="step", a=1.0, b=1.0, **common),
        "random-order": FLCurricula(ordering="rand", **common),
        "hard-first": FLCurricula(ordering="anti", **common),
        "expert-scores": FLCurricula(scoring="expert", **common),
        "client-curriculum": FLCurricula(client_ordering="curr", client_pace="linear", client_a=0.8, client_b=0.2, **common),
        "fl-curricula": FLCurricula(**common),
    }
    worlds = {"even": federated_world(seed, size, beta=10.0), "skewed": federated_world(seed, size, beta=0.05)}
    plans = {"untrained-student": (methods["vanilla"], 0)} | {name: (method, rounds) for name, method in methods.items()}
    arms = {name: measured(worlds, method, method.train_client, rounds=number, seed=seed) for name, (method, number) in plans.items()}
    this: dict[str, Any] = {"method": "fl-curricula"}
    claims = (
        Claim(name="the gain over plain averaging grows with skew", baseline="vanilla", metric="loss_by_skew", direction="lower", **this),
        Claim(name="under skew easy first beats hard first", baseline="hard-first", metric="skewed", **this),
        Claim(name="under skew easy first beats random order", baseline="random-order", metric="skewed", **this),
        Claim(name="where clients are alike it is at most 0.03 behind", baseline="vanilla", metric="even", margin=-0.03, **this),
    )
    return Miniature(arms=arms, claims=claims, notes=(f"{len(worlds['even'].clients)} clients, {rounds} rounds",))
