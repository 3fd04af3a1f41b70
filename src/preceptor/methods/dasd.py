"""Distribution-aligned sequence distillation: fine-tuning on the teacher's answers, chosen and ordered as samples of its distribution.

Paper: Distribution-Aligned Sequence Distillation for Superior Long-CoT Reasoning, 2026 (arXiv:2601.09088); the sampling rule is that of
Where Did This Sentence Come From?, 2025 (arXiv:2512.20908).
Claim: answers at a low temperature first and at 1 later, those that the teacher likes and the student does not yet, and some that the
student began and the teacher ended teach more than as many random answers.
Equation: cross-entropy on whole answers, sum_t -m_t log p_S(y_t) / sum_t m_t. Of n answers to a prompt the k with the largest
    g(y) = sum_u w_u (p_T(u) - p_S(u)) / sum_u w_u,   p_M(u) = exp(mean over the tokens of sentence u of log p_M),
are kept, w = 1 or the number of tokens, p_S that of the student before training. In the last part of the run the student answers up to
1.5 times the length of the teacher's answer; where it does not come to an end, the teacher goes on from a point of its second half.

``prepare`` writes the answers: the online form draws anew in each step; the paper's offline form calls it once on all prompts for every
stage (with the ``state.step`` of that stage) and trains on what it returns by ce. The role ``reference`` is a copy of the untrained student
unless one is given. Teacher and student share a tokenizer here; between two, `preceptor.data.sentences` takes the
log-probabilities of each side's own tokens.

Deviations: the score, the best 1 of 4, the cut into sentences and the numbers of the filter are not printed in the paper: ours. Stages are
parts of one run with one learning-rate schedule, not runs of six epochs with one each. Prompts with no answer that passes are masked.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.answers import Accept, best_answers, mixed_answers, usable
from preceptor.data.rollout import (
    Completer,
    Completions,
    GenerateSampler,
    Sampler,
    check_on_policy,
    check_prompted,
    language_batch,
    roll_out,
    score_rows,
)
from preceptor.data.rows import take
from preceptor.data.sentences import divergence_score, sentence_numbers, sentence_probabilities
from preceptor.losses.checks import check_positive, check_unit_interval
from preceptor.losses.divergence import forward_kl
from preceptor.losses.hard import hard_loss
from preceptor.losses.policy import token_log_probs
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.claim import Claim
from preceptor.miniature.policies import prompts
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.symbols import ContextLM, TextLM, peaked_table, sample
from preceptor.miniature.toys import ToySampler, fit_rows
from preceptor.miniature.worlds import seeded
from preceptor.models.taps import forward

CARD = Card(
    slug="dasd",
    title="Distribution-aligned sequence distillation",
    authors="DASD 2026",
    arxiv="2601.09088",
    kind="sequences",
    tasks=("language",),
    needs=("teacher", "logits", "generation"),
    equation="cross-entropy on the k of n answers of the teacher with the largest mean over sentences of p_T(u) - p_S(u)",
    cost="the teacher writes n answers to every prompt, read once more by the teacher and once by the first student",
    headline="4B student: AIME24 / 25 85.2 / 81.3 % with temperature 0.6 then 1 (83.1 / 76.1 at 1); 85.0 / 79.2 with chosen answers at 1",
)


@dataclass(frozen=True, kw_only=True)
class DASD(Method):
    """Fine-tuning on answers of the teacher: easy ones first, chosen ones, and some begun by the student. A batch brings ``prompt``."""

    temperatures: tuple[float, ...] = (0.6, 1.0)  # > 0, of equally long parts of the run; the report's stages 1 and 2
    candidates: int = 4  # n, answers to each prompt; ours, 1 takes them as they come
    kept: int = 1  # k in [1, n]; ours
    by_tokens: bool = False  # weigh sentences by their tokens; ours
    sentence_ends: tuple[int, ...] = ()  # tokens that end a sentence; none: an answer is one sentence
    mixed_share: float = 0.03  # last part of the run, in [0, 1], with answers that the student begins; 12.7 K of the report's 448 K
    ratio: float = 1.5  # > 0: the student's limit, in lengths of the teacher's answer; the report, stage 3
    mask_begun: bool = False  # do not train on what the student wrote; the report finds training on it better
    max_new_tokens: int = 128  # of the teacher; ours, the report allows 64 K
    accept: Accept | None = None  # filters answers; None: `usable`, after the report's filters for length and repetition
    sampler: Sampler | None = None  # how the student writes; None: generate of transformers
    teacher_sampler: Completer | None = None  # how the teacher writes, such as a server; None: its role, by generate

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.temperatures:
            raise ValueError("temperatures: expected at least one, got none")
        for temperature in self.temperatures:
            check_positive(temperatures=temperature)
        check_positive(ratio=self.ratio)
        check_unit_interval(mixed_share=self.mixed_share)
        if not 1 <= self.kept <= self.candidates:
            raise ValueError(f"kept: expected 1 to {self.candidates} of the candidates, got {self.kept}")
        if self.sampler is not None:
            check_on_policy(self.sampler)

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return a copy of the student as the reference, unless one is given; refuses a batch without prompts."""
        check_prompted(batch)
        return {} if "reference" in roles else {"reference": copy.deepcopy(roles["student"])}

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Put answers to the prompts in place of the batch, ``kept`` for each."""
        done = state.step / max(state.total_steps, 1)
        if done >= 1 - self.mixed_share:
            return self._mixed(batch, roles, state)
        stage = int(done / (1 - self.mixed_share) * len(self.temperatures))
        return self._chosen(batch, roles, state, self.temperatures[stage])

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the cross-entropy of every token, (N, T)."""
        return {"hard": hard_loss(forward(roles["student"], batch["x"]).logits, batch)}

    def _drawn(self, batch: Batch, roles: Roles, state: State, answers: int, temperature: float) -> tuple[Batch, Completions, Tensor]:
        """Answers of the teacher as a batch and as they were written, and which passed the filters."""
        writer = roles["teacher"] if self.teacher_sampler is None else None
        options = {"answers": answers, "max_new_tokens": self.max_new_tokens, "temperature": temperature}
        drawn, repeated, completions = roll_out(batch, writer, state, sampler=self.teacher_sampler, **options)
        return drawn, completions, (self.accept or usable)(repeated, completions)

    def _chosen(self, batch: Batch, roles: Roles, state: State, temperature: float) -> Batch:
        drawn, _, accepted = self._drawn(batch, roles, state, self.candidates, temperature)
        state.log["filtered"] = 1 - float(accepted.double().mean())
        scores = torch.zeros(len(accepted), device=accepted.device)
        if self.candidates > self.kept:
            numbers = sentence_numbers(drawn["y"], drawn["mask"], self.sentence_ends)
            teacher = drawn["sampling_log_probs"] if temperature == 1 else _log_probs(roles["teacher"], drawn)
            sides = [sentence_probabilities(side, numbers) for side in (teacher, _log_probs(roles["reference"], drawn))]
            scores = divergence_score(sides[0][0], sides[1][0], sides[0][1], by_tokens=self.by_tokens)
        places, passed = best_answers(scores.view(-1, self.candidates), accepted.view(-1, self.candidates), self.kept)
        first = torch.arange(len(places), device=places.device).unsqueeze(1) * self.candidates
        chosen = take(drawn, (first + places).flatten())
        return {**chosen, "mask": chosen["mask"] & passed.flatten().unsqueeze(1)}

    def _mixed(self, batch: Batch, roles: Roles, state: State) -> Batch:
        temperature = self.temperatures[-1]
        _, references, _ = self._drawn(batch, roles, state, 1, temperature)
        student = GenerateSampler() if self.sampler is None else self.sampler
        student.sync(roles["student"])
        mixed = mixed_answers(
            batch["prompt"],
            references,
            student=student,
            teacher=GenerateSampler(student=roles["teacher"]) if self.teacher_sampler is None else self.teacher_sampler,
            ratio=self.ratio,
            max_new_tokens=self.max_new_tokens,
            temperature=temperature,
            seed=int(torch.randint(2**62, (), generator=state.rng)),
        )
        accepted = (self.accept or usable)(batch, mixed.completions)
        state.log["filtered"], state.log["begun"] = (1 - float(accepted.double().mean()), float((mixed.begun > 0).double().mean()))
        drawn = language_batch(batch["prompt"], mixed.completions)
        mask = drawn["mask"] & accepted.unsqueeze(1)
        if self.mask_begun:
            written = torch.arange(mask.shape[1], device=mask.device) - (batch["prompt"]["input_ids"].shape[1] - 1)
            mask &= written >= mixed.begun.unsqueeze(1)
        return {**drawn, "mask": mask, **({"id": batch["id"]} if "id" in batch else {})}


def _log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probability of every token of a batch under a model at temperature 1, (N, T)."""
    return score_rows(model, batch, lambda logits, y: (token_log_probs(logits, y),), rows=_ROWS)[0]


_ROWS = 8  # answers that are scored at a time


def _everything(batch: Batch, completions: Completions) -> Tensor:
    """Symbols have no end and repeat themselves: nothing is filtered."""
    return torch.ones(len(completions.ids), dtype=torch.bool)


def miniature(seed: int, size: Size) -> Miniature:
    """A language of 10 symbols: a student of another one learns from 300 texts of 12 symbols that the teacher writes at each temperature.

    ``accuracy`` is the share of positions of fresh texts of the teacher where the student's likeliest symbol is the teacher's, ``kl`` the
    divergence KL(teacher || student) there, in nats. "best-by-teacher" chooses among as many candidates by p_T alone, "random-twice" has
    twice the texts. Stage 3 is left out: texts of one length have no end that a student could miss.
    """
    number, steps = (300, 600) if size == "full" else (50, 50)
    draw = torch.Generator().manual_seed(seed)
    teacher, other, untrained = (TextLM(peaked_table(10, 3, sharpness=3.0, generator=draw)) for _ in range(3))
    uniform = TextLM(ContextLM(symbols=10, context=3, hidden=0)).requires_grad_(False)
    learner = seeded(lambda: TextLM(ContextLM()), seed)
    random = DASD(candidates=1, mixed_share=0.0, accept=_everything)
    chosen = replace(random, candidates=4)

    def texts(method: DASD, writer: nn.Module, reference: nn.Module, asked: int) -> list[Batch]:
        """What each stage trains on."""
        sampler = ToySampler()
        sampler.sync(writer)
        method = replace(method, teacher_sampler=sampler, max_new_tokens=12)
        stages = len(method.temperatures)
        roles = {"teacher": writer, "reference": reference}
        batch = prompts(torch.zeros(asked, dtype=torch.int64))
        with torch.no_grad():
            return [method.prepare(batch, roles, State(total_steps=stages, step=stage, seed=seed)) for stage in range(stages)]

    def fit(student: nn.Module, parts: list[Batch]) -> None:
        for stage, part in enumerate(parts):
            updates = steps // len(parts)
            fit_rows(CrossEntropy(), {"student": student}, part, batch_size=50, learning_rate=1e-2, steps=updates, seed=seed + stage)

    fit(learner, texts(replace(random, temperatures=(1.0,)), other, uniform, number))
    low, high = (0.6,), (1.0,)
    arms = {
        "untrained-teacher": (chosen, untrained, learner, number),
        "random-low": (replace(random, temperatures=low), teacher, uniform, number),
        "random": (replace(random, temperatures=high), teacher, uniform, number),
        "random-twice": (replace(random, temperatures=high), teacher, uniform, 2 * number),
        "schedule": (random, teacher, uniform, number),
        "das": (replace(chosen, temperatures=high), teacher, learner, number),
        "best-by-teacher": (chosen, teacher, uniform, number),  # against a student that finds all texts alike
        "dasd": (chosen, teacher, learner, number),
    }
    fresh = sample(teacher.network, 500, 12, generator=draw)
    inputs = F.pad(fresh, (1, 0))[:, :-1]
    measured = {}
    for name, (method, writer, reference, asked) in arms.items():
        student = copy.deepcopy(learner)
        fit(student, texts(method, writer, reference, asked))
        with torch.no_grad():
            said, target = student(inputs), teacher(inputs)
        agree = (said.argmax(-1) == target.argmax(-1)).double().mean()
        measured[name] = {"accuracy": float(agree), "kl": float(forward_kl(said, target).mean())}
    return Miniature(
        arms=measured,
        claims=tuple(
            Claim(name=name, method="dasd", baseline=baseline, metric="accuracy")
            for name, baseline in (
                ("easy answers first, and chosen ones, teach more than as many random answers at temperature 1", "random"),
                ("answers chosen by divergence teach more than random ones at the same temperatures", "schedule"),
                ("divergence chooses better than the teacher's likelihood alone", "best-by-teacher"),
            )
        ),
        notes=(f"{number} texts at each temperature, 4 candidates for each where texts are chosen, {steps} updates of every student",),
    )
