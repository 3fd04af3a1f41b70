"""The small examples run as they stand, and what they print and leave behind is what they say."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def test_own_model(tmp_path, monkeypatch, capsys):
    first = run("own_model", tmp_path, monkeypatch, capsys)
    student, teacher, loaded = map(float, re.findall(r"(?:student|teacher|loaded) +([\d.]+)", first))
    assert loaded == student > 0.4  # chance is 0.2
    assert teacher > student
    assert (tmp_path / "runs" / "own_model" / "report.html").exists()
    assert run("own_model", tmp_path, monkeypatch, capsys) == first  # read back


def test_own_method(tmp_path, monkeypatch, capsys):
    printed = run("own_method", tmp_path, monkeypatch, capsys)
    accuracy = {name: float(value) for name, value in re.findall(r"^([\w-]+) +([\d.]+)$", printed, re.M)}
    assert accuracy.keys() == {"teacher", "ce", "matching", "classic-kd"}
    assert min(accuracy.values()) > 0.3
    gap = float(re.search(r"^matching - ce: ([+-][\d.]+), ", printed, re.M)[1])
    assert gap == pytest.approx(accuracy["matching"] - accuracy["ce"], abs=0.0011)  # rounded to three places
    assert list(tmp_path.iterdir()) == []


def test_hugging_face(tmp_path, monkeypatch, capsys):
    printed = run("hugging_face", tmp_path, monkeypatch, capsys)
    student, teacher = map(float, re.findall(r"(?:student|teacher) ([\d.]+)", printed))
    assert student > 0.5  # chance is 0.1
    assert teacher > 0.5
    assert printed.splitlines()[-1] == "2 layers of 4"
