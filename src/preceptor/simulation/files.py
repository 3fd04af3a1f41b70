"""What a finished run leaves for other programs: NetCDF by the CF conventions, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from preceptor import __version__
from preceptor.core.files import write_whole
from preceptor.core.optional import require
from preceptor.simulation.order import METRICS
from preceptor.simulation.record import Frames, Plan
from preceptor.simulation.zones import Array

REFERENCE = "Herho et al. 2026, arXiv:2602.07948; Couzin et al. 2002, J. Theor. Biol. 218, 1-11"


def write_netcdf(path: Path, frames: Frames, plan: Plan, series: Mapping[str, Array]) -> Path:
    """Write time, positions, velocities and all series, frame by frame, so that memory holds one frame; CF-1.8, HDF5 based.

    Args:
        path: the file; it is written aside and renamed.
        frames: of a run.
        plan: its parameters become attributes.
        series: name -> one value per frame.
    Raises:
        ImportError: h5netcdf is missing.
    """
    h5netcdf = require("h5netcdf", extra="simulation", purpose="NetCDF files")
    aside = path.with_name(f".{path.name}.partial")
    case = plan.case
    with h5netcdf.File(aside, "w") as file:
        file.dimensions = {"time": len(frames), "fish": case.agents, "spatial": 3}
        file.attrs.update(
            {
                "Conventions": "CF-1.8",
                "title": f"School of fish, case {plan.name}",
                "source": f"preceptor {__version__}, simulate schooling",
                "references": REFERENCE,
                "comment": "Lengths in body lengths, time in units in which a fish at speed 1 swims one of them.",
                "case": plan.name,
                "seed": plan.seed,
                "steps": case.steps,
                "steps_between_frames": plan.every,
                "start": "uniform" if case.ring is None else f"ring of radius {case.ring:g}",
                **asdict(case.zones),
            }
        )
        _add(file, "time", ("time",), np.array([f.step for f in frames]) * case.zones.dt, "time since the start", axis="T")
        _add(file, "fish", ("fish",), np.arange(case.agents, dtype=np.int32), "number of the fish")
        _add(file, "spatial", ("spatial",), np.array(["x", "y", "z"], dtype=object), "axis of space; z is depth")
        for name in ("positions", "velocities"):
            shape = (1, case.agents, 3)
            variable = file.create_variable(name, ("time", "fish", "spatial"), "f8", chunks=shape)
            variable.attrs.update({"units": "1", "long_name": f"{name} of the fish", "coordinates": "fish spatial"})
            for number, frame in enumerate(frames):
                variable[number] = getattr(frame, name)
        for name in METRICS:
            _add(file, name, ("time",), np.asarray(series[name]), name.replace("_", " "))
    return aside.replace(path)


def _add(file: object, name: str, dimensions: tuple[str, ...], values: np.ndarray, long_name: str, **more: str) -> None:
    text = values.dtype == object
    dtype = require("h5py", extra="simulation", purpose="NetCDF files").string_dtype() if text else values.dtype
    variable = file.create_variable(name, dimensions, dtype, data=values)  # pyright: ignore[reportAttributeAccessIssue]
    variable.attrs.update({"long_name": long_name, **({} if text else {"units": "1"}), **more})


def write_csv(
    folder: Path, frames: Frames, series: Mapping[str, Array], summary: Mapping[str, Mapping[str, float]], dt: float
) -> list[Path]:
    """Write ``series.csv`` (a row per frame), ``summary.csv`` (a row per measure) and ``final_state.csv`` (a row per fish)."""
    times = [[f.step, f.step * dt] for f in frames]
    last = frames[-1]
    state = np.concatenate([last.positions, last.velocities], axis=1)
    tables = {
        "series": (["step", "time", *METRICS], [[*t, *(series[name][i] for name in METRICS)] for i, t in enumerate(times)]),
        "summary": (["measure", *next(iter(summary.values()))], [[name, *values.values()] for name, values in summary.items()]),
        "final_state": (["fish", "x", "y", "z", "vx", "vy", "vz"], [[i, *row] for i, row in enumerate(state.tolist())]),
    }
    return [write_whole(folder / f"{name}.csv", _table(head, rows)) for name, (head, rows) in tables.items()]


def _table(head: list[str], rows: list[list[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([[repr(float(value)) if isinstance(value, float) else value for value in row] for row in rows])
    return text.getvalue()
