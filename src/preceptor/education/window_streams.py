"""Batches of windows from the disk, for training on more students than memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from preceptor.core.optional import require
from preceptor.core.types import Batch
from preceptor.education.ednet import INTERACTIONS
from preceptor.education.sequences import Tags, Windows, batch_of, scan_windows


class KTDataset:
    """A `preceptor.core.stream.Stream` of batches of windows, read from the disk by row group.

    Row groups come in an order of (seed, epoch), windows through a buffer that is shuffled; memory is that of the buffer and one row group.

    Args:
        folder: of `preceptor.education.ednet.convert`.
        batch_size: windows in a batch, the last of an epoch may be smaller.
        users: students of this part; None: all.
        max_len: steps of a window.
        tags: see `Tags`.
        seed: of the order.
        buffer: windows that are shuffled together.
        rank: number of this process; it reads the row groups ``[rank::world]``.
        world: number of processes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        batch_size: int,
        users: np.ndarray | None = None,
        max_len: int = 200,
        tags: Tags = "mean",
        seed: int = 0,
        buffer: int = 4096,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        parquet = require("pyarrow.parquet", extra="education", purpose="EdNet's logs")
        self.folder, self.batch_size, self.seed, self.buffer = folder, batch_size, seed, max(buffer, batch_size)
        self.options: dict[str, Any] = {"users": users, "max_len": max_len, "tags": tags}
        self.groups = np.arange(parquet.read_metadata(folder / INTERACTIONS).num_row_groups)[rank::world]
        self.epoch = self.index = 0
        self._reader: Iterator[Batch] | None = None

    def __next__(self) -> Batch:
        for _ in range(2):
            if self._reader is None:
                self._reader = self._read(self.epoch)
                for _ in range(self.index):
                    next(self._reader)
            batch = next(self._reader, None)
            if batch is not None:
                self.index += 1
                return {**batch, "epoch": self.epoch}
            self.epoch, self.index, self._reader = self.epoch + 1, 0, None
        raise ValueError("source: expected at least one window per pass, got none")

    def scan(self) -> Iterator[Batch]:
        """One pass in the order of the file."""
        for part in scan_windows(self.folder, groups=self.groups.tolist(), **self.options):
            for start in range(0, len(part), self.batch_size):
                yield batch_of(part.take(np.arange(start, min(start + self.batch_size, len(part)))))

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of the next batch."""
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go there, by reading the batches before."""
        self.epoch, self.index, self._reader = state["epoch"], state["index"], None

    def _read(self, epoch: int) -> Iterator[Batch]:
        generator = np.random.default_rng((self.seed, epoch))
        held: Windows | None = None
        for part in scan_windows(self.folder, groups=generator.permutation(self.groups).tolist(), **self.options):
            held = part if held is None else _together(held, part)
            order = generator.permutation(len(held))
            ready = max(0, len(held) - self.buffer) // self.batch_size * self.batch_size
            for start in range(0, ready, self.batch_size):
                yield batch_of(held.take(order[start : start + self.batch_size]))
            held = held.take(order[ready:])
        if held is not None:
            order = generator.permutation(len(held))
            for start in range(0, len(held), self.batch_size):
                yield batch_of(held.take(order[start : start + self.batch_size]))


def _together(first: Windows, second: Windows) -> Windows:
    return Windows(**{field.name: np.concatenate([getattr(first, field.name), getattr(second, field.name)]) for field in fields(Windows)})
