"""Sheets for raters: blind, complete, and read back to what was filled in."""

from __future__ import annotations

import csv
import json
import math

import pytest
from typer.testing import CliRunner

from preceptor.commands.raters import app
from preceptor.education.agreement import fleiss, tabulate
from preceptor.education.answer_files import AnswerFile
from preceptor.education.feedback import feedback_report
from preceptor.education.raters import rater_agreement, read_sheets, write_sheets

N = 12
SYSTEMS = {name: [f"{name} says {i}" for i in range(N)] for name in ("near", "tuned", "large")}
TRUTH = {"near": (0, 1, -1), "tuned": (1, 0, 0), "large": (1, 1, 1)}


def answers():
    return AnswerFile(
        ids=tuple(f"a{i}" for i in range(N)),
        problems=tuple(f"p{i // 4}" for i in range(N)),
        texts=tuple(f"answer {i}" for i in range(N)),
        scores=(None,) * N,
        feedback=("",) * N,
        solutions=("",) * N,
    )


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def fill(path, marks, preferred="large"):
    rows = rows_of(path)
    for row in rows:
        system = row["feedback"].split()[0]
        row["accurate"], row["relevant"], row["motivating"] = marks(system, row["id"])
        row["preferred"] = "1" if system == preferred else ""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_every_message_stands_once_in_every_sheet_in_an_order_that_tells_nothing(tmp_path):
    sheets = write_sheets(tmp_path, answers(), SYSTEMS, seed=3)
    assert [sheet.name for sheet in sheets] == ["rater-1.csv", "rater-2.csv"]
    orders = []
    for sheet in sheets:
        rows = rows_of(sheet)
        assert sorted(row["feedback"] for row in rows) == sorted(message for messages in SYSTEMS.values() for message in messages)
        for start in range(0, 3 * N, 3):  # messages of one answer stand together
            part = rows[start : start + 3]
            assert len({row["id"] for row in part}) == 1
            assert [row["message"] for row in part] == ["A", "B", "C"]
            assert all(row["feedback"].endswith(f" {row['id'][1:]}") and row["answer"] == f"answer {row['id'][1:]}" for row in part)
        assert len({tuple(row["feedback"].split()[0] for row in rows[i : i + 3]) for i in range(0, 3 * N, 3)}) > 3
        orders.append([row["id"] for row in rows[::3]])
    assert orders[0] != orders[1]
    again = write_sheets(tmp_path / "again", answers(), SYSTEMS, seed=3)
    assert again[0].read_text() == sheets[0].read_text()
    other = write_sheets(tmp_path / "other", answers(), SYSTEMS, seed=4)
    assert other[0].read_text() != sheets[0].read_text()


def test_what_was_filled_in_comes_back(tmp_path):
    one, two, three = write_sheets(tmp_path, answers(), SYSTEMS, raters=3)
    fill(one, lambda system, _: TRUTH[system])
    fill(two, lambda system, _: TRUTH[system])
    fill(three, lambda system, _: TRUTH[system], preferred="")
    ratings = read_sheets(tmp_path)
    assert {name: len(messages) for name, messages in ratings.items()} == {"large": N, "near": N, "tuned": N}
    assert ratings["near"][0] == [{"accurate": 0, "relevant": 1, "motivating": -1, "preferred": p} for p in ("large", "large", "")]
    found = feedback_report(ratings)
    assert (found["near"].accurate, found["near"].relevant, found["near"].demotivating) == (0, 1, 1)
    assert found["large"].preferred == pytest.approx(2 / 3)
    assert rater_agreement(ratings) == {"accurate": 1, "relevant": 1, "motivating": 1}


def test_agreement_falls_with_disagreement(tmp_path):
    one, two = write_sheets(tmp_path, answers(), SYSTEMS)
    fill(one, lambda system, _: TRUTH[system])
    fill(two, lambda system, key: (TRUTH[system][0] ^ (key == "a0"), 1, TRUTH[system][2]))
    ratings = read_sheets(tmp_path)
    found = rater_agreement(ratings)
    values = [[judgement["accurate"] for judgement in message] for messages in ratings.values() for message in messages]
    table = tabulate(values, categories=2)
    assert found["accurate"] == pytest.approx(1 - (1 - fleiss(table)[0]) * (2 * len(values) - 1) / (2 * len(values)))  # Krippendorff's
    assert found["relevant"] < found["accurate"] < 1
    alone = {"x": [[{"accurate": 1, "relevant": 1, "motivating": 0, "preferred": ""}]]}
    assert all(math.isnan(alpha) for alpha in rater_agreement(alone).values())


def test_some_answers_of_each_problem(tmp_path):
    (sheet,) = write_sheets(tmp_path, answers(), SYSTEMS, raters=1, per_problem=2)
    rows = rows_of(sheet)
    assert len(rows) == 3 * 6
    assert sorted({row["id"]: row["problem"] for row in rows}.values()) == ["p0", "p0", "p1", "p1", "p2", "p2"]


def test_bad_sheets_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="systems: expected 2 to 26, got 1"):
        write_sheets(tmp_path, answers(), {"near": SYSTEMS["near"]})
    with pytest.raises(ValueError, match="feedback of tuned: expected 12 messages, one for each answer, got 1"):
        write_sheets(tmp_path, answers(), {"near": SYSTEMS["near"], "tuned": ["x"]})
    with pytest.raises(ValueError, match="raters, per_problem: expected at least 1, got 2 and 0"):
        write_sheets(tmp_path, answers(), SYSTEMS, per_problem=0)
    (sheet,) = write_sheets(tmp_path, answers(), SYSTEMS, raters=1)
    with pytest.raises(ValueError, match=r"out: expected a folder without sheets, which raters may have filled in, got .*rater-1\.csv"):
        write_sheets(tmp_path, answers(), SYSTEMS)
    with pytest.raises(ValueError, match=r"rater-1.csv: accurate of message A of answer a\d+: expected 0, 1, got ''"):
        read_sheets(tmp_path)
    fill(sheet, lambda system, _: (1, "1.0", 2))
    with pytest.raises(ValueError, match=r"motivating of message A of answer a\d+: expected -1, 0, 1, got '2'"):
        read_sheets(tmp_path)
    fill(sheet, lambda system, _: (1, "1.0", 0))
    text = sheet.read_text()
    sheet.write_text(text.replace(",1,1.0,0,\n", ",1,1.0,0,1\n"))
    with pytest.raises(ValueError, match=r"preferred of message . of answer a\d+: expected one of an answer at most, got two"):
        read_sheets(tmp_path)
    sheet.write_text("\n".join(text.splitlines()[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"expected a row for message C of answer a\d+, got none"):
        read_sheets(tmp_path)


def test_the_command(tmp_path):
    runner = CliRunner()
    (tmp_path / "new.csv").write_text("id,answer\n1,it is 8\n2,no\n")
    for name, order in (("near", "12"), ("large", "21")):
        (tmp_path / name).mkdir()
        lines = "".join(f"{key},3,{name} says {key},,\n" for key in order)
        (tmp_path / name / "ratings.csv").write_text(f"id,score,feedback,flaws,failed\n{lines}")
    systems = [f"--system={name}={tmp_path / name}" for name in ("near", "large")]
    done = runner.invoke(app, ["sheets", str(tmp_path / "new.csv"), *systems, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    for number in (1, 2):
        sheet = tmp_path / "out" / f"rater-{number}.csv"
        assert all(row["feedback"].endswith(row["id"]) for row in rows_of(sheet))
        fill(sheet, lambda system, _: TRUTH[system])
    done = runner.invoke(app, ["report", str(tmp_path / "out")])
    expected = "large (2 messages): accurate 100 %, relevant 100 %, motivating 100 %, demotivating 0 %, preferred 100 %"
    assert expected in done.output
    done = runner.invoke(app, ["report", str(tmp_path / "out"), "--json"])
    assert json.loads(done.output)["systems"]["near"]["demotivating"] == 1
    (tmp_path / "large" / "ratings.csv").write_text("id,score,feedback\n1,3,x\n")
    for more, message in (
        (["--system=near"], "system: expected NAME=FOLDER, got 'near'"),
        (systems, "expected a rating of answer 2, got none"),
        (systems[:1], "systems: expected 2 to 26, got 1"),
    ):
        done = runner.invoke(app, ["sheets", str(tmp_path / "new.csv"), *more, "--out", str(tmp_path / "none")])
        assert done.exit_code == 2
        assert message in done.output
