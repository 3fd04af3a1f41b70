"""Masters: a teacher that starts without its smallest weights and gets them back in stages, then rewards for answers written beforehand.

Paper: Masking Teacher and Reinforcing Student for Distilling Vision-Language Models 2025 (arXiv:2512.22238).
Claim: a huge teacher is too complex for a small student; masked at first and restored step by step it teaches more, and a step of offline
reinforcement learning for right answers that pass easily from teacher to student adds to it.
Equation, with the teacher p_r without the share r of each layer's smallest weights, and for G answers to each question:
    L = JSD(p_r, q) + mean_j [-mean_t rho A_j + beta mean_t KL(q || q_0)],   rho = q / constant(q),   A = (R - mean R) / (std R + 1e-4),
    R = R_acc + (D_max - D) / (D_max - D_min),   D = mean_t JSD of the answer,   r = r_max - step floor(i M / I),   M = r_max / step + 1.
Deviations: the output layer and embeddings stay whole, which the paper does not say. Answers and their accuracy come with the batch
(`preceptor.data.rollout` and a judge make them); the paper's settings for generation (top-k 50, repetition penalty 1.05) are the maker's
business. Masks are made anew at every step from one copy of the teacher. A batch holds whole groups, one group's answers in a row.
``kl_limit`` and ``true_ratio`` are additions against the drift that negative advantages cause off-policy.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_choice, check_counts, check_positive
from preceptor.losses.divergence import generalized_jsd, reverse_kl
from preceptor.losses.masked import masked_divergence
from preceptor.losses.offline import distillation_reward, group_advantage, grpo_offline_loss
from preceptor.losses.policy import check_clips, sequence_means, token_log_probs
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.styles import mask_world, style_world
from preceptor.miniature.worlds import side_by_side
from preceptor.models.taps import forward
from preceptor.teachers.masked import MaskSchedule, Scope, check_stages, masked_teacher

CARD = Card(
    slug="masters",
    title="Masked, progressively restored teacher and offline rewards",
    authors="Lee et al. 2025",
    arxiv="2512.22238",
    kind="logits",
    tasks=("classification", "language"),
    needs=("teacher", "logits"),
    equation="L = JSD(p_r, q) - mean rho A + beta KL(q || q_0), r falling in stages to 0, A from accuracy and ease of transfer",
    cost="one forward pass of the teacher and a sort of its weights; with rewards three more forward passes of student and reference",
    headline="InternVL3.5-8B, mean of 13 benchmarks: 75.4 alone, 75.8 by the teacher, 76.3 by the masked one, 77.1 with rewards",
)

Rewards = Literal["none", "accuracy", "distillation", "both"]
"""What an answer is rewarded for; ``none``: the first stage, distillation alone."""


@dataclass(frozen=True, kw_only=True)
class Masters(Method):
    """With rewards a batch of texts has ``accuracy``, (N,), in [0, 1], NaN where the judge failed; ``reference`` is the first student."""

    r_max: float = 0.2  # share of weights masked at the start, in [0, 1]; the paper, whose 0.3 already harmed
    step: float = 0.05  # what each stage gives back; the paper
    scope: Scope = "layer"  # per layer; the paper
    rewards: Rewards = "none"  # the paper's second stage is "both"
    answers: int = 8  # G, at least 1, in a row in the batch; the paper, four by the teacher and four by the student
    beta: float = 0.1  # of the KL to the reference, >= 0; the paper
    clip: float = 0.2  # in [0, 1), acts with true_ratio; the method card
    true_ratio: bool = False  # ratio to the batch's ``sampling_log_probs`` instead of the paper's 1; the method card
    kl_limit: float | None = None  # in nats per token: above it a batch only distils; the method card. None: no limit, the paper

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_stages(self.r_max, self.step)
        check_choice(Scope, scope=self.scope)
        check_choice(Rewards, rewards=self.rewards)
        check_counts(answers=self.answers)
        check_clips(clip_low=self.clip, clip_high=self.clip, dual_clip=float("inf"))
        if not self.beta >= 0:
            raise ValueError(f"beta: expected a number >= 0, got {self.beta}")
        if self.kl_limit is not None:
            check_positive(kl_limit=self.kl_limit)

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return a copy of the student as the reference, where there are rewards and none is given."""
        return {} if self.rewards == "none" or "reference" in roles else {"reference": copy.deepcopy(roles["student"])}

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Add what each answer counts for, and with rewards its advantage.

        Raises:
            ValueError: with rewards, a batch without texts, ``accuracy`` or, where they are needed, ``sampling_log_probs``, or one that
                does not hold whole groups.
        """
        state.log["mask_ratio"] = self._ratio(state)
        if batch["y"].ndim == 1 and self.rewards == "none":
            return batch
        mask = batch.get("mask", torch.ones_like(batch["y"])) != 0
        given = {**batch, "mask": mask, "mask/distil": mask.any(-1)}
        if self.rewards == "none":
            return given
        self._check_answers(batch)
        student, teacher, reference = self._says(roles, batch, state)
        divergences = sequence_means(generalized_jsd(student, teacher), mask)
        counts = (mask.any(1) & torch.isfinite(batch["accuracy"])).view(-1, self.answers)
        rewards = torch.zeros_like(divergences).view(-1, self.answers)
        if self.rewards != "distillation":
            rewards = rewards + batch["accuracy"].to(rewards).view(-1, self.answers)
        if self.rewards != "accuracy":
            rewards = rewards + distillation_reward(divergences.view(-1, self.answers), counts)
        advantages = group_advantage(rewards, counts).flatten()
        drift = reverse_kl(student, reference)[mask]
        state.log["reference_kl"] = float(drift.mean()) if len(drift) else 0.0
        if self.kl_limit is not None and state.log["reference_kl"] > self.kl_limit:
            advantages = torch.zeros_like(advantages)
        return {**given, "masters/advantages": advantages, "mask/policy": counts.flatten()}

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return logits of the masked teacher, and of the reference where there are rewards."""
        with masked_teacher(roles["teacher"], self._ratio(state), scope=self.scope) as teacher:
            found = {"logits": forward(teacher, batch["x"]).logits}
        return found if self.rewards == "none" else {**found, "reference": forward(roles["reference"], batch["x"]).logits}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the divergence and with rewards the policy's loss, one value per example or answer."""
        logits = forward(roles["student"], batch["x"]).logits
        mask = batch.get("mask")
        apart = masked_divergence(logits, signal["logits"], kind="generalized_jsd", share=0.5, mask=mask)
        if apart.ndim == 1 or mask is None:
            return {"distil": apart}
        terms = {"distil": sequence_means(apart, mask)}
        if self.rewards != "none":
            terms["policy"] = grpo_offline_loss(
                token_log_probs(logits, batch["y"]),
                batch["masters/advantages"],
                masked_divergence(logits, signal["reference"], kind="reverse_kl", mask=mask),
                mask,
                behaviour_log_probs=batch["sampling_log_probs"] if self.true_ratio else None,
                clip=self.clip,
                beta=self.beta,
            )
        return terms

    def _ratio(self, state: State) -> float:
        return MaskSchedule(self.r_max, self.step, max(state.total_steps, 1))(state.step)

    def _says(self, roles: Roles, batch: Batch, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of student, masked teacher and reference, without gradient."""
        signal = self.signal(batch, roles, state)
        with evaluating(roles["student"]) as student:
            return forward(student, batch["x"]).logits, signal["logits"], signal["reference"]

    def _check_answers(self, batch: Batch) -> None:
        needed = ("accuracy", "sampling_log_probs") if self.true_ratio else ("accuracy",)
        for key in needed:
            if key not in batch:
                raise ValueError(f"{key}: expected in a batch for rewards={self.rewards!r}, got a batch without")
        if batch["y"].ndim != 2 or len(batch["y"]) % self.answers:
            raise ValueError(f"y: expected texts (N, T), N a multiple of answers={self.answers}, got shape {tuple(batch['y'].shape)}")


def miniature(seed: int, size: Size) -> Miniature:
    """Digits twice: classified by students of six units, and answered in two tokens (a style, and the digit in its code).

    ``accuracy`` is that of the classifier, ``right`` the exact probability of a right answer, ``easy`` that of the style which teacher
    and student differ less on when the rewards begin.
    """
    full = size == "full"
    world, masked = mask_world(seed, size)
    heavy = Masters(r_max=0.8, step=0.2)
    arms = {
        "untrained-teacher": (Masters(), world.untrained),
        "direct": (Masters(r_max=0.0), world.teacher),
        "masters": (Masters(), world.teacher),
        "heavy-masters": (heavy, world.teacher),
        "always-masked": (replace(heavy, r_max=0.0), masked),
    }
    steps = 400 if full else 5
    measured = {k: dict(v) for k, v in side_by_side(world, arms, steps=steps, learning_rate=1e-2, seed=seed).items()}
    answers = style_world(seed, size)
    measured["no-rewards"] = answers.taught(Masters())
    for rewards in ("accuracy", "distillation", "both"):
        measured[f"{rewards}-masters"] = answers.taught(Masters(rewards=rewards))
    return Miniature(
        arms=measured,
        claims=(
            Claim(name="a masked start beats the whole teacher", method="masters", baseline="direct", metric="accuracy"),
            Claim(name="a masked start costs under 0.03", method="masters", baseline="direct", metric="accuracy", margin=-0.03),
            Claim(name="giving weights back helps", method="heavy-masters", baseline="always-masked", metric="accuracy"),
            Claim(name="accuracy rewards help", method="accuracy-masters", baseline="no-rewards", metric="right", margin=0.03),
            Claim(name="ease of transfer draws to the easy style", method="distillation-masters", baseline="no-rewards", metric="easy"),
            Claim(name="both rewards beat accuracy alone", method="both-masters", baseline="accuracy-masters", metric="right"),
        ),
        notes=(f"{steps} updates of every classifier, {200 if full else 3} on answers that were written beforehand",),
    )
