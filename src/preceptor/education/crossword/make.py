"""From a text or a list of words to a crossword: clues, rules, checks, the best clue of each answer, the grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preceptor.education.crossword.answers import Clue, keep_good
from preceptor.education.crossword.clues import Lang, check_lang, cloze_clues, extract_from_text, write_clues
from preceptor.education.crossword.grid import build_grid
from preceptor.education.crossword.puzzle import Entry, Puzzle
from preceptor.education.crossword.verifier import ask_valid, chat_solver, round_trip
from preceptor.education.tables import check_columns, read_rows
from preceptor.teachers.chat import Chat


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
    found = []
    for number, row in enumerate(rows, start=1):
        answer, clue = (" ".join(str(row.get(name) or "").split()) for name in ("answer", "clue"))
        if not answer:
            raise ValueError(f"{path}: expected an answer in row {number}, got none")
        found.append(Clue(answer=answer, text=clue))
    return found


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


def judged(clues: Sequence[Clue], chat: Chat, *, lang: Lang, strict: bool = False, k: int = 5) -> list[tuple[Clue, str]]:
    """Let a model judge clues: each with its score, and the reason against it, "" where there is none.

    A clue that the model calls wrong is refused. The score is (1 + reciprocal rank of the round trip) / 2.

    Args:
        clues: N.
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
        found.append((replace(clue, score=(1 + rank) / 2), reason))
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
    good, dropped = keep_good(clues, side=size)
    if len(good) < 2:
        why = f": {dropped[0][0].answer!r}, {dropped[0][1]}" if dropped else ""
        raise ValueError(f"clues: expected at least 2 answers with a good clue, got {len(good)} of {len(clues)}{why}")
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
