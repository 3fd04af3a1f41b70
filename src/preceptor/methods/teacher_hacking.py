"""Teacher hacking: whether a student that copies its teacher goes away from the truth, and answers that keep it from that.

Paper: Tiapkin, Calandriello, Ferret, Perrin, Vieillard, Rame, Blondel 2025, On Teacher Hacking in Language Model Distillation
(arXiv:2502.02671).
Claim: with fixed answers of the teacher the distance to the teacher (proxy) still falls, or stalls, when the distance to the truth (golden)
rises again; fresh answers of teacher or student undo it, more answers to each prompt help, and fewer prompts make it worse.
Equation, with the oracle o in the place of the truth, teacher p, student q, and D of `preceptor.methods.gkd` at every token of the answers:
    L = mean_t D(p_t, q_t),   proxy = KL(p || q),   golden = KL(o || q) of whole texts, prompts held out.

`preceptor.metrics.hacking` has the distances, what two curves of them say, and a detector that needs no oracle. The method takes its texts
from the batch (fixed; `preceptor.data.answers.written_answers` makes them), from the teacher, from the student, or some of each.

Deviations: the paper's abstract, captions and table of settings were at hand, not its body: the estimator of the distances and the detector
are reconstructed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from preceptor.core.method import Method
from preceptor.core.reduce import num_examples
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Record, Roles, Signal, Terms
from preceptor.data.answers import written_answers
from preceptor.data.rollout import Completer, Sampler, check_on_policy, check_prompted, roll_out
from preceptor.data.rows import join, take
from preceptor.losses.checks import check_choice, check_unit_interval
from preceptor.losses.divergence import log_probs
from preceptor.methods.gkd import GKD
from preceptor.metrics.hacking import hacking, power_law_break, sequence_kl
from preceptor.miniature.claim import Claim
from preceptor.miniature.oracles import WRITTEN, OracleWorld, as_prompt, oracle_world
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.toys import fit_rows
from preceptor.models.heads import speak
from preceptor.models.taps import forward

CARD = Card(
    slug="teacher-hacking",
    title="Teacher hacking: distances to the teacher and to the truth",
    authors="Tiapkin et al. 2025",
    arxiv="2502.02671",
    kind="on-policy",
    tasks=("language",),
    needs=("teacher", "logits", "generation"),
    equation="L = mean_t D(p_t, q_t); proxy = KL(teacher || student), golden = KL(oracle || student) of whole texts",
    cost="one forward pass of the teacher per step, and the writing of the answers that are fresh; two more per evaluated text",
    headline="T5 on XSum, WMT14 and Natural Instructions, fixed answers: golden is U-shaped while the proxy falls; not so with fresh ones",
)

Online = Literal["none", "teacher", "student"]
"""Who writes fresh answers."""


@dataclass(frozen=True, kw_only=True)
class SourcedKD(Method):
    """Distillation on answers that are fixed, fresh, or some of each. A batch brings fixed texts, and ``prompt`` for the fresh ones."""

    online: Online = "teacher"  # fresh answers each time a prompt is met; the paper's remedy, "none" is the setting that it warns of
    online_rate: float = 1.0  # in [0, 1], share of the rows of each batch whose answers are fresh; the paper
    beta: float = 0.0  # as in gkd: 0 is forward KL, the paper's main loss, 1 reverse KL; between them a Jensen-Shannon divergence
    max_new_tokens: int = 128  # at least 1; the paper's length of answers
    sampler: Completer | None = None  # how answers are written; None: generate of transformers

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_choice(Online, online=self.online)
        check_unit_interval(online_rate=self.online_rate, beta=self.beta)
        if self.online == "student" and self.sampler is not None:
            check_on_policy(self.sampler)

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """None; refuses, before the first step, a batch without the prompts that are to be answered."""
        if self.online != "none":
            check_prompted(batch)
        return {}

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Put fresh answers in place of some texts; their share of the rows is exact, which rows is drawn."""
        number = 0 if self.online == "none" else round(self.online_rate * num_examples(batch))
        own = State(total_steps=state.total_steps, seed=int(torch.randint(2**62, (), generator=state.rng)))  # one draw, whatever is fresh
        if number == 0:
            return batch
        fresh, fixed = torch.randperm(num_examples(batch), generator=own.rng).tensor_split([number])
        writer = None if self.sampler is not None and not isinstance(self.sampler, Sampler) else roles[self.online]
        written, _, _ = roll_out(take(batch, fresh), writer, own, sampler=self.sampler, max_new_tokens=self.max_new_tokens)
        state.log |= own.log
        return _side_by_side(take(batch, fixed), written) if len(fixed) else written

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return what the teacher says, its last hidden states and output layer where it has them."""
        return speak(roles["teacher"], batch["x"])

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the divergence at every position, (N, T)."""
        return GKD(on_policy_rate=0.0, beta=self.beta).loss(batch, signal, roles, state)


def _side_by_side(fixed: Batch, written: Batch) -> Batch:
    """Rows of both as one batch; documents that share a fixed row, told apart by their places alone, still do not see each other."""
    parts = [{**{key: part[key] for key in ("y", "mask", "id")}, "x": dict(part["x"])} for part in (fixed, written)]
    x, fresh = (part["x"] for part in parts)
    if "position_ids" in x and "attention_mask" not in x and not (x["position_ids"].diff(dim=1) == 1).all():
        if not fresh.pop("attention_mask")[:, 0].all():
            raise ValueError("prompt: expected prompts of one length beside fixed rows of several documents, got padded ones")
    else:
        attention = x.setdefault("attention_mask", torch.ones_like(x["input_ids"]))
        x.setdefault("position_ids", (attention.cumsum(1) - 1).clamp(min=0))
    return join(parts)


def miniature(seed: int, size: Size) -> Miniature:
    """A transformer that knows an oracle from 300 texts is the teacher of smaller ones; see `preceptor.miniature.oracles`.

    Arm "teacher-hacking" has one fixed answer to each of 300 prompts; "early" is that, stopped after a fifth of the updates. "few-prompts"
    has as many texts, five for each of a fifth of the prompts, "three-answers" three for each prompt, the last two have fresh answers.
    ``golden``, ``proxy`` and ``teacher_golden`` are KLs in nats per text, on held-out prompts; ``golden_rise`` is that of
    `preceptor.metrics.hacking.hacking`; ``departure`` says how far the last three values of the proxy lie above the power law of its
    beginning, as a logarithm, and ``alarm`` is 1 where that broke; ``likely`` is the share of symbols in the student's own texts to which
    the oracle gives a probability of at least 0.1.
    """
    world = oracle_world(seed, size)
    few, steps = (60, 500) if size == "full" else (8, 8)
    plans: tuple[tuple[str, nn.Module, int, int, Online, int], ...] = (
        ("untrained-teacher", world.untrained, 5 * few, 1, "none", steps),
        ("early", world.teacher, 5 * few, 1, "none", steps // 5),
        ("teacher-hacking", world.teacher, 5 * few, 1, "none", steps),
        ("few-prompts", world.teacher, few, 5, "none", steps),
        ("three-answers", world.teacher, 5 * few, 3, "none", steps),
        ("online-teacher", world.teacher, 5 * few, 1, "teacher", steps),
        ("online-student", world.teacher, 5 * few, 1, "student", steps),
    )
    arms = {}
    for name, teacher, number, answers, online, updates in plans:
        prompt = as_prompt(world.prompts[:number])
        texts = written_answers(teacher, prompt, answers=answers, max_new_tokens=WRITTEN, seed=seed)
        roles = {"student": copy.deepcopy(world.student), "teacher": teacher}
        arms[name] = _followed(SourcedKD(online=online, max_new_tokens=WRITTEN), roles, texts, world, steps=updates, seed=seed)
    note = f"{5 * few} training prompts but for few-prompts, {steps} updates of 32 texts but for early"
    return Miniature(arms=arms, claims=_claims(), notes=(note,))


def _followed(method: Method, roles: Roles, texts: Batch, world: OracleWorld, *, steps: int, seed: int) -> dict[str, float]:
    """Train a student, and look at it at 16 steps that are about even in the logarithm, always on the same texts."""
    student = roles["student"]
    looks = {round(step) for step in np.geomspace(max(1, steps // 100), steps, 16)}
    at, proxy, golden = [], [], []

    def look(record: Record) -> None:
        if record.step in looks:
            at.append(record.step)
            proxy.append(sequence_kl(world.teacher, student, world.held_out_teacher).mean)
            golden.append(sequence_kl(world.oracle, student, world.held_out).mean)

    fit_rows(method, roles, texts, batch_size=32, learning_rate=2e-3, steps=steps, seed=seed, progress=look)
    found, law = hacking(at, proxy, golden), power_law_break(at, proxy, warmup=4)
    written = written_answers(student, world.held_out["prompt"], max_new_tokens=WRITTEN, seed=seed)
    given = log_probs(forward(world.oracle, written["x"]).logits).gather(-1, written["y"].unsqueeze(-1)).squeeze(-1).exp()
    return {
        "golden": golden[-1],
        "proxy": proxy[-1],
        "lowest_golden": found.lowest,
        "golden_rise": found.golden_rise,
        "hacked": float(found.verdict == "hacked"),
        "departure": float(np.mean(law.residuals[-3:])) if law.residuals else 0.0,
        "alarm": float(law.verdict == "broken"),
        "likely": float((given[written["mask"]] >= 0.1).double().mean()),
        "teacher_golden": sequence_kl(world.oracle, world.teacher, world.held_out).mean,
    }


def _claims() -> tuple[Claim, ...]:
    def than(baseline: str, metric: str, direction: Literal["higher", "lower"], name: str) -> Claim:
        return Claim(name=name, method="teacher-hacking", baseline=baseline, metric=metric, direction=direction)

    return (
        than("early", "golden", "higher", "on fixed answers a student ends farther from the truth than stopped early"),
        than("early", "proxy", "lower", "and nearer to its teacher"),
        than("online-teacher", "golden_rise", "higher", "golden rises less with fresh answers of the teacher"),
        than("online-student", "golden_rise", "higher", "golden rises less with fresh answers of the student"),
        than("few-prompts", "golden_rise", "lower", "golden rises more with as many texts of fewer prompts"),
        than("three-answers", "golden_rise", "higher", "golden rises less with more answers to each prompt"),
        than("online-teacher", "departure", "higher", "the proxy leaves its power law farther on fixed answers than on fresh ones"),
    )
