"""``preceptor crossword``: from a text or a list of words to a page on which the crossword is played."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from preceptor.commands.shared import AsJson, checked, fail

if TYPE_CHECKING:
    from preceptor.education.open_answers import Embed

SHOWN = 20  # clues left out that are named in the terminal


def crossword(
    source: Annotated[
        Path, typer.Argument(help="A text, or a .csv or .jsonl with a column answer and perhaps clue.", metavar="TEXT|WORDS.csv")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the page, ipuz, text and pictures.")],
    size: Annotated[int | None, typer.Option(min=3, help="Cells of a side, by default 13.")] = None,
    template: Annotated[
        Path | None, typer.Option(help="Instead of a size: a text file of rows to fill, # black, - white or a letter.")
    ] = None,
    lang: Annotated[Literal["it", "en"], typer.Option(help="Of clues and page.")] = "en",
    seconds: Annotated[float, typer.Option(min=0.0, help="Time to look for a good grid, or for a filling.")] = 5.0,
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
    judged: Annotated[
        Path | None, typer.Option(help="Clues that people judged, with columns answer, clue and good: fits a verifier.")
    ] = None,
    precision: Annotated[float, typer.Option(help="Wanted of the clues that this verifier accepts, on some held out.")] = 0.9,
    encoder: Annotated[
        str | None, typer.Option(help="Compare clue and answer by meaning too: minilm, or the folder of an encoder.")
    ] = None,
    flag: Annotated[bool, typer.Option("--flag", help="Keep clues that are rejected, named here and in crossword.json.")] = False,
    seed: Annotated[int, typer.Option(help="Of the grid.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a crossword: a page to play or print, and files for other programs."""
    with checked(f"preceptor crossword {source} --out {out}"):
        from preceptor.education.crossword.clues import check_lang
        from preceptor.education.crossword.export import as_json as described
        from preceptor.education.crossword.export import write_files
        from preceptor.education.crossword.make import (
            check_clues,
            clues_for,
            clues_from,
            fill_crossword,
            make_crossword,
            read_clues,
            trained_verifier,
        )
        from preceptor.education.crossword.template import NoFilling, read_template
        from preceptor.teachers.chat import ChatStopped, open_chat

        check_lang(lang)
        listed = source.suffix in (".csv", ".tsv", ".jsonl")
        given = read_clues(source) if listed else []
        text = "" if listed else _read(source)
        if strict and model is None:
            raise ValueError("strict: expected a model that solves the clues, got none")
        if template is not None and size is not None:
            raise ValueError(f"size: expected none with a template, got {size}")
        if encoder is not None and judged is None:
            raise ValueError(f"encoder: expected --judged, the clues to fit a verifier to, got --encoder {encoder} alone")
        if flag and judged is None and (model is None or not checks):
            raise ValueError("flag: expected --judged or a model that checks the clues, got neither")
        pattern = None if template is None else read_template(template)
        side = pattern.longest if pattern else size or 13
        verifier = None
        if judged is not None:
            embed = None if encoder is None else _encoder(encoder)
            verifier = trained_verifier(judged, precision=precision, embed=embed, seed=seed)
        chat = None
        if model is not None:
            chat = open_chat(model, url=url, key=key, journal=journal or out / "answers.sqlite")
        try:
            clues, failed = clues_for(given, chat, lang=lang) if listed else clues_from(text, chat, lang=lang, side=side)
            if failed and not clues:
                fail(f"model: expected clues, got none: {failed[0]}", 1)
            asked = chat if checks else None
            clues, refused = check_clues(clues, side=side, lang=lang, verifier=verifier, chat=asked, strict=strict, flag=flag)
        except ChatStopped as stop:
            fail(f"{stop}; the same command goes on", 1)
        finally:
            if chat is not None:
                chat.close()
        title, limit = title or source.stem.replace("_", " "), None if restarts else seconds
        if pattern is None:
            made = make_crossword(clues, title=title, lang=lang, size=side, seconds=limit, restarts=restarts, seed=seed)
        else:
            try:
                made = fill_crossword(clues, pattern, title=title, lang=lang, seconds=limit, restarts=restarts, seed=seed)
            except NoFilling as error:
                fail(error, 2 if error.proven else 1)
        made = replace(made, unused=(*refused, *made.unused))
        paths = write_files(made, out)
        if as_json:
            print(json.dumps(described(made), ensure_ascii=False))
            return
        stats, unused = made.puzzle.stats, made.unused
        filled = f"{100 * stats.fill:.0f} % of {stats.area} cells filled"
        print(f"{stats.words} words, {stats.linked} shared letters, {filled}, score {stats.score:.2f}")
        if verifier is not None:
            kept = f"{verifier.precision:.0%} of the held-out clues that it accepts are good, {verifier.recall:.0%} of the good pass"
            print(f"verifier: {kept}")
        for clue in made.clues.values():
            if clue.doubt:
                print(f"doubtful: {clue.answer}: {clue.doubt}")
        for clue, why in unused[:SHOWN]:
            print(f"left out: {clue.answer}: {why}")
        if len(unused) > SHOWN:
            print(f"left out: {len(unused) - SHOWN} more")
        for line in failed:
            print(f"no clue: {line}")
        if chat is not None:
            print(f"model: {chat.spent}")
        print(f"page: {paths[0]}")


def _encoder(name: str) -> Embed:
    from preceptor.education.open_answers import sentence_embedder

    if name != "minilm" and not Path(name).is_dir():
        raise ValueError(f"encoder: expected minilm or a folder, got {name!r}")
    return sentence_embedder(None if name == "minilm" else Path(name))


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
