"""A classifier of clean digits meets a stream of corrupted ones, batch after batch, and is asked about each once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.online import PREDICTION, Online
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.data.datasets import load
from preceptor.data.examples import Examples
from preceptor.data.random_views import RandomViews
from preceptor.data.sources import Source
from preceptor.data.splits import stratified_order
from preceptor.losses.divergence import log_probs
from preceptor.losses.token_stats import entropy
from preceptor.metrics.classification import nll
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import Labels, fit, seeded
from preceptor.models.norms import by_batch, train_norms_alone
from preceptor.models.reference import CNN
from preceptor.models.taps import forward


def _impulse(x: Tensor, generator: torch.Generator) -> Tensor:
    chance = torch.rand(x.shape, generator=generator)
    return x.masked_fill(chance < 0.08, 0.0).masked_fill(chance > 0.92, 1.0)


CORRUPTIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "noise": lambda x, generator: x + 0.35 * torch.randn(x.shape, generator=generator),
    "contrast": lambda x, _: 0.5 + 0.3 * (x - 0.5),
    "impulse": _impulse,
    "blur": lambda x, _: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1),
    "brightness": lambda x, _: x + 0.4,
    "shift": lambda x, _: F.pad(x, (1, 0, 1, 0))[..., :-1, :-1],
    "inversion": lambda x, _: 1 - x,
}
"""Corruptions of images with pixels in [0, 1], by name, in the order of the stream; the world clips what they make."""


class Tent(Method):
    """Entropy of the answers alone (Wang et al. 2020, arXiv:2006.10726), at the statistics of the batch."""

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the entropy, one value per example; note the answer."""
        with by_batch(roles["student"]):
            logits = forward(roles["student"], batch["x"]).logits
        state.memory[PREDICTION] = logits.detach()
        return {"entropy": entropy(log_probs(logits))}


@dataclass(frozen=True, kw_only=True)
class DriftingWorld:
    """One source model and one stream; see `drifting_world`."""

    train: Examples  # of the source
    test: Examples  # what the stream is made of
    source: nn.Module  # trained on ``train``
    untrained: nn.Module
    rounds: int
    warm_up: int  # updates
    seed: int
    augment: RandomViews

    @property
    def num_batches(self) -> int:
        """Length of the stream."""
        return self.rounds * len(CORRUPTIONS) * -(-len(self.test) // 50)

    def stream(self) -> Iterator[Batch]:
        """Every corruption of all test images in turn, in batches of 50, the whole ``rounds`` times; always the same."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.rounds):
            for corrupt in CORRUPTIONS.values():
                for order in torch.randperm(len(self.test), generator=generator).split(50):
                    batch = self.test.batch(order)
                    yield {**batch, "x": corrupt(batch["x"], generator).clamp(0, 1)}

    def measure(self, answer: Callable[[Batch], Tensor]) -> dict[str, float]:
        """Share of wrong answers over the stream, ``error``, and over its last round, ``last_round``; ``nll`` of the answers in nats."""
        wrong, losses = [], []
        for batch in self.stream():
            logits = answer(batch)
            wrong.append((logits.argmax(dim=1) != batch["y"]).double())
            losses.append(nll(logits, batch["y"]).double())
        every = torch.cat(wrong)
        last = every[len(every) // self.rounds * (self.rounds - 1) :]
        return {"error": float(every.mean()), "last_round": float(last.mean()), "nll": float(torch.cat(losses).mean())}

    def adapting(self, method: Method, source: nn.Module, warm_up: Callable[..., None] | None = None) -> dict[str, float]:
        """Measure a copy of ``source`` that adapts by Adam at 1e-3, after ``warm_up(method, roles, optimizer, batches)``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            roles = {"student": copy.deepcopy(source)}
            roles |= method.extra_roles(roles, self.train.batch(torch.arange(50)))
            trained = [p for role in method.phases()[0].trains for p in roles[role].parameters() if p.requires_grad]
            optimizer = torch.optim.Adam(trained, lr=1e-3)
            replay = Source(self.train, batch_size=50, seed=self.seed)
            if warm_up is not None:
                warm_up(method, roles, optimizer, Source(self.train, batch_size=50, seed=self.seed))
            online = Online(method, roles, {"student": optimizer}, streams={"source": replay}, seed=self.seed)
            return self.measure(online.adapt)

    def baselines(self) -> dict[str, dict[str, float]]:
        """The source model as it is, at the statistics of each batch, and under `Tent` with all weights or those of the norms alone."""

        def left_alone(batch: Batch) -> Tensor:
            with torch.no_grad(), evaluating(self.source):
                return forward(self.source, batch["x"]).logits

        def at_statistics(batch: Batch) -> Tensor:
            with torch.no_grad(), by_batch(self.source):
                return forward(self.source, batch["x"]).logits

        norms = copy.deepcopy(self.source)
        train_norms_alone(norms)
        return {
            "source": self.measure(left_alone),
            "batch-statistics": self.measure(at_statistics),
            "tent-all": self.adapting(Tent(), self.source),
            "tent-norms": self.adapting(Tent(), norms),
        }


def drifting_world(seed: int, size: Size = "full") -> DriftingWorld:
    """scikit-learn's digits, split anew by each seed: 1,000 clean ones train a network with two batch normalisations, 797 are corrupted.

    Args:
        seed: of the split, the weights, the stream.
        size: ``"smoke"``: 50 images, one round.
    Raises:
        ImportError: scikit-learn is missing (one line says what to install).
    """
    part = load("digits").train
    whole = Examples(part.inputs, part.all_labels, num_classes=part.num_classes)
    order = stratified_order(whole.labels, seed=seed)
    train, test = whole.subset(order[:1000]), whole.subset(order[1000:] if size == "full" else order[1000:1050])
    source, untrained = (seeded(lambda: CNN(channels=(16, 32), norm="batch", grid=2), each) for each in (seed, seed + 1))
    fit(Labels(), {"student": source}, train, steps=200 if size == "full" else 40, learning_rate=3e-3, seed=seed)
    return DriftingWorld(
        train=train,
        test=test,
        source=source.eval(),
        untrained=untrained.eval(),
        rounds=2 if size == "full" else 1,
        warm_up=20 if size == "full" else 3,
        seed=seed,
        augment=RandomViews(flip=0.0),
    )
