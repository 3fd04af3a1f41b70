"""A world of three tasks in 16 characters, and a small transformer that masters two of them.

Sums of two digits ("3+4=" is answered by "7."), copies of three digits ("c274=" by "274."), and the new skill, differences of numbers below
20 ("17-9=" by "8.").
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from preceptor.core.optional import require
from preceptor.core.run import train
from preceptor.core.types import Batch
from preceptor.data.rollout import Completions, GenerateSampler, answer_matches, language_batch
from preceptor.miniature.run import Size
from preceptor.miniature.toys import Rows
from preceptor.miniature.worlds import Labels, seeded

CHARACTERS = "_.0123456789+-=c"
"""Padding, the end of an answer, and what texts are made of."""
SHARES = {"sums": 0.46, "copies": 0.46, "new": 0.08}
"""Of the tasks in the pool."""
PROMPT, ANSWER = 6, 4
"""Characters at most."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """One world of one seed."""

    pool: Batch  # with ``task`` (N,): 0 sums, 1 copies, 2 the new skill
    tests: dict[str, Batch]  # "sums", all of them; "copies" and "new", which the pool does not hold
    student: nn.Module  # masters sums and copies, has seen no difference

    def accuracies(self, student: nn.Module) -> dict[str, float]:
        """Of each task, and ``overall``, in which they weigh as much as in the pool."""
        found = {task: accuracy(student, batch) for task, batch in self.tests.items()}
        return {**found, "overall": sum(SHARES[task] * share for task, share in found.items())}


def arithmetic(seed: int, size: Size = "full") -> Arithmetic:
    """A pool of 46 % sums, 46 % copies and 8 % differences, and a student of 2 layers and 48 units that learned the first two.

    Args:
        seed: of the pool, the weights and the warm-up.
        size: ``"smoke"`` has a pool of 50 texts and hardly warms up.
    Raises:
        ImportError: transformers is missing (one line says what to install).
    """
    draw = random.Random(seed)
    sums = [(f"{a}+{b}=", f"{a + b}.") for a in range(10) for b in range(10)]
    copies = [(f"c{i:03}=", f"{i:03}.") for i in range(1000)]
    new = [(f"{a}-{b}=", f"{a - b}.") for a in range(20) for b in range(a + 1)]
    for texts in (copies, new):
        draw.shuffle(texts)
    copies, unseen = copies[:900], copies[900:]
    number, steps, batch_size = (2000, 500, 64) if size == "full" else (50, 10, 16)
    known = int(SHARES["sums"] * number)
    chosen = [[draw.choice(sums) for _ in range(known)], [draw.choice(copies) for _ in range(known)], new[: number - 2 * known]]
    pool = written([text for part in chosen for text in part])
    pool["task"] = torch.tensor([task for task, part in enumerate(chosen) for _ in part])
    old = written([draw.choice(sums) if draw.random() < 0.5 else draw.choice(copies) for _ in range(8000)])
    student = writer_of(old, steps=steps, batch_size=batch_size, seed=seed)
    held = {"sums": sums, "copies": unseen, "new": new[number - 2 * known :]}
    tests = {task: written(texts if size == "full" else texts[:20]) for task, texts in held.items()}
    return Arithmetic(pool=pool, tests=tests, student=student)


def writer_of(texts: Batch, *, steps: int, batch_size: int, seed: int) -> nn.Module:
    """A transformer of 2 layers and 48 units that learned texts of `written` by their labels, from weights of the seed."""
    student = seeded(_transformer, seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 50, 1.0) * (1 - step / steps))
    train(Labels(), {"student": student}, Rows(texts, batch_size=batch_size, seed=seed), optimizer, steps=steps, schedulers=rate, clip=1.0)
    return student


def written(texts: Sequence[tuple[str, str]], *, answer_size: int = ANSWER) -> Batch:
    """Pairs of prompt and answer, of this many characters at most, as a batch with ``prompt``, ``x``, ``y``, ``mask`` and ``id``."""
    prompts = torch.tensor([_numbers(prompt.rjust(PROMPT, "_")) for prompt, _ in texts])
    answers = torch.tensor([_numbers(answer.ljust(answer_size, "_")) for _, answer in texts])
    prompt = {"input_ids": prompts, "attention_mask": (prompts > 0).long()}
    nothing = torch.zeros(answers.shape)
    completions = Completions(ids=answers, mask=answers > 0, log_probs=nothing, finished=torch.ones(len(texts), dtype=torch.bool))
    batch = language_batch(prompt, completions)
    return {"prompt": prompt, "x": batch["x"], "y": batch["y"], "mask": batch["mask"], "id": torch.arange(len(texts))}


def _numbers(text: str) -> list[int]:
    return [CHARACTERS.index(character) for character in text]


def accuracy(student: nn.Module, batch: Batch) -> float:
    """Share of prompts that the student answers right, taking the likeliest character each time."""
    sampler = GenerateSampler(student=student)
    completions = sampler.sample(batch["prompt"], max_new_tokens=ANSWER, temperature=1e-4, seed=0)
    return float(answer_matches(batch, completions).double().mean())


def _transformer() -> nn.Module:
    transformers = require("transformers", extra="llm", purpose="arithmetic in miniature")
    sizes = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.LlamaConfig(vocab_size=len(CHARACTERS), max_position_embeddings=32, **sizes, **special)
    return transformers.LlamaForCausalLM(config)
