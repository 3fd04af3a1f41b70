"""ND loss: student features point at the teacher's class means and grow as long as the teacher's.

Paper: Wang, Cheng, Duan et al. 2023, Improving Knowledge Distillation via Regularizing Feature Norm and Direction (arXiv:2305.17007).
Claim: copying teacher features example by example does not by itself help a student classify. Turning them towards the teacher's mean of
their class, a nearest-centroid classifier, and lengthening them to the teacher's norm does, added to any distillation loss.
Equation, with embeddings f_s and f_t before the class heads, the teacher's mean c_y of the label's class and e_y = c_y / |c_y|:
    ND = 1 - <f_s, e_y> / max(|f_s|, |f_t|),
    L  = CE(s, y) + w a T^2 KL(softmax(t / T) || softmax(s / T)) + gamma ND,   w = min(epoch / warmup_epochs, 1), epochs counted from 0.
Where |f_s| >= |f_t| this is 1 - cos(f_s, e_y) and its gradient turns f_s; else the gradient is the constant -e_y / |f_t|.
With ``base``, the terms of another method of logits stand in the place of the first two: DKD++ is ``base: dkd``.
Deviations: the paper leaves out the constant 1. Class means come from images without augmentation. Of two embeddings without any length
the term is 1 and its gradient that of length 1. A projector normalises a batch of one by running statistics.
Plain L2 to f_t, which the paper compares with, is `fitnets` at the same layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.catalog import load, read
from preceptor.composition import LogitMethod
from preceptor.core.method import Method, Phase, evaluating
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_choice, check_floating, check_labels, check_positive, check_same_shape
from preceptor.losses.divergence import forward_kl
from preceptor.losses.hard import hard_loss
from preceptor.losses.numeric import upcast
from preceptor.miniature.centroids import as_wide, beside_means
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import blobs_world, mnist_world
from preceptor.models.embeddings import Projector, embed
from preceptor.teachers.means import means_by_class

CARD = Card(
    slug="nd-loss",
    title="ND loss: norm and direction of features",
    authors="Wang et al. 2023",
    arxiv="2305.17007",
    kind="features",
    tasks=("classification",),
    needs=("teacher", "logits", "embeddings", "labels"),
    equation="L = CE(s, y) + a T^2 KL(softmax(t / T) || softmax(s / T)) + gamma (1 - <f_s, e_y> / max(|f_s|, |f_t|))",
    cost="one pass of the teacher over the training data, then one forward pass of it and a projector per step",
    headline="CIFAR-100: resnet32x4 -> resnet8x4 75.54 % (classic 73.33), resnet56 -> resnet20 72.53 % (classic 70.66)",
)

Mode = Literal["nd", "cosine", "norm"]
"""``nd``: direction and norm; ``cosine``: direction alone; ``norm``: norm alone."""

_MEANS = "nd-loss/class_means"
_NO_LENGTH = 1e-12  # an embedding not longer has no direction


def class_means(model: nn.Module, batches: Iterable[Batch], num_classes: int, *, layer: str = "") -> Tensor:
    """The mean embedding of each class, in eval mode.

    Args:
        model: the teacher.
        batches: one pass over the training data.
        num_classes: C.
        layer: see `preceptor.models.embeddings.embed`.

    Returns:
        Shape (C, D), at least float32.

    Raises:
        ValueError: a class has no example.
    """
    means, counts = means_by_class(model, batches, lambda x: embed(model, x, layer)[1], num_classes)
    if (counts == 0).any():
        raise ValueError(
            f"class means: expected examples of all {num_classes} classes, got none of class {int((counts == 0).nonzero()[0])}"
        )
    return means


def nd_loss(student: Tensor, teacher: Tensor, class_means: Tensor, labels: Tensor, *, mode: Mode = "nd") -> Tensor:
    """How far embeddings are from the direction of their class mean and from the teacher's norm, no unit.

    Wang et al. 2023 (arXiv:2305.17007), with e = c / |c| of the mean c of the example's class:
        nd = 1 - <f_s, e> / max(|f_s|, |f_t|),   cosine = 1 - <f_s, e> / |f_s|,   norm = 1 - |f_s| / max(|f_s|, |f_t|).

    Args:
        student: embeddings, shape (N, D).
        teacher: embeddings, same shape; treated as constant.
        class_means: shape (C, D); treated as constant; a row of 0 has no direction and gives 1 without gradient.
        labels: shape (N,), integers in [0, C); or class probabilities (N, C), which mix the means.
        mode: see `Mode`.

    Returns:
        Shape (N,), in [0, 2].

    Raises:
        TypeError: embeddings are not floating point, or labels not integers.
        ValueError: shapes differ, a label is out of range, or the mode is unknown.
    """
    check_floating(student=student, teacher=teacher, class_means=class_means)
    check_choice(Mode, mode=mode)
    if student.ndim == teacher.ndim == 2 and student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"student: expected the teacher's {teacher.shape[1]} numbers per embedding, or a projector, got {student.shape[1]}"
        )
    check_same_shape(student=student, teacher=teacher)
    if student.ndim != 2 or class_means.ndim != 2 or class_means.shape[1] != student.shape[1]:
        raise ValueError(f"class_means: expected shape (classes, D) for embeddings {tuple(student.shape)}, got {tuple(class_means.shape)}")
    f_s = upcast(student)
    norm, teacher_norm = torch.linalg.vector_norm(f_s, dim=1), torch.linalg.vector_norm(upcast(teacher).detach(), dim=1)
    longest = norm if mode == "cosine" else torch.where(norm >= teacher_norm, norm, teacher_norm)
    longest = longest.masked_fill(longest <= _NO_LENGTH, 1.0)
    if mode == "norm":
        return 1 - norm / longest
    return 1 - (f_s * _directions(class_means.to(f_s), labels)).sum(dim=1) / longest


def _directions(class_means: Tensor, labels: Tensor) -> Tensor:
    """The unit vectors e (N, D)."""
    if labels.is_floating_point():
        if labels.ndim != 2 or labels.shape[1] != len(class_means):
            raise ValueError(f"labels: expected class probabilities (N, {len(class_means)}), got {tuple(labels.shape)}")
        with torch.autocast(class_means.device.type, enabled=False):
            return F.normalize(labels.to(class_means) @ class_means.detach(), dim=1)
    check_labels(labels, class_means.new_empty(len(labels), len(class_means)))
    return F.normalize(class_means.detach(), dim=1).index_select(0, labels.long())


@dataclass(frozen=True, kw_only=True)
class NDLoss(Method):
    """Classic distillation with the ND loss (KD++). The role ``projector`` maps student embeddings where widths differ."""

    nd_weight: float = 2.0  # gamma >= 0; the paper's code, CIFAR-100, resnet56 -> resnet20 (0.5 to 2 by pair)
    soft_weight: float = 1.0  # a >= 0; the paper's code, CIFAR-100, resnet56 -> resnet20 (1 to 4 by pair)
    temperature: float = 4.0  # T > 0; the paper's code, CIFAR-100
    hard_weight: float = 1.0  # weight of the cross-entropy, >= 0; the paper's code, CIFAR-100
    warmup_epochs: int = 20  # epochs in which the soft weight grows from 0, 0: none; the paper's code, CIFAR-100
    base: str | Mapping[str, Any] | None = None  # slug, or {name, hyper-parameters}, as in Sec. 4; None: the classic terms above
    mode: Mode = "nd"  # the paper; the others are its ablations
    norm: Literal["batch", "none"] = "batch"  # of the projector; the paper's code. "none": linear, examples never influence each other
    student_layer: str = ""  # where the embedding is read; the paper: before the class head, which is found where none is given
    teacher_layer: str = ""  # the same of the teacher; the paper

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_positive(temperature=self.temperature)
        check_choice(Mode, mode=self.mode)
        check_choice(Literal["batch", "none"], norm=self.norm)
        for name in ("nd_weight", "soft_weight", "hard_weight", "warmup_epochs"):
            if not vars(self)[name] >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {vars(self)[name]}")

        self._base()

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return the projector, which does nothing where the widths agree."""
        with torch.no_grad(), evaluating(roles["student"]), evaluating(roles["teacher"]):
            student = embed(roles["student"], batch["x"], self.student_layer)[1]
            teacher = embed(roles["teacher"], batch["x"], self.teacher_layer)[1]
        width, wanted = student.shape[1], teacher.shape[1]
        if width == wanted:
            return {"projector": nn.Identity()}
        before = [nn.BatchNorm1d(width), nn.Dropout(0.5)] if self.norm == "batch" else []
        return {"projector": Projector(*before, nn.Linear(width, wanted)).to(student)}

    def phases(self) -> tuple[Phase, ...]:
        """One phase that trains the student and the projector."""
        return (Phase(name="student", trains=("student", "projector"), signal=self.signal, loss=self.loss, update=self.update),)

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """See to the class means: one pass of the teacher over the training data, the first time."""
        if _MEANS not in state.memory:
            assert state.source is not None
            teacher = roles["teacher"]
            classes = embed(teacher, batch["x"], self.teacher_layer)[0].shape[-1]
            state.memory[_MEANS] = class_means(teacher, state.source.scan(), classes, layer=self.teacher_layer)
        return batch

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's logits and embeddings."""
        logits, embeddings = embed(roles["teacher"], batch["x"], self.teacher_layer)
        return {"logits": logits, "embeddings": embeddings}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the hard and soft terms and the ND loss, one value per example."""
        logits, embeddings = embed(roles["student"], batch["x"], self.student_layer)
        means = torch.as_tensor(state.memory[_MEANS])
        base = self._base()
        rise = min(state.epoch / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        nd = nd_loss(roles["projector"](embeddings), signal["embeddings"], means, batch.get("targets", batch["y"]), mode=self.mode)
        if base is not None:
            hard, soft = base.items(logits, signal, batch, state)
            return {**hard, **soft, "nd": self.nd_weight * nd}
        return {
            "hard": self.hard_weight * hard_loss(logits, batch),
            "soft": rise * self.soft_weight * self.temperature**2 * forward_kl(logits, signal["logits"], temperature=self.temperature),
            "nd": self.nd_weight * nd,
        }

    def _base(self) -> LogitMethod | None:
        """The method whose terms are kept; only one that needs nothing but the logits of student and teacher."""
        if self.base is None:
            return None
        options = {"name": self.base} if isinstance(self.base, str) else dict(self.base)
        slug = str(options.pop("name", ""))
        unknown = set(options) - {field.name for field in read(slug).fields}
        method = None if unknown else load(slug)(**options)
        hooks = ("prepare", "after_step", "extra_roles", "weigh", "weighing_phases")
        if not isinstance(method, LogitMethod) or method.coupled or any(vars(type(method)).get(hook) for hook in hooks):
            what = f"{slug} with {sorted(unknown)}" if unknown else slug
            raise ValueError(f"base: expected a method that needs logits of student and teacher alone, and its options, got {what}")
        return method


def miniature(seed: int, size: Size) -> Miniature:
    """MNIST with 300 training images: the ND loss beside classic distillation, and a student of another width with a linear projector."""
    world, steps = (mnist_world(seed), 720) if size == "full" else (blobs_world(seed), 30)
    narrow = {weight: (NDLoss(nd_weight=weight, norm="none"), world.teacher) for weight in (0.0, 1.0)}
    arms = {
        "untrained-teacher": (NDLoss(nd_weight=1.0), world.untrained),
        "nd-0": (NDLoss(nd_weight=0.0), world.teacher),
        "nd-loss": (NDLoss(nd_weight=1.0), world.teacher),
        "nd-4": (NDLoss(nd_weight=4.0), world.teacher),
        "cosine-1": (NDLoss(nd_weight=1.0, mode="cosine"), world.teacher),
    }
    measured = beside_means(as_wide(world, seed), arms, steps=steps, seed=seed)
    measured |= beside_means(world, {"projector-0": narrow[0.0], "projector-1": narrow[1.0]}, steps=steps, seed=seed)
    claim = partial(Claim, method="nd-loss", baseline="nd-0")
    more = partial(Claim, method="nd-loss", baseline="nd-4", direction="lower")
    return Miniature(
        arms=measured,
        claims=(
            claim(name="embeddings turn to the teacher's class means", metric="cosine"),
            claim(name="embeddings grow", metric="norm_ratio"),
            more(name="a larger weight turns them further", metric="cosine"),
            more(name="a larger weight lengthens them further", metric="norm_ratio"),
            claim(name="accuracy stays within a point of classic distillation", metric="accuracy", margin=-0.01),
            claim(name="nearest class means name the class better", metric="nearest_mean"),
        ),
        notes=(
            f"{len(world.train)} training examples, {steps} updates of every student; nd-0 is classic distillation with the same warm-up",
            "students have the teacher's width before the class head, but for the projector arms",
        ),
    )
