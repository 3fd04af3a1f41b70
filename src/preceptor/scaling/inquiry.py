"""Fit a law to points, question it, and gather everything as the plain values of a ``result.json``."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from preceptor.scaling import answers
from preceptor.scaling.curves import FAR, draw, plain
from preceptor.scaling.fitting import Fit, bootstrap, drop_highest, fit
from preceptor.scaling.foresight import foresight
from preceptor.scaling.forms import LAWS, Box, Natural, TermLaw
from preceptor.scaling.points import Points

Measures = dict[str, Callable[[Natural], Any]]
"""What an answer tells: a quantity -> how it follows from the parameters."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What to ask of a law. Amounts are numbers as text, or times the largest run: ``10x``.

    Attributes:
        targets: losses (for the law log: scores) to reach: what size?
        at: sizes, such as ``1e9``, ``10x`` or ``N=1e9,D=2e10``: what loss?
        budgets: compute in FLOP, for the law product parameters in all: what loss, and how is it spent best?
        costs: of one parameter of encoder and decoder, for the law product.
    """

    targets: Sequence[float] = ()
    at: Sequence[str] = ()
    budgets: Sequence[str] = ()
    costs: tuple[float, float] = (1.0, 1.0)


def inquire(
    points: Points,
    law: str,
    *,
    x: str = "N",
    questions: Questions | None = None,
    draws: int = 1000,
    seed: int = 0,
    drop: int = 0,
    holdout: float = 0.2,
    delta: float | None = None,
    bounds: Mapping[str, Box] | None = None,
    title: str = "",
) -> dict[str, Any]:
    """Fit, bootstrap, hold out, answer.

    Args:
        points: see `preceptor.scaling.points.read_points`.
        law: a name of `preceptor.scaling.forms.LAWS`.
        x: quantity that a law with one axis is of, "N", "D" or "C".
        questions: see `Questions`.
        draws: of the bootstrap; 0 leaves intervals out.
        seed: of the bootstrap.
        drop: leave out so many points with the highest loss.
        holdout: share of the largest sizes that the check of foresight holds out.
        delta, bounds: see `preceptor.scaling.fitting.fit`.
        title: of the report.
    Returns:
        Plain JSON values.
    Raises:
        ValueError: one line, of points or questions that do not pass.
    """
    form, asked = LAWS[law], questions or Questions()
    sizes, names = points.sizes(form, x)
    values = points.column("score" if form.gains else "loss")
    strata = points.strata() if not drop else None
    if drop:
        sizes, values = drop_highest(sizes, values, drop)
    found = fit(form, sizes, values, delta=delta, bounds=bounds)
    if draws:
        found = bootstrap(found, draws=draws, seed=seed, strata=strata)
    inquiry = _Inquiry(found, names, points, drop, draws, seed, asked.costs)
    replies = [*map(inquiry.target, asked.targets), *map(inquiry.at, asked.at), *map(inquiry.budget, asked.budgets)]
    seen = foresight(form, sizes, values, share=holdout, delta=delta, bounds=bounds)
    parameters = {
        name: _ends(found.interval(lambda p, name=name: p[name]) if not np.isnan(value) else None) | {"value": plain(value)}
        for name, value in found.parameters.items()
    }
    return {
        "kind": "scaling",
        "title": title or f"{form.equation.split(' ')[0].capitalize()} of {len(values)} runs: the law {law}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "law": law,
        "equation": form.equation.replace("x^", f"{names[0]}^"),
        "quantities": list(names),
        "of": "score" if form.gains else "loss",
        "points": {"x": sizes.tolist(), "y": values.tolist(), "dropped": drop, "predicted": found.predict(sizes).tolist()},
        "parameters": parameters,
        "objective": found.objective,
        "delta": found.delta,
        "r_squared": plain(found.r_squared),
        "residual": float(np.abs(found.residuals).mean()),
        "draws": 0 if found.samples is None else draws,
        "foresight": None if seen is None else asdict(seen),
        "answers": replies,
        "charts": draw(found, names, costs=asked.costs),
        "warnings": list(found.warnings),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("preceptor", "numpy", "scipy")},
    }


class _Inquiry:
    """The questions, put to one fit."""

    def __init__(
        self, found: Fit, names: tuple[str, ...], points: Points, drop: int, draws: int, seed: int, costs: tuple[float, float]
    ) -> None:
        self.found, self.names, self.points, self.drop, self.draws, self.seed = found, names, points, drop, draws, seed
        self.costs, self.law = costs, found.form.name
        self.of = "score" if found.form.gains else "loss"

    def target(self, value: float) -> dict[str, Any]:
        """What size reaches a loss?"""
        costs = self.costs
        measures: Measures
        if self.law == "separable":
            measures = {"N": lambda p: answers.compute_optimal(p, answers.compute_for(p, value)).first}
            measures["D"] = lambda p: answers.compute_optimal(p, answers.compute_for(p, value)).second
            measures["C"] = lambda p: answers.compute_for(p, value)
        elif self.law == "product":
            measures = {"Ne": lambda p: answers.optimal_split(p, answers.budget_for(p, value, costs=costs), costs=costs).first}
            measures["Nd"] = lambda p: answers.optimal_split(p, answers.budget_for(p, value, costs=costs), costs=costs).second
            measures["budget"] = lambda p: answers.budget_for(p, value, costs=costs)
        elif self.law == "log":
            measures = {"D": lambda p: answers.data_for(p, value)}
        else:
            measures = {self.names[0]: lambda p: answers.size_for(p, value)}
        return self._reply(self.found, f"What {' and '.join(self.names)} for a {self.of} of {value:g}?", measures)

    def at(self, given: str) -> dict[str, Any]:
        """What loss at a size?"""
        words = (part.partition("=") for part in given.split(","))
        parts = {name: size for name, _, size in words} if "=" in given else {self.names[0]: given}
        if set(parts) != set(self.names):
            raise ValueError(f"at: expected {', '.join(f'{name}=SIZE' for name in self.names)}, got {given!r}")
        sizes = np.array([[_amount("at", parts[name], self.found.x[:, axis].max()) for axis, name in enumerate(self.names)]])
        where = ", ".join(f"{name} = {size:.4g}" for name, size in zip(self.names, sizes[0], strict=True))
        low_high = self.found.band(sizes)
        value = {"value": plain(float(self.found.predict(sizes)[0]))}
        ends = _ends(None if low_high is None else (float(low_high[0, 0]), float(low_high[1, 0])))
        far = bool((sizes > FAR * self.found.x.max(0)).any())
        return {"question": f"What {self.of} at {where}?", "values": {self.of: value | ends}, "bold": far}

    def budget(self, given: str) -> dict[str, Any]:
        """What loss does a budget buy?"""
        costs, found, measures = self.costs, self.found, Measures()
        if self.law == "product":
            largest = float((found.x * np.array(costs)).sum(1).max())
            amount = _amount("compute", given, largest)
            measures["Ne"] = lambda p: answers.optimal_split(p, amount, costs=costs).first
            measures["Nd"] = lambda p: answers.optimal_split(p, amount, costs=costs).second
            measures["loss"] = lambda p: answers.optimal_split(p, amount, costs=costs).loss
            return self._reply(found, f"What loss with a budget of {amount:.4g}, split at best?", measures, amount > FAR * largest)
        if self.law == "separable":
            largest = float(answers.FLOPS * found.x.prod(1).max())
            amount = _amount("compute", given, largest)
            measures["N"] = lambda p: answers.compute_optimal(p, amount).first
            measures["D"] = lambda p: answers.compute_optimal(p, amount).second
            measures["loss"] = lambda p: answers.compute_optimal(p, amount).loss
            return self._reply(found, f"What loss with {amount:.4g} FLOP, spent at best?", measures, amount > FAR * largest)
        if not isinstance(found.form, TermLaw):
            raise ValueError(f"compute: expected a law of losses, got {self.law}: ask --at {given}")
        if self.names[0] != "C":
            if not self.points.has("C"):
                raise ValueError(f"compute: expected a column of compute, or N and D, in {self.points.source}, got neither")
            compute, loss = self.points.column("C"), self.points.column("loss")
            if self.drop:
                compute, loss = drop_highest(compute, loss, self.drop)
            found = fit(found.form, compute, loss, delta=found.delta)
            found = bootstrap(found, draws=self.draws, seed=self.seed) if self.draws else found
        largest = float(found.x.max())
        amount = _amount("compute", given, largest)
        measures["loss"] = lambda p: p.get("E", 0.0) + p["A"] * amount ** -p["alpha"]
        question = f"What loss with {amount:.4g} FLOP" + (" (the same law, fitted to compute)?" if self.names[0] != "C" else "?")
        return self._reply(found, question, measures, amount > FAR * largest)

    def _reply(self, found: Fit, question: str, measures: Measures, bold: bool = False) -> dict[str, Any]:
        values = {}
        for name, measure in measures.items():
            value = float(measure(found.natural))
            values[name] = {"value": plain(value)} | _ends(found.interval(measure))
            if name in self.names and np.isfinite(value):
                bold |= value > FAR * float(self.found.x[:, self.names.index(name)].max())
        return {"question": question, "values": values, "bold": bool(bold)}


def _amount(name: str, given: str, largest: float) -> float:
    """A number, or ``10x``: times the largest of the points."""
    times = given.endswith("x")
    try:
        value = float(given.removesuffix("x"))
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}: expected a number above 0 such as 1e9, or times the largest run such as 10x, got {given!r}")
    return value * largest if times else value


def _ends(interval: tuple[float, float] | None) -> dict[str, float | str | None]:
    low, high = interval or (None, None)
    return {"low": plain(low), "high": plain(high)}
