"""Talking to a language model: an endpoint, a model in this process, or what a journal recorded, all asked in the same way.

Every answer is kept by the hash of its question (model, messages, settings) in one SQLite file, so that nothing is paid for twice and a run
that was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from preceptor.teachers.chat.endpoint import Endpoint
from preceptor.teachers.chat.journal import Journal, Replay
from preceptor.teachers.chat.queue import Progress, Purse, Queue
from preceptor.teachers.chat.shapes import Choice, Model, Structured, chosen, complaint, option_lists, parsed, with_schema
from preceptor.teachers.chat.types import (
    Answer,
    Backend,
    Budget,
    Prices,
    Prompt,
    Question,
    Settings,
    Spent,
    messages_of,
)

GREEDY = Settings()


class Chat:
    """A language model that can be asked many questions.

    Args:
        backend: an `Endpoint`, a `preceptor.teachers.chat.local.Local`, a `Replay`, or anything with ``model``, ``batch``, ``parallel`` and
            ``answer``.
        journal: file of the answers, made when missing; None: kept until the end of the process only.
        prices: per million tokens.
        budget: of everything in the journal, what earlier runs put there included. A question goes out only if it fits, counted
            carefully: one token for two bytes of its messages, and all of ``max_tokens`` written.
        attempts: tries of one question where another one may help: no connection, no whole answer in time, garbage, HTTP 408, 409, 425,
            429 and 5xx. Before there was any answer, where there is no connection or no chat completion, 3.
        wait: seconds before the second try; doubles each time up to a minute, varied by half, or what the server asks for.
    Raises:
        ValueError: a journal that is none, or a budget of money without prices.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        journal: str | Path | Journal | None = None,
        prices: Prices | None = None,
        budget: Budget | None = None,
        attempts: int = 8,
        wait: float = 0.5,
    ) -> None:
        if attempts < 1:
            raise ValueError(f"attempts: expected at least 1, got {attempts}")
        self.model = backend.model
        self._backend = backend
        self._journal = journal if isinstance(journal, Journal) else Journal(journal)
        self._queue = Queue(backend, self._journal, Purse(prices, budget, self._journal), attempts=attempts, wait=wait)

    @property
    def spent(self) -> Spent:
        """What this object used so far."""
        return self._queue.spent

    def ask(self, prompts: Sequence[Prompt], settings: Settings = GREEDY, *, progress: Progress | None = None) -> list[Answer]:
        """Ask questions, equal ones once.

        Args:
            prompts: N texts or chats.
            settings: of all.
            progress: called with the number of prompts done, and N.
        Returns:
            N answers in the order of the prompts. One that failed says why; three that fail after each other end the run.
        Raises:
            ValueError: a prompt that is none.
            ChatStopped: the budget is spent, the endpoint does not answer or refuses the key or the model, or a replay does not know
                a question.
            Interrupted: SIGINT or SIGTERM, after the answers on their way were kept.
        """
        return self._queue.run([Question(messages, settings) for messages in _checked(prompts)], progress)

    def structured(
        self,
        prompts: Sequence[Prompt],
        model: type[Model],
        settings: Settings = GREEDY,
        *,
        asks: int = 3,
        progress: Progress | None = None,
    ) -> list[Structured[Model]]:
        """Ask for JSON of one shape. The JSON schema goes with each prompt; an answer that does not fit is asked for again with the error.

        Args:
            prompts: N texts or chats.
            model: of pydantic; also a ``RootModel``.
            settings: of all.
            asks: how often each is asked at most, at least 1.
            progress: called with the number of prompts that need no more questions, and N.
        Raises:
            ValueError, ChatStopped, Interrupted: see `ask`.
        """
        if asks < 1:
            raise ValueError(f"asks: expected at least 1, got {asks}")
        chats = [with_schema(messages, model) for messages in _checked(prompts)]
        found: list[Structured[Model]] = [Structured(value=None, failed="", answers=()) for _ in chats]
        pending = list(range(len(chats)))
        for _ in range(asks):
            settled = len(chats) - len(pending)
            tell = None if progress is None else (lambda done, _, settled=settled: progress(settled + done, len(chats)))
            answers = self._queue.run([Question(chats[i], settings) for i in pending], tell)
            again = []
            for i, answer in zip(pending, answers, strict=True):
                value, failed = (None, answer.failed) if answer.failed else parsed(answer, model)
                found[i] = Structured(value=value, failed=failed, answers=(*found[i].answers, answer))
                if value is None and not answer.failed:
                    chats[i] = (*chats[i], *complaint(answer, failed))
                    again.append(i)
            pending = again
        return found

    def choose(
        self,
        prompts: Sequence[Prompt],
        options: Sequence[str] | Sequence[Sequence[str]],
        settings: Settings = GREEDY,
        *,
        progress: Progress | None = None,
    ) -> list[Choice]:
        """Choose the most likely of several answers by their log-probabilities; of equal ones the first.

        A local model scores the whole text of each option after the prompt, exactly, and where one option is the beginning of another also
        the end of the answer. An endpoint tells the 20 likeliest first tokens: options should be single letters, digits or short words.

        Args:
            prompts: N texts or chats.
            options: at least 2 different texts for all, or such a list for each prompt.
            settings: of all; only ``extra`` matters.
            progress: called with the number of prompts done, and N.
        Raises:
            ValueError: options that are none.
            ChatStopped: also where an endpoint tells no log-probabilities.
            Interrupted: see `ask`.
        """
        first = Settings(max_tokens=1, extra=settings.extra)
        chats = _checked(prompts)
        lists = option_lists(options, len(chats))
        answers = self._queue.run([Question(messages, first, texts) for messages, texts in zip(chats, lists, strict=True)], progress)
        return [chosen(texts, answer) for texts, answer in zip(lists, answers, strict=True)]

    def close(self) -> None:
        """Close the journal, and the connections of an endpoint."""
        self._journal.close()
        if isinstance(self._backend, Endpoint):
            self._backend.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_chat(
    model: str,
    *,
    url: str | None = None,
    key: str | None = None,
    journal: str | Path | None = None,
    replay: bool = False,
    prices: Prices | None = None,
    budget: Budget | None = None,
    parallel: int = 8,
) -> Chat:
    """A chat from what a command line says.

    Args:
        model: name at an endpoint, or ``smollm2``, ``gguf:FILE`` or ``hf:PATH``.
        url: of the endpoint; None: the model runs here.
        key: name of the environment variable that holds the API key.
        journal: see `Chat`.
        replay: answer from the journal alone; of a local model the name alone will do, where the journal knows one of that name.
        prices, budget: see `Chat`.
        parallel: questions on their way to an endpoint at one time, or answered together here.
    Raises:
        ValueError: one of them cannot be used.
        ImportError: openai, transformers or gguf is missing.
    """
    if replay:
        if journal is None:
            raise ValueError("journal: expected a file to replay, got none")
        known = Journal(journal, only_read=True)
        return Chat(Replay(known, model), journal=known)
    if url is not None:
        backend: Backend = Endpoint(url=url, model=model, key=key, parallel=parallel)
    else:
        from preceptor.teachers.chat.local import Local  # torch and transformers

        backend = Local.load(model, batch=parallel)
    return Chat(backend, journal=journal, prices=prices, budget=budget)


def _checked(prompts: Sequence[Prompt]) -> list[tuple[dict[str, str], ...]]:
    if isinstance(prompts, str):
        raise ValueError(f"prompts: expected a list of prompts, got one text {prompts[:60]!r}")
    return [messages_of(prompt, f"prompt {number}") for number, prompt in enumerate(prompts)]
