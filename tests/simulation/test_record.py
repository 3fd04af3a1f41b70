"""Runs that are written down as they go, and the files they leave."""

import csv
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import xarray

from preceptor.core.signals import Interrupted
from preceptor.simulation.motion import simulate
from preceptor.simulation.order import METRICS, metrics
from preceptor.simulation.record import Frames, Plan, record
from preceptor.simulation.run import run
from preceptor.simulation.zones import CASES


def plan(steps=12, every=3, **changes):
    case = replace(CASES["torus"], agents=20, steps=steps)
    return replace(Plan(name="torus", case=case, seed=4, every=every), **changes)


def same(first, second):
    return [f.step for f in first] == [f.step for f in second] and all(
        np.array_equal(a.positions, b.positions) and np.array_equal(a.velocities, b.velocities) for a, b in zip(first, second, strict=True)
    )


def test_frames_are_those_of_simulate(tmp_path):
    frames = record(plan(), tmp_path)
    case, rng = plan().case, np.random.default_rng(4)
    assert same(frames, list(simulate(case.start(rng), case.zones, rng, steps=12, every=3)))
    assert len(frames) == 5
    assert [f.step for f in frames[1:3]] == [3, 6]


def test_a_run_cut_anywhere_goes_on_to_the_same_frames(tmp_path):
    whole = record(plan(), tmp_path / "whole")
    content = (tmp_path / "whole" / "frames.bin").read_bytes()
    size = len(content) // 5
    for kept in (0, 10, size, size + 1, 3 * size - 1, 5 * size):
        out = tmp_path / str(kept)
        record(plan(steps=3), out)
        (out / "frames.bin").write_bytes(content[:kept])
        assert len(Frames(out)) == kept // size
        assert same(record(plan(), out, resume=True), whole)
    torn = tmp_path / "torn"
    record(plan(steps=3), torn)
    (torn / "frames.bin").write_bytes(content[: 2 * size - 40] + b"?" * 40)
    assert same(record(plan(), torn, resume=True), whole)


def test_a_finished_run_can_be_made_longer(tmp_path):
    record(plan(steps=6), tmp_path / "a")
    assert same(record(plan(), tmp_path / "a", resume=True), record(plan(), tmp_path / "b"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_after_a_step_with_all_frames_saved(tmp_path, number):
    def stop(done, total):
        if done == 7:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="after step 6, saved in"):
        record(plan(), tmp_path / "a", progress=stop)
    assert [f.step for f in Frames(tmp_path / "a")] == [0, 3, 6]
    assert same(record(plan(), tmp_path / "a", resume=True), record(plan(), tmp_path / "b"))


def test_bad_folders(tmp_path):
    record(plan(), tmp_path)
    with pytest.raises(ValueError, match=r"^out: expected a folder without a run, or resume, got "):
        record(plan(), tmp_path)
    with pytest.raises(ValueError, match=r"^seed: expected 4 like the run in .*, got 5$"):
        record(plan(seed=5), tmp_path, resume=True)
    case = replace(plan().case, zones=replace(plan().case.zones, noise=0.1))
    with pytest.raises(ValueError, match=r"^noise: expected 0.05 like the run in .*, got 0.1$"):
        record(plan(case=case), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"^steps: expected at least the 12 that .* holds, got 3$"):
        record(plan(steps=3), tmp_path, resume=True)
    for content in (None, "{", "{}"):
        (tmp_path / "no").mkdir(exist_ok=True)
        if content is not None:
            (tmp_path / "no" / "run.json").write_text(content)
        with pytest.raises(ValueError, match=r"^out: expected the folder of a run of schooling, with its run.json, got "):
            record(plan(), tmp_path / "no", resume=True)


def test_the_files_hold_the_run(tmp_path):
    result, frames = run(plan(), tmp_path, centroid="circular")
    wanted = [metrics(f.positions, f.velocities, result["zones"]["box"], centroid="circular") for f in frames]
    with xarray.open_dataset(tmp_path / "schooling.nc", engine="h5netcdf") as data:
        assert dict(data.sizes) == {"time": 5, "fish": 20, "spatial": 3}
        assert data.attrs["Conventions"] == "CF-1.8"
        assert data.attrs["r_attraction"] == 10
        assert data.attrs["seed"] == 4
        assert data.time.values.tolist() == pytest.approx([0, 0.3, 0.6, 0.9, 1.2])
        assert data.spatial.values.tolist() == ["x", "y", "z"]
        assert np.array_equal(data.positions.values, [f.positions for f in frames])
        assert np.array_equal(data.velocities.values, [f.velocities for f in frames])
        for name in METRICS:
            assert data[name].values.tolist() == [row[name] for row in wanted]
        assert all("units" in data[name].attrs and "long_name" in data[name].attrs for name in (*METRICS, "positions", "velocities"))
    with (tmp_path / "series.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["rotation"]) for row in rows] == [row["rotation"] for row in wanted]
    with (tmp_path / "summary.csv").open() as file:
        found = {row["measure"]: row for row in csv.DictReader(file)}
    assert float(found["polarization"]["mean"]) == result["summary"]["polarization"]["mean"]
    final = np.loadtxt(tmp_path / "final_state.csv", delimiter=",", skiprows=1)
    assert np.array_equal(final[:, 1:4], frames[-1].positions)
    assert np.array_equal(final[:, 4:], frames[-1].velocities)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
