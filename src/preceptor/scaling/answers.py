"""What a fitted law says: sizes for a loss, the best use of a budget, and how far off a share of it is. Closed forms.

Parameters are numbers or arrays (draws,) by name, as `preceptor.scaling.fitting.Fit.natural` gives them, so that the same functions make
intervals. A loss at or below the irreducible one takes an infinite size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = Mapping[str, Any]

FLOPS = 6.0
"""FLOP per parameter and token of training, 2 forward and 4 backward: Kaplan et al. 2020 (arXiv:2001.08361), Sec. 2.1."""


class Optimum(NamedTuple):
    """The sizes that a budget buys best, and the loss there; arrays where the parameters are."""

    first: NDArray[np.float64]  # N, or Ne
    second: NDArray[np.float64]  # D, or Nd
    loss: NDArray[np.float64]


def size_for(parameters: Numbers, loss: ArrayLike) -> NDArray[np.float64]:
    """x with E + A x^-alpha = loss: x = (A / (loss - E))^(1 / alpha)."""
    return _size(parameters["A"], parameters["alpha"], np.asarray(loss) - parameters.get("E", 0.0))


def compute_optimal(parameters: Numbers, compute: ArrayLike, *, flops: float = FLOPS) -> Optimum:
    """N and D of the least loss with flops N D = compute: Hoffmann et al. 2022 (arXiv:2203.15556), Eq. 4.

    N = G (C / 6)^(beta / (alpha + beta)), D = (C / 6) / N, G = (alpha A / (beta B))^(1 / (alpha + beta)).

    Args:
        parameters: A, alpha, B, beta, E of the separable law.
        compute: FLOP > 0.
        flops: per parameter and token.
    """
    a, alpha, b, beta = (np.asarray(parameters[name], dtype=float) for name in ("A", "alpha", "B", "beta"))
    budget = np.log(np.asarray(compute, dtype=float) / flops)
    with np.errstate(divide="ignore"):  # an exponent of 0: everything goes to the other size
        tilt = np.log(alpha * a) - np.log(beta * b)
    log_n, log_d = (beta * budget + tilt) / (alpha + beta), (alpha * budget - tilt) / (alpha + beta)
    return Optimum(np.exp(log_n), np.exp(log_d), parameters["E"] + np.exp(np.log(a) - alpha * log_n) + np.exp(np.log(b) - beta * log_d))


def compute_for(parameters: Numbers, loss: ArrayLike, *, flops: float = FLOPS) -> NDArray[np.float64]:
    """The least compute that reaches a loss, FLOP: L_opt(C) - E falls as C^(-alpha beta / (alpha + beta))."""
    one = compute_optimal({**parameters, "E": 0.0}, flops, flops=flops).loss
    alpha, beta = (np.asarray(parameters[name], dtype=float) for name in ("alpha", "beta"))
    return flops * _size(one, alpha * beta / (alpha + beta), np.asarray(loss) - parameters["E"])


def best_share(parameters: Numbers, *, costs: tuple[float, float] = (1.0, 1.0)) -> NDArray[np.float64]:
    """The encoder's share Ne / (Ne + Nd) of the product law's optimum; costs are per parameter of encoder and decoder, > 0."""
    encoder, decoder = np.asarray(parameters["p_e"]) / costs[0], np.asarray(parameters["p_d"]) / costs[1]
    return encoder / (encoder + decoder)


def optimal_split(parameters: Numbers, budget: ArrayLike, *, costs: tuple[float, float] = (1.0, 1.0)) -> Optimum:
    """Ne and Nd of the least loss with costs[0] Ne + costs[1] Nd = budget: Ne = budget p_e / (costs[0] (p_e + p_d)), Nd likewise.

    Ghorbani et al. 2021 (arXiv:2109.07740), Sec. 3.3, whose costs are 1. Without a budget in it, the split depends on no other parameter.

    Args:
        parameters: A, p_e, p_d, E of the product law.
        budget: parameters, or what they cost.
        costs: of one parameter of the encoder and of the decoder, > 0.
    """
    p_e, p_d = np.asarray(parameters["p_e"], dtype=float), np.asarray(parameters["p_d"], dtype=float)
    encoder = np.asarray(budget) * p_e / (costs[0] * (p_e + p_d))
    decoder = np.asarray(budget) * p_d / (costs[1] * (p_e + p_d))
    return Optimum(encoder, decoder, parameters["E"] + parameters["A"] * encoder**-p_e * decoder**-p_d)


def budget_for(parameters: Numbers, loss: ArrayLike, *, costs: tuple[float, float] = (1.0, 1.0)) -> NDArray[np.float64]:
    """The least Ne + Nd (or its cost) that reaches a loss."""
    one = optimal_split({**parameters, "E": 0.0}, 1.0, costs=costs).loss
    return _size(one, np.asarray(parameters["p_e"]) + parameters["p_d"], np.asarray(loss) - parameters["E"])


def suboptimality(parameters: Numbers, share: ArrayLike) -> NDArray[np.float64]:
    """What the reducible loss is multiplied by when the encoder has another share s in (0, 1) of the same budget.

    (s* / s)^p_e ((1 - s*) / (1 - s))^p_d >= 1, with equality at the best share s*.
    """
    best, given = best_share(parameters), np.asarray(share, dtype=float)
    return (best / given) ** parameters["p_e"] * ((1 - best) / (1 - given)) ** parameters["p_d"]


def share_interval(parameters: Numbers, *, factor: float = 1.05) -> tuple[float, float]:
    """The shares of the encoder within which `suboptimality` stays below ``factor`` > 1, to 1e-4."""
    shares = np.linspace(1e-4, 1 - 1e-4, 9999)
    good = shares[suboptimality(parameters, shares) < factor]
    return float(good[0]), float(good[-1])


def data_for(parameters: Numbers, score: ArrayLike) -> NDArray[np.float64]:
    """D at which the log law F (1 + k u)^beta reaches a score: log D = (score^(1 / beta) - log A) / alpha."""
    power = np.asarray(score, dtype=float) ** (1 / np.asarray(parameters["beta"]))
    with np.errstate(over="ignore"):
        return np.exp((power - parameters["log_A"]) / parameters["alpha"])


def _size(coefficient: Any, exponent: Any, reducible: Any) -> NDArray[np.float64]:
    """(coefficient / reducible)^(1 / exponent); infinite where nothing reducible is left or the exponent is 0."""
    left = np.asarray(reducible, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size = np.exp((np.log(coefficient) - np.log(np.where(left > 0, left, np.nan))) / exponent)
    return np.where(left > 0, size, np.inf)
