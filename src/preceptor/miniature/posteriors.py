"""A world of teachers that are tuned further before they teach, and the control that is merely less sure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from preceptor.core.method import Method
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.data.examples import Examples
from preceptor.losses.divergence import log_probs
from preceptor.losses.hard import hard_loss
from preceptor.metrics.evaluate import predict
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import World, blobs_world, fit, measure, mnist_world
from preceptor.models.taps import forward


@dataclass(frozen=True)
class EntropyBonus(Method):
    """Cross-entropy minus ``weight`` times the entropy of the prediction, in nats."""

    weight: float

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return both terms, one value per example."""
        logits = forward(roles["student"], batch["x"]).logits
        log_p = log_probs(logits)
        return {"hard": hard_loss(logits, batch), "entropy": self.weight * (log_p.exp() * log_p).sum(dim=-1)}


@dataclass(frozen=True, kw_only=True)
class PosteriorWorld:
    """A world of one seed, the whole ``pool`` that its teacher saw, and how long teachers are tuned and students taught."""

    world: World
    pool: Examples
    seed: int
    tuning_steps: int
    steps: int
    trials: int
    """Tunings in search of an entropy."""

    @property
    def teacher(self) -> nn.Module:
        """As it was trained."""
        return self.world.teacher

    @property
    def untrained(self) -> nn.Module:
        """The teacher with random weights."""
        return self.world.untrained

    @property
    def notes(self) -> tuple[str, ...]:
        """The budget."""
        return (
            f"{self.tuning_steps} updates of every tuned teacher on {len(self.pool)} examples, {self.steps} of every student on"
            f" {len(self.world.train)}",
        )

    def everything(self) -> Batch:
        """The pool as one batch."""
        return self.pool.batch(torch.arange(len(self.pool)))

    def tune(self, method: Method) -> nn.Module:
        """A copy of the teacher, trained on the pool by a method whose student it is."""
        tuned = copy.deepcopy(self.teacher)
        fit(method, {"student": tuned}, self.pool, steps=self.tuning_steps, batch_size=100, learning_rate=5e-4, seed=self.seed)
        return tuned.eval()

    def entropy(self, teacher: nn.Module) -> float:
        """Mean entropy of its predictions on the pool, in nats."""
        return float(torch.special.entr(predict(teacher, [self.everything()]).logits.softmax(dim=-1)).sum(dim=-1).mean())

    def tune_to_entropy(self, method: Callable[[float], Method], entropy: float) -> nn.Module:
        """Tune by a method whose weight, in [0, 2] and found by halving, brings the mean entropy of predictions near ``entropy``."""
        low, high = 0.0, 2.0
        found: dict[float, nn.Module] = {}
        for _ in range(self.trials):
            teacher = self.tune(method((low + high) / 2))
            reached = self.entropy(teacher)
            found[abs(reached - entropy)] = teacher
            low, high = ((low + high) / 2, high) if reached < entropy else (low, (low + high) / 2)
        return found[min(found)]


def posterior_world(seed: int, size: Size) -> PosteriorWorld:
    """`mnist_world`, whose teacher is tuned for 8 epochs, or for a quick look `blobs_world`."""
    if size == "full":
        world, pool = mnist_world(seed), mnist_world(seed, train_images=2700).train
        return PosteriorWorld(world=world, pool=pool, seed=seed, tuning_steps=8 * 27, steps=720, trials=7)
    world, pool = blobs_world(seed), blobs_world(seed, train_examples=2000).train
    return PosteriorWorld(world=world, pool=pool, seed=seed, tuning_steps=20, steps=30, trials=2)


def taught_by(world: PosteriorWorld, method: Method, teacher: nn.Module) -> dict[str, float]:
    """Teach a student and measure it; ``teacher_accuracy`` and ``teacher_entropy`` (nats, on the pool) are the teacher's own."""
    student = world.world.student()
    fit(method, {"student": student, "teacher": teacher}, world.world.train, steps=world.steps, seed=world.seed)
    own = {"teacher_accuracy": measure(teacher, world.world)["accuracy"], "teacher_entropy": world.entropy(teacher)}
    return measure(student, world.world) | own
