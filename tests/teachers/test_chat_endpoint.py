"""A chat through an endpoint that misbehaves: every question answered or told in one line, and none asked more often than need be."""

import math
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import pytest
from tests.teachers.fake_chat import FakeChat, served
from tests.teachers.fake_vllm import respond

from preceptor.teachers.chat import Chat, ChatStopped, Endpoint, Prices, Settings, open_chat


@pytest.fixture(scope="module", autouse=True)
def warm():
    """What openai loads at its first question is loaded before anything is timed."""
    with served(FakeChat()) as url, chat_with(url) as chat:
        chat.ask(["warm"])


@pytest.fixture
def fake():
    return FakeChat()


def chat_with(url, *, model="parrot", parallel=4, timeout=5.0, key=None, limit="max_tokens", **options):
    endpoint = Endpoint(url=url, model=model, parallel=parallel, timeout=timeout, key=key, limit=limit)
    return Chat(endpoint, **{"wait": 0.001, **options})


def texts(count):
    return [f"question {i}" for i in range(count)]


def test_what_is_sent_and_what_comes_back(fake, monkeypatch):
    monkeypatch.setenv("SECRET", "sk-123")
    everything = Settings(temperature=0.5, top_p=0.9, max_tokens=7, stop=("\n",), seed=3, extra={"reasoning_effort": "low"})
    with served(fake) as url:
        with chat_with(url, key="SECRET", prices=Prices(input=1.0, output=2.0)) as chat:
            (answer,) = chat.ask([[{"role": "system", "content": "s"}, {"role": "user", "content": "é 😀"}]], everything)
        with chat_with(url, limit="max_completion_tokens") as chat:
            chat.ask(["plain"])
    assert (answer.text, answer.finish, answer.prompt_tokens, answer.completion_tokens, answer.cached) == ("É 😀", "stop", 10, 5, False)
    assert answer.cost == pytest.approx(20e-6)
    assert fake.bodies[0] == {
        "model": "parrot",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "é 😀"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 7,
        "stop": ["\n"],
        "seed": 3,
        "reasoning_effort": "low",
    }
    assert fake.keys == ["Bearer sk-123", "Bearer none"]
    assert fake.bodies[1].keys() == {"model", "messages", "temperature", "max_completion_tokens"}


def test_many_at_one_time_and_no_more(fake):
    fake.pause = 0.02
    with served(fake) as url, chat_with(url, parallel=5) as chat:
        assert [answer.text for answer in chat.ask(texts(40))] == [text.upper() for text in texts(40)]
    assert fake.most == 5
    assert fake.asked == Counter(texts(40))


# ---- misbehaviour: each function is the answer to every third question


def drop(handler, said):
    handler.connection.shutdown(socket.SHUT_RDWR)


def hang(handler, said):
    time.sleep(1.2)


def drip(handler, said):
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def half(handler, said):
    respond(handler, b'{"choices": [{"message": {"role": "assistant", "conte')


def shorter_than_told(handler, said):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.connection.shutdown(socket.SHUT_RDWR)


def garbage(handler, said):
    respond(handler, bytes(random.Random(0).randbytes(300)))


def page(handler, said):
    respond(handler, b"<html><body>Bad gateway</body></html>", Content_Type="text/html")


def another_shape(handler, said):
    respond(handler, random.choice([[], {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": {"content": 7}}]}, None, 3]))


def bad_usage(handler, said):
    respond(handler, {**said, "usage": {"prompt_tokens": "many", "completion_tokens": -1}})


def deep(handler, said):
    respond(handler, b"[" * 200_000)


def status(code, **headers):
    def answer(handler, said):
        respond(handler, {"error": {"message": "try later"}}, code, **headers)

    answer.__name__ = f"status {code}"
    return answer


TROUBLES = [drop, hang, drip, half, shorter_than_told, garbage, page, another_shape, bad_usage, deep]
TROUBLES += [status(code) for code in (408, 409, 425, 429, 500, 502, 503, 529)]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
def test_trouble_that_passes_is_lived_through(fake, trouble, tmp_path):
    fake.trouble = lambda number, handler, said: trouble(handler, said) if number % 3 == 0 else said
    slow = trouble in (hang, drip)
    with served(fake) as url, chat_with(url, timeout=0.8 if slow else 20.0, journal=tmp_path / "j") as chat:
        answers = chat.ask(texts(12))
        assert [answer.text for answer in answers] == [text.upper() for text in texts(12)]
        assert chat.spent.requests == fake.number == 12 + sum(number % 3 == 0 for number in range(1, fake.number + 1))
        assert chat.spent.tokens == 12 * 15
    assert fake.answered == Counter(texts(12))


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (half, r"expected a chat completion, got '\{\"choices\": \[\{\"message\": .*'"),
        (hang, "no whole answer in 0.5 s"),
        (status(500), r"HTTP 500: \{\"error\": \{\"message\": \"try later\"\}\}"),
    ],
)
def test_one_question_that_always_fails_is_one_failed_answer(fake, trouble, told):
    fake.trouble = lambda number, handler, said: trouble(handler, said) if "POISON" in str(said) else said
    with served(fake) as url, chat_with(url, timeout=0.5 if trouble is hang else 20.0, attempts=4) as chat:
        answers = chat.ask(["a", "b", "poison", "c", "d"])
    assert [answer.text for answer in answers] == ["A", "B", "", "C", "D"]
    assert re.fullmatch(rf"http://127.0.0.1:\d+/v1: {told}, at the last of 4 attempts", answers[2].failed)
    assert fake.asked["poison"] == 4
    assert sum(fake.asked.values()) == 8


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (half, "expected a chat completion, got "),
        (page, "expected a chat completion, got '<html><body>Bad gateway</body></html>'"),
        (drop, "RemoteProtocolError: Server disconnected without sending a response."),
        (hang, "no whole answer in 0.2 s"),
        (drip, "no whole answer in 0.2 s"),
    ],
)
def test_a_server_that_never_answers_is_given_up_after_three_tries(fake, trouble, told):
    fake.trouble = lambda number, handler, said: trouble(handler, said)
    with served(fake) as url, chat_with(url, timeout=0.2 if "0.2" in told else 20.0) as chat, pytest.raises(ChatStopped) as stopped:
        chat.ask(texts(20))
    assert str(stopped.value).startswith(f"{url}: {told}")
    assert str(stopped.value).endswith(", at the last of 3 attempts; 0 of 20 questions are answered, not kept: there is no journal")
    assert fake.asked == {"question 0": 3}


def test_a_server_that_is_down(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        began = time.monotonic()
        with chat_with(url, journal=tmp_path / "j") as chat, pytest.raises(ChatStopped) as stopped:
            chat.ask(texts(5))
    assert time.monotonic() - began < 5
    assert str(stopped.value) == (
        f"{url}: ConnectError: All connection attempts failed, at the last of 3 attempts;"
        f" 0 of 5 questions are answered, kept in {tmp_path / 'j'}: the same call goes on from there"
    )


def test_a_server_that_dies_half_way_and_comes_back(fake, tmp_path):
    class Dies(Exception):
        pass

    def trouble(number, handler, said):
        if number > 10:
            drop(handler, said)
            return None
        return said

    fake.trouble = trouble
    with served(fake) as url, chat_with(url, attempts=3, journal=tmp_path / "j") as chat, pytest.raises(ChatStopped) as stopped:
        chat.ask(texts(30))
    done = [text for text, answer in zip(texts(30), stopped.value.answers, strict=True) if answer]
    assert len(done) == 10
    assert "RemoteProtocolError" in str(stopped.value)
    assert str(stopped.value).endswith(f"; 10 of 30 questions are answered, kept in {tmp_path / 'j'}: the same call goes on from there")
    assert fake.number <= 10 + 3 * 4
    fake.trouble = lambda number, handler, said: said
    with served(fake) as url, chat_with(url, journal=tmp_path / "j") as chat:  # another port: the address is no part of a question
        assert [answer.text for answer in chat.ask(texts(30))] == [text.upper() for text in texts(30)]
        assert chat.spent.requests == 20
    assert fake.answered == Counter(texts(30))


# ---- what no second try can mend


@pytest.mark.parametrize("code", [401, 403, 404, 405, 410])
def test_what_holds_for_all_questions_ends_at_once(fake, code, monkeypatch):
    monkeypatch.setenv("SECRET", "sk-123")
    fake.trouble = lambda number, handler, said: respond(handler, {"error": "Incorrect API key\nsk-123"}, code)
    with served(fake) as url, chat_with(url, key="SECRET") as chat, pytest.raises(ChatStopped) as stopped:
        chat.ask(texts(9))
    assert str(stopped.value) == (
        f'{url}: HTTP {code}: {{"error": "Incorrect API key\\n***"}}; 0 of 9 questions are answered, not kept: there is no journal'
    )
    assert fake.number == 1


def test_a_model_that_is_not_there_and_an_address_that_is_none(fake):
    with served(fake) as url:
        with chat_with(url, model="cat") as chat, pytest.raises(ChatStopped, match=r"HTTP 404: .*The model `cat` does not exist"):
            chat.ask(texts(9))
        with chat_with(url.removesuffix("/v1")) as chat, pytest.raises(ChatStopped, match=r"HTTP 404: \{\"detail\": \"Not Found\"\}"):
            chat.ask(texts(9))
    assert fake.number == 2


def test_a_refused_question_is_its_own_failure_and_three_are_the_end(fake):
    def trouble(number, handler, said):
        if "FILTERED" in said["choices"][0]["message"]["content"]:
            respond(handler, {"error": {"message": "content filter"}}, 400)
            return None
        return said

    fake.trouble = trouble
    with served(fake) as url, chat_with(url, parallel=1) as chat:
        answers = chat.ask(["a", "filtered 1", "b"])
        assert [answer.text for answer in answers] == ["A", "", "B"]
        assert answers[1].failed == f'{url}: HTTP 400: {{"error": {{"message": "content filter"}}}}'
        with pytest.raises(ChatStopped, match=r"^3 questions after each other failed, the last one: .*content filter"):
            chat.ask([f"filtered {i}" for i in range(9)])
    assert fake.number == 6


def test_a_spent_quota_is_not_waited_for(fake):
    fake.trouble = lambda number, handler, said: respond(handler, {"error": {"code": "insufficient_quota"}}, 429)
    with served(fake) as url, chat_with(url) as chat, pytest.raises(ChatStopped, match=r"HTTP 429: .*insufficient_quota"):
        chat.ask(texts(9))
    assert fake.number == 1


# ---- waits


def test_retry_after_holds_for_all_questions(fake):
    def trouble(number, handler, said):
        if number == 6:
            respond(handler, {}, 429, Retry_After="0.6")
            return None
        return said

    fake.trouble, fake.pause = trouble, 0.05
    with served(fake) as url, chat_with(url, parallel=3) as chat:
        chat.ask(texts(20))
    gaps = [later - sooner for sooner, later in zip(fake.times, fake.times[1:], strict=False)]
    assert sum(gap > 0.5 for gap in gaps) == 1
    assert 5 <= gaps.index(max(gaps)) <= 10  # soon after the sixth: two were on their way, and the news takes a moment


@pytest.mark.parametrize("after", ["3600", "Wed, 21 Oct 2099 07:28:00 GMT", "inf"])
def test_a_server_that_wants_to_be_left_alone_for_long_ends_the_run(fake, after):
    fake.trouble = lambda number, handler, said: respond(handler, {}, 429, Retry_After=after)
    with served(fake) as url, chat_with(url) as chat, pytest.raises(ChatStopped, match="and wants to be left alone for"):
        chat.ask(texts(9))
    assert fake.number == 1


@pytest.mark.parametrize("after", ["", "soon", "-5", "nan"])
def test_a_wait_that_is_none(fake, after):
    fake.trouble = lambda number, handler, said: respond(handler, {}, 503, Retry_After=after) if number == 1 else said
    with served(fake) as url, chat_with(url) as chat:
        assert chat.ask(["q"])[0].text == "Q"


# ---- options


def test_options_are_read_off_the_likeliest_first_tokens(fake):
    with served(fake) as url, chat_with(url) as chat:
        (choice,) = chat.choose(["q"], ["A", "B", "Z"])
    assert choice.option == "B"
    both = math.log(math.exp(-0.5) + math.exp(-3.0))  # " B" and "B"
    assert choice.log_probs == (-1.5, pytest.approx(both), -float("inf"))
    assert {key: fake.bodies[0][key] for key in ("max_tokens", "logprobs", "top_logprobs")} == {
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
    }


def test_an_endpoint_without_log_probabilities_is_refused(fake):
    fake.log_probs = False
    with served(fake) as url, chat_with(url) as chat:
        with pytest.raises(ChatStopped, match=r"^choosing among options: expected log-probabilities .* got none; 0 of 9"):
            chat.choose(texts(9), ["A", "B"])
        fake.trouble = lambda number, handler, said: respond(handler, {"detail": "Unexpected fields: logprobs"}, 422)
        with pytest.raises(ChatStopped, match=r"HTTP 422: .*; choosing among options needs log-probabilities"):
            chat.choose(texts(9), ["A", "B"])
    assert fake.number == 2


# ---- kills and signals

RUN = """
import sys, warnings
from preceptor.core.signals import Interrupted
from preceptor.teachers.chat import Chat, Endpoint
chat = Chat(Endpoint(url=sys.argv[1], model="parrot", parallel=4), journal=sys.argv[2])
if len(sys.argv) > 3:
    print("ready", flush=True)
    sys.stdin.readline()
order = range(60)[:: -1 if "backwards" in sys.argv else 1]
try:
    answers = chat.ask([f"question {i}" for i in order])
except Interrupted as error:
    print(error)
    sys.exit(error.exit_code)
assert [answer.text for answer in answers] == [f"QUESTION {i}" for i in order]
print(chat.spent.answers, chat.spent.cached)
"""


def start(url, journal, *more):
    return subprocess.Popen([sys.executable, "-c", RUN, url, str(journal), *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(fake, number):
    until = time.monotonic() + 60
    while fake.number < number and time.monotonic() < until:
        time.sleep(0.005)
    assert fake.number >= number


def test_killed_again_and_again_nothing_is_asked_twice_but_what_was_on_its_way(fake, tmp_path):
    fake.pause = 0.02
    kills = 0
    with served(fake) as url:
        for _ in range(3):
            child = start(url, tmp_path / "j")
            wait_for(fake, fake.number + 13)
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            child.communicate()
            kills += 1
        child = start(url, tmp_path / "j")
        said, _ = child.communicate(timeout=60)
        assert child.returncode == 0
        answers, cached = map(int, said.split())
        assert answers + cached == 60
        assert cached >= 3 * (13 - 4)
        assert sum(fake.asked.values()) <= 60 + 4 * kills  # four at a time
        total = fake.number
        child = start(url, tmp_path / "j")
        said, _ = child.communicate(timeout=60)
        assert (said, fake.number) == ("0 60\n", total)


def test_processes_with_one_journal_ask_each_question_once(fake, tmp_path):
    fake.pause = 0.02
    with served(fake) as url:
        children = [start(url, tmp_path / "j", order) for order in ("forwards", "forwards", "backwards")]
        assert [child.stdout.readline() for child in children] == ["ready\n"] * 3
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        said = [child.communicate(timeout=60)[0].split() for child in children]
        assert [child.returncode for child in children] == [0, 0, 0]
    assert fake.asked == Counter(texts(60))
    assert sum(int(answers) for answers, _ in said) == 60
    assert sum(int(cached) for _, cached in said) == 120
    assert sum(int(answers) > 0 for answers, _ in said) >= 2  # they worked side by side


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_what_is_on_its_way_is_kept(fake, tmp_path, number):
    fake.pause = 0.05
    with served(fake) as url:
        child = start(url, tmp_path / "j")
        wait_for(fake, 12)
        child.send_signal(number)
        said, _ = child.communicate(timeout=60)
        asked = fake.number
        assert child.returncode == 128 + number
        assert said == f"{number.name} after step {asked}, saved in {tmp_path / 'j'}\n"
        child = start(url, tmp_path / "j")
        said, _ = child.communicate(timeout=60)
        assert said == f"{60 - asked} {asked}\n"
    assert fake.asked == fake.answered == Counter(texts(60))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "localhost:8000"}, "url: expected an address such as http://HOST:8000/v1, got 'localhost:8000'"),
        ({"url": "http://me:secret@h/v1"}, "url: expected an address such as http://HOST:8000/v1, got 'http://me:secret@h/v1'"),
        ({"url": "http://h/v1", "key": "NO_SUCH_KEY"}, "key: expected an API key in the environment variable NO_SUCH_KEY, got none"),
        ({"url": "http://h/v1", "parallel": 0}, "parallel: expected at least 1, got 0"),
    ],
)
def test_an_endpoint_that_is_none(options, said):
    with pytest.raises(ValueError, match=":") as error:
        open_chat("m", **options)
    assert str(error.value) == said
