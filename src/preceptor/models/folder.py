"""Students in folders: ``config.json``, ``model.safetensors`` and ``README.md``, written so that they can be read without pickle."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from preceptor.core.optional import require
from preceptor.core.parallel import load_whole
from preceptor.models.reference import Reference, build

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
"""File endings of checkpoints that may hold a pickle."""


def save_student(
    model: nn.Module,
    folder: str | Path,
    card: Mapping[str, object],
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    tokenizer: Any = None,
) -> None:
    """Write a model to a folder, with a model card.

    A transformers model is saved by its own ``save_pretrained``; a reference model with its configuration; any other module as weights
    beside the import path of its class, to be loaded into a module of the user's. Tensors that share memory are written once.

    Args:
        folder: made when missing; files of these names are overwritten.
        card: rows of the card's table, label to value ("method": "classic-kd", "accuracy": "90.1 %").
        state_dict: the full weights, where the model itself holds only a shard of them (`preceptor.core.parallel.whole` gathers them).
        tokenizer: of transformers, written beside the model; another one, which cannot save itself, is left out.
    """
    given = model.state_dict() if state_dict is None else state_dict
    weights = {name.removeprefix("_orig_mod."): value for name, value in given.items()}
    model = model.get_submodule("_orig_mod") if "_orig_mod" in model._modules else model
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = type(model).__mro__[2] if isinstance(model, FSDPModule) else type(model)  # sharding derives a class of its own
    if is_transformers(model):
        with _without_bars():
            model.save_pretrained(folder, state_dict=None if state_dict is None else weights)
        own = True
    else:
        own = isinstance(model, Reference)
        weights, tied = _separate(weights)
        config = {"preceptor": model.config if own else {"class": f"{kind.__module__}:{kind.__qualname__}"}, "tied": tied}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
    load = f"load_student({folder.name!r})" if own else f"load_student({folder.name!r}, model={kind.__name__}(...))"
    rows = {"architecture": kind.__name__, "parameters": f"{sum(p.numel() for p in model.parameters()):,}", **card}
    (folder / "README.md").write_text(_card(rows, load, "transformers" if is_transformers(model) else "preceptor"))


def load_student(folder: str | Path, *, model: nn.Module | None = None) -> nn.Module:
    """Read a model that `save_student` or transformers' ``save_pretrained`` wrote; it comes back in eval mode, on the CPU.

    Args:
        model: the module to fill, needed when the folder holds weights of a user's own class; filled in place and returned.
    Raises:
        ValueError: no such folder, nothing loadable in it, only pickles, or weights that do not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"model: expected an existing folder, got {str(folder)!r}")
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"model: expected a folder with config.json, got {str(folder)!r} without it") from None
    except ValueError:
        raise ValueError(f"model: expected JSON in {str(folder / 'config.json')!r}, got something else") from None
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        raise ValueError(refusal(folder / pickles[0]) if pickles else f"model: expected .safetensors weights in {str(folder)!r}, got none")
    if "preceptor" in config:
        described = config["preceptor"]
        if model is None and "reference" not in described:
            raise ValueError(f"model: expected model=, an instance of {described.get('class')}, to load {str(folder)!r}, got None")
        model = build(described) if model is None else model
        weights = read_weights(folder / "model.safetensors")
        weights |= {name: weights[kept] for name, kept in config["tied"].items()}
        return fill(model, weights, str(folder)).eval()
    loaded = _pretrained_class(config, folder).from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return loaded if model is None else fill(model, loaded.state_dict(), str(folder)).eval()


def is_transformers(model: nn.Module) -> TypeGuard[PreTrainedModel]:
    """Whether a model is of the transformers library; false when that library was never imported."""
    return "transformers" in sys.modules and isinstance(model, sys.modules["transformers"].PreTrainedModel)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict onto the CPU from a .safetensors file, or from a torch checkpoint that holds nothing but tensors.

    Raises:
        ValueError: no such file, a damaged one, or a checkpoint that could run code when read.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights: expected an existing file, got {str(path)!r}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"weights: expected an intact .safetensors file, got {str(path)!r} ({error})") from None
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many types here, all of which mean that the file is not plain tensors
        raise ValueError(refusal(path)) from None
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"weights: expected a state dict (names to tensors) in {str(path)!r}, got {type(weights).__name__}")
    return dict(weights)


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """Load weights into a model, which may be sharded, all of them and nothing else, and return the model.

    Raises:
        ValueError: a name is missing, superfluous or of another shape.
    """
    own = model.state_dict()
    wrong = [f"no {name}" for name in own if name not in weights] + [f"unknown {name}" for name in sorted(weights) if name not in own]
    wrong += [
        f"{name} of shape {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"weights: expected those of {type(model).__name__}, got in {source!r}: {', '.join(wrong[:3])}{more}")
    load_whole(model, dict(weights))
    return model


def refusal(path: Path) -> str:
    """The line that refuses a pickle checkpoint and names the safe alternative."""
    return (
        f"weights: expected .safetensors, got {str(path)!r}, a pickle that can run code when it is read; where you trust it, "
        "convert it once: safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Silence the progress bars of transformers for a moment."""
    logging = sys.modules["transformers"].utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _pretrained_class(config: Mapping[str, Any], folder: Path) -> type[PreTrainedModel]:
    """Return the class that a transformers folder was saved from."""
    name = (config.get("architectures") or ["?"])[0]
    transformers = require("transformers", extra="vision", purpose=f"the model in {str(folder)!r}")
    found = getattr(transformers, name) if name in dir(transformers) else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(f"model: expected a folder of preceptor or transformers, got {str(folder)!r} with architecture {name!r}")
    return found


def _separate(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors that share no memory, and for each name left out the name that holds the same tensor."""
    kept, tied, seen = {}, {}, {}
    for name, value in weights.items():
        storage = value.untyped_storage().data_ptr()
        same = (storage, value.storage_offset(), value.shape, value.stride())
        if value.numel() and same in seen:
            tied[name] = seen[same]
            continue
        overlaps = any(storage == other for other, *_ in seen)
        seen[same] = name
        kept[name] = value.detach().clone() if overlaps else value.detach().contiguous()
    return kept, tied


def _card(rows: Mapping[str, object], load: str, library: str) -> str:
    lines = "\n".join(f"| {label} | {str(value).replace('|', chr(92) + '|')} |" for label, value in rows.items())
    return f"""---
library_name: {library}
tags:
- knowledge-distillation
---

# Distilled student

| | |
|---|---|
{lines}

```python
from preceptor.models.folder import load_student

model = {load}
```
"""
