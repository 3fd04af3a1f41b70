"""How much of the gap between an untuned student and a good model was recovered by what a teacher wrote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from preceptor.metrics.tables import Row, cell, numbers

OnInverted = Literal["raise", "nan", "gain", "floor", "ratio"]
"""What to give where a reference is not clearly better than the base, see `pgr`."""


def pgr(student: float, base: float, reference: float, *, on_inverted: OnInverted = "raise", epsilon: float = 0.01) -> float:
    """Performance gap recovered, (S - S_base) / (S_ref - S_base): 0 at the base, 1 at the reference, any number outside.

    The ratio means what it says only where the reference is better. Below the base it falls as the student gets better, and near it every
    difference is blown up. So where S_ref <= S_base + epsilon, ``on_inverted`` decides:

    =========  =================================================================================
    ``raise``  an error
    ``nan``    no value
    ``gain``   S - S_base, in units of the result, not of the gap
    ``floor``  (S - S_base) / epsilon: the gap is taken as epsilon
    ``ratio``  the ratio all the same, as the authors' released tables have it
    =========  =================================================================================

    Args:
        student, base, reference: mean results, higher is better.
        on_inverted: see above.
        epsilon: > 0, in units of the result.
    Raises:
        ValueError: a result that is not finite, epsilon <= 0, an unknown choice, a reference that is not better where that is refused, or
            one equal to the base where the ratio is wanted.
    """
    if not all(map(math.isfinite, (student, base, reference))):
        raise ValueError(f"results: expected finite numbers, got student {student}, base {base}, reference {reference}")
    if not epsilon > 0:
        raise ValueError(f"epsilon: expected a number > 0, got {epsilon}")
    if on_inverted not in ("raise", "nan", "gain", "floor", "ratio"):
        raise ValueError(f"on_inverted: expected raise, nan, gain, floor or ratio, got {on_inverted!r}")
    gain, gap = student - base, reference - base
    if gap > epsilon or (on_inverted == "ratio" and gap != 0):
        return gain / gap
    if on_inverted in ("raise", "ratio"):
        wanted = f"more than the base {base:.4g} + {epsilon:.4g}" if on_inverted == "raise" else f"another value than the base {base:.4g}"
        raise ValueError(f"reference: expected {wanted}, got {reference:.4g}, against which no recovered gap is measured")
    return {"nan": math.nan, "gain": gain, "floor": gain / epsilon}[on_inverted]


@dataclass(frozen=True, kw_only=True)
class Extrinsic:
    """What a student gained from one teacher in one language: mean results, and `pgr`.

    Attributes:
        gain: result - base, which no reference can turn around.
        inverted: the reference is not better than the base by more than epsilon.
        foreign: there was no result in the language, and ``result`` is the mean over all others.
    """

    teacher: str
    language: str
    result: float
    base: float
    reference: float
    gain: float
    pgr: float
    inverted: bool
    foreign: bool


def extrinsic(
    students: Sequence[Row], base: Sequence[Row], reference: Sequence[Row], *, on_inverted: OnInverted = "raise", epsilon: float = 0.01
) -> list[Extrinsic]:
    """Results of benchmarks to gains, one for each teacher and language, in the order of their names.

    Args:
        students: rows with ``teacher``, ``language`` (that it was taught), ``eval_language`` and ``result``. The mean is over those with
            eval_language = language, or over all where there are none.
        base: rows with ``eval_language`` and ``result`` of the untuned student.
        reference: the same of a model that is known to be good.
        on_inverted, epsilon: see `pgr`.
    Raises:
        ValueError: no rows, a missing column, a language without a row of base or reference, or what `pgr` refuses.
    """
    if not students:
        raise ValueError("students: expected at least one row, got none")
    groups: dict[tuple[str, str], list[Row]] = {}
    for number, row in enumerate(students):
        groups.setdefault((cell(row, "teacher", number), cell(row, "language", number)), []).append(row)
    anchors = {
        language: [_anchor(rows, language, name) for name, rows in (("base", base), ("reference", reference))] for _, language in groups
    }
    found = []
    for (teacher, language), rows in sorted(groups.items()):
        below, above = anchors[language]
        native = [row for number, row in enumerate(rows) if cell(row, "eval_language", number) == language]
        result = float(numbers(native or rows, "result").mean())
        try:
            recovered = pgr(result, below, above, on_inverted=on_inverted, epsilon=epsilon)
        except ValueError as error:
            raise ValueError(f"language {language}: {error}") from error
        found.append(
            Extrinsic(
                teacher=teacher,
                language=language,
                result=result,
                base=below,
                reference=above,
                gain=result - below,
                pgr=recovered,
                inverted=not above > below + epsilon,
                foreign=not native,
            )
        )
    return found


def _anchor(rows: Sequence[Row], language: str, name: str) -> float:
    """Mean result of base or reference in a language."""
    languages = [cell(row, "eval_language", number) for number, row in enumerate(rows)]
    if language not in languages:
        raise ValueError(f"{name}: expected results in {language!r}, got {', '.join(dict.fromkeys(languages)) or 'none'}")
    return float(numbers([row for row, one in zip(rows, languages, strict=True) if one == language], "result").mean())
