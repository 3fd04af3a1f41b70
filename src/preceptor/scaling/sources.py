"""Judging sources of pretraining data by the scores that they lead to: does more of a source pay, and which one at a budget?

Isik et al. 2024 (arXiv:2402.04177), Sec. 4: checkpoints of growing pretraining are fine-tuned in the same way; where the log law fits and
the score rises, the data suit the task; where the loss falls and the score does not, they do not. The thresholds are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from preceptor.core.optional import require
from preceptor.scaling.fitting import Fit, bootstrap, fit
from preceptor.scaling.foresight import straight_line
from preceptor.scaling.forms import Array, LogLaw
from preceptor.scaling.identify import check_positive

Verdict = Literal["aligned", "misaligned", "sufficient"]
"""More data of this kind pays; it does not, whatever the loss says; the fine-tuning data are enough by themselves."""


def averaged(data: ArrayLike, values: ArrayLike) -> tuple[Array, Array]:
    """Sizes in order, each once, with the mean of what was measured there."""
    sizes, where = np.unique(np.asarray(data, dtype=float), return_inverse=True)
    return sizes, np.bincount(where, weights=np.asarray(values, dtype=float)) / np.bincount(where)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What checkpoints of growing pretraining say about a source of data. See `judge_source`."""

    verdict: Verdict
    law: Fit | None  # of the score; None with fewer than four sizes, which allow only a line
    error: float | None  # mean |predicted / measured - 1| of the score on the sizes held out; None where none was
    line_error: float | None  # the same of a straight line in log D
    covered: bool | None  # whether the intervals of the law cover the sizes held out; None without intervals
    rank_correlation: float  # Spearman, of size and score
    drop: float  # the score's largest fall from an earlier size, in its own units
    loss_falls: bool
    warnings: tuple[str, ...]


def judge_source(
    data: ArrayLike,
    score: ArrayLike,
    loss: ArrayLike,
    *,
    fitted: int = 4,
    ceiling: float = 100.0,
    flat: float = 0.02,
    drop: float = 0.05,
    draws: int = 0,
) -> Source:
    """Fit the log law to the smallest sizes, check it on the others, and decide whether more data of this kind pay.

    Args:
        data: tokens of pretraining (n,), each checkpoint fine-tuned in the same way; ties are averaged.
        score: (n,), > 0 and below the ceiling; a score that can be negative must be shifted first.
        loss: (n,), of the same models on the same test data.
        fitted: sizes that the law is fitted to, the smallest ones.
        ceiling: the best possible score; a law that passes it at the largest size is not applicable, with a warning.
        flat: a range below this share of the largest value is no change.
        drop: a fall of more than this share of the best score is an alarm.
        draws: of a bootstrap for ``covered``, which wants at least six fitted sizes.
    Raises:
        ValueError: values that are not above 0 (rows are named), or one size.
        ImportError: scipy is missing.
    """
    stats = require("scipy.stats", extra="study", purpose="scaling laws")
    sizes, scores = averaged(data, score)
    losses = averaged(data, loss)[1]
    check_positive("score", scores)
    check_positive("loss", losses)
    if len(sizes) < 2:
        raise ValueError(f"data: expected at least two sizes, got {len(sizes)}")
    rank = float(stats.spearmanr(sizes, scores).statistic) if np.ptp(scores) else 0.0
    fall = float((np.maximum.accumulate(scores) - scores).max())
    moves, loss_moves = (np.ptp(values) > flat * values.max() for values in (scores, losses))
    loss_falls = bool(loss_moves and losses[-1] < losses[0])
    rises = bool(moves and rank > 0.5 and fall <= drop * scores.max() and scores[-1] > scores[0])
    verdict: Verdict = "aligned" if rises else "sufficient" if not moves and not loss_moves else "misaligned"
    law, error, line_error, covered, warnings = None, None, None, None, []
    if len(sizes) >= 4:
        law = fit(LogLaw(), sizes[:fitted], scores[:fitted])
        law = bootstrap(law, draws=draws) if draws else law
        warnings += law.warnings
        if law.predict(sizes[-1:])[0] > ceiling:
            warnings.append(f"score: the law passes the ceiling {ceiling:g}, it is not applicable")
    else:
        warnings.append(f"data: expected at least 4 sizes for the log law, got {len(sizes)}: only a line")
    ahead = slice(fitted, None)
    if len(sizes) > fitted:
        line = straight_line(sizes[:fitted], scores[:fitted], sizes[ahead], of_scores=True)
        line_error = float(np.abs(line / scores[ahead] - 1).mean())
        if law is not None:
            error = float(np.abs(law.predict(sizes[ahead]) / scores[ahead] - 1).mean())
            band = law.band(sizes[ahead])
            covered = None if band is None else bool(((band[0] <= scores[ahead]) & (scores[ahead] <= band[1])).all())
    if fall > drop * scores.max():
        warnings.append(f"score: falls by {fall:.3g} with more pretraining data, they do not suit the task")
    return Source(
        verdict=verdict,
        law=law,
        error=error,
        line_error=line_error,
        covered=covered,
        rank_correlation=rank,
        drop=fall,
        loss_falls=loss_falls,
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A source beside others; the fields but for the first two are None where no law could be fitted."""

    name: str
    source: Source
    foretold: float | None  # score at the budget
    low: float | None  # its 95 % interval; None without one
    high: float | None
    gain: float | None  # less the score without pretraining; None where that is not known


def compare_sources(
    runs: Sequence[tuple[str, float, float, float]],
    *,
    budget: float,
    without: float | None = None,
    fitted: int | None = None,
    draws: int = 0,
    ceiling: float = 100.0,
) -> list[Candidate]:
    """Which source is worth a budget of pretraining: one law for each, and what it foretells there.

    Args:
        runs: (source, tokens of pretraining, score, loss) of each checkpoint after the same fine-tuning.
        budget: tokens > 0.
        without: the score of the same fine-tuning without pretraining.
        fitted: as in `judge_source`; by default all sizes but the largest, four at least.
        draws, ceiling: see `judge_source`.
    Returns:
        Aligned sources first, by the score foretold; then the others, whose law is not to be trusted.
    Raises:
        ValueError: no runs, a budget that is not above 0, or what `judge_source` refuses, with the source's name.
    """
    if not budget > 0:
        raise ValueError(f"budget: expected a number above 0, got {budget}")
    if not runs:
        raise ValueError("runs: expected at least one, got none")
    found = []
    for name in dict.fromkeys(name for name, *_ in runs):
        data, score, loss = np.array([numbers for other, *numbers in runs if other == name], dtype=float).T
        first = max(4, len(np.unique(data)) - 1) if fitted is None else fitted
        try:
            source = judge_source(data, score, loss, fitted=first, draws=draws, ceiling=ceiling)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        foretold = low = high = None
        if source.law is not None:
            foretold, band = float(source.law.predict([budget])[0]), source.law.band([budget])
            low, high = (None, None) if band is None else (float(band[0, 0]), float(band[1, 0]))
        gain = None if foretold is None or without is None else foretold - without
        found.append(Candidate(name=name, source=source, foretold=foretold, low=low, high=high, gain=gain))
    return sorted(found, key=lambda one: (one.source.verdict != "aligned", one.foretold is None, -(one.foretold or 0.0)))
