"""Answers out of actions: the rows of KT1 from a log of KT2, KT3 or KT4.

Source: the description of riiid/ednet. A student enters a bundle of questions, may respond to each more than once, and submits; only the
last response before that counts. The time of an answer is that of entering; sessions are numbered from 1. The elapsed time of an answer,
    (submit - enter) / questions of the bundle,
which all answers of a session share, is a reconstruction: no source gives it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from preceptor.core.optional import require

if TYPE_CHECKING:
    import pyarrow

_ENTER, _RESPOND, _SUBMIT = 0, 1, 2
_KINDS = {"enter": ("b", _ENTER), "respond": ("q", _RESPOND), "submit": ("b", _SUBMIT)}  # other items are explanations and lectures


@dataclass(kw_only=True)
class Responses:
    """Where the responses of a log went: ``given = kept + replaced + unsubmitted + unknown``.

    Attributes:
        given: all of them.
        kept: answers.
        replaced: followed by another to the same question before it was submitted.
        unsubmitted: of a bundle that was not entered before, or not submitted after.
        unknown: to a question that the table of questions does not have.
    """

    given: int = 0
    kept: int = 0
    replaced: int = 0
    unsubmitted: int = 0
    unknown: int = 0


@dataclass(frozen=True, kw_only=True)
class Bundles:
    """``of``: the bundle of every question by number, (Q,), 0 where there is none; ``size``: the questions of every bundle, (B,)."""

    of: np.ndarray
    size: np.ndarray


def bundles_from(questions: pyarrow.Table) -> Bundles:
    """From the table of `preceptor.education.ednet_text.question_rows`."""
    number, bundle = questions["question"].to_numpy(), questions["bundle"].to_numpy()
    known = (number > 0) & (number < 2**15) & (bundle > 0)
    of = np.zeros(int(number[known].max(initial=0)) + 1, np.int64)
    of[number[known]] = bundle[known]
    return Bundles(of=of, size=np.bincount(of))


def answers_of(table: pyarrow.Table, bundles: Bundles, report: Responses) -> pyarrow.Table:
    """The answers of whole students, in order of student, time of entering, session and question.

    A session lasts from the last enter of a bundle to the first submit of it; sessions of several bundles may lie across each other.

    Args:
        table: rows of actions in order of student and time, as `preceptor.education.ednet.convert` writes them.
        bundles: which questions belong together.
        report: counts are added to it.
    Returns:
        user, timestamp (ms), solving, question, answer, elapsed (ms), of the types of KT1.
    Raises:
        ValueError: rows that are not of actions.
    """
    pyarrow = require("pyarrow", extra="education", purpose="EdNet's logs")
    if "action" not in table.column_names:
        raise ValueError(f"answers: expected a log of actions (KT2, KT3 or KT4), got columns {', '.join(table.column_names)}")
    kind, number = _numbers(table)
    responded = kind == _RESPOND
    bundle = np.where(responded, bundles.of[np.where(number < len(bundles.of), number, 0)], number)
    given, unknown = int(responded.sum()), int((responded & (bundle == 0)).sum())
    user, time = (table[name].to_numpy() for name in ("user", "timestamp"))

    rows = np.flatnonzero(kind >= 0)
    rows = rows[np.lexsort((bundle[rows], user[rows]))]  # stable: the order of the log stays within a bundle of a student
    kind, place = kind[rows], np.arange(len(rows))
    change = np.flatnonzero((np.diff(user[rows], prepend=-1) != 0) | (np.diff(bundle[rows], prepend=-1) != 0))
    begin = np.repeat(change, np.diff(change, append=len(rows)))
    entered = np.maximum.accumulate(np.where(kind == _ENTER, place, -1))
    submitted = np.maximum.accumulate(np.where(kind == _SUBMIT, place, -1))
    inside = (entered >= begin) & (np.concatenate([[-1], submitted])[:-1] < entered)
    closing = np.flatnonzero(inside & (kind == _SUBMIT))
    end = np.full(len(rows), -1)
    end[entered[closing]] = closing

    answered = np.flatnonzero(inside & (kind == _RESPOND))
    answered = answered[end[entered[answered]] >= 0]
    session, question = entered[answered], number[rows[answered]]
    order = np.lexsort((question, session))  # stable: the last of a question is the last in time
    last = (np.diff(session[order], append=-1) != 0) | (np.diff(question[order], append=-1) != 0)
    kept = answered[order][last]

    opened = rows[entered[closing]]  # of each closed session, its row of the table
    opened = opened[np.lexsort((opened, time[opened], user[opened]))]
    first = np.searchsorted(user[opened], user[opened])
    solving = np.zeros(table.num_rows, np.int32)
    solving[opened] = np.arange(len(opened)) - first + 1
    start, stop = rows[entered[kept]], rows[end[entered[kept]]]
    final = np.lexsort((number[rows[kept]], solving[start], user[start]))
    kept, start, stop = kept[final], start[final], stop[final]
    elapsed = (time[stop] - time[start]) // np.maximum(bundles.size[bundle[start]], 1)

    report.given += given
    report.kept += len(kept)
    report.replaced += len(answered) - len(kept)
    report.unknown += unknown
    report.unsubmitted += given - unknown - len(answered)
    return pyarrow.table(
        {
            "user": pyarrow.array(user[start], pyarrow.int32()),
            "timestamp": pyarrow.array(time[start], pyarrow.int64()),
            "solving": pyarrow.array(solving[start], pyarrow.int32()),
            "question": pyarrow.array(number[rows[kept]].astype(np.int16)),
            "answer": table["answer"].take(pyarrow.array(rows[kept])).combine_chunks(),
            "elapsed": pyarrow.array(elapsed.clip(0, 2**31 - 1).astype(np.int32)),
        }
    )


def _numbers(table: pyarrow.Table) -> tuple[np.ndarray, np.ndarray]:
    """Kind (n,), -1 for what is no event of a bundle, and the number of the bundle or question (n,), 0 where the item is none."""
    action, item = (table[name].combine_chunks().dictionary_encode() for name in ("action", "item"))
    kinds = [_KINDS.get(word, ("", -1)) for word in action.dictionary.to_pylist()] + [("", -1)]
    words = [re.fullmatch(r"([bq])(\d{1,6})", word) for word in item.dictionary.to_pylist()] + [None]
    what, which = (column.indices.fill_null(len(column.dictionary)).to_numpy(zero_copy_only=False) for column in (action, item))
    letter = np.array([word[1] if word else "" for word in words], "U1")[which]
    number = np.array([int(word[2]) if word else 0 for word in words], np.int64)[which]
    kind = np.array([kind for _, kind in kinds])[what]
    number[letter != np.array([letter for letter, _ in kinds], "U1")[what]] = 0
    return np.where((kind == _RESPOND) | (number > 0), kind, -1), number
