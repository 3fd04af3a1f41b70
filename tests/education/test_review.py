"""The teacher's gate: every step is kept, a killed review goes on, and what it cost is counted."""

import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor.education.personalise.checks import Rules
from preceptor.education.personalise.effort import changed_share, edit_distance, effort_report, learning_curve, quality_curve
from preceptor.education.personalise.events import Event, EventLog, read_events
from preceptor.education.personalise.generate import plan
from preceptor.education.personalise.reactions import Rating, contrast, reaction_report, read_ratings
from preceptor.education.personalise.records import Catalogue, Draft, Problem, Profile
from preceptor.education.personalise.review import Decision, Review, View
from preceptor.education.personalise.terminal import edit_text, terminal_reviewer

PROBLEMS = [Problem(id=f"p{i}", text=f"A has {i} apples and gets 2 more. How many now?", solution=f"{i} + 2") for i in (3, 5, 7)]
CATALOGUE = Catalogue.model_validate({"topics": {"music": {"words": ["songs"]}, "chess": {"words": ["pawns"]}}})
CLASS = [Profile(student="s1", topics={"music": 1}), Profile(student="s2", topics={"chess": 1})]


class Clock:
    """Ten seconds between two events."""

    now = 1000.0

    def __call__(self):
        self.now += 10
        return self.now


class Writer:
    """Drafts that keep the numbers; the n-th says n."""

    def __init__(self):
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        word = CATALOGUE.topics[request.topic].words[0]
        first = request.problem.solution.split(" ")[0]
        extra = " please" * len([r for r in self.requests if r.note and r.problem == request.problem])
        return [Draft(text=f"A has {first} {word} and gets 2 more. How many now{extra}?", solution=request.problem.solution)]


def make(path, *, writer=None, clock=None, **rest):
    variants = [variant for problem in PROBLEMS for variant in plan(problem, CLASS, 3, CATALOGUE)]
    log = EventLog(path, clock=clock or Clock())
    rules = Rules(catalogue=CATALOGUE, profiles=CLASS)
    return Review(variants, PROBLEMS, rules=rules, generator=writer or Writer(), log=log, **rest)


def scripted(decisions, seen=None):
    """A simulated reviewer."""
    left = list(decisions)

    def review(view):
        if seen is not None:
            seen.append(view)
        return left.pop(0)

    return review


ACCEPT, STOP, REJECT = (Decision(action=action) for action in ("accept", "stop", "reject"))
ASK = Decision(action="ask", moves=("wording",), text="say please")


def test_accept_edit_ask_reject(tmp_path):
    writer, seen = Writer(), []
    review = make(tmp_path / "events.jsonl", writer=writer)
    edit = Decision(action="edit", moves=("wording", "write"), text="B has 3 pawns and gets 2 more. How many now?")
    found = review.run(scripted([ACCEPT, edit, ACCEPT, ASK, ACCEPT, REJECT, ACCEPT, ACCEPT], seen))
    assert [one.id for one in found.delivered] == ["p3:music", "p3:chess", "p5:music", "p7:music", "p7:chess"]
    assert found.rejected == ("p5:chess",)
    assert found.open == ()
    assert found.delivered[1].text.startswith("B has 3 pawns")
    assert found.delivered[2].text.endswith("now please?")
    asked = next(request for request in writer.requests if request.note)
    assert (asked.note, asked.before) == ("say please", "A has 5 songs and gets 2 more. How many now?")
    assert asked.examples[-1] == (PROBLEMS[0].text, found.delivered[1].text)
    events = read_events(tmp_path / "events.jsonl")
    assert [e.kind for e in events if e.variant == "p5:music"] == ["draft", "open", "ask", "draft", "open", "accept"]
    assert [e.moves for e in events if e.kind == "edit"] == [("wording", "write")]
    assert [event.time for event in events] == sorted(event.time for event in events)
    assert [view.number for view in seen] == [1, 2, 2, 3, 3, 4, 5, 6]


def test_a_stopped_review_goes_on_and_asks_nothing_twice(tmp_path):
    script = [ACCEPT, ASK, ACCEPT, REJECT, ACCEPT, ASK, ASK, ACCEPT, ACCEPT]
    straight = make(tmp_path / "straight.jsonl").run(scripted(script))
    for stop in range(len(script)):
        path, writer, clock = tmp_path / f"{stop}.jsonl", Writer(), Clock()
        review = make(path, writer=writer, clock=clock)
        first = review.run(scripted([*script[:stop], STOP]))
        assert set(first.open).isdisjoint(one.id for one in first.delivered)
        review.log.close()
        again = make(path, writer=writer, clock=clock)
        assert again.outcome() == first
        assert again.run(scripted(script[stop:])) == straight
        again.log.close()
        assert len(writer.requests) == 6 + 3


def test_every_cut_of_the_file_goes_on(tmp_path):
    """A kill can leave any number of bytes: whole events count, a torn one does not."""
    script = [ACCEPT, ASK, ACCEPT, REJECT, ACCEPT, ASK, ACCEPT, ACCEPT]
    review = make(tmp_path / "whole.jsonl")
    straight = review.run(scripted(script))
    content = (tmp_path / "whole.jsonl").read_bytes()
    for cut in sorted(random.Random(0).sample(range(len(content)), 40)):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(content[:cut])
        taken = [e for e in read_events(path) if e.kind in ("accept", "ask", "reject")]
        writer = Writer()
        writer.requests = []
        again = make(path, writer=writer)
        found = again.run(scripted(script[len(taken) :]))
        again.log.close()
        assert [one.id for one in found.delivered] == [one.id for one in straight.delivered]
        assert found.rejected == straight.rejected
        assert make(path).outcome() == found


def test_a_killed_process_loses_nothing(tmp_path):
    code = f"""
import os, sys
sys.path[:0] = [{os.path.dirname(__file__)!r}]
from pathlib import Path
from test_review import ACCEPT, make
count = 0
def reviewer(view):
    global count
    count += 1
    if count == 3:
        os.kill(os.getpid(), 9)
    return ACCEPT
make(Path({str(tmp_path / "events.jsonl")!r})).run(reviewer)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    again = make(tmp_path / "events.jsonl")
    assert [one.id for one in again.outcome().delivered] == ["p3:music", "p3:chess"]
    assert len(again.run(scripted([ACCEPT] * 4)).delivered) == 6


def test_two_reviews_at_once_are_refused(tmp_path):
    review = make(tmp_path / "events.jsonl")
    with pytest.raises(ValueError, match="expected no other review on it, got one that is running"):
        make(tmp_path / "events.jsonl")
    review.log.close()
    make(tmp_path / "events.jsonl").log.close()


def test_exceptions_are_all_that_the_teacher_sees(tmp_path):
    def wrong_for_chess(request):
        draft = Writer()(request)[0]
        return [draft if request.topic == "music" else draft.model_copy(update={"text": draft.text.replace("2", "4")})]

    seen = []
    found = make(tmp_path / "e.jsonl", writer=wrong_for_chess, exceptions=True).run(scripted([REJECT] * 3, seen))
    assert [view.variant.topic for view in seen] == ["chess"] * 3
    assert {failure.kind for view in seen for failure in view.failures} == {"numbers"}
    assert len(found.delivered) == len(found.rejected) == 3


def test_the_draft_with_the_fewest_failures_is_shown_and_none_is_named(tmp_path):
    def two(request):
        good = Writer()(request)[0]
        return [] if request.topic == "chess" else [good.model_copy(update={"text": "Nothing."}), good]

    seen = []
    found = make(tmp_path / "e.jsonl", writer=two, drafts=2).run(scripted([ACCEPT] * 3, seen))
    assert all(view.failures == () for view in seen)
    assert found.failed == {f"p{i}:chess": "the generator wrote no draft" for i in (3, 5, 7)}
    assert found.open == ("p3:chess", "p5:chess", "p7:chess")


def test_bad_reviews(tmp_path):
    with pytest.raises(ValueError, match=r"^drafts: expected at least 1, got 0$"):
        make(tmp_path / "a.jsonl", drafts=0)
    with pytest.raises(ValueError, match=r"^text: expected what to edit, got none$"):
        Decision(action="edit")
    with pytest.raises(ValueError, match=r"^moves: expected some of interest, .*, got 'magic'$"):
        Decision(action="accept", moves=("magic",))
    path = tmp_path / "b.jsonl"
    path.write_text('{"time": 1, "actor": "teacher", "kind": "open", "variant": "other"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="expected events of this review, got one of 'other'"):
        make(path)
    path = tmp_path / "c.jsonl"
    path.write_text('{"time": 1}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="expected an event at line 1, got actor: Field required"):
        make(path)


def test_a_teacher_at_a_terminal():
    lines, shown = [], []
    edits = iter([None, " new text "])

    def ask(question):
        shown.append(question)
        if not lines:
            raise EOFError
        return lines.pop(0)

    review = terminal_reviewer(ask, shown.append, lambda text: next(edits))
    variant = plan(PROBLEMS[0], CLASS, 3, CATALOGUE)[0].model_copy(update={"text": "old text", "solution": "3 + 2"})
    view = View(variant=variant, problem=PROBLEMS[0], failures=(), number=1, total=6)
    lines[:] = ["x", "accept"]
    assert review(view) == Decision(action="accept")
    assert "old text" in shown[0]
    lines[:] = ["e", "e", "9", "7"]
    assert review(view) == Decision(action="edit", moves=("wording", "write"), text="new text")
    lines[:] = ["p", "4, 5", ""]
    assert review(view) == Decision(action="ask", moves=("depth", "realism"), text="fix the depth, fix the realism")
    lines[:] = ["p", "", "", "p", "", "be brief"]
    assert review(view) == Decision(action="ask", text="be brief")
    lines[:] = ["r"]
    assert review(view) == Decision(action="reject")
    lines[:] = ["q"]
    assert review(view) == review(view) == Decision(action="stop")  # the second by the end of the input


def test_an_editor(monkeypatch):
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"{sys.executable} -c \"import sys; open(sys.argv[1], 'a').write('more')\"")
    assert edit_text("text", input) == "text\nmore"
    monkeypatch.setenv("EDITOR", "false")
    assert edit_text("text", input) is None
    monkeypatch.setenv("EDITOR", "/no/such/editor")
    assert edit_text("text", input) is None
    monkeypatch.delenv("EDITOR")
    assert edit_text("text", lambda question: "typed") == "typed"


@given(st.text(alphabet="abcé", max_size=12), st.text(alphabet="abcé", max_size=12))
def test_edit_distance_is_that_of_the_table(first, second):
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        before, row = row, [i]
        for j, b in enumerate(second, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
    assert edit_distance(first, second) == row[-1]


def test_ownership():
    assert changed_share("same", "same") == 0.0
    assert changed_share("abcd", "wxyz") == 1.0
    assert changed_share("", "") == 0.0
    assert edit_distance("a" * 3000, "a" * 1500 + "b" * 1500) == 1500


def session(pauses):
    """Events of one variant with given gaps."""
    kinds = [("draft", "model"), ("open", "teacher"), ("ask", "teacher"), ("draft", "model"), ("open", "teacher"), ("edit", "teacher")]
    kinds += [("open", "teacher"), ("accept", "teacher")]
    texts = ["abcd", "", "shorter", "abce", "", "abxe", "", "abxe"]
    now, events = 0.0, []
    for (kind, actor), text, pause in zip(kinds, texts, [0, *pauses], strict=True):
        now += pause
        events.append(Event(time=now, actor=actor, kind=kind, problem="p", variant="v", text=text))
    return events


def test_effort():
    whole, parts = effort_report(session([1, 30, 50, 1, 40, 1, 20]))
    assert parts == {"p": whole}
    assert whole.minutes == pytest.approx((1 + 30 + 1 + 40 + 1 + 20) / 60)  # 50 s were the model's
    assert (whole.turns, whole.drafts, whole.discarded, whole.variants) == (2, 2, 0.5, 1)
    assert whole.characters == len("shorter") + 1
    assert whole.distance == pytest.approx(2 / 4)  # abcd -> abxe
    assert whole.ownership == pytest.approx(0.5)


def test_a_pause_of_ten_minutes_is_cut_and_nothing_else():
    plain = effort_report(session([1, 30, 50, 1, 40, 1, 20]))[0]
    paused = session([1, 30, 50, 1, 40, 1, 20])
    later = [event.model_copy(update={"time": event.time + 600 * (number > 4)}) for number, event in enumerate(paused)]
    assert effort_report(later)[0].minutes == pytest.approx(plain.minutes - 40 / 60)  # the gap that holds the pause
    stop = Event(time=paused[4].time, actor="teacher", kind="stop", problem="p", variant="v")
    back = Event(time=paused[4].time + 600, actor="teacher", kind="open", problem="p", variant="v")
    split = [*paused[:5], stop, back, *(e.model_copy(update={"time": e.time + 600}) for e in paused[5:])]
    assert effort_report(split)[0].minutes == pytest.approx(plain.minutes)


def test_times_that_go_backwards_are_refused_and_no_events_are_no_effort():
    with pytest.raises(ValueError, match=r"^events: expected times that do not decrease, got 0 after 5$"):
        effort_report([Event(time=5, actor="teacher", kind="stop"), Event(time=0, actor="teacher", kind="stop")])
    whole, parts = effort_report([])
    assert (whole.minutes, whole.drafts, parts) == (0.0, 0, {})
    assert math.isnan(whole.distance)


def test_learning_curve_recovers_the_slope():
    rng = np.random.default_rng(0)
    log_n = np.log(np.arange(1, 21))
    minutes = {f"t{j}": np.exp(rng.normal(2, 0.5) - 0.3 * log_n + rng.normal(0, 0.3, 20)).tolist() for j in range(7)}
    curve = learning_curve(minutes)
    assert curve.slope == pytest.approx(-0.3, abs=0.1)
    assert curve.low < curve.slope < curve.high < 0
    assert (curve.teachers, curve.problems) == (7, 140)
    flat = {teacher: [5.0, 5.0, 5.0] for teacher in "abc"}
    assert learning_curve(flat).slope == 0.0
    assert math.isnan(learning_curve({"a": [4.0, 2.0]}).low)
    assert learning_curve({"a": [4.0, 2.0]}).slope == pytest.approx(math.log(0.5) / math.log(2))


@pytest.mark.parametrize(
    ("minutes", "message"),
    [
        ({"a": [1.0, 0.0]}, "minutes of a: expected finite numbers above 0, got 0"),
        ({"a": [1.0]}, "minutes: expected a teacher with at least 2 problems, got none"),
        ({}, "minutes: expected a teacher with at least 2 problems, got none"),
    ],
)
def test_bad_minutes(minutes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        learning_curve(minutes)


def test_quality_curve_recovers_the_slope_of_ratings():
    rng = np.random.default_rng(0)
    rows = {
        f"t{j}": [(n, level + 0.4 * math.log(n) + rng.normal(0, 0.3)) for n in range(1, 13) for _ in range(5)]
        for j, level in enumerate((2.5, 3.0, 3.5))
    }
    curve = quality_curve(rows)
    assert curve.slope == pytest.approx(0.4, abs=0.1)
    assert curve.low < curve.slope < curve.high
    assert (curve.teachers, curve.problems) == (3, 180)
    shifted = {teacher: [(n, value + j) for n, value in own] for j, (teacher, own) in enumerate(rows.items())}
    assert quality_curve(shifted, draws=0).slope == pytest.approx(curve.slope)  # a teacher's level does not count
    minutes = {teacher: [math.exp(value) for _, value in own[::5]] for teacher, own in rows.items()}
    same = {teacher: own[::5] for teacher, own in rows.items()}
    assert quality_curve(same, draws=0).slope == pytest.approx(learning_curve(minutes, draws=0).slope)
    for bad in ({"a": [(0, 3.0), (2, 4.0)]}, {"a": [(1, 3.0), (2, math.nan)]}):
        with pytest.raises(ValueError, match=r"^ratings of a: expected places of at least 1 and finite ratings, got others$"):
            quality_curve(bad)
    with pytest.raises(ValueError, match=r"^ratings: expected a teacher with at least 2 problems, got none$"):
        quality_curve({"a": [(2, 3.0), (2, 4.0)]})


def ratings(teachers, students, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for teacher in range(teachers):
        level = rng.normal(0, 0.3)
        for student in range(students):
            own = rng.normal(0, 0.5)
            for number in range(4):
                grain, match = (1, 4)[number % 2], rng.random()
                value = 3 + 0.5 * (grain == 4) + 0.3 * match + level + own + rng.normal(0, 0.5)
                made.append(Rating(student=f"{teacher}-{student}", teacher=f"t{teacher}", grain=grain, match=match, rating=value))
    return made


def test_reactions_recover_a_planted_preference():
    found = reaction_report(ratings(4, 20))
    assert found.converged
    assert found.students == 80
    assert found.contrast.value == pytest.approx(0.5, abs=0.15)
    assert found.contrast.low < 0.5 < found.contrast.high
    assert found.grains[4].value == pytest.approx(0.5, abs=0.15)
    assert found.match.low < 0.3 < found.match.high
    assert 0.1 < found.student_variance < 0.45
    alone = reaction_report(ratings(1, 25))
    assert alone.grains[4].value == pytest.approx(0.5, abs=0.25)
    assert math.isnan(alone.teacher_variance)


def test_contrast_by_hand_and_bad_ratings(tmp_path):
    made = [Rating(student="a", teacher="t", grain=grain, match=0.0, rating=rating) for grain, rating in ((1, 2), (2, 4), (3, 5), (4, 4))]
    made += [Rating(student="b", teacher="t", grain=1, match=0.0, rating=1.0)]
    term, students = contrast(made)
    assert (term.value, students) == (1.5, 1)
    assert math.isnan(term.low)
    with pytest.raises(ValueError, match=r"^ratings: expected a student who rated a specific and a broad variant, got none$"):
        contrast(made[:2])
    with pytest.raises(ValueError, match=r"^ratings: expected finite numbers, got nan with match 0.0 from a$"):
        reaction_report([*made, Rating(student="a", teacher="t", grain=1, match=0.0, rating=math.nan)])
    path = tmp_path / "ratings.csv"
    path.write_text("student,teacher,grain,match,rating\na,t,1,0.5,4\na,t,4,0.5,five\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected numbers for grain, match, rating and place in row 2, got could not convert"):
        read_ratings(path)
