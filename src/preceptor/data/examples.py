"""Examples: the one view of a data set, whatever it was made of. An example is its inputs, its label and its id."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate

from preceptor.core.types import Batch
from preceptor.data.huggingface import is_hugging_face, read_columns
from preceptor.data.images import Images

LABEL_KEYS = ("y", "label", "labels")
"""Where the label of an example that is a mapping is looked for, in this order."""


class Indexable(Protocol):
    """What is asked of a data set that is not tensors: a length, and examples by position (``torch.utils.data.Dataset`` fits)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Examples:
    """A checked data set or a part of one. Build it with `examples_from`, which checks; parts share the storage of the whole.

    Args:
        inputs: a tensor (N, ...), a dict of such tensors (the keywords of the model), or a data set whose examples are read when asked for.
        all_labels: int64 (N,), the labels of the whole set.
        num_classes: C; labels lie in [0, C).
        name: what error messages call it: "train", "test", ...
        rows: int64 (n,), the examples of the whole set that belong to this part, by position; by default all, in order.
    """

    def __init__(
        self,
        inputs: Tensor | dict[str, Tensor] | Indexable,
        all_labels: Tensor,
        *,
        num_classes: int,
        name: str = "train",
        rows: Tensor | None = None,
    ):
        self.inputs = inputs
        self.all_labels = all_labels
        self.num_classes = num_classes
        self.name = name
        self.ids = torch.arange(len(all_labels)) if rows is None else rows
        """int64 (n,): the number of each example in the whole set."""
        self.labels = all_labels if rows is None else all_labels[rows]
        """int64 (n,), in the order of this part."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def in_memory(self) -> bool:
        """Whether the inputs are tensors, so that a batch is one indexing."""
        return isinstance(self.inputs, (Tensor, dict))

    def batch(self, indices: Tensor, *, seeds: Tensor | None = None) -> Batch:
        """The examples at these positions of this part.

        Args:
            indices: int64 (B,), each in [0, len); B = 0 is allowed.
            seeds: int64 (B,); for a data set that draws random numbers as it reads: seeds torch, numpy and ``random`` for each example;
                their states are restored. Without it the data set draws from the global generators.
        Returns:
            ``x`` (B, ...) or a dict of such tensors, ``y`` (B,), ``id`` (B,), the last two int64.
        """
        rows = self.ids.index_select(0, indices)
        return {"x": self._read(rows, seeds), "y": self.labels.index_select(0, indices), "id": rows}

    def subset(self, indices: Tensor | Sequence[int], *, name: str | None = None) -> Examples:
        """The part of these positions, in this order; ids stay those of the whole set.

        Raises:
            ValueError: a position lies outside [0, len).
        """
        positions = torch.as_tensor(indices, dtype=torch.int64)
        outside = positions[(positions < 0) | (positions >= len(self))]
        if len(outside):
            raise ValueError(f"indices: expected positions in [0, {len(self)}) of {self.name}, got {int(outside[0])}")
        return Examples(self.inputs, self.all_labels, num_classes=self.num_classes, name=name or self.name, rows=self.ids[positions])

    def _read(self, rows: Tensor, seeds: Tensor | None) -> Tensor | dict[str, Tensor]:
        if isinstance(self.inputs, Tensor):
            return self.inputs.index_select(0, rows.to(self.inputs.device))  # copies whole rows: three times as fast as [rows]
        if isinstance(self.inputs, dict):
            return {key: value.index_select(0, rows.to(value.device)) for key, value in self.inputs.items()}
        if len(rows) == 0:  # the shapes of an empty batch are those of the first example
            first = self._read(self.ids[:1], None)
            return first[:0] if isinstance(first, Tensor) else {key: value[:0] for key, value in first.items()}
        if seeds is None:
            return default_collate([_split(self.inputs[row], self.name)[0] for row in rows.tolist()])
        items = []
        with _random_states_kept():
            for row, seed in zip(rows.tolist(), seeds.tolist(), strict=True):
                random.seed(seed)
                np.random.seed(seed & 0xFFFFFFFF)
                torch.manual_seed(seed)
                items.append(_split(self.inputs[row], self.name)[0])
        return default_collate(items)


@contextmanager
def _random_states_kept() -> Iterator[None]:
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


def _split(item: Any, name: str) -> tuple[Any, Any]:
    """Inputs and label of one example of a data set."""
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, Mapping):
        key = next((key for key in LABEL_KEYS if key in item), None)
        if key is not None:
            return (item["x"] if key == "y" and "x" in item else {k: v for k, v in item.items() if k != key}), item[key]
        raise ValueError(f"{name}: expected a label under one of {', '.join(LABEL_KEYS)}, got keys {', '.join(map(str, item))}")
    raise TypeError(f"{name}: expected examples (x, y) or mappings with a label, got {_kind(item)}")


def _kind(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__


def _tensor(value: Any, name: str) -> Tensor:
    """A tensor as it is; an array as a tensor, its floats in torch's default precision."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        raise ValueError(f"{name}: expected one entry per example, got a single number")
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor
    raise TypeError(f"{name}: expected a tensor or an array of numbers, got {_kind(value)}")


def _check_finite(inputs: Any, name: str, first: int = 0) -> None:
    """Refuse NaN and infinity in inputs (n, ...) whose first example is number ``first``."""
    named = inputs.items() if isinstance(inputs, Mapping) else [("x", inputs)]
    for key, value in named:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = (~torch.isfinite(value.reshape(len(value), -1))).any(dim=1)
            raise ValueError(
                f"{name}: expected finite numbers in {key}, got {_bad_number(value[bad])} in example {first + int(bad.nonzero()[0])}"
            )


def _bad_number(values: Tensor) -> str:
    return "NaN" if bool(values.isnan().any()) else "infinity"


def _check_labels(labels: Tensor, size: int, num_classes: int | None, name: str) -> tuple[Tensor, int]:
    """The labels as int64 and the number of classes."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name}: expected integer labels, got {labels.dtype}")
    if labels.shape != (size,):
        raise ValueError(f"{name}: expected one label for each of {size} examples, got labels of shape {tuple(labels.shape)}")
    labels = labels.detach().to("cpu", torch.int64)
    high = int(labels.max()) + 1 if num_classes is None else num_classes
    bad = (labels < 0) | (labels >= high)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise ValueError(f"{name}: expected labels in [0, {high}), got {int(labels[first])} in example {first}")
    return labels, high


def _read_labels(data: Indexable, count: int, name: str) -> Tensor:
    """The labels of the first examples of a data set, which are checked on the way."""
    labels = []
    for i in range(count):
        x, y = _split(data[i], name)
        try:
            inputs, label = default_collate([x]), torch.as_tensor(y)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name}: expected numbers, tensors or arrays, got x {_kind(x)}, y {_kind(y)} in example {i}") from error
        if label.numel() != 1:
            raise ValueError(f"{name}: expected one label per example, got shape {tuple(label.shape)} in example {i}")
        _check_finite(inputs, name, i)
        labels.append(label.reshape(1))
    return torch.cat(labels)


def examples_from(data: Any, num_classes: int | None = None, name: str = "train", *, labels: Tensor | np.ndarray | None = None) -> Examples:
    """Make `Examples` of a data set and check it.

    Args:
        data: Examples (returned as they are, but for num_classes); a tuple (x, y) of tensors or arrays, where x may be a mapping of them
            (the keywords of the model); any ``torch.utils.data.Dataset`` with a length, whose examples are pairs or mappings with a label
            under `LABEL_KEYS`; or a ``datasets.Dataset`` with an image and a label column. Tensors keep their type; arrays of floats get
            torch's default. A ``TensorDataset`` counts as its tensors.
        num_classes: C; by default the largest label plus 1.
        name: what error messages call it.
        labels: (N,) integers of a data set that is not tensors, which is otherwise read once, every example, to find and check them.
    Raises:
        TypeError: something that is none of these, or labels that are not integers.
        ValueError: no examples, lengths differ, a label outside [0, C), or a number that is not finite.
    """
    if isinstance(data, Examples):
        if num_classes in (None, data.num_classes):
            return data
        _check_labels(data.labels, len(data), num_classes, name)
        return Examples(data.inputs, data.all_labels, num_classes=num_classes, name=name, rows=data.ids)
    if isinstance(data, Subset) and isinstance(data.dataset, TensorDataset):
        return examples_from(data.dataset, num_classes, name).subset(data.indices)
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, tuple):
        if len(data) != 2:
            raise TypeError(f"{name}: expected a pair (x, y), got {_kind(data)}")
        return _from_tensors(*data, num_classes, name)
    if is_hugging_face(data):
        data, class_names = read_columns(data, name=name)
        num_classes = len(class_names) if class_names and num_classes is None else num_classes
    if isinstance(data, Images):
        labels = data.labels
    try:
        size = len(data)
    except TypeError as error:
        raise TypeError(f"{name}: expected (x, y) or a data set with a length, got {_kind(data)}") from error
    _check_size(size, name)
    found = _read_labels(data, size if labels is None else 1, name)
    all_labels, count = _check_labels(found if labels is None else _tensor(labels, f"{name}: labels"), size, num_classes, name)
    return Examples(data, all_labels, num_classes=count, name=name)


def _from_tensors(x: Any, y: Any, num_classes: int | None, name: str) -> Examples:
    inputs = {k: _tensor(v, f"{name}: {k}") for k, v in x.items()} if isinstance(x, Mapping) else _tensor(x, f"{name}: x")
    sizes = {len(value) for value in (inputs.values() if isinstance(inputs, dict) else [inputs])}
    if len(sizes) != 1:
        raise ValueError(f"{name}: expected inputs of one length, got lengths {sorted(sizes)}")
    size = sizes.pop()
    _check_size(size, name)
    labels = _tensor(np.asarray(y) if isinstance(y, (list, tuple)) else y, f"{name}: y")
    all_labels, count = _check_labels(labels, size, num_classes, name)
    _check_finite(inputs, name)
    return Examples(inputs, all_labels, num_classes=count, name=name)


def _check_size(size: int, name: str) -> None:
    if size == 0:
        raise ValueError(f"{name}: expected at least one example, got an empty data set")
