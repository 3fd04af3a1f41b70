"""Entropy dynamics of reinforcement learning: predict what each token does to the policy's entropy, and leave the worst out.

Paper: Wang, Xie, Zhang, Sun, Chen, Li, Zhang 2026, On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models
(arXiv:2602.03392).
Claim: training by reward makes a policy's entropy collapse; leaving out the few punished tokens whose update would shrink it most keeps the
entropy up, and with it what the policy can still find.
Equation, at one position with p = softmax(z), entropy H and the sampled token k, in nats:
    S_k = p_k (H + log p_k) = -dH / dz_k,   N = sum_i p_i S_i,
    dH = -alpha (S_k - N) + O(alpha^2) for a policy-gradient step alpha (e_k - p) on the logits, alpha = rate * ratio * advantage.
Filters, over the tokens of a batch; a token with a negative advantage is left out where
    clip_b: S - mean S < -mu std S;   clip_v: N - S > mu std(N - S), at most a share of all tokens, the largest first.
The rest is GRPO: advantages relative to the other answers to a prompt, the clipped surrogate of `preceptor.losses.policy`, no KL term.
Deviations: tokens with an advantage of 0 are always kept; the released clip_v leaves some out, which only changes the denominator. The
released clip_b takes probabilities from the engine that samples and entropies from the trainer; here both come from one log-softmax.
``symmetric`` is an addition: it also leaves out rewarded tokens that would shrink the entropy as much. ``filter="random"`` is the control:
as many tokens as clip_b leaves out, by lot.

Neither filter nor loss holds logits of all tokens where the model can be halved; N needs them, of some tokens at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from preceptor.core.method import Method, Phase, evaluating, student_phase
from preceptor.core.reduce import gathered, rank
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.rollout import Reward, Sampler, answer_matches, check_on_policy, check_prompted, roll_out
from preceptor.losses.checks import check_choice, check_positive
from preceptor.losses.entropy_filters import clip_b, clip_v, drop_at_random, said_discriminator
from preceptor.losses.policy import check_clips, group_advantages, ppo_surrogate, sequence_means
from preceptor.losses.said import said_log_probs
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.thinking import LENGTH, answered_right, measured, practised, thinking
from preceptor.models.heads import speak

CARD = Card(
    slug="entropy-dynamics",
    title="Reinforcement learning that leaves out the tokens which shrink the entropy most",
    authors="Wang et al. 2026",
    arxiv="2602.03392",
    kind="reinforcement",
    tasks=("language",),
    needs=("labels", "generation"),
    equation="S = p_k (H + log p_k), N = E_p S; leave out A < 0 with S - mean S < -mu std S (clip_b) or N - S > mu std(N - S) (clip_v)",
    cost="the student writes every text, several per prompt, and scores each once more for the filter",
    headline="Qwen2.5-7B, AIME24: Avg@32 16.88 -> 19.69, Pass@32 50.0 -> 56.7 (clip_b against GRPO)",
)


Filter = Literal["clip_b", "clip_v", "random", "none"]
"""Which tokens are left out."""


@dataclass(frozen=True, kw_only=True)
class EntropyDynamics(Method):
    """GRPO with an entropy filter, or plain with ``filter="none"``; what the entropy does is logged in any case."""

    filter: Filter = "clip_b"  # the better one at 7B in the paper
    mu: float | None = None  # > 0, in standard deviations; None: 2.5, or 8.5 for clip_v, the released configurations
    max_share: float | None = 1e-4  # in (0, 1], of clip_v; None: no limit; released configuration
    symmetric: bool = False  # also filter rewarded tokens; not in the paper
    reward: Reward = answer_matches  # verifiable, as in the paper: 1 for the answer of the data set, else 0
    answers: int = 16  # at least 1, texts for each prompt; the paper's clip_b runs, clip_v has 8
    aggregation: Literal["token", "sequence"] = "token"  # mean over tokens, or over sequences of their mean; released configuration
    clip_low: float = 0.2  # in [0, 1), of the ratio from the second update on a batch; released configuration
    clip_high: float = 0.2  # >= 0; the same
    dual_clip: float = 3.0  # > 1, where the advantage is negative; the same
    updates: int = 1  # at least 1, optimizer steps on each batch of texts; the sampler is refreshed every step in the paper
    max_new_tokens: int = 2048  # at least 1; our choice, the method card names none
    sampling_temperature: float = 1.0  # > 0, also of the entropies and the loss; the paper's runs
    top_p: float = 1.0  # in (0, 1]; the paper's runs
    sampler: Sampler | None = None  # how the student writes; None: generate of transformers

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_choice(Filter, filter=self.filter)
        if self.mu is not None and not self.mu > 0:
            raise ValueError(f"mu: expected a number > 0, got {self.mu}")
        if self.max_share is not None and not 0 < self.max_share <= 1:
            raise ValueError(f"max_share: expected a number in (0, 1], got {self.max_share}")
        check_choice(Literal["token", "sequence"], aggregation=self.aggregation)
        check_clips(clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=self.dual_clip)
        check_positive(updates=self.updates, answers=self.answers, sampling_temperature=self.sampling_temperature)
        if self.sampler is not None:
            check_on_policy(self.sampler)

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, torch.nn.Module]:
        """None; refuses a batch without the prompts that the student is to answer."""
        check_prompted(batch)
        return {}

    def phases(self) -> tuple[Phase, ...]:
        """One phase, with several updates on a batch where asked for."""
        return student_phase(self, updates=self.updates)

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Let the student answer each prompt several times, reward the answers, and take the filtered tokens out of the mask."""
        options = {"max_new_tokens": self.max_new_tokens, "temperature": self.sampling_temperature, "top_p": self.top_p}
        made, asked, completions = roll_out(batch, roles["student"], state, sampler=self.sampler, answers=self.answers, **options)
        rewards = self.reward(asked, completions).float()
        groups = torch.arange(len(rewards), device=rewards.device) // self.answers
        advantages = group_advantages(rewards, groups).unsqueeze(1).expand(made["mask"].shape)

        tokens = {"mask": made["mask"], "temperature": self.sampling_temperature}
        with torch.no_grad(), evaluating(roles["student"]) as student:
            said = speak(student, made["x"])
            s, n, h = said_discriminator(said, made["y"], **tokens)
            old = {} if self.updates == 1 else {"old_log_probs": said_log_probs(said, made["y"], **tokens)}
        kept = self._filtered(s, n, advantages, made["mask"], state.rng)
        state.log |= {"reward": float(rewards.mean()), **_report(s, n, h, advantages, made["mask"], kept)}
        filtered = {**made, "mask": kept, "advantages": advantages, **old}
        return filtered if self.aggregation == "token" else {**filtered, "mask/policy": kept.any(1)}

    def _filtered(self, s: Tensor, n: Tensor, advantages: Tensor, mask: Tensor, lots: torch.Generator) -> Tensor:
        """The mask without the filtered tokens, by the statistics of all processes."""
        if self.filter == "none":
            return mask
        mine = gathered(torch.full_like(s[mask], rank())) == rank()
        s, n, advantages = (gathered(value[mask]) for value in (s, n, advantages))
        counts = torch.ones_like(mine)
        if self.filter == "clip_v":
            kept = clip_v(s, n, advantages, counts, mu=self.mu or 8.5, max_share=self.max_share, symmetric=self.symmetric)
        else:
            kept = clip_b(s, advantages, counts, mu=self.mu or 2.5, symmetric=self.symmetric)
        if self.filter == "random":
            kept = drop_at_random(kept, advantages, counts, generator=lots)
        return mask.masked_scatter(mask, kept[mine])

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the clipped surrogate of every token, (N, T), or of every text, (N,)."""
        said = speak(roles["student"], batch["x"])
        log_p = said_log_probs(said, batch["y"], mask=batch["mask"], temperature=self.sampling_temperature)
        old = log_p.detach() if self.updates == 1 else batch["old_log_probs"]
        losses = ppo_surrogate(log_p, old, batch["advantages"], clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=self.dual_clip)
        return {"policy": losses if self.aggregation == "token" else sequence_means(losses, batch["mask"])}


def _report(s: Tensor, n: Tensor, h: Tensor, advantages: Tensor, mask: Tensor, kept: Tensor) -> dict[str, float]:
    """What the run's log shows of one batch; ``entropy_change`` is the prediction to first order for a step of size 1 on the logits."""
    dropped, count = mask & ~kept, max(int(mask.sum()), 1)
    s, n, h, signs = s[mask], n[mask], h[mask], advantages.sign()
    found = {
        "entropy": h.mean(),
        "s_mean": s.mean(),
        "s_std": s.std(correction=0),
        "s_minus_n_mean": (s - n).mean(),
        "s_minus_n_std": (s - n).std(correction=0),
        "entropy_change": -(advantages[mask] * (s - n)).mean(),
        "dropped": dropped.sum() / count,
        "dropped_positive": (dropped & (signs > 0)).sum() / count,
        "dropped_negative": (dropped & (signs < 0)).sum() / count,
    }
    return {name: float(value) for name, value in found.items()}


def miniature(seed: int, size: Size) -> Miniature:
    """A small transformer that answers four of five tasks right practises them by reward, with and without the filters.

    The world is `preceptor.miniature.thinking`; everything is measured on prompts that nobody practised, 16 answers to each. "random"
    leaves out as many tokens as the method, by lot. The filters have mu = 1 and no limit: the published values leave out next to nothing of
    the 900 tokens of a batch.
    """
    warm_up, steps, mu = (200, 100, 1.0) if size == "full" else (80, 2, 0.2)  # a student that is hardly taught has no outliers
    world = thinking(seed, size, steps=warm_up)
    base = EntropyDynamics(mu=mu, max_share=None, reward=answered_right, answers=8, max_new_tokens=LENGTH)
    arms = {"untrained": measured(world.student, world.test)}
    for name, method in (
        ("grpo", replace(base, filter="none")),
        ("random", replace(base, filter="random")),
        ("entropy-dynamics", base),
        ("clip-v", replace(base, filter="clip_v")),
        ("clip-b-symmetric", replace(base, symmetric=True)),
    ):
        arms[name] = measured(practised(method, world, steps=steps, seed=seed), world.test)
    return Miniature(
        arms=arms,
        claims=tuple(
            Claim(name=name, method="entropy-dynamics", baseline=baseline, metric=metric)
            for name, baseline, metric in (
                ("leaving out the tokens that shrink the entropy most keeps it up", "grpo", "entropy"),
                ("more than leaving out as many by lot", "random", "entropy"),
                ("the policy is right more often", "grpo", "accuracy"),
                ("and finds a right answer to more prompts in 8", "grpo", "pass_at_8"),
            )
        ),
        notes=(
            f"{steps} updates of every policy, 8 answers to each of 16 prompts in each, after {warm_up} on demonstrations; clip_b, mu = 1",
        ),
    )
