"""Questions about two handwritten digits side by side: verifiable answers, a teacher, a student, and a loop of competition between them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from preceptor.data.datasets import load
from preceptor.data.examples import examples_from
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import Labels, fit, seeded
from preceptor.models.reference import MLP
from preceptor.teachers.competition import Answerer, Augmentor, CompetitiveLoop, Item, Report, exact_match

QUESTIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "left": ("Which digit stands on the left?", lambda a, b: a),
    "right": ("Which digit stands on the right?", lambda a, b: b),
    "sum": ("How much are both digits together?", lambda a, b: a + b),
    "difference": ("How far are the two digits apart?", lambda a, b: abs(a - b)),
    "largest": ("Which of both digits is larger?", max),
    "smallest": ("Which of both digits is smaller?", min),
    "even": ("Is the left digit an even number?", lambda a, b: int(a % 2 == 0)),
    "ten": ("Are both digits together at least ten?", lambda a, b: int(a + b >= 10)),
}
"""Type -> the question and its answer, in [0, 18]."""

_KINDS = {kind: number for number, kind in enumerate(QUESTIONS)}


class TwoDigitsWorld:
    """Images of scikit-learn's digits, of which a test part is kept out of all questions but those of the evaluation.

    Args:
        seed: of the questions and the student.
        size: see `preceptor.miniature.run.Size`.
    """

    def __init__(self, seed: int, size: Size) -> None:
        full = size == "full"
        self.seed = seed
        self.steps, self.sizes = ((600, 300), (1500, 2000, 500, 3000)) if full else ((30, 10), (60, 60, 20, 100))
        self.teacher = _teacher(20_000 if full else 500, 3000 if full else 60)
        self.draw = random.Random(seed)
        given, pool, _, tests = self.sizes
        self.given, self.pool = self.questions(given), self.questions(pool)
        self.test = self.questions(tests, test=True)

    def questions(self, count: int, *, test: bool = False) -> list[Item]:
        """So many questions about images drawn at random."""
        return _questions(count, self.draw, test=test)

    def like(self, item: Item, count: int, hard: bool) -> list[Item]:
        """The same question about other images of the same digits; or, where the item was easy, any questions."""
        return _like(item, count, self.draw) if hard else self.questions(count)

    def compete(self, loop: CompetitiveLoop, *, augmentor: Augmentor | None = None, teacher: nn.Module | None = None) -> list[Report]:
        """Run a loop with a new student, an MLP 96-96, and return its reports; ``accuracy`` is of the true answers."""
        student = seeded(lambda: MLP(inputs=136, hidden=(96, 96), classes=19), self.seed)
        self.draw = random.Random(self.seed)

        def tune(items: Sequence[Item], number: int) -> None:
            answers = torch.tensor([int(item.answer) for item in items])
            fit(Labels(), {"student": student}, examples_from((_inputs(items), answers), 19), steps=self.steps[number > 0], seed=number)

        def evaluate() -> dict[str, float]:
            said = answerer(student)(self.test)
            return {"accuracy": sum(a == truth(item) for a, item in zip(said, self.test, strict=True)) / len(self.test)}

        return list(
            loop.run(
                self.given,
                self.pool,
                teacher=answerer(teacher or self.teacher),
                student=answerer(student),
                assessor=exact_match(truth),
                augmentor=augmentor or self.like,
                tune=tune,
                evaluate=evaluate,
                held_out=self.test,
                seed=self.seed,
            )
        )


def answerer(model: nn.Module) -> Answerer:
    """The answers of a network."""

    def answer(items: Sequence[Item]) -> list[str]:
        if not items:
            return []
        with torch.no_grad():
            return [str(number) for number in model(_inputs(items)).argmax(dim=1).tolist()]

    return answer


def truth(item: Item) -> str:
    """The true answer."""
    digits = _digits()[1]
    left, right = item.image  # pyright: ignore[reportGeneralTypeIssues]
    return str(QUESTIONS[item.kind][1](digits[left], digits[right]))


def _questions(count: int, draw: random.Random, *, test: bool = False) -> list[Item]:
    rows = _digits()[2][test]
    kinds = draw.choices(list(QUESTIONS), k=count)
    return [Item(instruction=QUESTIONS[kind][0], kind=kind, image=(draw.choice(rows), draw.choice(rows))) for kind in kinds]


def _like(item: Item, count: int, draw: random.Random) -> list[Item]:
    _, digits, _, by_digit = _digits()
    left, right = item.image  # pyright: ignore[reportGeneralTypeIssues]
    pairs = [(draw.choice(by_digit[digits[left]]), draw.choice(by_digit[digits[right]])) for _ in range(count)]
    return [Item(instruction=item.instruction, kind=item.kind, image=pair) for pair in pairs]


def _inputs(items: Sequence[Item]) -> Tensor:
    """Pixels of both digits and the question, (N, 136)."""
    images = _digits()[0]
    pairs = torch.tensor([item.image for item in items])
    asked = torch.nn.functional.one_hot(torch.tensor([_KINDS[item.kind] for item in items]), len(_KINDS))
    return torch.cat([images[pairs].flatten(1), asked.float()], dim=1)


@cache
def _digits() -> tuple[Tensor, list[int], dict[bool, list[int]], dict[int, list[int]]]:
    """Pixels (N, 64), digits, the rows of the test part and of the rest, and the rows of the rest by digit."""
    data = load("digits")
    whole = data.train.inputs
    assert isinstance(whole, Tensor)
    digits = data.train.all_labels.tolist()
    rows = {True: data.test.ids.tolist(), False: data.train.ids.tolist()}
    by_digit = {digit: [row for row in rows[False] if digits[row] == digit] for digit in range(10)}
    return whole.flatten(1).float(), digits, rows, by_digit


@cache
def _teacher(count: int, steps: int) -> nn.Module:
    """An MLP 384-384 that saw the true answers of so many questions; the same for all seeds."""
    items = _questions(count, random.Random(0))
    known = examples_from((_inputs(items), torch.tensor([int(truth(item)) for item in items])), 19)
    teacher = seeded(lambda: MLP(inputs=136, hidden=(384, 384), classes=19), 0)
    fit(Labels(), {"student": teacher}, known, steps=steps, batch_size=100, seed=0)
    return teacher.eval()


def untrained_teacher(seed: int) -> nn.Module:
    """Built like the teacher, with random weights."""
    return seeded(lambda: MLP(inputs=136, hidden=(384, 384), classes=19), seed + 1)


def loop_of(size: Size, *, tau: float = 1.0, hard_share: float = 1.0) -> CompetitiveLoop:
    """Four rounds, or two for a quick look; questions are few, so that the same question about another image is new."""
    full = size == "full"
    sizes = {"rounds": 4, "num_pool": 2000, "num_new": 500} if full else {"rounds": 2, "num_pool": 60, "num_new": 20}
    return CompetitiveLoop(**sizes, tau=tau, hard_share=hard_share, per_image=True, stop_share=0.0, patience=10)
