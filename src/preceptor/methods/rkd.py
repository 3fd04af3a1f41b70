"""Relational knowledge distillation: the student keeps the distances and angles between examples, not the features themselves.

Paper: Park, Kim, Lu, Cho 2019, Relational Knowledge Distillation (arXiv:1904.05068).
Claim: the mutual relations of examples teach a student more than labels alone, whatever the dimensions of the two embeddings.
Equation (Eq. 5 to 9), with distances d divided by their mean and the angles of all triplets, over a whole batch:
    L = CE(s, y) + w_d mean_ij SmoothL1(d^s_ij, d^t_ij) + w_a mean_ijk SmoothL1(cos^s_ijk, cos^t_ijk).
Deviations: means are over all entries, the zero diagonal included, as in the released code. Features with more than one axis per example
are flattened. The relations are those of the global batch, over all processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.reduce import gathered
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.hard import hard_loss
from preceptor.losses.relations import rkd_angle, rkd_distance
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import blobs_world, mnist_world, side_by_side
from preceptor.models.pairs import check_pairs
from preceptor.models.taps import forward

CARD = Card(
    slug="rkd",
    title="Relational knowledge distillation: distances and angles",
    authors="Park et al. 2019",
    arxiv="1904.05068",
    kind="relations",
    tasks=("classification",),
    needs=("teacher", "features", "embeddings", "labels"),
    equation="L = CE(s, y) + w_d mean SmoothL1(d_s / mean d_s, d_t / mean d_t) + w_a mean SmoothL1(cos_s, cos_t)",
    cost="one forward pass of the teacher per step; memory for the cube of the batch size",
    headline="CIFAR-100: resnet32x4 -> resnet8x4 71.90 % accuracy (student alone 72.50, classic 73.33)",
)


@dataclass(frozen=True, kw_only=True)
class RKD(Method):
    """Distance-wise and angle-wise relations at pairs of layers, usually the input of the classifier (``fc:input``)."""

    coupled: ClassVar[bool] = True
    cached: ClassVar[tuple[str, ...]] = ("features",)

    student_layers: tuple[str, ...] = ()  # must be given; the paper uses the last embedding
    teacher_layers: tuple[str, ...] = ()  # must be given, one for each of the student's
    distance_weight: float = 25.0  # w_d >= 0; Sec. 4.2, classification
    angle_weight: float = 50.0  # w_a >= 0; Sec. 4.2, classification
    hard_weight: float = 1.0  # weight of the cross-entropy, >= 0; Sec. 4.2

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("distance_weight", "angle_weight", "hard_weight"):
            value = vars(self)[name]
            if value < 0:
                raise ValueError(f"{name}: expected a number >= 0, got {value}")

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return none, after a look at the names of the layers."""
        check_pairs("rkd", roles, self.student_layers, self.teacher_layers)
        return {}

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's features."""
        check_pairs("rkd", roles, self.student_layers, self.teacher_layers)
        return {"features": forward(roles["teacher"], batch["x"], self.teacher_layers).features}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the hard term, one value per example, and the relations of the global batch summed over pairs, 0-dimensional."""
        output = forward(roles["student"], batch["x"], self.student_layers)
        distances, angles = [], []
        for student, teacher in zip(self.student_layers, self.teacher_layers, strict=True):
            embeddings = _embeddings(output.features[student], batch), _embeddings(signal["features"][teacher], batch)
            distances.append(rkd_distance(*embeddings).sum() / max(len(embeddings[0]), 1))
            angles.append(rkd_angle(*embeddings).sum() / max(len(embeddings[0]), 1))
        return {
            "hard": self.hard_weight * hard_loss(output.logits, batch),
            "distance": self.distance_weight * torch.stack(distances).sum(),
            "angle": self.angle_weight * torch.stack(angles).sum(),
        }


def _embeddings(features: Tensor, batch: Batch) -> Tensor:
    """The embeddings of all processes, (n, D), without those of masked examples."""
    embeddings = features.flatten(1)
    return gathered(embeddings[batch["mask"] > 0] if "mask" in batch else embeddings)


def miniature(seed: int, size: Size) -> Miniature:
    """MNIST with 300 training images: relations of the teacher's embeddings against labels alone, on equal budget."""
    world, steps = (mnist_world(seed), 720) if size == "full" else (blobs_world(seed), 40)
    method = RKD(student_layers=("fc:input",), teacher_layers=("fc:input",))
    arms = {"untrained-teacher": (method, world.untrained), "ce": (CrossEntropy(), None), "rkd": (method, world.teacher)}
    return Miniature(
        arms=side_by_side(world, arms, steps=steps, seed=seed),
        claims=(Claim(name="relations teach more than labels alone", method="rkd", baseline="ce", metric="accuracy"),),
        notes=(f"{len(world.train)} training examples, {steps} updates of every student",),
    )
