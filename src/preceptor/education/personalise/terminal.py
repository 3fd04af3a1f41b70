"""A teacher at a terminal."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from preceptor.education.personalise.events import MOVES, Move
from preceptor.education.personalise.review import Decision, Reviewer, View

_CHOICES: tuple[Move, ...] = tuple(move for move in MOVES if move not in ("accept", "reject", "write"))


def terminal_reviewer(ask: Callable[[str], str], show: Callable[[str], None], edit: Callable[[str], str | None]) -> Reviewer:
    """A reviewer who reads and answers lines. The end of the input, or Ctrl-C, stops the review for now.

    Args:
        ask: shows a question and returns a line; raises EOFError or KeyboardInterrupt at the end.
        show: shows a line.
        edit: opens a text in an editor; None where nothing was changed.
    """

    def review(view: View) -> Decision:
        show(_shown(view))
        try:
            while True:
                answer = ask("[a]ccept  [e]dit  [p]rompt again  [r]eject  [q]uit for now: ").strip().lower()[:1]
                if answer == "a":
                    return Decision(action="accept")
                if answer == "r":
                    return Decision(action="reject")
                if answer == "q":
                    return Decision(action="stop")
                if answer == "e":
                    text = edit(view.variant.text)
                    if text and text.strip() and text.strip() != view.variant.text:
                        return Decision(action="edit", moves=(*_moves(ask, show), "write"), text=text.strip())
                    show("nothing was changed")
                elif answer == "p":
                    moves = _moves(ask, show)
                    note = ask("What should change? ").strip() or ", ".join(f"fix the {move}" for move in moves)
                    if note:
                        return Decision(action="ask", moves=moves, text=note)
                    show("nothing was asked")
                else:
                    show("a, e, p, r or q")
        except (EOFError, KeyboardInterrupt):
            return Decision(action="stop")

    return review


def edit_text(text: str, ask: Callable[[str], str]) -> str | None:
    """Change a text in the editor that VISUAL or EDITOR names, or without one by a line typed anew; None where the editor failed."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        return ask("New text, in one line: ")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "variant.txt"
        path.write_text(text + "\n", encoding="utf-8")
        try:
            done = subprocess.run([*shlex.split(editor), str(path)], check=False)
        except OSError:
            return None
        return path.read_text(encoding="utf-8") if done.returncode == 0 else None


def _shown(view: View) -> str:
    """What the teacher reads."""
    variant = view.variant
    interest = " / ".join(part for part in (variant.topic, variant.reference) if part)
    lines = [
        f"\n[{view.number} of {view.total}] {variant.problem}, for {len(variant.students)} students: {interest}",
        f"  problem:  {view.problem.text}",
        f"  variant:  {variant.text}",
        f"  solution: {variant.solution}",
        *(f"  ! {failure.kind}: {failure.message}" for failure in view.failures),
    ]
    return "\n".join(lines)


def _moves(ask: Callable[[str], str], show: Callable[[str], None]) -> tuple[Move, ...]:
    """Labels, by their numbers; none is allowed."""
    show("  ".join(f"{number} {move}" for number, move in enumerate(_CHOICES, start=1)))
    while True:
        words = ask("What is it about? Numbers, or nothing: ").replace(",", " ").split()
        if all(word.isdigit() and 1 <= int(word) <= len(_CHOICES) for word in words):
            return tuple(dict.fromkeys(_CHOICES[int(word) - 1] for word in words))
        show(f"numbers from 1 to {len(_CHOICES)}")
