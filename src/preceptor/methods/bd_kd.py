"""BD-KD: a student learns beside its larger teacher; every example says which of two divergences counts more.

Paper: Amara, Sepahvand, Meyer, Gross, Clark 2022, revised 2024, BD-KD: Balancing the Divergences for Online Knowledge Distillation
(arXiv:2212.12965).
Claim: where both networks learn together, a small student becomes too sure of itself. Balanced divergences make it more accurate, and
better calibrated without correcting its probabilities afterwards; the teacher loses nothing.
Equation, with p = softmax(t / T) and q = softmax(s / T) of teacher and student, each constant in the other's loss, and entropies H:
    L_S = CE(s, y) + w T^2 [d KL(p || q) + n KL(q || p)],   L_T = CE(t, y) + w_T T^2 KL(q || p),
    (d, n) = (gamma, 1) if H(q) < H(p), (1, gamma) if H(q) > H(p), else (1, 1).
A student that is surer than its teacher is drawn to cover all of it, a less sure one to its mode. At T = 1 and gamma = 1 without the
reverse term this is mutual learning (`preceptor.methods.mutual`).
Deviations: no code of the authors was found, and which divergence is raised when, and gamma = 2, are our reading of the paper. Both
networks are updated at once, from predictions before the update. In KL(q || p) the student sees no log p below -30: a teacher that is
very sure would make it explode. The smooth weights, d = 1 + (gamma - 1) sigmoid((H(p) - H(q)) / kappa), n with H(q) - H(p), are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, Phase
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_logits, check_positive
from preceptor.losses.divergence import forward_kl, log_probs
from preceptor.losses.hard import hard_loss
from preceptor.losses.numeric import lift_to_zero
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.mutual import Mutual
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import blobs_world, fit, measure, mnist_world, seeded
from preceptor.models.fresh import fresh_copy
from preceptor.models.reference import MLP
from preceptor.models.taps import forward

CARD = Card(
    slug="bd-kd",
    title="Balanced divergences for online distillation",
    authors="Amara et al. 2022",
    arxiv="2212.12965",
    kind="online",
    tasks=("classification",),
    needs=("teacher", "logits", "labels"),
    equation="L_S = CE(s, y) + w T^2 [d KL(p || q) + n KL(q || p)], L_T = CE(t, y) + w_T T^2 KL(q || p); (d, n) = (gamma, 1) or (1, gamma)",
    cost="the teacher is trained beside the student: the steps of both networks",
    headline="more accurate and better calibrated students than other online distillation, on CIFAR, Tiny ImageNet and ImageNet",
)

_LEAST_LOG_PROB = -30.0


class Balanced(NamedTuple):
    """The student's loss and the constant weights in it, each of shape (...)."""

    loss: Tensor  # nats, >= 0
    forward_weight: Tensor  # of KL(teacher || student), in [1, gamma]
    reverse_weight: Tensor  # of KL(student || teacher), in [1, gamma] times `reverse`


def balanced_divergence(
    student: Tensor, teacher: Tensor, *, temperature: float = 4.0, gamma: float = 2.0, kappa: float | None = None, reverse: float = 1.0
) -> Balanced:
    """Forward and reverse divergence, weighted by which of both networks is surer of the example; in nats, without T^2.

    Amara et al. 2022 (arXiv:2212.12965); see the module.

    Args:
        student: logits, shape (..., classes).
        teacher: logits, same shape; treated as constant.
        temperature: T > 0 of both, no unit.
        gamma: weight of the raised divergence, >= 1.
        kappa: width > 0 of smooth weights, in nats of entropy; None: a weight is 1 or gamma.
        reverse: multiplies the reverse divergence, >= 0.
    Returns:
        Shapes (...), in float32 or float64; the loss is 0 exactly when the two softmaxes agree.
    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes or numbers of classes differ, or a number is out of range.
    """
    check_logits(student=student, teacher=teacher)
    _check_weights(gamma, kappa, reverse=reverse)
    log_p, log_q = log_probs(teacher.detach(), temperature=temperature), log_probs(student, temperature=temperature)
    p, q = log_p.exp(), log_q.exp()
    surer = (q.detach() * log_q.detach()).sum(dim=-1) - (p * log_p).sum(dim=-1)  # > 0: the student is surer than its teacher
    raised = ((surer > 0), (surer < 0)) if kappa is None else (torch.sigmoid(surer / kappa), torch.sigmoid(-surer / kappa))
    d, n = (1 + (gamma - 1) * share.to(log_q.dtype) for share in raised)
    n = reverse * n
    bounded = log_p.clamp(min=_LEAST_LOG_PROB)
    apart = [lift_to_zero((x * (log_x - log_y)).sum(dim=-1)) for x, log_x, log_y in ((p, log_p, log_q), (q, log_q, bounded))]
    return Balanced(d * apart[0] + n * apart[1], d, n)


def _check_weights(gamma: float, kappa: float | None, **others: float) -> None:
    check_positive(gamma=gamma, **({} if kappa is None else {"kappa": kappa}))
    if gamma < 1:
        raise ValueError(f"gamma: expected at least 1, got {gamma}")
    for name, value in others.items():
        if not value >= 0:
            raise ValueError(f"{name}: expected a number >= 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class BDKD(Method):
    """The role ``online_teacher`` is a newly drawn copy of the teacher, which says only what it looks like, unless the user gives one."""

    cached: ClassVar[tuple[str, ...]] = ("logits",)
    cached_with: ClassVar[Mapping[str, Any]] = {"online": False}

    temperature: float = 4.0  # T > 0 of both networks; as in classic distillation, better calibrated than 1 in a pilot of ours
    gamma: float = 2.0  # >= 1, weight of the raised divergence, 1: both count the same; our reading of the paper
    weight: float = 1.0  # w > 0; the paper weighs labels and teacher alike
    teacher_weight: float = 1.0  # w_T >= 0, 0: the student teaches its teacher nothing; mutual learning has 1
    reverse: float = 1.0  # >= 0, multiplies KL(q || p) of the student; the paper, 0 with gamma 1 is mutual learning at T
    kappa: float | None = None  # > 0, in nats: smooth weights; None: those of the paper
    online: bool = True  # the paper; False: the teacher as it is given, frozen

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_positive(temperature=self.temperature, weight=self.weight)
        _check_weights(self.gamma, self.kappa, teacher_weight=self.teacher_weight, reverse=self.reverse)

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return the teacher that learns, unless there is one or none is to learn."""
        if not self.online or "online_teacher" in roles:
            return {}
        return {"online_teacher": fresh_copy(roles["teacher"]).requires_grad_(True)}

    def phases(self) -> tuple[Phase, ...]:
        """One phase that trains both networks, or the student alone."""
        trains = ("student", "online_teacher") if self.online else ("student",)
        return (Phase(name="student", trains=trains, signal=self.signal, loss=self.loss, update=self.update),)

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the logits of a frozen teacher; one that learns says them with gradient, in the loss."""
        return {} if self.online else {"logits": forward(roles["teacher"], batch["x"]).logits}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the student's hard and balanced terms, and those of a teacher that learns; one value per example."""
        student = forward(roles["student"], batch["x"]).logits
        teacher = forward(roles["online_teacher"], batch["x"]).logits if self.online else signal["logits"]
        options = {"temperature": self.temperature, "gamma": self.gamma, "kappa": self.kappa, "reverse": self.reverse}
        terms = {
            "hard": hard_loss(student, batch),
            "balanced": self.weight * self.temperature**2 * balanced_divergence(student, teacher, **options).loss,
        }
        if not self.online:
            return terms
        mutual = forward_kl(teacher, student, temperature=self.temperature)  # the student, its second argument, is constant
        return terms | {"teacher_hard": hard_loss(teacher, batch), "teacher_mutual": self.teacher_weight * self.temperature**2 * mutual}


def miniature(seed: int, size: Size) -> Miniature:
    """MNIST with 1,500 training images: a student of 16 units learns beside a teacher of 256 and 256 that starts as untrained as it does.

    All arms but "mutual", which is as published, have T = 4. "mutual-t4" is mutual learning there, "unbalanced" has gamma = 1, and "even"
    has it with the total weight of the method. In the null baseline a random teacher stays as it is.
    """
    full = size == "full"
    world, steps = (mnist_world(seed, train_images=1500), 40 * 30) if full else (blobs_world(seed), 40)
    sizes = (784, (256, 256), 10) if full else (16, (64,), 8)
    arms: dict[str, tuple[Method, str]] = {
        "untrained-teacher": (BDKD(online=False), "teacher"),
        "ce": (CrossEntropy(), ""),
        "mutual": (Mutual(), "peer"),
        "mutual-t4": (BDKD(gamma=1.0, reverse=0.0), "online_teacher"),
        "unbalanced": (BDKD(gamma=1.0), "online_teacher"),
        "even": (BDKD(gamma=1.0, weight=1.5), "online_teacher"),
        "bd-kd": (BDKD(), "online_teacher"),
    }
    measured = {}
    for name, (method, role) in arms.items():
        student, second = (
            world.student(),
            {role: seeded(lambda: MLP(inputs=sizes[0], hidden=sizes[1], classes=sizes[2]), seed)} if role else {},
        )
        fit(method, {"student": student, **second}, world.train, steps=steps, learning_rate=2e-3, seed=seed)
        measured[name] = measure(student, world)
    claims = (
        ("its calibration error is 1.5 points below that of labels alone", "ce", "ece", 0.015),
        ("its calibration error is at most 0.3 points above that of mutual learning", "mutual-t4", "ece", -0.003),
        ("the rule calibrates better than the same weight spread evenly", "even", "ece", 0.0),
        ("it is more accurate than labels alone", "ce", "accuracy", 0.0),
        ("it is more accurate than mutual learning", "mutual-t4", "accuracy", 0.0),
    )
    return Miniature(
        arms=measured,
        claims=tuple(
            Claim(
                name=name, method="bd-kd", baseline=other, metric=metric, direction="lower" if metric == "ece" else "higher", margin=margin
            )
            for name, other, metric, margin in claims
        ),
        notes=(f"{len(world.train)} training examples, {steps} updates of every student; accuracies and ece of students alone",),
    )
