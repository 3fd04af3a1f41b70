"""Jobs side by side in forked processes that share what the caller has in memory; what they make, they leave on disk."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch

from preceptor.core.signals import Interrupted, deferred_signals
from preceptor.core.types import Record

Tell = Callable[[Record, int], None]
"""What a job calls after every update, with the record and its total number of updates."""

SECONDS_BETWEEN_MESSAGES = 0.2
HANDED_ON = {signal.SIGTERM, signal.SIGINT}


def side_by_side(
    job: Callable[[int, Tell], Any], jobs: int, *, workers: int, out: Path | None, progress: Callable[[int, Record | None, int], None]
) -> None:
    """Call ``job(0, tell)`` ... ``job(jobs - 1, tell)``, ``workers`` at a time, each in a forked process with one thread of torch.

    Args:
        job: what to do; its result is not handed back.
        jobs: how many.
        workers: processes, at least 1.
        out: where what the jobs make is kept, for the message of Interrupted; None where it is not.
        progress: called in this process as ``(job number, record, updates of the job)``; the record is None when a job ends.
    Raises:
        ValueError: processes cannot be forked here (another system, or a GPU is in use).
        Interrupted: SIGTERM or SIGINT; it was handed on to the workers, which have saved their trials and ended.
        Exception: the first error of any job; the other workers were told to save and stop.
    """
    check_workers(workers)
    context = multiprocessing.get_context("fork")
    following = context.Value("i", 0)
    alive: dict[Connection, Any] = {}
    failure: BaseException | None = None
    with deferred_signals() as caught:
        for _ in range(min(workers, jobs)):
            ours, theirs = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(job, jobs, following, theirs, [*alive, ours]), daemon=True)
            signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)  # until the worker has handlers of its own
            worker.start()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
            theirs.close()
            alive[ours] = worker
        told = False
        while alive:
            for line in wait(list(alive), timeout=SECONDS_BETWEEN_MESSAGES):
                assert isinstance(line, Connection)
                try:
                    message = line.recv()
                except EOFError:
                    code = _ended(alive.pop(line))
                    if code and not caught and failure is None:
                        failure = RuntimeError(f"workers: a worker process ended with exit code {code} without a word")
                    continue
                if isinstance(message, _Failure):
                    failure = failure or message.error()
                else:
                    progress(*message)
            if (caught or failure) and not told:
                told = True
                for worker in alive.values():
                    os.kill(worker.pid, caught[0] if caught else signal.SIGTERM)
    if failure is not None:
        raise failure
    if caught:
        raise Interrupted(caught[0], None, out)


def check_workers(workers: int) -> None:
    """Refuse what `side_by_side` cannot do.

    Raises:
        ValueError: fewer than one worker, or several where processes cannot be forked.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    if workers > 1 and "fork" not in multiprocessing.get_all_start_methods():
        raise ValueError(f"workers: expected 1 on a system that cannot fork processes, got {workers}")
    if workers > 1 and torch.cuda.is_available():
        raise ValueError(f"workers: expected 1 where a GPU trains, got {workers}")


class _Failure:
    """An error on its way to another process, with its traceback as a note."""

    def __init__(self, error: Exception) -> None:
        self.kind, self.args = type(error), error.args
        self.facts = {name: value for name, value in vars(error).items() if isinstance(value, int | float | str)}
        self.where = traceback.format_exc()

    def error(self) -> BaseException:
        error = self.kind.__new__(self.kind, *self.args)  # its own __init__ may take other arguments
        vars(error).update(self.facts)
        error.add_note(self.where)
        return error


def _work(job: Callable[[int, Tell], Any], jobs: int, following: Synchronized[int], line: Connection, inherited: list[Connection]) -> None:
    """Take one job after the other until none is left."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's handlers
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    os.setsid()  # Ctrl-C at the terminal is for the parent, which hands it on
    for other in inherited:  # else nobody would notice that the parent is gone
        other.close()
    torch.set_num_threads(1)
    last = 0.0

    def tell(record: Record, updates: int) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_MESSAGES:
            last = time.monotonic()
            line.send((number, record, updates))

    while True:
        with following.get_lock():
            number = following.value
            following.value += 1
        if number >= jobs:
            return
        try:
            job(number, tell)
        except BrokenPipeError:
            return
        except Exception as error:
            try:
                line.send(_Failure(error))
            except (pickle.PicklingError, AttributeError, TypeError):
                line.send(_Failure(RuntimeError(f"{type(error).__name__}: {error}")))
            return
        line.send((number, None, 0))


def _ended(worker: Any) -> int:
    worker.join()
    return worker.exitcode
