"""A chat asks each question once, in order, within its limits; what cannot be is one line."""

import json
import math
import os
import sqlite3
import tempfile
import threading
import time
from pathlib import Path

import pytest
from pydantic import BaseModel, Field, RootModel

from preceptor.teachers.chat import Budget, Chat, ChatStopped, Fault, Prices, Question, Said, Settings, open_chat
from preceptor.teachers.chat.journal import Journal
from preceptor.teachers.chat.shapes import parsed


class Parrot:
    """A backend that says in capitals what it is told, or what ``say`` makes of a question."""

    model = "parrot"

    def __init__(self, say=None, *, batch=1, parallel=4):
        self.say = say or (lambda question: Said(text=question.messages[-1]["content"].upper(), prompt_tokens=10, completion_tokens=5))
        self.batch, self.parallel = batch, parallel
        self.asked, self.lock = [], threading.Lock()

    def answer(self, questions):
        with self.lock:
            self.asked += [question.messages[-1]["content"] for question in questions]
        assert len(questions) <= self.batch
        return [self.say(question) for question in questions]


def texts(count):
    return [f"question {i}" for i in range(count)]


@pytest.mark.parametrize("batch", [1, 3])
def test_answers_come_in_order_and_equal_questions_are_asked_once(batch):
    parrot, seen = Parrot(batch=batch), []
    prompts = [*texts(10), "question 3", [{"role": "system", "content": "s"}, {"role": "user", "content": "question 3"}]]
    chat = Chat(parrot)
    answers = chat.ask(prompts, progress=lambda done, total: seen.append((done, total)))
    assert [answer.text for answer in answers] == [f"QUESTION {i}" for i in [*range(10), 3, 3]]
    assert len(parrot.asked) == 11  # the one with a system message is another question
    assert seen[-1] == (12, 12)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert (chat.spent.answers, chat.spent.tokens, chat.spent.requests) == (11, 11 * 15, 11 if batch == 1 else 4)
    again = chat.ask(prompts)
    assert all(answer.cached for answer in again)
    assert chat.spent.cached == 11
    assert len(parrot.asked) == 11
    assert chat.ask([]) == []


def test_whatever_an_answer_depends_on_makes_another_question():
    question = Question(({"role": "user", "content": "q"},), Settings())
    others = [
        Question(({"role": "system", "content": "q"},), Settings()),
        Question(({"role": "user", "content": "r"},), Settings()),
        Question(question.messages, Settings(), ("A", "B")),
        *(
            Question(question.messages, settings)
            for settings in (
                Settings(temperature=1.0),
                Settings(top_p=0.5),
                Settings(max_tokens=5),
                Settings(stop=("x",)),
                Settings(seed=1),
                Settings(extra={"reasoning_effort": "low"}),
            )
        ),
    ]
    keys = {one.key("m") for one in (question, *others)} | {question.key("n")}
    assert len(keys) == len(others) + 2
    assert Question(({"content": "q", "role": "user"},), Settings(extra={})).key("m") == question.key("m")


def test_a_journal_is_gone_on_with_and_replayed(tmp_path):
    path = tmp_path / "there" / "chat.sqlite"
    with Chat(Parrot(), journal=path, prices=Prices(input=1.0, output=4.0)) as chat:
        first = chat.ask(texts(5))
        assert chat.spent.money == pytest.approx(5 * (10 * 1 + 5 * 4) / 1e6)
    parrot = Parrot()
    with Chat(parrot, journal=path) as chat:
        second = chat.ask(texts(7))
    assert [answer.text for answer in second[:5]] == [answer.text for answer in first]
    assert [(answer.cached, answer.cost) for answer in second[:5]] == [(True, answer.cost) for answer in first]
    assert parrot.asked == texts(7)[5:]
    with open_chat("parrot", journal=path, replay=True) as replay:
        assert [answer.text for answer in replay.ask(texts(7))] == [answer.text for answer in second]
        with pytest.raises(ChatStopped) as stopped:
            replay.ask([*texts(7), "another"])
    assert str(stopped.value) == (
        f"replay: expected only questions of {str(path)!r}, got another one: 'another';"
        f" 7 of 8 questions are answered, kept in {path}: the same call goes on from there"
    )
    assert [answer and answer.text for answer in stopped.value.answers] == [*(answer.text for answer in second), None]


def test_a_journal_is_replayed_where_nothing_can_be_written():
    with tempfile.TemporaryDirectory() as name:  # which others may read, unlike those of pytest
        folder = Path(name)
        with Chat(Parrot(), journal=folder / "j") as chat:
            chat.ask(["q"])
        (folder / "j").chmod(0o444)
        folder.chmod(0o555)
        pid = os.fork()
        if not pid:
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)  # root may write everywhere
                with open_chat("parrot", journal=folder / "j", replay=True) as replay:
                    os._exit(0 if replay.ask(["q"])[0].text == "Q" else 1)
            finally:
                os._exit(2)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        folder.chmod(0o755)
        assert code == 0


def test_replay_while_the_journal_is_written_to(tmp_path):
    path = tmp_path / "chat.sqlite"
    with Chat(Parrot(), journal=path) as chat:
        chat.ask(texts(3))
        with open_chat("parrot", journal=path, replay=True) as replay:
            assert len(replay.ask(texts(3))) == 3


def test_what_is_no_journal_is_refused(tmp_path):
    text, other = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    text.write_text("hello " * 100)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE t (x)")
    for path, said in ((text, "file is not a database"), (other, "an SQLite file of something else, or of another version")):
        before = path.read_bytes()
        for only_read in (False, True):
            with pytest.raises(ValueError, match="journal") as error:
                Journal(path, only_read=only_read)
            assert str(error.value) == f"journal: expected a journal of answers, got {str(path)!r} ({said})"
        assert path.read_bytes() == before
    with pytest.raises(ValueError, match=r"^journal: expected an existing file, got '.*none.sqlite'$"):
        open_chat("m", journal=tmp_path / "none.sqlite", replay=True)
    with pytest.raises(ValueError, match=r"^journal: expected a file that can be opened, got '.*' \(unable to open database file\)$"):
        Journal(tmp_path)
    with Chat(Parrot(), journal=tmp_path / "j") as chat:
        chat.ask(["q"])
    with pytest.raises(ValueError, match=r"^journal: expected answers of one model 'cat' in '.*j', got those of parrot$"):
        open_chat("cat", journal=tmp_path / "j", replay=True)
    with pytest.raises(ValueError, match=r"^journal: expected a file to replay, got none$"):
        open_chat("cat", replay=True)


def test_equal_questions_of_several_threads_are_asked_once():
    def slow(question):
        time.sleep(0.02)
        return Said(text=question.messages[-1]["content"].upper())

    parrot = Parrot(slow)
    chat, found = Chat(parrot), {}
    orders = [texts(12), texts(12)[::-1], texts(12)[6:] + texts(12)[:6]]
    threads = [threading.Thread(target=lambda i=i, order=order: found.update({i: chat.ask(order)})) for i, order in enumerate(orders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(parrot.asked) == sorted(texts(12))
    for i, order in enumerate(orders):
        assert [answer.text for answer in found[i]] == [text.upper() for text in order]


def test_who_waits_for_a_question_of_a_run_that_ends_asks_it_himself():
    began, go = threading.Event(), threading.Event()

    def say(question):
        text = question.messages[-1]["content"]
        if text == "bad":
            began.set()
            go.wait(5)
            raise Fault("no such model", ends="run")
        return Said(text=text.upper())

    chat, ended = Chat(Parrot(say, parallel=1)), []

    def first():
        with pytest.raises(ChatStopped, match="no such model"):
            chat.ask(["bad", "good"])
        ended.append(True)

    thread = threading.Thread(target=first)
    thread.start()
    assert began.wait(5)
    threading.Timer(0.05, go.set).start()
    assert chat.ask(["good"])[0].text == "GOOD"
    thread.join(5)
    assert ended


def test_parallel_is_a_limit_for_all_threads_together():
    now, most, lock = 0, 0, threading.Lock()

    def say(question):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return Said()

    chat = Chat(Parrot(say, parallel=3))
    threads = [threading.Thread(target=chat.ask, args=([f"{i} {j}" for j in range(10)],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3


# ---- what may go wrong


def test_a_question_that_fails_is_one_answer_and_three_after_each_other_are_the_end():
    def say(question):
        text = question.messages[-1]["content"]
        return Fault("filtered", ends="question") if text.endswith(("1", "2", "4", "5", "6")) else Said(text="yes")

    parrot = Parrot(say, parallel=1)
    chat = Chat(parrot)
    assert [answer.failed for answer in chat.ask(texts(4))] == ["", "filtered", "filtered", ""]
    assert [answer.failed for answer in chat.ask(["a1", "a2", "b", "c1", "c2", "d"])] == [
        "filtered",
        "filtered",
        "",
        "filtered",
        "filtered",
        "",
    ]
    with pytest.raises(ChatStopped) as stopped:
        chat.ask(texts(9))
    assert str(stopped.value) == (
        "3 questions after each other failed, the last one: filtered; 2 of 9 questions are answered, not kept: there is no journal"
    )
    assert parrot.asked[-1] == "question 4"  # 1, 2 and 4: the third of the second call was known
    assert chat.spent.failed == 9


def test_tries_are_counted_and_wait_longer_each_time(monkeypatch):
    waits = []
    wait = threading.Event.wait
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: waits.append(timeout) or wait(self, 0))
    times = iter(range(100))

    def say(question):
        raise Fault("busy") if next(times) < 5 else Fault("gone", ends="question")

    (answer,) = Chat(Parrot(say), wait=2.0).ask(["q"])
    assert answer.failed == "gone"
    tried = [value for value in waits if value is not None and value >= 1]
    assert len(tried) == 5
    for number, value in enumerate(tried):
        assert 0.5 <= value / (2.0 * 2**number) <= 1.0
    waits.clear()
    (answer,) = Chat(Parrot(lambda question: (_ for _ in ()).throw(Fault("busy"))), wait=30.0, attempts=4).ask(["q"])
    assert answer.failed == "busy, at the last of 4 attempts"
    assert max(value for value in waits if value is not None) <= 60


def test_seconds_are_those_of_the_answer_without_waits():
    times = iter(range(3))

    def say(question):
        if next(times) < 2:
            raise Fault("busy")
        time.sleep(0.02)
        return Said()

    (answer,) = Chat(Parrot(say), wait=0.2).ask(["q"])
    assert 0.02 <= answer.seconds < 0.2


def test_a_bug_in_a_backend_comes_out_as_itself():
    with pytest.raises(ZeroDivisionError):
        Chat(Parrot(lambda question: 1 // 0)).ask(texts(3))
    chat = Chat(Parrot(lambda question: Said(text="x")))
    with pytest.raises(ZeroDivisionError):
        chat.ask(texts(3), progress=lambda done, total: 1 // 0)
    assert len(chat.ask(texts(3))) == 3  # nothing of the failed call is still waited for


# ---- budget


def test_a_budget_is_not_exceeded_and_a_higher_one_goes_on(tmp_path):
    settings, prices = Settings(max_tokens=5), Prices(input=100.0, output=200.0)
    need = (len("question 0") // 2 + 16 + 5, 0.0041)  # what one may take: (21 * 100 + 5 * 200) / 1e6 = 0.0031 at most
    with Chat(Parrot(), journal=tmp_path / "j", prices=prices, budget=Budget(money=0.02)) as chat:
        with pytest.raises(ChatStopped) as stopped:
            chat.ask(texts(50), settings)
        done = sum(answer is not None for answer in stopped.value.answers)
        assert chat.spent.money == pytest.approx(done * 0.002)
        assert 0.02 - need[1] <= chat.spent.money <= 0.02
        assert str(stopped.value) == (
            f"budget: expected room for a question of up to 0.0031, got {chat.spent.money:.4g} of 0.02 spent;"
            f" {done} of 50 questions are answered, kept in {tmp_path / 'j'}: the same call goes on from there"
        )
    with Chat(Parrot(), journal=tmp_path / "j", prices=prices, budget=Budget(money=0.02)) as chat:
        with pytest.raises(ChatStopped):
            chat.ask(texts(50), settings)  # what earlier runs spent counts
        assert chat.spent.answers == 0
        known = [text for text, answer in zip(texts(50), stopped.value.answers, strict=True) if answer]
        assert len(chat.ask(known, settings)) == done  # what is known costs nothing
    parrot = Parrot()
    with Chat(parrot, journal=tmp_path / "j", prices=prices, budget=Budget(money=1.0)) as chat:
        assert len(chat.ask(texts(50), settings)) == 50
        assert len(parrot.asked) == 50 - done


def test_a_budget_of_tokens_waits_for_those_on_their_way():
    def say(question):
        time.sleep(0.01)
        return Said(prompt_tokens=1, completion_tokens=1)

    parrot = Parrot(say, parallel=8)
    chat = Chat(parrot, budget=Budget(tokens=300))
    with pytest.raises(ChatStopped, match=r"^budget: expected room for a question of up to 121 tokens, got 180 of 300 used; 90 of"):
        chat.ask(texts(100), Settings(max_tokens=100))  # each may take 121, and takes 2
    assert len(parrot.asked) == 90


def test_what_a_server_did_not_count_is_counted_carefully():
    parrot = Parrot(lambda question: Said(text="abcdef", prompt_tokens=None, completion_tokens=None))
    (answer,) = Chat(parrot).ask(["0123456789"])
    assert (answer.prompt_tokens, answer.completion_tokens) == (5, 3)


# ---- structured answers


class Grade(BaseModel):
    score: int = Field(ge=0, le=4)
    why: str


def test_an_answer_that_does_not_fit_is_asked_for_again_with_the_error():
    replies = {
        1: "I think it is good.",
        3: 'Here: {"score": 7, "why": "because"}',
        5: '```json\n{"score": "3", "why": "because"}\n```',
    }
    parrot = Parrot(lambda question: Said(text=replies[len(question.messages)]))
    seen = []
    (found,) = Chat(parrot).structured(["grade this"], Grade, progress=lambda *state: seen.append(state))
    assert found.value == Grade(score=3, why="because")
    assert not found.failed
    assert [answer.text for answer in found.answers] == list(replies.values())
    assert parrot.asked[0].startswith("grade this\n\nAnswer with one JSON value that fits this JSON schema, and with nothing else:\n{")
    assert json.loads(parrot.asked[0].splitlines()[-1]) == Grade.model_json_schema()
    assert parrot.asked[1].startswith("That does not fit: expected Grade, got 'I think it is good.': value: Invalid JSON: ")
    assert "score: Input should be less than or equal to 4" in parrot.asked[2]
    assert seen == [(1, 1)] * 3


def test_after_the_last_try_a_failure_is_recorded_and_paid_once():
    parrot = Parrot(lambda question: Said(text="no" if question.messages[0]["content"].startswith("bad") else '{"score": 1, "why": ""}'))
    chat = Chat(parrot)
    for _ in range(2):
        good, bad = chat.structured(["good", "bad"], Grade, asks=3)
        assert (good.value, good.failed, len(good.answers)) == (Grade(score=1, why=""), "", 1)
        assert (bad.value, len(bad.answers)) == (None, 3)
        assert bad.failed.startswith("expected Grade, got 'no': value: Invalid JSON")
        assert "\n" not in bad.failed
    assert len(parrot.asked) == 4
    failing = Chat(Parrot(lambda question: Fault("filtered", ends="question")))
    (found,) = failing.structured(["q"], Grade)
    assert (found.value, found.failed, len(found.answers)) == (None, "filtered", 1)
    with pytest.raises(ValueError, match=r"^asks: expected at least 1, got 0$"):
        chat.structured(["q"], Grade, asks=0)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 1, "why": "a"}', 1),
        ('  {"score": 1, "why": "a"}\n', 1),
        ('Sure! {"score": 1, "why": "{}"} Hope that helps.', 1),
        ('```\n{"score": 1, "why": "a"}\n```', 1),
        ('First\n```python\nx\n```\nthen\n```JSON\n{"score": 1, "why": "a"}\n```\n', 1),
        ('Fill {score} and {why}:\n```json\n{"score": 1, "why": "a"}\n```', 1),
        ('{"score": 1, "why"', None),
        ('{"score": 9, "why": ""}', None),
        ("{" * 100000, None),
        ("[" * 100000 + "]" * 100000, None),
        ("", None),
    ],
)
def test_json_is_found_where_models_put_it(text, score):
    answer = Chat(Parrot(lambda question: Said(text=text))).ask(["q"])[0]
    value, failed = parsed(answer, Grade)
    assert (value.score if value else None) == score
    assert (not failed) == (score is not None)
    assert len(failed) <= 300


def test_a_list_can_be_asked_for_and_a_cut_answer_is_told():
    class Words(RootModel[list[str]]):
        pass

    (found,) = Chat(Parrot(lambda question: Said(text='Words: ["a", "b"]'))).structured([[{"role": "system", "content": "s"}]], Words)
    assert found.value.root == ["a", "b"]
    cut = Chat(Parrot(lambda question: Said(text='["a", "b', finish="length", completion_tokens=7)))
    assert "(cut after 7 tokens)" in cut.structured(["q"], Words)[0].failed


# ---- options


def test_the_likeliest_option_and_of_equal_ones_the_first():
    scores = {"q": (-2.0, -1.0, -1.0), "r": (-math.inf, -math.inf, -math.inf), "s": (-0.5, -math.inf, -3.0)}
    parrot = Parrot(lambda question: Said(log_probs=scores[question.messages[-1]["content"]]))
    chat = Chat(parrot)
    for _ in range(2):  # the second time from the journal, -inf included
        one, none, first = chat.choose(["q", "r", "s"], ["A", "B", "C"])
        assert (one.index, one.option, one.log_probs, one.failed) == (1, "B", (-2.0, -1.0, -1.0), "")
        assert (none.index, none.option) == (None, "")
        assert none.failed == "expected one of A, B, C among the likeliest tokens, got none"
        assert (first.index, first.log_probs) == (0, (-0.5, -math.inf, -3.0))
    assert len(parrot.asked) == 3
    assert chat.choose(["q"], [["x", "y", "z"]])[0].option == "y"
    assert len(parrot.asked) == 4
    for options, said in ((["A"], "['A']"), (["A", "A "], "['A', 'A ']"), (["A", ""], "['A', '']")):
        with pytest.raises(ValueError, match="options") as error:
            chat.choose(["q"], options)
        assert str(error.value) == f"options: expected at least 2 different texts, got {said}"
    with pytest.raises(ValueError, match=r"^options: expected texts, or a list for each of 1 prompts, got 2 lists$"):
        chat.choose(["q"], [["a", "b"], ["a", "b"]])


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ("text", "prompts: expected a list of prompts, got one text 'text'"),
        ([[]], "prompt 0: expected at least one message, got none"),
        ([["a"]], "prompt 0: expected messages with role (system, user, assistant) and content, got 'a'"),
        (["a", [{"role": "you"}]], "prompt 1: expected messages with role (system, user, assistant) and content, got \"{'role': 'you'}\""),
        (["a\ud800"], "prompt 0: expected Unicode text, got '\\ud800' at character 1"),
        ([None], "prompt 0: expected messages with role (system, user, assistant) and content, got 'None'"),
    ],
)
def test_prompts_that_are_none(prompts, said):
    with pytest.raises(ValueError, match="prompt") as error:
        Chat(Parrot()).ask(prompts)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Settings(temperature=-1), "temperature: expected a number >= 0, got -1"),
        (lambda: Settings(temperature=math.nan), "temperature: expected a number >= 0, got nan"),
        (lambda: Settings(top_p=0), "top_p: expected a number in (0, 1], got 0"),
        (lambda: Settings(max_tokens=0), "max_tokens: expected at least 1, got 0"),
        (lambda: Settings(stop="x"), "stop: expected a tuple of texts, none of them empty, got 'x'"),
        (lambda: Settings(stop=("",)), "stop: expected a tuple of texts, none of them empty, got ('',)"),
        (lambda: Prices(input=-1, output=0), "prices: expected numbers >= 0 per million tokens, got -1 and 0"),
        (lambda: Budget(money=-1), "budget.money: expected a number >= 0, got -1"),
        (lambda: Budget(tokens=-1), "budget.tokens: expected a number >= 0, got -1"),
        (lambda: Chat(Parrot(), budget=Budget(money=1)), "prices: expected prices per million tokens with a budget of money, got none"),
        (lambda: Chat(Parrot(), attempts=0), "attempts: expected at least 1, got 0"),
    ],
)
def test_arguments_outside_their_range(make, said):
    with pytest.raises(ValueError, match=":") as error:
        make()
    assert str(error.value) == said
