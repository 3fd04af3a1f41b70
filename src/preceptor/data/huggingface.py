"""Image data sets of the Hugging Face ``datasets`` library, already on disk or in memory."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from preceptor.data.images import Images


def is_hugging_face(data: Any) -> bool:
    """Whether this is a ``datasets.Dataset``; the library is not imported for the question."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(data, library.Dataset)


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
            near = ", ".join(difflib.get_close_matches(given, columns, n=3, cutoff=0.0))
            raise ValueError(f"{name}: expected a column of the data set for {role}_column, got {given!r} (nearest: {near})")
        return given
    if len(found) != 1:
        raise ValueError(f"{name}: expected one {role} column, got {len(found)} among {', '.join(columns)}; name it with {role}_column")
    return found[0]


def read_columns(
    data: Any,
    *,
    image: str | None = None,
    label: str | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    name: str = "train",
) -> tuple[Images, tuple[str, ...] | None]:
    """Images with labels of a ``datasets.Dataset``, and the class names where its label column knows them.

    Args:
        data: the data set; its own format and transform are left out.
        image: name of the image column, see `find_columns`.
        label: name of the label column.
        size: (height, width) to resize to.
        channels: 1, 3 or None, as in `preceptor.data.images.to_tensor`.
        name: what error messages call it.
    Raises:
        ValueError: as `find_columns`, or a label that is missing.
        TypeError: labels that are not integers.
    """
    image, label = find_columns(data, image=image, label=label, name=name)
    data = data.with_format(None)
    values = list(data[label])
    for i, value in enumerate(values):
        if not isinstance(value, int):
            raise TypeError(f"{name}: expected integer labels in column {label}, got {value!r} in example {i}")
    kind = data.features[label]
    names = tuple(kind.names) if type(kind).__name__ == "ClassLabel" else None
    return Images(data[image], torch.from_numpy(np.array(values, dtype=np.int64)), size=size, channels=channels, name=name), names
