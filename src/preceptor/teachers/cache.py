"""What a teacher says about every item of a data set, kept on disk: the teacher runs once, and training never loads it.

A cache is a folder of Arrow shards (`preceptor.teachers.shards`) and a ``manifest.json`` that says whose answers they are; an item is an
example, or of a text a position that counts. `preceptor.teachers.build` writes it; `Cache.open` refuses one that is another teacher's or
was altered; `from_cache` lets a method learn from it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from preceptor.composition import Composed
from preceptor.core.method import Method
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal
from preceptor.losses.checks import check_choice
from preceptor.teachers.shards import Column, list_rows, read_rows, read_shard
from preceptor.teachers.targets import Kind, Precision, unpack_sample, unpack_top, unpack_whole

MANIFEST, HEADER = "manifest.json", ".building.json"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a cache holds and whose it is. Fingerprints are strings that differ where the things do.

    Args:
        kind: ``logits``, ``top-k``, ``sample`` (see `preceptor.teachers.targets`) or ``features``.
        k: classes kept of each item, for ``top-k`` and ``sample``.
        temperature: T > 0 of the teacher's softmax, for the same two.
        precision: ``float32``; ``float16``, not for a sample, which rounding would bias; ``compact``, for ``top-k`` and ``sample``.
        seed: of a sample.
        teacher: fingerprint of its weights, see `preceptor.core.run.fingerprint`.
        described: how a recipe names the teacher, to be compared where the teacher itself is not at hand.
        data: fingerprint of the examples, see `preceptor.data.splits.fingerprint`.
        tokenizer: fingerprint of the tokenizer, where there is one.
        template: fingerprint of the chat template, where there is one.
        augment: description of the augmentation, see `preceptor.data.augment`; None: the examples as they are, the same in every epoch.
        epochs: epochs of augmented views; 1 without augmentation.
        layers: names of the layers, for ``features``.
    Raises:
        ValueError: a field that does not go with the kind, or is outside its range.
    """

    kind: Kind = "logits"
    k: int | None = None
    temperature: float = 1.0
    precision: Precision = "float32"
    seed: int = 0
    teacher: str
    described: str = ""
    data: str
    tokenizer: str | None = None
    template: str | None = None
    augment: str | None = None
    epochs: int = 1
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        few = self.kind in ("top-k", "sample")
        check_choice(Kind, kind=self.kind)
        if few and (self.k is None or self.k < 1):
            raise ValueError(f"k: expected a number of classes >= 1 for kind {self.kind!r}, got {self.k}")
        if not few and self.k is not None:
            raise ValueError(f"k: expected none for kind {self.kind!r}, got {self.k}")
        if not self.temperature > 0 or (not few and self.temperature != 1):
            raise ValueError(f"temperature: expected {'a number > 0' if few else '1'} for kind {self.kind!r}, got {self.temperature}")
        fitting = {"top-k": get_args(Precision), "sample": ("float32", "compact")}.get(self.kind, ("float32", "float16"))
        if self.precision not in fitting:
            raise ValueError(f"precision: expected one of {', '.join(fitting)} for kind {self.kind!r}, got {self.precision!r}")
        if self.epochs < 1 or (self.augment is None and self.epochs > 1):
            raise ValueError(f"epochs: expected {'1 without augmentation' if self.augment is None else 'at least 1'}, got {self.epochs}")
        if bool(self.layers) != (self.kind == "features"):
            raise ValueError(f"layers: expected {'names' if self.kind == 'features' else 'none'} for kind {self.kind!r}, got {self.layers}")


class Cache:
    """An opened cache. `signal` answers in any order, without reading more than the rows it is asked for.

    Attributes:
        folder: where it lies.
        spec: what it holds.
        items: examples or positions with an answer.
        bytes_per_item: on the disk, everything included.
        kl_bound: nats; the most that rounding can part the kept distribution from the teacher's, where that is bounded.
        digest: of the manifest, which holds the digests of all shards.
        texts: whether items are positions of texts.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """See `Cache.open`."""
        self.folder = folder
        self.spec = Spec(**{**manifest["spec"], "layers": tuple(manifest["spec"]["layers"])})
        self.items, self.bytes_per_item = manifest["items"], manifest["bytes_per_item"]
        self.kl_bound, self.digest = manifest["kl_bound"], manifest["digest"]
        self._columns = [Column(**{**column, "shape": tuple(column["shape"])}) for column in manifest["columns"]]
        self._batches = [batch for shard in manifest["shards"] for batch in read_shard(folder / shard["name"])]
        self.texts = "length" in self._batches[0].schema.names
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        keys = [np.concatenate([batch.column(name).to_numpy() for batch in self._batches]) for name in ("id", "epoch")]
        self._order = np.lexsort(keys)
        self._ids, self._epochs = (key[self._order] for key in keys)
        same = (np.diff(self._ids) == 0) & (np.diff(self._epochs) == 0)
        if same.any():
            raise ValueError(f"id: expected every example once in an epoch, got {self._ids[1:][same][0]} twice")

    @classmethod
    def open(cls, folder: str | Path, expect: Mapping[str, Any] | None = None) -> Cache:
        """Open a finished cache, after a look at every byte of it.

        Args:
            folder: that `build` wrote.
            expect: fields of `Spec` that must be so: ``{"teacher": ..., "k": 64}``.
        Raises:
            ValueError: no finished cache, a field that differs (named), or a file that is missing or was altered (named).
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        _check(folder, manifest["spec"], expect or {})
        for shard in manifest["shards"]:
            path = folder / shard["name"]
            if not path.is_file():
                raise ValueError(f"cache {folder}: {path.name} is missing")
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                    raise ValueError(f"cache {folder}: {path.name} is torn or was altered (SHA-256 differs); build the cache again")
        return cls(folder, manifest)

    def __str__(self) -> str:
        kind = self.spec.kind if self.spec.k is None else f"{self.spec.kind} of {self.spec.k}"
        size = f"{self.items:,} {'tokens' if self.texts else 'examples'}, {self.bytes_per_item:,.1f} bytes each"
        bound = "" if self.kl_bound is None else f", rounded by a KL of at most {self.kl_bound:.1e} nats"
        return f"{self.folder}, {kind}, {self.spec.precision}, {size}{bound}"

    def check(self, expect: Mapping[str, Any]) -> None:
        """Refuse the cache where a field of its `Spec` is another.

        Raises:
            ValueError: names the field.
        """
        _check(self.folder, json.loads(json.dumps(asdict(self.spec))), expect)

    def signal(self, ids: Tensor, *, epoch: int = 0, width: int | None = None) -> dict[str, Any]:
        """The teacher's answers about examples.

        Args:
            ids: int64 (N,); the answer lies on their device.
            epoch: of the views, counted from 0; without augmentation all are the same.
            width: T of the answers about texts, by default the longest; what is not in the cache gets an answer that is harmless.
        Returns:
            ``logits`` (N, C); or ``top_logprobs`` (N, k), ``top_indices`` (N, k), ``tail`` (N,), the mass of all other classes; or
            ``sample_indices`` (N, k), ``sample_weights`` (N, k); or ``features``: by layer (N, ...). Of texts each has an axis T after the
            first, and ``mask`` (N, T) says which positions are in the cache.
        Raises:
            ValueError: an id or epoch that is not in the cache, or a width that is too small.
        """
        rows = self._find(ids.cpu().numpy(), 0 if self.spec.augment is None else epoch)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        groups = [self._read(int(number), rows, np.flatnonzero(which == number)) for number in np.unique(which)]
        width = max((group.length for group in groups), default=0) if width is None else width
        last = max((int(group.places[-1].max()) for group in groups if self.texts and len(group.places[-1])), default=-1)
        if width <= last:
            raise ValueError(f"width: expected at least {last + 1}, for the positions of the texts in the cache, got {width}")
        size = (len(rows), width) if self.texts else (len(rows),)
        found: dict[str, Any] = {name: neutral.expand(*size, *neutral.shape).clone() for name, neutral in self._neutral().items()}
        if self.texts:
            found["mask"] = torch.zeros(size, dtype=torch.bool)
        for group in groups:
            for name, values in group.answers.items():
                found[name][group.places] = values
            if self.texts:
                found["mask"][group.places] = True
        found = {name: value.to(ids.device) for name, value in found.items()}
        features = {layer: found.pop(f"features/{layer}") for layer in self.spec.layers}
        return {**found, "features": features} if features else found

    def _find(self, ids: NDArray[np.int64], epoch: int) -> NDArray[np.intp]:
        """Numbers of the rows of these ids."""
        first, last = (np.searchsorted(self._epochs, epoch, side=side) for side in ("left", "right"))
        if first == last:
            raise ValueError(f"epoch: expected one of {self.spec.epochs} in the cache {self.folder}, counted from 0, got {epoch}")
        place = np.minimum(np.searchsorted(self._ids[first:last], ids), last - first - 1)
        unknown = self._ids[first:last][place] != ids
        if unknown.any():
            raise ValueError(f"id: expected examples in the cache {self.folder}, got {ids[unknown][0]}")
        return self._order[first + place]

    def _read(self, number: int, rows: NDArray[np.intp], here: NDArray[np.intp]) -> _Group:
        """The answers about the rows ``rows[here]``, which are in one record batch."""
        batch, local = self._batches[number], rows[here] - self._starts[number]
        counts = batch.column("items").to_numpy()[local]
        stored = read_rows(batch, local, counts, self._columns)
        unpack = {"top-k": unpack_top, "sample": unpack_sample}.get(self.spec.kind, unpack_whole)
        places, length = [torch.from_numpy(np.repeat(here, counts))], 0
        if self.texts:
            length = int(batch.column("length")[0].as_py())
            masks = [np.flatnonzero(np.unpackbits(mask, count=length)) for mask in list_rows(batch, "mask", local)]
            places.append(torch.from_numpy(np.concatenate(masks)))
        return _Group(tuple(places), unpack(stored), length)

    def _neutral(self) -> dict[str, Tensor]:
        """What stands where the cache has no answer: harmless values, for one item."""
        k = self.spec.k or 1
        if self.spec.kind == "top-k":
            return {"top_indices": torch.arange(k), "top_logprobs": torch.full((k,), -math.log(k)), "tail": torch.zeros(())}
        if self.spec.kind == "sample":
            return {"sample_indices": torch.arange(k), "sample_weights": torch.full((k,), 1 / k)}
        return {column.name: torch.zeros(column.shape) for column in self._columns}


class _Group(NamedTuple):
    places: tuple[Tensor, ...]  # example, and position, of each item
    answers: dict[str, Tensor]
    length: int  # of the texts


def _check(folder: Path, spec: Mapping[str, Any], expect: Mapping[str, Any]) -> None:
    for field, wanted in expect.items():
        if field not in spec:
            raise ValueError(f"expect: expected fields out of {', '.join(spec)}, got {field!r}")
        if spec[field] != (list(wanted) if isinstance(wanted, tuple) else wanted):
            raise ValueError(f"cache {folder}: expected {field} {wanted!r}, got a cache with {field} {spec[field]!r}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished cache.

    Raises:
        ValueError: there is none, or a byte of it was altered.
    """
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = (folder / HEADER).is_file()
        got = "one that is not finished; build it on" if unfinished else f"no {MANIFEST} there"
        raise ValueError(f"cache {folder}: expected a finished cache, got {got}")
    try:
        manifest = json.loads(path.read_bytes())
        intact = write_manifest(manifest) == path.read_bytes()
    except (ValueError, KeyError, AttributeError, TypeError):
        intact, manifest = False, {}
    if not intact:
        raise ValueError(f"cache {folder}: {MANIFEST} was altered; build the cache again")
    return manifest


def write_manifest(manifest: Mapping[str, Any]) -> bytes:
    """The one way to write a manifest, with a digest of itself."""
    facts = {key: value for key, value in manifest.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**facts, "digest": digest}, sort_keys=True, indent=1) + "\n").encode()


def tokenizer_fingerprints(tokenizer: Any) -> dict[str, str | None]:
    """``tokenizer`` and ``template`` of a `Spec`, for a tokenizer of transformers: two that cut or lay out texts differently differ."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    kept = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}  # these belong to the last call
    described = json.dumps([kept, sorted(tokenizer.get_vocab().items())], sort_keys=True)
    template = tokenizer.chat_template
    return {
        "tokenizer": hashlib.sha256(described.encode()).hexdigest(),
        "template": None if template is None else hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest(),
    }


def from_cache(method: Method, cache: Cache) -> Method:
    """The same method, whose ``signal`` is read from a cache instead of asked of a teacher.

    A method without a ``signal`` of its own asks no teacher there and comes back as it is.

    Raises:
        ValueError: the method cannot learn from such a cache or with its hyper-parameters, or works at another temperature or with other
            layers.
    """
    if isinstance(method, Composed):
        if method.transformer is not None and cache.spec.kind != "logits":
            raise ValueError(f"cache {cache.folder}: expected kind logits for a transform of them, got {cache.spec.kind!r}")
        weigher = None if method.weigher is None else from_cache(method.weigher, cache)
        return replace(method, base=from_cache(method.base, cache), weigher=weigher)  # pyright: ignore[reportArgumentType]
    if type(method).signal is Method.signal:
        return method
    spec, name = cache.spec, type(method).__name__
    if not method.cached:
        raise ValueError(f"teacher: expected a network for {name}, which cannot learn from a cache, got {cache.folder}")
    if spec.kind not in method.cached:
        raise ValueError(f"cache {cache.folder}: expected kind {' or '.join(method.cached)} for {name}, got {spec.kind!r}")
    options = vars(method)
    for field, wanted in method.cached_with.items():
        if options[field] != wanted:
            raise ValueError(f"cache {cache.folder}: expected {field} {wanted} of {name}, to learn from a cache, got {options[field]}")
    if spec.k is not None and options.get("temperature", spec.temperature) != spec.temperature:
        raise ValueError(f"cache {cache.folder}: expected temperature {options['temperature']} like {name}, got {spec.temperature}")
    missing = [layer for layer in options.get("teacher_layers", ()) if layer not in spec.layers] if spec.kind == "features" else []
    if missing:
        raise ValueError(f"cache {cache.folder}: expected the layer {missing[0]!r} that {name} needs, got {', '.join(spec.layers)}")
    reader = copy.copy(method)
    object.__setattr__(reader, "signal", partial(_read, cache))  # no field: the hyper-parameters stay what they were
    return reader


def _read(cache: Cache, batch: Batch, roles: Roles, state: State) -> Signal:
    y = batch["y"]
    signal = cache.signal(batch["id"], epoch=state.epoch, width=y.shape[1] if y.ndim == 2 else None)
    if "mask" in signal and bool(((batch["mask"] != 0) & ~signal["mask"]).any() if "mask" in batch else not signal["mask"].all()):
        raise ValueError(f"cache {cache.folder}: expected an answer for every position that counts, got a mask with other positions")
    return signal
