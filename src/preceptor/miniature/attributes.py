"""Small images made of binary attributes, with classes that are their combinations and a simulated model that answers about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from preceptor.core.method import Method
from preceptor.data.examples import Examples, examples_from
from preceptor.data.sources import Source
from preceptor.metrics.evaluate import predict, score
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import fit, seeded
from preceptor.models.reference import MLP
from preceptor.teachers.aspects import AspectBank

QUESTIONS = (
    "Is it in the lower half?",
    "Is it in the right half?",
    "Is it large?",
    "Is it a diamond?",
    "Is it hollow?",
    "Is it checkered?",
)
"""One for each attribute; the class is the number that the answers make, the first of them its lowest bit."""

SIDE = 14
"""Pixels."""


def draw(attributes: Tensor) -> Tensor:
    """Images (N, 14, 14) of brightness 0 or 0.8, of attributes (N, 6), each 0 or 1, in the order of `QUESTIONS`."""
    low, right, large, diamond, hollow, checkered = attributes.bool()[:, :, None, None].unbind(dim=1)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    dy, dx = ((axis - torch.where(far, 8, 5)).abs() for axis, far in ((rows, low), (columns, right)))
    radius = torch.where(large, 3, 2)
    distance = torch.where(diamond, dy + dx, torch.maximum(dy, dx))
    inside = (distance <= radius) & ~(hollow & (distance < radius))
    return 0.8 * (inside & ~(checkered & ((rows + columns) % 2 == 1))).float()


@dataclass(frozen=True, kw_only=True)
class AttributesWorld:
    """Training and test images of one seed; ``attributes`` (examples of the training part, 6) by id."""

    train: Examples
    test: Examples
    attributes: Tensor
    steps: int
    seed: int

    def answers(self, *, shuffled: bool = False) -> AspectBank:
        """What the simulated model says: 0.9 or 0.1, with noise of 0.1; ``shuffled``: about the class that a permutation names instead."""
        generator = torch.Generator().manual_seed(self.seed)
        truth = self.attributes.float()
        if shuffled:
            order = torch.randperm(self.train.num_classes, generator=generator)
            truth = _bits(order[self.train.labels], truth.shape[1]).float()
        noise = 0.1 * torch.randn(truth.shape, generator=generator)
        return AspectBank(QUESTIONS[: truth.shape[1]], self.train.ids, (0.1 + 0.8 * truth + noise).clamp(0, 1))

    def random(self) -> AspectBank:
        """Numbers drawn uniformly."""
        generator = torch.Generator().manual_seed(self.seed)
        questions = self.attributes.shape[1]
        return AspectBank(QUESTIONS[:questions], self.train.ids, torch.rand(len(self.train), questions, generator=generator))

    def taught_by(self, method: Method) -> dict[str, float]:
        """Train a student, an MLP 196-128-64, and measure it on the test part."""
        classes = self.train.num_classes
        student = seeded(lambda: MLP(inputs=SIDE * SIDE, hidden=(128, 64), classes=classes), self.seed)
        fit(method, {"student": student}, self.train, steps=self.steps, batch_size=32, seed=self.seed)
        says = predict(student, Source(self.test, batch_size=500).scan())
        return score(says.logits, says.labels)


def attributes_world(seed: int, size: Size, *, per_class: int = 4) -> AttributesWorld:
    """All six attributes, 60 epochs and 3,000 test images, or for a quick look three attributes.

    Args:
        seed: of noise, weights and answers.
        size: see `preceptor.miniature.run.Size`.
        per_class: training images of each class.
    """
    attributes, tests, epochs = (6, 3000, 60) if size == "full" else (3, 200, 8)
    classes = 2**attributes
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(classes).repeat(per_class), torch.randint(classes, (tests,), generator=generator)])
    clean = draw(_bits(labels, len(QUESTIONS)))
    whole = examples_from((clean + 0.6 * torch.randn(clean.shape, generator=generator), labels), classes, "attributes")
    count = classes * per_class
    return AttributesWorld(
        train=whole.subset(torch.arange(count), name="train"),
        test=whole.subset(torch.arange(count, count + tests), name="test"),
        attributes=_bits(labels[:count], attributes),
        steps=epochs * -(-count // 32),
        seed=seed,
    )


def _bits(numbers: Tensor, count: int) -> Tensor:
    """Binary digits (N, count), the lowest first."""
    return (numbers[:, None] >> torch.arange(count)) & 1
