"""Logit standardization: student and teacher are compared after each row of logits is brought to mean 0 and spread 1.

Paper: Sun, Ren, Li, Wang, Cao 2024, Logit Standardization in Knowledge Distillation (arXiv:2403.01427).
Claim: one temperature for both networks asks the student for the range and spread of the teacher's logits, which a small network cannot
give and does not need. Standardised rows keep what matters, the relations between logits, and the loss no longer depends on their scale.
Equation, with Z(x) = (x - mean x) / (std x + eps) over the classes:
    L = w CE(s, y) + a T^2 KL(softmax(Z(t) / T) || softmax(Z(s) / T)).
The hard term sees the student's logits as they are. |Z_i| <= (C - 1) / sqrt(C), so the softened predictions are never sure and ``a`` must
be large; with the 0.9 of classic distillation the term does next to nothing.

Other methods of logits take it in a recipe: ``method: {name: dkd, temperature: 2, transform: logit-standardization}``; the paper multiplies
the weights of their soft terms by 9.

Deviations: the spread is the unbiased one, as in the released code. A row whose spread is only rounding has no scale: it counts as 0
everywhere with the gradient of spread 1, where the formula would multiply gradients by 1 / eps. With two classes only their order is left,
Z = +-1 / sqrt(2) always, and the student gets no gradient: a warning says so.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from preceptor.composition import LogitMethod
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.sources import Source
from preceptor.losses.checks import check_choice, check_floating, check_logits, check_positive
from preceptor.losses.divergence import forward_kl
from preceptor.losses.hard import hard_loss
from preceptor.losses.numeric import any_masked, upcast
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.classic_kd import ClassicKD
from preceptor.metrics.evaluate import predict
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import World, blobs_world, fit, measure, mnist_world
from preceptor.models.taps import forward

CARD = Card(
    slug="logit-standardization",
    title="Logit standardization",
    authors="Sun et al. 2024",
    arxiv="2403.01427",
    kind="logits",
    tasks=("classification",),
    needs=("teacher", "logits", "labels"),
    equation="L = w CE(s, y) + a T^2 KL(softmax(Z(t) / T) || softmax(Z(s) / T)), Z(x) = (x - mean x) / (std x + eps)",
    cost="one forward pass of the teacher per step",
    headline="CIFAR-100: resnet32x4 -> resnet8x4 76.62 % (classic 73.33), with dkd 77.01 (76.32); resnet56 -> resnet20 71.43 % (70.66)",
)

Side = Literal["both", "teacher", "student"]
"""Whose logits are standardised."""


def standardize_logits(logits: Tensor, *, eps: float = 1e-7, ddof: int = 1, dim: int = -1) -> Tensor:
    r"""Bring each row of logits to mean 0 and spread 1; gradients flow through both.

    Sun et al. 2024 (arXiv:2403.01427), Sec. 4:
        Z(x) = (x - mean x) / (std x + eps),   std x = sqrt(sum_c (x_c - mean x)^2 / (C - ddof)).

    Args:
        logits: any shape; entries finite or -inf. A class with a logit of -inf keeps it and counts in neither mean nor spread.
        eps: >= 0, in units of the logits; with 0 the result does not depend on their scale at all.
        ddof: 1 for the unbiased spread, 0 for the plain one.
        dim: the axis of the classes.

    Returns:
        The shape of ``logits``, in float32 or float64. A row without spread gives 0.

    Raises:
        TypeError: logits are not floating point.
        ValueError: eps < 0, ddof is neither 0 nor 1, or there are not more than ddof classes.
    """
    check_floating(logits=logits)
    if not eps >= 0:
        raise ValueError(f"eps: expected a number >= 0, got {eps}")
    if ddof not in (0, 1):
        raise ValueError(f"ddof: expected 0 or 1, got {ddof}")
    if logits.ndim < 1 or logits.shape[dim] <= ddof:
        raise ValueError(f"logits: expected at least {ddof + 1} classes to standardise, got shape {tuple(logits.shape)}")
    logits = upcast(logits)
    masked = torch.isneginf(logits) if any_masked(logits) else None
    if masked is None:
        count = logits.new_tensor(logits.shape[dim])
        mean = logits.mean(dim=dim, keepdim=True)
        centred = logits - mean
    else:
        count = (~masked).sum(dim=dim, keepdim=True)
        mean = logits.masked_fill(masked, 0.0).sum(dim=dim, keepdim=True) / count.clamp(min=1)
        centred = (logits - mean).masked_fill(masked, 0.0)
    std = torch.linalg.vector_norm(centred, dim=dim, keepdim=True) / (count - ddof).clamp(min=1).sqrt()
    rounding = 4 * torch.finfo(logits.dtype).eps * mean.detach().abs()
    standard = centred / torch.where(std > rounding, std + eps, 1.0)
    return standard if masked is None else standard.masked_fill(masked, -torch.inf)


@dataclass(frozen=True, kw_only=True)
class LogitStandardization(LogitMethod):
    """Classic distillation of standardised logits, and the transform that other methods of logits take."""

    cached: ClassVar[tuple[str, ...]] = ("logits",)

    temperature: float = 2.0  # T > 0; the paper's code, CIFAR-100 (2 to 4 by pair)
    soft_weight: float = 9.0  # a >= 0; the paper's code, CIFAR-100 (6 to 18 by pair)
    hard_weight: float = 0.1  # weight of the cross-entropy, >= 0; the paper's code, CIFAR-100
    side: Side = "both"  # the paper; the others are its ablations
    eps: float = 1e-7  # >= 0; the paper's code
    ddof: int = 1  # 1: unbiased spread, 0: plain; the paper's code

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_positive(temperature=self.temperature)
        check_choice(Side, side=self.side)
        if self.ddof not in (0, 1):
            raise ValueError(f"ddof: expected 0 or 1, got {self.ddof}")
        for name in ("soft_weight", "hard_weight", "eps"):
            if not vars(self)[name] >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {vars(self)[name]}")

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's logits."""
        return {"logits": forward(roles["teacher"], batch["x"]).logits}

    def transform(self, student: Tensor, teacher: Tensor, batch: Batch, state: State) -> tuple[Tensor, Tensor]:
        """Return both logits, standardised on the chosen sides."""
        check_logits(student=student, teacher=teacher)
        if student.shape[-1] == 2 and self.side != "teacher":
            warnings.warn("logit-standardization: of two classes only the order is left, the student gets no gradient", stacklevel=2)
        if self.side != "teacher":
            student = standardize_logits(student, eps=self.eps, ddof=self.ddof)
        if self.side != "student":
            teacher = standardize_logits(teacher, eps=self.eps, ddof=self.ddof)
        return student, teacher

    def hard(self, logits: Tensor, batch: Batch, state: State) -> Terms:
        """Return the cross-entropy of the logits as they are, one value per example."""
        return {"hard": self.hard_weight * hard_loss(logits, batch)}

    def soft(self, logits: Tensor, signal: Signal, batch: Batch, state: State) -> Terms:
        """Return the divergence to the teacher, one value per example."""
        return {"soft": self.soft_weight * self.temperature**2 * forward_kl(logits, signal["logits"], temperature=self.temperature)}


_SCALES = (0.2, 1.0, 5.0)


class _Scaled(nn.Module):
    """A classifier whose logits are multiplied by a number: the same order and accuracy, another range."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.model(x)


def miniature(seed: int, size: Size) -> Miniature:
    """MNIST with 300 training images and one teacher whose logits are multiplied by 0.2, 1 and 5: a student for each.

    ``worst`` is the least accuracy over the three, ``steadiness`` the least less the largest (0 when the scale does not matter),
    ``accuracy`` that at scale 1. ``correlation`` is that of the student's logits with the teacher's within an example, at scale 1.
    """
    world, steps = (mnist_world(seed), 900) if size == "full" else (blobs_world(seed), 30)
    methods = {
        "untrained-teacher": (LogitStandardization(), world.untrained),
        "ce": (CrossEntropy(), None),
        "classic-kd": (ClassicKD(), world.teacher),
        "logit-standardization": (LogitStandardization(), world.teacher),
    }
    arms = {}
    for name, (method, teacher) in methods.items():
        found: dict[float, dict[str, float]] = {}
        for scale in _SCALES:
            if teacher is None and found:
                found[scale] = found[_SCALES[0]]  # nobody to be scaled
                continue
            student = world.student()
            roles = {"student": student} if teacher is None else {"student": student, "teacher": _Scaled(teacher, scale)}
            fit(method, roles, world.train, steps=steps, learning_rate=2e-3, seed=seed)
            found[scale] = measure(student, world) | {"correlation": _correlation(student, world)}
        reached = [found[scale]["accuracy"] for scale in _SCALES]
        arms[name] = {**found[1.0], "worst": min(reached), "steadiness": min(reached) - max(reached)}
    claims = (
        ("the least accuracy over the teacher's scales is a point higher than that of classic distillation", "worst", 0.01),
        ("the scale of the teacher's logits matters less", "steadiness", 0.0),
        ("the student's logits go more with the teacher's", "correlation", 0.0),
        ("standardised logits teach more than logits as they are", "accuracy", 0.0),
    )
    return Miniature(
        arms=arms,
        claims=tuple(
            Claim(name=name, method="logit-standardization", baseline="classic-kd", metric=metric, margin=margin)
            for name, metric, margin in claims
        ),
        notes=(f"{len(world.train)} training examples, {steps} updates of every student",),
    )


def _correlation(student: nn.Module, world: World) -> float:
    """Mean over test examples of the correlation of both networks' logits."""
    s, t = (standardize_logits(predict(model, Source(world.test, batch_size=500).scan()).logits) for model in (student, world.teacher))
    return float((s * t).sum(dim=1).mean()) / (s.shape[1] - 1)
