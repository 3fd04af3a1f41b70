"""Answers made of actions: a log by hand, against a slow reading of the same log, and made-up actions back to the answers behind them."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from preceptor.commands.ednet import app
from preceptor.education.ednet import convert, parse, scan, scan_answers
from preceptor.education.ednet_actions import Responses, answers_of, bundles_from
from preceptor.education.ednet_text import COLUMNS, question_rows
from preceptor.education.sequences import load_windows
from preceptor.education.synthetic import School, students, synthesize
from preceptor.education.window_streams import KTDataset

HEAD = ",".join(COLUMNS["KT2"]) + "\n"
QUESTIONS = question_rows(
    b"question_id,bundle_id,correct_answer,part,tags\nq1,b1,b,1,0\nq2,b2,c,3,3;5\nq3,b2,a,3,1\nq4,b2,a,3,1\nq5,b5,a,5,2\nq0,b7,a,5,2\n"
)
SCHOOL = School(questions=40, tags=5, mean_length=30)


def log(text):
    """Lines ``time action item [answer]`` as a file."""
    rows = [line.split() for line in text.strip().splitlines()]
    lines = [f"{time},{action},{item},sprint,{rest[0] if rest else ''},mobile" for time, action, item, *rest in rows]
    return (HEAD + "\n".join(lines) + "\n").encode()


def made(*users, level="KT2"):
    report = Responses()
    found = answers_of(parse(list(enumerate(map(log, users), start=1)), level), bundles_from(QUESTIONS), report)
    return [tuple(row.values()) for row in found.to_pylist()], report


def slowly(rows):
    """The same from the description, one action of a student after the other: {session: (enter, [answers])}."""
    bundle_of = dict(zip(QUESTIONS["question"].to_pylist(), QUESTIONS["bundle"].to_pylist(), strict=True))
    entered, chosen, closed = {}, {}, []
    for row in rows:
        letter, number = row["item"][0], int(row["item"][1:])
        if row["action"] == "enter" and letter == "b":
            entered[number], chosen[number] = row["timestamp"], {}
        elif row["action"] == "respond" and bundle_of.get(number) in entered:
            chosen[bundle_of[number]][number] = row["answer"]
        elif row["action"] == "submit" and number in entered:
            closed.append((entered.pop(number), number, row["timestamp"], chosen.pop(number)))
    found = []
    for solving, (start, bundle, stop, answers) in enumerate(sorted(closed, key=lambda c: c[0]), start=1):
        size = sum(b == bundle for b in bundle_of.values())
        found += [(start, solving, question, answers[question], (stop - start) // size) for question in sorted(answers)]
    return found


def test_the_last_answer_before_submitting_counts_and_time_is_shared():
    found, report = made("10 enter b2\n20 respond q3 c\n25 respond q2 a\n31 respond q3 a\n32 respond q2 \n50 respond q2 c\n71 submit b2")
    assert found == [(1, 10, 1, 2, 3, 20), (1, 10, 1, 3, 1, 20)]  # 61 ms for three questions, one of them not answered
    assert report == Responses(given=5, kept=2, replaced=3)


def test_what_is_not_submitted_or_not_entered_is_left_out():
    gone = "1 enter b1\n2 respond q1 a\n5 enter b5\n6 respond q5 d\n9 submit b5\n10 respond q5 a\n11 submit b5"
    again = "20 enter b1\n21 respond q1 b\n30 enter b1\n31 submit b1\n40 respond q2 a\n41 submit b2"
    found, report = made(gone, again, "1 enter b1\n2 respond q1 c")
    assert found == [(1, 5, 1, 5, 4, 4)]
    assert report == Responses(given=6, kept=1, unsubmitted=5)
    assert made("1 enter b5\n2 submit b5\n3 enter b1\n4 respond q1 a\n7 submit b1")[0] == [
        (1, 3, 2, 1, 1, 4)
    ]  # an empty session has a number


def test_order_in_the_file_decides_only_between_equal_times():
    shuffled = "50 submit b1\n20 respond q1 a\n10 enter b1\n30 respond q1 b\n30 respond q1 d"
    assert made(shuffled)[0] == [(1, 10, 1, 1, 4, 40)]
    assert made("10 submit b1\n10 enter b1\n10 respond q1 a")[0] == []
    assert made("10 enter b1\n10 respond q1 a\n10 submit b1")[0] == [(1, 10, 1, 1, 1, 0)]


def test_sessions_may_lie_across_each_other_and_other_items_do_not_matter():
    across = (
        "1 enter b2\n2 enter b1\n3 respond q2 b\n4 respond q1 d\n5 submit b1\n6 enter e2\n7 quit e2\n8 submit b2\n9 enter l1\n9 submit e1"
    )
    found, report = made(across)
    assert found == [(1, 1, 1, 2, 2, 2), (1, 2, 2, 1, 4, 3)]
    odd = "1 enter b1\n2 respond b1 a\n3 respond q77 a\n4 respond q0 a\n5 dance q1 a\n6 respond q1 c\n7 submit b1\n8 enter b\n9 enter bx"
    found, report = made(odd)
    assert found == [(1, 1, 1, 1, 3, 6)]
    assert report == Responses(given=4, kept=1, unknown=3)
    assert made("1 quit e1")[0] == []


def test_against_a_slow_reading_of_logs_by_lot():
    random = np.random.default_rng(0)
    texts = []
    for _ in range(40):
        kinds = random.choice(["enter", "respond", "respond", "submit"], 60)
        items = [f"q{random.integers(1, 6)}" if kind == "respond" else f"b{random.choice([1, 2, 5])}" for kind in kinds]
        times = random.permutation(1000)[:60]
        texts.append("\n".join(f"{t} {k} {i} {random.choice(list('abcde'))}" for t, k, i in zip(times, kinds, items, strict=True)))
    found, report = made(*texts)
    assert report.given == report.kept + report.replaced + report.unsubmitted + report.unknown
    assert report.kept == len(found) > 100
    assert report.replaced > 20
    for user, text in enumerate(texts, start=1):
        assert [row[1:] for row in found if row[0] == user] == slowly(parse([(user, log(text))], "KT2").to_pylist())


def test_columns_are_those_of_answers_and_the_choices_of_kt4_do_not_count():
    plain = parse([(1, (",".join(COLUMNS["KT1"]) + "\n1,1,q1,a,5\n").encode())], "KT1")
    head = ",".join(COLUMNS["KT4"]) + "\n"
    text = head + "1,enter,,b1,sprint,,web\n2,play_audio,7,b1,sprint,,web\n3,respond,,q1,sprint,b,web\n"
    text += "4,erase_choice,,q1,sprint,c,web\n5,submit,,b1,sprint,,web\n"
    found = answers_of(parse([(1, text.encode())], "KT4"), bundles_from(QUESTIONS), Responses())
    assert found.schema == plain.schema
    assert found["answer"].to_pylist() == [2]
    with pytest.raises(ValueError, match=r"^answers: expected a log of actions \(KT2, KT3 or KT4\), got columns user, timestamp, solving,"):
        answers_of(plain, bundles_from(QUESTIONS), Responses())


def test_made_up_actions_come_back_as_the_answers_behind_them(tmp_path):
    rows = synthesize(50, tmp_path / "kt2.zip", level="KT2", school=SCHOOL, seed=3)
    chunk = next(students(50, school=SCHOOL, seed=3))
    kept = chunk["answer"] > 0
    told = []
    report = convert(tmp_path / "kt2.zip", tmp_path / "answers", answers=True, batch_users=7, warn=told.append)
    found = scan(tmp_path / "answers").collect()
    for name in ("user", "timestamp", "solving", "question", "answer", "elapsed"):
        assert found[name].to_list() == chunk[name][kept].tolist(), name
    assert (report.level, report.rows, report.responses.kept, report.responses.unknown) == ("KT2", rows, int(kept.sum()), 0)
    assert report.responses.replaced > 100
    assert report.responses.unsubmitted > 10
    assert not told
    assert json.loads((tmp_path / "answers" / "conversion.json").read_text())["responses"]["kept"] == int(kept.sum())

    convert(tmp_path / "kt2.zip", tmp_path / "actions", batch_users=7)
    assert scan(tmp_path / "actions").collect()["action"].unique().sort().to_list() == ["enter", "respond", "submit"]
    parts = list(scan_answers(tmp_path / "actions"))
    assert len(parts) == 8  # one row group at a time
    assert [part.num_rows for part in scan_answers(tmp_path / "actions", groups=[7, 2])] == [parts[7].num_rows, parts[2].num_rows]
    assert [value for part in parts for value in part["elapsed"].to_pylist()] == found["elapsed"].to_list()
    lazily, stored = (load_windows(tmp_path / name, max_len=20) for name in ("actions", "answers"))
    for name in ("user", "item", "correct", "elapsed"):
        assert (getattr(lazily, name) == getattr(stored, name)).all()
    first = [next(KTDataset(tmp_path / name, batch_size=4, max_len=20)) for name in ("actions", "answers")]
    assert first[0]["x"]["item"].equal(first[1]["x"]["item"])


def test_the_command(tmp_path):
    runner = CliRunner()
    archive, folder = str(tmp_path / "logs.zip"), str(tmp_path / "logs")
    options = ["--users", "40", "--length", "12", "--questions", "30", "--tags", "5", "--out", archive]
    assert runner.invoke(app, ["synthesize", "--level", "KT2", *options]).exit_code == 0
    shown = runner.invoke(app, ["convert", archive, "--answers", "--out", folder])
    assert shown.exit_code == 0, shown.output
    first, second = shown.stdout.splitlines()
    assert first.startswith("KT2: ")
    assert second.split(" ", 1)[1].startswith("answers of ")
    assert second.endswith("not submitted, 0 to unknown questions")
    assert runner.invoke(app, ["trace", folder, "--model", "item-mean"]).exit_code == 0
    assert runner.invoke(app, ["synthesize", *options]).exit_code == 0
    refused = runner.invoke(app, ["convert", archive, "--answers", "--out", folder])
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: answers: expected a log of actions (KT2, KT3 or KT4), got columns user")


def test_answers_need_the_questions(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("KT2/u1.csv", log("1 enter b1\n2 respond q9 a\n3 respond q1 a\n4 submit b1"))
    with pytest.raises(ValueError, match=r"^contents: expected questions.csv, .*, got none$"):
        convert(tmp_path / "z.zip", tmp_path, answers=True)
    convert(tmp_path / "z.zip", tmp_path)
    with pytest.raises(ValueError, match=r"^folder: expected questions.parquet in "):
        next(scan_answers(tmp_path))
    (tmp_path / "questions.csv").write_bytes(b"question_id,bundle_id,correct_answer,part,tags\nq1,b1,b,1,0\n")
    told = []
    convert(tmp_path / "z.zip", tmp_path, answers=True, contents=tmp_path, warn=told.append)
    assert told == ["1 response(s) to questions that are not in questions.csv left out"]
