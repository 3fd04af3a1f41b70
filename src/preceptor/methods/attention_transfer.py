"""Attention transfer: the student looks where the teacher looks.

Paper: Zagoruyko, Komodakis 2017, Paying More Attention to Attention (arXiv:1612.03928).
Claim: a student whose maps of activity match the teacher's gets better than one trained on labels alone.
Equation (Eq. 2), with the map A(F) = a / |a|, a = mean_c F_c^p over channels, of each pair of layers:
    L = CE(s, y) + w sum over pairs mean over positions (A(F_s) - A(F_t))^2.
Deviations: the paper takes the norm of the difference and beta / 2; the mean of squares and its weight are those of the public
implementations. Maps of different sizes are average-pooled to the smaller one. Gradient-based attention (Sec. 3.2) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from preceptor.core.method import Method
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_positive
from preceptor.losses.features import attention_transfer
from preceptor.losses.hard import hard_loss
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.claim import Claim
from preceptor.miniature.digits import digits_world
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import side_by_side
from preceptor.models.pairs import check_pairs
from preceptor.models.taps import forward

CARD = Card(
    slug="attention-transfer",
    title="Attention transfer between convolutional maps",
    authors="Zagoruyko, Komodakis 2017",
    arxiv="1612.03928",
    kind="features",
    tasks=("classification",),
    needs=("teacher", "features", "labels"),
    equation="L = CE(s, y) + w sum_layers mean (A(F_s) - A(F_t))^2, A(F) = a / |a|, a = mean_c F_c^p",
    cost="one forward pass of the teacher per step",
    headline="CIFAR-100: resnet32x4 -> resnet8x4 73.44 % accuracy (student alone 72.50, classic 73.33)",
)


@dataclass(frozen=True, kw_only=True)
class AttentionTransfer(Method):
    """Activation-based attention at pairs of convolutional layers; numbers of channels may differ."""

    cached: ClassVar[tuple[str, ...]] = ("features",)

    student_layers: tuple[str, ...] = ()  # must be given; the paper uses the end of every stage
    teacher_layers: tuple[str, ...] = ()  # must be given, one for each of the student's
    attention_weight: float = 1000.0  # w > 0; RepDistiller and mdistiller, for the mean of squares
    hard_weight: float = 1.0  # weight of the cross-entropy, >= 0; same sources
    p: int = 2  # power of the activations, >= 1; Sec. 3.1 and the released code

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_positive(attention_weight=self.attention_weight)
        if self.hard_weight < 0:
            raise ValueError(f"hard_weight: expected a number >= 0, got {self.hard_weight}")
        if self.p < 1:
            raise ValueError(f"p: expected an integer >= 1, got {self.p}")

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return none, after a look at the names of the layers."""
        check_pairs("attention-transfer", roles, self.student_layers, self.teacher_layers)
        return {}

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's maps."""
        check_pairs("attention-transfer", roles, self.student_layers, self.teacher_layers)
        return {"features": forward(roles["teacher"], batch["x"], self.teacher_layers).features}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the hard term and the attention summed over pairs, one value per example."""
        output = forward(roles["student"], batch["x"], self.student_layers)
        pairs = zip(self.student_layers, self.teacher_layers, strict=True)
        maps = [attention_transfer(output.features[s], signal["features"][t], p=self.p) for s, t in pairs]
        attention = torch.stack(maps).sum(dim=0)
        return {"hard": self.hard_weight * hard_loss(output.logits, batch), "attention": self.attention_weight * attention}


def miniature(seed: int, size: Size) -> Miniature:
    """Digits of 8 x 8 pixels, few of them labelled: attention of a convolutional teacher against labels alone, on equal budget."""
    world, steps = digits_world(seed, size), 600 if size == "full" else 20
    method = AttentionTransfer(student_layers=("block1", "block2"), teacher_layers=("block1", "block2"))
    arms = {"untrained-teacher": (method, world.untrained), "ce": (CrossEntropy(), None), "attention-transfer": (method, world.teacher)}
    return Miniature(
        arms=side_by_side(world, arms, steps=steps, learning_rate=3e-3, seed=seed),
        claims=(Claim(name="attention teaches more than labels alone", method="attention-transfer", baseline="ce", metric="accuracy"),),
        notes=(f"{len(world.train)} training images, {steps} updates of every student",),
    )
