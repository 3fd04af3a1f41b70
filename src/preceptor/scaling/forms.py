"""The laws that can be fitted, each as the logarithm of what it predicts with its derivatives.

A law is fitted in u = log x - mean(log x) over its points: centring takes most of the correlation between a coefficient and its exponent.
Parameters in the middle of a fit ("theta") belong to u; `natural` gives those of the paper's equation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from preceptor.catalog import nearest

Array = NDArray[np.float64]
Natural = dict[str, Array]
"""Parameters of a law's equation by name, all of one shape: () for one fit, (draws,) for a bootstrap."""

Box = tuple[float, float]
STEEPEST = 10.0  # largest exponent that is searched
CURVATURE: Box = (0.05, 10.0)  # of the log law; on an end the curvature is not identified


@dataclass(frozen=True, kw_only=True)
class TermLaw:
    """A sum of terms exp(c_k - sum_j p_kj log x_j), every one positive, fitted as a logsumexp.

    Hoffmann et al. 2022 (arXiv:2203.15556), Sec. D.2, for the joint law; the others are of the same kind.

    Args:
        name: what the command line calls it.
        equation: plain text.
        axes: names of the columns of x.
        terms: logarithmic coefficient -> exponent -> the axis it belongs to, by number; a constant has no exponent.
    """

    name: str
    equation: str
    axes: tuple[str, ...]
    terms: Mapping[str, Mapping[str, int]]
    delta: float = 1e-3  # threshold of the Huber loss: Hoffmann et al. 2022, Sec. D.2
    gains: bool = False  # whether higher is better

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names in theta: coefficients, then exponents."""
        return (*self.terms, *self.exponents)

    @property
    def exponents(self) -> tuple[str, ...]:
        """Names of the exponents."""
        return tuple(name for powers in self.terms.values() for name in powers)

    @property
    def axis_of(self) -> dict[str, int]:
        """Exponent -> its axis."""
        return {name: axis for powers in self.terms.values() for name, axis in powers.items()}

    def design(self, u: Array) -> Array:
        """What theta is multiplied with to give the logarithm of every term: (terms, n, parameters) for u (n, axes)."""
        table = np.zeros((len(self.terms), len(u), len(self.parameters)))
        for k, powers in enumerate(self.terms.values()):
            table[k, :, k] = 1.0
            for name, axis in powers.items():
                table[k, :, self.parameters.index(name)] = -u[:, axis]
        return table

    def predict_log(self, theta: Array, design: Array) -> tuple[Array, Array]:
        """Logarithm of the prediction (n,), and its derivatives (n, parameters)."""
        terms = design @ theta
        top = terms.max(0)
        shares = np.exp(terms - top)
        total = shares.sum(0)
        shares /= total
        return top + np.log(total), np.einsum("kn,knp->np", shares, design)

    def starts(self, u: Array, log_y: Array) -> Array:
        """The grid of starts, (starts, parameters): centred, coefficients need only the level of the losses."""
        level = log_y.mean() + np.array([-3.0, -1.5, -0.5, 0.0])
        powers = np.array([0.05, 0.2, 0.5, 1.0])
        return np.array(list(product(*([level] * len(self.terms)), *([powers] * len(self.exponents)))))

    def box(self, u: Array, log_y: Array, bounds: Mapping[str, Box]) -> list[Box]:
        """Limits of theta; ``bounds`` are in the units of the equation, equal ends fix a parameter."""
        constants = {name.upper(): name for name, powers in self.terms.items() if not powers}
        known = (*constants, *self.exponents)
        for name in bounds:
            if name not in known:
                raise ValueError(f"bounds: expected some of {', '.join(known)}, got {name!r}{nearest(name, known)}")
        given = {constants.get(name, name): _logs(name, box) if name in constants else box for name, box in bounds.items()}
        low, high = float(log_y.min()), float(log_y.max())
        wide = {name: (low - 12.0, high) if not powers else (low - 30.0, high + 10.0) for name, powers in self.terms.items()}
        wide |= dict.fromkeys(self.exponents, (0.0, STEEPEST))
        return [given.get(name, wide[name]) for name in self.parameters]

    def natural(self, theta: Array, centre: Array) -> Natural:
        """Coefficients A, B, E and exponents of the equation, from theta (..., parameters) and the mean (axes,) of log x."""
        values = dict(zip(self.parameters, np.moveaxis(theta, -1, 0), strict=True))
        found = {
            name.upper(): np.exp(values[name] + sum(values[power] * centre[axis] for power, axis in powers.items()))
            for name, powers in self.terms.items()
        }
        return found | {name: values[name] for name in self.exponents}


@dataclass(frozen=True, kw_only=True)
class LogLaw:
    """f = (log A + alpha log D)^beta in its well-conditioned form F (1 + k u)^beta, u = log D - mean(log D).

    Isik et al. 2024 (arXiv:2402.04177), Eq. 1, for BLEU, COMET, accuracy and the like; theta = (log F, log k, beta).
    Deviation: k is kept below the value at which the smallest point leaves the domain, in place of a penalty outside.
    """

    name: str = "log"
    equation: str = "score = (log A + alpha log D)^beta"
    axes: tuple[str, ...] = ("D",)
    delta: float = 0.1  # Sec. 3
    gains: bool = True

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names in theta."""
        return ("log_F", "log_k", "beta")

    @property
    def axis_of(self) -> dict[str, int]:
        """Exponent -> its axis."""
        return {"alpha": 0}

    def design(self, u: Array) -> Array:
        """u itself, (n,)."""
        return u[:, 0]

    def predict_log(self, theta: Array, design: Array) -> tuple[Array, Array]:
        """Logarithm of the prediction (n,), NaN outside the domain, and its derivatives (n, 3)."""
        log_f, log_k, beta = theta
        step = np.exp(log_k) * design
        inside = np.where(step > -1, 1 + step, np.nan)
        log = np.log(inside)
        return log_f + beta * log, np.stack([np.ones_like(log), beta * step / inside, log], axis=1)

    def starts(self, u: Array, log_y: Array) -> Array:
        """The grid of starts, (starts, 3)."""
        top = np.log(-1 / u.min())
        return np.array(list(product([log_y.mean()], top + np.log([0.02, 0.1, 0.5, 0.9]), [0.3, 0.7, 1.0, 1.8, 4.0])))

    def box(self, u: Array, log_y: Array, bounds: Mapping[str, Box]) -> list[Box]:
        """Limits of theta; only beta can be bounded."""
        for name in bounds:
            if name != "beta":
                raise ValueError(f"bounds: expected beta, got {name!r}")
        top = float(np.log(-1 / u.min()))
        return [(float(log_y.min()) - 5, float(log_y.max()) + 5), (top - 12.0, top + np.log(0.999)), bounds.get("beta", CURVATURE)]

    def natural(self, theta: Array, centre: Array) -> Natural:
        """F, k, beta and the paper's alpha and log A: with c = F^(1 / beta), alpha = c k and log A = c (1 - k mean(log D))."""
        log_f, log_k, beta = np.moveaxis(theta, -1, 0)
        k, scale = np.exp(log_k), np.exp(log_f / beta)
        return {"F": np.exp(log_f), "k": k, "beta": beta, "alpha": scale * k, "log_A": scale * (1 - k * centre[0])}


Form = TermLaw | LogLaw

POWER = TermLaw(name="power", equation="loss = A x^-alpha", axes=("x",), terms={"a": {"alpha": 0}})
POWER_CONSTANT = TermLaw(name="power-constant", equation="loss = E + A x^-alpha", axes=("x",), terms={"a": {"alpha": 0}, "e": {}})
SEPARABLE = TermLaw(
    name="separable",
    equation="loss = E + A N^-alpha + B D^-beta",
    axes=("N", "D"),
    terms={"a": {"alpha": 0}, "b": {"beta": 1}, "e": {}},
)
PRODUCT = TermLaw(
    name="product",
    equation="loss = E + A Ne^-p_e Nd^-p_d",
    axes=("Ne", "Nd"),
    terms={"a": {"p_e": 0, "p_d": 1}, "e": {}},
)
LAWS: dict[str, Form] = {law.name: law for law in (POWER, POWER_CONSTANT, SEPARABLE, PRODUCT, LogLaw())}
"""By the name that the command line takes."""


def _logs(name: str, box: Box) -> Box:
    if not 0 < box[0] <= box[1]:
        raise ValueError(f"bounds: expected 0 < low <= high for {name}, got {box}")
    return float(np.log(box[0])), float(np.log(box[1]))
