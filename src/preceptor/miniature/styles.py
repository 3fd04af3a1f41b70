"""Digits classified by tiny students of a maskable teacher, and answered in two tokens: a style, then the digit in the style's code."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.types import Batch
from preceptor.data.datasets import load
from preceptor.data.examples import Examples
from preceptor.data.splits import holdout
from preceptor.losses.divergence import generalized_jsd
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import Labels, World, fit, seeded
from preceptor.models.reference import MLP
from preceptor.teachers.masked import masked_teacher

_BEGIN, _VOCABULARY, _ANSWERS = 12, 12, 8  # ten digits, two styles, and a token that opens every answer


def mask_world(seed: int, size: Size) -> tuple[World, nn.Module]:
    """Digits of 8 x 8 pixels, an MLP teacher of 256-256 units, students of six; and the teacher without 80 % of its weights."""
    pool, valid, test, teacher = _digits(300 if size == "full" else 10)
    masked = copy.deepcopy(teacher)
    with masked_teacher(masked, 0.8):
        weights = copy.deepcopy(masked.state_dict())
    masked.load_state_dict(weights)
    world = World(
        train=pool,
        valid=valid,
        test=test,
        teacher=copy.deepcopy(teacher),
        untrained=seeded(lambda: MLP(inputs=64, hidden=(256, 256)), seed),
        student=lambda: seeded(lambda: MLP(inputs=64, hidden=(6,)), seed),
    )
    return world, masked


class StyleModel(nn.Module):
    """Logits (N, 2, 12) of the two tokens of an answer, from pixels (N, 64) and the tokens before each (N, 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64 + _BEGIN + 1, width), nn.ReLU(), nn.Linear(width, _VOCABULARY))

    def forward(self, pixels: Tensor, input_ids: Tensor) -> Tensor:
        """Both positions at once."""
        before = F.one_hot(input_ids, _BEGIN + 1).to(pixels.dtype)
        return self.body(torch.cat([pixels.unsqueeze(1).expand(-1, 2, -1), before], dim=-1))


@dataclass(frozen=True, kw_only=True)
class StyleWorld:
    """A teacher with noisy labels, a student that it has taught, and answers of both with their accuracy."""

    teacher: StyleModel
    student: StyleModel
    batches: tuple[Batch, ...]
    pixels: Tensor
    correct: Tensor  # (N, 2): the token of the right digit in each style
    steps: int

    def taught(self, method: Method) -> dict[str, float]:
        """Train a copy of the student on the answers and measure it on the test part."""
        student = copy.deepcopy(self.student)
        roles: dict[str, nn.Module] = {"student": student, "teacher": copy.deepcopy(self.teacher)}
        roles |= method.extra_roles(roles, self.batches[0])
        train(method, roles, self.batches, torch.optim.AdamW(student.parameters(), lr=5e-4), steps=self.steps)
        return self.measured(student)

    @torch.no_grad()
    def measured(self, student: StyleModel) -> dict[str, float]:
        """Probability of a right answer, and of the style on which the student was nearer to the teacher at first."""
        styles, digits = _both(student, self.pixels)
        right = styles * digits.gather(2, self.correct.unsqueeze(-1)).squeeze(-1)
        first, says = (_both(model, self.pixels)[1].log() for model in (self.student, self.teacher))
        easy = int(generalized_jsd(first, says).mean(0).argmin())
        return {"right": float(right.sum(1).mean()), "easy": float(styles[:, easy].mean())}


def style_world(seed: int, size: Size) -> StyleWorld:
    """The second style writes a permuted digit; teachers see wrong digits in 35 % of their texts, students never see a label.

    Every question has four answers of the teacher and four of the student. The seed draws the code, all weights and all texts.
    """
    full = size == "full"
    pool, _, test, _ = _digits(300 if full else 10)
    generator = torch.Generator().manual_seed(seed)
    code = torch.randperm(10, generator=generator)
    (x, y), (test_x, test_y) = _whole(pool), _whole(test)

    def texts(tokens: Tensor, rows: Tensor) -> Batch:
        before = torch.stack([torch.full_like(tokens[:, 0], _BEGIN), tokens[:, 0]], dim=1)
        return {"x": {"pixels": x[rows], "input_ids": before}, "y": tokens, "mask": torch.ones_like(tokens), "id": rows}

    def noisy() -> Batch:
        rows = torch.randint(len(x), (100,), generator=generator)
        styles = torch.randint(2, (100,), generator=generator)
        wrong = torch.rand(100, generator=generator) < 0.35
        digit = torch.where(wrong, torch.randint(10, (100,), generator=generator), y[rows])
        return texts(torch.stack([10 + styles, torch.where(styles == 1, code[digit], digit)], dim=1), rows)

    teacher, student = (seeded(lambda width=width: StyleModel(width), seed) for width in (128, 16))
    assert isinstance(teacher, StyleModel)
    assert isinstance(student, StyleModel)
    batches = [noisy() for _ in range(300 if full else 4)]
    for model, target in ((teacher, None), (student, teacher)):
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for batch in batches:
            logits = model(**batch["x"])
            if target is None:
                loss = F.cross_entropy(logits.flatten(0, 1), batch["y"].flatten())
            else:
                loss = generalized_jsd(logits, target(**batch["x"]).detach()).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    answered = []
    for questions in torch.randperm(len(x), generator=generator)[:1000].split(25)[: 40 if full else 2]:
        rows = questions.repeat_interleave(_ANSWERS)
        by_teacher = torch.arange(len(rows)) % _ANSWERS < _ANSWERS // 2
        tokens = torch.where(by_teacher.unsqueeze(1), _written(teacher, x[rows], generator), _written(student, x[rows], generator))
        right = torch.where(tokens[:, 0] == 11, code[y[rows]], y[rows])
        answered.append({**texts(tokens, rows), "accuracy": ((tokens[:, 1] == right) & (tokens[:, 0] >= 10)).float()})
    return StyleWorld(
        teacher=teacher,
        student=student,
        batches=tuple(answered),
        pixels=test_x,
        correct=torch.stack([test_y, code[test_y]], dim=1),
        steps=200 if full else 3,
    )


@torch.no_grad()
def _both(model: StyleModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (N, 2) of both styles, and (N, 2, 12) of the token after each."""
    begin = torch.full((len(pixels), 2), _BEGIN)
    styles = model(pixels, begin)[:, 0].softmax(-1)[:, 10:]
    return styles, model(pixels, torch.tensor([10, 11]).expand(len(pixels), 2)).softmax(-1)


@torch.no_grad()
def _written(model: StyleModel, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """One answer (N, 2) to each row."""
    ids = torch.full((len(pixels), 2), _BEGIN)
    style = torch.multinomial(model(pixels, ids)[:, 0].softmax(-1), 1, generator=generator)
    digit = torch.multinomial(model(pixels, style.expand(-1, 2))[:, 1].softmax(-1), 1, generator=generator)
    return torch.cat([style, digit], dim=1)


def _whole(examples: Examples) -> tuple[Tensor, Tensor]:
    batch = examples.batch(torch.arange(len(examples)))
    return batch["x"].flatten(1), batch["y"]


@cache
def _digits(steps: int) -> tuple[Examples, Examples, Examples, nn.Module]:
    """What all seeds share: pool, validation and test parts, and the classifier that masks are tried on."""
    data = load("digits")
    pool, valid = holdout(data.train, rate=0.1, seed=0)
    teacher = seeded(lambda: MLP(inputs=64, hidden=(256, 256)), 0)
    fit(Labels(), {"student": teacher}, pool, steps=steps, batch_size=100, seed=0)
    return pool, valid, data.test, teacher.eval()
