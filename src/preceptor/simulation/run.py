"""A whole run of a case: frames, measures, and the files for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from preceptor import __version__
from preceptor.core.files import write_whole
from preceptor.metrics.entropy import Sphere
from preceptor.simulation.files import write_csv, write_netcdf
from preceptor.simulation.order import METRICS, Centroid, metrics, state_label, summary
from preceptor.simulation.record import Frames, Plan, record

Progress = Callable[[str, int, int], None]
"""Called with what is done ("steps", "measures"), how many are done, and of how many."""


def run(
    plan: Plan,
    out: Path,
    *,
    resume: bool = False,
    centroid: Centroid = "mean",
    sphere: Sphere = "sine",
    correction: bool = False,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Frames]:
    """Run a plan, measure every saved frame, and write ``schooling.nc``, three CSV files and ``result.json``.

    Args:
        plan: what to run.
        out: the folder; see `preceptor.simulation.record.record`.
        resume: go on with the run in the folder.
        centroid: see `preceptor.simulation.order.metrics`.
        sphere: see there.
        correction: see there.
        progress: called after every step and every measured frame.
    Returns:
        What ``result.json`` holds, and the frames.
    Raises:
        ValueError: what `record` refuses.
        Interrupted: a signal came while the fish swam; the frames are saved.
        ImportError: scipy or h5netcdf is missing.

    Warns:
        SmallBox: the box is smaller than twice the attraction radius.
    """
    say = progress or (lambda what, done, total: None)
    frames = record(plan, out, resume=resume, progress=lambda done, total: say("steps", done, total))
    zones = plan.case.zones
    rows = []
    for number, frame in enumerate(frames, start=1):
        rows.append(metrics(frame.positions, frame.velocities, zones.box, centroid=centroid, sphere=sphere, correction=correction))
        say("measures", number, len(frames))
    series = {name: np.array([row[name] for row in rows]) for name in METRICS}
    found = summary(series)
    result = {
        "case": plan.name,
        "agents": plan.case.agents,
        "steps": plan.case.steps,
        "every": plan.every,
        "seed": plan.seed,
        "start": "uniform" if plan.case.ring is None else f"ring of radius {plan.case.ring:.4g}",
        "zones": asdict(zones),
        "centroid": centroid,
        "sphere": sphere,
        "correction": correction,
        "warnings": [zones.doubt] if zones.doubt else [],
        "state": state_label(found["polarization"]["mean"], found["rotation"]["mean"]),
        "summary": found,
        "time": [frame.step * zones.dt for frame in frames],
        "series": {name: values.tolist() for name, values in series.items()},
        "versions": {"preceptor": __version__, "numpy": np.__version__},
    }
    write_netcdf(out / "schooling.nc", frames, plan, series)
    write_csv(out, frames, series, found, zones.dt)
    write_whole(out / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result, frames
