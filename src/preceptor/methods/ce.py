"""Cross-entropy with the labels alone: the baseline of every distillation method.

Source: no paper. Equation:
    L = -log softmax(student(x))_y,   or, with class probabilities written by mixup, -sum_c targets_c log softmax(student(x))_c.
Claim: none; a method that does not beat it on equal budget has not helped.
Deviations: none.
"""

from __future__ import annotations

from dataclasses import dataclass

from preceptor.composition import LogitMethod
from preceptor.core.types import Card

CARD = Card(
    slug="ce",
    title="Cross-entropy with the labels, no teacher",
    authors="baseline",
    arxiv="",
    kind="baseline",
    tasks=("classification", "language"),
    needs=("labels",),
    equation="L = -log softmax(s)_y",
    cost="the student's own step: the unit that other methods are counted in",
    headline="CIFAR-100: resnet8x4 72.50, resnet20 69.06, wrn-40-1 71.98 % accuracy (students of Zhao et al. 2022, arXiv:2203.08679)",
)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(LogitMethod):
    """Training with labels alone: the hard term that every `LogitMethod` has unless it overrides it."""
