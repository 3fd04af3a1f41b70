"""PLD: one ranking loss in the place of cross-entropy and distillation; the label comes first, then what the teacher prefers.

Paper: Bassam et al. 2025, PLD: A Choice-Theoretic List-Wise Knowledge Distillation (arXiv:2506.12542).
Claim: read as worths of a Plackett-Luce model, the teacher's logits give a ranking and say how much each of its choices counts. One convex
loss learns both label and teacher, with no weight between terms to tune, and does better than classic distillation.
Equation, with the ranking pi (label first, the other classes by falling teacher logit) and p = softmax(t / T):
    L = sum_k p_pi(k) [log sum_(l >= k) exp s_pi(l) - s_pi(k)].
The temperature is of the weights alone; T^2 has no place here. Weights (1, 0, ..., 0) give cross-entropy, 1 / C gives ListMLE / C.
Its gradient by s_i, at place r of the ranking, is exp(s_i) sum_(k <= r) p_pi(k) / sum_(l >= k) exp s_pi(l) - p_i.
Deviations: weights by position, 2^(C - k) - 1, are brought to sum 1. With mixup the label is still ``y``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from preceptor.composition import LogitMethod
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_choice, check_labels, check_logits, check_positive
from preceptor.losses.divergence import log_probs
from preceptor.losses.numeric import any_masked, upcast
from preceptor.losses.ranking import plackett_luce_nll, teacher_optimal_ranking
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.classic_kd import ClassicKD
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import blobs_world, mnist_world, side_by_side
from preceptor.models.taps import forward

CARD = Card(
    slug="pld",
    title="Plackett-Luce distillation",
    authors="Bassam et al. 2025",
    arxiv="2506.12542",
    kind="logits",
    tasks=("classification",),
    needs=("teacher", "logits", "labels"),
    equation="L = sum_k softmax(t / T)_pi(k) [log sum_(l >= k) exp s_pi(l) - s_pi(k)], pi: the label, then falling t",
    cost="one forward pass of the teacher and a sort of its logits per step",
    headline="ImageNet, ResNet-152 -> 50: 77.30 % (classic 76.80, DIST 76.60); CIFAR-100, WRN-40-2 -> WRN-40-1: 73.50 % (classic 72.44)",
)

Weights = Literal["teacher", "uniform", "ce", "position"]
"""What the choices count: ``teacher``: its probabilities; ``uniform``: 1 / C; ``ce``: the first alone; ``position``: half as much each."""


def pld_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor | None,
    *,
    teacher_temperature: float = 1.0,
    weights: Weights | Tensor = "teacher",
    ignore_index: int | None = None,
) -> Tensor:
    """Weighted negative log-likelihood of the teacher-optimal ranking, in nats.

    Bassam et al. 2025 (arXiv:2506.12542), Sec. 4; see the module. For retrieval, classes are the candidates.

    Args:
        student: logits, shape (..., C).
        teacher: logits, same shape; treated as constant.
        labels: shape (...), integers in [0, C); None ranks by the teacher alone.
        teacher_temperature: T > 0 of the weights, no unit.
        weights: see `Weights`; or numbers >= 0 in the order of ranks, shape (C,) or (..., C), constant.
        ignore_index: items with this label have the loss 0, and no gradient; None: every label must be a class.

    Returns:
        Shape (...), >= 0.

    Raises:
        TypeError: logits are not floating point, or labels not integers.
        ValueError: a shape does not fit, a label is out of range, weights are negative or sum to 0, or the temperature is not > 0.
    """
    check_logits(student=student, teacher=teacher)
    check_positive(teacher_temperature=teacher_temperature)
    if isinstance(weights, Tensor):
        check_weights(weights, student)
    else:
        check_choice(Weights, weights=weights)
    if labels is not None and ignore_index is not None:
        kept = labels != ignore_index
        if kept.shape != student.shape[:-1]:
            check_labels(labels, student)
        if not kept.all():
            own = weights[kept] if isinstance(weights, Tensor) and weights.ndim > 1 else weights
            values = pld_loss(student[kept], teacher[kept], labels[kept], teacher_temperature=teacher_temperature, weights=own)
            return values.new_zeros(kept.shape).masked_scatter(kept, values)
    ranking = teacher_optimal_ranking(teacher, labels)
    if isinstance(weights, str):
        weights = _choice_weights(weights, teacher.detach(), ranking, teacher_temperature)
    return plackett_luce_nll(student, ranking, weights)


def check_weights(weights: Tensor, logits: Tensor) -> None:
    """Refuse weights of choices that do not fit logits (..., C), are negative or not finite, or sum to 0.

    Raises:
        ValueError: naming what came.
    """
    if tuple(weights.shape) not in (tuple(logits.shape[-1:]), tuple(logits.shape)):
        wanted = f"{tuple(logits.shape[-1:])} or {tuple(logits.shape)}"
        raise ValueError(f"weights: expected shape {wanted}, a number for each rank, got {tuple(weights.shape)}")
    if not (weights.isfinite().all() and (weights >= 0).all()):
        raise ValueError(f"weights: expected finite numbers >= 0, got one of {weights[~(weights.isfinite() & (weights >= 0))][0].item()}")
    if weights.numel() and (weights.sum(dim=-1) == 0).any():
        raise ValueError("weights: expected a sum above 0 for every item, got weights that sum to 0")


def _choice_weights(weights: Weights, teacher: Tensor, ranking: Tensor, temperature: float) -> Tensor:
    """What each choice counts, in the order of ranks, (..., C) or (C,)."""
    classes = teacher.shape[-1]
    if weights == "teacher":
        teacher = upcast(teacher)
        if any_masked(teacher):
            return log_probs(teacher, temperature=temperature).exp().gather(-1, ranking)
        return (teacher if temperature == 1 else teacher / temperature).softmax(dim=-1).gather(-1, ranking)
    if weights == "uniform":
        numbers = np.full(classes, 1 / classes)
    elif weights == "ce":
        numbers = np.eye(1, classes)[0]
    else:
        halves = 0.5 ** np.arange(1, classes + 1) - 0.5**classes  # (2^(C - k) - 1) / 2^C
        numbers = halves / max(halves.sum(), 0.5**classes)
    return torch.from_numpy(numbers).to(teacher.device)


@dataclass(frozen=True, kw_only=True)
class PLD(LogitMethod):
    """Plackett-Luce distillation: its one term learns from labels and teacher."""

    cached: ClassVar[tuple[str, ...]] = ("logits",)

    teacher_temperature: float = 1.0  # T > 0 of the weights; the paper, ImageNet (4 on CIFAR-100)
    weights: Weights | tuple[float, ...] = "teacher"  # the paper; the words are its ablations, numbers are by rank, one for each class
    use_labels: bool = True  # the paper; False: ranked by the teacher alone, for data without labels

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_positive(teacher_temperature=self.teacher_temperature)
        if isinstance(self.weights, str):
            check_choice(Weights, weights=self.weights)
        else:
            check_weights(torch.tensor(self.weights), torch.empty(len(self.weights)))

    @property
    def sides(self) -> tuple[str, ...]:
        """One term, in which labels and teacher are not apart."""
        return ("soft",)

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's logits."""
        return {"logits": forward(roles["teacher"], batch["x"]).logits}

    def hard(self, logits: Tensor, batch: Batch, state: State) -> Terms:
        """Return nothing: the label is the first choice of the ranking."""
        return {}

    def soft(self, logits: Tensor, signal: Signal, batch: Batch, state: State) -> Terms:
        """Return the loss, one value per example."""
        weights = self.weights if isinstance(self.weights, str) else torch.tensor(self.weights, dtype=torch.float64, device=logits.device)
        labels = batch["y"] if self.use_labels else None
        loss = pld_loss(logits, signal["logits"], labels, teacher_temperature=self.teacher_temperature, weights=weights)
        return {"ranking": loss}


def miniature(seed: int, size: Size) -> Miniature:
    """MNIST with 300 training images and a teacher that saw 2,700; T = 4, the paper's for CIFAR, but for the arm ``sharp`` with T = 1."""
    world, steps = (mnist_world(seed), 900) if size == "full" else (blobs_world(seed), 40)
    arms = {
        "untrained-teacher": (PLD(teacher_temperature=4.0), world.untrained),
        "ce": (CrossEntropy(), None),
        "classic-kd": (ClassicKD(), world.teacher),
        "uniform": (PLD(weights="uniform"), world.teacher),
        "sharp": (PLD(), world.teacher),
        "pld": (PLD(teacher_temperature=4.0), world.teacher),
    }
    claims = (
        ("the ranking teaches two points more than labels alone", "ce", 0.02),
        ("the teacher's weights teach more than equal ones", "uniform", 0.0),
        ("one loss without a weight to tune is at most a point below classic distillation", "classic-kd", -0.01),
        ("one loss beats classic distillation", "classic-kd", 0.0),
    )
    return Miniature(
        arms=side_by_side(world, arms, steps=steps, learning_rate=2e-3, seed=seed),
        claims=tuple(Claim(name=name, method="pld", baseline=other, metric="accuracy", margin=margin) for name, other, margin in claims),
        notes=(f"{len(world.train)} training examples, {steps} updates of every student",),
    )
