"""A world with a known truth: an oracle of ten symbols, a transformer that learned from few of its texts, and a smaller one to teach."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preceptor.core.optional import require
from preceptor.core.types import Batch
from preceptor.data.answers import written_answers
from preceptor.data.rollout import Prompt
from preceptor.miniature.run import Size
from preceptor.miniature.toys import Halves, LastSymbols, ToySampler, fit_rows
from preceptor.miniature.worlds import Labels, seeded

ASKED, WRITTEN = 4, 8
"""Symbols of a prompt and of an answer; all answers are equally long."""


@dataclass(frozen=True, kw_only=True)
class OracleWorld:
    """One world of one seed; no prompt stands in two of its parts."""

    oracle: nn.Module  # the truth
    teacher: nn.Module  # trained for long on few texts of the oracle
    untrained: nn.Module  # built like the teacher, with random weights
    student: nn.Module  # trained on the same texts for a moment
    prompts: Tensor  # (number, ASKED), to distil on
    held_out: Batch  # texts of the oracle
    held_out_teacher: Batch  # texts of the teacher for the same prompts


def oracle_world(seed: int, size: Size = "full") -> OracleWorld:
    """An oracle of random weights that sees three symbols, a teacher of 2 layers and 48 units, a student of 1 layer and 32 units.

    Args:
        seed: of everything.
        size: ``"smoke"`` has a tenth of the texts and hardly trains.
    Raises:
        ImportError: transformers is missing (one line says what to install).
    """
    texts, teaching, starting = (300, 250, 30) if size == "full" else (40, 4, 2)
    every = torch.cartesian_prod(*[torch.arange(SYMBOLS)] * ASKED)
    every = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))]
    asked, held, prompts = every.split([texts, texts, len(every) - 2 * texts])
    oracle = seeded(_oracle, seed)
    pairs, held_out = (
        written_answers(oracle, as_prompt(ids), max_new_tokens=WRITTEN, seed=seed, sampler=ToySampler()) for ids in (asked, held)
    )
    teacher, student = seeded(lambda: _llama(48, 2), seed), seeded(lambda: _llama(32, 1), seed)
    for model, steps in ((teacher, teaching), (student, starting)):
        fit_rows(Labels(), {"student": model}, pairs, batch_size=32, learning_rate=2e-3, steps=steps, seed=seed)
    return OracleWorld(
        oracle=oracle,
        teacher=teacher.eval(),
        untrained=seeded(lambda: _llama(48, 2), seed + 1).eval(),
        student=student,
        prompts=prompts,
        held_out=held_out,
        held_out_teacher=written_answers(teacher, as_prompt(held), max_new_tokens=WRITTEN, seed=seed),
    )


def as_prompt(ids: Tensor) -> Prompt:
    """Prompts (N, P) without padding."""
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


SYMBOLS = 10
"""Of every model."""


def _oracle() -> nn.Module:
    body = LastSymbols(symbols=SYMBOLS, context=3)
    inner, output = nn.Linear(body.size, 64), nn.Linear(64, SYMBOLS)
    with torch.no_grad():
        inner.weight.mul_(4)
        output.weight.mul_(7)
    return Halves(nn.Sequential(body, inner, nn.Tanh()), output).requires_grad_(False)


def _llama(units: int, layers: int) -> nn.Module:
    transformers = require("transformers", extra="llm", purpose="oracles in miniature")
    sizes = {"hidden_size": units, "intermediate_size": 4 * units, "num_hidden_layers": layers, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=SYMBOLS, pad_token_id=0, bos_token_id=None, eos_token_id=None, **sizes)
    return transformers.LlamaForCausalLM(config)
