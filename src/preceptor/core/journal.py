"""What a run writes while it trains: one line per update and per validation.

Lines are strict JSON, which has no NaN: a number that is not finite is written as "nan", "inf" or "-inf", which ``float`` reads back.
"""

from __future__ import annotations

import json
import math
import os
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from preceptor.core.files import sync
from preceptor.core.state import CheckpointError
from preceptor.core.types import Record


class Journal:
    """``metrics.jsonl``, byte for byte equal for equal runs, and ``timings.jsonl``, which holds what differs from run to run.

    Args:
        folder: where they go; None writes nothing.
        resume: whether the folder may hold an earlier part of this run.
        tracker: an accelerator whose trackers hear of everything too; None for none.
    Raises:
        ValueError: the folder holds another run.
        CheckpointError: the folder cannot be written to; so do the methods raise, when there is no room.
    """

    def __init__(self, folder: Path | None, *, resume: bool, tracker: Accelerator | None) -> None:
        self.folder, self.tracker = folder, tracker
        self.metrics = self.timings = None
        if folder is not None:
            with self._writing():
                folder.mkdir(parents=True, exist_ok=True)
            if not resume and (folder / "metrics.jsonl").exists():
                raise ValueError(f"out: {folder} holds another run; resume it, or choose another folder")

    def truncate(self, position: int) -> None:
        """Forget the lines written after the checkpoint that is being resumed; ``position`` is their length in bytes.

        Raises:
            CheckpointError: the file is shorter than that.
        """
        if self.folder is None:
            return
        path = self.folder / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size < position:
            raise CheckpointError(f"{path}: expected the {position} bytes that the checkpoint was saved with, got {size}")
        if size > position:
            os.truncate(path, position)

    def __enter__(self) -> Journal:
        if self.folder is not None:
            with self._writing():
                self.metrics = (self.folder / "metrics.jsonl").open("a", buffering=1)
                self.timings = (self.folder / "timings.jsonl").open("a", buffering=1)
        self.clock = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self.metrics, self.timings):
            if file is not None:
                with suppress(OSError):  # what matters was synced by `position`
                    file.close()

    def record(self, record: Record) -> None:
        """Write one update."""
        if self.metrics is not None and self.timings is not None:
            now, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            with self._writing():
                self.metrics.write(_line({key: value for key, value in asdict(record).items() if value not in (None, {})}))
                self.timings.write(f'{{"step": {record.step}, "seconds": {now - self.clock:.6f}, "peak_memory_mb": {peak:.1f}}}\n')
            self.clock = now
        if self.tracker is not None:
            self.tracker.log({**record.losses, **record.extras, "learning_rate": record.learning_rate}, step=record.step)

    def event(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Write one line ``{"step", KIND: values}``: a validation ("valid"), a dropped batch ("nonfinite")."""
        if self.metrics is not None:
            with self._writing():
                self.metrics.write(_line({"step": step, kind: values}))
        if self.tracker is not None:
            self.tracker.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def position(self) -> int:
        """Bring everything to the disk and return the length of metrics.jsonl in bytes."""
        if self.metrics is None or self.timings is None:
            return 0
        with self._writing():
            for file in (self.metrics, self.timings):
                sync(file)
        return self.metrics.tell()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"out: cannot write to {self.folder}, {(error.strerror or str(error)).lower()}") from error


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(_strict(entry), allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(entry) for key, entry in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
