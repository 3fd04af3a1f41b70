"""A chat with SmolLM2 behind the server of transformers: the same answers as from the model itself, none asked twice after a kill."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from preceptor.models.language import load_language, load_tokenizer
from preceptor.teachers.chat import Chat, ChatStopped, Endpoint, Settings
from preceptor.teachers.chat.journal import Journal
from preceptor.teachers.chat.local import Local

PROMPTS = [
    "What is the capital of France?",
    "Name a colour.",
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
]
SHORT = Settings(max_tokens=8)


class Server:
    def __init__(self, url, model, log, local):
        self.url, self.model, self.log, self.local = url, model, log, local

    def answered(self):
        return self.log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200')

    def chat(self, **options):
        return Chat(Endpoint(url=self.url, model=self.model, parallel=2), **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    model = load_language({"keep_layers": 1}, teacher=load_language("smollm2"))  # a copy that can be saved
    tokenizer = load_tokenizer("smollm2")
    model.to(torch.bfloat16).save_pretrained(folder / "smollm2")
    tokenizer.save_pretrained(folder / "smollm2")
    (folder / "home" / "hub").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "transformers", "serve", str(folder / "smollm2"), "--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = folder / "log"
    with log.open("w") as out:
        child = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=out, stderr=out)
    try:
        until = time.monotonic() + 120
        while True:
            assert child.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < until, "not up in two minutes"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.2)
        yield Server(f"http://127.0.0.1:{port}/v1", str(folder / "smollm2"), log, Local(model.float(), tokenizer))
    finally:
        child.kill()
        child.wait()


def test_the_same_answers_as_from_the_model_itself(server):
    here = Chat(server.local).ask(PROMPTS, SHORT)
    with server.chat() as chat:
        there = chat.ask(PROMPTS, SHORT)
    facts = [[(answer.text, answer.prompt_tokens, answer.completion_tokens) for answer in answers] for answers in (here, there)]
    assert facts[0] == facts[1]
    assert "Paris" in there[0].text


RUN = """
import sys
from preceptor.teachers.chat import Chat, Endpoint, Settings
chat = Chat(Endpoint(url=sys.argv[1], model=sys.argv[2], parallel=2), journal=sys.argv[3])
print(len(chat.ask([f"Say {i}." for i in range(12)], Settings(max_tokens=3))), chat.spent.cached)
"""


def test_killed_and_resumed_nothing_is_asked_twice_but_what_was_on_its_way(server, tmp_path):
    command, before = [sys.executable, "-c", RUN, server.url, server.model, str(tmp_path / "j")], server.answered()
    child = subprocess.Popen(command)
    until = time.monotonic() + 60
    while server.answered() < before + 5 and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    kept = Journal(tmp_path / "j").spent()[0]
    assert kept > 0
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "12"
    assert int(said[1]) >= 3
    assert 12 <= server.answered() - before <= 12 + 2  # two at a time
    total = server.answered()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["12", "12"]
    assert server.answered() == total


def test_what_it_cannot_do_is_one_line(server):
    class Grade(BaseModel):
        score: int

    with server.chat() as chat:
        with pytest.raises(ChatStopped, match=r"^choosing among options: expected log-probabilities"):
            chat.choose(["Is it? A or B"], ["A", "B"])
        (found,) = chat.structured(["Grade this essay from 0 to 4: It is good."], Grade, Settings(max_tokens=16), asks=2)
        assert (found.value is None) == bool(found.failed)
        assert 1 <= len(found.answers) <= 2
    with Chat(Endpoint(url=server.url, model="cat")) as chat:
        assert "HTTP 400" in chat.ask(["q"])[0].failed
