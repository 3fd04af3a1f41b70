"""What a chat may spend: a question goes out only if what it may take still fits into the budget."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from preceptor.teachers.chat.journal import Journal
from preceptor.teachers.chat.types import Answer, Budget, Fault, Prices, Question

_LOOK = 0.1  # seconds after which a waiting thread looks whether the run has ended
_PER_MESSAGE = 8  # tokens that a chat template may put around a message


class Purse:
    """What was spent, and what the questions on their way may yet take.

    Raises:
        ValueError: a budget of money without prices.
    """

    def __init__(self, prices: Prices | None, budget: Budget | None, journal: Journal) -> None:
        self.prices, self.budget = prices or Prices(input=0.0, output=0.0), budget or Budget()
        if self.budget.money is not None and prices is None:
            raise ValueError("prices: expected prices per million tokens with a budget of money, got none")
        self.tokens, self.money = journal.spent()
        self._held: list[tuple[int, float]] = []
        self._change = threading.Condition()

    def take(self, questions: Sequence[Question], stop: threading.Event) -> tuple[int, float]:
        """Hold back what these questions may take, as soon as there is room.

        Raises:
            Fault: there is no room, and nothing on its way that may leave some.
        """
        read = sum(question.bytes() // 2 + _PER_MESSAGE * (len(question.messages) + 1) for question in questions)
        written = sum(1 if question.options else question.settings.max_tokens for question in questions)
        need = (read + written, self.prices.cost(read, written))
        with self._change:
            while not self._fits(need) and self._held and not stop.is_set():
                self._change.wait(_LOOK)
            if not self._fits(need):
                raise Fault(self._refusal(need), ends="run")
            self._held.append(need)
        return need

    def settle(self, held: tuple[int, float], answers: Sequence[Answer]) -> None:
        """Put what the answers took in the place of what was held back for them."""
        with self._change:
            self._held.remove(held)
            self.tokens += sum(answer.prompt_tokens + answer.completion_tokens for answer in answers)
            self.money += sum(answer.cost for answer in answers)
            self._change.notify_all()

    def _fits(self, need: tuple[int, float]) -> bool:
        tokens, money = (
            spent + sum(part) for spent, part in zip((self.tokens, self.money), zip(need, *self._held, strict=True), strict=True)
        )
        return (self.budget.tokens is None or tokens <= self.budget.tokens) and (self.budget.money is None or money <= self.budget.money)

    def _refusal(self, need: tuple[int, float]) -> str:
        if self.budget.tokens is not None and self.tokens + need[0] > self.budget.tokens:
            return f"budget: expected room for a question of up to {need[0]} tokens, got {self.tokens} of {self.budget.tokens} used"
        return f"budget: expected room for a question of up to {need[1]:.4g}, got {self.money:.4g} of {self.budget.money:.4g} spent"
