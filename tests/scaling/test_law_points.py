"""Points from files and folders: columns by name, and what is refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from preceptor.scaling.forms import POWER_CONSTANT, SEPARABLE
from preceptor.scaling.points import read_points


def write(tmp_path, text):
    path = tmp_path / "points.csv"
    path.write_text(text)
    return path


def test_columns_are_found_by_their_usual_headings(tmp_path):
    points = read_points(write(tmp_path, "Model_Size,Training FLOP,LOSS,note\n10,600,3.5,a\n\n20,2400,3,b\n"))
    assert len(points) == 2
    assert points.column("N").tolist() == [10, 20]
    sizes, names = points.sizes(SEPARABLE)
    assert names == ("N", "D")
    assert sizes.tolist() == [[10, 10], [20, 20]]  # D = C / (6 N)
    assert points.sizes(POWER_CONSTANT, "C")[0].tolist() == [[600], [2400]]
    assert points.strata() is None


def test_columns_can_be_named(tmp_path):
    path = write(tmp_path, "width,tokens,test error,sweep\n10,5,3.5,a\n20,6,3,b\n")
    points = read_points(path, columns={"N": "width", "loss": "test error"})
    assert points.column("loss").tolist() == [3.5, 3]
    assert points.column("C").tolist() == [300, 720]
    assert points.strata() == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "ask", "message"),
    [
        (
            "Sise,loss\n1,2\n",
            "N",
            "N: expected a column out of n, size, model size, parameters, params in points.csv, got Sise, loss, nearest: 'Sise';"
            " name it: --columns N=HEADING",
        ),
        ("N,loss\n1,2\n3,x\n", "loss", "points.csv, row 2, loss: expected a number, got 'x'"),
        ("N,loss\n1,2\n3,-1\n", "loss", "points.csv, row 2, loss: expected a finite number above 0, got -1"),
        ("N,loss\n1,nan\n", "loss", "points.csv, row 1, loss: expected a finite number above 0, got nan"),
    ],
)
def test_cells_and_columns_that_do_not_pass(tmp_path, text, ask, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_points(write(tmp_path, text)).column(ask)


def test_files_that_do_not_pass(tmp_path):
    with pytest.raises(ValueError, match=r"^points: expected headings and rows in .*points.csv, got 1 lines$"):
        read_points(write(tmp_path, "N,loss\n"))
    with pytest.raises(ValueError, match=r"^points: expected 2 cells in row 2 of .*points.csv, got 3$"):
        read_points(write(tmp_path, "N,loss\n1,2\n1,2,3\n"))
    with pytest.raises(ValueError, match=r"^points: expected a CSV file or a folder of runs, got .*none.csv: No such file or directory$"):
        read_points(tmp_path / "none.csv")
    path = write(tmp_path, "N,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"^columns: expected a heading of .* out of N, loss, got 'los', nearest: 'loss'$"):
        read_points(path, columns={"loss": "los"})
    with pytest.raises(ValueError, match=r"^columns: expected one of N, D, .*, sweep, source before the equals sign, got 'M'$"):
        read_points(path, columns={"M": "N"})


def run(name, parameters, nll, steps=10, kind="run"):
    teacher = {"name": "teacher", "role": "teacher", "seeds": [{"seed": 0, "metrics": {"nll": 9.0}}]}
    row = {
        "name": name,
        "role": "method",
        "cost": {"parameters": parameters, "macs": 2 * parameters},
        "seeds": [{"seed": 0, "steps": steps, "metrics": {"nll": nll, "accuracy": 0.5}}],
    }
    return {"kind": kind, "rows": [teacher, row], "recipe": "training: {batch_size: 50}"}


def test_a_folder_of_runs_gives_a_row_per_student(tmp_path):
    for number, (name, parameters, nll) in enumerate([("dkd", 100, 1.5), ("dkd", 400, 1.2), ("ce", 100, 1.7)]):
        folder = tmp_path / f"run-{number}" / "deep"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(run(name, parameters, nll)))
    (tmp_path / "result.json").write_text(json.dumps({"kind": "scaling"}))
    with pytest.raises(ValueError, match=r"^method: expected a choice, as the runs are of several, got dkd, ce; give --method$"):
        read_points(tmp_path)
    with pytest.raises(ValueError, match=r"^method: expected one out of dkd, ce, got 'dk', nearest: 'dkd'$"):
        read_points(tmp_path, method="dk")
    points = read_points(tmp_path, method="dkd")
    assert points.column("N").tolist() == [100, 400]
    assert points.column("loss").tolist() == [1.5, 1.2]
    assert points.column("score").tolist() == [0.5, 0.5]
    assert points.column("D").tolist() == [500, 500]
    np.testing.assert_allclose(points.column("C"), 6 * 2 * np.array([100, 400]) * 500)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^runs: expected run directories with result.json in .*, got none$"):
        read_points(tmp_path / "empty")
