"""Decoupled knowledge distillation: the target class and the others are taught with weights of their own.

Paper: Zhao, Cui, Song, Qiu, Liang 2022, Decoupled Knowledge Distillation (arXiv:2203.08679).
Claim: in the classic loss the knowledge about the non-target classes is scaled down by 1 - p_y, so a confident teacher teaches little of
it; with a weight of its own the student gets better.
Equation (Eq. 7), with p = softmax(t / T), q = softmax(s / T) and the label y:
    TCKD = KL((p_y, 1 - p_y) || (q_y, 1 - q_y)),   NCKD = KL(p^ || q^),   p^_i = p_i / (1 - p_y) for i != y,
    L = CE(s, y) + w T^2 (alpha TCKD + beta NCKD),   w = min((epoch + 1) / warmup_epochs, 1) with epochs counted from 0.
Identity (Eq. 5): KL(p || q) = TCKD + (1 - p_y) NCKD.
Deviations: the target is removed from the softmax exactly, where the released code subtracts 1000 from its logit. With mixup the target
class is still that of ``y``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from preceptor.composition import LogitMethod
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_labels, check_logits, check_positive
from preceptor.losses.divergence import kl, log_probs
from preceptor.losses.hard import hard_loss
from preceptor.losses.numeric import any_masked, upcast
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.classic_kd import ClassicKD
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import blobs_world, mnist_world, side_by_side
from preceptor.models.taps import forward

CARD = Card(
    slug="dkd",
    title="Decoupled knowledge distillation",
    authors="Zhao et al. 2022",
    arxiv="2203.08679",
    kind="logits",
    tasks=("classification",),
    needs=("teacher", "logits", "labels"),
    equation="L = CE(s, y) + T^2 (alpha KL((p_y, 1 - p_y) || (q_y, 1 - q_y)) + beta KL(p without y || q without y))",
    cost="one forward pass of the teacher per step",
    headline="CIFAR-100: resnet32x4 -> resnet8x4 76.32 (classic 73.33), resnet56 -> resnet20 71.97 (classic 70.66) % accuracy",
)


def decoupled_kl(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 4.0) -> tuple[Tensor, Tensor]:
    """The two parts of KL(teacher || student): about the target class, and among the others; in nats, without T^2.

    Zhao et al. 2022 (arXiv:2203.08679), Eq. 5:
        KL(p || q) = TCKD + (1 - p_y) NCKD.

    Args:
        student: logits, shape (..., classes).
        teacher: logits, same shape; treated as constant.
        labels: the target class, shape (...), integers in [0, classes).
        temperature: T > 0, no unit.

    Returns:
        TCKD and NCKD, each of shape (...), >= 0. With two classes NCKD is 0, with one class both are.

    Raises:
        TypeError: logits are not floating point, or labels not integers.
        ValueError: shapes or numbers of classes differ, a label is out of range, or temperature <= 0.
    """
    check_logits(student=student, teacher=teacher)
    check_labels(labels, student)
    labels = labels.long().unsqueeze(-1)
    binary, others = [], []
    for logits in (teacher.detach(), student):
        scaled = log_probs(logits, temperature=temperature) if any_masked(logits) else upcast(logits) / temperature
        # A huge finite number removes the target: the sum over no class at all, when there is only one, keeps its gradient finite.
        rest = scaled.scatter(-1, labels, torch.finfo(scaled.dtype).min / 4)
        log_rest = rest.logsumexp(dim=-1, keepdim=True)
        binary.append(torch.cat([scaled.gather(-1, labels), log_rest], dim=-1).log_softmax(dim=-1))
        others.append(rest - log_rest)
    return kl(*binary), kl(*others)


@dataclass(frozen=True, kw_only=True)
class DKD(LogitMethod):
    """Decoupled distillation with a linear warm-up."""

    cached: ClassVar[tuple[str, ...]] = ("logits",)

    temperature: float = 4.0  # T > 0; mdistiller, CIFAR-100
    alpha: float = 1.0  # weight of the target part; mdistiller, CIFAR-100
    beta: float = 8.0  # weight of the part among the others; mdistiller, resnet32x4 -> resnet8x4 (0.5 to 8 by pair, low for weak teachers)
    hard_weight: float = 1.0  # weight of the cross-entropy with labels; mdistiller, CIFAR-100
    warmup_epochs: int = 20  # epochs in which the distillation weight grows to 1, 0: none; mdistiller, CIFAR-100

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_positive(temperature=self.temperature)
        for name, value in (
            ("alpha", self.alpha),
            ("beta", self.beta),
            ("hard_weight", self.hard_weight),
            ("warmup_epochs", self.warmup_epochs),
        ):
            if value < 0:
                raise ValueError(f"{name}: expected a number >= 0, got {value}")

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's logits."""
        return {"logits": forward(roles["teacher"], batch["x"]).logits}

    def hard(self, logits: Tensor, batch: Batch, state: State) -> Terms:
        """Return the cross-entropy, one value per example."""
        return {"hard": self.hard_weight * hard_loss(logits, batch)}

    def soft(self, logits: Tensor, signal: Signal, batch: Batch, state: State) -> Terms:
        """Return both parts of the soft term, one value per example."""
        tckd, nckd = decoupled_kl(logits, signal["logits"], batch["y"], temperature=self.temperature)
        weight = self.temperature**2 * min((state.epoch + 1) / max(self.warmup_epochs, 1), 1.0)
        return {"target": weight * self.alpha * tckd, "others": weight * self.beta * nckd}


def miniature(seed: int, size: Size) -> Miniature:
    """MNIST with 300 training images: decoupled against classic distillation from a teacher that saw 2,700, on equal budget."""
    world, steps = (mnist_world(seed), 720) if size == "full" else (blobs_world(seed), 40)
    arms = {
        "untrained-teacher": (DKD(), world.untrained),
        "ce": (CrossEntropy(), None),
        "classic-kd": (ClassicKD(), world.teacher),
        "dkd": (DKD(), world.teacher),
    }
    return Miniature(
        arms=side_by_side(world, arms, steps=steps, seed=seed),
        claims=(
            Claim(name="decoupled distillation beats classic distillation", method="dkd", baseline="classic-kd", metric="accuracy"),
            Claim(name="decoupled distillation teaches more than labels alone", method="dkd", baseline="ce", metric="accuracy"),
        ),
        notes=(f"{len(world.train)} training examples, {steps} updates of every student",),
    )
