"""A language model behind an endpoint that speaks OpenAI's chat completions, as vLLM, llama.cpp and ``transformers serve`` do."""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from preceptor.core.optional import require
from preceptor.teachers.chat.types import Fault, Question, Said

TOP = 20  # tokens whose log-probabilities are asked for, the most that the protocol allows
_AGAIN = (408, 409, 425, 429)
_THIS_ONE = (400, 413, 422)  # of this question: too long, filtered; all others are of the endpoint, the key or the model
_SHOWN = 200  # characters of what a server says


class Endpoint:
    """One model of an endpoint, asked one question at a time in each of ``parallel`` threads.

    Args:
        url: such as ``http://HOST:8000/v1``; nothing of it is secret.
        model: its name there.
        key: name of the environment variable that holds the API key; None: the endpoint needs none.
        parallel: questions on their way at one time.
        timeout: seconds for a whole answer, however it drips.
        limit: what the endpoint calls the most tokens to be written.
    Raises:
        ValueError: no address, no parallel question, or an unset environment variable.
        ImportError: openai is missing.
    """

    batch = 1

    def __init__(
        self,
        *,
        url: str,
        model: str,
        key: str | None = None,
        parallel: int = 8,
        timeout: float = 120.0,
        limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(f"url: expected an address such as http://HOST:8000/v1, got {url!r}")
        if parallel < 1:
            raise ValueError(f"parallel: expected at least 1, got {parallel}")
        self.url, self.model, self.parallel, self.timeout, self.limit = url, model, parallel, timeout, limit
        self._key = "none" if key is None else os.environ.get(key, "")
        if not self._key:
            raise ValueError(f"key: expected an API key in the environment variable {key}, got none")
        self._openai = require("openai", extra="chat", purpose=f"the endpoint {url}")
        self._lock, self._client = threading.Lock(), None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._understood = False  # anything, ever: until then an answer of another form is taken for the wrong address

    def __repr__(self) -> str:
        return f"Endpoint(url={self.url!r}, model={self.model!r})"

    def answer(self, questions: Sequence[Question]) -> list[Said | Fault]:
        """Ask once, and wait for the whole answer.

        Raises:
            Fault: there is none; see `Fault.ends`.
        """
        (question,) = questions
        future = asyncio.run_coroutine_threadsafe(self._ask(question), self._running())
        status, headers, content = future.result()
        if status != 200:
            raise self._refusal(status, headers, content, question)
        try:
            said = _understood(json.loads(content), question)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise Fault(f"{self.url}: expected a chat completion, got {self._shown(content)!r}", ends=self._again()) from None
        self._understood = True
        return [said]

    def close(self) -> None:
        """End the thread that talks to the endpoint."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    def _running(self) -> asyncio.AbstractEventLoop:
        """The loop that all questions share, and with it their connections."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
                self._client = self._openai.AsyncOpenAI(base_url=self.url, api_key=self._key, max_retries=0, timeout=self.timeout)
            return self._loop

    def _again(self) -> Literal["again", "down"]:
        return "again" if self._understood else "down"

    async def _ask(self, question: Question) -> tuple[int, Any, bytes]:
        client: Any = self._client
        try:
            raw = await asyncio.wait_for(client.chat.completions.with_raw_response.create(**self._body(question)), self.timeout)
            return raw.http_response.status_code, raw.http_response.headers, raw.http_response.content
        except self._openai.APIStatusError as error:
            return error.response.status_code, error.response.headers, error.response.content
        except (TimeoutError, self._openai.APITimeoutError):
            raise Fault(f"{self.url}: no whole answer in {self.timeout:g} s", ends=self._again()) from None
        except self._openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Fault(f"{self.url}: {type(cause).__name__}: {cause}", ends="down") from None

    def _body(self, question: Question) -> dict[str, Any]:
        settings = question.settings
        body: dict[str, Any] = {"model": self.model, "messages": list(question.messages), "temperature": settings.temperature}
        body[self.limit] = settings.max_tokens
        if settings.top_p != 1:
            body["top_p"] = settings.top_p
        if settings.stop:
            body["stop"] = list(settings.stop)
        if settings.seed is not None:
            body["seed"] = settings.seed
        if question.options:
            body |= {"logprobs": True, "top_logprobs": TOP}
        return {**body, "extra_body": dict(settings.extra)} if settings.extra else body

    def _refusal(self, status: int, headers: Any, content: bytes, question: Question) -> Fault:
        told = f"{self.url}: HTTP {status}: {self._shown(content)}"
        if status in _AGAIN or status >= 500:
            spent = status == 429 and b"insufficient_quota" in content
            return Fault(told, ends="run" if spent else "again", after=_seconds(headers.get("Retry-After")))
        if question.options and status in _THIS_ONE:
            return Fault(f"{told}; choosing among options needs log-probabilities (logprobs, top_logprobs)", ends="run")
        return Fault(told, ends="question" if status in _THIS_ONE else "run")

    def _shown(self, content: bytes) -> str:
        """The beginning of what a server said, on one line and without the key."""
        return " ".join(content[:2000].decode("utf-8", "replace").replace(self._key, "***").split())[:_SHOWN]


def _understood(said: Any, question: Question) -> Said:
    (choice,) = said["choices"]
    text = choice["message"].get("content")
    usage = said.get("usage") or {}
    counts = {}
    for name in ("prompt_tokens", "completion_tokens"):
        count = usage.get(name)
        if count is not None and (not isinstance(count, int) or count < 0):
            raise ValueError(name)
        counts[name] = count
    if text is not None and not isinstance(text, str):
        raise TypeError(text)
    log_probs = _of_options(choice, question.options) if question.options else None
    return Said(text=text or "", finish=str(choice.get("finish_reason") or "stop"), log_probs=log_probs, **counts)


def _of_options(choice: Any, options: Sequence[str]) -> tuple[float, ...]:
    """Log-probabilities of the options as the first token, blanks around them aside."""
    if not (choice.get("logprobs") or {}).get("content"):
        raise Fault("choosing among options: expected log-probabilities (logprobs, top_logprobs) from the endpoint, got none", ends="run")
    found: dict[str, list[float]] = {}
    for entry in choice["logprobs"]["content"][0]["top_logprobs"]:
        found.setdefault(entry["token"].strip(), []).append(float(entry["logprob"]))
    if any(math.isnan(value) or value > 1e-3 for values in found.values() for value in values):
        raise ValueError("log-probabilities")
    return tuple(_log_sum(found.get(option.strip(), [])) for option in options)


def _log_sum(values: list[float]) -> float:
    most = max(values, default=-math.inf)
    return most if most == -math.inf else min(0.0, most + math.log(sum(math.exp(value - most) for value in values)))


def _seconds(after: str | None) -> float:
    """Of a header Retry-After: seconds, or a date."""
    try:
        return max(0.0, float(after or 0.0))
    except ValueError:
        with suppress(ValueError, TypeError):
            return max(0.0, parsedate_to_datetime(str(after)).timestamp() - time.time())
    return 0.0
