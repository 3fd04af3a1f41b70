"""FitNets: the features inside the teacher are hints for the features inside the student.

Paper: Romero, Ballas, Kahou, Chassang, Gatta, Bengio 2015, FitNets: Hints for Thin Deep Nets (arXiv:1412.6550).
Claim: a student that also learns to predict the teacher's intermediate features generalises better than one trained on labels alone.
Equation (Eq. 3), with features f of one layer of each network and a regressor r that is trained with the student:
    L = CE(s, y) + w |r(f_s) - f_t|^2 / (number of elements).
Deviations: one stage, hints and labels together, as the public benchmarks do, where the paper first trains on hints alone and then by
classic distillation. The norm is a mean over elements, not half a sum. For maps the regressor is a 1 x 1 convolution, batch normalisation
and ReLU, before which maps of another size are average-pooled to the teacher's, where the paper chooses the size of the convolution's
kernel. For vectors and tokens it is linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, Phase, evaluating
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_positive
from preceptor.losses.features import hint_loss
from preceptor.losses.hard import hard_loss
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.claim import Claim
from preceptor.miniature.digits import digits_world
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import side_by_side
from preceptor.models.pairs import check_pairs
from preceptor.models.taps import forward

CARD = Card(
    slug="fitnets",
    title="FitNets: hints from the teacher's features",
    authors="Romero et al. 2015",
    arxiv="1412.6550",
    kind="features",
    tasks=("classification",),
    needs=("teacher", "features", "labels"),
    equation="L = CE(s, y) + w mean |r(f_s) - f_t|^2, with a regressor r trained with the student",
    cost="one forward pass of the teacher and a regressor per step; the regressor is dropped after training",
    headline="CIFAR-100: resnet32x4 -> resnet8x4 73.50 % accuracy (student alone 72.50, classic 73.33)",
)


@dataclass(frozen=True, kw_only=True)
class FitNets(Method):
    """Hints at pairs of layers; the role ``projector`` holds one regressor per pair."""

    student_layers: tuple[str, ...] = ()  # must be given; mdistiller uses one hint layer, the third of five
    teacher_layers: tuple[str, ...] = ()  # must be given, one for each of the student's
    hint_weight: float = 100.0  # w > 0; mdistiller, CIFAR-100
    hard_weight: float = 1.0  # weight of the cross-entropy, >= 0; mdistiller, CIFAR-100
    norm: Literal["batch", "none"] = "batch"  # in the regressor of maps; mdistiller. "none": examples never influence each other

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_positive(hint_weight=self.hint_weight)
        if self.hard_weight < 0:
            raise ValueError(f"hard_weight: expected a number >= 0, got {self.hard_weight}")
        if self.norm not in ("batch", "none"):
            raise ValueError(f"norm: expected 'batch' or 'none', got {self.norm!r}")

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return the regressors, built for the features of one example batch."""
        check_pairs("fitnets", roles, self.student_layers, self.teacher_layers)
        with torch.no_grad(), evaluating(roles["student"]), evaluating(roles["teacher"]):
            student = forward(roles["student"], batch["x"], self.student_layers).features
            teacher = forward(roles["teacher"], batch["x"], self.teacher_layers).features
        pairs = zip(self.student_layers, self.teacher_layers, strict=True)
        return {"projector": nn.ModuleList(self._regressor(student[s], teacher[t]) for s, t in pairs)}

    def phases(self) -> tuple[Phase, ...]:
        """One phase that trains the student and the regressors."""
        return (Phase(name="student", trains=("student", "projector"), signal=self.signal, loss=self.loss, update=self.update),)

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's features."""
        check_pairs("fitnets", roles, self.student_layers, self.teacher_layers)
        return {"features": forward(roles["teacher"], batch["x"], self.teacher_layers).features}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the hard term and the hints summed over pairs, one value per example."""
        output = forward(roles["student"], batch["x"], self.student_layers)
        triples = zip(roles["projector"].children(), self.student_layers, self.teacher_layers, strict=True)
        hints = torch.stack([hint_loss(r(output.features[s]), signal["features"][t]) for r, s, t in triples]).sum(dim=0)
        return {"hard": self.hard_weight * hard_loss(output.logits, batch), "hint": self.hint_weight * hints}

    def _regressor(self, student: Tensor, teacher: Tensor) -> nn.Module:
        """A regressor from features like ``student`` to features like ``teacher``."""
        if student.ndim != teacher.ndim or student.ndim < 2:
            raise ValueError(
                f"fitnets: expected features of the same kind, maps (N, C, H, W), tokens (N, L, D) or vectors (N, D), got"
                f" {tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher"
            )
        if student.ndim != 4:
            return nn.Linear(student.shape[-1], teacher.shape[-1]).to(student)
        layers: list[nn.Module] = [] if student.shape[2:] == teacher.shape[2:] else [nn.AdaptiveAvgPool2d(teacher.shape[2:])]
        layers.append(nn.Conv2d(student.shape[1], teacher.shape[1], 1, bias=self.norm == "none"))
        if self.norm == "batch":
            layers.append(nn.BatchNorm2d(teacher.shape[1]))
        return nn.Sequential(*layers, nn.ReLU()).to(student)


def miniature(seed: int, size: Size) -> Miniature:
    """Digits of 8 x 8 pixels, few of them labelled: hints of a convolutional teacher against labels alone, on equal budget."""
    world, steps = digits_world(seed, size), 600 if size == "full" else 20
    method = FitNets(student_layers=("block2",), teacher_layers=("block2",))
    arms = {"untrained-teacher": (method, world.untrained), "ce": (CrossEntropy(), None), "fitnets": (method, world.teacher)}
    return Miniature(
        arms=side_by_side(world, arms, steps=steps, learning_rate=3e-3, seed=seed),
        claims=(Claim(name="hints teach more than labels alone", method="fitnets", baseline="ce", metric="accuracy"),),
        notes=(f"{len(world.train)} training images, {steps} updates of every student",),
    )
