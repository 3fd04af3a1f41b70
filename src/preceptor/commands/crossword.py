"""``preceptor crossword``: from a text or a list of words to a page on which the crossword is played."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from preceptor.commands.shared import AsJson, checked, fail


def crossword(
    source: Annotated[
        Path, typer.Argument(help="A text, or a .csv or .jsonl with a column answer and perhaps clue.", metavar="TEXT|WORDS.csv")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the page, ipuz, text and pictures.")],
    size: Annotated[int, typer.Option(min=3, help="Cells of a side.")] = 13,
    lang: Annotated[Literal["it", "en"], typer.Option(help="Of clues and page.")] = "en",
    seconds: Annotated[float, typer.Option(min=0.0, help="Time to look for a good grid.")] = 5.0,
    restarts: Annotated[int | None, typer.Option(min=1, help="Instead of a time: so many tries, the same on every machine.")] = None,
    title: Annotated[str | None, typer.Option(help="Above the grid; by default the name of the file.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Who writes clues: a name at --url, smollm2, gguf:FILE or hf:PATH. None: cloze clues.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Of an OpenAI-compatible server.")] = None,
    key: Annotated[str | None, typer.Option(help="Environment variable that holds its key.")] = None,
    journal: Annotated[Path | None, typer.Option(help="File of the model's answers; by default in --out.")] = None,
    checks: Annotated[bool, typer.Option("--checks/--no-checks", help="Let the model judge every clue, and solve it.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a clue that the model cannot solve in five guesses.")] = False,
    seed: Annotated[int, typer.Option(help="Of the grid.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a crossword: a page to play or print, and files for other programs."""
    with checked(f"preceptor crossword {source} --out {out}"):
        from preceptor.education.crossword.clues import check_lang
        from preceptor.education.crossword.export import as_json as described
        from preceptor.education.crossword.export import write_files
        from preceptor.education.crossword.make import clues_for, clues_from, judged, make_crossword, read_clues
        from preceptor.teachers.chat import ChatStopped, open_chat

        check_lang(lang)
        listed = source.suffix in (".csv", ".tsv", ".jsonl")
        given = read_clues(source) if listed else []
        text = "" if listed else _read(source)
        if strict and model is None:
            raise ValueError("strict: expected a model that solves the clues, got none")
        chat = None
        if model is not None:
            chat = open_chat(model, url=url, key=key, journal=journal or out / "answers.sqlite")
        refused = []
        try:
            clues, failed = clues_for(given, chat, lang=lang) if listed else clues_from(text, chat, lang=lang, side=size)
            if failed and not clues:
                fail(f"model: expected clues, got none: {failed[0]}", 1)
            if chat is not None and checks and clues:
                verdicts = judged(clues, chat, lang=lang, strict=strict)
                refused = [(clue, why) for clue, why in verdicts if why]
                clues = [clue for clue, why in verdicts if not why]
        except ChatStopped as stop:
            fail(f"{stop}; the same command goes on", 1)
        finally:
            if chat is not None:
                chat.close()
        made = make_crossword(
            clues,
            title=title or source.stem.replace("_", " "),
            lang=lang,
            size=size,
            seconds=None if restarts else seconds,
            restarts=restarts,
            seed=seed,
        )
        paths = write_files(made, out)
        if as_json:
            print(json.dumps(described(made), ensure_ascii=False))
            return
        stats, unused = made.puzzle.stats, [*refused, *made.unused]
        filled = f"{100 * stats.fill:.0f} % of {stats.area} cells filled"
        print(f"{stats.words} words, {stats.linked} shared letters, {filled}, score {stats.score:.2f}")
        for clue, why in unused:
            print(f"left out: {clue.answer}: {why}")
        for line in failed:
            print(f"no clue: {line}")
        if chat is not None:
            print(f"model: {chat.spent}")
        print(f"page: {paths[0]}")


def _read(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: expected an existing file, got none")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got byte {error.object[error.start]:#x} at {error.start}") from None
    if not text.strip():
        raise ValueError(f"{path}: expected a text, got an empty file")
    return text
