"""An OpenAI-compatible endpoint on loopback for tests: it answers by a function and counts what it was asked."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def serving(reply):
    """Yield the address and the list of prompts; ``reply`` turns the messages of a question into a text."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append("\n".join(message["content"] for message in body["messages"]))
            message = {"role": "assistant", "content": reply(body["messages"])}
            usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            content = json.dumps(
                {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": choices, "usage": usage}
            )
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
