"""What a run remembers: `State`, and checkpoints that are written whole or not at all.

A checkpoint is a folder ``step-N`` with ``state.pt`` (read with ``weights_only=True``, so it can hold no code) and ``manifest.json``
with the SHA-256 of the data. It is written aside, fsynced and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from preceptor.core.files import sync, sync_folder
from preceptor.core.stream import Stream


@dataclass(frozen=True)
class RandomState:
    """Random states of torch (CPU, and CUDA where it is in use) and of one generator."""

    cpu: Tensor
    cuda: list[Tensor]
    generator: Tensor

    @classmethod
    def capture(cls, generator: torch.Generator) -> RandomState:
        """Remember the present states."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls(torch.get_rng_state(), cuda, generator.get_state())

    def restore(self, generator: torch.Generator) -> None:
        """Go back to the remembered states."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        generator.set_state(self.generator)


@dataclass(kw_only=True)
class State:
    """What the hooks of a method share with the loop, and what a checkpoint saves besides weights and optimizers.

    Attributes:
        total_steps: updates that the run will do.
        step: updates done; during a turn of the loop, the number of the present one counted from 0.
        epoch: epoch of the present batch, from 0.
        seed: seed of ``rng``.
        clip: largest global gradient norm; None for no clipping.
        rng: a generator on the CPU for the method's own draws, the same on every process.
        memory: tensors and numbers that live between steps (banks, running means); checkpointed. On several processes those of rank 0
            are: a method keeps them equal everywhere.
        streams: further data by name; their positions are checkpointed.
        source: the data being trained on (curricula call its ``feedback``).
        log: numbers that the present step wants in its Record.
        gradient_norm: norm of the present update before clipping.
        dropped: batches dropped for a non-finite loss or gradient.
        best: best validation so far: ``step``, ``value``, ``metrics``, ``weights``; empty before the first.
    """

    total_steps: int
    step: int = 0
    epoch: int = 0
    seed: int = 0
    clip: float | None = None
    rng: torch.Generator = field(default_factory=torch.Generator)
    memory: dict[str, Tensor | int | float] = field(default_factory=dict)
    streams: Mapping[str, Stream] = field(default_factory=dict)
    source: Stream | None = None
    log: dict[str, float] = field(default_factory=dict)
    gradient_norm: float | None = None
    dropped: int = 0
    best: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Seed the generator."""
        self.rng.manual_seed(self.seed)

    def state_dict(self) -> dict[str, Any]:
        """Counters, memory, random states (Python, NumPy, torch) and positions, in types that ``weights_only`` loading accepts.

        The entry ``random`` holds the states of this process alone.
        """
        randoms = RandomState.capture(self.rng)
        name, keys, *rest = np.random.get_state(legacy=True)
        return {
            "step": self.step,
            "epoch": self.epoch,
            "dropped": self.dropped,
            "memory": self.memory,
            "best": self.best,
            "streams": {key: stream.state_dict() for key, stream in self.streams.items()},
            "source": self.source.state_dict() if self.source is not None else None,
            "random": {
                "cpu": randoms.cpu,
                "cuda": randoms.cuda,
                "generator": randoms.generator,
                "python": random.getstate(),
                "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
            },
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.step, self.epoch, self.dropped = saved["step"], saved["epoch"], saved["dropped"]
        self.memory, self.best = saved["memory"], saved["best"]
        for key, stream in self.streams.items():
            stream.load_state_dict(saved["streams"][key])
        if self.source is not None:
            self.source.load_state_dict(saved["source"])
        randoms = saved["random"]
        RandomState(randoms["cpu"], randoms["cuda"], randoms["generator"]).restore(self.rng)
        random.setstate(randoms["python"])
        name, keys, *rest = randoms["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message is one line."""


class _Hashed:
    """A binary file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(folder: Path, payload: Mapping[str, Any], *, step: int, identity: Mapping[str, Any], keep: int = 2) -> Path:
    """Write ``folder/step-N`` whole or not at all, then delete all but the newest ``keep`` up to it.

    Args:
        folder: the run's ``checkpoints`` folder.
        payload: tensors, numbers, strings and containers of them.
        step: N.
        identity: what the run is, plain JSON values; `load_checkpoint` compares it.
        keep: checkpoints kept, at least 1.
    Raises:
        CheckpointError: no room or no permission; earlier checkpoints are intact.
    """
    final, aside = folder / f"step-{step}", folder / f".step-{step}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*.partial"):
            shutil.rmtree(leftover)
        aside.mkdir()
        with (aside / "state.pt").open("wb") as file:
            hashed = _Hashed(file)
            torch.save(dict(payload), cast(IO[bytes], hashed))
            sync(file)
        manifest: dict[str, Any] = {"step": step, "files": {"state.pt": hashed.digest.hexdigest()}, "identity": dict(identity)}
        with (aside / "manifest.json").open("w") as file:
            json.dump({**manifest, "digest": _digest(manifest)}, file, indent=1)
            sync(file)
        if final.exists():  # written by the same run before it was killed and resumed
            shutil.rmtree(final)
        aside.rename(final)
        sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        shutil.rmtree(aside, ignore_errors=True)
        cause = error if isinstance(error, OSError) else error.__context__
        full = isinstance(cause, OSError) and cause.errno == errno.ENOSPC
        reason = "no space left on the device" if full else str(error).splitlines()[0]
        newest = next(iter(_by_step(folder)), None)
        raise CheckpointError(f"checkpoint {final}: not written, {reason}; newest intact one: {newest or 'none'}") from error
    present = _by_step(folder)
    torn = present[: present.index(final)]  # an intact newer one would have been resumed from
    older = present[present.index(final) :]
    for path in (*older[keep:], *torn):
        shutil.rmtree(path)
    return final


def load_checkpoint(folder: Path, *, identity: Mapping[str, Any], warn: Callable[[str], None] | None = None) -> dict[str, Any] | None:
    """Read the newest intact checkpoint of ``folder``; None when there is none at all.

    Args:
        folder: the run's ``checkpoints`` folder.
        identity: what the run that asks is; any difference is refused, naming the field.
        warn: called with one line for each torn or altered checkpoint that is skipped.
    Raises:
        CheckpointError: the checkpoint is another run's, or none of those present is intact.
    """
    found = _by_step(folder)
    for path in found:
        try:
            manifest = _verified(path)
        except (OSError, ValueError, KeyError) as error:
            if warn is not None:
                warn(f"checkpoint {path}: skipped, {error}")
            continue
        compare_identity(manifest["identity"], identity, where=str(path))
        return read_weights(path / "state.pt")
    if found:
        raise CheckpointError(f"checkpoints {folder}: none of {len(found)} is intact; move them away to start over")
    return None


def read_weights(path: Path) -> dict[str, Any]:
    """Load a file of tensors and plain values; one that would run code on loading is refused.

    Raises:
        CheckpointError: the file holds pickled objects or is not a torch file.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path}: refused, expected tensors and plain values only (weights_only=True), got pickled objects or a damaged file;"
            " save weights with safetensors.torch.save_model"
        ) from error


def compare_identity(saved: Mapping[str, Any], wanted: Mapping[str, Any], *, where: str) -> None:
    """Refuse, in one line that names the first field that differs.

    Raises:
        CheckpointError: a field differs.
    """
    wanted = json.loads(json.dumps(dict(wanted)))  # saved went through JSON too
    for key in sorted(saved.keys() | wanted.keys()):
        if saved.get(key) != wanted.get(key):
            raise CheckpointError(f"{where}: {key} was {saved.get(key)!r} when this run began, got {wanted.get(key)!r}")


def compare_shapes(saved: Mapping[str, Any], wanted: Mapping[str, Any], *, where: str) -> None:
    """Refuse weights of another architecture, in one line that names the first tensor that differs.

    Args:
        saved: a state dict as it was read.
        wanted: the state dict of the network that is to take it.
        where: what was read, for the message.
    Raises:
        CheckpointError: a tensor is missing, superfluous or of another shape.
    """
    shapes = [
        {name: f"shape {tuple(value.shape)}" for name, value in each.items() if isinstance(value, Tensor)} for each in (saved, wanted)
    ]
    old, new = shapes
    wrong = [name for name in old | new if old.get(name) != new.get(name)]
    if wrong:
        first, more = wrong[0], f"; {len(wrong) - 1} more tensors differ" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{where}: {first}: expected {old.get(first, 'none')} as when this run began, got {new.get(first, 'none')}{more}"
        )


def _by_step(folder: Path) -> list[Path]:
    numbered = [(int(path.name.removeprefix("step-")), path) for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return [path for _, path in sorted(numbered, reverse=True)]


def _verified(path: Path) -> dict[str, Any]:
    manifest = json.loads((path / "manifest.json").read_text())
    digest = manifest.pop("digest") if isinstance(manifest, dict) else None
    if digest != _digest(manifest):
        raise ValueError("manifest.json was altered")
    for name, expected in manifest["files"].items():
        with (path / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise ValueError(f"{name} is torn or was altered (SHA-256 differs)")
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
