"""Learning while serving: a method of the loop that sees every batch once, answers it, and learns from it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from preceptor.core.loop import steps
from preceptor.core.method import Method, NonFinite
from preceptor.core.state import State
from preceptor.core.stream import Stream, as_stream
from preceptor.core.types import Batch, Roles
from preceptor.core.undo import remember

PREDICTION = "prediction"
"""Where in ``state.memory`` a method leaves its logits (N, C) for the batch, from before the update."""


class Online:
    """Answers a stream of batches and takes one turn of the loop with each.

    A batch whose loss or gradient is not finite is answered, and leaves no other trace than in `skipped` and in the positions of streams.

    Args:
        method: leaves its logits in ``state.memory["prediction"]``.
        roles: every network by name, what `Method.extra_roles` makes included; trained in place, in their own modes between calls.
        optimizers: one per phase by name.
        streams: further data that the method reads.
        updates: turns for each batch; the last one's logits are the answer, as in the released code of RMT.
        window: for streams of single examples: so many of the last are kept. The newest are answered among them by ``predict``, and the
            method learns when all have been renewed.
        predict: logits of a batch without learning; needed with a window.
        seed: of the method's own draws.
        accelerator: device and precision; a plain one by default.

    Raises:
        ValueError: a number below 1, or a window without ``predict``.
    """

    def __init__(
        self,
        method: Method,
        roles: Roles,
        optimizers: Mapping[str, Optimizer],
        *,
        streams: Mapping[str, Stream | Iterable[Batch]] | None = None,
        updates: int = 1,
        window: int | None = None,
        predict: Callable[[Batch, Roles], Tensor] | None = None,
        seed: int = 0,
        accelerator: Accelerator | None = None,
    ) -> None:
        for name, value in {"updates": updates, "window": window}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if window is not None and predict is None:
            raise ValueError("predict: expected a function beside a window, got None")
        self.method, self.roles, self.optimizers = method, roles, optimizers
        self.updates, self.window, self.predict = updates, window, predict
        self.accelerator = accelerator or Accelerator()
        self.state = State(total_steps=sys.maxsize, seed=seed)
        self.state.streams = {name: as_stream(stream) for name, stream in (streams or {}).items()}
        self.skipped = 0
        self._recent: Tensor | None = None
        self._new = 0
        for role in roles.values():
            role.to(self.accelerator.device)
        self._first = copy.deepcopy(self._everything())

    def adapt(self, batch: Batch) -> Tensor:
        """Answer a batch, then learn from it.

        Args:
            batch: ``x`` and what else the method reads; with a window ``x`` is a tensor, and nothing else is read.

        Returns:
            Logits (N, C), detached.
        """
        if self.window is None or self.predict is None:
            return self._learn(batch)
        x = batch["x"]
        self._recent = x if self._recent is None else torch.cat([self._recent, x])[-max(self.window, len(x)) :]
        self._new += len(x)
        kept = {"x": self._recent}
        if self._new < self.window:
            with torch.no_grad():
                return self.predict(kept, self.roles)[-len(x) :]
        self._new = 0
        return self._learn(kept)[-len(x) :]

    def reset(self) -> None:
        """Go back to how everything was at the beginning: networks, optimizers, memory, positions, draws of the method."""
        first = copy.deepcopy(self._first)
        for name, role in self.roles.items():
            role.load_state_dict(first["roles"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(first["optimizers"][name])
        for name, stream in self.state.streams.items():
            stream.load_state_dict(first["streams"][name])
        self.state.step, self.state.memory = 0, {}
        self.state.rng.manual_seed(self.state.seed)
        self.skipped, self._recent, self._new = 0, None, 0

    def _everything(self) -> dict[str, Any]:
        parts = {"roles": self.roles, "optimizers": self.optimizers, "streams": self.state.streams}
        return {what: {name: part.state_dict() for name, part in of.items()} for what, of in parts.items()}

    def _learn(self, batch: Batch) -> Tensor:
        for _ in range(self.updates):
            back = remember(self.method, self.roles, self.optimizers, {}, self.state)
            turn = steps(self.method, self.roles, _Given(batch), self.optimizers, state=self.state, accelerator=self.accelerator)
            with closing(turn):
                try:
                    next(turn)
                except NonFinite:
                    answer = self.state.memory[PREDICTION]
                    back()
                    self.state.memory[PREDICTION] = answer
                    self.skipped += 1
        return torch.as_tensor(self.state.memory[PREDICTION])


class _Given:
    """A stream of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __next__(self) -> Batch:
        return self.batch

    def scan(self) -> Iterator[Batch]:
        yield self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no position."""
