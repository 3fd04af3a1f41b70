"""A task with verifiable answers that is thought about first: the middle one of five digits, in the characters of `arithmetic`.

"30718=" is answered by "c80=3.": the largest digit, the smallest, the end of thinking and the answer. Before each of the three first the
demonstrations dither: with a chance of 0.3 stands a "+", "-" or "c", after it another with 0.6, three at most. So both the entropy of a
text and its length grow with its dithering, which does no good.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch
from preceptor.data.rollout import Completions, roll_out
from preceptor.losses.phase_entropy import phase_entropies
from preceptor.metrics.coverage import pass_at_k
from preceptor.miniature.arithmetic import CHARACTERS, writer_of, written
from preceptor.miniature.run import Size
from preceptor.miniature.toys import Rows

END_THINK = CHARACTERS.index("=")
"""The character that ends the thinking."""
LENGTH = 14
"""Characters of a text at most: three times three of dithering, the largest, the smallest, the end, the answer, the end of the text."""


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """One world of one seed."""

    pool: Batch  # prompts to practise on, with ``answer`` (N,): the character that is right
    test: Batch  # others
    student: nn.Module  # learned from demonstrations; answers in part


def thinking(seed: int, size: Size = "full", *, steps: int) -> Thinking:
    """8,000 prompts, 200 others, and a student that learned demonstrations of the first.

    Args:
        seed: of the prompts, the demonstrations and the weights.
        size: ``"smoke"`` has 40 prompts and 20 others.
        steps: updates of the student on demonstrations; 200 leave a fifth of its answers wrong, 400 a thirtieth.
    Raises:
        ImportError: transformers is missing (one line says what to install).
    """
    draw = random.Random(seed)
    number, tests, batch_size = (8000, 200, 64) if size == "full" else (40, 20, 16)
    prompts = [f"{i:05}" for i in draw.sample(range(100_000), number + tests)]
    texts = [(f"{digits}=", demonstration(digits, draw)) for digits in prompts]
    whole = written(texts, answer_size=LENGTH)
    answers = torch.tensor([CHARACTERS.index(text[-2]) for _, text in texts])
    pool, test = (
        {
            "prompt": {key: value[part] for key, value in whole["prompt"].items()},
            "answer": answers[part],
            "id": whole["id"][part],
        }
        for part in (slice(number), slice(number, None))
    )
    student = writer_of(written(texts[:number], answer_size=LENGTH), steps=steps, batch_size=batch_size, seed=seed)
    return Thinking(pool=pool, test=test, student=student)


def demonstration(digits: str, draw: random.Random) -> str:
    """How the digits are thought about and answered."""
    text = ""
    for step in (max(digits), min(digits), "="):
        dithering = draw.random() < 0.3
        for _ in range(3):
            if not dithering:
                break
            text += draw.choice("+-c")
            dithering = draw.random() < 0.6
        text += step
    return f"{text}{sorted(digits)[2]}."


def answered_right(batch: Batch, completions: Completions) -> Tensor:
    """Whether each text ends with the end of thinking, the right digit and the end of the text: (N,), bool."""
    size = completions.mask.sum(1, keepdim=True)
    end, answer = (completions.ids.gather(1, (size - back).clamp(min=0)).squeeze(1) for back in (3, 2))
    return completions.finished & (size.squeeze(1) >= 3) & (end == END_THINK) & (answer == batch["answer"])


def practised(method: Method, world: Thinking, *, steps: int, seed: int) -> nn.Module:
    """The student after so many updates by a method, each on 16 prompts of the pool."""
    student = copy.deepcopy(world.student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4)
    train(method, {"student": student}, Rows(world.pool, batch_size=16, seed=seed), optimizer, steps=steps, seed=seed, clip=1.0)
    return student


def measured(student: nn.Module, batch: Batch, *, answers: int = 16) -> dict[str, float]:
    """What a student writes, ``answers`` times after each prompt, at temperature 1.

    ``accuracy`` is the share of right answers, ``pass_at_8`` that of prompts of which one of 8 is right (estimated without bias),
    ``entropy`` the mean over all tokens in nats, ``think_entropy`` and ``answer_entropy`` the means over texts of those of the phases,
    ``think_tokens`` the tokens before the end of thinking, ``correlation`` that of the entropy and the length of the thinking over texts.
    """
    made, asked, completions = roll_out(batch, student, State(total_steps=1), answers=answers, max_new_tokens=LENGTH)
    right = answered_right(asked, completions).view(-1, answers)
    entropies, mask = made["sampling_entropies"], made["mask"]
    think, answer, k = phase_entropies(entropies, made["y"], mask, END_THINK)
    tokens = (mask & (torch.arange(mask.shape[1]) < k.unsqueeze(1))).sum(1).float()
    spread = min(float(think.std()), float(tokens.std()))
    return {
        "accuracy": float(right.double().mean()),
        "pass_at_8": float(pass_at_k(right.sum(1), answers, 8).mean()),
        "entropy": float(entropies[mask].mean()),
        "think_entropy": float(think.mean()),
        "answer_entropy": float(answer.mean()),
        "think_tokens": float(tokens.mean()),
        "correlation": float(torch.corrcoef(torch.stack([think, tokens]))[0, 1]) if spread > 0 else 0.0,
    }
