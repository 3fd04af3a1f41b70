"""Clients with digits of unequal classes, blurred by noise of unequal strength, and what a federated run is measured by."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.stream import Stream, as_stream
from preceptor.core.types import Batch, Record, Roles
from preceptor.data.datasets import load
from preceptor.data.examples import examples_from
from preceptor.data.federated import dirichlet_partition
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import Labels, fit, seeded
from preceptor.models.reference import MLP
from preceptor.models.taps import forward

Local = Callable[[int, Batch, Roles, State], dict[str, Tensor]]
"""Local training of a client: its number, its data, all networks, a state -> weights."""


@dataclass(frozen=True, kw_only=True)
class FederatedWorld:
    """One task of one seed."""

    clients: tuple[Batch, ...]
    test: Batch
    expert: nn.Module  # trained on the data of all clients together
    student: Callable[[], nn.Module]  # a new one at each call, always with the same weights

    def source(self) -> Stream:
        """The clients, one in a batch."""
        return as_stream(self.clients)

    def correct(self, model: nn.Module) -> Tensor:
        """Whether each test sample is predicted right, bool (N,)."""
        with torch.no_grad():
            return forward(model, self.test["x"]).logits.argmax(-1) == self.test["y"]


def federated_world(seed: int, size: Size, *, beta: float) -> FederatedWorld:
    """The digits of scikit-learn at 20 clients, MLPs 64-64-10.

    Pixels are brought to mean 0 and variance 1 over all of them. Each training image has Gaussian noise of a strength drawn from [0, 1.5],
    so that samples differ in difficulty; test images have none. The expert saw all clients' data for 10 epochs.

    Args:
        seed: of the noise, the partition and the weights.
        size: "smoke" has 4 clients.
        beta: of `preceptor.data.federated.dirichlet_partition`.
    """
    data = load("digits")
    part = data.train.subset(torch.arange(len(data.train) if size == "full" else 200), name="train")
    clean, test = (each.batch(torch.arange(len(each))) for each in (part, data.test))
    mean, spread = clean["x"].mean(), clean["x"].std()
    draws = torch.Generator().manual_seed(seed)
    noise = 1.5 * torch.rand(len(part), 1, 1, 1, generator=draws) * torch.randn(clean["x"].shape, generator=draws)
    noisy = examples_from(((clean["x"] - mean) / spread + noise, clean["y"]), 10)
    parts = dirichlet_partition(clean["y"], 20 if size == "full" else 4, beta=beta, seed=seed)

    def student() -> nn.Module:
        return seeded(lambda: MLP(inputs=64, hidden=(64,)), seed)

    expert = student()
    fit(Labels(), {"student": expert}, noisy, steps=250 if size == "full" else 5, seed=seed)
    return FederatedWorld(
        clients=tuple(noisy.batch(part) for part in parts),
        test={**test, "x": (test["x"] - mean) / spread},
        expert=expert.eval(),
        student=student,
    )


def measured(worlds: Mapping[str, FederatedWorld], method: Method, local: Local, *, rounds: int, seed: int) -> dict[str, float]:
    """Train in worlds called ``even`` and ``skewed``.

    Args:
        worlds: by name.
        method: a step of it is a round.
        local: from the number of a client, its data, the roles and a state to the weights after its local training.
        rounds: steps; 0 measures the untrained network.
        seed: of the run.

    Returns:
        For each world the mean test accuracy of the last 10 rounds, and ``loss_by_skew``, their difference; of the skewed one also
        ``best``, of all rounds, and ``personal``: after one more local training of each client, classes weighed as the client has them.
    """
    found: dict[str, float] = {}
    for name, world in worlds.items():
        student = world.student()
        roles = {"student": student, "teacher": world.expert}
        accuracies = [] if rounds else [float(world.correct(student).float().mean())]

        def note(_: Record, world: FederatedWorld = world, student: nn.Module = student, to: list[float] = accuracies) -> None:
            to.append(float(world.correct(student).float().mean()))

        train(method, roles, world.source(), {}, steps=rounds, seed=seed, progress=note)
        found[name] = sum(accuracies[-10:]) / len(accuracies[-10:])
        if name == "skewed":
            found |= {"best": max(accuracies), "personal": _personal(world, local, roles, seed) if rounds else found[name]}
    return found | {"loss_by_skew": found["even"] - found["skewed"]}


def _personal(world: FederatedWorld, local: Local, roles: Roles, seed: int) -> float:
    state, total = State(total_steps=1, seed=seed, source=world.source()), 0.0
    for i, client in enumerate(world.clients):
        net = copy.deepcopy(roles["student"])
        net.load_state_dict(local(i, client, roles, state))
        right = world.correct(net).float()
        by_class = torch.stack([right[world.test["y"] == label].mean() for label in range(10)])
        total += float(client["y"].bincount(minlength=10) / len(client["y"]) @ by_class)
    return total / len(world.clients)
