"""Arrow shards that are appended to, one record batch after the other, and survive a kill at any moment.

A shard is an Arrow IPC stream. While it grows it is called ``.shard-00000.arrow.partial``, and a journal holds one line per record batch:
where it ends, and the SHA-256 of the shard up to there. A batch counts when its line is on the disk; what stands behind the last such batch
is cut off. So a build that was killed goes on as if it never had been, to the byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preceptor.core.files import sync, sync_folder, write_whole
from preceptor.core.optional import require
from preceptor.teachers.coding import decode, encode, rice_parameters

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
JOURNAL = ".journal.jsonl"


def arrow() -> Any:
    """The package pyarrow.

    Raises:
        ImportError: it is not installed.
    """
    return require("pyarrow", extra="llm", purpose="teacher caches")


@dataclass(frozen=True)
class Column:
    """One array of a cache: (items, *shape). Integers of a coded one are written by `preceptor.teachers.coding`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    coded: bool


def record_batch(plain: Mapping[str, Any], columns: Sequence[Column], arrays: Mapping[str, NDArray], items: NDArray[np.integer]) -> Any:
    """One record batch of some rows.

    Args:
        plain: further columns: numbers (rows,), or what `lists` made.
        columns: what ``arrays`` hold.
        arrays: by column name, (sum of items, *shape), rows one after the other.
        items: (rows,), items of each row.
    Returns:
        A pyarrow.RecordBatch. A coded column is followed by NAME_bits: the parameters of the batch, in its first row.
    """
    pa = arrow()
    made = {name: pa.array(values) if isinstance(values, np.ndarray) else values for name, values in plain.items()}
    ends = np.cumsum(items)
    for column in columns:
        values = arrays[column.name]
        if not column.coded:
            made[column.name] = lists(values.reshape(-1), items * int(np.prod(column.shape)))
            continue
        parameters = rice_parameters(values)
        rows = [encode(values[end - n : end], parameters) for n, end in zip(items, ends, strict=True)]
        made[column.name] = lists(np.concatenate(rows), [len(row) for row in rows])
        made[f"{column.name}_bits"] = lists(parameters, [len(parameters)] + [0] * (len(items) - 1))
    return pa.record_batch(made)


def read_rows(batch: Any, rows: Sequence[int], items: Sequence[int], columns: Sequence[Column]) -> dict[str, NDArray]:
    """The arrays of some rows of a record batch, rows one after the other; ``items`` of each row."""
    found = {}
    for column in columns:
        parts = list_rows(batch, column.name, rows)
        if column.coded:
            found[column.name] = decode(parts, items, list_rows(batch, f"{column.name}_bits", [0])[0])
        else:
            found[column.name] = np.concatenate(parts).reshape(sum(items), *column.shape)
    return found


def list_rows(batch: Any, name: str, rows: Sequence[int]) -> list[NDArray]:
    """The lists of some rows of a column, without a copy."""
    column = batch.column(name)
    ends, values = column.offsets.to_numpy(), column.values.to_numpy()
    return [values[ends[row] : ends[row + 1]] for row in rows]


def lists(values: NDArray, lengths: Sequence[int] | NDArray[np.integer]) -> Any:
    """An Arrow column of lists of these lengths, whose entries are ``values`` one after the other."""
    pa = arrow()
    return pa.LargeListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)), pa.array(values))


class Writer:
    """Appends record batches, and goes on with what an earlier process had written.

    Args:
        folder: where the shards lie; it must exist when the first batch comes.
        shard_bytes: a shard that has grown to this size is closed.
    Attributes:
        done: the journal, one entry per record batch.
    """

    def __init__(self, folder: Path, *, shard_bytes: int) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.done: list[dict[str, Any]] = []
        self.digest = hashlib.sha256()
        if (folder / JOURNAL).exists():
            self._recover()

    def append(self, batch: Any, facts: Mapping[str, Any]) -> None:
        """Write a record batch and its journal line, both on the disk when this returns; the line holds ``facts``."""
        full = not self.done or self.done[-1]["end"] >= self.shard_bytes
        shard = (self.done[-1]["shard"] if self.done else -1) + full
        data = batch.serialize().to_pybytes()
        if full:
            self.digest = hashlib.sha256()
            self._partial(shard).unlink(missing_ok=True)
            data = batch.schema.serialize().to_pybytes() + data
        self.digest.update(data)
        with self._partial(shard).open("ab") as file:
            file.write(data)
            end = file.tell()
            sync(file)
        line = {**facts, "shard": shard, "end": end, "sha256": self.digest.hexdigest()}
        with (self.folder / JOURNAL).open("a") as file:
            file.write(json.dumps(line) + "\n")
            sync(file)
        self.done.append(line)
        if end >= self.shard_bytes:
            self._close(shard)

    def finish(self) -> list[dict[str, Any]]:
        """End the last shard; name, SHA-256, bytes, rows and items of every shard.

        Raises:
            ValueError: a shard is not what was written.
        """
        if self.done and self.done[-1]["end"] < self.shard_bytes:
            self._close(self.done[-1]["shard"])
        shards = []
        for shard, group in groupby(self.done, key=itemgetter("shard")):
            path, lines = self.folder / shard_name(shard), list(group)
            end = lines[-1]["end"]
            digests = _digests(path, [end, end + len(END_OF_STREAM)])
            if len(digests) < 2 or digests[0].hexdigest() != lines[-1]["sha256"]:
                raise ValueError(f"cache {self.folder}: {path.name} was altered while the cache was being built; delete the cache")
            counts = {key: sum(line[key] for line in lines) for key in ("rows", "items")}
            shards.append({"name": path.name, "sha256": digests[1].hexdigest(), "bytes": end + len(END_OF_STREAM), **counts})
        return shards

    def _recover(self) -> None:
        """Read the journal, and cut off what stands behind the last batch that is whole."""
        for line in (self.folder / JOURNAL).read_bytes().split(b"\n")[:-1]:  # what follows the last line break is torn
            self.done.append(json.loads(line))
        if not self.done:
            return
        shard = self.done[-1]["shard"]
        lines = [line for line in self.done if line["shard"] == shard]
        partial, final = self._partial(shard), self.folder / shard_name(shard)
        if final.exists():
            final.rename(partial)
        digests = _digests(partial, [line["end"] for line in lines]) if partial.exists() else []
        good = sum(digest.hexdigest() == line["sha256"] for digest, line in zip(digests, lines, strict=False))
        self.done = self.done[: len(self.done) - len(lines) + good]
        write_whole(self.folder / JOURNAL, "".join(json.dumps(line) + "\n" for line in self.done))
        if good:
            os.truncate(partial, lines[good - 1]["end"])
            self.digest = digests[good - 1]
            if lines[good - 1]["end"] >= self.shard_bytes:
                self._close(shard)

    def _close(self, shard: int) -> None:
        with self._partial(shard).open("ab") as file:
            file.write(END_OF_STREAM)
            sync(file)
        self._partial(shard).rename(self.folder / shard_name(shard))
        sync_folder(self.folder)

    def _partial(self, shard: int) -> Path:
        return self.folder / f".{shard_name(shard)}.partial"


def shard_name(shard: int) -> str:
    """Name of the file of a shard."""
    return f"shard-{shard:05}.arrow"


def read_shard(path: Path) -> list[Any]:
    """The record batches of a shard, mapped into memory."""
    ipc = arrow().ipc
    return list(ipc.open_stream(arrow().memory_map(str(path))))


def _digests(path: Path, ends: Sequence[int]) -> list[Any]:
    """SHA-256 of the beginnings of a file up to these offsets, for as many of them as it is long."""
    digest, found = hashlib.sha256(), []
    with path.open("rb") as file:
        for end in ends:
            digest.update(file.read(end - file.tell()))
            if file.tell() < end:
                break
            found.append(digest.copy())
    return found
