"""MTARD: a student learns clean inputs from one teacher and attacked inputs from another, with two balancers.

Paper: Zhao, Wang, Wei 2023, Mitigating the Accuracy-Robustness Trade-off via Multi-Teacher Adversarial Distillation (arXiv:2306.16170).
Claim: adversarial training costs a small network accuracy on clean inputs; taught by a naturally trained teacher beside a robust one it
loses less, above all when temperatures level the entropies of the teachers and weights let both lessons progress at the same rate.
Equation, with inputs x' attacked against the student and q = softmax(t / tau) of each teacher on its own inputs:
    L = w_a mean q_a (log(q_a + eps) - log softmax s(x')) + w_n mean q_n (log(q_n + eps) - log softmax s(x)), mean over classes too,
    tau_i <- clip(tau_i - rate sign(H_i - mean H), 1, 10),   H = -mean q log(q + eps),
    w_i <- w_i - rate (w_i - r_i / sum r),                   r_i = (L_i / L_i at the first step)^power.
Deviations: the release weighs a step's losses by the weights that these losses have just moved, here they take effect from the next step
on, which one step moves by ``weight_rate`` at most. It compares the ratio of the entropies with 1, here their difference with 0: the same
unless a saturated teacher's entropy falls below 0 by eps. Without a role ``robust_teacher`` the teacher gives both lessons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.reduce import all_reduce_terms
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.perturb import pgd
from preceptor.losses.balance import balance_temperatures, balance_weights
from preceptor.losses.checks import check_choice, check_counts, check_logits, check_positive, check_unit_interval
from preceptor.losses.numeric import upcast
from preceptor.miniature.claim import Claim
from preceptor.miniature.robust import EPSILON, PGDTraining, robust_world, under_attack
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import Labels, seeded
from preceptor.models.fresh import fresh_copy
from preceptor.models.taps import forward

CARD = Card(
    slug="mtard",
    title="Multi-teacher adversarial robustness distillation",
    authors="Zhao et al. 2023",
    arxiv="2306.16170",
    kind="multi-teacher",
    tasks=("classification",),
    needs=("teacher", "logits", "labels"),
    equation="L = w_a KL(softmax(t_a / tau_a) || s(x')) / C + w_n KL(softmax(t_n / tau_n) || s(x)) / C, x' attacked, w and tau balanced",
    cost="ten passes of the student forward and backward for the attack, a second one for its lesson, two teachers: about 6 times a step",
    headline="best mean of clean and attacked accuracy on CIFAR-10, CIFAR-100 and Tiny-ImageNet; no single figure in its abstract",
)

Reduction = Literal["entries", "examples"]
"""A loss is the mean over examples and classes (``entries``, as released), or over examples of its sum over classes (``examples``)."""

_LESSONS = ("natural", "robust")


def soft_target_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, eps: float = 1e-5, reduction: Reduction = "entries"
) -> Tensor:
    """What a student's prediction lacks of a softened teacher's, in nats, with the release's guard in the logarithm.

    Zhao et al. 2023 (arXiv:2306.16170), as released: q (log(q + eps) - log softmax(student)), q = softmax(teacher / T).

    Args:
        student: logits, shape (N, C), not softened.
        teacher: logits, same shape; treated as constant.
        temperature: T > 0, of the teacher alone.
        eps: >= 0; adds up to C eps to the KL.
        reduction: see `Reduction`; over classes here.
    Returns:
        Shape (N,): the KL, or a C-th of it, and at most C eps, or eps, more.
    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes differ, a number outside its range, or the reduction is unknown.
    """
    check_logits(student=student, teacher=teacher)
    q = _softened(teacher, temperature)
    log_s = F.log_softmax(upcast(student), dim=-1).masked_fill(q == 0, 0)
    return _over_classes(torch.xlogy(q, q + eps) - q * log_s, reduction)


def softened_entropy(teacher: Tensor, *, temperature: float = 1.0, eps: float = 1e-5, reduction: Reduction = "entries") -> Tensor:
    """Entropy of a softened teacher, -q log(q + eps), in nats; grows with the temperature. Arguments as `soft_target_loss`.

    Returns:
        Shape (N,), at least -C eps, or -eps.
    """
    q = _softened(teacher, temperature)
    return _over_classes(-torch.xlogy(q, q + eps), reduction)


def _softened(teacher: Tensor, temperature: float) -> Tensor:
    check_positive(temperature=temperature)
    return F.softmax(upcast(teacher.detach()) / temperature, dim=-1)


def _over_classes(values: Tensor, reduction: Reduction) -> Tensor:
    check_choice(Reduction, reduction=reduction)
    return values.mean(dim=-1) if reduction == "entries" else values.sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class MTARD(Method):
    """Balanced MTARD. The teacher is the naturally trained one; the role ``robust_teacher``, the other, is the user's."""

    epsilon: float = 8 / 255  # radius of the attack, maximum norm, >= 0; the paper
    step_size: float = 2 / 255  # > 0; the paper
    attack_steps: int = 10  # the paper; 1 with step_size = epsilon and no start noise is FGSM
    start_noise: float | None = 1e-3  # deviation of the normal noise where attacks start; the release. None: uniform in the ball
    box: tuple[float, float] | None = (0.0, 1.0)  # least and largest value of inputs, None: none; the release
    robust_weight: float = 0.5  # w_a at the first step, 1 - w_a of the natural lesson; the paper
    weight_rate: float = 0.025  # in [0, 1], 0 fixes the weights; the paper
    power: float = 1.0  # of relative losses; the paper's beta
    temperature: float = 1.0  # of both teachers at the first step; the paper
    min_temperature: float = 1.0  # the paper
    temperature_rate: float = 1e-3  # >= 0, 0 fixes the temperatures; the paper
    max_temperature: float = 10.0  # the paper
    decay_at: tuple[float, ...] = (215 / 300, 260 / 300, 285 / 300)  # shares of the run after which both rates fall to a tenth; the paper
    eps: float = 1e-5  # in the logarithm, >= 0; the release
    reduction: Reduction = "entries"  # the release

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_positive(step_size=self.step_size, power=self.power, temperature=self.temperature, min_temperature=self.min_temperature)
        check_counts(attack_steps=self.attack_steps)
        check_unit_interval(robust_weight=self.robust_weight, weight_rate=self.weight_rate)
        check_choice(Reduction, reduction=self.reduction)
        if not self.min_temperature <= self.temperature <= self.max_temperature:
            raise ValueError(
                f"temperature: expected a number in [{self.min_temperature:g}, {self.max_temperature:g}], got {self.temperature:g}"
            )
        for name in ("epsilon", "start_noise", "temperature_rate", "eps"):
            if not (vars(self)[name] or 0.0) >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {vars(self)[name]}")

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Let the teacher stand for a robust one that was not given."""
        return {} if "robust_teacher" in roles else {"robust_teacher": roles["teacher"]}

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Attack the student; add the attacked inputs and what each teacher says about its own."""
        if not self._of(state, "weight"):
            for lesson, weight in zip(_LESSONS, (1 - self.robust_weight, self.robust_weight), strict=True):
                state.memory |= {f"mtard/weight/{lesson}": weight, f"mtard/temperature/{lesson}": self.temperature}
        x, start = batch["x"], None
        if self.start_noise:
            start = x + self.start_noise * torch.randn(x.shape, generator=state.rng).to(x)
        moved = pgd(
            roles["student"],
            x,
            batch.get("targets", batch["y"]),
            epsilon=self.epsilon,
            step_size=self.step_size,
            steps=self.attack_steps,
            box=self.box,
            generator=state.rng if self.start_noise is None else None,
            start=start,
        )
        inputs = {"natural": x, "robust": moved}
        teachers = {"natural": roles["teacher"], "robust": roles["robust_teacher"]}
        says = {lesson: forward(teachers[lesson], inputs[lesson]).logits.detach() for lesson in _LESSONS}
        return {**batch, "mtard/inputs": inputs, "mtard/teachers": says}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return both lessons' terms, one value per example."""
        weights, temperatures = self._of(state, "weight"), self._of(state, "temperature")
        terms = {}
        for lesson in _LESSONS:
            logits, teacher = forward(roles["student"], batch["mtard/inputs"][lesson]).logits, batch["mtard/teachers"][lesson]
            loss = soft_target_loss(logits, teacher, temperature=temperatures[lesson], eps=self.eps, reduction=self.reduction)
            terms[lesson] = weights[lesson] * loss
        return terms

    def after_step(self, batch: Batch, records: Mapping[str, Terms], roles: Roles, state: State) -> None:
        """Move temperatures and weights."""
        weights, temperatures = self._of(state, "weight"), self._of(state, "temperature")
        losses = {lesson: float(records["student"][lesson]) / weight if weight else 0.0 for lesson, weight in weights.items()}
        for lesson, loss in losses.items():
            state.memory.setdefault(f"mtard/first/{lesson}", loss)
        entropies = all_reduce_terms(
            {
                name: softened_entropy(says, temperature=temperatures[name], eps=self.eps).sum()
                for name, says in batch["mtard/teachers"].items()
            }
        )
        slower = 0.1 ** sum(state.step >= share * state.total_steps for share in self.decay_at)
        temperatures = balance_temperatures(
            {name: float(entropy) for name, entropy in entropies.items()},
            temperatures,
            rate=slower * self.temperature_rate,
            low=self.min_temperature,
            high=self.max_temperature,
        )
        weights = balance_weights(losses, self._of(state, "first"), weights, rate=slower * self.weight_rate, power=self.power)
        for lesson in _LESSONS:
            now = {f"mtard/weight/{lesson}": weights[lesson], f"mtard/temperature/{lesson}": temperatures[lesson]}
            state.memory |= now
            state.log |= now

    def _of(self, state: State, what: str) -> dict[str, float]:
        """The weights, temperatures or first losses of both lessons; empty before they are set."""
        kept = {lesson: state.memory.get(f"mtard/{what}/{lesson}") for lesson in _LESSONS}
        return {lesson: float(value) for lesson, value in kept.items() if value is not None}


def miniature(seed: int, size: Size) -> Miniature:
    """Digits attacked within 0.15: tiny students taught by nobody, by a robust teacher, and by two with and without the balancers.

    In the null baseline both teachers are random networks.
    """
    world, steps = robust_world(size), 325 if size == "full" else 40
    balanced = MTARD(epsilon=EPSILON, step_size=0.04, attack_steps=7)
    fixed = replace(balanced, weight_rate=0.0, temperature_rate=0.0)
    both = {"teacher": world.natural, "robust_teacher": world.robust}
    arms = {
        "untrained-teachers": (balanced, {name: seeded(partial(fresh_copy, teacher), seed) for name, teacher in both.items()}),
        "natural": (Labels(), {}),
        "pgd-training": (PGDTraining(), {}),
        "robust-teacher-alone": (replace(fixed, robust_weight=1.0), both),
        "fixed-weights": (fixed, both),
        "mtard": (balanced, both),
        "mtard-faster-temperatures": (replace(balanced, temperature_rate=0.01), both),
    }
    return Miniature(
        arms=under_attack(world, arms, steps=steps, seed=seed),
        claims=(
            Claim(name="two teachers cost less clean accuracy", method="mtard", baseline="pgd-training", metric="accuracy"),
            Claim(name="balancing helps the mean of clean and attacked", method="mtard", baseline="fixed-weights", metric="weighted"),
        ),
        notes=(f"{len(world.train)} training examples, {steps} updates of every student",),
    )
