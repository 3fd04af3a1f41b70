"""``preceptor feedback``: three scorers, and errors in one line."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import typer
from tests.commands.endpoint import serving
from typer.testing import CliRunner

from preceptor.commands.feedback import feedback
from preceptor.miniature.ratios import PROBLEM, ratio_answers

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(feedback)


def table(path, made):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "problem", "answer", "score", "feedback"])
        writer.writerows([i, PROBLEM, *row] for i, row in enumerate(zip(made.texts, made.scores, made.messages, strict=True)))


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    table(tmp_path / "past.csv", ratio_answers(generator, 80))
    table(tmp_path / "new.csv", ratio_answers(generator, 30))
    return tmp_path


def run(folder, *more):
    return CliRunner().invoke(app, [str(folder / "new.csv"), "--out", str(folder / "out"), *map(str, more)])


def ratings(folder):
    with (folder / "out" / "ratings.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("scorer", ["nearest", "trained"])
def test_past_answers_teach(folder, scorer):
    done = run(folder, "--past", folder / "past.csv", "--scorer", scorer)
    assert done.exit_code == 0, done.output
    assert "30 answers, 0 without a score" in done.output
    result = json.loads((folder / "out" / "result.json").read_text())
    assert result["scoring"]["rmse"] < 1.3
    rows = ratings(folder)
    assert [row["id"] for row in rows] == [str(i) for i in range(30)]
    assert all(bool(row["feedback"]) == (scorer == "nearest") for row in rows)


def test_a_model_with_a_rubric(folder):
    (folder / "new.csv").write_text("id,answer,solution\n1,it is 14,8 dollars\n2,,8 dollars\n3,hm,8 dollars\n")

    def reply(messages):
        return "no" if "<answer>hm" in messages[0]["content"] else '{"score": 1, "feedback": "It is 8."}'

    with serving(reply) as (url, asked):
        done = run(folder, "--scorer", "chat", "--model", "m", "--url", url)
    assert done.exit_code == 0, done.output
    assert len(asked) == 3  # the empty one is not asked about, the odd one twice
    first, second, third = ratings(folder)
    assert (first["score"], first["flaws"]) == ("1", "gives the answer away")
    assert second["score"] == "0"
    assert (third["score"], third["failed"][:14]) == ("", "expected Rated")
    assert json.loads((folder / "out" / "result.json").read_text())["scoring"] is None


def test_errors_are_one_line(folder):
    (folder / "bad.csv").write_text("id,anwser,score\n1,x,1\n")
    (folder / "none.csv").write_text("id,answer,score\n1,x,\n")
    (folder / "five.csv").write_text("id,answer,score\n1,x,5\n")
    for more, message in (
        ([], "scorer: expected --past for nearest and trained, --model for chat, got --scorer nearest"),
        (["--past", folder / "bad.csv"], "bad.csv: expected a column 'answer', got id, anwser, score, nearest: 'anwser'"),
        (["--past", folder / "none.csv"], "none.csv: expected a score of every answer, got missing ones"),
        (["--past", folder / "five.csv"], "five.csv: score of 1: expected a whole number 0 to 4, got '5'"),
    ):
        done = run(folder, *more)
        assert (done.exit_code, len(done.output.strip().splitlines())) == (2, 1), done.output
        assert message in done.output
