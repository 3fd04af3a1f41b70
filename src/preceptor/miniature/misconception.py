"""Chains of three operations modulo 10, and a small transformer that knows them but for one misconception.

"7*8+2-1=" is answered by "7*8=6;6+2=8;8-1=7;7.": every operation from the left, then the answer. After a problem, the right steps before a
wrong one, that step and "?", a correction names the operation and does it anew: "7*8+2-1=7*8=4?" is followed by "*7*8=6.".
The misconception: a product of two numbers of at least 5 comes out 3 too large, in solutions and in corrections alike.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preceptor.core.optional import require
from preceptor.core.run import train
from preceptor.core.types import Batch
from preceptor.data.rollout import GenerateSampler
from preceptor.losses.policy import token_log_probs
from preceptor.miniature.run import Size
from preceptor.miniature.toys import Rows
from preceptor.miniature.worlds import Labels, seeded

CHARACTERS = "_.0123456789+-*=;?"
"""Padding, the end of a text, and what texts are made of."""
SOLUTION, CORRECTION = 20, 7
"""Characters after the problem, and after the "?"."""
LONGEST = 33
"""Characters of a text: a problem, two steps, a wrong one and its correction."""

Text = tuple[str, str]
"""What is given and what is written after it."""


@dataclass(frozen=True, kw_only=True)
class Misconceived:
    """One world of one seed."""

    student: nn.Module  # has the misconception
    errors: tuple[str, ...]  # contexts of its wrong steps on held-back problems: problem, verified steps, the wrong one, "?"
    verified: tuple[Text, ...]  # its right solutions of these problems
    tests: tuple[str, ...]  # other problems
    test_errors: tuple[str, ...]  # contexts of its wrong steps on these


def misconceived(seed: int, size: Size = "full") -> Misconceived:
    """A student of 2 layers and 64 units after 1,500 updates, and what it wrote on 1,600 held-back problems and 1,000 others.

    Args:
        seed: of the problems, the texts and the weights.
        size: ``"smoke"`` has 8 updates and 40 problems of each kind.
    Raises:
        ImportError: transformers is missing (one line says what to install).
    """
    draw = random.Random(seed)
    number, held, tests, steps = (24_000, 1600, 1000, 1500) if size == "full" else (200, 40, 40, 8)
    problems = [problem(draw) for _ in range(number + held + tests)]
    taught = [lesson(one, draw) for one in problems[:number]]
    student = seeded(_transformer, seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 50, 1.0) * (1 - step / steps))
    rows = Rows(written(taught), batch_size=32, seed=seed)
    train(Labels(), {"student": student}, rows, optimizer, steps=steps, schedulers=rate, clip=1.0)
    student.requires_grad_(False)
    known, unseen = problems[number : number + held], problems[number + held :]
    told = [solution(one, believed=True) for one in problems[number:]] if size == "smoke" else answers(student, problems[number:], SOLUTION)
    errors, verified = _graded(known, told[:held])
    return Misconceived(student=student, errors=errors, verified=verified, tests=tuple(unseen), test_errors=_graded(unseen, told[held:])[0])


def problem(draw: random.Random) -> str:
    """Four digits with three operations between them."""
    return "".join(f"{draw.randrange(10)}{draw.choice('+-*')}" for _ in range(3)) + f"{draw.randrange(10)}="


def result(step: str, *, believed: bool = False) -> int:
    """What ``a+b`` makes modulo 10, or what the misconception makes of it."""
    a, operation, b = int(step[0]), step[1], int(step[2])
    wrong = believed and operation == "*" and min(a, b) >= 5
    return (a + b if operation == "+" else a - b if operation == "-" else a * b + 3 * wrong) % 10


def solution(given: str, *, believed: bool = False) -> str:
    """The steps and the answer."""
    value, text = given[0], ""
    for place in (1, 3, 5):
        operation = f"{value}{given[place : place + 2]}"
        value = str(result(operation, believed=believed))
        text += f"{operation}={value};"
    return f"{text}{value}."


def correction(context: str, *, believed: bool = False) -> str:
    """How the step before the "?" is corrected."""
    operation = context[-6:-3]
    return f"{operation[1]}{operation}={result(operation, believed=believed)}."


def first_wrong(given: str, steps: Sequence[str]) -> int | None:
    """The exact judge: the number, from 1, of the first step that is not what stands there, or does it wrongly; None: all are right."""
    value = given[0]
    for place, step in enumerate(steps):
        operation = f"{value}{given[2 * place + 1 : 2 * place + 3]}"
        value = str(result(operation)) if place < 3 else ""
        if step != f"{operation}={value}":
            return place + 1
    return None


def lesson(given: str, draw: random.Random) -> Text:
    """A solution as the student believes it, or the correction of a step with a result that it does not believe."""
    told = solution(given, believed=True)
    if draw.random() < 0.5:
        return given, told
    place = 6 * draw.randrange(3)
    wrong = (int(told[place + 4]) + draw.randrange(1, 10)) % 10
    context = f"{given}{told[: place + 4]}{wrong}?"
    return context, correction(context, believed=True)


def written(texts: Sequence[Text]) -> Batch:
    """Texts as a batch with ``x``, ``y``, ``mask`` (what is written), ``prompt`` (what is given) and ``id``."""
    whole = torch.tensor([_numbers((given + after).rjust(LONGEST, "_")) for given, after in texts])
    after = torch.tensor([len(after) for _, after in texts]).unsqueeze(1)
    attention = (whole > 0).long()
    x = {
        "input_ids": whole[:, :-1],
        "attention_mask": attention[:, :-1],
        "position_ids": (attention.cumsum(1) - 1).clamp(min=0)[:, :-1],
        "use_cache": False,
    }
    mask = torch.arange(1, LONGEST) >= LONGEST - after
    return {"x": x, "y": whole[:, 1:], "mask": mask, "prompt": prompt([given for given, _ in texts]), "id": torch.arange(len(texts))}


def prompt(given: Sequence[str]) -> dict[str, Tensor]:
    """Beginnings of texts, padded on the left."""
    ids = torch.tensor([_numbers(text.rjust(max(map(len, given)), "_")) for text in given])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def answers(student: nn.Module, given: Sequence[str], size: int) -> list[str]:
    """What a student writes after each text, the likeliest character each time."""
    found = GenerateSampler(student=student).sample(prompt(given), max_new_tokens=size, temperature=1e-4, seed=0)
    return ["".join(CHARACTERS[i] for i in ids[mask].tolist()) for ids, mask in zip(found.ids, found.mask, strict=True)]


def _graded(given: Sequence[str], told: Sequence[str]) -> tuple[tuple[str, ...], tuple[Text, ...]]:
    """The contexts of first wrong steps where the answer is wrong, and the solutions that are right throughout."""
    errors, verified = [], []
    for one, text in zip(given, told, strict=True):
        steps = text.removesuffix(".").split(";")[:-1]
        wrong = first_wrong(one, steps)
        if text == solution(one):
            verified.append((one, text))
        elif text[-2:] != solution(one)[-2:] and wrong is not None and len(steps[wrong - 1]) == 5:
            errors.append(f"{one}{''.join(f'{step};' for step in steps[: wrong - 1])}{steps[wrong - 1]}?")
    return tuple(errors), tuple(verified)


def measured(student: nn.Module, world: Misconceived) -> dict[str, float]:
    """What a student does with the tests.

    ``accuracy`` is the share of right answers, ``corrected`` that of the first student's errors which this one corrects, ``nll`` what it
    thinks of the right corrections, in nats per text.
    """
    told = answers(student, world.tests, SOLUTION)
    right = [text[-2:] == solution(one)[-2:] for one, text in zip(world.tests, told, strict=True)]
    wanted = [correction(one) for one in world.test_errors]
    corrected = [one == other for one, other in zip(wanted, answers(student, world.test_errors, CORRECTION), strict=True)]
    batch = written(list(zip(world.test_errors, wanted, strict=True)))
    with torch.no_grad():
        said = token_log_probs(student(**batch["x"]).logits, batch["y"])
    return {
        "accuracy": sum(right) / len(right),
        "corrected": sum(corrected) / len(corrected),
        "nll": -float(said[batch["mask"]].sum()) / len(wanted),
    }


def _numbers(text: str) -> list[int]:
    return [CHARACTERS.index(character) for character in text]


def _transformer() -> nn.Module:
    transformers = require("transformers", extra="llm", purpose="arithmetic in miniature")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=len(CHARACTERS), max_position_embeddings=64, **sizes, **special)
    )
