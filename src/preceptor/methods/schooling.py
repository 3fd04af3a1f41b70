"""Schooling: order that no fish commands, and entropies that tell one kind of order from another.

Paper: Herho et al. 2026, dewi-kadita: A Python Library for Idealized Fish Schooling Simulation with Entropy-Based Diagnostics
(arXiv:2602.07948), after Couzin et al. 2002 (Journal of Theoretical Biology 218, 1-11).
Claim: from the same rules with other radii come a swarm without direction (P below 0.1, index near 0.71) and a school that swims as one
(P 0.998, index 0.24, entropy of velocity correlations 0); the entropies tell apart states that the order parameters do not.
Equation, with e the direction to a neighbour at distance d that a fish sees, and u headings:
    D = -sum e over d < r_r if there are any, else D = w sum u over r_r <= d < r_o + sum e over r_o <= d < r_a;
    turn towards D by at most theta, add sigma N(0, I), swim v dt.
    P = |mean u|, M = |mean c x u|, index = .18 H1 + .28 H2 + .08 H3 + .08 H4 + .10 H5 + .18 H6 + .10 H7.
It is no training method: the motion is in `preceptor.simulation.motion`, the measures in `preceptor.simulation.order`, the command is
``preceptor simulate schooling``, and the entropies, for any samples, headings, similarities or spectra, in `preceptor.metrics.entropy`.
Deviations: none in the defaults, which give the released code's numbers; its README has 1 - H6 in the index, its code and this one + H6.
Values that rounding puts outside a histogram's range are counted, entropies are never below 0, and one seed is one run, which the released
compiled code does not give. Options, off by default, mend what is biased there: a turn along the arc, a centroid that a boundary does not
shift, bins of equal area for headings, a correction for few fish. A fifth case, "mill", is ours: a ring that goes on turning, which the
paper's "torus" does not.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Literal

import numpy as np

from preceptor.core.types import Card
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.simulation.motion import simulate
from preceptor.simulation.order import Centroid, metrics_series, summary
from preceptor.simulation.zones import CASES, Case, SmallBox

CARD = Card(
    slug="schooling",
    title="Zones of repulsion, orientation and attraction: a school of fish and its entropies",
    authors="Herho et al. 2026",
    arxiv="2602.07948",
    kind="simulation",
    tasks=("simulation",),
    needs=(),
    equation="D = -sum e (d < r_r), else w sum u (d < r_o) + sum e (d < r_a); turn <= theta, noise sigma; index = sum w_k H_k",
    cost="no training; a step of 250 fish about a millisecond on one core, of 100,000 some tenths of a second",
    headline="swarm: polarisation below 0.1, index 0.71; highly parallel: polarisation 0.998, index 0.24, H6 = 0",
)

MEASURED = ("polarization", "rotation", "oceanic_schooling_index", "velocity_correlation_entropy")


def no_interaction(case: Case) -> Case:
    """The same fish, blind to each other: radii so small that no two are ever that near."""
    return replace(case, zones=replace(case.zones, r_repulsion=1e-9, r_orientation=2e-9, r_attraction=3e-9))


def settled(case: Case, *, seed: int, every: int, centroid: Centroid = "mean") -> dict[str, float]:
    """Means over the second half of a run of the measures that the paper's headline names."""
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallBox)  # the paper's own boxes are that small
        frames = list(simulate(case.start(rng), case.zones, rng, steps=case.steps, every=every, path="numpy"))
    found = summary(metrics_series(frames, case.zones.box, centroid=centroid))
    return {name: found[name]["mean"] for name in MEASURED}


def miniature(seed: int, size: Size) -> Miniature:
    """Sixty fish for 400 steps in the paper's boxes, one arm per case; means over the second half.

    ``schooling`` is the case "highly parallel", ``mill-schooling`` the one that is not the paper's, measured about its circular mean. The
    margins of the first claims are the distances between the bounds that were set before the run: P below 0.25 and above 0.97, index above
    0.55 and below 0.4, H6 below 0.03 and, for the swarm, above 0.93.
    """
    fish, steps, every = (60, 400, 2) if size == "full" else (20, 40, 4)
    cases = {name: replace(case, agents=fish, steps=steps) for name, case in CASES.items()}
    plans = {
        "untrained-random-walk": no_interaction(cases["swarm"]),
        "swarm": cases["swarm"],
        "torus-schooling": cases["torus"],
        "dynamic-parallel": cases["dynamic-parallel"],
        "schooling": cases["highly-parallel"],
    }
    claims: tuple[tuple[str, str, str, str, Literal["higher", "lower"], float], ...] = (
        ("highly parallel: polarisation above the swarm's by 0.72", "schooling", "swarm", "polarization", "higher", 0.72),
        ("highly parallel: index below the swarm's by 0.15", "schooling", "swarm", "oceanic_schooling_index", "lower", 0.15),
        ("highly parallel: H6 below the swarm's by 0.9", "schooling", "swarm", "velocity_correlation_entropy", "lower", 0.9),
        ("H6 tells highly from dynamic parallel", "schooling", "dynamic-parallel", "velocity_correlation_entropy", "lower", 0.0),
        ("without interaction there is no direction", "schooling", "untrained-random-walk", "polarization", "higher", 0.72),
        (
            "the index tells the torus from dynamic parallel",
            "torus-schooling",
            "dynamic-parallel",
            "oceanic_schooling_index",
            "higher",
            0.0,
        ),
        (
            "with the exact turn a ring goes on turning: rotation above the torus's by 0.3",
            "mill-schooling",
            "torus-schooling",
            "rotation",
            "higher",
            0.3,
        ),
    )
    return Miniature(
        arms={
            **{name: settled(case, seed=seed, every=every) for name, case in plans.items()},
            "mill-schooling": settled(cases["mill"], seed=seed, every=every, centroid="circular"),
        },
        claims=tuple(
            Claim(name=name, method=method, baseline=baseline, metric=metric, direction=direction, margin=margin)
            for name, method, baseline, metric, direction, margin in claims
        ),
        notes=(f"{fish} fish, {steps} steps, a frame every {every}",),
    )
