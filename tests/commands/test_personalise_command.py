"""``preceptor personalise``: a review by lines of input, its report, reactions, the simulation."""

import json
import math

import pytest
from typer.testing import CliRunner

from preceptor.commands.personalise import app
from preceptor.teachers.chat import Chat, ChatStopped

CATALOGUE = "topics:\n  football: {words: [goal], slots: {thing: footballs}}\n  music: {words: [song], slots: {thing: guitars}}\n"
PROBLEMS = "".join(
    json.dumps(
        {
            "id": f"p{i}",
            "text": f"A shop has {i} pens and sells 2. How many are left?",
            "template": f"A shop has {i} {{thing}} and sells 2. How many are left?",
            "solution": f"{i} - 2",
        }
    )
    + "\n"
    for i in (7, 9)
)
PROFILES = '{"student": "1", "topics": {"football": 1}}\n{"student": "2", "topics": {"music": 2, "football": 1}}\n'


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    for name, content in (("problems.jsonl", PROBLEMS), ("profiles.jsonl", PROFILES), ("catalogue.yaml", CATALOGUE)):
        (tmp_path / name).write_text(content, encoding="utf-8")
    return [str(tmp_path / name) for name in ("problems.jsonl", "profiles.jsonl", "catalogue.yaml")]


def run(*words, lines=""):
    return CliRunner().invoke(app, [str(word) for word in words], input=lines)


def test_review_stop_and_go_on(files, tmp_path):
    out = tmp_path / "out"
    first = run("review", *files, "--out", out, "--grain", 3, lines="a\nq\n")
    assert first.exit_code == 0, first.output
    assert "A shop has 7 footballs and sells 2." in first.output
    assert "1 delivered, 0 rejected, 3 open" in first.output
    second = run(
        "review", *files, "--out", out, "--grain", 3, lines="e\nThe band has 7 guitars and sells 2. How many are left?\n7\na\nr\na\n"
    )
    assert second.exit_code == 0, second.output
    assert "[1 of 4]" not in second.output
    assert "3 delivered, 1 rejected, 0 open" in second.output
    delivered = [json.loads(line) for line in (out / "delivered.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(one["id"], one["students"]) for one in delivered] == [("p7:football", ["1"]), ("p7:music", ["2"]), ("p9:music", ["2"])]
    assert delivered[1]["text"].startswith("The band")

    shown = run("report", out)
    assert shown.exit_code == 0, shown.output
    assert "4 variants, 1 turns" in shown.output
    assert "moves: wording 1, accept 3, reject 1, write 1" in shown.output
    made = json.loads(run("report", out, "--json", "--draws", 0).stdout)
    assert list(made["teachers"][str(out)]["problems"]) == ["p7", "p9"]


def test_exceptions_need_no_teacher(files, tmp_path):
    result = run("review", *files, "--out", tmp_path / "out", "--grain", 3, "--exceptions")
    assert result.exit_code == 0, result.output
    assert "4 delivered, 0 rejected, 0 open" in result.output


def test_a_server_that_is_down_ends_with_status_1(files, tmp_path, monkeypatch):
    class Down:
        model, batch, parallel = "down", 1, 1

        def answer(self, questions):
            raise AssertionError

    def stopped(self, *args, **rest):
        raise ChatStopped("no connection", [])

    monkeypatch.setattr("preceptor.teachers.chat.open_chat", lambda model, **rest: Chat(Down()))
    monkeypatch.setattr(Chat, "structured", stopped)
    result = run("review", *files, "--out", tmp_path / "out", "--grain", 3, "--model", "down")
    assert result.exit_code == 1
    assert "error: no connection; the same command goes on" in result.output


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("problems.jsonl", '{"id": "p"}\n', "expected a Problem at line 1, got text: Field required"),
        ("profiles.jsonl", '{"student": "1"}\n', "profiles: expected at least one student with topics, got none of 1"),
        ("catalogue.yaml", "topic: 1\n", "expected a catalogue of topics, got topics: Field required"),
        (
            "problems.jsonl",
            '{"id": "p", "text": "1 and 1?", "solution": "1+1"}\n',
            "problem p: expected a template, or a model to write drafts",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(files, tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    result = run("review", *files, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_simulate():
    rows = json.loads(run("simulate", "--json", "--classes", 5).stdout)
    assert [row["grain"] for row in rows] == [0, 1, 2, 3, 4, 4, 4, 4, 4]
    assert "not evidence about teachers" in run("simulate", "--classes", 2).output


def test_reactions(tmp_path):
    path = tmp_path / "ratings.csv"
    rows = [
        f"s{s},t{s % 2},{grain},{(s * 7 + grain) % 5 / 5},{3 + (grain == 4) + (s * 3 + grain) % 4 / 4}"
        for s in range(12)
        for grain in (1, 4)
    ]
    path.write_text("student,teacher,grain,match,rating\n" + "\n".join(rows) + "\n", encoding="utf-8")
    result = run("reactions", path)
    assert result.exit_code == 0, result.output
    assert "within 12 students: +1.00" in result.output
    assert json.loads(run("reactions", path, "--json").stdout)["students"] == 12
    assert run("reactions", tmp_path / "no.csv").exit_code == 2


def test_ratings_with_places_tell_whether_problems_become_more_interesting(tmp_path):
    path = tmp_path / "ratings.csv"
    rows = [
        f"s{s},t{s % 2},{grain},0.5,{3 + s % 2 + 0.5 * math.log(n)},{n}" for s in range(8) for n, grain in ((1, 1), (2, 4), (4, 1), (8, 4))
    ]
    path.write_text("student,teacher,grain,match,rating,place\n" + "\n".join(rows) + "\n", encoding="utf-8")
    result = run("reactions", path)
    assert result.exit_code == 0, result.output
    assert "ratings grow by +0.50 (+0.50 to +0.50) per log n of a teacher's n-th problem, 2 teachers" in result.output
    assert json.loads(run("reactions", path, "--json").stdout)["quality_curve"]["slope"] == pytest.approx(0.5)


def test_profiles_learn_from_ratings(files, tmp_path):
    out, ratings, new = tmp_path / "out", tmp_path / "ratings.csv", tmp_path / "new.jsonl"
    assert run("review", *files, "--out", out, "--grain", 3, "--exceptions").exit_code == 0
    ratings.write_text("student,variant,rating\n2,p7:music,1\n", encoding="utf-8")
    result = run("learn", files[1], out / "delivered.jsonl", ratings, "--out", new, "--rate", 0.5)
    assert (result.exit_code, result.output) == (0, f"1 of 2 profiles changed: {new}\n")
    topics = [json.loads(line)["topics"] for line in new.read_text(encoding="utf-8").splitlines()]
    assert topics[0] == {"football": 1}
    assert topics[1] == pytest.approx({"music": 1 / 3, "football": 2 / 3})
    assert run("learn", files[1], out / "delivered.jsonl", ratings, "--out", new, "--scale", 0, 10).exit_code == 0
    assert json.loads(new.read_text(encoding="utf-8").splitlines()[1])["topics"]["music"] == pytest.approx(0.7 * 2 / 3 + 0.3 * 0.1)
    result = run("learn", files[1], out / "delivered.jsonl", ratings, "--out", new, "--scale", 2, 5)
    assert result.exit_code == 2
    assert "expected a rating from 2 to 5 in row 1, got '1'" in result.output
