"""EdNet's logs: what was written comes back, what is broken is named, and memory does not hold the archive."""

import json
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner

from preceptor.commands.ednet import app
from preceptor.education.archives import Archive, BrokenMemberError
from preceptor.education.ednet import content, convert, parse, scan
from preceptor.education.ednet_text import COLUMNS, question_rows
from preceptor.education.sequences import (
    clean,
    load_windows,
    questions_from,
    read_questions,
    scan_windows,
    split_students,
    windows,
)
from preceptor.education.synthetic import School, contents, students, synthesize
from preceptor.education.window_streams import KTDataset

SCHOOL = School(questions=50, tags=7, mean_length=25)
HEAD = ",".join(COLUMNS["KT1"]) + "\n"
QUESTION_HEAD = b"question_id,bundle_id,explanation_id,correct_answer,part,tags,deployed_at\n"
QUESTIONS = QUESTION_HEAD + b"q1,b1,e1,b,1,0,-1\nq2,b2,e2,c,2,3;5,-1\nq3,b2,e2,a,2,-1,-1\n"


def quiet(line):
    pass


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def damage(path, name):
    """Flip bytes in the middle of a member's data."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(name)
    data = bytearray(path.read_bytes())
    start = member.header_offset + 30 + len(name) + member.compress_size // 2
    data[start : start + 3] = bytes(255 - value for value in data[start : start + 3])
    path.write_bytes(bytes(data))


@pytest.fixture
def converted(tmp_path):
    synthesize(60, tmp_path / "logs.zip", school=SCHOOL, seed=3)
    convert(tmp_path / "logs.zip", tmp_path, batch_users=13, warn=quiet)
    return tmp_path


def generated():
    chunks = list(students(60, school=SCHOOL, seed=3))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def test_what_was_made_comes_back_row_by_row(converted):
    rows, made = scan(converted).collect(), generated()
    assert len(rows) == len(made["user"])
    for name in ("user", "timestamp", "solving", "question", "elapsed"):
        assert (rows[name].to_numpy() == made[name]).all(), name
    assert (rows["answer"].fill_null(0).to_numpy() == made["answer"]).all()


def test_contents_come_back_and_correct_is_the_join(converted):
    table, made = content(converted), contents(SCHOOL, 3)
    assert table["tags"].to_list() == made.tags
    assert table["answer"].to_list() == made.answer.tolist()
    import polars

    rows = scan(converted).drop_nulls("answer").join(table.lazy(), on="question", how="left", maintain_order="left")
    joined = rows.select(polars.col("answer") == polars.col("answer_right")).collect().to_series().to_numpy()
    from pyarrow import parquet

    answers = clean(parquet.read_table(converted / "interactions.parquet"), read_questions(converted))
    assert (answers.correct == joined).all()
    assert (answers.correct == generated()["correct"][generated()["answer"] > 0]).all()


def test_the_first_students_do_not_depend_on_how_many_are_made():
    few = next(students(5, school=SCHOOL, seed=1))
    many = next(students(50, school=SCHOOL, seed=1))
    assert all((few[name] == many[name][: len(few["user"])]).all() for name in few)


def test_sorting_by_time_is_stable():
    text = (HEAD + "30,1,q1,a,5\n10,2,q2,b,5\n10,3,q1,c,5\n10,4,q2,d,5\n").encode()
    assert parse([(4, text)], "KT1")["solving"].to_pylist() == [2, 3, 4, 1]


def test_odd_values_are_kept_or_counted(tmp_path):
    members = {
        "KT1/u1.csv": HEAD + "1.0,1,q1,b,100\n2,2,q2,,x\n3,3,q1,e,99999999999\n\n4,4,q1,b\n5,5,question,a,7\n,6,q1,a,7\n",
        "KT1/u2.csv": "",
        "KT1/u3.csv": HEAD,
        "KT1/u4.csv": HEAD.encode() + b"7,1,q1,\xff,7\r\n",
        "__MACOSX/KT1/._u5.csv": "rubbish",
        "KT1/readme.txt": "hello",
        "questions.csv": QUESTIONS,
    }
    told = []
    report = convert(write_zip(tmp_path / "z.zip", members), tmp_path / "out", warn=told.append)
    rows = scan(tmp_path / "out").collect()
    assert rows["user"].to_list() == [1, 1, 1, 1, 4]
    assert rows["answer"].to_list() == [2, None, 0, 1, 0]
    assert rows["question"].to_list() == [1, 2, 1, None, 1]
    assert rows["elapsed"].to_list() == [100, None, 2**31 - 1, 7, 7]
    assert (report.rows, report.users, report.empty, report.other_answers) == (5, 2, 2, 2)
    assert report.malformed == 4  # x, the short line, the question without a number, the row without a time
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["rows"] == 5
    assert told == ["4 malformed line(s) or value(s)", "2 answer(s) outside a-d, which are never correct"]


def test_a_broken_member_is_skipped_counted_and_named(tmp_path):
    text = HEAD + "".join(f"{i},{i},q1,b,{i * 7919 % 1000}\n" for i in range(200))
    odd = HEAD.replace("solving_id", "solving") + "1,1,q1,a,1\n"
    path = write_zip(tmp_path / "z.zip", {f"KT1/u{n}.csv": text for n in (1, 2, 3)} | {"KT1/u9.csv": odd})
    damage(path, "KT1/u2.csv")
    told = []
    report = convert(path, tmp_path / "out", warn=told.append)
    assert set(report.skipped) == {"KT1/u2.csv", "KT1/u9.csv"}
    assert "nearest: 'solving_id'" in report.skipped["KT1/u9.csv"]
    assert report.users == 2
    assert scan(tmp_path / "out").collect().height == 400
    assert len(told) == 1
    assert told[0].startswith("2 member(s) skipped: KT1/u2.csv (")


def test_columns_are_checked_with_the_nearest_named(tmp_path):
    path = write_zip(tmp_path / "z.zip", {"u1.csv": HEAD.replace("user_answer", "user_anser") + "1,1,q1,a,1\n"})
    wanted = ", ".join(COLUMNS["KT1"])
    with pytest.raises(ValueError, match=f"^columns: expected {wanted}, got unknown 'user_anser', nearest: 'user_answer'$"):
        convert(path, tmp_path, warn=quiet)
    with pytest.raises(ValueError, match=r"^columns: expected timestamp, action_type, .*, got unknown 'solving_id'"):
        convert(write_zip(tmp_path / "y.zip", {"u1.csv": HEAD + "1,1,q1,a,1\n"}), tmp_path, level="KT2", warn=quiet)
    with pytest.raises(ValueError, match=r"^questions.csv: expected a column 'tags', got question_id, .*, tag, nearest: 'tag'$"):
        question_rows(b"question_id,bundle_id,correct_answer,part,tag\nq1,b1,a,1,2\n")


def test_archives_without_students_or_without_an_end_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^zip: expected files u1.csv, u2.csv, ... in .*, got none$"):
        convert(write_zip(tmp_path / "a.zip", {"x.csv": "1"}), tmp_path, warn=quiet)
    with pytest.raises(ValueError, match=r"^zip: expected at least one row, got none$"):
        convert(write_zip(tmp_path / "c.zip", {"u1.csv": HEAD}), tmp_path, warn=quiet)
    path = write_zip(tmp_path / "b.zip", {"u1.csv": HEAD + "1,1,q1,a,1\n"})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"^zip: expected a whole zip archive, got .*its end is missing"):
        convert(path, tmp_path, warn=quiet)
    assert not (tmp_path / "interactions.parquet").exists()


def test_actions_unknown_ones_kept_counted_and_told(tmp_path):
    head = ",".join(COLUMNS["KT4"]) + "\n"
    text = head + "2,erase_choice,5,q1,sprint,a,mobile\n1,enter,,b1,sprint,,mobile\n"
    text += "3,eliminate_choice,5,q1,sprint,a,web\n4,dance,,q1,sprint,,web\n"
    told = []
    report = convert(write_zip(tmp_path / "z.zip", {"KT4/u1.csv": text}), tmp_path, warn=told.append)
    assert report.level == "KT4"
    assert dict(report.unknown_actions) == {"dance": 1}
    assert told == ["unknown actions kept: dance (1 rows)"]
    rows = scan(tmp_path).collect()
    assert rows["action"].to_list() == ["enter", "erase_choice", "eliminate_choice", "dance"]
    assert rows["cursor"].to_list() == [None, 5, 5, None]
    (tmp_path / "questions.csv").write_bytes(QUESTIONS)
    convert(tmp_path / "z.zip", tmp_path, contents=tmp_path, warn=quiet)
    assert not len(next(scan_windows(tmp_path)))  # nothing was submitted


def test_archives_are_read_like_zipfile_reads_them(tmp_path):
    members = {f"u{n}.csv": f"{n}," * n for n in range(300)}
    path = write_zip(tmp_path / "z.zip", members)
    with Archive(path, lambda name: name.endswith("7.csv")) as archive:
        kept = [text.encode() for name, text in members.items() if name.endswith("7.csv")]
        assert [archive.read(number) for number in range(len(archive))] == kept
    damage(path, "u200.csv")
    with Archive(path, lambda name: name == "u200.csv") as archive, pytest.raises(BrokenMemberError):
        archive.read(0)


def test_a_changed_byte_of_a_stored_member_is_found(tmp_path):
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("u1.csv", "1234567890" * 5)
    with Archive(path, lambda name: True) as archive:
        assert archive.read(0) == b"1234567890" * 5
    damage(path, "u1.csv")
    with Archive(path, lambda name: True) as archive, pytest.raises(BrokenMemberError, match=r"^checksum differs$"):
        archive.read(0)


def test_more_than_65535_members_need_zip64(tmp_path):
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(65_600):
            archive.writestr(f"u{number}.csv", b"")
        archive.writestr("u70000.csv", HEAD + "1,1,q1,a,1\n")
    report = convert(path, tmp_path, warn=quiet)
    assert (report.empty, report.users, report.rows) == (65_600, 1, 1)


def test_windows_cut_pad_and_leave_out_the_short():
    rows = {user: "".join(f"{i},{i},q{1 + i % 2},b,{i}\n" for i in range(length)) for user, length in ((1, 7), (2, 2), (5, 4))}
    text = {user: (HEAD + lines).encode() for user, lines in rows.items()}
    questions = questions_from(question_rows(QUESTIONS))
    found = windows(clean(parse(text.items(), "KT1"), questions), questions, max_len=4)
    assert found.user.tolist() == [1, 1, 5]
    assert found.start.tolist() == [0, 4, 0]
    assert found.item.tolist() == [[1, 2, 1, 2], [1, 2, 1, -1], [1, 2, 1, 2]]
    assert found.correct.tolist() == [[1, 0, 1, 0], [1, 0, 1, -1], [1, 0, 1, 0]]
    assert found.elapsed[1].tolist() == [4, 5, 6, -1]
    assert found.judged.tolist() == [[False, True, True, True], [False, True, True, False], [False, True, True, True]]


def test_expanded_tags_are_judged_once():
    text = (HEAD + "1,1,q2,c,1\n2,2,q1,a,1\n3,3,q3,a,1\n4,4,q2,a,1\n5,5,q9,a,1\n").encode()
    questions = questions_from(question_rows(QUESTIONS))
    found = windows(clean(parse([(1, text)], "KT1"), questions), questions, max_len=6, tags="expand")  # q3 has no tag, q9 is unknown
    assert found.item[0].tolist() == [3, 5, 0, 3, 5, -1]
    assert found.correct[0].tolist() == [1, 1, 0, 0, 0, -1]
    assert found.first[0].tolist() == [True, False, True, True, False, False]


def test_no_student_is_in_two_parts():
    users = np.repeat(np.arange(100, 143), 3)
    parts = split_students(users, seed=4)
    assert sorted(parts) == ["fold-0", "fold-1", "fold-2", "fold-3", "fold-4", "test"]
    together = np.concatenate(list(parts.values()))
    assert sorted(together.tolist()) == list(range(100, 143))
    assert abs(len(parts["test"]) - 0.2 * 43) < 1
    assert all((split_students(users, seed=4)[name] == part).all() for name, part in parts.items())
    for alone in (np.zeros(5), np.zeros(0)):
        with pytest.raises(ValueError, match=r"^students: expected at least 6 for a test part and 5 folds, got [01]$"):
            split_students(alone)


def test_all_missing_answers_are_said_to_be_missing(tmp_path):
    text = HEAD + "".join(f"{i},{i},q1,,1\n" for i in range(9))
    convert(write_zip(tmp_path / "z.zip", {"u1.csv": text, "questions.csv": QUESTIONS}), tmp_path, warn=quiet)
    with pytest.raises(ValueError, match=r"^answers: expected students with answers .*, got none after cleaning"):
        load_windows(tmp_path)


def test_batches_from_the_disk_hold_every_window_once_and_go_on_where_they_were(converted):
    whole = load_windows(converted, max_len=10)

    def rows(batches):
        return sorted((*row, *[-1] * (10 - len(row))) for batch in batches for row in batch["x"]["item"].tolist())

    def source():
        return KTDataset(converted, batch_size=7, max_len=10, seed=2, buffer=20)

    per_epoch = -(-len(whole) // 7)
    stream, seen = source(), []
    while stream.epoch == 0:
        batch = next(stream)
        if batch["epoch"] == 0:
            seen.append(batch)
    wanted = sorted(map(tuple, whole.item))
    assert rows(seen) == wanted == rows(source().scan())
    assert len(seen) == per_epoch
    straight, resumed = source(), source()
    for _ in range(per_epoch + 3):
        next(straight)
    resumed.load_state_dict(straight.state_dict())
    again, expected = next(resumed), next(straight)
    assert (again["x"]["item"] == expected["x"]["item"]).all()
    assert again["epoch"] == expected["epoch"] == 1
    halves = [rows(KTDataset(converted, batch_size=7, max_len=10, rank=rank, world=2).scan()) for rank in (0, 1)]
    assert sorted(halves[0] + halves[1]) == wanted


def test_the_commands(tmp_path):
    runner = CliRunner()
    archive, folder = str(tmp_path / "logs.zip"), str(tmp_path / "logs")
    made = runner.invoke(app, ["synthesize", "--users", "40", "--length", "12", "--questions", "30", "--tags", "5", "--out", archive])
    assert made.exit_code == 0, made.output
    assert runner.invoke(app, ["convert", archive, "--out", folder]).exit_code == 0
    for model in ("item-mean", "bkt", "dkt", "sakt"):
        found = runner.invoke(app, ["trace", folder, "--model", model, "--epochs", "1", "--width", "8", "--json"])
        assert found.exit_code == 0, found.output
        scores = json.loads(found.stdout)
        assert 0 <= scores["accuracy"] <= 1
        assert sum(part["n"] for part in scores["by_history"].values()) == scores["n"]
    shown = runner.invoke(app, ["trace", folder, "--model", "item-mean", "--students", "20", "--tags", "expand"])
    assert shown.stdout.splitlines()[1].split() == ["history", "answers", "AUC", "accuracy", "log-loss"]
    for arguments, message in (
        (["trace", str(tmp_path / "nowhere")], "error: folder: expected questions.parquet in"),
        (["trace", folder, "--students", "41"], "error: students: expected at most the 40 of"),
        (["convert", str(tmp_path / "no.zip"), "--out", folder], "error: ZIP: expected a file, got"),
    ):
        failed = runner.invoke(app, arguments)
        assert failed.exit_code == 2
        assert failed.stderr.startswith(message)
        assert failed.stderr.count("\n") == 1
