"""Where batches come from, as the loop sees it: endless, with a position that can be saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from preceptor.core.types import Batch


@runtime_checkable
class Stream(Protocol):
    """An endless iterator of batches whose position is checkpointed. A batch may carry ``epoch`` (int), which the loop takes out."""

    def __next__(self) -> Batch:
        """Return the next batch and move on."""
        ...

    def scan(self) -> Iterable[Batch]:
        """Make one finite pass over the data in a fixed order; moves no position."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position, made of numbers, strings, lists, dicts and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` returned."""
        ...


class Repeated:
    """Any iterable of batches (a list, a DataLoader), read again and again.

    The position is a number of batches: going to it reads and drops the ones before, so shuffling must depend on nothing but the pass
    or resuming is not exact. `preceptor.data.sources.Source` has no such limit.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = batches
        self.epoch = 0
        self.position = 0
        self.iterator: Iterator[Batch] | None = None

    def __next__(self) -> Batch:
        """Return the next batch, starting over at the end; a pass without a batch is a ValueError."""
        if self.iterator is None:
            self.iterator = iter(self.batches)
        try:
            batch = next(self.iterator)
        except StopIteration:
            if self.position == 0:
                raise ValueError("source: expected at least one batch per pass, got none") from None
            self.iterator, self.position, self.epoch = None, 0, self.epoch + 1
            return next(self)
        self.position += 1
        return {"epoch": self.epoch, **batch}

    def scan(self) -> Iterable[Batch]:
        """Make one pass."""
        return self.batches

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"epoch", "position"}``."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read up to the saved position."""
        self.epoch, self.position, self.iterator = state["epoch"], state["position"], None
        if self.position:  # at 0 the straight run has not begun its pass either, which may draw random numbers
            self.iterator = iter(self.batches)
            for _ in range(self.position):
                next(self.iterator)


def as_stream(source: Stream | Iterable[Batch]) -> Stream:
    """Return ``source`` itself when it is a `Stream`, else repeat it."""
    return source if isinstance(source, Stream) else Repeated(source)
