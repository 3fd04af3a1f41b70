"""Clues that everybody has: the docstrings of Python's standard library."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from preceptor.education.crossword.answers import Clue

LETTERS = (3, 14)
WORDS = (4, 30)
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
_SENTENCE = re.compile(r"(?<=[.!?])\s")


def library_clues(modules: Sequence[str] | None = None) -> tuple[Clue, ...]:
    """The name of every public function and method with the first sentence of its docstring; the files are read, not run.

    Names have 3 to 14 letters without underscores, sentences 4 to 30 words; equal pairs count once. What there is depends on the version of
    Python.

    Args:
        modules: files by their path in the standard library, such as ``email/message.py``; None: all of them.
    """
    return _library_clues(None if modules is None else tuple(modules))


@cache
def _library_clues(modules: tuple[str, ...] | None) -> tuple[Clue, ...]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(root.rglob("*.py")) if modules is None else [root / name for name in modules]
    found: dict[tuple[str, str], Clue] = {}
    for path in paths:
        if _SKIPPED & set(path.relative_to(root).parts):
            continue
        for name, sentence in _described(path):
            found.setdefault((name, sentence), Clue(answer=name, text=sentence, source=str(path.relative_to(root))))
    return tuple(found.values())


def _described(path: Path) -> list[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # the library holds files that are broken on purpose
        return []
    pairs = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        name = node.name.replace("_", "")
        text = " ".join((ast.get_docstring(node) or "").split("\n\n", maxsplit=1)[0].split())
        sentence = _SENTENCE.split(text, maxsplit=1)[0]
        if name.isalpha() and name.isascii() and LETTERS[0] <= len(name) <= LETTERS[1] and WORDS[0] <= len(sentence.split()) <= WORDS[1]:
            pairs.append((name, sentence))
    return pairs
