"""A language of 12 symbols, the next one chosen by the last 2, and a student that knows it but for two kinds of mistakes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.data.rollout import language_batch
from preceptor.losses.divergence import forward_kl, reverse_kl
from preceptor.miniature.policies import prompts
from preceptor.miniature.run import Size
from preceptor.miniature.symbols import all_contexts, peaked_table
from preceptor.miniature.toys import Halves, LastSymbols, ToySampler, small_network
from preceptor.miniature.worlds import seeded
from preceptor.models.taps import forward

SYMBOLS, CONTEXT = 12, 2
LENGTH = 16
"""Symbols of a rollout after its prompt, which is symbol 0."""


@dataclass(frozen=True, kw_only=True)
class MistakenWorld:
    """One world of one seed; all networks come in two halves (`preceptor.miniature.toys.Halves`)."""

    teacher: nn.Module  # the language itself
    untrained: nn.Module  # another language
    student: nn.Module


def mistaken_world(seed: int, size: Size = "full") -> MistakenWorld:
    """A student fitted to the teacher, but sure of a wrong symbol after 2 of the symbols, and nearly uniform after 3 others.

    Args:
        seed: of the languages, the mistakes and the student's weights.
        size: ``"smoke"`` hardly fits the student.
    """
    generator = torch.Generator().manual_seed(seed)
    teacher, untrained = (_speaker(peaked_table(SYMBOLS, CONTEXT, sharpness=2.0, generator=generator).table) for _ in range(2))
    contexts = all_contexts(SYMBOLS, CONTEXT)
    logits = forward(teacher, {"input_ids": contexts}).logits[:, -1]
    odd = torch.randperm(SYMBOLS, generator=generator)
    wrong, unsure = (torch.isin(contexts[:, -1], part) for part in (odd[:2], odd[2:5]))
    logits = torch.where(wrong[:, None], 6.0 * F.one_hot(logits.argmin(-1), SYMBOLS), logits)
    logits = torch.where(unsure[:, None], 0.1 * logits, logits)
    student = seeded(lambda: small_network(symbols=SYMBOLS, context=CONTEXT, hidden=64), seed)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for _ in range(400 if size == "full" else 30):
        optimizer.zero_grad()
        forward_kl(forward(student, {"input_ids": contexts}).logits[:, -1], logits).mean().backward()
        optimizer.step()
    return MistakenWorld(teacher=teacher, untrained=untrained, student=student)


def _speaker(table: Tensor) -> nn.Module:
    """A table of logits (contexts, symbols) as a model in two halves."""
    body = LastSymbols(symbols=SYMBOLS, context=CONTEXT, joint=True)
    model = Halves(body, nn.Linear(body.size, SYMBOLS, bias=False)).requires_grad_(False)
    model.output.weight.copy_(table.T)
    return model


@torch.no_grad()
def rollout_kl(student: nn.Module, teacher: nn.Module, seed: int) -> float:
    """KL(student || teacher) per symbol of 512 texts that the student writes, in nats."""
    sampler = ToySampler()
    sampler.sync(student)
    prompt = prompts(torch.zeros(512, dtype=torch.int64))["prompt"]
    x = language_batch(prompt, sampler.sample(prompt, max_new_tokens=LENGTH, seed=seed + 1))["x"]
    return float(reverse_kl(forward(student, x).logits, forward(teacher, x).logits).mean())
