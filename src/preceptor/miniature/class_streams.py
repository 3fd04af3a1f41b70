"""Streams of classes: a network sees group after group of classes, each once, with one head over all classes and no word on the task.

A learner is a method. What it keeps of a task it takes up in `after_step`, at the last update of the task, when ``state.source`` is still
that task's data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.optim import Optimizer

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.data.class_orders import Groups, group_rows
from preceptor.data.examples import Examples
from preceptor.data.rows import join, keep_rows, kept_rows, take
from preceptor.data.sources import Source
from preceptor.losses.checks import check_unit_interval
from preceptor.losses.divergence import forward_kl
from preceptor.losses.hard import hard_loss
from preceptor.metrics.classification import accuracy
from preceptor.metrics.cost import device_of
from preceptor.metrics.evaluate import predict
from preceptor.models.functional import logits_at
from preceptor.models.taps import forward


@dataclass(frozen=True, kw_only=True)
class ClassStream:
    """What there is to learn: classes, alone or in groups, by a network that does not know them yet."""

    train: Examples
    test: Examples
    network: Callable[[int], nn.Module]  # seed -> new network with a head over all classes
    groups: Groups | None = None  # learned together; None: each class alone
    batch_size: int = 64  # the paper
    learning_rate: float = 1e-3  # of Adam, which goes on from task to task; the paper


def run_order(order: Sequence[int], learner: Method, stream: ClassStream, seed: int) -> Tensor:
    """R of `run_orders` for one order, shape (T, N)."""
    return run_orders([order], learner, stream, seed)[0]


def run_orders(orders: Sequence[Sequence[int]], learner: Method, stream: ClassStream, seed: int) -> Tensor:
    """Learn the groups of classes of a stream in each of several orders, one pass over each group.

    What begins alike is trained once: all orders of 5 classes take 325 tasks and not 600. An order has the same result in any company.

    Args:
        orders: group numbers, each once in an order.
        learner: a method for the role ``student``: naive (`preceptor.methods.ce`), `EWC`, `LwF`, `Replay` or any other.
        stream: what to learn.
        seed: of the network, of the order of examples and of the learner's draws.
    Returns:
        R, shape (orders, T, N), in [0, 1]: accuracy on the test examples of each group after each of the T = N tasks.
    Raises:
        ValueError: an order that is no permutation of the groups, or groups that `preceptor.data.class_orders.group_rows` refuses.
    """
    groups = [stream.train.subset(rows) for rows in group_rows(stream.train.labels, stream.groups)]
    for order in orders:
        if sorted(order) != list(range(len(groups))):
            raise ValueError(f"orders: expected each of the groups 0 to {len(groups) - 1} once, got {list(order)}")
    tests = group_rows(stream.test.labels, stream.groups)
    path = [_start(learner, stream, groups[0], seed)]
    found, previous = torch.zeros(len(orders), len(groups), len(groups), dtype=torch.double), list[int]()
    for place in sorted(range(len(orders)), key=lambda i: list(orders[i])):
        order = list(orders[place])
        shared = next((t for t, (one, other) in enumerate(zip(order, previous, strict=False)) if one != other), len(previous))
        del path[shared + 1 :]
        for task in order[shared:]:
            path.append(_learned(path[-1], groups[task], tests, learner, stream))
        found[place], previous = torch.stack([point.accuracy for point in path[1:]]), order
    return found


class _Point(NamedTuple):
    """Where a stream has come to."""

    roles: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    state: State
    accuracy: Tensor  # (N,)


def _start(learner: Method, stream: ClassStream, task: Examples, seed: int) -> _Point:
    """Where every order begins; the task is an example of what the learner's own roles are built for."""
    roles: dict[str, nn.Module] = {"student": stream.network(seed)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        roles |= learner.extra_roles(roles, task.batch(torch.arange(min(stream.batch_size, len(task)))))
    optimizers: dict[str, Optimizer] = {
        phase.name: torch.optim.Adam([p for name in phase.trains for p in roles[name].parameters()], lr=stream.learning_rate)
        for phase in learner.phases()
    }
    return _Point(roles, optimizers, State(total_steps=0, seed=seed), torch.zeros(0))


def _learned(point: _Point, task: Examples, tests: Sequence[Tensor], learner: Method, stream: ClassStream) -> _Point:
    """Where one more task leads to; what went before is not edited."""
    old = point.state
    roles, optimizers, memory = copy.deepcopy((point.roles, point.optimizers, old.memory))
    state = State(total_steps=0, seed=old.seed, step=old.step, memory=memory)
    state.rng.set_state(old.rng.get_state())
    source = Source(task, batch_size=stream.batch_size, seed=old.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(old.seed)
        train(learner, roles, source, optimizers, steps=state.step + source.batches_per_epoch, state=state)
    said = predict(roles["student"], Source(stream.test, batch_size=500).scan())
    right = accuracy(said.logits, said.labels).double()
    return _Point(roles, optimizers, state, torch.stack([right[rows].mean() for rows in tests]))


@dataclass(frozen=True, kw_only=True)
class EWC(Method):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796): weights that mattered before are held by springs.

    L = CE + strength sum_t sum_i F_{t,i} (theta_i - theta*_{t,i})^2, with theta*_t the weights after task t and F_t the mean square of the
    gradients of its examples' log-likelihoods, one by one. The sum over tasks is kept as one spring of stiffness A = sum_t F_t at the rest
    sum_t F_t theta*_t / A, which is the same but for a constant.
    """

    strength: float = 0.4  # the curriculum designer's experiments; without the factor 1/2 of Eq. 3

    def __post_init__(self) -> None:
        """Check the range."""
        if not self.strength >= 0:
            raise ValueError(f"strength: expected a number >= 0, got {self.strength}")

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the cross-entropy, one value per example, and the energy of the springs."""
        terms = {"hard": hard_loss(forward(roles["student"], batch["x"]).logits, batch)}
        springs = [
            (state.memory[f"ewc/stiffness/{name}"] * (value - state.memory[f"ewc/rest/{name}"]).square()).sum()
            for name, value in roles["student"].named_parameters()
            if f"ewc/rest/{name}" in state.memory
        ]
        return terms | ({"springs": self.strength * torch.stack(springs).sum()} if springs else {})

    def after_step(self, batch: Batch, records: Mapping[str, Terms], roles: Roles, state: State) -> None:
        """After a task add its springs."""
        if not _task_ends(state):
            return
        for name, added in fisher_diagonal(roles["student"], _scan(roles, state)).items():
            now = roles["student"].get_parameter(name).detach()
            old = torch.as_tensor(state.memory.get(f"ewc/stiffness/{name}", 0.0))
            rest = torch.as_tensor(state.memory.get(f"ewc/rest/{name}", 0.0))
            stiffness = old + added
            share = torch.where(stiffness > 0, added / stiffness.where(stiffness > 0, 1.0), 1.0)
            state.memory |= {f"ewc/stiffness/{name}": stiffness, f"ewc/rest/{name}": rest + share * (now - rest)}


@dataclass(frozen=True, kw_only=True)
class LwF(Method):
    """Learning without forgetting (Li, Hoiem 2016, arXiv:1606.09282): the network as it was teaches what it said of earlier classes.

    In task t, from 1: L = CE + (t - 1)^2 / t KL(softmax(old logits) || softmax(logits)), both over the classes of earlier tasks. The
    weights 0, 1/2, 4/3, 9/4, 16/5 are those of the curriculum designer's experiments.
    """

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return the role of the network as it was."""
        return {"previous": copy.deepcopy(roles["student"])}

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return what the network said before the task."""
        return {"logits": forward(roles["previous"], batch["x"]).logits}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the cross-entropy and, from the second task on, the divergence from what was said before, one value per example."""
        logits = forward(roles["student"], batch["x"]).logits
        terms = {"hard": hard_loss(logits, batch)}
        tasks = int(state.memory.get("lwf/tasks", 0))
        if tasks:
            known = torch.as_tensor(state.memory["lwf/known"])
            weight = tasks**2 / (tasks + 1)
            terms["previous"] = weight * forward_kl(logits[:, known], signal["logits"][:, known])
        return terms

    def after_step(self, batch: Batch, records: Mapping[str, Terms], roles: Roles, state: State) -> None:
        """After a task remember the network and the classes it has seen."""
        if not _task_ends(state):
            return
        roles["previous"].load_state_dict(roles["student"].state_dict())
        seen = [part["y"] for part in _scan(roles, state)]
        earlier = [torch.as_tensor(state.memory["lwf/known"])] if "lwf/known" in state.memory else []
        state.memory |= {"lwf/tasks": int(state.memory.get("lwf/tasks", 0)) + 1, "lwf/known": torch.cat([*earlier, *seen]).unique()}


@dataclass(frozen=True, kw_only=True)
class Replay(Method):
    """A share of the examples of every task is kept, and as many of those as a batch holds are learned again with each batch."""

    share: float = 0.1  # in [0, 1]; the curriculum designer's experiments

    def __post_init__(self) -> None:
        """Check the range."""
        check_unit_interval(share=self.share)

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Add kept examples to the batch, each at most once."""
        kept = kept_rows(state.memory, "replay", batch)
        if "id" not in kept:
            return batch
        drawn = torch.randperm(len(kept["id"]), generator=state.rng)[: len(batch["id"])]
        return join([batch, take(kept, drawn)])

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the cross-entropy, one value per example."""
        return {"hard": hard_loss(forward(roles["student"], batch["x"]).logits, batch)}

    def after_step(self, batch: Batch, records: Mapping[str, Terms], roles: Roles, state: State) -> None:
        """After a task keep a share of its examples."""
        if not _task_ends(state):
            return
        parts = [{key: part[key] for key in ("x", "y", "id")} for part in _scan(roles, state)]
        task = join(parts)
        chosen = torch.randperm(len(task["id"]), generator=state.rng)[: round(self.share * len(task["id"]))]
        kept = kept_rows(state.memory, "replay", task)
        keep_rows(state.memory, "replay", join([kept, take(task, chosen)]) if "id" in kept else take(task, chosen))


def fisher_diagonal(model: nn.Module, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Mean over examples of the squared gradient of each one's log-likelihood, by parameter, in eval mode.

    Args:
        model: a classifier; only parameters that require grad count.
        batches: with ``x`` (a tensor) and ``y``, on its device; at least one example.
    Returns:
        Parameter name -> tensor of its shape, >= 0.
    """
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def one(values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits_at(model, values, x[None]), y[None])

    sums = {name: torch.zeros_like(value) for name, value in weights.items()}
    for part in batches:
        squares = vmap(grad(one), in_dims=(None, 0, 0))(weights, part["x"], part["y"])
        sums = {name: total + squares[name].square().sum(dim=0) for name, total in sums.items()}
    count = sum(len(part["y"]) for part in batches)
    return {name: total / count for name, total in sums.items()}


def _task_ends(state: State) -> bool:
    return state.step + 1 == state.total_steps


def _scan(roles: Roles, state: State) -> list[Batch]:
    """The data of the present task, where the student is."""
    assert state.source is not None
    return [dict(send_to_device(batch, device_of(roles["student"]))) for batch in state.source.scan()]
