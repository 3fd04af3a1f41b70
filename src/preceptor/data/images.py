"""Images that are read when asked for: from files in a folder per class, or from any sequence of PIL images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preceptor.core.optional import require

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
"""Endings, in lower case, of the files that count as images."""


def to_tensor(image: Any, *, size: tuple[int, int] | None = None, channels: int | None = None) -> Tensor:
    """Turn a PIL image of 8 bits per channel into a tensor.

    Args:
        image: of any mode; a palette is resolved and an alpha channel dropped.
        size: (height, width) to resize to, bilinear; None keeps it.
        channels: 1 for grey, 3 for colour; None keeps grey images grey and makes all others colour.
    Returns:
        float32, (channels, height, width), in [0, 1].
    Raises:
        ValueError: more than 8 bits per channel, or another number of channels.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels: expected 1, 3 or none, got {channels}")
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"image: expected 8 bits per channel, got mode {image.mode}")
    grey = channels == 1 or (channels is None and image.mode in ("1", "L", "LA"))
    image = image.convert("L" if grey else "RGB")
    if size is not None:
        image = image.resize((size[1], size[0]), resample=2)  # 2 is bilinear
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return (pixels[None] if grey else pixels.movedim(-1, 0)).float() / 255


class Images:
    """Images with labels as a data set: examples are pairs (float32 (channels, height, width) in [0, 1], label).

    Args:
        images: PIL images by position; all of one shape unless ``size`` and ``channels`` make them so.
        labels: int64 (N,).
        size: (height, width) to resize to.
        channels: 1, 3 or None, as in `to_tensor`.
        name: what error messages call it.
    """

    def __init__(
        self,
        images: Any,
        labels: Tensor,
        *,
        size: tuple[int, int] | None = None,
        channels: int | None = None,
        name: str = "train",
    ):
        self.images, self.labels = images, labels
        self._size, self._channels, self._name = size, channels, name
        self._shape: torch.Size | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = to_tensor(self.images[index], size=self._size, channels=self._channels)
        self._shape = self._shape or x.shape
        if x.shape != self._shape:
            expected, got = tuple(self._shape), tuple(x.shape)
            raise ValueError(
                f"{self._name}: expected images of shape {expected} like the others, got {got} in example {index}; set size and channels"
            )
        return x, int(self.labels[index])


class Files:
    """PIL images of files, opened when asked for."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths
        self._pil = require("PIL.Image", extra="vision", purpose="image folders")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        try:
            with self._pil.open(self.paths[index]) as image:
                image.load()
                return image
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{self.paths[index]}: expected an image, got a file that cannot be read as one ({error})") from error


def read_folder(
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    name: str = "train",
) -> tuple[Images, tuple[str, ...]]:
    """Images of a folder with one sub-folder per class, in the order of their paths.

    Args:
        path: the folder; hidden sub-folders and files that are not images are passed over.
        classes: names in the order of the labels; by default the sub-folders, sorted.
        size: (height, width) to resize to.
        channels: 1, 3 or None, as in `to_tensor`.
        name: what error messages call it.
    Returns:
        The images and the class names.
    Raises:
        ValueError: no such folder, no class, no image, or a sub-folder that is not one of ``classes``.
    """
    if not path.is_dir():
        raise ValueError(f"{name}: expected a folder with a sub-folder per class, got {path}, which is not a folder")
    found = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    unknown = sorted(set(found) - set(classes or found))
    if unknown:
        raise ValueError(f"{name}: expected sub-folders out of {', '.join(classes or ())}, got {unknown[0]!r} in {path}")
    names = tuple(classes or found)
    paths, labels = [], []
    for label, folder in enumerate(names):
        files = sorted(p for p in (path / folder).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise ValueError(f"{name}: expected images in sub-folders of {path}, got none")
    return Images(Files(paths), torch.tensor(labels), size=size, channels=channels, name=name), names
