"""A crossword as text, SVG, ipuz and JSON, and all of its files in one folder."""

from __future__ import annotations

import html
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from preceptor.core.files import write_whole
from preceptor.education.crossword.make import Crossword
from preceptor.education.crossword.page import WORDS, page
from preceptor.education.crossword.puzzle import EMPTY, Puzzle

CELL = 32  # of the SVG, pixels


def write_files(crossword: Crossword, folder: Path) -> list[Path]:
    """Write ``crossword.html``, ``.ipuz``, ``.txt``, ``.svg`` (empty), ``solution.svg`` and ``crossword.json``; return their paths."""
    contents = {
        "crossword.html": page(crossword),
        "crossword.ipuz": json.dumps(ipuz(crossword), ensure_ascii=False, indent=1) + "\n",
        "crossword.txt": text(crossword),
        "crossword.svg": svg(crossword.puzzle),
        "solution.svg": svg(crossword.puzzle, solved=True),
        "crossword.json": json.dumps(as_json(crossword), ensure_ascii=False, indent=1) + "\n",
    }
    return [write_whole(folder / name, content) for name, content in contents.items()]


def numbers_of(puzzle: Puzzle) -> dict[tuple[int, int], int]:
    """The number of each cell in which a word starts."""
    return {(entry.row, entry.column): entry.number for entry in puzzle.entries}


def ipuz(crossword: Crossword) -> dict[str, Any]:
    """The puzzle by ipuz version 2 (http://ipuz.org), for other programs to open; cells without a letter are blocks."""
    rows, numbers = crossword.puzzle.rows, numbers_of(crossword.puzzle)
    clues: dict[str, list[list[Any]]] = {"Across": [], "Down": []}
    for entry in crossword.puzzle.entries:
        clues[entry.direction.title()].append([entry.number, crossword.clue_of(entry).text])
    return {
        "version": "http://ipuz.org/v2",
        "kind": ["http://ipuz.org/crossword#1"],
        "title": crossword.title,
        "origin": "preceptor",
        "block": "#",
        "empty": "0",
        "dimensions": {"width": len(rows[0]), "height": len(rows)},
        "puzzle": [[numbers.get((r, c), 0) if letter != EMPTY else "#" for c, letter in enumerate(row)] for r, row in enumerate(rows)],
        "solution": [["#" if letter == EMPTY else letter for letter in row] for row in rows],
        "clues": clues,
    }


def text(crossword: Crossword) -> str:
    """The solved grid and the clues as plain text."""
    words = WORDS[crossword.lang]
    lines = [crossword.title, "", *(" ".join(row) for row in crossword.puzzle.rows)]
    for direction in ("across", "down"):
        lines += ["", words[direction]]
        lines += [
            f"{entry.number:>3}  {crossword.clue_of(entry).text} ({len(entry.answer)})"
            for entry in crossword.puzzle.entries
            if entry.direction == direction
        ]
    return "\n".join(lines) + "\n"


def svg(puzzle: Puzzle, *, solved: bool = False) -> str:
    """The grid as a picture, empty or with its letters."""
    numbers = numbers_of(puzzle)
    height, width = len(puzzle.rows) * CELL, len(puzzle.rows[0]) * CELL if puzzle.rows else 0
    parts = []
    for r, row in enumerate(puzzle.rows):
        for c, letter in enumerate(row):
            if letter == EMPTY:
                continue
            x, y = c * CELL, r * CELL
            parts.append(f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="#fff" stroke="#222"/>')
            if (r, c) in numbers:
                parts.append(f'<text x="{x + 3}" y="{y + 10}" font-size="9">{numbers[r, c]}</text>')
            if solved:
                parts.append(f'<text x="{x + CELL / 2:g}" y="{y + 24}" font-size="17" text-anchor="middle">{html.escape(letter)}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 {width + 2} {height + 2}" width="{width + 2}" height="{height + 2}"'
        f' font-family="sans-serif" role="img" aria-label="{len(puzzle.entries)} words">\n{body}\n</svg>\n'
    )


def as_json(crossword: Crossword) -> dict[str, Any]:
    """Everything, with where each clue came from."""
    puzzle = crossword.puzzle
    return {
        "title": crossword.title,
        "lang": crossword.lang,
        "rows": list(puzzle.rows),
        "entries": [
            {
                **asdict(entry),
                **{k: v for k, v in asdict(crossword.clue_of(entry)).items() if k != "answer"},
                "written": crossword.clue_of(entry).answer,
            }
            for entry in puzzle.entries
        ],
        "stats": asdict(puzzle.stats),
        "search": {"tries": puzzle.tries, "rounds": puzzle.rounds},
        "unused": [{"answer": clue.answer, "clue": clue.text, "why": why} for clue, why in crossword.unused],
    }
