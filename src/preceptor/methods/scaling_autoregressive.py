"""Scaling laws of autoregressive models: a power law plus a constant, fitted robustly, read off and extrapolated.

Paper: Henighan et al. 2020, Scaling Laws for Autoregressive Generative Modeling (arXiv:2010.14701).
Claim: in every domain the loss falls with size, compute or data as a power law plus a constant, so that small models foretell large ones;
the constant estimates the entropy of the data and the rest KL(data || model); the best size grows as C^0.7.
Equation, with x parameters without embeddings, compute or data:
    L(x) = L_inf + (x0 / x)^alpha,   here E + A x^-alpha with E = L_inf and A = x0^alpha.
The fit is that of `preceptor.scaling.fitting`, the joint law of size and data (Hoffmann et al. 2022, arXiv:2203.15556) is the form
``separable``; both are shared with `scaling-nmt` and `scaling-downstream`, and ``preceptor scaling fit`` is their command.
Deviations: the paper does not say how it fits; ours is the robust fit of Besiroglu et al. 2024 (arXiv:2404.10102). The exponent 0.7 of
the best size is superseded (Hoffmann et al. 2022: 0.5, sizes and data grow alike); both can be had, the old one with a warning.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from preceptor.core.types import Card
from preceptor.miniature.byte_models import byte_model, judge, learn, library, places
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.scaling.answers import FLOPS
from preceptor.scaling.fitting import Fit, fit
from preceptor.scaling.foresight import straight_line
from preceptor.scaling.forms import POWER_CONSTANT, Array

CARD = Card(
    slug="scaling-autoregressive",
    title="Scaling laws, autoregressive: power-law-plus-constant losses, fitted and extrapolated",
    authors="Henighan et al. 2020",
    arxiv="2010.14701",
    kind="measurement",
    tasks=("scaling",),
    needs=(),
    equation="L(x) = L_inf + (x0 / x)^alpha; jointly L(N, D) = E + A N^-alpha + B D^-beta",
    cost="a fit of 245 points takes a second, 1,000 bootstrap draws some five more; the runs themselves are what costs",
    headline="images, video, image and text, mathematics: all follow the law; best size grows as C^0.7 (since revised to C^0.5)",
)

PF_DAY = 8.64e19
"""FLOP of a petaflop-day."""


class Growth(NamedTuple):
    """A power law y = scale x^exponent."""

    exponent: float
    scale: float


def reducible_share(loss: ArrayLike, irreducible: float) -> Array:
    """The part of a loss that a larger model could still take away, 1 - L_inf / L."""
    return 1 - irreducible / np.asarray(loss, dtype=float)


def frontier(compute: ArrayLike, size: ArrayLike, loss: ArrayLike) -> Growth:
    """How the best size grows with compute, from learning curves of several sizes: Sec. 3.2, N_opt = (C / C0)^beta.

    The lower envelope keeps the points that no other beats with as much compute or less; a line through log N against log C is its growth.
    Points of the smallest and the largest size are left out: beyond them there is no other size to be best.

    Args:
        compute, size, loss: (n,), of all points of all curves.
    Raises:
        ValueError: what is left of the envelope spans less than a decade of compute, or is of one size.
    """
    c, n, values = (np.asarray(part, dtype=float) for part in (compute, size, loss))
    order = np.lexsort((values, c))
    best = np.minimum.accumulate(values[order])
    kept = order[np.concatenate([[True], best[1:] < best[:-1]])]
    kept = kept[(n[kept] > n.min()) & (n[kept] < n.max())]
    if len(set(n[kept])) < 2 or c[kept].max() < 10 * c[kept].min():
        raise ValueError(f"compute: expected an envelope of inner sizes over a decade, got {len(kept)} points of {len(set(n[kept]))} sizes")
    slope, level = np.polyfit(np.log(c[kept]), np.log(n[kept]), 1)
    return Growth(float(slope), float(np.exp(level)))


def best_size(compute: ArrayLike, *, known: tuple[float, float], rule: Literal["hoffmann", "henighan"] = "hoffmann") -> tuple[Array, Array]:
    """Parameters and tokens for a budget, from one budget whose best size is known, without a fit.

    Args:
        compute: FLOP.
        known: compute and the best number of parameters there.
        rule: N grows as C^0.5 (Hoffmann et al. 2022), or as C^0.7 (this paper, superseded).
    Returns:
        N and D = C / (6 N).
    """
    if rule not in ("hoffmann", "henighan"):
        raise ValueError(f"rule: expected 'hoffmann' or 'henighan', got {rule!r}")
    if rule == "henighan":
        warnings.warn("N ~ C^0.7 is superseded: Hoffmann et al. 2022 found C^0.5", stacklevel=2)
    budget = np.asarray(compute, dtype=float)
    size = known[1] * (budget / known[0]) ** (0.7 if rule == "henighan" else 0.5)
    return size, budget / (FLOPS * size)


def crossing(of_compute: Fit, of_data: Fit, data: Growth, *, within: tuple[float, float] = (1.0, 1e40)) -> float | None:
    """The compute at which L(C) falls below L(D(C)): beyond it the two laws contradict each other, so one breaks before. Sec. 6.

    Args:
        of_compute, of_data: laws of one size, fitted to compute and to data.
        data: how the data of the best training grow with compute.
        within: where to look.
    Returns:
        FLOP, to 1e-9 of its logarithm; None where the curves do not cross.
    """

    def gap(log_c: float) -> float:
        c = math.exp(log_c)
        return float(of_compute.predict([c])[0] - of_data.predict([data.scale * c**data.exponent])[0])

    grid = np.linspace(math.log(within[0]), math.log(within[1]), 400).tolist()
    above = np.array([gap(point) > 0 for point in grid])
    turns = np.flatnonzero(above[:-1] & ~above[1:])
    if not len(turns):
        return None
    low, high = grid[turns[0]], grid[turns[0] + 1]
    while high - low > 1e-9 * abs(high):
        middle = (low + high) / 2
        low, high = (middle, high) if gap(middle) > 0 else (low, middle)
    return math.exp(high)


def information_growth(size: ArrayLike, loss: ArrayLike, given_image: ArrayLike) -> tuple[float, float]:
    """How the information between captions and images grows: Sec. 5, I(N) / L_text(N) = lambda log(N / N_c), by least squares on log N.

    Args:
        size: (n,).
        loss: (n,), nats per caption without the image.
        given_image: (n,), on the same captions with it; the difference is the mutual information.
    Returns:
        lambda and N_c.
    """
    alone = np.asarray(loss, dtype=float)
    slope, level = np.polyfit(np.log(np.asarray(size, dtype=float)), 1 - np.asarray(given_image, dtype=float) / alone, 1)
    return float(slope), float(np.exp(-level / slope))


def beyond_training(elsewhere: ArrayLike, loss: ArrayLike, size: ArrayLike) -> tuple[float, float]:
    """Whether loss on other data follows the loss on the training distribution or the size: Sec. 4.

    Returns:
        Slopes of ``elsewhere`` on the loss and on log size, by least squares; the paper's finding is a second slope of about 0.
    """
    columns = np.column_stack([np.ones(len(np.asarray(loss))), np.asarray(loss, dtype=float), np.log(np.asarray(size, dtype=float))])
    found = np.linalg.lstsq(columns, np.asarray(elsewhere, dtype=float), rcond=None)[0]
    return float(found[1]), float(found[2])


_E, _ALPHA, _X0 = 2.0, 0.24, 1e3
_WIDTHS = (2, 4, 8, 16, 32, 64)


def miniature(seed: int, size: Size) -> Miniature:
    """A law whose truth is known, one run of it gone wrong; and byte models of 2 to 64 units, the largest to be foretold.

    Twelve sizes from 1e4 to 1e9 of L = 2 + (1e3 / x)^0.24 with noise of 0.3 %, one loss 1.3 times too high. ``exponent_error`` and
    ``floor_error`` are distances from 0.24 and 2, ``foresight_error`` |predicted / true - 1| at 1e10, where nothing was measured.
    ``bytes_error`` is |predicted / measured - 1| of the model with 64 units, from the five smaller ones, all trained on source code.
    """
    rng = np.random.default_rng(seed)
    x = np.geomspace(1e4, 1e9, 12)
    loss = (_E + (_X0 / x) ** _ALPHA) * np.exp(0.003 * rng.standard_normal(12))
    loss[rng.integers(1, 11)] *= 1.3
    sizes, measured = _ladder(seed, size)
    known, real = (x, loss), (sizes[:-1], measured[:-1])
    starts = 48 if size == "full" else 4
    robust, squares = ([fit(POWER_CONSTANT, *part, delta=delta, starts=starts) for part in (known, real)] for delta in (None, math.inf))
    ends = np.array([[1e10], sizes[-1:]])
    line = [float(straight_line(*part, end)[0]) for part, end in zip((known, real), ends, strict=True)]
    slope = float(np.polyfit(np.log(x), np.log(loss), 1)[0])

    def arm(exponent: float, floor: float, far: float, byte: float) -> dict[str, float]:
        return {
            "exponent_error": abs(exponent - _ALPHA),
            "floor_error": float(abs(floor - _E)),
            "foresight_error": float(abs(far / (_E + (_X0 / 1e10) ** _ALPHA) - 1)),
            "bytes_error": float(abs(byte / measured[-1] - 1)),
        }

    arms = {"untrained-last": arm(0.0, loss[-1], loss[-1], measured[-2]), "line": arm(-slope, 0.0, *line)}
    for name, laws in (("least-squares", squares), ("scaling-autoregressive", robust)):
        first = {key: float(value) for key, value in laws[0].natural.items()}
        arms[name] = arm(first["alpha"], first["E"], *(float(law.predict(end)[0]) for law, end in zip(laws, ends, strict=True)))
    claims = (
        ("with one run gone wrong the robust fit finds the exponent better than least squares", "least-squares", "exponent_error"),
        ("it foretells a model ten times larger better than a straight line", "line", "foresight_error"),
        ("it foretells the largest byte model better than the loss of the one before", "untrained-last", "bytes_error"),
    )
    return Miniature(
        arms=arms,
        claims=tuple(
            Claim(name=name, method="scaling-autoregressive", baseline=baseline, metric=metric, direction="lower")
            for name, baseline, metric in claims
        ),
        notes=(f"byte models of {', '.join(map(str, _WIDTHS))} units, {800 if size == 'full' else 10} updates of 128 places each",),
    )


def _ladder(seed: int, size: Size) -> tuple[Array, Array]:
    """Sizes and test losses of byte models, all on the same places of the library's source code."""
    steps, tested = (800, 20_000) if size == "full" else (10, 500)
    train, test = library()
    at, judged = places(train, steps * 128, seed), places(test, tested, 0)
    found = []
    for width in _WIDTHS:
        model = byte_model(width, seed)
        learn(model, train, at, steps=steps)
        found.append((model.size, judge(model, test, judged)[0]))
    return tuple(np.array(found, dtype=float).T)  # pyright: ignore[reportReturnType]
