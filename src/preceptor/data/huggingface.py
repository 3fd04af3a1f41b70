"""Image data sets of the Hugging Face ``datasets`` library, already on disk or in memory."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def is_hugging_face(data: Any) -> bool:
    """Whether this is a ``datasets.Dataset``; the library is not imported for the question."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(data, library.Dataset)


class Images:
    """The images of a column, read when asked for: mappings ``x`` float32 (channels, height, width) in [0, 1] and ``y``."""

    def __init__(self, data: Any, image: str, label: str):
        self._data, self._image, self._label = data, image, label

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._data[index]
        return {"x": to_tensor(row[self._image]), "y": row[self._label]}


def to_tensor(image: Any) -> Tensor:
    """A PIL image as float32 (channels, height, width) in [0, 1]; grey images have one channel."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return (pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)).float() / 255


def find_columns(data: Any, *, image: str | None = None, label: str | None = None, name: str = "train") -> tuple[str, str]:
    """Names of the image and of the label column: those given, else the only column of the type ``Image`` and of ``ClassLabel``,
    or failing the latter a column called ``label`` or ``labels``.

    Raises:
        ValueError: a named column does not exist (the nearest are listed), or none or several fit.
    """
    features = data.features
    images = [key for key, kind in features.items() if type(kind).__name__ == "Image"]
    labels = [key for key, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    labels = labels or [key for key in ("label", "labels") if key in features]
    return _pick("image", image, images, list(features), name), _pick("label", label, labels, list(features), name)


def _pick(role: str, given: str | None, found: Sequence[str], columns: Sequence[str], name: str) -> str:
    if given is not None:
        if given not in columns:
            near = difflib.get_close_matches(given, columns, n=3, cutoff=0) or columns
            raise ValueError(f"{name}: expected a column of the data set as {role}, got {given!r}; nearest: {', '.join(near)}")
        return given
    if len(found) != 1:
        raise ValueError(f"{name}: expected one {role} column, got {len(found)} among {', '.join(columns)}; name it with {role}=")
    return found[0]


def read_columns(data: Any, *, image: str | None = None, label: str | None = None, name: str = "train") -> tuple[Images, Tensor]:
    """Images and labels int64 (N,) of a ``datasets.Dataset``; errors as in `find_columns`."""
    image, label = find_columns(data, image=image, label=label, name=name)
    return Images(data, image, label), torch.as_tensor(np.asarray(data.with_format("numpy")[label][:], dtype=np.int64))
