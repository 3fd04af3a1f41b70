"""Questions on their way: each at most once, some at a time, again where that may help, and within a budget."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillOpen
from queue import Empty, SimpleQueue

from preceptor.core.signals import Interrupted, deferred_signals
from preceptor.teachers.chat.journal import Journal
from preceptor.teachers.chat.purse import Purse
from preceptor.teachers.chat.types import Answer, Backend, ChatStopped, Fault, Question, Said, Spent

LONGEST_WAIT = 60.0  # seconds between two tries of one question
LONGEST_PAUSE = 300.0  # seconds that a server may ask for; one that asks for more ends the run
FAILURES = 3  # questions that fail one after the other end the run
_LOOK = 0.1  # seconds after which a waiting thread looks whether the run has ended
Progress = Callable[[int, int], None]


class _Run:
    """The questions of one call, and why it ended early."""

    def __init__(self, chunks: list[list[tuple[str, Question]]]) -> None:
        self._chunks, self._lock, self.size = chunks[::-1], threading.Lock(), len(chunks)
        self.results: SimpleQueue[tuple[str, Answer] | None] = SimpleQueue()
        self.stop, self.reason, self.failures = threading.Event(), "", 0
        self.error: BaseException | None = None

    def next(self) -> list[tuple[str, Question]] | None:
        with self._lock:
            return None if self.stop.is_set() or not self._chunks else self._chunks.pop()

    def left(self) -> list[str]:
        """The questions that nobody took."""
        with self._lock:
            left, self._chunks = self._chunks, []
        return [key for chunk in left for key, _ in chunk]

    def halt(self, reason: str) -> None:
        with self._lock:
            self.reason = self.reason or reason
            self.stop.set()

    def count(self, failed: str) -> None:
        """Note a success or a failure; too many failures in a row end the run."""
        with self._lock:
            self.failures = self.failures + 1 if failed else 0
            many = self.failures >= FAILURES
        if many:
            self.halt(f"{FAILURES} questions after each other failed, the last one: {failed}")


class Queue:
    """Asks a backend.

    Args:
        attempts: tries of one question.
        wait: seconds before the second try; doubles each time, and varies by half so that not all come back together.
    """

    def __init__(self, backend: Backend, journal: Journal, purse: Purse, *, attempts: int, wait: float) -> None:
        self.backend, self.journal, self.purse, self.attempts, self.wait = backend, journal, purse, attempts, wait
        self.spent = Spent()
        self._lock = threading.Lock()
        self._flying: dict[str, Future[Answer | None]] = {}
        self._slots = threading.Semaphore(backend.parallel)
        self._answered = False
        self._quiet_until = 0.0

    def run(self, questions: Sequence[Question], progress: Progress | None) -> list[Answer]:
        """All answers, in the order of the questions.

        Raises:
            ChatStopped: not all can be had.
            Interrupted: SIGINT or SIGTERM; what was on its way has been waited for and kept.
        """
        keys = [question.key(self.backend.model) for question in questions]
        times = Counter(keys)
        found: dict[str, Answer] = {}
        done = 0

        def tell(landed: Iterable[str]) -> None:
            nonlocal done
            done += sum(times[key] for key in landed)
            if progress is not None and done:
                progress(done, len(keys))

        pending = dict(zip(keys, questions, strict=True))
        with deferred_signals() as caught:
            while pending:
                mine, others = self._claim(pending, found)
                tell(pending.keys() - mine.keys() - others.keys())
                if mine:
                    run = _Run(_chunks(list(mine.items()), self.backend.batch))
                    self._work(run, found, caught, tell)
                    if run.error is not None:
                        raise run.error
                    if caught:
                        raise Interrupted(caught[0], len(found), self.journal.path)
                    if run.reason:
                        raise self._stopped(run.reason, [found.get(key) for key in keys])
                for key, future in others.items():
                    answer = _outcome(future, caught)
                    if caught:
                        raise Interrupted(caught[0], len(found), self.journal.path)
                    if answer is not None:
                        found[key] = answer
                        tell([key])
                pending = {key: question for key, question in pending.items() if key not in found}
        return [found[key] for key in keys]

    def _claim(
        self, pending: dict[str, Question], found: dict[str, Answer]
    ) -> tuple[dict[str, Question], dict[str, Future[Answer | None]]]:
        """What is to be asked here, and what another thread is asking already; what the journal knows is found."""
        mine, others = {}, {}
        for key, question in pending.items():
            with self._lock:
                if key in self._flying:
                    others[key] = self._flying[key]
                    continue
                known = self.journal.get(key)
                if known is None:
                    self._flying[key] = Future()
                    mine[key] = question
                else:
                    found[key] = known
                    self.spent.cached += 1
        return mine, others

    def _land(self, key: str, answer: Answer | None) -> None:
        with self._lock:
            future = self._flying.pop(key)
        future.set_result(answer)

    def _work(self, run: _Run, found: dict[str, Answer], caught: list[int], tell: Callable[[Iterable[str]], None]) -> None:
        """Have threads answer everything; the first goes ahead until there is one answer, so that a wrong address is asked once."""
        started, alive, most = 0, 0, min(self.backend.parallel, run.size)
        try:
            while True:
                for _ in range((most if self._answered else 1) - started):
                    threading.Thread(target=self._worker, args=(run,), daemon=True).start()
                    started, alive = started + 1, alive + 1
                try:
                    landed = run.results.get(timeout=_LOOK)
                except Empty:
                    landed = ()
                if caught:
                    run.stop.set()
                if landed is None:
                    alive -= 1
                    if not alive:
                        return
                elif landed:
                    found[landed[0]] = landed[1]
                    tell([landed[0]])
        finally:
            run.stop.set()
            for key in run.left():
                self._land(key, None)

    def _worker(self, run: _Run) -> None:
        try:
            while (chunk := run.next()) is not None:
                answers: list[Answer | None] = [None] * len(chunk)
                try:
                    with self._slots:
                        answers = self._chunk(chunk, run)
                finally:
                    for (key, _), answer in zip(chunk, answers, strict=True):
                        self._land(key, answer)
                for (key, _), answer in zip(chunk, answers, strict=True):
                    if answer is not None:
                        run.results.put((key, answer))
        except BaseException as error:  # of a backend of somebody else; raised again where the questions came from
            run.error = error
            run.stop.set()
        finally:
            run.results.put(None)

    def _chunk(self, chunk: list[tuple[str, Question]], run: _Run) -> list[Answer | None]:
        """Ask what no other process has asked meanwhile."""
        keys = [key for key, _ in chunk]
        with self.journal.claimed(keys, run.stop) as mine:
            if not mine:
                return [None] * len(chunk)
            known = [self.journal.get(key) for key in keys]
            unknown = [question for (_, question), answer in zip(chunk, known, strict=True) if answer is None]
            asked = iter(self._within_budget(unknown, run) if unknown else [])
            with self._lock:
                self.spent.cached += len(chunk) - len(unknown)
            return [next(asked) if answer is None else answer for answer in known]

    def _within_budget(self, questions: list[Question], run: _Run) -> list[Answer | None]:
        answers: list[Answer | None] = [None] * len(questions)
        try:
            held = self.purse.take(questions, run.stop)
        except Fault as fault:
            run.halt(str(fault))
            return answers
        try:
            said, seconds = self._try(questions, run)
            answers = [None if one is None else self._kept(question, one, seconds) for question, one in zip(questions, said, strict=True)]
        finally:
            self.purse.settle(held, [answer for answer in answers if answer is not None])
        for answer in answers:
            if answer is not None:
                run.count(answer.failed)
        return answers

    def _try(self, questions: list[Question], run: _Run) -> tuple[Sequence[Said | Fault | None], float]:
        """Ask until there is an answer, all attempts are used, or the run has ended; and the seconds that each answer took."""
        attempt = 0
        while not self._ended_while_quiet(run.stop):
            attempt += 1
            with self._lock:
                self.spent.requests += 1
            began = time.monotonic()
            try:
                return self.backend.answer(questions), (time.monotonic() - began) / len(questions)
            except Fault as caught:
                fault = caught
            if fault.ends == "run":
                run.halt(str(fault))
                break
            if fault.ends == "question":
                return [fault] * len(questions), 0.0
            if fault.after > LONGEST_PAUSE:
                run.halt(f"{fault}, and wants to be left alone for {fault.after:.0f} s")
                break
            hasty = fault.ends == "down" and not self._answered
            if attempt >= (min(3, self.attempts) if hasty else self.attempts):
                told = Fault(f"{fault}, at the last of {attempt} attempts")
                if fault.ends == "again":
                    return [told] * len(questions), 0.0
                run.halt(str(told))
                break
            if fault.after:
                with self._lock:
                    self._quiet_until = max(self._quiet_until, time.monotonic() + fault.after)
            run.stop.wait(min(LONGEST_WAIT, self.wait * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
        return [None] * len(questions), 0.0

    def _ended_while_quiet(self, stop: threading.Event) -> bool:
        """Wait as long as the server wants to be left alone; whether the run ended meanwhile."""
        while (left := self._quiet_until - time.monotonic()) > 0 and not stop.wait(left):
            pass
        return stop.is_set()

    def _kept(self, question: Question, said: Said | Fault, seconds: float) -> Answer:
        """The answer, in the journal from now on; a failure is not kept there."""
        if isinstance(said, Fault):
            with self._lock:
                self.spent.failed += 1
            return Answer(failed=str(said))
        read = question.bytes() // 2 if said.prompt_tokens is None else said.prompt_tokens
        written = len(said.text.encode()) // 2 if said.completion_tokens is None else said.completion_tokens
        answer = Answer(
            text=said.text,
            finish=said.finish,
            prompt_tokens=read,
            completion_tokens=written,
            cost=self.purse.prices.cost(read, written),
            seconds=seconds,
            log_probs=said.log_probs,
        )
        self.journal.put(question, self.backend.model, answer)
        with self._lock:
            self._answered = True
            self.spent.answers += 1
            self.spent.tokens += read + written
            self.spent.money += answer.cost
        return answer

    def _stopped(self, reason: str, answers: list[Answer | None]) -> ChatStopped:
        done = sum(answer is not None and not answer.failed for answer in answers)
        where = (
            "not kept: there is no journal"
            if self.journal.path is None
            else f"kept in {self.journal.path}: the same call goes on from there"
        )
        return ChatStopped(f"{reason}; {done} of {len(answers)} questions are answered, {where}", answers)


def _chunks(items: list[tuple[str, Question]], size: int) -> list[list[tuple[str, Question]]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _outcome(future: Future[Answer | None], caught: list[int]) -> Answer | None:
    """What another thread gets, unless a signal comes first."""
    while not caught:
        try:
            return future.result(timeout=_LOOK)
        except StillOpen:
            continue
    return None
