"""``preceptor scaling fit``: answers, page, refusals."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from preceptor.commands.scaling import app
from preceptor.report.scaling import render


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def csv_of(path, heads, rows):
    path.write_text(
        "\n".join([",".join(heads), *(",".join(cell if isinstance(cell, str) else f"{cell:.8g}" for cell in row) for row in rows)]) + "\n"
    )
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    x = np.geomspace(1e4, 1e8, 10)
    data = np.array([(n, d) for n in np.geomspace(1e6, 1e9, 5) for d in np.geomspace(1e8, 1e10, 4)])
    pairs = np.array([[n, 1e6] for n in np.geomspace(2e5, 2e7, 6)] + [[1e6, n] for n in np.geomspace(2e5, 2e7, 6)])
    noise = np.exp(0.002 * rng.standard_normal(20))
    return {
        "size": csv_of(folder / "size.csv", ["N", "loss"], np.stack([x, (2 + (1e3 / x) ** 0.3) * noise[:10]], 1)),
        "joint": csv_of(
            folder / "joint.csv",
            ["N", "D", "loss"],
            np.column_stack([data, (1.8 + 400 * data[:, 0] ** -0.34 + 2000 * data[:, 1] ** -0.37) * noise]),
        ),
        "pair": csv_of(
            folder / "pair.csv",
            ["Ne", "Nd", "loss"],
            np.column_stack([pairs, (1.2 + 400 * pairs[:, 0] ** -0.18 * pairs[:, 1] ** -0.31) * noise[:12]]),
        ),
        "score": csv_of(folder / "score.csv", ["D", "BLEU"], np.stack([x, (np.log(x) - 5) ** 1.4 * noise[:10]], 1)),
    }


def result_of(table, out, *words):
    done = call("fit", table, "--out", out, "--draws", 40, *words)
    assert done.exit_code == 0, done.output
    assert (out / "report.html").exists()
    return json.loads((out / "result.json").read_text()), done.stdout


def test_what_size_for_this_loss(tables, tmp_path):
    result, said = result_of(tables["size"], tmp_path, "--loss", 2.1, "--loss", 1.5, "--at", "10x")
    reach, never, far = result["answers"]
    size = reach["values"]["N"]
    assert math.isclose(size["value"], 1e3 * 0.1 ** (-1 / 0.3), rel_tol=0.25)
    assert size["low"] < size["value"] < size["high"]
    assert never["values"]["N"]["value"] == "never"
    assert math.isclose(far["values"]["loss"]["value"], 2 + (1e3 / 1e9) ** 0.3, rel_tol=0.01)
    assert "What N for a loss of 2.1? N " in said
    assert "never: at or below the irreducible loss" in said


def test_what_loss_at_ten_times_the_budget(tables, tmp_path):
    result, _ = result_of(tables["joint"], tmp_path, "--law", "separable", "--compute", "10x", "--compute", "1e30")
    best, bold = result["answers"]
    assert math.isclose(best["values"]["N"]["value"] * best["values"]["D"]["value"], 10 * 1e9 * 1e10, rel_tol=1e-6)
    loss = best["values"]["loss"]
    assert 1.8 < loss["value"] < 2.3
    assert loss["low"] < loss["value"] < loss["high"]
    assert not best["bold"]
    assert bold["bold"]
    assert set(result["parameters"]) == {"A", "B", "E", "alpha", "beta"}


def test_a_budget_of_a_law_in_size_asks_the_same_law_in_compute(tables, tmp_path):
    result, _ = result_of(tables["joint"], tmp_path, "--compute", "10x")
    assert "the same law, fitted to compute" in result["answers"][0]["question"]
    done = call("fit", tables["size"], "--out", tmp_path / "b", "--compute", "10x", "--draws", 0)
    assert done.exit_code == 2
    assert "compute: expected a column of compute, or N and D, in size.csv, got neither" in done.stderr


def test_encoder_and_decoder(tables, tmp_path):
    result, _ = result_of(tables["pair"], tmp_path, "--law", "product", "--compute", "10x", "--loss", 1.8, "--cost", 1, 2)
    split = result["answers"][1]["values"]
    p_e, p_d = (result["parameters"][name]["value"] for name in ("p_e", "p_d"))
    assert math.isclose(split["Ne"]["value"] / split["Nd"]["value"], 2 * p_e / p_d, rel_tol=1e-9)
    assert [chart["title"] for chart in result["charts"]] == ["Loss against budget", "What another split costs"]
    page = (tmp_path / "report.html").read_text()
    assert "a law in Ne + Nd alone" in page
    assert ("A bold projection is" in page) == any(answer["bold"] for answer in result["answers"])
    assert "A bold projection is" not in render({**result, "answers": [{**answer, "bold": False} for answer in result["answers"]]})


def test_a_score_of_the_data(tables, tmp_path):
    result, said = result_of(tables["score"], tmp_path, "--law", "log", "--score", 30)
    data = result["answers"][0]["values"]["D"]["value"]
    assert math.isclose((math.log(data) - 5) ** 1.4, 30, rel_tol=0.02)
    assert said.startswith("score = (")
    assert " log D - " in said


def test_known_parameters_drops_and_json(tables, tmp_path):
    done = call("fit", tables["size"], "--out", tmp_path, "--draws", 0, "--fix", "E=2", "--drop", 2, "--json")
    result = json.loads(done.stdout)
    assert result["parameters"]["E"]["value"] == pytest.approx(2, rel=1e-12)
    assert result["points"]["dropped"] == 2
    assert len(result["points"]["y"]) == 8
    assert result["parameters"]["alpha"]["low"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--law", "separable"], "D: expected a column out of d, data, tokens, training tokens, examples in size.csv, got N, loss"),
        (["--score", "3"], "score: expected --loss for the law power-constant, got --score"),
        (["--at", "big"], "at: expected a number above 0 such as 1e9, or times the largest run such as 10x, got 'big'"),
        (["--at", "D=3"], "at: expected N=SIZE, got 'D=3'"),
        (["--fix", "E"], "fix: expected KEY=VALUE, got 'E'"),
        (["--fix", "E=much"], "fix: expected a number, got 'much'"),
        (["--cost", "1", "0"], "cost: expected two numbers above 0, got 1 0"),
        (["--drop", "8"], "points: expected at least 4 for the 3 parameters of the law power-constant, got 2"),
        (["--holdout", "2"], "holdout: expected a share in (0, 1), got 2.0"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(tables, tmp_path, words, message):
    done = call("fit", tables["size"], "--out", tmp_path / "out", "--draws", 0, *words)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_sources_of_pretraining_data_are_compared(tmp_path):
    data = [10.0**n for n in np.linspace(6, 10, 7)]
    scores = {"good": [(math.log(d) - 5) ** 1.4 for d in data], "bad": [20, 24, 27, 28, 26, 25, 23]}
    rows = [(name, d, score, 2 + d**-0.1) for name, column in scores.items() for d, score in zip(data, column, strict=True)]
    table = csv_of(tmp_path / "sources.csv", ["mixture", "tokens", "BLEU", "loss"], rows)
    done = call("sources", table, "--budget", 1e11, "--without", 10, "--draws", 20, "--json")
    assert done.exit_code == 0, done.output
    good, bad = json.loads(done.stdout)["sources"]
    truth = (math.log(1e11) - 5) ** 1.4
    assert (good["source"], good["verdict"], bad["verdict"]) == ("good", "aligned", "misaligned")
    assert good["foretold"] == pytest.approx(truth, rel=1e-3)
    assert good["gain"] == pytest.approx(truth - 10, rel=1e-2)
    assert good["low"] <= good["foretold"] <= good["high"]
    assert good["parameters"]["beta"] == pytest.approx(1.4, rel=0.05)
    said = call("sources", table, "--budget", 1e11, "--draws", 0).stdout.splitlines()
    assert said[0].startswith(f"good: aligned, score {truth:.4g} with 1e+11 tokens; held-out error 0.0%, of a straight line ")
    assert said[1].startswith("bad: misaligned, score ")
    assert "  warning: score: falls by 5 with more pretraining data, they do not suit the task" in said
    over = call("sources", table, "--budget", 1e11, "--draws", 0, "--ceiling", 30).stdout
    assert "the law passes the ceiling 30" in over
    plain = csv_of(tmp_path / "plain.csv", ["D", "score", "loss"], [row[1:] for row in rows])
    done = call("sources", plain, "--budget", 1e11)
    assert (done.exit_code, done.stderr) == (2, "error: source: expected a column source in plain.csv, got D, score, loss\n")
    done = call("sources", plain, "--columns", "source=D", "--budget", 1e11)
    assert done.stderr == "error: 1000000: data: expected at least two sizes, got 1\n"


def test_the_page_is_whole_and_escapes(tables, tmp_path):
    result, _ = result_of(tables["joint"], tmp_path, "--law", "separable", "--loss", 2.2)
    page = (tmp_path / "report.html").read_text()
    assert page == render(result)
    assert not re.search(r"(src|href)=[\"']?(http|//)", page)
    assert page.count("<figure>") == 3
    assert "<sup>−0.3" in page
    hostile = render({**result, "title": "<script>", "warnings": ["<b>"], "quantities": ["<i>", "D"]})
    assert "<script>" not in hostile
    assert "<b>" not in hostile.replace("<b>1.", "").split("</header>")[1]


def test_a_page_without_intervals_answers_or_foresight(tables, tmp_path):
    few = csv_of(tmp_path / "few.csv", ["N", "loss"], [(10.0**n, 2 + 10.0 ** (-0.3 * n)) for n in range(3, 7)])
    done = call("fit", few, "--out", tmp_path / "few")
    assert done.exit_code == 0, done.output
    assert "warning: no intervals: expected at least 6 distinct sizes for a bootstrap, got 4" in done.stdout
    page = (tmp_path / "few" / "report.html").read_text()
    assert "What to know" in page
    assert "Does it foretell?" not in page


def test_losses_that_do_not_change_are_reported_not_fitted_to(tmp_path):
    flat = csv_of(tmp_path / "flat.csv", ["N", "D", "loss"], [(10.0**n, 10.0 ** (13 - n), 2.0) for n in range(3, 11)])
    done = call("fit", flat, "--out", tmp_path / "flat", "--draws", 5, "--loss", 2.5, "--loss", 1, "--compute", "10x", "--at", "10x")
    assert done.exit_code == 2  # N D is the same in every row: no law of compute
    done = call("fit", flat, "--out", tmp_path / "flat", "--draws", 5, "--loss", 2.5, "--loss", 1, "--at", "10x")
    assert done.exit_code == 0, done.output
    assert "alpha: at its bound 0, the loss does not fall with" in done.stdout
    result = json.loads((tmp_path / "flat" / "result.json").read_text())
    assert result["parameters"]["E"]["value"] is None
    assert result["parameters"]["A"]["value"] is None
    assert result["answers"][2]["values"]["loss"]["value"] == pytest.approx(2)
