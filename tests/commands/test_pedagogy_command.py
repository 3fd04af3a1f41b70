"""``preceptor pedagogy`` against an endpoint on loopback."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import typer
from tests.commands.endpoint import serving
from typer.testing import CliRunner

from preceptor.commands.pedagogy import pedagogy
from preceptor.methods.pedagogy_benchmark import fraction_items

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(pedagogy)


@pytest.fixture
def folder(tmp_path):
    items = fraction_items(np.random.default_rng(0), 30)
    rows = [
        {"question": f"{item.question} ({i})", "options": item.options, "answer": item.answer if i else None, "category": "ab"[i % 2]}
        for i, item in enumerate(items)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "prices.csv").write_text(
        "model,input,output,released,accuracy\ngood,2,4,2025-03,\nbad,0,0,2024-02,\nold,3,3,2023-01,40\nother <i>,0.01,0.1,2025-06,41\n"
    )
    return tmp_path


def reply(messages):
    """Solve the last item."""
    lines = [line for line in messages[0]["content"].splitlines() if line]
    asked = next(i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("Which fraction"))
    top, bottom = map(int, lines[asked].split()[3].rstrip("?").split("/"))
    for line in lines[asked + 1 :]:
        a, _, b = line[3:].partition("/")
        if line[1:3] == ". " and int(a) * bottom == int(b) * top:
            return line[0]
    return "none"


def run(folder, *more, url):
    return CliRunner().invoke(app, [str(folder / "items.jsonl"), "--url", url, "--out", str(folder / "out"), *more])


def test_two_models_prices_and_page(folder):
    with serving(lambda messages: "A") as (bad, _), serving(reply) as (url, asked):
        words = ["--prices", str(folder / "prices.csv"), "--permutations", "cyclic"]
        assert run(folder, "--model", "bad", *words, url=bad).exit_code == 0
        done = run(folder, "--model", "bad", "--model", "good", *words, url=url)  # bad comes from the journal
        assert done.exit_code == 0, done.output
        assert len(asked) == 4 * 23  # 29 items with an answer, 3 + 3 examples
    assert "good: 100.0 % (" in done.output
    assert "bad: 25.0 % (" in done.output
    assert "bad - good: −75.0 points" in done.output
    result = json.loads((folder / "out" / "result.json").read_text())
    assert [one["name"] for one in result["frontier"]] == ["bad", "other <i>", "good"]
    assert [one["date"] for one in result["progress"]] == ["2023-01", "2024-02", "2025-03", "2025-06"]
    assert [one["value"] for one in result["progress"]] == [None, 25, 25, 41]  # for at most 0.10
    assert result["models"][0]["spent"] == pytest.approx(4 * 23 * (100 * 2 + 4) / 1e6)
    assert result["models"][1]["letters"] == {"A": 92, "B": 0, "none": 0}
    with (folder / "out" / "answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 23
    assert all(row["right"] == "1" for row in rows if row["model"] == "good")
    page = (folder / "out" / "report.html").read_text()
    assert "good answers 100.0 % right, more than every other model here." in page
    assert "1 items of the file have no answer" in page
    assert "other <i>" not in page


def test_a_stopped_run_goes_on(folder):
    with serving(reply) as (url, asked):
        stopped = run(folder, "--model", "good", "--max-tokens", "1500", "--parallel", "1", url=url)
        assert stopped.exit_code == 1, stopped.output
        assert 0 < len(asked) < 23
        assert run(folder, "--model", "good", url=url).exit_code == 0
        assert len(asked) == len(set(asked)) == 23


def test_how_answers_are_read_is_up_to_the_user(folder):
    with serving(lambda messages: f"I think the answer is {reply(messages)}.") as (url, _):
        strict = run(folder, "--model", "m", "--json", url=url)
        lenient = run(folder, "--model", "m", "--json", "--parsing", "lenient", "--shots", "0", url=url)
    scores = [json.loads(done.stdout)["models"][0]["scores"]["overall"] for done in (strict, lenient)]
    assert [(one["accuracy"], one["bad"], one["items"]) for one in scores] == [(0, 100, 23), (100, 0, 29)]


def test_sizes_years_and_an_accuracy_over_time(folder):
    rows = [json.loads(line) | {"year": "2019" if i % 2 else "test of 2020"} for i, line in enumerate((folder / "items.jsonl").open())]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "sizes.csv").write_text("model,parameters,released,accuracy\ngood,8e9,2020-03,\nold,7e10,2018-01,40\n")
    words = ["--prices", str(folder / "sizes.csv"), "--cost", "parameters", "--at-cost", "1e10", "--at-accuracy", "35", "--by", "year"]
    with serving(reply) as (url, _):
        done = run(folder, "--model", "good", *words, url=url)
    assert done.exit_code == 0, done.output
    assert "on the frontier: good, 100.0 % for 8 G parameters" in done.output
    assert "good: 100.0 % if every letter were right equally often" in done.output
    assert "good came out in 2020-03, after 12 of the items (2019): it may have learned from them" in done.output
    result = json.loads((folder / "out" / "result.json").read_text())
    assert result["categories"] == ["2019", "test of 2020"]
    assert [(one["date"], one["value"], one["price"]) for one in result["progress"]] == [("2018-01", None, 7e10), ("2020-03", 100, 8e9)]
    page = (folder / "out" / "report.html").read_text()
    assert "items in 2 years" in page
    assert "Least cost of 35 %" in page


def test_errors_are_one_line(folder):
    for more, message in (
        (["--model", "m", "--model", "m"], "model: expected each once, got m, m"),
        (["--model", "m", "--letter-prior", "test"], "letter_prior: expected parsing 'log-probs' with it, got 'strict-official'"),
        (["--model", "m", "--columns", "question"], "columns: expected NAME=COLUMN, got 'question'"),
        (
            ["--model", "m", "--columns", "question=questio"],
            "expected a column 'questio', got question, options, answer, category, nearest: 'question'",
        ),
        (["--model", "m", "--prices", str(folder / "none.csv")], "none.csv: expected an existing file, got none"),
    ):
        done = run(folder, *more, url="http://127.0.0.1:9/v1")
        assert done.exit_code == 2, done.output
        assert message in done.output
        assert len(done.output.strip().splitlines()) == 1
    done = run(folder, "--model", "m", url="http://127.0.0.1:9/v1")
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].startswith("error: ")
