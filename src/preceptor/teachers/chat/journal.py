"""The journal of a chat: every answer that was ever paid for, by the hash of its question, in one SQLite file."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where one process should use a journal at a time
    fcntl = None

from preceptor.teachers.chat.types import Answer, Fault, Question, Said

_APPLICATION = 0x70726350  # "prcP", by which a journal is told from other SQLite files
_VERSION = 1
_LOOK = 0.1  # seconds after which it is looked again whether another process still asks
_SCHEMA = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, question TEXT NOT NULL, answer TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cost REAL NOT NULL, seconds REAL NOT NULL, at REAL NOT NULL
)
"""


class Journal:
    """Answers by the hash of their question. Every answer is on the disk when `put` returns; threads and processes may share one.

    Beside the file lies an empty one, ``FILE-lock``, by which processes see what another one is asking.

    Args:
        path: a file, made when missing with the folders above it; None: kept in memory.
        only_read: the file exists and is not written to.
    Raises:
        ValueError: no such file, or a file of something else.
    """

    def __init__(self, path: str | Path | None, *, only_read: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self._lock = threading.Lock()
        if self.path is not None and only_read and not self.path.is_file():
            raise ValueError(f"journal: expected an existing file, got {str(path)!r}")
        if self.path is not None and not only_read:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._db = self._connect(only_read)
        self._claims = None
        try:
            self._prepare(only_read)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ValueError(f"journal: expected a journal of answers, got {str(path)!r} ({error})") from None

    def _connect(self, only_read: bool) -> sqlite3.Connection:
        if self.path is None:
            return sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        mode = "rwc"
        if only_read:  # a file beside which nothing is being written may lie where nothing can be
            mode = "ro" if self.path.with_name(self.path.name + "-wal").exists() else "ro&immutable=1"
        try:
            return sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=60, check_same_thread=False, isolation_level=None
            )
        except sqlite3.Error as error:
            raise ValueError(f"journal: expected a file that can be opened, got {str(self.path)!r} ({error})") from None

    def _prepare(self, only_read: bool) -> None:
        if not only_read:
            self._db.execute("BEGIN IMMEDIATE")
            if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {_VERSION}")
                self._db.execute(_SCHEMA)
            self._db.execute("COMMIT")
        marks = tuple(self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if marks != (_APPLICATION, _VERSION):
            raise sqlite3.DatabaseError("an SQLite file of something else, or of another version")
        if not only_read:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # an answer costs more than a write
        if not only_read and self.path is not None:
            self._claims = self.path.with_name(self.path.name + "-lock").open("ab")

    def get(self, key: str) -> Answer | None:
        """The answer to a question, if there is one."""
        with self._lock:
            row = self._db.execute(
                "SELECT answer, prompt_tokens, completion_tokens, cost, seconds FROM answers WHERE key = ?", (key,)
            ).fetchone()
        if row is None:
            return None
        said = json.loads(row[0])
        log_probs = said["log_probs"]
        return Answer(
            text=said["text"],
            finish=said["finish"],
            prompt_tokens=row[1],
            completion_tokens=row[2],
            cost=row[3],
            seconds=row[4],
            cached=True,
            log_probs=None if log_probs is None else tuple(float("-inf") if value is None else value for value in log_probs),
        )

    def put(self, question: Question, model: str, answer: Answer) -> None:
        """Keep an answer; of two to one question the first stays."""
        log_probs = None if answer.log_probs is None else [None if value == float("-inf") else value for value in answer.log_probs]
        said = json.dumps({"text": answer.text, "finish": answer.finish, "log_probs": log_probs})
        row = (question.key(model), model, question.described(model), said, answer.prompt_tokens, answer.completion_tokens)
        with self._lock:
            self._db.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, answer.cost, answer.seconds, time.time())
            )

    @contextmanager
    def claimed(self, keys: Sequence[str], stop: threading.Event) -> Iterator[bool]:
        """Hold questions against other processes, as soon as none of them is asking one; False where ``stop`` came first.

        A question is a byte of the lock file; what a process held that was killed is free again.
        """
        file, held = self._claims, []
        try:
            for place in sorted({int(key[:12], 16) for key in keys}):  # in one order, so that no two wait for each other
                while file is not None and fcntl is not None:
                    try:
                        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                    except (BlockingIOError, PermissionError):
                        if stop.wait(_LOOK):
                            yield False
                            return
                    except OSError:  # a file system without locks: one process should use a journal at a time
                        break
                    else:
                        held.append(place)
                        break
            yield True
        finally:
            for place in held:
                fcntl.lockf(file, fcntl.LOCK_UN, 1, place)  # pyright: ignore[reportOptionalMemberAccess, reportArgumentType]

    def spent(self) -> tuple[int, float]:
        """Tokens and money of all answers."""
        with self._lock:
            row = self._db.execute("SELECT sum(prompt_tokens + completion_tokens), sum(cost) FROM answers").fetchone()
        return row[0] or 0, row[1] or 0.0

    def models(self) -> list[str]:
        """Whose answers are in it, sorted."""
        with self._lock:
            return [row[0] for row in self._db.execute("SELECT DISTINCT model FROM answers ORDER BY model")]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
            if self._claims is not None:
                self._claims.close()


class Replay:
    """A backend that knows only what a journal holds.

    Args:
        journal: whose answers are given again.
        model: name of a model in it, or its beginning before ``@``; None: the only one.
    Raises:
        ValueError: no such model in the journal, or several.
    """

    batch = parallel = 1

    def __init__(self, journal: Journal, model: str | None = None) -> None:
        known = journal.models()
        fitting = [name for name in known if model is None or name == model or name.startswith(f"{model}@")]
        if len(fitting) != 1:
            wanted = "one model" if model is None else f"answers of one model {model!r}"
            raise ValueError(f"journal: expected {wanted} in {str(journal.path)!r}, got those of {', '.join(known) or 'none'}")
        self.model, self._path = fitting[0], journal.path

    def answer(self, questions: Sequence[Question]) -> Sequence[Said | Fault]:
        """Refuse: a question that gets here is not in the journal."""
        last = questions[0].messages[-1]["content"]
        raise Fault(f"replay: expected only questions of {str(self._path)!r}, got another one: {last[:60]!r}", ends="run")
