"""What is said to a language model and what comes back: questions, answers, their price, and what may go wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

Prompt = str | Sequence[Mapping[str, str]]
"""One message of a user, or the messages of a chat: mappings with ``role`` and ``content``."""

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an answer is drawn.

    Args:
        temperature: >= 0; 0 takes the most likely token each time.
        top_p: in (0, 1]: only the fewest most likely tokens with at least this probability together are drawn.
        max_tokens: the most that may be written, at least 1.
        stop: texts before which an answer ends.
        seed: of the draws. It also tells several answers to one prompt apart: n answers are n seeds.
        extra: more parameters of an endpoint, such as ``{"reasoning_effort": "low"}``.
    Raises:
        ValueError: a number outside its range, or an empty stop.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: expected a number >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], got {self.top_p}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1, got {self.max_tokens}")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop: expected a tuple of texts, none of them empty, got {self.stop!r}")


@dataclass(frozen=True)
class Question:
    """What a backend is asked: messages, and perhaps options whose log-probabilities are wanted in the place of a text."""

    messages: tuple[dict[str, str], ...]
    settings: Settings
    options: tuple[str, ...] = ()

    def described(self, model: str) -> str:
        """All that an answer depends on, as one line of JSON."""
        return json.dumps({"model": model, "messages": self.messages, **asdict(self.settings), "options": self.options}, sort_keys=True)

    def key(self, model: str) -> str:
        """SHA-256 of what an answer depends on."""
        return hashlib.sha256(self.described(model).encode()).hexdigest()

    def bytes(self) -> int:
        """Size of the messages."""
        return sum(len(message["content"].encode()) for message in self.messages)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a backend said.

    ``log_probs`` belongs to a question with options: of each, in nats, -inf where it is not known to be more. Tokens of None were not
    counted by the server.
    """

    text: str = ""
    finish: str = "stop"
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    log_probs: tuple[float, ...] | None = None


class Fault(Exception):
    """Why there is no answer, in one line.

    Args:
        ends: ``again``: nothing, a second try may mend it, and after the last one the question has failed; ``down``: the same, but after
            the last one the run ends; ``question``: this question has failed; ``run``: no question can be answered.
        after: seconds that the server wants to be left alone.
    """

    def __init__(self, what: str, *, ends: Literal["again", "down", "question", "run"] = "again", after: float = 0.0) -> None:
        super().__init__(what)
        self.ends, self.after = ends, after


class Backend(Protocol):
    """Where answers come from. ``answer`` is called by ``parallel`` threads with at most ``batch`` questions each.

    It returns one entry for each question, a `Fault` for one that cannot be answered, or raises a `Fault` for all of them.
    """

    @property
    def model(self) -> str:
        """Whose answers they are; part of what identifies a question."""
        ...

    @property
    def batch(self) -> int:
        """Questions that are answered together at most."""
        ...

    @property
    def parallel(self) -> int:
        """Calls of ``answer`` at one time at most."""
        ...

    def answer(self, questions: Sequence[Question]) -> Sequence[Said | Fault]:
        """Try once."""
        ...


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Money per million tokens, >= 0."""

    input: float
    output: float

    def __post_init__(self) -> None:
        if not (0 <= self.input < float("inf") and 0 <= self.output < float("inf")):
            raise ValueError(f"prices: expected numbers >= 0 per million tokens, got {self.input} and {self.output}")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Of one answer."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What all answers of a journal together may take: tokens, read and written, and money in the unit of the prices; None: any amount."""

    tokens: int | None = None
    money: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("tokens", self.tokens), ("money", self.money)):
            if value is not None and not value >= 0:
                raise ValueError(f"budget.{name}: expected a number >= 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer, or in ``failed`` one line that says why there is none.

    Attributes:
        finish: ``stop``, or ``length`` for one cut at ``max_tokens``, or what else the endpoint said.
        prompt_tokens, completion_tokens: as counted by the backend; where it did not, one token for two bytes.
        cost: what it cost when it was paid for.
        seconds: from the question to the answer, without waits.
        cached: it came from the journal and was not paid for now.
        log_probs: see `Said`.
    """

    text: str = ""
    failed: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    cached: bool = False
    log_probs: tuple[float, ...] | None = None


@dataclass(kw_only=True)
class Spent:
    """What one `Chat` has used so far; ``requests`` counts every try."""

    tokens: int = 0
    money: float = 0.0
    answers: int = 0
    cached: int = 0
    failed: int = 0
    requests: int = 0

    def __str__(self) -> str:
        return (
            f"{self.answers} answers in {self.requests} requests, {self.tokens} tokens, cost {self.money:.4f};"
            f" {self.cached} more from the journal, {self.failed} failed"
        )


class ChatStopped(RuntimeError):
    """No more questions are asked; what was answered is in the journal, and the same call goes on from there.

    Attributes:
        answers: in the order of the prompts, None where there is none.
    """

    def __init__(self, what: str, answers: Sequence[Answer | None]) -> None:
        super().__init__(what)
        self.answers = list(answers)


def messages_of(prompt: Prompt, name: str) -> tuple[dict[str, str], ...]:
    """The messages of a prompt, checked.

    Args:
        name: what error messages call it.
    Raises:
        ValueError: no message, an unknown role, or text that is no Unicode.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    found = []
    for message in prompt if isinstance(prompt, Sequence) else [prompt]:
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES or not isinstance(message.get("content"), str):
            raise ValueError(f"{name}: expected messages with role ({', '.join(_ROLES)}) and content, got {str(message)[:80]!r}")
        try:
            message["content"].encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}: expected Unicode text, got {message['content'][error.start]!r} at character {error.start}") from None
        found.append({"role": message["role"], "content": message["content"]})
    if not found:
        raise ValueError(f"{name}: expected at least one message, got none")
    return tuple(found)
