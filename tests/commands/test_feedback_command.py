"""``preceptor feedback``: three scorers, and errors in one line."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import typer
from tests.commands.endpoint import serving
from tests.education.test_tuned_scorer import SAID, SCORES, TEXTS, scorer
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


@pytest.mark.parametrize("name", ["nearest", "trained"])
def test_past_answers_teach(folder, name):
    done = run(folder, "--past", folder / "past.csv", "--scorer", name)
    assert done.exit_code == 0, done.output
    assert "30 answers, 0 without a score" in done.output
    result = json.loads((folder / "out" / "result.json").read_text())
    assert result["scoring"]["rmse"] < 1.3
    rows = ratings(folder)
    assert [row["id"] for row in rows] == [str(i) for i in range(30)]
    assert all(bool(row["feedback"]) == (name == "nearest") for row in rows)


def test_one_scorer_learns_from_another(folder):
    done = run(folder, "--past", folder / "past.csv")
    assert done.exit_code == 0, done.output
    taught = [(row["problem"], row["answer"], row["score"], row["feedback"]) for row in ratings(folder)]
    (folder / "out" / "ratings.csv").rename(folder / "taught.csv")
    again = run(folder, "--past", folder / "taught.csv")  # every answer stands there already
    assert again.exit_code == 0, again.output
    assert [(row["problem"], row["answer"], row["score"], row["feedback"]) for row in ratings(folder)] == taught


def test_far_answers_get_no_score(folder):
    done = run(folder, "--past", folder / "past.csv", "--quantile", "0.1")
    assert done.exit_code == 0, done.output
    rows = ratings(folder)
    left = [row for row in rows if not row["score"]]
    assert 0 < len(left) < len(rows)
    assert f"30 answers, {len(left)} without a score" in done.output
    assert all(row["flaws"] == row["feedback"] == "" for row in left)


def test_a_tuned_model_can_be_used_again(folder):
    small = scorer(context=400)
    small.save(folder / "small")
    rows = list(zip(TEXTS, SCORES, SAID, strict=True))
    for name in ("past", "new"):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["id", "problem", "answer", "score", "feedback"], *([i, "p", *row] for i, row in enumerate(rows))])
    tune = ("--past", folder / "past.csv", "--scorer", "tuned", "--epochs", 2)
    done = run(folder, *tune, "--model", f"hf:{folder / 'small'}")
    assert done.exit_code == 0, done.output
    assert f"--model hf:{folder / 'out' / 'scorer'}" in done.output
    first = ratings(folder)
    again = run(folder, *tune, "--model", f"hf:{folder / 'small'}")  # goes on, at the end, where it was
    assert again.exit_code == 0, again.output
    assert ratings(folder) == first
    done = run(folder, "--scorer", "tuned", "--model", f"hf:{folder / 'out' / 'scorer'}")
    assert done.exit_code == 0, done.output
    assert ratings(folder) == first


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
        (
            [],
            "scorer: expected --past for nearest and trained, --model for chat, --model and perhaps --past for tuned, got --scorer nearest",
        ),
        (["--past", folder / "past.csv", "--scorer", "tuned"], "--model and perhaps --past for tuned, got --scorer tuned"),
        (["--past", folder / "past.csv", "--scorer", "trained", "--quantile", "0.9"], "quantile: expected --scorer nearest, got trained"),
        (["--scorer", "tuned", "--model", "hf:./nowhere"], "expected a causal language model of transformers, got 'hf:./nowhere'"),
        (["--past", folder / "bad.csv"], "bad.csv: expected a column 'answer', got id, anwser, score, nearest: 'anwser'"),
        (["--past", folder / "none.csv"], "none.csv: expected a score of every answer, got missing ones"),
        (["--past", folder / "five.csv"], "five.csv: score of 1: expected a whole number 0 to 4, got '5'"),
    ):
        done = run(folder, *more)
        assert (done.exit_code, len(done.output.strip().splitlines())) == (2, 1), done.output
        assert message in done.output
