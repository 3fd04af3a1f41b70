"""A sweep: each run is that of `simulate`, nothing finished is lost, and the page and the command say what was found."""

from __future__ import annotations

import csv
import json
import os
import re
import signal

import numpy as np
import pytest
from typer.testing import CliRunner

from preceptor.commands.simulate import app
from preceptor.report.school_sweep import lines, render
from preceptor.simulation.motion import simulate
from preceptor.simulation.order import METRICS, metrics_series
from preceptor.simulation.sweep import Sweep, sweep
from preceptor.simulation.zones import CASES, Case

pytestmark = pytest.mark.filterwarnings("ignore::preceptor.simulation.zones.SmallBox")


def plan(values=(2.5, 6.0), seeds=(0, 1), **more):
    case = Case(zones=CASES["swarm"].zones, agents=12, steps=20)
    return Sweep(**{"name": "swarm", "case": case, "parameter": "r_orientation", "values": values, "seeds": seeds, "every": 5, **more})


def test_every_run_is_that_of_its_zones_and_seed(tmp_path):
    asked = plan()
    found = sweep(asked, tmp_path)
    assert [(run["value"], run["seed"]) for run in found["runs"]] == [(2.5, 0), (2.5, 1), (6.0, 0), (6.0, 1)]
    rng = np.random.default_rng(1)
    zones = asked.case.zones.changed({"r_orientation": "6"})
    frames = [frame for frame in simulate(asked.case.start(rng), zones, rng, steps=20) if frame.step in (10, 15, 20)]
    slow = metrics_series(frames, zones.box)
    assert all(found["runs"][3][name] == pytest.approx(slow[name].mean(), abs=1e-12) for name in METRICS)
    pair = [found["runs"][i]["polarization"] for i in (2, 3)]
    assert found["table"]["polarization"]["mean"][1] == pytest.approx(np.mean(pair))
    assert found["table"]["polarization"]["sd"][1] == pytest.approx(abs(pair[0] - pair[1]) / 2**0.5)
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["r_orientation"]) for row in rows] == [2.5, 2.5, 6, 6]
    assert float(rows[3]["polarization"]) == found["runs"][3]["polarization"]
    assert json.loads((tmp_path / "result.json").read_text()) == found


def test_options_reach_the_measures(tmp_path):
    usual = sweep(plan(), tmp_path / "usual")["runs"][0]
    for name, change in (("centroid", "circular"), ("sphere", "equal-area"), ("correction", True), ("every", 2)):
        other = sweep(plan(**{name: change}), tmp_path / name)["runs"][0]
        assert other != usual, name


def test_finished_runs_are_kept_and_more_can_be_added(tmp_path):
    whole = sweep(plan(), tmp_path / "whole")

    def stop(done, total):
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Exception, match="SIGTERM between two trials, saved in"):
        sweep(plan(), tmp_path / "cut", progress=stop)
    kept = (tmp_path / "cut" / "runs.jsonl").read_text()
    assert len(kept.splitlines()) == 3
    (tmp_path / "cut" / "runs.jsonl").write_text(kept + '{"value": 6.0, "se')  # torn
    assert sweep(plan(), tmp_path / "cut", resume=True) == whole
    wider = sweep(plan(values=(2.5, 4.0, 6.0), seeds=(0, 1, 2)), tmp_path / "cut", resume=True)
    assert len(wider["runs"]) == 9
    assert [run for run in wider["runs"] if run["value"] != 4 and run["seed"] < 2] == whole["runs"]
    with pytest.raises(ValueError, match=r"every: expected 5 like the sweep in .*, got 4"):
        sweep(plan(every=4), tmp_path / "cut", resume=True)
    with pytest.raises(ValueError, match="out: expected a folder without a sweep, or resume"):
        sweep(plan(), tmp_path / "cut")
    with pytest.raises(ValueError, match=r"out: expected the folder of a sweep, with its sweep\.json"):
        sweep(plan(), tmp_path, resume=True)


def test_bad_plans_are_refused_before_the_first_run():
    for change, message in (
        ({"values": ()}, r"values: expected at least one, each once, got \[\]"),
        ({"seeds": (1, 1)}, r"seeds: expected at least one, each once, got \[1, 1\]"),
        ({"every": 0}, "every: expected at least 1, got 0"),
        ({"values": (3.0, 90.0)}, "r_orientation: expected at most r_attraction 15, got 90"),
        ({"parameter": "r_orient"}, "r_orient: expected one of .*nearest: .*r_orientation"),
        ({"parameter": "turn"}, "turn: expected 'nlerp' or 'slerp', got '2.5'"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(**change)


def test_page_and_command(tmp_path):
    words = [
        "sweep",
        "r_orientation=2.5:6:2",
        "noise=0.1",
        "--agents",
        "12",
        "--steps",
        "20",
        "--seeds",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "By r orientation the school is most often" in done.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["values"] == [2.5, 6.0]
    assert result["case"]["zones"]["noise"] == 0.1
    page = (tmp_path / "out" / "report.html").read_text()
    assert page == render(result)
    assert not re.search(r"<(?:script|img|link)", page)
    for value in result["values"]:
        assert f"{value:g}" in page
    assert len(list(lines(result))) == 3
    again = CliRunner().invoke(app, [*words, "--resume", "--json"])
    assert json.loads(again.stdout) == result
    for more, message in (
        ("r_orientation=2:6", "r_orientation: expected numbers like 2,4,8 or first:last:count with count >= 2, got '2:6'"),
        ("r_orientation=a", "r_orientation: expected numbers like 2,4,8"),
        ("r_orientation=1:2:1", "count >= 2"),
        ("r_orientation", "parameters: expected KEY=VALUE, got 'r_orientation'"),
    ):
        done = CliRunner().invoke(app, ["sweep", more, "--out", str(tmp_path / "none")])
        assert (done.exit_code, message in done.output) == (2, True), done.output
        assert not (tmp_path / "none").exists()
