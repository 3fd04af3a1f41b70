"""A server on loopback that answers like vLLM's, from a model that lies here, and can be made to misbehave."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch


class Fake:
    """What the server knows and what it was asked.

    ``trouble(number, handler, said)`` is called before each completion, ``number`` counting from 1, with what would be said; it returns
    what to say instead, or None when it has answered itself.
    """

    def __init__(self, model, tokenizer, *, name="tiny", root="tiny-1", max_logprobs=20, max_model_len=64, pause=0.0):
        self.model, self.tokenizer, self.name, self.root = model, tokenizer, name, root
        self.max_logprobs, self.max_model_len, self.pause = max_logprobs, max_model_len, pause
        self.trouble = lambda number, handler, said: said
        self.lock, self.number, self.asked, self.answered, self.keys = threading.Lock(), 0, [], [], []

    def completion(self, body):
        ids, k = body["prompt"], body["prompt_logprobs"]
        with torch.no_grad():
            log_p = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        places = [None]
        for token, row in zip(ids[1:], log_p[:-1], strict=True):
            order = row.argsort(descending=True).tolist()
            kept = order[:k] if token in order[:k] else [token, *order[:k]]
            places.append({str(i): self.entry(i, row, order) for i in kept})
        return {"object": "text_completion", "model": body["model"], "choices": [{"index": 0, "text": "x", "prompt_logprobs": places}]}

    def entry(self, i, row, order):
        return {"logprob": max(float(row[i]), -9999.0), "rank": order.index(i) + 1, "decoded_token": self.tokenizer.decode([i])}


def respond(handler, content, status=200, **headers):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for key, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
        handler.send_header(key.replace("_", "-"), str(value))
    handler.end_headers()
    handler.wfile.write(data)


@contextmanager
def served(fake):
    """The address of a running server."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            card = {"id": fake.name, "root": fake.root, "max_model_len": fake.max_model_len, "created": time.time()}
            respond(self, {"data": [card]} if self.path == "/v1/models" else {}, 200 if self.path == "/v1/models" else 404)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/completions"
            if body["prompt_logprobs"] > fake.max_logprobs:
                message = f"Requested prompt logprobs of {body['prompt_logprobs']}, which is greater than max allowed: {fake.max_logprobs}"
                respond(self, {"error": {"message": message, "code": 400}}, 400)
                return
            time.sleep(fake.pause)
            with fake.lock:
                fake.number += 1
                number = fake.number
                fake.asked.append(tuple(body["prompt"]))
                said = fake.completion(body)
            said = fake.trouble(number, self, said)
            if said is not None:
                respond(self, said)
                with fake.lock:
                    fake.answered.append(tuple(body["prompt"]))

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
