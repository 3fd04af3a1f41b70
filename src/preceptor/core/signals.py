"""SIGTERM and SIGINT, answered where the work can be saved instead of in the middle of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """A signal ended the run after a finished, saved step, or a study between two trials (step None).

    Attributes:
        exit_code: 128 + the signal's number.
    """

    def __init__(self, number: int, step: int | None, out: Path | None) -> None:
        self.exit_code = 128 + number
        when = "between two trials" if step is None else f"after step {step}"
        where = f"saved in {out}" if out is not None else "not saved: there is no out"
        super().__init__(f"{signal.Signals(number).name} {when}, {where}")


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them; a second one kills at once.

    Only the main thread can, and of two of these, one inside the other, only the outer one does: it saves what a signal must not lose.
    The yielded list holds the number of the signal that came, if one did.
    """
    catch = _Catch({number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)})
    inside = any(isinstance(handler, _Catch) for handler in catch.before.values())
    if inside or threading.current_thread() is not threading.main_thread():
        yield catch.caught
        return
    try:
        for number in catch.before:
            signal.signal(number, catch)
        yield catch.caught
    finally:
        catch.restore()


class _Catch:
    """A signal handler that remembers the signal and puts back the handlers from ``before``."""

    def __init__(self, before: Mapping[int, Any]) -> None:
        self.before, self.caught = before, list[int]()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.caught.append(number)
        self.restore()

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
