"""A teacher behind a server: log-probabilities of the tokens of given texts, over HTTP, to fill a cache with.

The server speaks OpenAI's completions with vLLM's extension ``prompt_logprobs: k``: the prompt goes there as token numbers, and for each of
them but the first comes back ``{number: {"logprob", "rank", "decoded_token"}}`` of the k likeliest tokens at that place, and of the token
that stands there where it is none of these. The older ``echo`` with ``logprobs`` is not spoken: it names tokens by their text, which is not
theirs alone (all parts of a character that was cut read as U+FFFD), so that probabilities would end up with other tokens.

What may pass is asked again, a fixed number of times with growing waits: dropped connections, time-outs, HTTP 408, 425, 429 and 5xx, and
answers that are no JSON, of another shape, or not probabilities. All else ends at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from preceptor.core.types import Batch
from preceptor.teachers.targets import FLOOR, Top

LONGEST_WAIT = 60.0  # seconds, whatever the server asks for
_MOST_BYTES = 1 << 30  # of an answer
_PASSING = (408, 425, 429)
_ROUNDING = 1e-3  # that probabilities may sum to more than 1, or one be more than 1
_PROBED = 16  # tokens of the first question


def _silent(line: str) -> None:
    pass


class _Fault(Exception):
    """Something that a second try may mend, unless it is ``final``; ``after`` are seconds that the server wants to be left alone."""

    def __init__(self, what: str, *, after: float = 0.0, final: bool = False) -> None:
        super().__init__(what)
        self.after, self.final = after, final


@dataclass(frozen=True, kw_only=True)
class Server:
    """A model on a server, asked for the top of k. Called with a batch of texts it is an `preceptor.teachers.build.Answer`.

    Args:
        url: such as ``http://HOST:8000/v1``; nothing of it is secret.
        model: its name on the server.
        k: tokens asked for at each position.
        tokenizer: of transformers, by which the texts were made; its V tokens have the numbers [0, V).
        timeout: seconds for a whole answer.
        attempts: how often a question is asked.
        wait: seconds before the second time; doubles each time, and varies by half so that not all come back together.
        parallel: questions on their way at one time.
        say: told of questions that are asked a third time and more.
    Raises:
        ValueError: no address of a server, or k outside [1, V].
    """

    url: str
    model: str
    k: int
    tokenizer: Any
    timeout: float = 120.0
    attempts: int = 8
    wait: float = 0.5
    parallel: int = 8
    say: Callable[[str], None] = _silent
    _texts: dict[int, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(f"teacher.server: expected an address such as http://HOST:8000/v1, got {self.url!r}")
        if not 1 <= self.k <= len(self.tokenizer):
            raise ValueError(f"k: expected a number in [1, {len(self.tokenizer)}], the tokens of the vocabulary, got {self.k}")

    def probe(self, tokens: Sequence[int], *, length: int) -> str:
        """See with two small questions, each asked three times at most, whether the server can teach.

        Args:
            tokens: the beginning of a text, at least 2.
            length: T, tokens in a row.
        Returns:
            A fingerprint of what the server says its model is.
        Raises:
            ValueError: no answer, no such model, a context below T + 2, no log-probabilities of prompts, fewer than k at a place, or other
                tokens behind the numbers.
        """
        hasty = replace(self, attempts=min(self.attempts, 3))
        found = hasty._ask("models", None, lambda said: {entry["id"]: entry for entry in said["data"]}, "its list of models")
        if self.model not in found:
            raise ValueError(f"{self}: expected the model {self.model!r}, got {', '.join(map(str, found)) or 'none'}")
        entry = found[self.model]
        longest = entry.get("max_model_len")
        if isinstance(longest, int) and longest < length + 2:
            raise ValueError(f"{self}: expected a context of {length + 2} tokens (text.length + 2), got max_model_len {longest}")
        hasty._score([int(token) for token in tokens[:_PROBED]])
        facts = {key: entry.get(key) for key in ("id", "root", "parent")}
        return "server " + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def __call__(self, batch: Batch) -> Top:
        """The top of k at every position that counts, in their order.

        Each document of a packed row is asked about alone, from where its ``position_ids`` start again to the last position that counts.

        Args:
            batch: ``x`` with ``input_ids`` (N, T) and perhaps ``position_ids`` (N, T); ``y`` and ``mask`` (N, T).
        Raises:
            ValueError: the server refuses, or still fails after all attempts.
        """
        ids, y, mask = batch["x"]["input_ids"].cpu(), batch["y"].cpu(), batch["mask"].cpu() != 0
        begins = torch.zeros_like(mask)
        if "position_ids" in batch["x"]:
            begins = batch["x"]["position_ids"].cpu() == 0
        begins[:, 0] = True
        prompts, counts = [], []
        for row in range(len(ids)):
            starts = begins[row].nonzero()[:, 0].tolist()
            for start, end in zip(starts, [*starts[1:], ids.shape[1]], strict=True):
                here = mask[row, start:end].nonzero()[:, 0]
                if len(here):
                    last = start + int(here[-1])
                    prompts.append([*ids[row, start : last + 1].tolist(), int(y[row, last])])
                    counts.append(here)
        pool, stop = ThreadPoolExecutor(self.parallel), threading.Event()
        try:
            said = list(pool.map(partial(self._score, stop=stop), prompts))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        if not said:
            return Top(torch.empty(0, self.k, dtype=torch.int64), torch.empty(0, self.k), torch.empty(0))
        return Top(*(torch.cat([of[here] for of, here in zip(part, counts, strict=True)]) for part in zip(*said, strict=True)))

    def __str__(self) -> str:
        return f"teacher.server {self.url}"

    def _score(self, prompt: list[int], stop: threading.Event | None = None) -> Top:
        """What comes after each token of a prompt but the last."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": self.k}
        what = f"log-probabilities of a prompt with {self.k} tokens at each place (vLLM: --max-logprobs {self.k})"
        return self._ask("completions", body, partial(self._read, prompt), what, stop)

    def _read(self, prompt: list[int], said: Any) -> Top:
        (choice,) = said["choices"]
        places = choice.get("prompt_logprobs")
        if places is None:
            raise _Fault("a completion without prompt_logprobs", final=True)
        if len(places) != len(prompt):
            raise _Fault(f"{len(places)} places for {len(prompt)} tokens")
        numbers, log_probs, beyond = [], [], []
        for token, place in zip(prompt[1:], places[1:], strict=True):
            ranked = sorted((-entry["logprob"], entry.get("rank") or 0, int(number)) for number, entry in place.items())
            if str(token) not in place or len(ranked) not in (self.k, self.k + 1):
                raise _Fault(f"{len(ranked)} tokens, {'with' if str(token) in place else 'without'} the one of the prompt")
            for number, entry in place.items():
                self._check(int(number), entry["logprob"], entry.get("decoded_token"))
            numbers.append([number for _, _, number in ranked[: self.k]])
            log_probs.append([-negative for negative, _, _ in ranked[: self.k]])
            beyond.append(-ranked[self.k][0] if len(ranked) > self.k else FLOOR)
        indices, top = torch.tensor(numbers), torch.tensor(log_probs, dtype=torch.float64)
        if top.exp().sum(-1).max() > 1 + _ROUNDING or not indices.sort(-1).values.diff(dim=-1).all():
            raise _Fault("probabilities with a sum above 1, or a token twice")
        return _top(indices, top, torch.tensor(beyond, dtype=torch.float64))

    def _check(self, number: int, log_prob: float, there: str | None) -> None:
        """Refuse a token with another text than here; blanks at its ends, and parts of characters, may be written in several ways."""
        if not math.isfinite(log_prob) or log_prob > _ROUNDING:
            raise _Fault(f"{log_prob} as a log-probability")
        if not 0 <= number < len(self.tokenizer):
            raise _Fault(f"a token {number} of a vocabulary of {len(self.tokenizer)}")
        if number not in self._texts:
            self._texts[number] = self.tokenizer.decode([number])
        here = self._texts[number]
        if there and there.strip() and "\ufffd" not in here + there and here.strip() != there.strip():
            raise _Fault(f"{there!r} for token {number}, which the tokenizer here reads as {here!r}")

    def _ask(self, path: str, body: Any, understand: Callable[[Any], Any], what: str, stop: threading.Event | None = None) -> Any:
        """Ask until the answer is understood, all attempts are used, or the wait between two is stopped."""
        began, attempt, stop = time.monotonic(), 1, stop or threading.Event()
        while True:
            try:
                return self._once(path, body, understand)
            except _Fault as error:
                fault = error
            if fault.final:
                raise ValueError(f"{self}: expected {what}, got {fault}")
            pause = min(LONGEST_WAIT, max(fault.after, self.wait * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)))
            if 1 < attempt < self.attempts:
                self.say(f"{self}: {fault}; attempt {attempt + 1} of {self.attempts} in {pause:.1f} s")
            if attempt == self.attempts or stop.wait(pause):
                break
            attempt += 1
        raise ValueError(
            f"{self}: expected {what}, got {fault} at the last of {attempt} attempts in {time.monotonic() - began:.0f} s;"
            " what was answered before is kept, the same command goes on"
        )

    def _once(self, path: str, body: Any, understand: Callable[[Any], Any]) -> Any:
        status, headers, content = self._exchange(path, body)
        if status != 200:
            passing = status in _PASSING or status >= 500
            text = " ".join(content[:300].decode("utf-8", "replace").split())
            raise _Fault(f"HTTP {status}{text and ': '}{text}", after=_seconds(headers.get("Retry-After")), final=not passing)
        try:
            return understand(json.loads(content))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise _Fault(f"{content[:60].decode('utf-8', 'replace')!r}, an answer of another form or cut short") from None

    def _exchange(self, path: str, body: Any) -> tuple[int, Any, bytes]:
        """One question and its whole answer, however slowly it drips, within the time-out."""
        parts = urlsplit(self.url)
        connection = (HTTPSConnection if parts.scheme == "https" else HTTPConnection)(str(parts.hostname), parts.port, timeout=self.timeout)
        late = threading.Event()
        try:
            connection.connect()
            clock = threading.Timer(self.timeout, _cut, (connection.sock, late))
            clock.start()
            try:
                data = None if body is None else json.dumps(body)
                connection.request(
                    "POST" if data else "GET", f"{parts.path.rstrip('/')}/{path}", data, {"Content-Type": "application/json"}
                )
                response = connection.getresponse()
                content = response.read(_MOST_BYTES)
            finally:
                clock.cancel()
        except (OSError, HTTPException) as error:
            slow = late.is_set() or isinstance(error, TimeoutError)
            raise _Fault(f"no whole answer in {self.timeout:g} s" if slow else f"{type(error).__name__}: {error}") from None
        finally:
            connection.close()
        if late.is_set():
            raise _Fault(f"no whole answer in {self.timeout:g} s")
        return response.status, response.headers, content


def _top(indices: Tensor, log_probs: Tensor, beyond: Tensor) -> Top:
    """In the order of the tokens' numbers; the tail is what is left of 1, and no less than the token of the prompt in it."""
    tail = torch.maximum((-log_probs.exp().sum(-1)).clamp_min(-1.0).log1p(), beyond)
    indices, order = indices.sort(dim=-1)
    return Top(indices, log_probs.gather(-1, order).clamp(FLOOR, 0.0), tail.clamp_min(FLOOR))


def _cut(connection: socket.socket, late: threading.Event) -> None:
    """End a connection from outside: whoever reads from it reads its end."""
    late.set()
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _seconds(after: str | None) -> float:
    """Of a header Retry-After: seconds, or a date."""
    try:
        return max(0.0, float(after or 0.0))
    except ValueError:
        with suppress(ValueError, TypeError):
            return max(0.0, parsedate_to_datetime(str(after)).timestamp() - time.time())
    return 0.0
