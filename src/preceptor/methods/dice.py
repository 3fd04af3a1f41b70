"""Dice loss and its self-adjusting form (DSC): learning from labels by soft forms of F1, for classes that are rare.

Paper: Li, Sun, Meng, Liang, Wu, Li 2020, Dice Loss for Data-imbalanced NLP Tasks (arXiv:1911.02855).
Claim: where positives are rare, cross-entropy learns the negatives; a loss shaped like F1 gives a better F1 than it and than focal loss,
the more so the rarer they are.
Equation, of every class against the rest, with its probability p, the target y and u = (1 - p)^alpha p:
    L = 1 - (2 sum u y + gamma) / (sum u^2 + sum y^2 + gamma),   or without squares,
the sums over the set of all items of the batch (F1 of the batch, softened) or over each item alone (the paper's DSC, with alpha = 1).
Deviations: the authors' code sums over the set for one class, and over each item for several, where it adds up the classes; here ``level``
says it for both, and classes are averaged. Its power of 1 - p, whose gradient is not finite where p rounds to 1, is computed through
logarithms. Its hardest negatives are one or two too many, or an error; here they are as many as asked for. The term that learns from a
teacher, with its probabilities as targets, is not in the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from preceptor.composition import LogitMethod
from preceptor.core.reduce import gathered
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.dice import ClassReduction, Level, check_dice, dice_loss
from preceptor.losses.divergence import log_probs
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.claim import Claim
from preceptor.miniature.imbalanced import Focal, rare_positives
from preceptor.miniature.run import Miniature, Size

CARD = Card(
    slug="dice",
    title="Dice loss and self-adjusting Dice for rare classes",
    authors="Li et al. 2020",
    arxiv="1911.02855",
    kind="logits",
    tasks=("classification", "language"),
    needs=("labels",),
    equation="L = 1 - (2 sum u y + gamma) / (sum u^2 + sum y^2 + gamma), u = (1 - p)^alpha p, sums over the batch or each item alone",
    cost="none",
    headline="span F1, BERT-MRC with focal loss -> Dice, the authors' repository: CoNLL03 93.08 -> 93.21, OntoNotes5 91.12 -> 92.01",
)


@dataclass(frozen=True, kw_only=True)
class Dice(LogitMethod):
    """Labels learnt by Dice loss; with ``soft_weight`` a teacher's probabilities too.

    At the level ``set`` all processes make one set, and microbatches and weights of examples are refused. Batches should hold several
    positives: F1 of a small set is noisy.
    """

    alpha: float = 0.01  # >= 0; the authors' scripts; the paper's DSC is 1, which moves the best p of a positive from 1 to 1 / 2
    smooth: float = 1.0  # gamma > 0; the authors' scripts; should be small next to the positives of a batch
    square: bool = True  # the authors' scripts
    level: Level = "set"  # the authors' code of one class; example is the paper's form, mostly below cross-entropy in our miniature
    detach_factor: bool = False  # the paper; True holds (1 - p)^alpha constant, which leaves the threshold at 1 / 2 for any alpha
    classes: tuple[int, ...] | None = None  # those that count, None: all; the paper's tagging leaves out the class "outside"
    class_reduction: ClassReduction = "mean"  # F1 averaged over classes; the authors' code has sum
    skip_absent: bool = False  # the authors' code: a class that no item of the batch has is pushed down
    ohem_ratio: float = 0.0  # hardest negatives for each positive, 0: all; the authors' scripts, 0.1 to 0.3 for some sets
    soft_weight: float = 0.0  # weight of the term that learns from a teacher, 0: none; not in the paper

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_dice(
            alpha=self.alpha,
            smooth=self.smooth,
            level=self.level,
            class_reduction=self.class_reduction,
            skip_absent=self.skip_absent,
            ohem_ratio=self.ohem_ratio,
        )
        if not 0 <= self.soft_weight < math.inf:
            raise ValueError(f"soft_weight: expected a finite number >= 0, got {self.soft_weight}")

    @property
    def coupled(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the sums go over items."""
        return self.level == "set"

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's logits where they count."""
        return self.optional_logits(batch, roles)

    def hard(self, logits: Tensor, batch: Batch, state: State) -> Terms:
        """Return the loss of the labels: one value per item, or 0-dimensional for the set of all processes."""
        return {"hard": self._loss(logits, batch.get("targets", batch["y"]), batch.get("mask/hard", batch.get("mask")))}

    def soft(self, logits: Tensor, signal: Signal, batch: Batch, state: State) -> Terms:
        """Return the loss of the teacher's probabilities, shaped like the hard one."""
        if self.soft_weight == 0:
            return {}
        teacher = signal["logits"]
        probs = log_probs(teacher).exp() if teacher.ndim > 1 and teacher.shape[-1] > 1 else teacher.sigmoid()
        return {"soft": self.soft_weight * self._loss(logits, probs, batch.get("mask/soft", batch.get("mask")))}

    def _loss(self, logits: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
        if self.level == "set":
            rows = logits.reshape(-1, logits.shape[-1] if logits.ndim > 1 else 1)
            targets = gathered(targets.reshape(-1, *rows.shape[1:]) if targets.shape == logits.shape else targets.reshape(-1))
            logits, mask = gathered(rows), None if mask is None else gathered(mask.reshape(-1))
        else:
            mask = None  # the loop leaves masked items out of the mean
        return dice_loss(
            logits,
            targets,
            mask=mask,
            alpha=self.alpha,
            smooth=self.smooth,
            square=self.square,
            level=self.level,
            detach_factor=self.detach_factor,
            classes=self.classes,
            class_reduction=self.class_reduction,
            skip_absent=self.skip_absent,
            ohem_ratio=self.ohem_ratio,
        )


def miniature(seed: int, size: Size) -> Miniature:
    """Three and ten per cent of positives: an MLP 20-32-2 by each loss, on equal budget; the losses look at the positive class."""
    arms = {
        "untrained": None,
        "ce": CrossEntropy(),
        "focal": Focal(),
        "dsc": Dice(alpha=1.0, classes=(1,)),
        "dsc-detached": Dice(alpha=1.0, detach_factor=True, classes=(1,)),
        "per-example": Dice(alpha=0.0, level="example", classes=(1,)),
        "dice": Dice(alpha=0.0, classes=(1,)),
    }
    measured, notes = rare_positives(arms, seed=seed, size=size)
    return Miniature(
        arms=measured,
        claims=(
            Claim(name="F1 above cross-entropy, 3 % positives", method="dice", baseline="ce", metric="f1_3"),
            Claim(name="F1 above focal loss, 3 % positives", method="dice", baseline="focal", metric="f1_3"),
            Claim(name="and at the best threshold of each, 3 % positives", method="dice", baseline="ce", metric="best_f1_3"),
        ),
        notes=notes,
    )
