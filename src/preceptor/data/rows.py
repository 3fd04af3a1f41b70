"""Rows of batches: some of one, several batches as one, and rows kept in the memory of a run.

A row is one example. Tensors and lists as long as the batch hold one entry per row, everything else belongs to the batch as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.core.reduce import num_examples
from preceptor.core.types import Batch


def take(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch, in the order asked for.

    Args:
        batch: N rows; not edited.
        rows: int64 (n,) in [0, N), or bool (N,).
    """
    index = rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows
    return _take(batch, index, num_examples(batch))


def _take(value: Any, index: Tensor, total: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _take(entry, index, total) for key, entry in value.items()}
    if isinstance(value, Tensor) and value.ndim and len(value) == total:
        return value.index_select(0, index.to(value.device))
    if isinstance(value, list) and len(value) == total:
        return [value[i] for i in index.tolist()]
    return value


def join(batches: Sequence[Batch]) -> Batch:
    """Batches as one, row after row.

    Texts of different lengths (N, T) are padded with 0 on the right, those under ``prompt`` on the left, so that ``mask`` and
    ``attention_mask`` leave the padding out. What belongs to a batch as a whole is that of the first.

    Args:
        batches: at least one, with the same keys.
    Raises:
        ValueError: no batch, or keys that differ.
    """
    if not batches:
        raise ValueError("batches: expected at least one, got none")
    if any(batch.keys() != batches[0].keys() for batch in batches):
        raise ValueError(f"batches: expected the same keys in each, got {[sorted(batch) for batch in batches]}")
    return _join(batches, [num_examples(batch) for batch in batches], left=False)


def _join(values: Sequence[Any], totals: Sequence[int], *, left: bool) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {key: _join([value[key] for value in values], totals, left=left or key == "prompt") for key in first}
    if isinstance(first, Tensor) and first.ndim and len(first) == totals[0]:
        if first.ndim > 1:
            longest = max(value.shape[1] for value in values)
            values = [_padded(value, longest - value.shape[1], left) for value in values]
        return torch.cat(list(values))
    if isinstance(first, list) and len(first) == totals[0]:
        return [entry for value in values for entry in value]
    return first


def _padded(value: Tensor, missing: int, left: bool) -> Tensor:
    ends = (missing, 0) if left else (0, missing)
    return F.pad(value, (0, 0) * (value.ndim - 2) + ends) if missing else value


def keep_rows(memory: dict[str, Tensor | int | float], name: str, batch: Batch) -> None:
    """Store the tensors of a batch under ``NAME/KEY`` in place of those that were there; lists and single values are not stored."""
    for key in [key for key in memory if key.startswith(f"{name}/")]:
        del memory[key]
    _keep(memory, name, batch)


def _keep(memory: dict[str, Tensor | int | float], name: str, batch: Mapping[str, Any]) -> None:
    for key, value in batch.items():
        if isinstance(value, Mapping):
            _keep(memory, f"{name}/{key}", value)
        elif isinstance(value, Tensor):
            memory[f"{name}/{key}"] = value


def kept_rows(memory: Mapping[str, Tensor | int | float], name: str, like: Batch) -> Batch:
    """The rows that `keep_rows` stored, as a batch with the keys of ``like`` that were stored, and its single values.

    Args:
        memory: of the run.
        name: as they were stored.
        like: a batch on the device to use, with the same keys.
    """
    found: Batch = {}
    for key, value in like.items():
        place = f"{name}/{key}"
        if isinstance(value, Mapping):
            found[key] = kept_rows(memory, place, dict(value))
        elif isinstance(value, Tensor) and place in memory:
            found[key] = torch.as_tensor(memory[place]).to(value.device)
        elif not isinstance(value, (Tensor, list)):
            found[key] = value
    return found
