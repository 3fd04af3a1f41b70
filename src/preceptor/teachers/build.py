"""Building a teacher cache: one pass over the data, which can be killed at any moment and gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preceptor.core.files import write_whole
from preceptor.core.signals import Interrupted, deferred_signals
from preceptor.core.state import compare_identity
from preceptor.core.types import Batch
from preceptor.data.hashing import hash_ids, uniform
from preceptor.losses.numeric import upcast
from preceptor.teachers.cache import HEADER, MANIFEST, Cache, Spec, read_manifest, write_manifest
from preceptor.teachers.shards import JOURNAL, Column, Writer, lists, record_batch
from preceptor.teachers.targets import KL_BOUND_PER_BUCKET, Arrays, Top, pack_sample, pack_top, pack_whole, sample, top_k

_ELEMENTS = 1 << 22  # logits that are looked at together

Said = Tensor | Mapping[str, Tensor] | Top
Answer = Callable[[Batch], Said]
"""What a teacher says about a batch: logits (N, C) or (N, T, V), features by layer (N, ...) or (N, T, ...), or the top of k of the items
that count, in their order."""


def build(
    folder: str | Path,
    batches: Iterable[Batch],
    answer: Answer,
    spec: Spec,
    *,
    progress: Callable[[int], None] | None = None,
    shard_bytes: int = 1 << 28,
) -> Cache:
    """Ask a teacher about every batch once, write what it says, and open the finished cache.

    Called again after a kill it goes on after the last batch on the disk, and the finished cache is the same to the byte; a finished one is
    opened.

    Args:
        folder: made when missing.
        batches: with ``id`` (N,), ``y`` (N,) or (N, T), ``mask`` where not all count, and ``epoch`` where there are several; the same ones,
            in the same order, in every call. Texts start at position 0 and are padded on the right.
        answer: called once per batch, without gradient.
        spec: what to keep, and whose answers they are.
        progress: called after every batch with the number of rows done.
        shard_bytes: a shard is closed when it has grown to this size.
    Raises:
        ValueError: another cache lies in the folder, the batches are not those of the interrupted build, k is larger than the number of
            classes, an answer is not finite or of another shape, an id comes twice in an epoch, or no position counts at all.
        Interrupted: SIGTERM or SIGINT; the last batch was finished and saved.
    """
    folder = Path(folder)
    header = folder / HEADER
    saved = read_manifest(folder)["spec"] if (folder / MANIFEST).exists() else json.loads(header.read_text()) if header.exists() else None
    if saved is not None:
        compare_identity(saved, asdict(spec), where=f"cache {folder}")
    if (folder / MANIFEST).exists():
        _tidy(folder)
        return Cache.open(folder)
    writer = Writer(folder, shard_bytes=shard_bytes)
    rows, number = sum(line["rows"] for line in writer.done), -1
    if progress is not None and rows:
        progress(rows)
    with deferred_signals() as caught, torch.no_grad():
        for number, batch in enumerate(batches):
            known = writer.done[number] if number < len(writer.done) else None
            ids = hashlib.sha256(batch["id"].cpu().numpy().tobytes()).hexdigest()[:16]
            if known is not None:
                if known["ids"] != ids:
                    raise ValueError(f"batches: expected those of the interrupted build in {folder}, got other ids in batch {number}")
                continue
            columns, made, items = _rows(batch, answer(batch), spec)
            if not writer.done:
                write_whole(header, json.dumps(asdict(spec)))
            described = [{**asdict(column), "shape": list(column.shape)} for column in columns]
            if writer.done and described != writer.done[0]["columns"]:
                raise ValueError(f"answer: expected arrays like {writer.done[0]['columns']} in every batch, got {described}")
            facts = {"rows": len(batch["id"]), "items": items, "ids": ids} | ({} if writer.done else {"columns": described})
            writer.append(made, facts)
            rows += len(batch["id"])
            if progress is not None:
                progress(rows)
            if caught:
                raise Interrupted(caught[0], number + 1, folder)
    if number + 1 < len(writer.done):
        raise ValueError(f"batches: expected the {len(writer.done)} of the interrupted build in {folder}, got {number + 1}")
    _finish(folder, writer, spec)
    return Cache.open(folder)


def _finish(folder: Path, writer: Writer, spec: Spec) -> None:
    """Write the manifest, the last thing: where it lies, the cache is whole."""
    items = sum(line["items"] for line in writer.done)
    if not items:
        rows = sum(line["rows"] for line in writer.done)
        raise ValueError(f"mask: expected at least one position that counts, got none in {rows} examples")
    shards = writer.finish()
    manifest = {
        "spec": asdict(spec),
        "columns": writer.done[0]["columns"],
        "shards": shards,
        "items": items,
        "bytes_per_item": round(sum(shard["bytes"] for shard in shards) / items, 3),
        "kl_bound": (spec.k + 1) * KL_BOUND_PER_BUCKET if spec.k and (spec.kind, spec.precision) == ("top-k", "compact") else None,
    }
    Cache(folder, {**manifest, "digest": ""})  # looks for ids that come twice
    write_whole(folder / MANIFEST, write_manifest(manifest))
    _tidy(folder)


def _tidy(folder: Path) -> None:
    for name in (HEADER, JOURNAL):
        (folder / name).unlink(missing_ok=True)


def _rows(batch: Batch, said: Said, spec: Spec) -> tuple[list[Column], Any, int]:
    """The columns, the record batch and the number of items of one batch."""
    mask = batch["mask"].cpu() != 0 if "mask" in batch else torch.ones(batch["y"].shape, dtype=torch.bool)
    items = mask.nonzero(as_tuple=True)
    if isinstance(said, Top):
        arrays = _tops(said, len(items[0]), spec)
    else:
        arrays = _features(said, items, batch, spec) if isinstance(said, Mapping) else _logits(said, items, batch, spec)
    coded = spec.precision == "compact"
    columns = [Column(name, value.shape[1:], str(value.dtype), coded and value.ndim == 2) for name, value in arrays.items()]
    counts = mask.reshape(len(mask), -1).sum(1).numpy()
    plain: dict[str, Any] = {
        "id": batch["id"].cpu().numpy(),
        "epoch": np.full(len(mask), batch.get("epoch", 0), np.int32),
        "items": counts.astype(np.int32),
    }
    if mask.ndim == 2:
        plain["length"] = np.full(len(mask), mask.shape[1], np.int32)
        plain["mask"] = lists(np.packbits(mask.numpy(), axis=1).ravel(), [-(-mask.shape[1] // 8)] * len(mask))
    return columns, record_batch(plain, columns, arrays, counts), int(counts.sum())


def _tops(said: Top, items: int, spec: Spec) -> Arrays:
    if (spec.kind, (items, spec.k)) != ("top-k", tuple(said.indices.shape)):
        raise ValueError(f"answer: expected {spec.kind} of {spec.k} for {items} items, got the top of k {tuple(said.indices.shape)}")
    return pack_top(*said, spec.precision)


def _features(said: Mapping[str, Tensor], items: tuple[Tensor, ...], batch: Batch, spec: Spec) -> Arrays:
    missing = [layer for layer in spec.layers if layer not in said]
    if missing:
        raise ValueError(f"answer: expected features of {', '.join(spec.layers)}, got {', '.join(said) or 'none'}")
    values = {layer: said[layer][tuple(i.to(said[layer].device) for i in items)] for layer in spec.layers}
    for layer, value in values.items():
        _refuse(~value.reshape(len(value), -1).isfinite().all(dim=-1), batch, items, layer)
    return {f"features/{layer}": pack_whole(value, spec.precision) for layer, value in values.items()}


def _logits(said: Tensor, items: tuple[Tensor, ...], batch: Batch, spec: Spec) -> Arrays:
    """What is stored of logits, a part of the items at a time."""
    if said.shape[:-1] != batch["y"].shape:
        raise ValueError(f"answer: expected logits of shape {tuple(batch['y'].shape)} + (classes,), got {tuple(said.shape)}")
    classes = said.shape[-1]
    if spec.k is not None and spec.k > classes:
        raise ValueError(f"k: expected at most the {classes} classes of the teacher, got {spec.k}")
    hashes = hash_ids(batch["id"].cpu()[items[0]], spec.seed, int(batch.get("epoch", 0)))
    if len(items) == 2:
        hashes = hash_ids(hashes + items[1])
    parts = []
    size = max(1, _ELEMENTS // classes)
    for start in range(0, max(1, len(hashes)), size):
        chunk = tuple(i[start : start + size] for i in items)
        logits = upcast(said[tuple(i.to(said.device) for i in chunk)])
        _refuse(~logits.amax(dim=-1).isfinite(), batch, chunk, "logits")  # a class of -inf is one that cannot be
        parts.append(_reduced(logits, hashes[start : start + size], spec))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _reduced(logits: Tensor, hashes: Tensor, spec: Spec) -> Arrays:
    if spec.k is None:
        return {"logits": pack_whole(logits, spec.precision)}
    if spec.kind == "top-k":
        return pack_top(*top_k(logits, spec.k, temperature=spec.temperature), spec.precision)
    draws = uniform(hashes, 0).to(logits.device)
    return pack_sample(*sample(logits, spec.k, draws, temperature=spec.temperature), spec.precision, hashes)


def _refuse(wrong: Tensor, batch: Batch, items: tuple[Tensor, ...], name: str) -> None:
    """Name the example of the first of these items that is wrong (items,)."""
    if wrong.any():
        example = int(batch["id"].cpu()[items[0][wrong.cpu()][0]])
        raise ValueError(f"answer: expected finite {name}, got NaN or infinity in example {example}")
