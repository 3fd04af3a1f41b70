"""The actions behind made-up answers: entering, responding, changing one's mind, giving up, submitting (KT2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from preceptor.education.synthetic import Contents

_CHANGED, _GIVEN_UP = 0.15, 0.03  # share of answers chosen after another one, of sessions that were begun before and left

KINDS = ("enter", "respond", "submit")


def actions_of(chunk: dict[str, np.ndarray], table: Contents, seed: int) -> dict[str, np.ndarray]:
    """Rows of KT2, in order of student and time, from which the answers of `preceptor.education.synthetic.students` can be made again.

    Args:
        chunk: rows of whole students.
        table: the questions.
        seed: of the draws, with the first student's number.
    Returns:
        user, timestamp (ms), kind (of `KINDS`), number (of the question where kind is 1, else of the bundle), answer (0: none).
    """
    drawn = np.random.default_rng((seed, 2, int(chunk["user"][0]))).random((len(chunk["user"]), 3))
    question = chunk["question"].astype(np.int64) - 1
    bundle = table.bundle[question]
    within = question - table.first[np.searchsorted(table.first, question, side="right") - 1]
    size = np.bincount(table.bundle)[bundle]
    first = within == 0
    start, elapsed = chunk["timestamp"], chunk["elapsed"].astype(np.int64)
    given = chunk["answer"] > 0
    at = start + elapsed * within
    begun_before = first & (drawn[:, 0] < _GIVEN_UP)
    choices = np.where(table.part[question] == 2, 3, 4)
    other = 1 + (chunk["answer"] + (drawn[:, 1] * (choices - 1)).astype(np.int64)) % choices
    pieces = (  # which rows of the chunk, kind, time, answer
        (begun_before, 0, start, 0 * other),
        (begun_before, 1, start, other),
        (first, 0, start, 0 * other),
        (given & (drawn[:, 2] < _CHANGED), 1, at + elapsed // 3, other),
        (given, 1, at + elapsed // 2, chunk["answer"]),
        (first, 2, start + elapsed * size, 0 * other),
    )
    columns = []
    for phase, (rows, kind, time, answer) in enumerate(pieces):
        number = question + 1 if kind == 1 else bundle + 1
        whole = [chunk["user"], chunk["solving"], time, np.full(len(rows), phase), np.full(len(rows), kind), number, answer]
        columns.append([column[rows] for column in whole])
    user, solving, time, phase, kind, number, answer = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.lexsort((phase, time, solving, user))
    made = {"user": user, "timestamp": time, "kind": kind, "number": number, "answer": answer}
    return {name: column[order] for name, column in made.items()}
