"""Classic knowledge distillation: the student matches the teacher's softened predictions.

Paper: Hinton, Vinyals, Dean 2015, Distilling the Knowledge in a Neural Network (arXiv:1503.02531).
Claim: the small probabilities that a teacher gives to wrong classes say how it generalises; softened by a temperature they teach a
student more than labels alone, above all where labels are few.
Equation, with p = softmax(t / T) and q = softmax(s / T) of the logits of teacher and student:
    L = (1 - alpha) CE(s, y) + alpha T^2 KL(p || q).
The gradient of the soft term by one row of s is alpha T (q - p): T^2 keeps it comparable to the hard one. As T -> infinity,
T^2 KL -> |(s - mean s) - (t - mean t)|^2 / (2 C).
Deviations: the paper writes the soft term as a cross-entropy; the KL differs by the teacher's entropy, which has no gradient. The weights
are not in the paper; they are those of the public CIFAR-100 benchmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from preceptor.composition import LogitMethod
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_positive, check_unit_interval
from preceptor.losses.hard import hard_loss
from preceptor.losses.sparse import signal_kl
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import blobs_world, mnist_world, side_by_side
from preceptor.models.taps import forward

CARD = Card(
    slug="classic-kd",
    title="Classic knowledge distillation",
    authors="Hinton et al. 2015",
    arxiv="1503.02531",
    kind="logits",
    tasks=("classification", "language"),
    needs=("teacher", "logits", "labels"),
    equation="L = (1 - alpha) CE(s, y) + alpha T^2 KL(softmax(t / T) || softmax(s / T))",
    cost="one forward pass of the teacher per step",
    headline="CIFAR-100 accuracy: resnet32x4 -> resnet8x4 73.33 % (student alone 72.50), resnet56 -> resnet20 70.66 % (69.06)",
)


@dataclass(frozen=True, kw_only=True)
class ClassicKD(LogitMethod):
    """Hinton's distillation with forward KL."""

    cached: ClassVar[tuple[str, ...]] = ("logits", "top-k", "sample")

    temperature: float = 4.0  # T > 0; the CIFAR-100 configuration of mdistiller and RepDistiller
    alpha: float = 0.9  # weight of the soft term, 1 - alpha of the hard one; same source, Sec. 2 of the paper: the hard weight is small

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_positive(temperature=self.temperature)
        check_unit_interval(alpha=self.alpha)

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's logits."""
        return {"logits": forward(roles["teacher"], batch["x"]).logits}

    def hard(self, logits: Tensor, batch: Batch, state: State) -> Terms:
        """Return the cross-entropy, one value per example."""
        return {"hard": (1 - self.alpha) * hard_loss(logits, batch)}

    def soft(self, logits: Tensor, signal: Signal, batch: Batch, state: State) -> Terms:
        """Return the divergence to the teacher, one value per example."""
        return {"soft": self.alpha * self.temperature**2 * signal_kl(logits, signal, temperature=self.temperature)}


def miniature(seed: int, size: Size) -> Miniature:
    """MNIST with 300 training images: a teacher that saw 2,700 against labels alone, on equal budget."""
    world, steps = (mnist_world(seed), 720) if size == "full" else (blobs_world(seed), 40)
    arms = {
        "untrained-teacher": (ClassicKD(), world.untrained),
        "ce": (CrossEntropy(), None),
        "classic-kd": (ClassicKD(), world.teacher),
    }
    return Miniature(
        arms=side_by_side(world, arms, steps=steps, seed=seed),
        claims=(Claim(name="soft targets teach more than labels alone", method="classic-kd", baseline="ce", metric="accuracy"),),
        notes=(f"{len(world.train)} training examples, {steps} updates of every student",),
    )
