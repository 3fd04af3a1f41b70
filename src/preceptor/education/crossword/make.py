"""From a text or a list of words to a crossword: clues, rules, checks, the best clue of each answer, the grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from preceptor.education.crossword.answers import Clue, keep_good, why_not
from preceptor.education.crossword.clues import Lang, check_lang, cloze_clues, extract_from_text, write_clues
from preceptor.education.crossword.grid import build_grid
from preceptor.education.crossword.puzzle import Entry, Puzzle
from preceptor.education.crossword.template import Template, fill_template
from preceptor.education.crossword.verifier import ClueVerifier, ask_valid, chat_solver, round_trip
from preceptor.education.open_answers import Embed
from preceptor.education.tables import Row, check_columns, read_rows
from preceptor.teachers.chat import Chat

Verdicts = list[tuple[Clue, str]]
"""Clues, each with its score and the reason against it, "" where there is none."""

_GOOD = {"yes": True, "true": True, "1": True, "sì": True, "si": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class Crossword:
    """A grid with a clue for each of its words.

    Attributes:
        title: shown above it.
        lang: of clues, buttons and labels.
        puzzle: the grid.
        clues: by the letters of the answer.
        unused: clues that did not get into the grid, each with the reason.
    """

    title: str
    lang: Lang
    puzzle: Puzzle
    clues: dict[str, Clue]
    unused: tuple[tuple[Clue, str], ...] = ()

    def clue_of(self, entry: Entry) -> Clue:
        """The clue of a word in the grid."""
        return self.clues[entry.answer]


def read_clues(path: Path) -> list[Clue]:
    """Read a CSV or JSON Lines file with a column ``answer`` and perhaps ``clue``; an answer without one has an empty clue.

    Raises:
        ValueError: no such file or column, or a row without an answer.
    """
    rows = read_rows(path)
    check_columns(rows, ["answer"], path)
    return [_clue_in(row, number, path) for number, row in enumerate(rows, start=1)]


def read_judged(path: Path) -> tuple[list[Clue], list[bool]]:
    """Read clues that people judged: a CSV or JSON Lines file with columns ``answer``, ``clue`` and ``good`` (yes or no).

    Raises:
        ValueError: no such file or column, a row without answer or clue, an answer that is no word, or another word for yes and no.
    """
    rows = read_rows(path)
    check_columns(rows, ["answer", "clue", "good"], path)
    clues, labels = [], []
    for number, row in enumerate(rows, start=1):
        clue, word = _clue_in(row, number, path), str(row.get("good")).strip()
        if not clue.text:
            raise ValueError(f"{path}: expected a clue in row {number}, got none")
        if word.lower() not in _GOOD:
            raise ValueError(f"{path}: expected yes or no in column 'good' of row {number}, got {word!r}")
        try:
            _ = clue.letters
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
        clues.append(clue)
        labels.append(_GOOD[word.lower()])
    return clues, labels


def trained_verifier(path: Path, *, precision: float = 0.9, embed: Embed | None = None, seed: int = 0) -> ClueVerifier:
    """A verifier fitted to a file of judged clues, see `read_judged` and `ClueVerifier.fit`.

    Raises:
        ValueError: the file does not pass, or no score reaches the precision on the clues held out.
    """
    clues, labels = read_judged(path)
    made = ClueVerifier.fit(clues, labels, precision=precision, embed=embed, seed=seed)
    if made.recall == 0:
        raise ValueError(
            f"precision: expected a threshold above which {precision:g} of the {made.held} clues held out of {path} are good, got none;"
            " give more judged clues or a lower precision"
        )
    return made


def clues_for(given: Sequence[Clue], chat: Chat | None, *, lang: Lang) -> tuple[list[Clue], tuple[str, ...]]:
    """Clues of a list; for answers that have none a model writes three. Beside them, a line for each answer that got none.

    Raises:
        ValueError: an answer has no clue and there is no model.
    """
    bare = [clue.answer for clue in given if not clue.text]
    if bare and chat is None:
        raise ValueError(f"clue: expected one for {bare[0]!r} (of {len(bare)} answers without), or a model to write it, got none")
    written = write_clues(bare, chat, lang=lang) if bare and chat is not None else None
    return [*(clue for clue in given if clue.text), *(written.clues if written else ())], written.failed if written else ()


def clues_from(text: str, chat: Chat | None, *, lang: Lang, side: int) -> tuple[list[Clue], tuple[str, ...]]:
    """Clues from a text by a model, or without one by leaving keywords out of its sentences; beside them a line for what failed."""
    if chat is None:
        return cloze_clues(text, lang=lang, side=side), ()
    found = extract_from_text(text, chat, lang=lang)
    return list(found.clues), found.failed


def check_clues(
    clues: Sequence[Clue],
    *,
    side: int,
    lang: Lang,
    verifier: ClueVerifier | None = None,
    chat: Chat | None = None,
    strict: bool = False,
    flag: bool = False,
) -> tuple[list[Clue], Verdicts]:
    """Let the verifiers judge clues, the classifier first; a clue that breaks the rules is not judged, as it is refused later anyway.

    Args:
        clues: N.
        side: of the grid, for the rules.
        lang: of the clues.
        verifier: refuses a clue below its threshold.
        chat: see `judged`; is not asked of clues that were refused before.
        strict: see `judged`.
        flag: keep what is refused, with the reason as its doubt.
    Returns:
        The clues that are kept, and those refused, each with the reason; with ``flag`` all are kept.
    Raises:
        ValueError: so many are refused that fewer than two are left.
    """
    kept = [clue for clue in clues if not why_not(clue, side=side)]
    broken = [clue for clue in clues if why_not(clue, side=side)]
    refused: Verdicts = []
    judges: list[Callable[[Sequence[Clue]], Verdicts]] = []
    if verifier is not None:
        judges.append(partial(verified, verifier=verifier))
    if chat is not None:
        judges.append(partial(judged, chat=chat, lang=lang, strict=strict))
    for judge in judges:
        verdicts = judge(kept)
        if flag:
            kept = [replace(clue, doubt="; ".join(filter(None, (clue.doubt, why)))) for clue, why in verdicts]
        else:
            kept = [clue for clue, why in verdicts if not why]
            refused += [(clue, why) for clue, why in verdicts if why]
    if refused and len(kept) < 2:
        clue, why = refused[0]
        raise ValueError(f"clues: expected at least 2 that the verifiers accept, got {len(kept)}: {clue.text!r} of {clue.answer!r}, {why}")
    return [*kept, *broken], refused


def verified(clues: Sequence[Clue], verifier: ClueVerifier) -> Verdicts:
    """Let a classifier judge clues; their scores are multiplied by P(ok)."""
    return [
        (
            replace(clue, score=clue.score * chance),
            "" if chance >= verifier.threshold else f"good with a chance of {chance:.2f}, below {verifier.threshold:.2f}",
        )
        for clue, chance in zip(clues, verifier.score(clues), strict=True)
    ]


def judged(clues: Sequence[Clue], chat: Chat, *, lang: Lang, strict: bool = False, k: int = 5) -> Verdicts:
    """Let a model judge clues. One that it calls wrong is refused; scores are multiplied by (1 + reciprocal rank of the round trip) / 2.

    Args:
        clues: N, with answers that `normalize` takes.
        chat: the judge.
        lang: of the clues.
        strict: refuse a clue too from which the model does not find the answer among ``k``.
        k: guesses in the round trip.
    """
    verdicts = ask_valid(clues, chat)
    ranks = round_trip(clues, chat_solver(chat, lang=lang), k=k)
    found = []
    for clue, verdict, rank in zip(clues, verdicts, ranks, strict=True):
        reason = "the model calls it wrong" if verdict is False else f"not among {k} guesses" if strict and not rank else ""
        found.append((replace(clue, score=clue.score * (1 + rank) / 2), reason))
    return found


def make_crossword(
    clues: Sequence[Clue],
    *,
    title: str,
    lang: Lang,
    size: int = 13,
    seconds: float | None = 5.0,
    restarts: int | None = None,
    prefer_all: bool = True,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> Crossword:
    """Keep the good clues and lay their answers out.

    Args:
        clues: any number of each answer; of those that keep the rules the one with the highest score is taken.
        title: shown above.
        lang: of the page.
        size: cells of a side.
        seconds: time for the grid; None: as many tries as ``restarts``.
        restarts: tries at most.
        prefer_all: put as many of the words as possible into the grid before it is dense; else the score of `Stats` alone decides.
        seed: of the grid.
        progress: see `build_grid`.
    Raises:
        ValueError: not two clues keep the rules, or no two of the answers cross in a grid of this size.
    """
    check_lang(lang)
    if size < 3:
        raise ValueError(f"size: expected at least 3 cells, got {size}")
    good, dropped = _good(clues, size)
    words = [clue.letters for clue in good]
    puzzle = build_grid(
        words, size=size, preferred=words if prefer_all else (), restarts=restarts, seconds=seconds, seed=seed, progress=progress
    )
    if len(puzzle.entries) < 2:
        raise ValueError(f"words: expected two that cross in a grid of {size} cells, got {', '.join(words[:8])}")
    left = set(puzzle.left_out)
    return Crossword(
        title=title,
        lang=lang,
        puzzle=puzzle,
        clues={clue.letters: clue for clue in good if clue.letters not in left},
        unused=(*dropped, *((clue, "no place in the grid") for clue in good if clue.letters in left)),
    )


def fill_crossword(
    clues: Sequence[Clue],
    template: Template,
    *,
    title: str,
    lang: Lang,
    seconds: float | None = 5.0,
    restarts: int | None = None,
    seed: int = 0,
) -> Crossword:
    """Keep the good clues and fill a given pattern with their answers; answers that it does not need are not listed as unused.

    Args:
        clues, title, lang: as in `make_crossword`.
        template: the pattern.
        seconds, restarts, seed: see `fill_template`.
    Raises:
        NoFilling: these words cannot fill it, or no filling was found within the limits.
        ValueError: not two clues keep the rules.
    """
    check_lang(lang)
    good, dropped = _good(clues, template.longest)
    puzzle = fill_template(template, [clue.letters for clue in good], seconds=seconds, restarts=restarts, seed=seed)
    placed = {entry.answer for entry in puzzle.entries}
    return Crossword(
        title=title, lang=lang, puzzle=puzzle, clues={clue.letters: clue for clue in good if clue.letters in placed}, unused=tuple(dropped)
    )


def _good(clues: Sequence[Clue], side: int) -> tuple[list[Clue], Verdicts]:
    """What keeps the rules, at least two clues, and what does not."""
    good, dropped = keep_good(clues, side=side)
    if len(good) < 2:
        why = f": {dropped[0][0].answer!r}, {dropped[0][1]}" if dropped else ""
        raise ValueError(f"clues: expected at least 2 answers with a good clue, got {len(good)} of {len(clues)}{why}")
    return good, dropped


def _clue_in(row: Row, number: int, path: Path) -> Clue:
    """The clue of a row."""
    answer, clue = (" ".join(str(row.get(name) or "").split()) for name in ("answer", "clue"))
    if not answer:
        raise ValueError(f"{path}: expected an answer in row {number}, got none")
    return Clue(answer=answer, text=clue)
