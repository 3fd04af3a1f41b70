"""The page on which a crossword is played: one HTML file, without anything from elsewhere."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from typing import TYPE_CHECKING

from preceptor.education.crossword.puzzle import EMPTY

if TYPE_CHECKING:
    from preceptor.education.crossword.make import Crossword

WORDS = {
    "en": {
        "across": "Across",
        "down": "Down",
        "check": "Check",
        "letter": "Reveal letter",
        "word": "Reveal word",
        "all": "Reveal all",
        "clear": "Clear",
        "print": "Print",
        "time": "Time",
        "cell": "row {row}, column {column}",
        "place": "{number} {direction}, letter {at} of {length}",
        "wrong": "{count} wrong, {empty} empty",
        "right": "All right so far, {empty} empty",
        "done": "Solved in {time}!",
        "shown": "Solved, with help, in {time}.",
        "grid": "Crossword grid",
        "clues": "Clues",
        "actions": "Actions",
        "sure": "Show the whole solution?",
        "forget": "Clear all letters?",
        "name": "Name",
        "date": "Date",
        "help": "Type letters; arrows move, Space turns, Tab goes to the next word, Backspace deletes.",
    },
    "it": {
        "across": "Orizzontali",
        "down": "Verticali",
        "check": "Controlla",
        "letter": "Svela lettera",
        "word": "Svela parola",
        "all": "Svela tutto",
        "clear": "Cancella",
        "print": "Stampa",
        "time": "Tempo",
        "cell": "riga {row}, colonna {column}",
        "place": "{number} {direction}, lettera {at} di {length}",
        "wrong": "{count} sbagliate, {empty} vuote",
        "right": "Finora tutto giusto, {empty} vuote",
        "done": "Risolto in {time}!",
        "shown": "Risolto, con aiuti, in {time}.",
        "grid": "Griglia del cruciverba",
        "clues": "Definizioni",
        "actions": "Azioni",
        "sure": "Mostrare tutta la soluzione?",
        "forget": "Cancellare tutte le lettere?",
        "name": "Nome",
        "date": "Data",
        "help": "Scrivi le lettere; le frecce spostano, Spazio cambia verso, Tab passa alla parola seguente, Backspace cancella.",
    },
}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(crossword: Crossword) -> str:
    """The page as HTML text: it plays by keyboard and touch, and prints as an empty sheet with the clues."""
    words, puzzle = WORDS[crossword.lang], crossword.puzzle
    data = {
        "rows": puzzle.rows,
        "empty": EMPTY,
        "words": words,
        "entries": [[entry.number, entry.direction, entry.row, entry.column, len(entry.answer)] for entry in puzzle.entries],
    }
    script = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    own = files("preceptor.education.crossword")
    css, code = (own.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    title = html.escape(crossword.title)
    buttons = "".join(
        f'<button type="button" id="{name}">{words[name]}</button>' for name in ("check", "letter", "word", "all", "clear", "print")
    )
    lists = "".join(_clues(crossword, direction) for direction in ("across", "down"))
    return f"""<!DOCTYPE html>
<html lang="{crossword.lang}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="sheet">{words["name"]} ______________________ &nbsp; {words["date"]} ____________</p>
<p class="clock"><span>{words["time"]}</span> <output id="time" aria-live="off">0:00</output></p>
</header>
<main>
<section class="play" aria-label="{words["grid"]}">
<p id="now" aria-live="polite"></p>
<div id="grid" style="--columns:{len(puzzle.rows[0])};--rows:{len(puzzle.rows)}">{_cells(crossword)}</div>
<div class="actions" role="group" aria-label="{words["actions"]}">{buttons}</div>
<p id="said" role="status" aria-live="polite"></p>
<p class="help">{words["help"]}</p>
</section>
<section class="clues" aria-label="{words["clues"]}">{lists}</section>
</main>
<script>const DATA = {script};
{code}</script>
</body>
</html>
"""


def _cells(crossword: Crossword) -> str:
    """One input for each letter, placed by row and column."""
    words, puzzle = WORDS[crossword.lang], crossword.puzzle
    labels: dict[tuple[int, int], list[str]] = {}
    numbers: dict[tuple[int, int], int] = {}
    for entry in puzzle.entries:
        numbers[entry.row, entry.column] = entry.number
        for at, cell in enumerate(entry.cells(), start=1):
            direction = words[entry.direction].lower()
            labels.setdefault(cell, []).append(
                words["place"].format(number=entry.number, direction=direction, at=at, length=len(entry.answer))
            )
    parts = []
    for r, row in enumerate(puzzle.rows):
        for c, letter in enumerate(row):
            if letter == EMPTY:
                continue
            label = "; ".join([words["cell"].format(row=r + 1, column=c + 1), *labels[r, c]])
            number = f"<span aria-hidden=true>{numbers[r, c]}</span>" if (r, c) in numbers else ""
            parts.append(
                f'<div class="cell" style="grid-area:{r + 1}/{c + 1}">{number}<input id="c{r}-{c}" aria-label="{label}" maxlength="2"'
                ' autocomplete="off" autocapitalize="characters" autocorrect="off" spellcheck="false" inputmode="text" tabindex="-1"></div>'
            )
    return "".join(parts)


def _clues(crossword: Crossword, direction: str) -> str:
    items = "".join(
        f'<li><button type="button" data-entry="{number}"><b>{entry.number}</b> {html.escape(crossword.clue_of(entry).text)}'
        f" <small>({len(entry.answer)})</small></button></li>"
        for number, entry in enumerate(crossword.puzzle.entries)
        if entry.direction == direction
    )
    return f"<div><h2>{WORDS[crossword.lang][direction]}</h2><ol>{items}</ol></div>" if items else ""
