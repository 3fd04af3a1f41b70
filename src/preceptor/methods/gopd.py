"""Generalised on-policy distillation (G-OPD, ExOPD): how the teacher differs from a reference is the reward, scaled beyond the teacher.

Paper: Yang, Liu, Xie, Yang, Yang, Lin 2026, Learning beyond Teacher: Generalized On-Policy Distillation with Reward Extrapolation
(arXiv:2602.12125).
Claim: on-policy distillation is reinforcement learning with the reward log(teacher / reference) at a scale of 1; a scale above 1 makes a
student that passes its teacher.
Equation, with log-probabilities of the student that wrote the token y (old), the teacher p and the reference r:
    A = scale (log p(y) - log r(y)) - (log old(y) - log r(y)),
    L = PPO surrogate of A (`preceptor.losses.policy.ppo_surrogate`), in expectation minimal at q ~ r^(1 - scale) p^scale.
In mode "full" the sum over the vocabulary stands in for the sampled token, with the same minimum and less noise:
    L = sum_v q_v (log q_v - scale log p_v - (1 - scale) log r_v) = KL(q || r^(1 - scale) p^scale / Z) - log Z.
A scale of 1 is plain on-policy distillation, whatever the reference. The role ``reference`` is a copy of the untrained student unless one
is given; the model that the teacher was trained from by reinforcement learning is the paper's reward correction.
Deviations: mode "full" is an addition. There is one teacher; the paper also chooses among several by a label of the prompt. A
log-probability below a floor counts as the floor, since one impossible token would have an infinite advantage.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, Phase, evaluating, student_phase
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.rollout import Sampler, check_on_policy, check_prompted, roll_out
from preceptor.losses.checks import check_logits, check_positive, check_same_shape, check_vocabularies
from preceptor.losses.divergence import log_probs
from preceptor.losses.policy import check_clips, importance_weights, ppo_surrogate, sequence_means
from preceptor.losses.said import said_log_probs
from preceptor.miniature.claim import Claim
from preceptor.miniature.policies import TablePolicy, TableSampler, fit_policy, prompts
from preceptor.miniature.run import Miniature, Size
from preceptor.models.heads import all_logits, speak, vocabulary_size

CARD = Card(
    slug="gopd",
    title="Generalised on-policy distillation with reward extrapolation",
    authors="Yang et al. 2026",
    arxiv="2602.12125",
    kind="on-policy",
    tasks=("language",),
    needs=("teacher", "generation"),
    equation="A = scale (log p - log r) - (log old - log r) of the sampled token; L = max(-A rho, -A clip(rho)), rho = q / old",
    cost="the student writes every text; one forward pass of the teacher, and one of the reference where the scale is not 1",
    headline="Qwen3-4B, mathematics: teacher 46.0, on-policy distillation 46.5, scale 1.25 48.0; code 61.2, 60.8, 62.1",
)


def extrapolated_advantages(old: Tensor, teacher: Tensor, reference: Tensor | None, *, reward_scale: float) -> Tensor:
    """Advantage of each sampled token, in nats; constant.

    arXiv:2602.12125, in the form of the released code, which ascends:
        A = (log p - log old) + (scale - 1) (log p - log r).

    Args:
        old: log-probabilities under the student that wrote the tokens, shape (N, T).
        teacher: under the teacher, same shape.
        reference: under the reference, same shape; not read where the scale is 1.
        reward_scale: the paper's lambda, >= 0, no unit.
    Returns:
        Shape (N, T).
    Raises:
        ValueError: shapes differ, or there is no reference at another scale than 1.
    """
    check_same_shape(old=old, teacher=teacher)
    advantages = teacher - old
    if reward_scale != 1:
        if reference is None:
            raise ValueError(f"reference: expected log-probabilities at a reward_scale of {reward_scale}, got none")
        check_same_shape(old=old, reference=reference)
        advantages = advantages + (reward_scale - 1) * (teacher - reference)
    return advantages.detach()


def extrapolated_kl(student: Tensor, teacher: Tensor, reference: Tensor | None, *, reward_scale: float, floor: float = -30.0) -> Tensor:
    """The loss of mode "full": KL(q || r^(1 - scale) p^scale / Z) - log Z, in nats; the reverse KL to the teacher at a scale of 1.

    Args:
        student: logits, shape (..., V).
        teacher: logits, same shape; constant.
        reference: logits, same shape; constant; not read where the scale is 1.
        reward_scale: the paper's lambda, >= 0, no unit.
        floor: log-probabilities of teacher and reference below it count as this, in nats.
    Returns:
        Shape (...), >= -log Z.
    Raises:
        ValueError: shapes differ, or there is no reference at another scale than 1.
    """
    check_logits(student=student, teacher=teacher)
    target = log_probs(teacher.detach()).clamp(min=floor)
    if reward_scale != 1:
        if reference is None:
            raise ValueError(f"reference: expected logits at a reward_scale of {reward_scale}, got none")
        check_same_shape(student=student, reference=reference)
        target = reward_scale * target + (1 - reward_scale) * log_probs(reference.detach()).clamp(min=floor)
    log_q = log_probs(student)
    return (log_q.exp() * (log_q - target)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class GOPD(Method):
    """Every step the student answers the prompts of the batch; the role ``reference`` is its untrained self unless given."""

    reward_scale: float = 1.25  # lambda >= 0, above 1.5 it warns; the paper's main setting, 1.5 became unstable
    mode: Literal["sampled", "full"] = "sampled"  # the sampled token, as in the paper, or the sum over the vocabulary
    aggregation: Literal["token", "sequence"] = "token"  # mean over tokens, or over sequences of their mean; released configuration
    clip_low: float = 0.2  # in [0, 1), of the ratio from the second update on a batch; released configuration
    clip_high: float = 0.2  # >= 0; the same
    dual_clip: float = 3.0  # > 1, where the advantage is negative; the same
    updates: int = 1  # at least 1, optimizer steps on each batch of texts; one epoch in the paper
    importance_cap: float | None = None  # > 0, largest weight for the draw's own distribution, 5 in verl; None: no weights, the default
    log_prob_floor: float = -30.0  # < 0, in nats; the method card
    answers: int = 1  # at least 1, texts for each prompt; Sec. 4
    max_new_tokens: int = 16384  # at least 1; Sec. 4
    sampling_temperature: float = 1.0  # > 0; Sec. 4
    top_p: float = 1.0  # in (0, 1]; Sec. 4
    sampler: Sampler | None = None  # how the student writes; None: generate of transformers

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.reward_scale >= 0:
            raise ValueError(f"reward_scale: expected a number >= 0, got {self.reward_scale}")
        if self.reward_scale > 1.5:
            warnings.warn(f"reward_scale: {self.reward_scale} is above 1.5, where the paper's training became unstable", stacklevel=3)
        if self.mode not in ("sampled", "full"):
            raise ValueError(f"mode: expected 'sampled' or 'full', got {self.mode!r}")
        if self.aggregation not in ("token", "sequence"):
            raise ValueError(f"aggregation: expected 'token' or 'sequence', got {self.aggregation!r}")
        check_clips(clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=self.dual_clip)
        check_positive(updates=self.updates, sampling_temperature=self.sampling_temperature, floor=-self.log_prob_floor)
        if self.importance_cap is not None:
            check_positive(importance_cap=self.importance_cap)
        if self.sampler is not None:
            check_on_policy(self.sampler)

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return a copy of the student as the reference, where one is needed and none is given.

        Raises:
            ValueError: the batch has no ``prompt``.
        """
        check_prompted(batch)
        return {} if self.reward_scale == 1 or "reference" in roles else {"reference": copy.deepcopy(roles["student"])}

    def phases(self) -> tuple[Phase, ...]:
        """One phase, with several updates on a batch where asked for."""
        return student_phase(self, updates=self.updates)

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Put the student's answers in place of the batch."""
        options = {"max_new_tokens": self.max_new_tokens, "temperature": self.sampling_temperature, "top_p": self.top_p}
        made = roll_out(batch, roles["student"], state, sampler=self.sampler, answers=self.answers, **options)[0]
        return made if self.aggregation == "token" else {**made, "mask/policy": made["mask"].any(1)}

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return what teacher and reference say: log-probabilities of the tokens, or logits in mode "full"."""
        found: dict[str, Tensor | dict[str, int]] = {}
        sizes = {}
        for role in ("teacher",) if self.reward_scale == 1 else ("teacher", "reference"):
            said = speak(roles[role], batch["x"])
            sizes[role] = vocabulary_size(said)
            found[role] = all_logits(said) if self.mode == "full" else self._floored(said, batch, state)
        if self.mode == "sampled" and (self.updates > 1 or self.importance_cap is not None):
            with evaluating(roles["student"]) as student:
                found["old"] = said_log_probs(speak(student, batch["x"]), batch["y"], mask=batch["mask"])
        return {**found, "vocabularies": sizes}

    def _floored(self, said: Signal, batch: Batch, state: State) -> Tensor:
        """Log-probabilities of the tokens, those below the floor raised to it and counted in ``state.log``."""
        known = batch["y"].clamp(max=vocabulary_size(said) - 1)  # a smaller vocabulary is refused in `loss`, which knows the student's
        log_p = said_log_probs(said, known, mask=batch["mask"])
        below = log_p < self.log_prob_floor
        state.log["floored_tokens"] = state.log.get("floored_tokens", 0.0) + float(below.sum())
        return log_p.clamp(min=self.log_prob_floor)

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the loss of every token, (N, T), or of every text, (N,)."""
        said = speak(roles["student"], batch["x"])
        check_vocabularies(vocabulary_size(said), **signal["vocabularies"])
        reference = signal.get("reference")
        if self.mode == "full":
            losses = extrapolated_kl(
                all_logits(said), signal["teacher"], reference, reward_scale=self.reward_scale, floor=self.log_prob_floor
            )
        else:
            log_p = said_log_probs(said, batch["y"], mask=batch["mask"])
            old = signal.get("old", log_p.detach())
            advantages = extrapolated_advantages(old, signal["teacher"], reference, reward_scale=self.reward_scale)
            losses = ppo_surrogate(log_p, old, advantages, clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=self.dual_clip)
            if self.importance_cap is not None:
                losses = losses * importance_weights(old, batch["sampling_log_probs"], cap=self.importance_cap)
        return {"policy": losses if self.aggregation == "token" else sequence_means(losses, batch["mask"])}


def miniature(seed: int, size: Size) -> Miniature:
    """16 prompts with 16 answers, 4 of them right. The reference is random; learning by reward with a KL penalty made the teacher of it.

    Students begin as the reference. ``accuracy`` is the exact probability of a right answer, ``optimum`` that of the policy in closed form
    which the arm's loss is minimal at. The noisy teacher had a reward with noise of 1.5 standard deviations on every answer.
    """
    steps = 300 if size == "full" else 8
    generator = torch.Generator().manual_seed(seed)
    right = torch.zeros(16, 16).scatter(1, torch.rand(16, 16, generator=generator).argsort(1)[:, :4], 1.0)
    reference, noise, other = torch.randn(3, 16, 16, generator=generator)
    teachers = {"teacher": reference + right, "noisy-teacher": reference + right + 1.5 * noise, "untrained-teacher": other}

    def policy(logits: Tensor) -> TablePolicy:
        return TablePolicy(logits, torch.zeros(16, 16, dtype=torch.int64))

    def accuracy(logits: Tensor) -> float:
        return float((logits.detach().softmax(-1) * right).sum(-1).mean())

    arms = {
        name: {"accuracy": accuracy(logits), "optimum": accuracy(logits)}
        for name, logits in teachers.items()
        if name != "untrained-teacher"
    }
    base = GOPD(answers=16, max_new_tokens=1, sampler=TableSampler())
    for name, method, who in (
        ("untrained-teacher", base, "untrained-teacher"),
        ("opd", replace(base, reward_scale=1.0), "teacher"),
        ("gopd", base, "teacher"),
        ("gopd-full", replace(base, mode="full"), "teacher"),
        ("opd-noisy", replace(base, reward_scale=1.0), "noisy-teacher"),
        ("gopd-noisy", base, "noisy-teacher"),
    ):
        student = policy(reference)
        roles: dict[str, nn.Module] = {"student": student, "teacher": policy(teachers[who])}
        fit_policy(method, roles, [prompts(torch.arange(16))], steps=steps, learning_rate=8.0, seed=seed)
        optimum = method.reward_scale * teachers[who].log_softmax(-1) + (1 - method.reward_scale) * reference.log_softmax(-1)
        arms[name] = {"accuracy": accuracy(student.table), "optimum": accuracy(optimum)}
    return Miniature(
        arms=arms,
        claims=(
            Claim(name="a scale above 1 beats plain on-policy distillation", method="gopd", baseline="opd", metric="accuracy"),
            Claim(name="a scale above 1 passes the teacher", method="gopd", baseline="teacher", metric="accuracy"),
        ),
        notes=(f"{steps} updates of every student, 16 answers to each of 16 prompts in each",),
    )
