"""A teacher behind a server fills the cache that it would fill here, whatever the network does; what it cannot do is one line."""

import copy
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from functools import partial

import pytest
import torch
import yaml
from tests.teachers.answers import contents
from tests.teachers.fake_vllm import Fake, respond, served
from tests.test_caching import done, refused
from tests.test_every_recipe_field import House, texts, tokenizer

from preceptor.models.taps import forward
from preceptor.teachers import server as module
from preceptor.teachers.build import build
from preceptor.teachers.cache import Cache, Spec
from preceptor.teachers.server import Server

K = 4
SPEC = {"kind": "top-k", "k": K, "data": "d", "teacher": "t"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A house with texts, their batches, and a sharp teacher."""
    house = House(tmp_path_factory.mktemp("place"))
    made = texts(house)
    torch.manual_seed(0)
    model = copy.deepcopy(made.teacher)
    for parameter in model.parameters():
        parameter.data.normal_(std=2.0)
    house.made, house.model = made, model.eval()
    house.batches = [made.train.batch(indices) for indices in torch.arange(len(made.train)).split(4)]
    return house


@pytest.fixture
def fake(place):
    return Fake(place.model, place.made.train.tokenizer)


class Words:
    """The tokenizer of the house, as far as a server needs one."""

    def __len__(self):
        return 10

    def decode(self, ids):
        return "[end]" if ids == [0] else f"w{ids[0] - 1}"


def asking(url, **options):
    return Server(**{"url": url, "model": "tiny", "k": K, "tokenizer": Words(), "wait": 0.001, "timeout": 5.0, **options})


def pieces(place):
    """How often each document piece, up to its last target that counts and with that, should be asked about."""
    found = []
    for batch in place.batches:
        for row in range(len(batch["y"])):
            piece = []
            for at in range(batch["y"].shape[1]):
                if batch["x"]["position_ids"][row, at] == 0:
                    piece = []
                piece.append(int(batch["x"]["input_ids"][row, at]))
                if batch["mask"][row, at]:
                    if len(piece) > 1 and found and found[-1] == (*piece,):
                        found.pop()
                    found.append((*piece, int(batch["y"][row, at])))
    return Counter(found)


@pytest.mark.parametrize("packed", [True, False])
def test_the_same_cache_as_from_the_model_itself(place, fake, tmp_path, packed):
    batches = place.batches
    if not packed:
        batches = [{**batch, "x": {"input_ids": batch["x"]["input_ids"]}} for batch in batches]
    spec = Spec(**SPEC)
    with served(fake) as url:
        there = build(tmp_path / "there", batches, asking(url), spec)
    here = build(tmp_path / "here", batches, lambda batch: forward(place.model, batch["x"]).logits, spec)
    one, other = (cache.signal(place.made.train.ids) for cache in (there, here))
    assert torch.equal(one["mask"], other["mask"])
    assert torch.equal(one["top_indices"], other["top_indices"])
    for name in ("top_logprobs", "tail"):
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)
    assert there.items == here.items == place.made.train.tokens()
    if packed:
        assert Counter(fake.asked) == pieces(place)


def test_what_is_left_of_one_is_no_less_than_the_token_of_the_prompt():
    """Beside 1 in float32 a tail of 1e-9 is lost, but the token of the prompt is in it."""
    place = {"0": {"logprob": 0.0}, "1": {"logprob": -30.0, "rank": 2}, "2": {"logprob": -20.0, "rank": 1}}
    scored = asking("http://h", k=2)._read([0, 1], {"choices": [{"prompt_logprobs": [None, place]}]})
    assert scored.indices.tolist() == [[0, 2]]
    assert scored.log_probs.tolist() == [[0.0, -20.0]]
    assert scored.tail.tolist() == [-30.0]


# ---- misbehaviour: each function is the answer to every third question


def drop(handler, said):
    handler.connection.shutdown(socket.SHUT_RDWR)


def hang(handler, said):
    time.sleep(0.5)


def drip(handler, said):
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    for _ in range(25):
        handler.wfile.write(b" ")
        time.sleep(0.02)


def drip_headers(handler, said):
    for letter in b"HTTP/1.1 200 OK\r\nA-Header: of many letters":
        handler.wfile.write(bytes([letter]))
        time.sleep(0.02)


def truncated(handler, said):
    respond(handler, json.dumps(said).encode()[:-20])


def cut(handler, said):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(json.dumps(said).encode()[:50])
    handler.connection.shutdown(socket.SHUT_RDWR)


def altered(change):
    def answer(handler, said):
        change(said["choices"][0]["prompt_logprobs"])
        respond(handler, json.dumps(said).encode())

    return answer


def with_entry(**values):
    return altered(lambda places: next(iter(places[1].values())).update(values))


def with_least(value):
    """At the least likely token of each place, perhaps the one of the prompt beside the top."""
    return altered(lambda places: [min(place.values(), key=lambda entry: entry["logprob"]).update(logprob=value) for place in places[1:]])


def shifted(places):
    """Another tokenizer's numbers."""
    places[1:] = [{str((int(number) + 1) % 10): entry for number, entry in place.items()} for place in places[1:]]


def renamed(number):
    def change(places):
        key = min(places[-1], key=lambda key: places[-1][key]["logprob"])
        places[-1] = {(number if other == key else other): entry for other, entry in places[-1].items()}

    return change


TROUBLE = {
    "drop": drop,
    "hang": hang,
    "drip": drip,
    "drip of headers": drip_headers,
    "429": lambda handler, said: respond(handler, b"slow down", 429, Retry_After="0.01"),
    "500": lambda handler, said: respond(handler, b"oops", 500),
    "503": lambda handler, said: respond(handler, b"", 503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "garbage": lambda handler, said: respond(handler, b"\xff\x00<html>"),
    "a deep garbage": lambda handler, said: respond(handler, b"[" * 100_000),
    "no object": lambda handler, said: respond(handler, [1, 2]),
    "no choice": lambda handler, said: respond(handler, {"choices": []}),
    "truncated": truncated,
    "cut": cut,
    "a place less": altered(lambda places: places.pop()),
    "an alternative less": altered(lambda places: [places[1].pop(key) for key in list(places[1])[:2]]),
    "null": altered(lambda places: places.__setitem__(1, None)),
    "NaN": with_entry(logprob=float("nan")),
    "infinity": with_entry(logprob=float("-inf")),
    "a logit": with_entry(logprob=3.0),
    "a word": with_entry(logprob="likely"),
    "too much": altered(lambda places: [entry.update(logprob=-0.01) for entry in places[1].values()]),
    "infinity beyond": with_least(float("-inf")),
    "NaN beyond": with_least(float("nan")),
    "wrong ids": altered(shifted),
    "no id": altered(renamed("w3")),
    "a large id": altered(renamed("11")),
}


@pytest.fixture(scope="module")
def calm(place, tmp_path_factory):
    with served(Fake(place.model, place.made.train.tokenizer)) as url:
        folder = tmp_path_factory.mktemp("calm") / "cache"
        build(folder, place.batches[:3], asking(url), Spec(**SPEC))
    return contents(folder)


@pytest.mark.parametrize("name", TROUBLE)
def test_every_third_question_goes_wrong(place, fake, calm, tmp_path, name):
    fake.trouble = lambda number, handler, said: TROUBLE[name](handler, said) if number % 3 == 0 else said
    with served(fake) as url:
        build(tmp_path / "cache", place.batches[:3], asking(url, timeout=0.2, parallel=1), Spec(**SPEC))
    assert fake.number // 3 > 5
    assert contents(tmp_path / "cache") == calm
    assert set(Counter(fake.answered).values()) <= set(pieces(place).values())


def test_many_questions_at_once_of_which_some_go_wrong(place, fake, calm, tmp_path):
    draws, kinds = random.Random(0), ("drop", "500", "garbage", "cut")
    fake.trouble = lambda number, handler, said: TROUBLE[draws.choice(kinds)](handler, said) if draws.random() < 0.3 else said
    with served(fake) as url:
        build(tmp_path / "cache", place.batches[:3], asking(url, parallel=5, attempts=14), Spec(**SPEC))
    assert contents(tmp_path / "cache") == calm


@pytest.mark.parametrize(
    ("name", "got"), [("500", "HTTP 500: oops"), ("drop", "RemoteDisconnected"), ("drip", r"no whole answer in 0\.1 s")]
)
def test_stays_down_then_goes_on_where_it_was(place, fake, calm, tmp_path, name, got):
    def fail(number, handler, said):
        return said if number <= sum(first) + 2 else TROUBLE[name](handler, said)

    first = [len(asked_of(place, batch)) for batch in place.batches[:2]]
    fake.trouble, said = fail, []
    rows = []
    with served(fake) as url:
        one = asking(url, timeout=0.1, attempts=3, parallel=1, say=said.append)
        with pytest.raises(ValueError, match=rf"{url}: expected log-prob.*, got {got}.* last of 3 attempts .* the same command goes on"):
            build(tmp_path / "cache", place.batches[:3], one, Spec(**SPEC), progress=rows.append)
        assert rows == [4, 8]
        assert len(said) <= 2  # the next question was perhaps on its way when this one was given up
        assert "attempt 3 of 3" in said[0]
        fake.trouble = lambda number, handler, said: said
        before = len(fake.asked)
        build(tmp_path / "cache", place.batches[:3], one, Spec(**SPEC), progress=rows.append)
    assert rows == [4, 8, 8, 12]
    assert fake.asked[before:] == asked_of(place, place.batches[2])
    assert contents(tmp_path / "cache") == calm


def asked_of(place, batch):
    """The questions about a batch, as a server that is asked one at a time hears them."""
    found = Fake(place.model, place.made.train.tokenizer)
    with served(found) as url:
        asking(url, parallel=1)(batch)
    return found.asked


def test_waits_grow_vary_and_end(monkeypatch, fake):
    waits = []
    monkeypatch.setattr(module.threading.Event, "wait", lambda event, seconds: waits.append(seconds))
    fault = module._Fault("busy")

    def fail(server, path, body, understand):
        raise fault

    monkeypatch.setattr(Server, "_once", fail)
    with pytest.raises(ValueError, match="got busy at the last of 11 attempts"):
        asking("http://h", wait=0.5, attempts=11)._score([1, 2])
    assert len(waits) == 10
    for number, wait in enumerate(waits):
        assert min(60, 0.25 * 2**number) <= wait <= min(60, 0.5 * 2**number)
    assert len({wait / 2**number for number, wait in enumerate(waits[:6])}) == 6
    for after, least in ((7.0, 7.0), (1e9, 60.0)):
        waits.clear()
        fault.after = after
        with pytest.raises(ValueError, match="busy"):
            asking("http://h", attempts=2)._score([1, 2])
        assert waits == [least]


# ---- the first question


def plain(handler, said):
    del said["choices"][0]["prompt_logprobs"]
    respond(handler, said)


def probe(place, url, **options):
    return asking(url, **options).probe([1, 2, 3, 4, 1], length=8)


def test_a_probe_tells_models_apart(place, fake):
    with served(fake) as url:
        one = probe(place, url)
        assert one == probe(place, url)
        assert fake.number == 2
        fake.root = "tiny-2"
        assert one != probe(place, url)
        fake.max_model_len = None
        probe(place, url)


@pytest.mark.parametrize(
    ("facts", "options", "message"),
    [
        ({}, {"model": "tinier"}, "expected the model 'tinier', got tiny$"),
        ({"max_model_len": 9}, {}, r"expected a context of 10 tokens \(text.length \+ 2\), got max_model_len 9"),
        ({"max_logprobs": 3}, {}, "--max-logprobs 4.*HTTP 400: .*Requested prompt logprobs of 4, which is greater than max allowed: 3"),
        ({"trouble": lambda number, handler, said: plain(handler, said)}, {}, "got a completion without prompt_logprobs"),
        ({"trouble": lambda number, handler, said: respond(handler, b"who", 401)}, {}, "got HTTP 401: who$"),
        (
            {"trouble": lambda number, handler, said: TROUBLE["wrong ids"](handler, said)},
            {},
            r"got ('w\d' for token \d|\d tokens, without).* last of 2",
        ),
    ],
)
def test_a_server_that_cannot_is_refused_at_once(place, fake, facts, options, message):
    for name, value in facts.items():
        setattr(fake, name, value)
    with served(fake) as url, pytest.raises(ValueError, match=message) as refusal:
        probe(place, url, **{"attempts": 2, **options})
    assert str(refusal.value).startswith(f"teacher.server {url}: expected ")
    assert fake.number <= 2


def test_other_tokens_behind_the_numbers(place, fake):
    class Other:
        def decode(self, ids):
            return ["a \ufffd", "", " w1"][ids[0]] if ids[0] < 3 else fallback or f" w{ids[0] - 1} "

    fake.tokenizer, fallback = Other(), None
    with served(fake) as url:
        probe(place, url)  # other ways to write the same
        fallback = "x"
        with pytest.raises(ValueError, match=r"got 'x' for token \d, which the tokenizer here reads as 'w\d' at the last of 3 attempts"):
            probe(place, url)


def test_nobody_there(place):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        with pytest.raises(
            ValueError, match=f"{url}: expected its list of models, got ConnectionRefusedError: .* at the last of 3 attempts"
        ):
            probe(place, url)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h/v1", "http://", "http://me:secret@h/v1"])
def test_no_address(url):
    with pytest.raises(ValueError, match="expected an address such as http://HOST:8000/v1, got "):
        asking(url)


@pytest.mark.parametrize("k", [0, 11])
def test_k_outside_the_vocabulary(k):
    with pytest.raises(ValueError, match=rf"k: expected a number in \[1, 10\], the tokens of the vocabulary, got {k}"):
        asking("http://h", k=k)


# ---- from the command line


@pytest.fixture
def kitchen(place, tmp_path):
    def written(url, name="recipe", **more):
        recipe = {
            "threads": 1,
            "text": {
                "documents": str(place.folder / "texts.jsonl"),
                "length": 8,
                "valid_rate": 0.3,
                "test_rate": 0.3,
                "tokenizer": tokenizer(place),
            },
            "teacher": {"server": url, "model": "tiny"},
            "student": tokenizer(place),
            "method": {"name": "classic-kd", "temperature": 1.0, "alpha": 1.0},
            "training": {"steps": 3, "batch_size": 2, "monitor": "nll", "learning_rate": 0.01},
            "cache": {"kind": "top-k", "k": K},
            "check_teacher": False,
            **more,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return written


def test_cached_from_a_server_killed_gone_on_with_and_trained_from(place, fake, kitchen, tmp_path):
    with served(fake) as url:
        path = kitchen(url)
        facts = json.loads(done("cache", path, "--out", tmp_path / "straight", "--json"))
        assert facts["items"] == place.made.train.tokens()
        asked = Counter(fake.asked)
        assert asked - pieces(place) == Counter([fake.asked[0]])  # the probe's
        fake.pause = 0.15
        fake.asked.clear()
        fake.answered.clear()
        command = [sys.executable, "-m", "preceptor.cli", "cache", str(path), "--out", str(tmp_path / "broken")]
        child = subprocess.Popen(command, stderr=subprocess.PIPE)
        journal = tmp_path / "broken" / ".journal.jsonl"
        for _ in range(6000):
            if journal.exists() and len(journal.read_text().splitlines()) > 2:
                break
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        assert child.returncode == -9
        rows = len(journal.read_text().splitlines())
        time.sleep(0.4)
        fake.pause = 0.0
        before, fake.asked = Counter(fake.asked), []
        done("cache", path, "--out", tmp_path / "broken")
        assert contents(tmp_path / "broken") == contents(tmp_path / "straight")
        again = before + Counter(fake.asked) - asked
        assert again.total() <= 1 + 8  # the second probe, and what was on its way
        assert rows < len(place.made.train) / 2
        fake.root = "tiny-2"
        assert "teacher was 'server " in refused("cache", path, "--out", tmp_path / "straight")
    done("distill", path, f"teacher.cache={tmp_path / 'straight'}", "--out", tmp_path / "run")  # and nobody is there
    line = refused("distill", path, f"teacher.cache={tmp_path / 'straight'}", "teacher.model=other", "--out", tmp_path / "none")
    assert f"expected described 'other at {url}', got a cache with described 'tiny at {url}'" in line
    line = refused("distill", path, "--out", tmp_path / "none")
    assert f"teacher.cache: expected a cache that preceptor cache filled from the server {url}, got none" in line
    for method in ("gopd", "tip"):
        words = [f"method={{name: {method}}}", "text.prompt=3", f"teacher.cache={tmp_path / 'straight'}", "--out", tmp_path / "none"]
        assert "teacher: expected a network for" in refused("distill", path, *words)
    assert not (tmp_path / "none").exists()


def test_a_server_that_stays_down_ends_the_command_in_one_line(monkeypatch, fake, kitchen, tmp_path):
    monkeypatch.setattr("preceptor.caching.Server", partial(Server, wait=0.001, attempts=3))
    fake.trouble = lambda number, handler, said: said if number < 8 else TROUBLE["500"](handler, said)
    with served(fake) as url:
        line = refused("cache", kitchen(url), "--out", tmp_path / "cache")
        assert line.startswith(f"error: teacher.server {url}: expected log-probabilities")
        assert "expected a finished cache, got one that is not finished" in refused(
            "distill", kitchen(url), f"teacher.cache={tmp_path / 'cache'}", "--out", tmp_path / "none"
        )
        fake.trouble = lambda number, handler, said: said
        done("cache", kitchen(url), "--out", tmp_path / "cache")
    assert Cache.open(tmp_path / "cache").spec.described == f"tiny at {url}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cache={}", "cache.kind: expected top-k at temperature 1, all that a server says, got logits at temperature 1"),
        ("cache={kind: sample, k: 2}", "cache.kind: expected top-k at temperature 1, all that a server says, got sample"),
        ("cache.temperature=2.0", "all that a server says, got top-k at temperature 2"),
        ("cache.k=11", "k: expected a number in [1, 10]"),
        ("teacher.server=here", "teacher.server: expected an address such as http://HOST:8000/v1, got 'here'"),
        ("teacher.model={reference: mlp}", "teacher.model: expected the name of the model on the server, got {'reference': 'mlp'}"),
        ("teacher.train={}", "teacher.train: expected none, as the model on the server is trained"),
        ("student={keep_layers: 1}", "student: expected a teacher that is here to make smaller, got one on a server"),
        ("text.tokenizer=null", "text.tokenizer: expected smollm2, gguf:FILE or hf:PATH where no teacher brings one"),
    ],
)
def test_a_recipe_that_a_server_cannot_serve(kitchen, tmp_path, override, message):
    line = refused("cache", kitchen("http://127.0.0.1:9/v1"), override, "--out", tmp_path / "none")
    assert message in line
    assert not (tmp_path / "none").exists()


def test_images_are_not_asked_about(kitchen, tmp_path):
    path = kitchen("http://127.0.0.1:9/v1", text=None, data={"name": "digits"})
    assert "teacher.server: expected text, as it is asked about tokens, got data" in refused("cache", path, "--out", tmp_path / "none")
