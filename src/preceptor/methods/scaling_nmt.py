"""Scaling laws of encoder-decoder models: loss as a product law of the encoder's and the decoder's size.

Paper: Ghorbani et al. 2021, Scaling Laws for Neural Machine Translation (arXiv:2109.07740, ICLR 2022).
Claim: one law in both sizes describes every way of scaling, and a law in the total of parameters does not; from it follows the best split
of a budget, which does not depend on the budget; whether loss buys quality depends on which side of the texts was written naturally.
Equation, with sizes in parameters without embeddings, against those of a baseline:
    L(Ne, Nd) = alpha (Ne0 / Ne)^p_e (Nd0 / Nd)^p_d + L_inf,   here E + A Ne^-p_e Nd^-p_d.
Best split of Ne + Nd = B: Ne = B p_e / (p_e + p_d), Nd likewise (`preceptor.scaling.answers.optimal_split`, `suboptimality`).
Deviations: no code was released and the paper's fit is not described; the fit is the robust one of `preceptor.scaling.fitting`. Test losses
go in as they are: take label smoothing out before. Corpus BLEU is computed elsewhere (sacreBLEU) and given as numbers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from preceptor.core.types import Card
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.translators import pairs, token_loss, trained_translator
from preceptor.scaling.fitting import fit
from preceptor.scaling.forms import POWER_CONSTANT, PRODUCT, Array, Form

CARD = Card(
    slug="scaling-nmt",
    title="Scaling laws, NMT: loss as a law of encoder and decoder size",
    authors="Ghorbani et al. 2021",
    arxiv="2109.07740",
    kind="measurement",
    tasks=("scaling",),
    needs=(),
    equation="L(Ne, Nd) = alpha (Ne0 / Ne)^p_e (Nd0 / Nd)^p_d + L_inf; best share of the encoder p_e / (p_e + p_d)",
    cost="a fit of 20 runs takes half a second; the runs themselves are what costs",
    headline="models of 0.1 to 3.5 billion parameters: one fit explains over 99 % of the variance and predicts other ways of scaling",
)

NOISE = 0.003
"""Nats: seed-to-seed noise that the paper reports; smaller differences are noise."""


def baseline_loss(parameters: Mapping[str, float], encoder: float, decoder: float) -> float:
    """The paper's alpha, the reducible loss of a baseline with these sizes: A Ne0^-p_e Nd0^-p_d."""
    return parameters["A"] * encoder ** -parameters["p_e"] * decoder ** -parameters["p_d"]


def count_sides(
    model: nn.Module, *, encoder: str = "encoder", decoder: str = "decoder", without: Collection[str] = ("embed",)
) -> tuple[int, int]:
    """Parameters of encoder and decoder by the beginnings of their names, shared ones once.

    Args:
        model: any module.
        encoder, decoder: the first part of the names, such as "model.encoder".
        without: parameters with one of these in their names are left out: embeddings, in any layer.
    Raises:
        ValueError: a side without parameters: the law is not defined for it.
    """
    counts = []
    for side in (encoder, decoder):
        named = [
            p.numel() for name, p in model.named_parameters() if name.startswith(f"{side}.") and not any(word in name for word in without)
        ]
        if not named:
            raise ValueError(f"model: expected parameters whose names begin with {side!r}, got none")
        counts.append(sum(named))
    return counts[0], counts[1]


def rising(sizes: ArrayLike, loss: ArrayLike, *, noise: float = NOISE) -> tuple[int, ...]:
    """Rows whose loss is higher, by more than the noise, than that of a run no larger on either side: underfitted or overfitted ones."""
    x, values = np.asarray(sizes, dtype=float), np.asarray(loss, dtype=float)
    smaller = (x[None] <= x[:, None]).all(-1) & (x[None] < x[:, None]).any(-1)
    return tuple(np.flatnonzero((smaller & (values[None] < values[:, None] - noise)).any(1)).tolist())


def leave_one_out(form: Form, x: ArrayLike, loss: ArrayLike, *, starts: int = 12) -> Array:
    """|log prediction - log loss| of every run from a fit to the others, (n,)."""
    points, values = np.asarray(x, dtype=float), np.asarray(loss, dtype=float)
    rows = np.arange(len(values))
    return np.array(
        [
            abs(math.log(fit(form, points[rows != i], values[rows != i], starts=starts).predict(points[i : i + 1])[0] / values[i]))
            for i in rows
        ]
    )


class Quality(NamedTuple):
    """BLEU = c L^-p, for test sets whose target side was written naturally."""

    c: float
    p: float


def quality_law(loss: ArrayLike, bleu: ArrayLike) -> Quality:
    """Fit BLEU = c L^-p by least squares of logarithms (Sec. 4).

    Raises:
        ValueError: numbers that are not above 0, or fewer than 3.
    """
    x, y = np.asarray(loss, dtype=float), np.asarray(bleu, dtype=float)
    if len(x) < 3 or len(x) != len(y) or not ((x > 0) & (y > 0)).all():
        raise ValueError(f"loss, bleu: expected at least 3 pairs of numbers above 0, got {len(x)} and {len(y)}")
    slope, level = np.polyfit(np.log(x), np.log(y), 1)
    return Quality(float(np.exp(level)), float(-slope))


def saturation(loss: ArrayLike, bleu: ArrayLike) -> float | None:
    """The loss below which BLEU stops improving: a broken line against a straight one by AICc, breaks at the losses themselves.

    For source-original test sets, whose target side is a translation. AICc = n log(RSS / n) + 2 k + 2 k (k + 1) / (n - k - 1), k = 3
    for the line (two coefficients, the variance) and 5 for the broken one.

    Returns:
        The break where the broken line wins and BLEU rises less per nat below it than above; None where it does not saturate.
    Raises:
        ValueError: fewer than 8 points.
    """
    x, y = np.asarray(loss, dtype=float), np.asarray(bleu, dtype=float)
    n = len(x)
    if n < 8:
        raise ValueError(f"loss: expected at least 8 points to look for a break, got {n}")

    def solved(columns: Sequence[Array], k: int) -> tuple[float, list[float]]:
        table = np.column_stack([np.ones(n), *columns])
        slopes = np.linalg.lstsq(table, y, rcond=None)[0]
        left = max(float(((table @ slopes - y) ** 2).sum()), 1e-12 * n)
        return n * math.log(left / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1), slopes.tolist()

    straight = solved([x], 3)[0]
    breaks = np.sort(x)[2:-2]
    score, slopes, at = min((*solved([x, np.maximum(x - point, 0)], 5), point) for point in breaks)
    return float(at) if score < straight and abs(slopes[1]) < abs(slopes[1] + slopes[2]) else None


class Composition(NamedTuple):
    """One row of `composition_table`."""

    train: str
    test: str
    p_sum: float  # p_e + p_d: how fast loss falls with symmetric scaling
    reducible: float  # share of the largest run's loss that scaling could still take away


def composition_table(runs: Sequence[tuple[str, str, float, float, float]]) -> list[Composition]:
    """One law per composition of training and test data: natural, human-translated or machine-made targets (Sec. 4.2).

    Args:
        runs: (train, test, Ne, Nd, loss).
    Raises:
        ValueError: a group that identifies no law.
    """
    table = []
    for train, test in dict.fromkeys((train, test) for train, test, *_ in runs):
        rows = np.array([numbers for a, b, *numbers in runs if (a, b) == (train, test)], dtype=float)
        law = fit(PRODUCT, rows[:, :2], rows[:, 2])
        left = 1 - float(law.natural["E"]) / float(law.predict(rows[:, :2]).min())
        table.append(Composition(train, test, float(law.natural["p_e"] + law.natural["p_d"]), left))
    return table


_TRUTH = {"A": 0.8, "p_e": 0.18, "p_d": 0.31, "E": 1.2}  # A at the baseline, whose sizes are 1
_LAYERS = np.array([2, 4, 6, 8, 12, 16, 24, 48, 64]) / 6


def miniature(seed: int, size: Size) -> Miniature:
    """A law whose truth is known, from two sweeps to symmetric models; and GRUs that sort digits, 16 pairs of widths.

    ``mixed_error`` is the largest error in nats on symmetric models of up to 16 times the baseline's size, from 17 runs of 2 to 64 layers
    on one side, with noise of 0.003 nats. ``runs_error`` is the mean |log prediction - log loss| of every GRU run from the other 15.
    A note says what it costs symmetric models, in loss on natural targets, when the smallest one wrote half of their training targets.
    """
    rng = np.random.default_rng(seed)
    sweeps = np.array([[n, 1.0] for n in _LAYERS] + [[1.0, n] for n in _LAYERS if n != 1])
    mixed = np.array([[c, c] for c in (2.0, 4.0, 8.0, 16.0)])
    loss, truth = _loss(sweeps) + NOISE * rng.standard_normal(len(sweeps)), _loss(mixed)
    sizes, measured, gaps = _grid(seed, size)
    starts = 12 if size == "full" else 3
    product, total = fit(PRODUCT, sweeps, loss, starts=starts), fit(POWER_CONSTANT, sweeps.sum(1), loss, starts=starts)
    means = np.abs(np.log((measured.sum() - measured) / (len(measured) - 1) / measured))
    arms = {
        "untrained-mean": (np.full(4, loss.mean()), means),
        "total": (total.predict(mixed.sum(1)), leave_one_out(POWER_CONSTANT, sizes.sum(1), measured, starts=starts)),
        "scaling-nmt": (product.predict(mixed), leave_one_out(PRODUCT, sizes, measured, starts=starts)),
    }
    claims: tuple[tuple[str, str, Literal["mixed_error", "runs_error"]], ...] = (
        ("the law in both sizes foretells symmetric scaling better than a law in the total", "total", "mixed_error"),
        ("on models that sort digits it describes runs left out better than a law in the total", "total", "runs_error"),
        ("and better than the mean loss of the others", "untrained-mean", "runs_error"),
    )
    return Miniature(
        arms={
            name: {"mixed_error": float(np.abs(predicted - truth).max()), "runs_error": float(errors.mean())}
            for name, (predicted, errors) in arms.items()
        },
        claims=tuple(
            Claim(name=name, method="scaling-nmt", baseline=baseline, metric=metric, direction="lower") for name, baseline, metric in claims
        ),
        notes=(
            "16 pairs of widths of encoder and decoder, every one trained on the same fresh pairs of 8 digits",
            *[f"seed {seed}, machine-made targets cost {', '.join(f'{gap:+.3f} nats at width {width}' for width, gap in gaps.items())}"]
            * bool(gaps),
        ),
    )


def _loss(sizes: Array) -> Array:
    return _TRUTH["A"] * sizes[:, 0] ** -_TRUTH["p_e"] * sizes[:, 1] ** -_TRUTH["p_d"] + _TRUTH["E"]


def _grid(seed: int, size: Size) -> tuple[Array, Array, dict[int, float]]:
    """Sizes (16, 2) and test losses of GRUs, and how much higher the loss of symmetric ones is with machine-made targets."""
    steps, tested, widths = (240, 1000, (4, 8, 16, 32)) if size == "full" else (3, 50, (4, 8, 16))
    test, found, made = pairs(tested, 10**6), {}, {}
    for encoder in widths if size == "full" else widths[:2]:
        for decoder in widths:
            made[encoder, decoder] = trained_translator(encoder, decoder, steps=steps, seed=seed)
            found[encoder, decoder] = token_loss(made[encoder, decoder], test)
    writer, gaps = made[widths[0], widths[0]], {}
    for width in widths if size == "full" else ():
        model = trained_translator(width, width, steps=steps, seed=seed, writer=writer)
        gaps[width] = token_loss(model, test) - found[width, width]
    return np.array([count_sides(model) for model in made.values()], dtype=float), np.array(list(found.values())), gaps
