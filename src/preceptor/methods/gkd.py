"""Generalised knowledge distillation: the student learns from the teacher on texts that it wrote itself.

Paper: Agarwal, Vieillard, Zhou, Stanczyk, Ramos, Geist, Bachem 2023, On-Policy Distillation of Language Models: Learning from
Self-Generated Mistakes (arXiv:2306.13649).
Claim: a student trained on fixed texts meets others when it writes by itself, those that its own mistakes lead to; with the teacher's
advice on its own texts it writes better than with advice on fixed ones.
Equation, with p = softmax(t / T) and q = softmax(s / T) at every token that counts, and m = beta p + (1 - beta) q:
    L = (1 - r) E_data D + r E_student D,   D = beta KL(p || m) + (1 - beta) KL(q || m);   beta = 0 is KL(p || q), beta = 1 is KL(q || p).
No gradient flows through the sampling.
Deviations: a step is on-policy as a whole or not at all, by one draw with probability r, as in TRL. Temperatures of the divergence and of
sampling are two settings; there is no T^2. The paper's mix with a reward (its Eq. 5) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.rollout import Completer, Sampler, check_on_policy, check_prompted, language_batch, roll_out
from preceptor.losses.checks import check_positive, check_unit_interval, check_vocabularies
from preceptor.losses.divergence import kl
from preceptor.losses.linear import linear_divergence
from preceptor.losses.masked import masked_divergence
from preceptor.losses.said import said_kl
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.claim import Claim
from preceptor.miniature.policies import TablePolicy, TableSampler, fit_policy, prompts
from preceptor.miniature.run import Miniature, Size
from preceptor.models.heads import all_logits, speak

CARD = Card(
    slug="gkd",
    title="Generalised knowledge distillation on the student's own texts",
    authors="Agarwal et al. 2023",
    arxiv="2306.13649",
    kind="on-policy",
    tasks=("language",),
    needs=("teacher", "logits", "generation"),
    equation="L = (1 - r) E_data D + r E_student D, D = beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q",
    cost="one forward pass of the teacher per step; in on-policy steps the student writes the texts first",
    headline="T5, gains over the student alone: 2.1 (summaries), 1.7 (translation), 1.9 (arithmetic) times those of usual distillation",
)


@dataclass(frozen=True, kw_only=True)
class GKD(Method):
    """A batch brings texts for the fixed steps and ``prompt`` for the on-policy ones."""

    cached: ClassVar[tuple[str, ...]] = ("top-k", "sample")
    cached_with: ClassVar[Mapping[str, Any]] = {"on_policy_rate": 0.0, "beta": 0.0, "seq_kd": False}

    on_policy_rate: float = 0.5  # r in [0, 1]; TRL's lmbda
    beta: float = 0.5  # in [0, 1]; TRL
    temperature: float = 1.0  # T > 0 of the divergence; the paper's Sec. 4 trains at 1
    sampling_temperature: float = 0.9  # > 0; TRL
    top_p: float = 1.0  # in (0, 1]; TRL samples from all tokens
    max_new_tokens: int = 128  # at least 1; TRL
    seq_kd: bool = False  # in the other steps learn from texts that the teacher writes instead of those of the batch; TRL
    sampler: Sampler | None = None  # how the student writes; None: generate of transformers, as in TRL
    teacher_sampler: Completer | None = None  # how the teacher writes with seq_kd, such as a server; None: its role, by generate

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_unit_interval(on_policy_rate=self.on_policy_rate, beta=self.beta)
        check_positive(temperature=self.temperature, sampling_temperature=self.sampling_temperature)
        if self.sampler is not None:
            check_on_policy(self.sampler)
        if self.teacher_sampler is not None and not self.seq_kd:
            raise ValueError("seq_kd: expected True with a teacher_sampler, got False")

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """None; refuses, before the first step, a batch without the prompts that the student is to answer."""
        if self.on_policy_rate > 0 or self.seq_kd:
            check_prompted(batch)
        return {}

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """In an on-policy step, by one draw of ``state.rng``, put the student's answers in place of the texts."""
        on_policy = float(torch.rand((), generator=state.rng)) < self.on_policy_rate
        state.log["on_policy"] = float(on_policy)
        if not on_policy and not self.seq_kd:
            return batch
        writer, sampler = roles["student"], self.sampler
        if not on_policy:
            writer, sampler = (roles["teacher"], None) if self.teacher_sampler is None else (None, self.teacher_sampler)
        options = {"max_new_tokens": self.max_new_tokens, "temperature": self.sampling_temperature, "top_p": self.top_p}
        return roll_out(batch, writer, state, sampler=sampler, **options)[0]

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return what the teacher says, its last hidden states and output layer where it has them."""
        return speak(roles["teacher"], batch["x"])

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the divergence at every position, (N, T)."""
        said = speak(roles["student"], batch["x"])
        if not {"hidden", "logits"} & signal.keys():  # a cache's, of KL(p || q)
            return {"divergence": said_kl(said, signal, mask=batch.get("mask"), temperature=self.temperature)}
        if "hidden" in said and "hidden" in signal:
            check_vocabularies(len(said["head"].weight), teacher=len(signal["head"].weight))
            found = linear_divergence(
                said["hidden"],
                said["head"],
                signal["hidden"],
                signal["head"],
                kind="generalized_jsd",
                share=self.beta,
                mask=batch.get("mask"),
                temperature=self.temperature,
            )
            return {"divergence": found}
        logits, target = all_logits(said), all_logits(signal)
        check_vocabularies(logits.shape[-1], teacher=target.shape[-1])
        options = {"share": self.beta, "mask": batch.get("mask"), "temperature": self.temperature}
        return {"divergence": masked_divergence(logits, target, kind="generalized_jsd", **options)}


_STATES, _CORE, _TOKENS, _LENGTH = 24, 8, 8, 12


def miniature(seed: int, size: Size) -> Miniature:
    """A walk on a graph: legal tokens lead between 8 states, a mistake to one of 16 others, which the teacher's texts hardly ever visit.

    A student is first trained on 64 texts of the teacher, then taught by it on the same texts or on its own. Everything is measured
    exactly: the share of legal tokens in what the student writes (``accuracy``), and its divergence from the teacher there
    (``generation_kl``) and on the teacher's own texts (``text_kl``), in nats per token.
    """
    steps, first = (300, 30) if size == "full" else (8, 2)
    legal, teacher, untrained, texts = _world(seed)

    def student() -> TablePolicy:
        made = TablePolicy(torch.zeros(_STATES, _TOKENS), teacher.moves)
        fit_policy(CrossEntropy(), {"student": made}, [texts], steps=first, learning_rate=8.0, seed=seed)
        return made

    arms = {}
    for name, rate, given in (
        ("untrained-teacher", 0.5, untrained),
        ("fine-tuned", None, teacher),
        ("supervised-kd", 0.0, teacher),
        ("gkd", 0.5, teacher),
        ("on-policy", 1.0, teacher),
    ):
        taught = student()
        if rate is not None:
            method = GKD(on_policy_rate=rate, max_new_tokens=_LENGTH, sampler=TableSampler())
            fit_policy(method, {"student": taught, "teacher": given}, [texts], steps=steps, learning_rate=8.0, seed=seed)
        arms[name] = _measure(taught, teacher, legal)
    return Miniature(
        arms=arms,
        claims=(
            Claim(name="a student taught on its own texts writes better", method="gkd", baseline="supervised-kd", metric="accuracy"),
            Claim(
                name="a student taught on its own texts is nearer to the teacher in what it writes",
                method="gkd",
                baseline="supervised-kd",
                metric="generation_kl",
                direction="lower",
            ),
        ),
        notes=(f"{len(texts['id'])} texts of {_LENGTH} tokens in each of {steps} updates, after {first} on labels",),
    )


def _world(seed: int) -> tuple[Tensor, TablePolicy, TablePolicy, Batch]:
    """The legal tokens (S, V), the teacher, an untrained one, and texts of the teacher."""
    generator = torch.Generator().manual_seed(seed)
    shape = (_STATES, _TOKENS)
    legal = torch.zeros(shape).scatter(1, torch.rand(shape, generator=generator).argsort(1)[:, :2], 1.0)
    within = torch.randint(0, _CORE, shape, generator=generator)
    outside = torch.randint(_CORE, _STATES, shape, generator=generator)
    moves = torch.where(legal.bool(), within, outside)
    teacher = TablePolicy(torch.randn(shape, generator=generator) + 4 * legal, moves).requires_grad_(False)
    untrained = TablePolicy(2 * torch.randn(shape, generator=generator), moves).requires_grad_(False)
    asked = prompts(torch.randint(0, _CORE, (64,), generator=generator))
    sampler = TableSampler(student=teacher)
    return (
        legal,
        teacher,
        untrained,
        {**asked, **language_batch(asked["prompt"], sampler.sample(asked["prompt"], max_new_tokens=_LENGTH, seed=seed))},
    )


@torch.no_grad()
def _measure(student: TablePolicy, teacher: TablePolicy, legal: Tensor) -> dict[str, float]:
    log_q, log_p = student.table.log_softmax(-1), teacher.table.log_softmax(-1)

    def visits(log_probs: Tensor) -> Tensor:
        """How often each state is met, as a share of all tokens."""
        now, total = torch.zeros(_STATES), torch.zeros(_STATES)
        now[:_CORE] = 1 / _CORE
        for _ in range(_LENGTH):
            total += now / _LENGTH
            now = torch.zeros(_STATES).index_add_(0, student.moves.flatten(), (now.unsqueeze(1) * log_probs.exp()).flatten())
        return total

    return {
        "accuracy": float(visits(log_q) @ (log_q.exp() * legal).sum(-1)),
        "generation_kl": float(visits(log_q) @ kl(log_q, log_p)),
        "text_kl": float(visits(log_p) @ kl(log_p, log_q)),
    }
