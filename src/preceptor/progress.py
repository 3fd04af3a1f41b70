"""Progress that can be seen: live bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from preceptor.core.types import Record, total_loss

SECONDS_BETWEEN_LINES = 10.0


class Bars:
    """Bars of one run or study. `trial` and `study` are the callbacks that `distill` and `compare` take.

    Args:
        console: where to; bars when it is a terminal, else a line every ten seconds and at every end.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        self.progress = Progress(*columns, console=console, disable=not self.live, transient=True)
        self.tasks: dict[str, TaskID] = {}
        self.last_line = 0.0
        self.started = time.monotonic()

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def trial(self, name: str, record: Record, steps: int) -> None:
        """Move the bar of one trial."""
        self.count(name, record.step, steps, "update", f"loss {total_loss(record.losses):.4f}")

    def count(self, name: str, done: int, total: int, unit: str, detail: str = "") -> None:
        """Move the bar of anything that is counted."""
        if self.live:
            if name not in self.tasks:
                self.tasks[name] = self.progress.add_task(name, total=total, detail="")
            self.progress.update(self.tasks[name], completed=done, detail=detail)
            if done == total:
                self.progress.remove_task(self.tasks.pop(name))
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES or done == total:
            self._line(f"{name}: {unit} {done}/{total}{detail and ', '}{detail}")

    def study(self, name: str, record: Record | None, steps: int, done: int, total: int) -> None:
        """Move the bars of a study: its trials, and the present trial's updates."""
        if self.live:
            if "trials" not in self.tasks:
                self.tasks["trials"] = self.progress.add_task("trials", total=total, detail="")
            self.progress.update(self.tasks["trials"], completed=done, detail=name)
            if record is not None:
                self.trial(name, record, steps)
        elif record is None or time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            at = "done" if record is None else f"update {record.step}/{steps}, loss {total_loss(record.losses):.4f}"
            self._line(f"trial {done if record is None else done + 1}/{total}, {name}: {at}")

    def _line(self, text: str) -> None:
        self.last_line = time.monotonic()
        self.say(f"[{self.last_line - self.started:5.0f} s] {text}")
