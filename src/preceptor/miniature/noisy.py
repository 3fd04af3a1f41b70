"""A thousand handwritten digits for students whose labels, or whose inputs at test time, somebody spoils."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.data.datasets import load
from preceptor.data.examples import Examples
from preceptor.data.perturb import ascend, pgd
from preceptor.data.sources import Source
from preceptor.data.splits import holdout, take
from preceptor.losses.divergence import kl, log_probs
from preceptor.losses.hard import hard_loss
from preceptor.metrics.evaluate import predict, score
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import blobs_world, seeded
from preceptor.models.reference import MLP
from preceptor.models.taps import forward

RADIUS = 0.1
"""Largest change of a pixel that an attack may make; pixels lie in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Digits:
    """One task of one seed; see `few_digits`."""

    train: Examples
    valid: Examples
    test: Examples
    student: Callable[[], nn.Module]  # a new student at each call, always with the same weights: those of the seed


def few_digits(seed: int, size: Size = "full") -> Digits:
    """1,000 of scikit-learn's digits (stratified, by seed) and an MLP 64-96-10; ``"smoke"``: 80 points of clouds.

    Raises:
        ImportError: scikit-learn is missing (one line says what to install).
    """
    if size == "smoke":
        world = blobs_world(seed)
        return Digits(train=world.train, valid=world.valid, test=world.test, student=world.student)
    data = load("digits")
    pool, valid = holdout(data.train, rate=0.1, seed=0)
    part = take(pool, 1000, seed=seed, name="train")
    return Digits(train=part, valid=valid, test=data.test, student=lambda: seeded(lambda: MLP(inputs=64, hidden=(96,)), seed))


def taught(
    method: Method, student: nn.Module, examples: Examples, *, epochs: int, seed: int, teacher: nn.Module | None = None
) -> nn.Module:
    """Train a student in place by Adam at 2e-3, 100 examples a step, gradients clipped at 5, and return it."""
    roles = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
    source = Source(examples, batch_size=100, seed=seed)
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    train(method, roles, source, optimizer, steps=epochs * source.batches_per_epoch, clip=5.0, seed=seed)
    return student


def measured(student: nn.Module, examples: Examples) -> dict[str, float]:
    """Every metric of `preceptor.metrics.evaluate.score`."""
    said = predict(student, Source(examples, batch_size=500).scan())
    return score(said.logits, said.labels)


def under_attack(student: nn.Module, examples: Examples, *, box: tuple[float, float] | None = (0.0, 1.0)) -> float:
    """Accuracy on inputs moved by 20 steps of PGD within `RADIUS`."""
    batch = examples.batch(torch.arange(len(examples)))
    moved = pgd(student, batch["x"], batch["y"], epsilon=RADIUS, step_size=RADIUS / 8, steps=20, box=box)
    said = predict(student, [{**batch, "x": moved}])
    return score(said.logits, said.labels)["accuracy"]


class Trades(Method):
    """TRADES, the baseline of robust training: CE(s(x), y) + beta KL(s(x) || s(x')), x' where the KL is largest.

    Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan 2019 (arXiv:1901.08573), Eq. 3. Ten steps of a quarter of the radius from a random start.
    """

    def __init__(self, *, beta: float = 6.0, box: tuple[float, float] | None = (0.0, 1.0)) -> None:
        self.beta, self.box = beta, box

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return both terms, one value per example."""
        student, x = roles["student"], batch["x"]
        logits = forward(student, x).logits
        log_p = log_probs(logits)
        fixed = log_p.detach()
        moved = ascend(
            lambda other: kl(fixed, log_probs(forward(student, other).logits)).sum(),
            x,
            epsilon=RADIUS,
            step_size=RADIUS / 4,
            steps=10,
            box=self.box,
            generator=state.rng,
        )
        return {"hard": hard_loss(logits, batch), "trades": self.beta * kl(log_p, log_probs(forward(student, moved).logits))}
