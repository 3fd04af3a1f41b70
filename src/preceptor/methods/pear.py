"""PEAR: reinforcement learning in which a right answer earns less the more the policy dithered while it was thinking.

Paper: Huang, Lu, Zhang 2025, PEAR: Phase Entropy Aware Reward for Efficient Reasoning (arXiv:2510.08026).
Claim: the entropy of tokens grows with the length of the answer, and is high in the thinking and low in the answer; a reward that takes
the thinking entropy in excess of the answer's off makes thinking much shorter at nearly the same accuracy, with no target for the length.
Equation, with the mean token entropies of both phases under the policy that wrote the text, in nats:
    P = max(0, H_think - alpha H_answer),   r = min(1, s - P) for a right answer, else r_wrong,
    A = (r - mean r) / (std r + 1e-6) inside the answers to a prompt, then GRPO: the mean over texts of the mean over their tokens of
    -min(rho A, clip(rho) A), plus a weight times the KL from a reference.
The entropies are means, not sums: a text that repeats itself costs no more. A text that was cut off at the limit counts as wrong.
Deviations: where the penalty is larger than s - r_wrong a right answer earns less than a wrong one, which the paper does not mention; this
warns, and ``floor`` is a lower bound for right answers. All tokens of an end of thinking belong to neither phase. Entropies may be given as
a share of log V.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, Phase, evaluating, student_phase
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.rollout import Reward, Sampler, answer_matches, check_on_policy, check_prompted, roll_out
from preceptor.losses.checks import check_positive
from preceptor.losses.phase_entropy import pear_reward, phase_entropies
from preceptor.losses.policy import check_clips, group_advantages, kl_estimate, ppo_surrogate, sequence_means
from preceptor.losses.said import said_entropy, said_log_probs
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.thinking import END_THINK, LENGTH, answered_right, measured, practised, thinking
from preceptor.models.heads import speak, vocabulary_size

CARD = Card(
    slug="pear",
    title="A reward for low entropy while thinking",
    authors="Huang et al. 2025",
    arxiv="2510.08026",
    kind="reinforcement",
    tasks=("language",),
    needs=("labels", "generation"),
    equation="r = min(1, s - max(0, H_think - alpha H_answer)) for a right answer, else r_wrong; A = (r - mean r) / (std r + eps)",
    cost="the student writes every text, several per prompt, and scores each once more for the entropies",
    headline="Qwen3-4B, six benchmarks: 7428 -> 3221 tokens at 74.85 -> 74.27 % accuracy (GRPO 7467 tokens, 75.12 %)",
)


def numeric_answer(text: str, *, strict: bool = False) -> str | None:
    """The number that a solution of a word problem ends with, without ``$`` and commas; None where there is none.

    Args:
        text: a solution.
        strict: only the number after ``####``; else the last number of the text, and the last ``\\boxed{}`` where it has none.
    """
    number = r"(?:-?\$?|\$-)\d[\d,]*(?:\.\d+)?"
    patterns = (rf"####\s*({number})",) if strict else (number, r"\\boxed\{([^{}]*)\}")
    found = next((matches for matches in (re.findall(pattern, text) for pattern in patterns) if matches), None)
    return re.sub(r"[$,]", "", found[-1]).strip() if found else None


@dataclass(frozen=True, kw_only=True)
class PEAR(Method):
    """GRPO with the entropy-aware reward; ``verifier`` says which answers are right."""

    alpha: float = 1.0  # what the answer's entropy excuses; the paper's main setting, 0 and -1 lose accuracy
    right: float = 1.0  # s; the method card
    wrong: float = 0.0  # r_wrong; the method card
    floor: float | None = None  # least reward of a right answer; None: none, as in the paper
    normalised: bool = False  # entropies as a share of log V; nats in the paper
    end_think: int | tuple[int, ...] | None = None  # token or tokens that end the thinking; a text without one is all thinking, the card
    verifier: Reward = answer_matches  # 1 for a right answer, else 0; the paper compares the number a text ends with
    answers: int = 8  # at least 1, texts for each prompt; our choice, the method card names none
    clip_low: float = 0.2  # in [0, 1), of the ratio from the second update on a batch; the method card
    clip_high: float = 0.2  # >= 0; the same
    kl_weight: float = 0.0  # >= 0, of the KL from the role reference; our choice, the method card names none
    updates: int = 1  # at least 1, optimizer steps on each batch of texts; our choice
    max_new_tokens: int = 16384  # at least 1; the paper's evaluation
    sampling_temperature: float = 1.0  # > 0, also of the loss, not of the entropies; the method card
    top_p: float = 1.0  # in (0, 1]; the method card
    sampler: Sampler | None = None  # how the student writes; None: generate of transformers

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_clips(clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=math.inf)
        check_positive(updates=self.updates, answers=self.answers, sampling_temperature=self.sampling_temperature)
        if not self.kl_weight >= 0:
            raise ValueError(f"kl_weight: expected a number >= 0, got {self.kl_weight}")
        if self.right <= self.wrong:
            raise ValueError(f"right: expected more than wrong ({self.wrong}), got {self.right}")
        if self.sampler is not None:
            check_on_policy(self.sampler)

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return a copy of the student as the reference of the KL, where there is one and none is given.

        Raises:
            ValueError: the batch has no ``prompt``.
        """
        check_prompted(batch)
        return {} if self.kl_weight == 0 or "reference" in roles else {"reference": copy.deepcopy(roles["student"])}

    def phases(self) -> tuple[Phase, ...]:
        """One phase, with several updates on a batch where asked for."""
        return student_phase(self, updates=self.updates)

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Let the student answer each prompt several times, and turn answers and entropies into advantages."""
        options = {"max_new_tokens": self.max_new_tokens, "temperature": self.sampling_temperature, "top_p": self.top_p}
        made, asked, completions = roll_out(batch, roles["student"], state, sampler=self.sampler, answers=self.answers, **options)
        with torch.no_grad(), evaluating(roles["student"]) as student:
            said = speak(student, made["x"])
            self._check_end(vocabulary_size(said))
            entropies = said_entropy(said, mask=made["mask"]) / (math.log(vocabulary_size(said)) if self.normalised else 1.0)
            old = {} if self.updates == 1 else {"old_log_probs": self._log_probs(said, made)}
        think, answer, k = phase_entropies(entropies, made["y"], made["mask"], self.end_think)
        correct = self.verifier(asked, completions).bool() & completions.finished
        rewards = pear_reward(correct, think, answer, alpha=self.alpha, right=self.right, wrong=self.wrong, floor=self.floor)
        groups = torch.arange(len(rewards), device=rewards.device) // self.answers
        advantages = group_advantages(rewards, groups).unsqueeze(1).expand(made["mask"].shape)
        state.log |= _report(rewards, correct, think, answer, k, made["mask"], self.wrong)
        return {**made, "mask/policy": made["mask"].any(1), "advantages": advantages, **old}

    def _log_probs(self, said: Signal, batch: Batch) -> Tensor:
        return said_log_probs(said, batch["y"], mask=batch["mask"], temperature=self.sampling_temperature)

    def _check_end(self, vocabulary: int) -> None:
        end = () if self.end_think is None else (self.end_think,) if isinstance(self.end_think, int) else self.end_think
        if any(not 0 <= token < vocabulary for token in end):
            raise ValueError(f"end_think: expected tokens of the vocabulary, 0 to {vocabulary - 1}, got {self.end_think}")

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return what the reference says about the tokens, where the KL has a weight."""
        return {} if self.kl_weight == 0 else {"reference": self._log_probs(speak(roles["reference"], batch["x"]), batch)}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the loss of every text, (N,)."""
        log_p = self._log_probs(speak(roles["student"], batch["x"]), batch)
        old = log_p.detach() if self.updates == 1 else batch["old_log_probs"]
        clips = {"clip_low": self.clip_low, "clip_high": self.clip_high, "dual_clip": math.inf}
        losses = ppo_surrogate(log_p, old, batch["advantages"], **clips)
        if self.kl_weight > 0:
            losses = losses + self.kl_weight * kl_estimate(log_p, signal["reference"])
        return {"policy": sequence_means(losses, batch["mask"])}


def _report(rewards: Tensor, correct: Tensor, think: Tensor, answer: Tensor, k: Tensor, mask: Tensor, wrong: float) -> dict[str, float]:
    """What the run's log shows of one batch; warns where right answers earn less than wrong ones."""
    place = torch.arange(mask.shape[1], device=mask.device)
    inverted = float((rewards[correct] < wrong).float().mean()) if correct.any() else 0.0
    if inverted:
        warnings.warn(f"pear: {inverted:.0%} of the right answers earn less than a wrong one; a floor would prevent it", stacklevel=2)
    found = {
        "reward": rewards.mean(),
        "correct": correct.float().mean(),
        "think_entropy": think.mean(),
        "answer_entropy": answer.mean(),
        "think_tokens": (mask & (place < k.unsqueeze(1))).sum(1).float().mean(),
        "answer_tokens": (mask & (place > k.unsqueeze(1))).sum(1).float().mean(),
    }
    return {"inverted": inverted, **{name: float(value) for name, value in found.items()}}


def miniature(seed: int, size: Size) -> Miniature:
    """A small transformer that was taught to dither while it thinks practises by reward, with and without the penalty.

    The world is `preceptor.miniature.thinking`; everything is measured on prompts that nobody practised, 16 answers to each. "grpo" is the
    same training without the penalty, "pear" the paper's alpha = 1; alpha = 0 counts the thinking alone, alpha = -1 both phases.
    """
    warm_up, steps = (400, 60) if size == "full" else (80, 2)
    world = thinking(seed, size, steps=warm_up)
    base = PEAR(end_think=END_THINK, verifier=answered_right, answers=8, max_new_tokens=LENGTH)
    arms = {"untrained": measured(world.student, world.test)}
    for name, alpha in (("grpo", 1e9), ("pear", 1.0), ("alpha-0", 0.0), ("alpha-minus-1", -1.0)):
        with warnings.catch_warnings():  # some right answers earn less than wrong ones, as in the paper
            warnings.simplefilter("ignore")
            student = practised(replace(base, alpha=alpha), world, steps=steps, seed=seed)
        arms[name] = measured(student, world.test)
    return Miniature(
        arms=arms,
        claims=(
            Claim(name="thinking gets shorter", method="pear", baseline="grpo", metric="think_tokens", direction="lower"),
            Claim(name="and surer", method="pear", baseline="grpo", metric="think_entropy", direction="lower"),
            Claim(name="at an accuracy within 3 points", method="pear", baseline="grpo", metric="accuracy", margin=-0.03),
            Claim(name="which a penalty on the thinking alone costs", method="pear", baseline="alpha-0", metric="accuracy"),
        ),
        notes=(f"{steps} updates of every policy, 8 answers to each of 16 prompts in each, after {warm_up} on demonstrations",),
    )
