"""What comes out of a school as one of its parameters changes: several seeds at every value, each run kept as soon as it ends."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from preceptor import __version__
from preceptor.core.files import sync, write_whole
from preceptor.core.signals import Interrupted, deferred_signals
from preceptor.metrics.entropy import Sphere
from preceptor.simulation.motion import simulate
from preceptor.simulation.order import METRICS, Centroid, metrics, state_label
from preceptor.simulation.zones import Case, Zones

Progress = Callable[[int, int], None]
"""Called with runs done and runs to do."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Runs of a case with one parameter at several values.

    Raises:
        ValueError: no value or seed, one twice, an interval below 1, or a value that the zones do not take.
    """

    name: str
    case: Case
    parameter: str  # a number among the fields of `preceptor.simulation.zones.Zones`
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    every: int  # steps between two frames that are measured, all in the second half
    centroid: Centroid = "mean"
    sphere: Sphere = "sine"
    correction: bool = False

    def __post_init__(self) -> None:
        """Check everything before the first run."""
        for name, given in (("values", self.values), ("seeds", self.seeds)):
            if not given or len(set(given)) != len(given):
                raise ValueError(f"{name}: expected at least one, each once, got {list(given)}")
        if self.every < 1:
            raise ValueError(f"every: expected at least 1, got {self.every}")
        for value in self.values:
            self.zones(value)

    def zones(self, value: float) -> Zones:
        """Those of the case with the parameter at a value."""
        return self.case.zones.changed({self.parameter: repr(float(value))})

    def described(self) -> dict[str, Any]:
        """As plain values."""
        return json.loads(json.dumps(asdict(self)))


def sweep(plan: Sweep, out: Path, *, resume: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run all values and seeds; write ``runs.csv``, a row per run, and ``result.json``.

    Args:
        plan: what to run.
        out: the folder; ``runs.jsonl`` in it keeps every run that ended.
        resume: go on with the sweep in the folder; values and seeds may have been added.
        progress: called after every run.
    Returns:
        What ``result.json`` holds: the plan, ``runs``, and ``table``, by measure means and standard deviations over seeds at each value.
    Raises:
        ValueError: the folder holds a sweep and resume is off, or one of another plan.
        Interrupted: a signal came; the runs that ended are saved.
        ImportError: scipy is missing.

    Warns:
        SmallBox: the box is smaller than twice the attraction radius.
    """
    kept = _known(plan, out) if resume else _fresh(plan, out)
    wanted = [(value, seed) for value in plan.values for seed in plan.seeds]
    with (out / "runs.jsonl").open("a", encoding="utf-8") as file, deferred_signals() as caught:
        for done, (value, seed) in enumerate(wanted, start=1):
            if (value, seed) not in kept:
                row = _settled(plan, value, seed, caught)
                if row is None:
                    raise Interrupted(caught[0], None, out)
                kept[value, seed] = row
                file.write(json.dumps(row) + "\n")
                sync(file)
            if progress is not None:
                progress(done, len(wanted))
    rows = [kept[key] for key in wanted]
    result = {
        **plan.described(),
        "runs": rows,
        "table": _table(plan, rows),
        "versions": {"preceptor": __version__, "numpy": np.__version__},
    }
    write_whole(out / "runs.csv", _csv(plan.parameter, rows))
    write_whole(out / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def _settled(plan: Sweep, value: float, seed: int, caught: Sequence[int]) -> dict[str, Any] | None:
    """Means of all measures over the second half of a run; None after a signal."""
    case, rng = replace(plan.case, zones=plan.zones(value)), np.random.default_rng(seed)
    found = []
    for frame in simulate(case.start(rng), case.zones, rng, steps=case.steps):
        if caught:
            return None
        if 2 * frame.step >= case.steps and (case.steps - frame.step) % plan.every == 0:
            options = {"centroid": plan.centroid, "sphere": plan.sphere, "correction": plan.correction}
            found.append(metrics(frame.positions, frame.velocities, case.zones.box, **options))
    means = {name: float(np.mean([one[name] for one in found])) for name in METRICS}
    return {"value": value, "seed": seed, "state": state_label(means["polarization"], means["rotation"]), **means}


def _table(plan: Sweep, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    found = {}
    for name in METRICS:
        values = np.array([row[name] for row in rows]).reshape(len(plan.values), len(plan.seeds))
        spread = values.std(axis=1, ddof=1) if len(plan.seeds) > 1 else np.zeros(len(values))
        found[name] = {"mean": values.mean(axis=1).tolist(), "sd": spread.tolist()}
    return found


def _fresh(plan: Sweep, out: Path) -> dict[tuple[float, int], dict[str, Any]]:
    if (out / "sweep.json").exists():
        raise ValueError(f"out: expected a folder without a sweep, or resume, got {out}")
    write_whole(out / "sweep.json", json.dumps(plan.described(), indent=1) + "\n")
    (out / "runs.jsonl").unlink(missing_ok=True)
    return {}


def _known(plan: Sweep, out: Path) -> dict[tuple[float, int], dict[str, Any]]:
    """The runs of the same plan that ended; a line that a crash tore is cut off."""
    try:
        found = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"out: expected the folder of a sweep, with its sweep.json, got {out}") from None
    wanted = plan.described()
    for name in wanted:
        if name not in ("values", "seeds") and found.get(name) != wanted[name]:
            raise ValueError(f"{name}: expected {found.get(name)} like the sweep in {out}, got {wanted[name]}")
    write_whole(out / "sweep.json", json.dumps(wanted, indent=1) + "\n")
    path = out / "runs.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    write_whole(path, whole)
    return {(row["value"], row["seed"]): row for row in map(json.loads, whole.splitlines())}


def _csv(parameter: str, rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([parameter, *list(rows[0])[1:]])
    writer.writerows([[repr(value) if isinstance(value, float) else value for value in row.values()] for row in rows])
    return text.getvalue()
