"""A server on loopback that speaks chat completions and can be made to misbehave; it counts what it is asked."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.teachers.fake_vllm import respond


class FakeChat:
    """What the server knows and what it was asked.

    ``trouble(number, handler, said)`` is called before each answer, ``number`` counting from 1, with what would be said; it returns what to
    say instead, or None when it has answered itself. ``reply(body)`` makes the text, by default the last message in capitals.
    """

    def __init__(self, *, model="parrot", pause=0.0, log_probs=True):
        self.model, self.pause, self.log_probs = model, pause, log_probs
        self.trouble = lambda number, handler, said: said
        self.reply = lambda body: body["messages"][-1]["content"].upper()
        self.lock, self.number, self.bodies, self.times, self.keys = threading.Lock(), 0, [], [], []
        self.answered, self.now, self.most = Counter(), 0, 0  # texts answered, requests at this moment, the most at one moment

    @property
    def asked(self):
        """How often each last message came."""
        return Counter(body["messages"][-1]["content"] for body in self.bodies)

    def completion(self, body):
        text = self.reply(body)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if body.get("logprobs") and self.log_probs:
            top = [
                {"token": f" {letter}", "logprob": -0.5 - at, "bytes": None} for at, letter in enumerate("BADCE"[: body["top_logprobs"]])
            ]
            top.append({"token": "B", "logprob": -3.0, "bytes": None})
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}], "refusal": None}
        used = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return {"id": "1", "object": "chat.completion", "created": 1, "model": self.model, "choices": [choice], "usage": used}


@contextmanager
def served(fake, port=0):
    """The address of a running server."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with fake.lock:
                fake.number += 1
                number = fake.number
                fake.bodies.append(body)
                fake.times.append(time.monotonic())
                fake.keys.append(self.headers["Authorization"])
                fake.now += 1
                fake.most = max(fake.most, fake.now)
            try:
                if self.path != "/v1/chat/completions":
                    respond(self, {"detail": "Not Found"}, 404)
                elif body["model"] != fake.model:
                    message = f"The model `{body['model']}` does not exist"
                    respond(self, {"error": {"message": message, "code": "model_not_found"}}, 404)
                else:
                    time.sleep(fake.pause)
                    said = fake.trouble(number, self, fake.completion(body))
                    if said is not None:
                        respond(self, said)
                        with fake.lock:
                            fake.answered[body["messages"][-1]["content"]] += 1
            finally:
                with fake.lock:
                    fake.now -= 1

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            pass

    server = Quiet(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
