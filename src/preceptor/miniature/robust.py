"""A world of small digits under attack: a naturally trained teacher, a robust one, and tiny students."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import nn

from preceptor.core.method import Method
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.data.datasets import load
from preceptor.data.examples import Examples
from preceptor.data.perturb import pgd
from preceptor.data.sources import Source
from preceptor.losses.hard import hard_loss
from preceptor.metrics.classification import nll
from preceptor.metrics.evaluate import predict
from preceptor.metrics.robustness import pgd_of, several, withstands
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import Labels, fit, seeded
from preceptor.models.reference import MLP
from preceptor.models.taps import forward

EPSILON = 0.15
"""Radius of every attack, in units of pixels in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class PGDTraining(Method):
    """Adversarial training: cross-entropy on inputs attacked against the student (Madry et al. 2017, arXiv:1706.06083)."""

    epsilon: float = EPSILON
    step_size: float = 0.04
    steps: int = 7

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Attack the student."""
        return {**batch, "x": pgd(roles["student"], batch["x"], batch["y"], **vars(self), generator=state.rng)}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the cross-entropy, one value per example."""
        return {"hard": hard_loss(forward(roles["student"], batch["x"]).logits, batch)}


class RobustWorld(NamedTuple):
    """Data and teachers, the same for all seeds."""

    train: Examples
    test: Examples
    natural: nn.Module
    robust: nn.Module


@cache
def robust_world(size: Size) -> RobustWorld:
    """Digits of 8 x 8 pixels (`preceptor.data.datasets.digits`): 1,200 and some to train on; teachers 128-128 and, by PGD-7, 256-256.

    Args:
        size: ``"smoke"`` trains the teachers for a few steps and tests on 100 images.
    Raises:
        ImportError: scikit-learn is missing (one line says what to install).
    """
    data = load("digits")
    steps = 325 if size == "full" else 60
    natural, robust = (seeded(lambda width=width: MLP(inputs=64, hidden=(width, width)), 0) for width in (128, 256))
    for method, teacher in ((Labels(), natural), (PGDTraining(), robust)):
        fit(method, {"student": teacher}, data.train, steps=steps, batch_size=100, learning_rate=2e-3)
    test = data.test if size == "full" else data.test.subset(torch.arange(100), name="test")
    return RobustWorld(data.train, test, natural.eval(), robust.eval())


def under_attack(
    world: RobustWorld, arms: Mapping[str, tuple[Method, Mapping[str, nn.Module]]], *, steps: int, seed: int
) -> dict[str, dict[str, float]]:
    """Train a student 24-24 per arm on equal budget and measure it untouched and under attack.

    Args:
        world: the data.
        arms: name -> (method, its roles besides the student).
        steps: updates of each student, of 100 examples.
        seed: of first weights, order and draws, the same for all arms.
    Returns:
        arm -> ``accuracy``, ``pgd20``, ``worst_case`` (of `preceptor.metrics.robustness.several`) and ``weighted``, the mean of the first
        two, the paper's measure, in [0, 1]; and ``nll`` of untouched inputs, in nats.
    """
    measured = {}
    for name, (method, others) in arms.items():
        student = seeded(lambda: MLP(inputs=64, hidden=(24, 24)), seed)
        roles = {"student": student, **copy.deepcopy(dict(others))}
        fit(method, roles, world.train, steps=steps, batch_size=100, learning_rate=2e-3, seed=seed)
        attacks = {"accuracy": (), "pgd20": (pgd_of(EPSILON),), "worst_case": several(EPSILON)}
        rates = {metric: float(withstands(student, Source(world.test, batch_size=600).scan(), of).mean()) for metric, of in attacks.items()}
        says = predict(student, Source(world.test, batch_size=600).scan())
        rates["nll"] = float(nll(says.logits, says.labels).mean())
        measured[name] = rates | {"weighted": (rates["accuracy"] + rates["pgd20"]) / 2}
    return measured
