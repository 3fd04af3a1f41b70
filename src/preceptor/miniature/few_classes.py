"""Worlds of two classes that hide several each, for methods that look inside a class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.data.datasets import load
from preceptor.data.examples import Examples, examples_from
from preceptor.data.splits import holdout, take
from preceptor.losses.hard import hard_loss
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import Labels, World, fit, seeded
from preceptor.models.reference import MLP, build
from preceptor.models.taps import forward


@dataclass(frozen=True, kw_only=True)
class FewClasses:
    """A world of two classes; ``fine`` (examples of the whole set,) is the hidden class inside its class, in [0, ``hidden``), by id."""

    world: World
    fine: Tensor
    hidden: int
    seed: int

    def with_subclasses(self, subclasses: int) -> World:
        """The same world with students that have so many outputs per class, the same at each call."""
        student = self.world.student()
        assert isinstance(student, MLP)
        config = {**student.config, "subclasses": subclasses}
        return replace(self.world, student=lambda: seeded(lambda: build(config), self.seed))


@dataclass(frozen=True)
class FineLabels(Method):
    """The oracle: cross-entropy with the hidden classes, at the outputs ``fc.outputs`` of the student."""

    fine: Tensor

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the cross-entropy over subclasses, one value per example."""
        outputs = forward(roles["student"], batch["x"], ("fc.outputs",)).features["fc.outputs"]
        hidden = outputs.shape[-1] // 2
        return {"hard": hard_loss(outputs, {"y": batch["y"] * hidden + self.fine[batch["id"].cpu()].to(batch["y"])})}


def few_classes_world(seed: int, size: Size) -> FewClasses:
    """MNIST's digits as odd or even with students (an MLP 784-16) of 300 images, or for a quick look `clouds`.

    The teacher, an MLP 784-400-400-2 of 2,700 images, is trained once per process and is the same for all seeds.
    """
    if size == "smoke":
        return clouds(seed)
    pool, valid, test, teacher, fine = _parity()
    world = World(
        train=take(pool, 300, seed=seed, name="train"),
        valid=valid,
        test=test,
        teacher=copy.deepcopy(teacher),
        untrained=seeded(lambda: MLP(inputs=784, hidden=(400, 400), classes=2), seed),
        student=lambda: seeded(lambda: MLP(inputs=784, hidden=(16,), classes=2), seed),
    )
    return FewClasses(world=world, fine=fine, hidden=5, seed=seed)


def clouds(seed: int) -> FewClasses:
    """Two classes of four Gaussian clouds each in 20 dimensions, all drawn by the seed."""
    generator = torch.Generator().manual_seed(seed)
    cloud = torch.randint(8, (2000,), generator=generator)
    x = 2 * torch.randn(8, 20, generator=generator)[cloud] + torch.randn(2000, 20, generator=generator)
    whole = examples_from((x, cloud % 2), 2, "clouds")
    pool, valid, test = (
        whole.subset(torch.arange(a, b), name=n) for a, b, n in ((0, 1000, "train"), (1000, 1200, "valid"), (1200, 2000, "test"))
    )
    teacher = _trained(lambda: MLP(inputs=20, hidden=(64,), classes=2), pool, steps=60, seed=seed)
    world = World(
        train=take(pool, 100, seed=seed, name="train"),
        valid=valid,
        test=test,
        teacher=teacher,
        untrained=seeded(lambda: MLP(inputs=20, hidden=(64,), classes=2), seed + 1),
        student=lambda: seeded(lambda: MLP(inputs=20, hidden=(8,), classes=2), seed),
    )
    return FewClasses(world=world, fine=cloud // 2, hidden=4, seed=seed)


@cache
def _parity() -> tuple[Examples, Examples, Examples, nn.Module, Tensor]:
    """What all seeds share: pool, validation and test parts, the teacher, and the hidden classes by id of the training set."""
    data = load("mnist5k")
    pool, valid = holdout(data.train, rate=0.1, seed=0)
    fine = data.train.all_labels // 2
    pool, valid, test = (_odd_or_even(part) for part in (pool, valid, data.test))
    return pool, valid, test, _trained(lambda: MLP(inputs=784, hidden=(400, 400), classes=2), pool, steps=540, seed=0), fine


def _odd_or_even(part: Examples) -> Examples:
    return Examples(part.inputs, part.all_labels % 2, num_classes=2, name=part.name, rows=part.ids)


def _trained(make: Callable[[], nn.Module], pool: Examples, *, steps: int, seed: int) -> nn.Module:
    teacher = seeded(make, seed)
    fit(Labels(), {"student": teacher}, pool, steps=steps, batch_size=100, seed=seed)
    return teacher.eval()
