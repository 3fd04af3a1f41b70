"""Token importance: in on-policy distillation, keep only the tokens that teach.

Paper: TIP: Token Importance in On-Policy Distillation, 2026 (arXiv:2604.14084).
Claim: the student learns where it is uncertain, and where it is sure and the teacher says otherwise. Half of the tokens, chosen by both,
match all of them; entropy alone is blind to the second kind.
Equation, with q and p the predictions of student and teacher at a token that the student wrote, among V tokens:
    d = KL(q || p),   h = H(q) / ln V,   h^ and d^ scaled to [0, 1] over the batch, h cut at its 98th percentile before,
    s = h^ + d^ - h^ d^,   L = mean of d over the largest s: a share ``retention`` of each rollout, at least one token.
What is computed where: ``prepare`` lets the student write and scores every token without gradient, some rows at a time; the loss forms
logits of the chosen tokens only. Counted in matrix products with a head, of which a full loss has four per token (logits of both networks,
two gradients), the loss takes 4 ``retention``. Scores by entropy alone come with the rollouts and cost nothing where the sampler tells them
(`preceptor.data.rollout.Completions.entropies`), else one product and one more pass of the student's body; scores that look at the teacher
cost two products on all tokens and that pass, so that half of the tokens take as many products as all of them, and a tenth takes 2.4 of
4. The teacher's body runs once in every case. What every choice saves is memory.

Deviations: the released code draws tokens in proportion to entropy^alpha JSD^gamma and has no Soft-OR: that is the rule
"entropy_jsd_sampling". Thresholds of the quadrants are not given; here they are the medians of the batch. The released weighting of samples
by rewards is left out.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.reduce import rank
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.rollout import Sampler, check_on_policy, check_prompted, roll_out
from preceptor.losses.checks import check_choice, check_positive, check_unit_interval, check_vocabularies
from preceptor.losses.linear import linear_divergence
from preceptor.losses.token_selection import check_retention, importance, quadrants, sampling_scores, select
from preceptor.losses.token_stats import Divergence, TokenStats, linear_stats
from preceptor.miniature.claim import Claim
from preceptor.miniature.mistakes import LENGTH, mistaken_world, rollout_kl
from preceptor.miniature.policies import prompts
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.toys import ToySampler
from preceptor.models.heads import Head, head, hidden_states

CARD = Card(
    slug="tip",
    title="Token importance in on-policy distillation",
    authors="TIP 2026",
    arxiv="2604.14084",
    kind="on-policy",
    tasks=("language",),
    needs=("teacher", "logits", "generation"),
    equation="L = mean of KL(q || p) over the tokens with the largest s = h^ + d^ - h^ d^, h = H(q), d = KL(q || p)",
    cost="rollouts and one forward pass of the teacher; head and loss on the chosen tokens only, after a pass of scoring on all",
    headline="half of the tokens match or beat all of them, with up to 47 % less peak memory (Qwen3, Llama and Qwen2.5 pairs, mathematics)",
)

Rule = Literal["soft_or", "entropy", "divergence", "q3", "q4", "entropy_jsd_sampling", "random", "all"]
"""By which tokens are chosen; "q3" are those that are sure and wrong, "q4" those that are sure and right, the control."""


@dataclass(frozen=True, kw_only=True)
class TIP(Method):
    """On-policy distillation of chosen tokens. A batch brings ``prompt``."""

    rule: Rule = "soft_or"  # the paper's rule without parameters
    retention: float = 0.5  # share of tokens kept, in (0, 1]; the paper's main setting, 0.2 and 0.1 are studied
    per: Literal["rollout", "batch"] = "rollout"  # what the share is of; the paper ranks inside each rollout
    divergence: Divergence = "reverse_kl"  # the loss, and d of the score; the paper's on-policy distillation
    beta: float = 0.5  # teacher's share in (0, 1) of generalized_jsd; released code
    entropy_cap: float = 0.98  # quantile in (0, 1] at which h is cut; the paper
    divergence_cap: float = 1.0  # the same of d, 1 cuts nothing; the paper has none
    alpha: float = 1.0  # exponent of entropy in entropy_jsd_sampling; released code
    gamma: float = 0.0  # exponent of the Jensen-Shannon divergence there; released code
    jsd_top_k: int = 0  # compare only so many of the teacher's likeliest tokens there, 0: all; released code
    max_new_tokens: int = 128  # at least 1; as in gkd, the paper's length depends on the task
    sampling_temperature: float = 1.0  # > 0; the paper
    top_p: float = 1.0  # in (0, 1]; the paper
    sampler: Sampler | None = None  # how the student writes; None: generate of transformers

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_choice(Rule, rule=self.rule)
        check_choice(Literal["rollout", "batch"], per=self.per)
        check_choice(Divergence, divergence=self.divergence)
        check_retention(self.retention)
        check_unit_interval(entropy_cap=self.entropy_cap, divergence_cap=self.divergence_cap, beta=self.beta)
        check_positive(sampling_temperature=self.sampling_temperature)
        for name, value in (("alpha", self.alpha), ("gamma", self.gamma), ("jsd_top_k", self.jsd_top_k)):
            if value < 0:
                raise ValueError(f"{name}: expected a number >= 0, got {value}")
        if self.sampler is not None:
            check_on_policy(self.sampler)

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """None; refuses, before the first step, a batch without the prompts that the student is to answer."""
        check_prompted(batch)
        return {}

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Let the student write, score its tokens, and count only the chosen ones."""
        options = {"max_new_tokens": self.max_new_tokens, "temperature": self.sampling_temperature, "top_p": self.top_p}
        batch = roll_out(batch, roles["student"], state, sampler=self.sampler, **options)[0]
        if self.rule == "all":
            return batch
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=state.rng)) + rank())
        mask, kept = batch["mask"], {}
        if self.rule == "random":
            scores = torch.rand(mask.shape, generator=generator).to(mask.device)
        else:
            found, kept = self._look(batch, roles)
            scores = self._scores(found, mask, len(head(roles["student"]).weight), generator)
            self._report(found, mask, state)
        chosen = select(scores, mask, retention=self.retention, per=self.per)
        return {**batch, **kept, "mask": chosen}

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's hidden states, those of the scoring where it looked at the teacher."""
        return {"hidden": batch["teacher_hidden"] if "teacher_hidden" in batch else hidden_states(roles["teacher"], batch["x"])}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the divergence at the chosen tokens and 0 elsewhere, (N, T)."""
        student, teacher = _heads(roles)
        hidden = hidden_states(roles["student"], batch["x"])
        share = self.beta if self.divergence == "generalized_jsd" else None
        value = linear_divergence(hidden, student, signal["hidden"], teacher, kind=self.divergence, share=share, mask=batch["mask"])
        return {"divergence": value}

    @torch.no_grad()
    def _look(self, batch: Batch, roles: Roles) -> tuple[TokenStats, Batch]:
        """What the rule needs to know of every token, and the teacher's hidden states where it looked at them."""
        student, teacher = _heads(roles)
        sampling = self.rule == "entropy_jsd_sampling"
        alone = self.rule == "entropy" or (sampling and self.gamma == 0)
        if alone and "sampling_entropies" in batch:
            return TokenStats(entropy=batch["sampling_entropies"]), {}
        with evaluating(roles["student"]):
            hidden = hidden_states(roles["student"], batch["x"])
        if alone:
            return linear_stats(hidden, student, mask=batch["mask"]), {}
        states = hidden_states(roles["teacher"], batch["x"])
        kind, beta, among = ("generalized_jsd", 0.5, self.jsd_top_k) if sampling else (self.divergence, self.beta, 0)
        found = linear_stats(hidden, student, teacher=(states, teacher), kind=kind, beta=beta, among=among, mask=batch["mask"])
        return found, {"teacher_hidden": states}

    def _scores(self, found: TokenStats, mask: Tensor, vocabulary: int, generator: torch.Generator) -> Tensor:
        apart = torch.zeros_like(found.entropy) if found.divergence is None else found.divergence
        if self.rule == "entropy_jsd_sampling":
            h, j = found.entropy / math.log(vocabulary), apart / math.log(2)
            return sampling_scores(h, j, alpha=self.alpha, gamma=self.gamma, generator=generator)
        caps = {"entropy_cap": self.entropy_cap, "divergence_cap": self.divergence_cap}
        return importance(found.entropy, apart, mask, rule=self.rule, **caps)  # pyright: ignore[reportArgumentType]

    def _report(self, found: TokenStats, mask: Tensor, state: State) -> None:
        """Means over the tokens written, and the share of each quadrant where the divergence is known."""
        counts = mask != 0
        state.log["entropy"] = float(found.entropy[counts].mean())
        if found.divergence is not None:
            state.log["divergence"] = float(found.divergence[counts].mean())
            regions = quadrants(found.entropy, found.divergence, mask)[counts]
            state.log |= {f"q{number}": float((regions == number).double().mean()) for number in (1, 2, 3, 4)}


def _heads(roles: Roles) -> tuple[Head, Head]:
    """Output layers of student and teacher over one vocabulary."""
    student, teacher = head(roles["student"]), head(roles["teacher"])
    check_vocabularies(len(student.weight), teacher=len(teacher.weight))
    return student, teacher


def miniature(seed: int, size: Size) -> Miniature:
    """A language of 12 symbols and a student that knows it, but for two kinds of mistakes; see `preceptor.miniature.mistakes`.

    ``kl`` is KL(student || teacher) per token of what it writes at the end, in nats.
    """
    steps = 150 if size == "full" else 6
    world = mistaken_world(seed, size)
    asked = [prompts(torch.zeros(16, dtype=torch.int64))]
    arms = {}
    plans: tuple[tuple[str, nn.Module, Rule, float], ...] = (
        ("untrained-teacher", world.untrained, "soft_or", 0.5),
        ("all", world.teacher, "all", 1.0),
        ("random", world.teacher, "random", 0.5),
        ("entropy", world.teacher, "entropy", 0.5),
        ("tip", world.teacher, "soft_or", 0.5),
        ("solved", world.teacher, "q4", 0.4),
        ("random-20", world.teacher, "random", 0.2),
        ("entropy-20", world.teacher, "entropy", 0.2),
        ("tip-20", world.teacher, "soft_or", 0.2),
    )
    for name, given, rule, retention in plans:
        student = copy.deepcopy(world.student)
        method = TIP(rule=rule, retention=retention, max_new_tokens=LENGTH, sampler=ToySampler())
        optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
        train(method, {"student": student, "teacher": given}, asked, optimizer, steps=steps, seed=seed)
        arms[name] = {"kl": rollout_kl(student, world.teacher, seed)}
    claims = (
        Claim(
            name="entropy and divergence together choose better than entropy",
            method="tip",
            baseline="entropy",
            metric="kl",
            direction="lower",
        ),
        Claim(name="solved tokens teach less", method="tip", baseline="solved", metric="kl", direction="lower"),
        Claim(
            name="half of the tokens match all, to 0.05 nats", method="tip", baseline="all", metric="kl", direction="lower", margin=-0.05
        ),
        Claim(name="chosen tokens teach more than random ones", method="tip", baseline="random", metric="kl", direction="lower"),
    )
    return Miniature(arms=arms, claims=claims, notes=(f"{steps} updates of 16 rollouts of {LENGTH} tokens",))
