"""``preceptor simulate schooling``: its files, its page, a kill and a resume, bad input."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from preceptor.commands.simulate import app
from preceptor.simulation.record import Frames

FILES = {
    "final_state.csv",
    "frames.bin",
    "picture.png",
    "report.html",
    "result.json",
    "run.json",
    "schooling.nc",
    "series.csv",
    "summary.csv",
}


def call(*words):
    return CliRunner().invoke(app, ["schooling", *map(str, words)])


def test_a_run_leaves_its_page_and_its_files(tmp_path):
    done = call("--case", "torus", "--agents", 30, "--steps", 20, "--every", 5, "--seed", 3, "--out", tmp_path, "noise=0.1", "turn=slerp")
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert "In the second half of 20 steps" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["zones"]["noise"], result["zones"]["turn"], result["agents"], result["seed"]) == (0.1, "slerp", 30, 3)
    assert len(result["time"]) == 5
    page = (tmp_path / "report.html").read_text()
    assert "https://" not in page
    assert "http://" not in page
    assert not re.search(r"<(?:script|img|link)[^>]* (?:src|href)=", page)
    assert "default-src 'none'" in page
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_options_reach_the_measures(tmp_path):
    words = ("--agents", 30, "--steps", 4, "--json")
    plain = json.loads(call(*words, "--out", tmp_path / "a").stdout)
    other = call(*words, "--out", tmp_path / "b", "--sphere", "equal-area", "--correction", "--centroid", "circular")
    found = json.loads(other.stdout)
    assert all(found["series"][name] != plain["series"][name] for name in ("polarization_entropy", "school_cohesion_entropy", "spread"))
    assert plain["warnings"]
    assert "warning: box: expected at least twice r_attraction, 30" in other.stderr


def test_a_mill_is_measured_about_its_circular_mean(tmp_path):
    words = ("--case", "mill", "--agents", 20, "--steps", 2, "--json")
    assert json.loads(call(*words, "--out", tmp_path / "a").stdout)["centroid"] == "circular"
    assert json.loads(call(*words, "--out", tmp_path / "b", "--centroid", "mean").stdout)["centroid"] == "mean"


def test_a_killed_run_keeps_its_frames_and_goes_on_to_the_same_end(tmp_path):
    words = ["--case", "torus", "--agents", "300", "--steps", "9000", "--every", "2"]
    code = "from preceptor.commands.simulate import app; app()"
    process = subprocess.Popen([sys.executable, "-c", code, "schooling", *words, "--out", str(tmp_path / "a")], stderr=subprocess.DEVNULL)
    wait_for_frames(process, tmp_path / "a")
    process.kill()
    process.wait()
    kept = len(Frames(tmp_path / "a"))
    assert 4 <= kept < 4501
    assert call(*words, "--out", tmp_path / "a").exit_code == 2  # not without --resume
    process = subprocess.Popen(
        [sys.executable, "-c", code, "schooling", *words, "--resume", "--out", str(tmp_path / "a")], stderr=subprocess.PIPE, text=True
    )
    wait_for_frames(process, tmp_path / "a", kept + 3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert f"--out {tmp_path / 'a'} --agents=300 --steps=9000 --every=2 --resume" in said
    words[5] = str(4 + 2 * len(Frames(tmp_path / "a")))
    assert call(*words, "--resume", "--out", tmp_path / "a").exit_code == 0
    assert call(*words, "--out", tmp_path / "b").exit_code == 0
    first, second = ((tmp_path / name / "frames.bin").read_bytes() for name in "ab")
    assert first == second


def wait_for_frames(process, folder, number=4):
    limit = time.monotonic() + 60
    while not (folder / "run.json").exists() or len(Frames(folder)) < number:
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("r_repulsion=3",), "r_repulsion: expected a number below r_orientation 3, got 3"),
        (("r_repulsoin=3",), "nearest: 'r_repulsion'"),
        (("noise",), "parameters: expected KEY=VALUE, got 'noise'"),
        (("--resume",), "out: expected the folder of a run of schooling, with its run.json, got"),
        (("--agents", 0), "agents"),
        (("--case", "shoal"), "shoal"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, words, message):
    done = call("--out", tmp_path / "out", *words)
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    done = call("--steps", 1, "--out", tmp_path / "file")
    assert done.exit_code == 2
    assert "out: expected a writable directory" in done.stderr
