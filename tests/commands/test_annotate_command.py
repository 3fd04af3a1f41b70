"""``preceptor annotate`` against an endpoint on loopback: files, page, going on after a stop, and errors in one line."""

from __future__ import annotations

import csv
import json

import pytest
import typer
from tests.commands.endpoint import serving
from typer.testing import CliRunner

from preceptor.commands.annotate import annotate

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(annotate)

RUBRIC = """
categories:
  - name: gratitude
    statement: It contains the word thank.
  - name: question
    statement: It asks a <b>question</b>.
"""


def reply(messages):
    text = messages[0]["content"]
    comment = text.partition("<comment>")[2].partition("</comment>")[0]
    if "odd" in comment:
        return "I cannot say"
    return str("thank" in comment if "word thank" in text else "?" in comment).lower()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    rows = ["id,comment,H1:gratitude,H2:gratitude,H1:question,H2:question"]
    for i in range(40):
        thanks, asks = i % 3 == 0, i % 2 == 0
        text = f"number {i}{' thank you' * thanks}{'?' * asks}{' odd' * (i == 7)} <script>alert(1)</script>"
        rows.append(f"c{i},{text},{int(thanks)},{int(thanks)},{int(asks)},{int(asks) if i else 0}")
    (tmp_path / "comments.csv").write_text("\n".join(rows))
    return tmp_path


def run(folder, *more, url):
    words = [
        str(folder / "comments.csv"),
        "--rubric",
        str(folder / "rubric.yaml"),
        "--model",
        "m",
        "--url",
        url,
        "--out",
        str(folder / "out"),
    ]
    return CliRunner().invoke(app, [*words, "--draws", "100", *more])


def test_labels_agreement_cost_and_page(folder):
    with serving(reply) as (url, asked):
        done = run(folder, "--price", "1", "2", url=url)
    assert done.exit_code == 0, done.output
    assert "gratitude: 14 of 39 labelled comments; kappa people 1.000, people and model 1.000" in done.output
    assert ": scale (" in done.output
    assert "without a label: 2 of 80" in done.output
    result = json.loads((folder / "out" / "result.json").read_text())
    assert len(asked) == 84  # two comments twice more
    assert result["cost"]["money"] == pytest.approx(84 * (100 * 1 + 1 * 2) / 1e6)
    assert result["cost"]["per_comment"] == pytest.approx(result["cost"]["money"] / 40)
    question = result["categories"][1]["reliability"]
    assert question["gate"] == "scale"
    assert question["people"]["H1 and H2"]["kappa"]["value"] < 1
    with (folder / "out" / "labels.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", f"gratitude@{result['categories'][0]['version']}", f"question@{result['categories'][1]['version']}"]
    assert (rows[1], rows[8]) == (["c0", "1", "1"], ["c7", "", ""])
    page = (folder / "out" / "report.html").read_text()
    assert "<script>" not in page
    assert "<b>question</b>" not in page
    assert "m can be left to label gratitude and question." in page


def test_a_stopped_run_goes_on_and_asks_nothing_twice(folder):
    with serving(reply) as (url, asked):
        stopped = run(folder, "--max-tokens", "4000", "--parallel", "1", url=url)
        assert stopped.exit_code == 1
        assert stopped.output.splitlines()[-1].startswith("error: budget")
        first = len(asked)
        assert 0 < first < 40
        assert not (folder / "out" / "result.json").exists()
        assert run(folder, url=url).exit_code == 0
        assert len(asked) == 84
        assert len(set(asked)) == 84
        assert run(folder, "--json", url=url).exit_code == 0
        assert len(asked) == 84
    replayed = run(folder, "--replay", url=url)
    assert replayed.exit_code == 0, replayed.output


def test_without_people_there_are_labels_and_no_verdict(folder):
    text = (folder / "comments.csv").read_text().splitlines()
    (folder / "comments.csv").write_text("\n".join(",".join(line.split(",")[:2]) for line in text))
    with serving(reply) as (url, _):
        done = run(folder, url=url)
    assert done.exit_code == 0
    assert "kappa" not in done.output
    assert "nobody&#x27;s labels" in (folder / "out" / "report.html").read_text()


def test_a_student_labels_more_comments(folder):
    rows = (folder / "comments.csv").read_text().splitlines()
    coded = [*rows[:16], *(f"{line.rsplit(',', 4)[0]},,,," for line in rows[16:])]  # 15 comments that people labelled
    (folder / "comments.csv").write_text("\n".join(coded))
    (folder / "more.csv").write_text("id,comment\nm1,number 77 thank you <script>\nm2,number 78?\n")
    with serving(reply) as (url, asked):
        done = run(folder, "--student", str(folder / "more.csv"), "--least-kappa", "0.5", url=url)
        assert done.exit_code == 0, done.output
        assert not any("number 77" in text for text in asked)
    result = json.loads((folder / "out" / "result.json").read_text())
    assert result["student"]["learned_from"] == 25
    kappas = [one["reliability"]["human_model"]["value"] for one in result["categories"]]
    assert [one["weight"] for one in result["student"]["categories"]] == pytest.approx([max(kappa, 0) for kappa in kappas])
    assert f"student, gratitude: weight {kappas[0]:.3f}; kappa with people" in done.output
    assert (folder / "out" / "student.csv").read_text().splitlines()[:2] == ["id,gratitude,question", "m1,1,0"]
    assert "A student of these labels" in (folder / "out" / "report.html").read_text()


def test_levels_go_through_files_and_page(folder):
    (folder / "rubric.yaml").write_text(
        "categories:\n  - name: question\n    statement: How much does it ask?\n"
        "    levels: [nothing, '<i>one</i>', many]\n    weights: linear\n"
    )
    words = ("nothing", "<i>one</i>", "many")
    rows = [f"c{i},{'?' * (i % 3)} {i},{words[i % 3]},{words[min(i % 3 + (i == 1), 2)]}" for i in range(40)]
    (folder / "comments.csv").write_text("\n".join(["id,comment,H1:question,H2:question", *rows]))

    def levels(messages):
        return words[messages[0]["content"].rpartition("<comment>")[2].count("?") - 1]  # the order of the prompt has one too

    with serving(levels) as (url, _):
        done = run(folder, url=url)
    assert done.exit_code == 0, done.output
    assert "question: nothing 14, <i>one</i> 13, many 13 of 40 labelled comments; kappa people 0.9" in done.output
    assert (folder / "out" / "labels.csv").read_text().splitlines()[2:4] == ["c1,<i>one</i>", "c2,many"]
    result = json.loads((folder / "out" / "result.json").read_text())
    assert result["categories"][0]["weights"] == "linear"
    page = (folder / "out" / "report.html").read_text()
    assert "nothing 14" in page
    assert "<i>one" not in page


def test_errors_are_one_line_and_nothing_is_asked(folder):
    with serving(reply) as (url, asked):
        for more, message in (
            (["--text-column", "commnt"], "expected a column 'commnt', got id, comment, H1:gratitude"),
            (["--style", "few-shot"], "style: expected examples in every category for 'few-shot', got none in 'gratitude'"),
            (["--human", "H3"], "expected a column 'H3:gratitude'"),
            (["--max-money", "1"], "budget"),
            (["--student", str(folder / "none.csv")], "none.csv: expected an existing file, got none"),
        ):
            done = run(folder, *more, url=url)
            assert done.exit_code == 2, done.output
            assert message in done.output
            assert len(done.output.strip().splitlines()) == 1
        assert not asked
        (folder / "rubric.yaml").write_text("categories:\n  - nam: a\n    statement: b\n")
        done = run(folder, url=url)
        assert (done.exit_code, "nearest: 'name'" in done.output) == (2, True)


def test_a_server_that_is_down_is_one_line(folder):
    with serving(reply) as (url, _):
        pass
    done = run(folder, "--parallel", "1", url=url)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].startswith("error: ")
    assert "0 of 80 questions are answered" in done.output
