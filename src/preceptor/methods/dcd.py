"""DCD: a smaller cross-encoder scores the few candidates that its teacher finds hardest, imitating it where it is sure.

Paper: Rao, Ding, Qi et al. 2023, Dynamic Contrastive Distillation for Image-Text Retrieval (arXiv:2207.01426).
Claim: a student with half of the fusion layers keeps the teacher's recall when a frozen teacher picks its negatives, so that it runs on
H + 1 of F + 1 candidates, and weighs the queries: imitate where the teacher is sure, learn from the label where it is not.
Equation, with scores t and s of teacher and student for K = H + 1 candidates of query i, the positive among them first, and the entropies
h_i of softmax(t_i):
    e_i = h_i / sum_k h_k,   w_i = softmax_i((1 - e_i)^2),
    L = a sum_i w_i mean_j (t_ij - s_ij)^2  +  (1 - a) sum_i e_i mean_j BCE(s_ij, [j = 0]).
The factor T^2 on scores divided by T cancels: there is no temperature. The weights never differ by more than a factor e.

A batch is ``x = {"queries": (B, ...), "candidates": (B, F + 1, ...)}``, candidate 0 the positive, as
`preceptor.data.negatives.RandomNegatives` makes it; both networks are called with these two keywords and return (B, K) scores. Texts that
look for images are queries, too: the recipe is the same with the roles swapped. ``teacher_scores`` (B, F + 1) in a batch, remembered from
before, spares the teacher. Any other ``x`` belongs to classifiers: the candidates of an image are the classes, the positive is its label.

Deviations: the paper's code multiplies w with a mean that is one number already, so that it does nothing (``weighting="none"``), and
compares the teacher's sorted scores with the student's, whose first is the positive (``align="sorted"``). Here each query has its weight,
and both score the same candidate. The image-text matching loss is not taken over. ``wsl`` is the weighting that the code has beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.reduce import gathered
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.candidates import Selection, entropy_shares, select_candidates
from preceptor.losses.checks import check_choice, check_counts, check_labels, check_logits, check_unit_interval
from preceptor.losses.numeric import upcast
from preceptor.miniature.claim import Claim
from preceptor.miniature.retrieval import NUM_NEGATIVES, PositiveFirst, compare_scorers, recalls, retrieval_world
from preceptor.miniature.run import Miniature, Size
from preceptor.models.taps import forward

CARD = Card(
    slug="dcd",
    title="DCD: dynamic contrastive distillation for retrieval",
    authors="Rao et al. 2023",
    arxiv="2207.01426",
    kind="logits",
    tasks=("classification", "retrieval"),
    needs=("teacher", "logits", "labels"),
    equation="L = a sum_i w_i mean_j (t_ij - s_ij)^2 + (1 - a) sum_i e_i mean_j BCE(s_ij, [j = 0]), w = softmax((1 - e)^2)",
    cost="one forward pass of the teacher over F + 1 candidates per query; the student sees H + 1 of them",
    headline="MS-COCO and Flickr30K, ViLT and METER: at least 129 times faster inference at competitive recall (abstract)",
)

Weighting = Literal["dynamic", "none", "static", "wsl"]
"""w and e as above; w without effect, as in the paper's code; all weights 1 / B; or by cross-entropies, see `dcd_loss`."""
Align = Literal["candidates", "sorted"]
"""The teacher's scores of the student's candidates; or its highest scores, as in the paper's code."""


class Parts(NamedTuple):
    """The terms of each query (B,), weights applied: their sums over the batch are the loss."""

    distill: Tensor
    own: Tensor

    @property
    def total(self) -> Tensor:
        """Both together, (B,)."""
        return self.distill + self.own


def teacher_columns(teacher: Tensor, candidates: Tensor, *, align: Align = "candidates") -> Tensor:
    """The teacher's scores (B, K) that stand beside the student's.

    Args:
        teacher: all scores (B, F + 1).
        candidates: positions (B, K) of `preceptor.losses.candidates.select_candidates`.
        align: see `Align`.
    """
    check_choice(Align, align=align)
    if align == "sorted":
        return teacher.sort(dim=1, descending=True, stable=True).values[:, : candidates.shape[1]]
    return teacher.gather(1, candidates)


def dcd_loss(
    student: Tensor, teacher: Tensor, *, alpha: float = 0.2, weighting: Weighting = "dynamic", self_loss: Literal["bce", "ce"] = "bce"
) -> Parts:
    """Imitation and own learning of scores, the positive first.

    Rao et al. 2023 (arXiv:2207.01426), the equation of this module. ``wsl``, of the paper's code, with the cross-entropies of both and
    constant f_i = 1 - exp(-CE(s_i) / CE(t_i)): a mean(f) mean_ij (t - s)^2 + mean_i CE(s_i).

    Args:
        student: shape (B, K), K >= 2.
        teacher: same shape; treated as constant.
        alpha: a in [0, 1].
        weighting: see `Weighting`.
        self_loss: binary cross-entropies, a mean over candidates, or the cross-entropy of the positive, in nats.
    Returns:
        The terms, >= 0.
    Raises:
        TypeError: scores are not floating point.
        ValueError: shapes differ, or an argument is out of its range.
    """
    check_logits(student=student, teacher=teacher)
    if student.ndim != 2 or student.shape[1] < 2:
        raise ValueError(f"student: expected scores of shape (queries, candidates), at least two of these, got {tuple(student.shape)}")
    check_unit_interval(alpha=alpha)
    check_choice(Weighting, weighting=weighting)
    check_choice(Literal["bce", "ce"], self_loss=self_loss)
    s, t = upcast(student), upcast(teacher.detach())
    squares = (t - s).square().mean(dim=1)
    even = torch.full_like(squares, 1 / max(len(s), 1)).detach()
    cross_entropy = -F.log_softmax(s, dim=1)[:, 0]
    if weighting == "wsl":
        floor = torch.finfo(t.dtype).tiny
        f = -torch.expm1(-cross_entropy.detach() / (-F.log_softmax(t, dim=1)[:, 0]).clamp_min(floor))
        return Parts(alpha * (f * even).sum() * even * squares, even * cross_entropy)
    e = even if weighting == "static" else entropy_shares(t)
    w = torch.softmax((1 - e).square(), dim=0) if weighting == "dynamic" else even
    labels = torch.zeros_like(s)
    labels[:, 0] = 1
    own = F.binary_cross_entropy_with_logits(s, labels, reduction="none").mean(dim=1) if self_loss == "bce" else cross_entropy
    return Parts(alpha * w * squares, (1 - alpha) * e * own)


@dataclass(frozen=True, kw_only=True)
class DCD(Method):
    """Distillation of scores on candidates that the teacher chooses. Freeze the student's encoders before to train its fusion alone."""

    coupled: ClassVar[bool] = True  # weights are shares of the batch

    num_negatives: int = 7  # H >= 1; the paper's code
    alpha: float = 0.2  # a in [0, 1]; the paper's code
    selection: Selection = "hard"  # the paper; the others are controls
    weighting: Weighting = "dynamic"  # the paper; see the module for its code
    align: Align = "candidates"  # the paper's intent; its code has "sorted"
    self_loss: Literal["bce", "ce"] = "bce"  # the paper's code

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_counts(num_negatives=self.num_negatives)
        check_unit_interval(alpha=self.alpha)
        check_choice(Selection, selection=self.selection)
        check_choice(Weighting, weighting=self.weighting)
        check_choice(Align, align=self.align)
        check_choice(Literal["bce", "ce"], self_loss=self.self_loss)

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's scores of all candidates, and the candidates that it chooses for the student."""
        scores = batch["teacher_scores"] if "teacher_scores" in batch else _scores(roles["teacher"], batch)
        return {"scores": scores, "candidates": select_candidates(scores, self.num_negatives, selection=self.selection)}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return both terms of the global batch, 0-dimensional."""
        candidates = signal["candidates"]
        student, teacher = (
            _scores(roles["student"], batch, candidates),
            teacher_columns(signal["scores"], candidates, align=self.align),
        )
        if "mask" in batch:
            student, teacher = student[batch["mask"] > 0], teacher[batch["mask"] > 0]
        parts = dcd_loss(gathered(student), gathered(teacher), alpha=self.alpha, weighting=self.weighting, self_loss=self.self_loss)
        return {"distill": parts.distill.sum(), "self": parts.own.sum()}


def _scores(model: nn.Module, batch: Batch, chosen: Tensor | None = None) -> Tensor:
    """Scores (B, F + 1) of all candidates, the positive first, or (B, K) of the chosen ones, which alone go through a scorer."""
    x = batch["x"]
    if isinstance(x, Mapping) and "candidates" in x:
        if chosen is not None:
            rows = torch.arange(len(chosen), device=chosen.device)[:, None]
            x = {**x, "candidates": x["candidates"][rows, chosen]}
        return forward(model, x).logits
    logits = forward(model, x).logits
    check_labels(batch["y"], logits)
    label = batch["y"].long()[:, None]
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    positions = torch.cat([label, others + (others >= label)], dim=1)
    return logits.gather(1, positions if chosen is None else positions.gather(1, chosen))


def miniature(seed: int, size: Size) -> Miniature:
    """Pairs of views in clusters: two of a teacher's four blocks, trained on 7 negatives for each query in five ways."""
    world, steps = retrieval_world(seed, size), 500 if size == "full" else 20
    arms: dict[str, Method] = {
        "random-ce": PositiveFirst(7, "random"),
        "hard-ce": PositiveFirst(7, "hard"),
        "random-distilled": DCD(selection="random"),
        "static": DCD(weighting="static"),
        "dcd": DCD(),
    }
    measured = {"teacher": recalls(world.teacher, world), "untrained-student": recalls(world.student(), world)}
    measured |= compare_scorers(world, arms, steps=steps, seed=seed)
    claims = (
        ("it finds answers more often than random negatives with labels", "random-ce", "r1", 0.0),
        ("it finds queries more often than random negatives with labels", "random-ce", "back_r1", 0.0),
        ("it finds answers more often than before training", "untrained-student", "r1", 0.0),
        ("it finds answers at most 2 points less often than its teacher", "teacher", "r1", -0.02),
    )
    return Miniature(
        arms=measured,
        claims=tuple(Claim(name=n, method="dcd", baseline=b, metric=m, margin=margin) for n, b, m, margin in claims),
        notes=(f"{len(world.train[0])} pairs, {steps} updates of every student, 8 of {NUM_NEGATIVES + 1} candidates each",),
    )
