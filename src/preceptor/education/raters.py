"""Sheets on which people compare the feedback of several systems without knowing which wrote what, and what they filled in."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase

import numpy as np

from preceptor.core.files import write_whole
from preceptor.education.agreement import krippendorff, tabulate
from preceptor.education.answer_files import AnswerFile
from preceptor.education.feedback import MARKS, Judgement, allowed
from preceptor.education.tables import Row, check_columns, read_rows

_KEY = ("rater", "id", "message", "system")
_SHEET = ("id", "message", "problem", "answer", "feedback", *MARKS, "preferred")


def write_sheets(
    folder: Path,
    answers: AnswerFile,
    feedback: Mapping[str, Sequence[str]],
    *,
    raters: int = 2,
    per_problem: int | None = None,
    seed: int = 0,
) -> list[Path]:
    """Write ``rater-1.csv``, ... to fill in, and ``key.csv``, which raters must not see.

    Baral et al. 2024 (arXiv:2411.08910) let two teachers rate 100 answers, two of each problem. A sheet has a row per message, those of one
    answer together; the order of answers and of messages is each rater's own.

    Args:
        folder: made when missing.
        answers: M.
        feedback: by system, a message for each answer; at least two systems.
        raters: number of sheets.
        per_problem: answers drawn of each problem; None: all.
        seed: of draws and orders.
    Returns:
        The sheets.
    Raises:
        ValueError: another number of messages or systems, no rater, or a sheet that stands there already.
    """
    if not 2 <= len(feedback) <= len(ascii_uppercase):
        raise ValueError(f"systems: expected 2 to {len(ascii_uppercase)}, got {len(feedback)}")
    for system, messages in feedback.items():
        if len(messages) != len(answers.ids):
            raise ValueError(f"feedback of {system}: expected {len(answers.ids)} messages, one for each answer, got {len(messages)}")
    if raters < 1 or (per_problem is not None and per_problem < 1):
        raise ValueError(f"raters, per_problem: expected at least 1, got {raters} and {per_problem}")
    sheets = [folder / f"rater-{number}.csv" for number in range(1, raters + 1)]
    present = next((sheet for sheet in sheets if sheet.exists()), None)
    if present is not None:
        raise ValueError(f"out: expected a folder without sheets, which raters may have filled in, got {present}")
    chosen = _chosen(answers.problems, per_problem, np.random.default_rng(seed))
    key: list[Sequence[object]] = []
    for number, sheet in enumerate(sheets, start=1):
        rng, rows = np.random.default_rng([seed, number]), []
        for i in rng.permutation(chosen).tolist():
            for letter, system in zip(ascii_uppercase, rng.permutation(sorted(feedback)).tolist(), strict=False):
                rows.append([answers.ids[i], letter, answers.problems[i], answers.texts[i], feedback[system][i], "", "", "", ""])
                key.append([number, answers.ids[i], letter, system])
        write_whole(sheet, _table(_SHEET, rows))
    write_whole(folder / "key.csv", _table(_KEY, key))
    return sheets


def read_sheets(folder: Path) -> dict[str, list[list[Judgement]]]:
    """What raters filled in, by system a list over answers of the judgements of all raters: for `feedback_report`.

    ``accurate`` and ``relevant`` are 0 or 1, ``motivating`` -1, 0 or 1, ``preferred`` 1 at the best message of an answer, if any.

    Raises:
        ValueError: a file, a row or a mark is missing, a mark has another value, or an answer has two preferred messages.
    """
    key = read_rows(folder / "key.csv")
    check_columns(key, _KEY, folder / "key.csv")
    systems = list(dict.fromkeys(row["system"] for row in sorted(key, key=lambda row: row["system"])))
    found: dict[str, dict[str, list[Judgement]]] = {system: {} for system in systems}
    for rater in dict.fromkeys(row["rater"] for row in key):
        path = folder / f"rater-{rater}.csv"
        rows = read_rows(path)
        check_columns(rows, ("id", "message", *MARKS, "preferred"), path)
        filled = {(row["id"], row["message"]): row for row in rows}
        mine = [row for row in key if row["rater"] == rater]
        missing = next((row for row in mine if (row["id"], row["message"]) not in filled), None)
        if missing is not None:
            raise ValueError(f"{path}: expected a row for message {missing['message']} of answer {missing['id']}, got none")
        best: dict[str, str] = {}
        for row in mine:
            where = f"{path}: preferred of message {row['message']} of answer {row['id']}"
            if _mark(filled[row["id"], row["message"]], "preferred", (0, 1), where, empty=0):
                if row["id"] in best:
                    raise ValueError(f"{where}: expected one of an answer at most, got two")
                best[row["id"]] = row["system"]
        for row in mine:
            cells = filled[row["id"], row["message"]]
            marks = {
                mark: _mark(cells, mark, allowed(mark), f"{path}: {mark} of message {row['message']} of answer {row['id']}")
                for mark in MARKS
            }
            found[row["system"]].setdefault(row["id"], []).append({**marks, "preferred": best.get(row["id"], "")})
    return {system: list(by_answer.values()) for system, by_answer in found.items()}


def rater_agreement(ratings: Mapping[str, Sequence[Sequence[Judgement]]]) -> dict[str, float]:
    """Krippendorff's alpha of each mark over all messages, that of ``motivating`` with squared differences; NaN where it is undefined.

    Args:
        ratings: as for `preceptor.education.feedback.feedback_report`, every message by the same raters in the same order.
    """
    messages = [judgements for one in ratings.values() for judgements in one]
    found = {}
    for mark in MARKS:
        values = np.array([[int(judgement[mark]) for judgement in judgements] for judgements in messages]) - min(allowed(mark))
        weights = "quadratic" if mark == "motivating" else "nominal"
        found[mark] = float(krippendorff(tabulate(values, categories=len(allowed(mark))), weights=weights)[0])
    return found


def _chosen(problems: Sequence[str], per_problem: int | None, rng: np.random.Generator) -> list[int]:
    """Positions of the answers that are rated."""
    rows = {problem: [i for i, one in enumerate(problems) if one == problem] for problem in dict.fromkeys(problems)}
    return [int(i) for own in rows.values() for i in (own if per_problem is None else rng.permutation(own)[:per_problem])]


def _mark(row: Row, name: str, values: Sequence[int], where: str, *, empty: int | None = None) -> int:
    text = str(row[name]).strip().removesuffix(".0")
    if not text and empty is not None:
        return empty
    if text not in map(str, values):
        raise ValueError(f"{where}: expected {', '.join(map(str, values))}, got {text!r}")
    return int(text)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()
