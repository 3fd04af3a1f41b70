"""A run that is written down as it goes: after a kill, every saved frame is there and the run goes on bit for bit.

``frames.bin`` holds one record per frame: step, state of the generator, positions, velocities, checksum. ``run.json`` says of what.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from preceptor.core.files import sync, write_whole
from preceptor.core.signals import Interrupted, deferred_signals
from preceptor.simulation.motion import Frame, simulate
from preceptor.simulation.motion import Path as Way
from preceptor.simulation.zones import Case, Zones

Progress = Callable[[int, int], None]
"""Called with steps done and steps to do."""

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is. Of two runs with the same plan one goes on where the other stopped; ``steps`` may then be larger."""

    name: str
    case: Case
    seed: int
    every: int  # steps between two frames

    def described(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "format": _FORMAT}


class Frames(Sequence[Frame]):
    """The whole frames of a run's folder, read where they lie.

    Args:
        folder: of a run.
    Raises:
        ValueError: the folder holds no run.
    """

    def __init__(self, folder: Path) -> None:
        described = read_plan(folder)
        self.zones = Zones(**described["case"]["zones"])
        kind, path = _record(described["case"]["agents"]), folder / "frames.bin"
        whole = path.stat().st_size // kind.itemsize if path.exists() else 0
        self.records = np.memmap(path, kind, "r", shape=(whole,)) if whole else np.empty(0, kind)
        while len(self.records) and self.records[-1]["check"] != _checksum(self.records[-1]):
            self.records = self.records[:-1]  # torn by a crash of the machine

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, number: int) -> Frame: ...

    @overload
    def __getitem__(self, number: slice) -> list[Frame]: ...

    def __getitem__(self, number: int | slice) -> Frame | list[Frame]:
        """One frame, or a list of them for a slice."""
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        record = self.records[number]
        return Frame(step=int(record["step"]), positions=np.array(record["positions"]), velocities=np.array(record["velocities"]))

    def __iter__(self) -> Iterator[Frame]:
        return (self[i] for i in range(len(self)))

    def generator(self) -> np.random.Generator:
        """The generator as it was after the last frame."""
        return _generator(bytes(self.records[-1]["generator"]))


def read_plan(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says.

    Raises:
        ValueError: there is none, or not of this kind.
    """
    try:
        described = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        described = {}
    if described.get("format") != _FORMAT or "case" not in described:
        raise ValueError(f"out: expected the folder of a run of schooling, with its run.json, got {folder}")
    return described


def record(plan: Plan, out: Path, *, resume: bool = False, path: Way = "auto", progress: Progress | None = None) -> Frames:
    """Run a case and write its frames into a folder as they come.

    SIGINT and SIGTERM are answered between two steps.

    Args:
        plan: what to run; ``plan.case.steps`` is the last step.
        out: the folder.
        resume: go on with the run that the folder holds.
        path: see `preceptor.simulation.motion.Path`.
        progress: called after every step.
    Returns:
        All frames.
    Raises:
        ValueError: the folder holds a run and resume is off, or a run of another plan.
        Interrupted: a signal came; the frames are saved.

    Warns:
        SmallBox: the box is smaller than twice the attraction radius.
    """
    case, steps = plan.case, plan.case.steps
    known = _known(plan, out) if resume else _fresh(plan, out)
    if known:
        last, rng = known[-1], known.generator()
        start, done = (last.positions, last.velocities), last.step
    else:
        rng, done = np.random.default_rng(plan.seed), -1
        start = case.start(rng)
    if done == steps:
        return known
    kind = _record(case.agents)
    frames = simulate(start, case.zones, rng, steps=steps, first=max(done, 0), path=path)
    with (out / "frames.bin").open("r+b" if known else "wb") as file, deferred_signals() as caught:
        file.truncate(len(known) * kind.itemsize)
        file.seek(0, 2)
        for frame in frames:
            if frame.step > done and (frame.step % plan.every == 0 or frame.step == steps):
                file.write(_packed(frame, rng, kind))
                file.flush()
                done = frame.step
            if progress is not None:
                progress(frame.step, steps)
            if caught:
                sync(file)
                raise Interrupted(caught[0], done, out)
        sync(file)
    return Frames(out)


def _fresh(plan: Plan, out: Path) -> Frames:
    if (out / "run.json").exists():
        raise ValueError(f"out: expected a folder without a run, or resume, got {out}")
    write_whole(out / "run.json", json.dumps(plan.described(), indent=1) + "\n")
    return Frames(out)


def _known(plan: Plan, out: Path) -> Frames:
    """The frames of the same plan."""
    found, wanted = read_plan(out), json.loads(json.dumps(plan.described()))
    known = Frames(out)
    done = known[-1].step if known else 0
    if plan.case.steps < done:
        raise ValueError(f"steps: expected at least the {done} that {out} holds, got {plan.case.steps}")
    found["case"]["steps"] = wanted["case"]["steps"]
    if found != wanted:
        flat = [{**d, **d["case"], **d["case"]["zones"]} for d in (found, wanted)]
        name = next(key for key in flat[1] if key not in ("case", "zones") and flat[0].get(key) != flat[1][key])
        raise ValueError(f"{name}: expected {flat[0].get(name)!r} like the run in {out}, got {flat[1][name]!r}")
    write_whole(out / "run.json", json.dumps(plan.described(), indent=1) + "\n")
    return known


def _record(agents: int) -> np.dtype[Any]:
    floats = ("<f8", (agents, 3))
    return np.dtype([("step", "<i8"), ("generator", "V32"), ("positions", *floats), ("velocities", *floats), ("check", "<u4")])


def _packed(frame: Frame, rng: np.random.Generator, kind: np.dtype[Any]) -> bytes:
    record = np.zeros((), kind)
    record["step"], record["positions"], record["velocities"] = frame.step, frame.positions, frame.velocities
    state = rng.bit_generator.state["state"]
    record["generator"] = np.void(state["state"].to_bytes(16, "little") + state["inc"].to_bytes(16, "little"))
    record["check"] = _checksum(record)
    return record.tobytes()


def _checksum(record: Any) -> int:
    return zlib.crc32(record.tobytes()[:-4])


def _generator(state: bytes) -> np.random.Generator:
    """A PCG64, which is numpy's default; doubles leave nothing else behind."""
    generator = np.random.PCG64()
    first, second = (int.from_bytes(state[i : i + 16], "little") for i in (0, 16))
    generator.state = {"bit_generator": "PCG64", "state": {"state": first, "inc": second}, "has_uint32": 0, "uinteger": 0}
    return np.random.Generator(generator)
