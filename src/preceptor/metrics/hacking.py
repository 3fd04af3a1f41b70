"""Teacher hacking: a student that still comes nearer to its teacher, or no longer, and already goes away from the truth.

Distances of language models over whole texts, the truth being a model that can be asked (an oracle) or not; what two curves of them say;
and a detector that needs the distance to the teacher alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.core.optional import require
from preceptor.core.reduce import num_examples
from preceptor.core.types import Batch
from preceptor.data.rows import take
from preceptor.losses.checks import check_counts, check_positive, check_vocabularies
from preceptor.losses.divergence import kl, log_probs
from preceptor.models.taps import forward

MIN_EVALUATIONS = 5
"""Fewest evaluations that may be judged."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance of two language models, in nats per text."""

    mean: float  # over prompts
    stderr: float  # of the mean, over prompts; NaN for one prompt
    finished: float | None  # share of the texts that ended by themselves, not by a limit of tokens; None: the texts do not tell


@dataclass(frozen=True, kw_only=True)
class Hacking:
    """What the distances to the truth (golden) and to the teacher (proxy) say together."""

    onset: int  # the step with the smallest golden
    lowest: float  # golden there, in nats
    golden_rise: float  # golden at the end less the lowest, as a share of the lowest
    proxy_rise: float  # the same of the proxy, from the same step on; negative: it fell
    verdict: Literal["insufficient", "healthy", "hacked"]


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """The law scale * step ** -exponent + offset, fitted to the beginning of a curve, and where the curve leaves it."""

    scale: float
    exponent: float
    offset: float
    spread: float  # standard deviation of the logarithms that were fitted
    residuals: tuple[float, ...]  # log of the value less log of the law, for every evaluation after the warm-up
    broken_at: int | None  # the step of the first evaluation above the law
    verdict: Literal["insufficient", "straight", "broken"]


@torch.no_grad()
def text_divergences(p: nn.Module, q: nn.Module, texts: Batch, *, mixed: bool = False, rows: int = 256) -> Tensor:
    """Divergence of q from p along each text, exact over the vocabulary at every token that counts, and summed over them.

    By the chain rule the expectation over texts of p is the divergence of the distributions of whole texts,
        KL(p || q) = E_{y ~ p} sum_t KL(p_t || q_t),   p_t = p(. | x, y_<t),
    as a rule with less variance than log p(y) - log q(y). With the mixture m = (p + q) / 2 in the place of q its next token has
        m_t = w p_t + (1 - w) q_t,   w = p(y_<t) / (p(y_<t) + q(y_<t)).

    Args:
        p: language model, in eval mode for the moment.
        q: another over the same vocabulary; with `mixed` it is compared through m.
        texts: N texts of p, with ``x``, ``y`` and ``mask``; tokens after a stop or a limit are not counted.
        mixed: compare with m.
        rows: texts in a forward pass, at least 1.
    Returns:
        (N,), float64, in nats, >= 0.
    Raises:
        ValueError: the vocabularies differ, or rows < 1.
    """
    check_counts(rows=rows)
    found = []
    with evaluating(p), evaluating(q):
        for chosen in torch.arange(num_examples(texts)).split(rows):
            part = take(texts, chosen)
            logits, others = (forward(model, part["x"]).logits for model in (p, q))
            check_vocabularies(logits.shape[-1], q=others.shape[-1])
            log_p, log_q = log_probs(logits), log_probs(others)
            counts = part["mask"] != 0
            if mixed:
                token = part["y"].masked_fill(~counts, 0).unsqueeze(-1)
                lead = ((log_p.gather(-1, token) - log_q.gather(-1, token)).squeeze(-1) * counts).double()
                before = (lead.cumsum(1) - lead).unsqueeze(-1)
                log_q = torch.logaddexp(log_p + F.logsigmoid(before), log_q + F.logsigmoid(-before))
            found.append(kl(log_p, log_q).double().masked_fill(~counts, 0.0).sum(1))
    return torch.cat(found)


def sequence_kl(p: nn.Module, q: nn.Module, texts: Batch) -> Distance:
    """KL(p || q) of the distributions of whole texts, see `text_divergences`; for KL(q || p) change places, and take texts of q.

    Compare points of a run on the same texts: drawn anew for each they make curves that bend by chance. What q writes changes with q; draw
    it with one seed.

    Args:
        p, q: language models over one vocabulary.
        texts: of p; texts with the same ``id`` answer one prompt. ``finished`` (N,), where it is there, is reported.
    """
    return _distance(_by_prompt(text_divergences(p, q, texts), texts), texts)


def sequence_jsd(p: nn.Module, q: nn.Module, texts: Batch, others: Batch) -> Distance:
    """Jensen-Shannon divergence of the distributions of whole texts, (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, at most log 2.

    Args:
        p, q: language models over one vocabulary.
        texts: of p; texts with the same ``id`` answer one prompt.
        others: of q, for the same prompts.
    Raises:
        ValueError: the prompts are others.
    """
    if not torch.equal(texts["id"].unique(), others["id"].unique()):
        raise ValueError(f"others: expected texts for the prompts of texts, got ids {others['id'].unique().tolist()[:5]} ...")
    sides = (_by_prompt(text_divergences(a, b, t, mixed=True), t) for a, b, t in ((p, q, texts), (q, p, others)))
    return _distance(torch.stack(list(sides)).mean(0), texts, others)


def _by_prompt(values: Tensor, texts: Batch) -> Tensor:
    """Mean over the texts of each prompt, in the order of the ids."""
    _, place, times = texts["id"].unique(return_inverse=True, return_counts=True)
    return values.new_zeros(len(times)).index_add_(0, place, values) / times


def _distance(values: Tensor, *texts: Batch) -> Distance:
    stderr = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    finished = [batch["finished"].double() for batch in texts if "finished" in batch]
    return Distance(mean=float(values.mean()), stderr=stderr, finished=float(torch.cat(finished).mean()) if finished else None)


def hacking(
    steps: Sequence[int],
    proxy: Sequence[float],
    golden: Sequence[float],
    *,
    least_rise: float = 0.05,
    smooth: int = 1,
    teacher_golden: float | None = None,
) -> Hacking:
    """Find the step from which golden rises, and judge whether the proxy hides it.

    Hacked is a run whose golden rises by more than a share of its lowest value while the proxy falls, or rises by no more than that share.
    Near zero a share says little: look at ``lowest`` too. Golden may also be the cross-entropy on true texts, which is the distance to the
    truth up to a constant; its shares are smaller.

    Args:
        steps: of the evaluations, rising.
        proxy: distance to the teacher at each, >= 0.
        golden: distance to the truth at each, >= 0.
        least_rise: the share, >= 0; our own.
        smooth: evaluations in a moving mean, odd; shorter at the ends.
        teacher_golden: the teacher's own distance to the truth; at 0 there is nothing to hack.
    Raises:
        ValueError: curves that differ in length, steps that do not rise, values that are negative or not finite, or a bad setting.
    """
    _check_curve(steps, proxy=proxy, golden=golden)
    if least_rise < 0:
        raise ValueError(f"least_rise: expected a number >= 0, got {least_rise}")
    if smooth < 1 or smooth % 2 == 0:
        raise ValueError(f"smooth: expected an odd number of at least 1, got {smooth}")
    p, g = (_smoothed(np.asarray(values, dtype=float), smooth) for values in (proxy, golden))
    onset = int(g.argmin())
    golden_rise, proxy_rise = (_rise(values[onset], values[-1]) for values in (g, p))
    hacked = golden_rise > least_rise >= proxy_rise and teacher_golden != 0
    verdict = "insufficient" if len(steps) < MIN_EVALUATIONS else "hacked" if hacked else "healthy"
    return Hacking(onset=steps[onset], lowest=float(g[onset]), golden_rise=golden_rise, proxy_rise=proxy_rise, verdict=verdict)


def _smoothed(values: np.ndarray, number: int) -> np.ndarray:
    half = number // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _rise(start: float, end: float) -> float:
    return float((end - start) / start) if start > 0 else math.inf if end > start else 0.0


def power_law_break(
    steps: Sequence[int],
    proxy: Sequence[float],
    *,
    window: float = 0.3,
    warmup: int = 0,
    num_spreads: float = 3.0,
    least_spread: float = 0.02,
    in_a_row: int = 3,
    offset: bool = False,
) -> PowerLaw:
    """Tell from the distance to the teacher alone when a run has left the power law of its beginning.

    Healthy runs follow P(k) = a k ** -b, a straight line of log P over log k. The line is fitted by least squares to an early window and
    goes on; evaluations in a row that lie above it by more than so many standard deviations of the window are a break. A sign, not a proof:
    a law with an offset flattens too, without hacking; fit it with `offset`.

    The paper observes the law; window, threshold and offset are our reconstruction.

    Args:
        steps: of the evaluations, rising, > 0; evenly spaced in the logarithm serves best.
        proxy: distance to the teacher at each, > 0, on training or on held-out prompts.
        window: share of the evaluations after the warm-up that is fitted, in (0, 1]; never fewer than `MIN_EVALUATIONS`.
        warmup: evaluations left out at the start.
        num_spreads: standard deviations, > 0.
        least_spread: of the logarithm, > 0: the standard deviation is taken to be at least this.
        in_a_row: evaluations, at least 1.
        offset: fit a k ** -b + c with b, c >= 0 instead, by non-linear least squares; needs scipy.
    Returns:
        The verdict is "insufficient", and nothing is fitted, where no `in_a_row` evaluations follow the window.
    Raises:
        ValueError: curves that differ in length, steps that do not rise, values that are not finite and > 0, or a bad setting.
        ImportError: scipy is missing (one line says what to install).
    """
    _check_curve(steps, proxy=proxy)
    check_positive(window=window, num_spreads=num_spreads, least_spread=least_spread)
    check_counts(in_a_row=in_a_row)
    if window > 1 or warmup < 0:
        raise ValueError(f"window, warmup: expected a share in (0, 1] and a number >= 0, got {window} and {warmup}")
    check_positive(steps=torch.tensor(steps), proxy=torch.tensor(proxy, dtype=torch.double))
    log_k, log_p = (np.log(np.asarray(values[warmup:], dtype=float)) for values in (steps, proxy))
    fitted = max(MIN_EVALUATIONS, math.ceil(window * len(log_k)))
    if len(log_k) < fitted + in_a_row:
        return PowerLaw(
            scale=math.nan, exponent=math.nan, offset=math.nan, spread=math.nan, residuals=(), broken_at=None, verdict="insufficient"
        )
    slope, intercept = np.polyfit(log_k[:fitted], log_p[:fitted], 1)
    scale, exponent, rest = math.exp(intercept), -float(slope), 0.0
    if offset:
        scale, exponent, rest = _with_offset(log_k[:fitted], log_p[:fitted], scale, exponent)
    residuals = log_p - np.log(scale * np.exp(-exponent * log_k) + rest)
    spread = float(np.sqrt((residuals[:fitted] ** 2).sum() / (fitted - (3 if offset else 2))))
    above = residuals > num_spreads * max(spread, least_spread)
    first = next((i for i in range(fitted, len(above) - in_a_row + 1) if above[i : i + in_a_row].all()), None)
    return PowerLaw(
        scale=scale,
        exponent=exponent,
        offset=rest,
        spread=spread,
        residuals=tuple(residuals.tolist()),
        broken_at=None if first is None else steps[warmup + first],
        verdict="straight" if first is None else "broken",
    )


def _with_offset(log_k: np.ndarray, log_p: np.ndarray, scale: float, exponent: float) -> tuple[float, float, float]:
    """Fit log(a k ** -b + c), from the straight line and from a line above an offset of half the smallest value."""
    optimize = require("scipy.optimize", extra="study", purpose="a power law with an offset")

    def residuals(values: np.ndarray) -> np.ndarray:
        return np.log(np.exp(values[0] - values[1] * log_k) + values[2]) - log_p

    least = float(np.exp(log_p.min()))
    slope, intercept = np.polyfit(log_k, np.log(np.exp(log_p) - least / 2), 1)
    bounds = ([-np.inf, 0.0, 0.0], np.inf)
    starts = ([math.log(scale), max(exponent, 0.0), 0.0], [intercept, max(-slope, 0.0), least / 2])
    best = min((optimize.least_squares(residuals, start, bounds=bounds, xtol=1e-14, ftol=1e-14) for start in starts), key=lambda f: f.cost)
    return math.exp(best.x[0]), float(best.x[1]), float(best.x[2])


def _check_curve(steps: Sequence[int], **curves: Sequence[float]) -> None:
    """Refuse steps that do not rise, and curves of another length or with values that are negative or not finite."""
    if not steps or any(b <= a for a, b in pairwise(steps)):
        raise ValueError(f"steps: expected at least one, rising, got {list(steps)}")
    for name, values in curves.items():
        if len(values) != len(steps):
            raise ValueError(f"{name}: expected {len(steps)} values like steps, got {len(values)}")
        wrong = [value for value in values if not (math.isfinite(value) and value >= 0)]
        if wrong:
            raise ValueError(f"{name}: expected finite numbers >= 0, got {wrong[0]}")
