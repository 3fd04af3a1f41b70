"""Who reacts to whom in a school of fish: the zones, the four published cases and a mill, and how a school starts.

Couzin et al. 2002 (Journal of Theoretical Biology 218, 1-11) as in dewi-kadita, Herho et al. 2026 (arXiv:2602.07948). Lengths are in
body lengths, times in units in which a fish at speed 1 swims one of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from preceptor.catalog import nearest
from preceptor.metrics.entropy import unit

Array = NDArray[np.float64]
Turn = Literal["nlerp", "slerp"]
"""How a fish turns by its largest angle: along the chord as published, or along the arc."""


class SmallBox(UserWarning):
    """A box smaller than twice the attraction radius."""


@dataclass(frozen=True, kw_only=True)
class Zones:
    """Parameters of the motion.

    Raises:
        ValueError: a number out of range, or radii that are not 0 < r_repulsion < r_orientation <= r_attraction.
    """

    box: float  # side of the periodic cube
    r_repulsion: float  # neighbours nearer than this are avoided
    r_orientation: float  # from there to this they are followed in direction
    r_attraction: float  # from there to this they are approached
    max_turn: float  # largest turn in a step, before the noise, radians
    noise: float  # standard deviation of what is added to each component of a heading
    blind_angle: float  # half-angle of the cone behind a fish that it cannot see, degrees; <= 0: it sees all around
    speed: float = 1.0
    orientation_weight: float = 1.0  # in [0, 1]
    dt: float = 0.1  # duration of a step
    turn: Turn = "nlerp"

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in (field.name for field in fields(self) if field.name != "turn"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{name}: expected a finite number, got {value!r}")
            if name not in ("noise", "blind_angle", "orientation_weight") and not value > 0:
                raise ValueError(f"{name}: expected a number above 0, got {value:g}")
        if self.r_repulsion >= self.r_orientation:
            raise ValueError(f"r_repulsion: expected a number below r_orientation {self.r_orientation:g}, got {self.r_repulsion:g}")
        if self.r_orientation > self.r_attraction:
            raise ValueError(f"r_orientation: expected at most r_attraction {self.r_attraction:g}, got {self.r_orientation:g}")
        if self.noise < 0:
            raise ValueError(f"noise: expected a number >= 0, got {self.noise:g}")
        if self.blind_angle > 180:
            raise ValueError(f"blind_angle: expected degrees up to 180, got {self.blind_angle:g}")
        if not 0 <= self.orientation_weight <= 1:
            raise ValueError(f"orientation_weight: expected a number in [0, 1], got {self.orientation_weight:g}")
        if self.turn not in ("nlerp", "slerp"):
            raise ValueError(f"turn: expected 'nlerp' or 'slerp', got {self.turn!r}")

    @property
    def doubt(self) -> str:
        """What is ambiguous about the box, "" where nothing is."""
        if self.box >= 2 * self.r_attraction:
            return ""
        wanted = f"box: expected at least twice r_attraction, {2 * self.r_attraction:g}, got {self.box:g}"
        return f"{wanted}: of a far fish only the nearest image acts"

    def changed(self, changes: Mapping[str, str]) -> Zones:
        """The same zones with some fields given as text.

        Raises:
            ValueError: an unknown field (the nearest is named), or a value out of range.
        """
        known = [field.name for field in fields(self)]
        values: dict[str, object] = {}
        for name, text in changes.items():
            if name not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}{nearest(name, known)}")
            try:
                values[name] = text if name == "turn" else float(text)
            except ValueError:
                raise ValueError(f"{name}: expected a number, got {text!r}") from None
        return replace(self, **values)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A school: its zones, its size, and how it starts."""

    zones: Zones
    agents: int
    steps: int
    ring: float | None = None  # radius of the ring that it starts from; None: anywhere in the box

    def sized(self, agents: int) -> Case:
        """The same density with another number of fish: box and ring grow with its cube root.

        Raises:
            ValueError: agents < 1.
        """
        if agents < 1:
            raise ValueError(f"agents: expected at least 1, got {agents}")
        if agents == self.agents:
            return self
        scale = (agents / self.agents) ** (1 / 3)
        ring = None if self.ring is None else self.ring * scale
        return replace(self, agents=agents, ring=ring, zones=replace(self.zones, box=self.zones.box * scale))

    def start(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Positions and velocities to start from, both (N, 3)."""
        if self.ring is None:
            return uniform_start(self.agents, self.zones, rng)
        return ring_start(self.agents, self.zones, rng, radius=self.ring)


def wrapped(positions: Array, box: float) -> Array:
    """Positions in [0, box): what rounding puts on the upper end goes to 0."""
    positions = np.mod(positions, box)
    return np.where(positions >= box, 0.0, positions)


def uniform_start(agents: int, zones: Zones, rng: np.random.Generator) -> tuple[Array, Array]:
    """Positions anywhere in the box, headings in all directions alike."""
    positions = rng.uniform(0, zones.box, (agents, 3))
    return wrapped(positions, zones.box), zones.speed * unit(rng.standard_normal((agents, 3)))


def ring_start(
    agents: int, zones: Zones, rng: np.random.Generator, *, radius: float, spread: float = 0.15, height: float = 0.3
) -> tuple[Array, Array]:
    """A horizontal ring about the middle of the box that turns as one.

    Args:
        agents: N, spaced evenly.
        zones: box and speed.
        rng: of the spread.
        radius: of the ring, > 0.
        spread: standard deviation of each fish's own radius, in radii; 0.15 in arXiv:2602.07948.
        height: standard deviation above and below, in radii; 0.3 there.
    """
    angle = 2 * math.pi * np.arange(agents) / agents
    away = radius * (1 + spread * rng.standard_normal(agents))
    up = radius * height * rng.standard_normal(agents)
    positions = np.stack([away * np.cos(angle), away * np.sin(angle), up], axis=1) + zones.box / 2
    velocities = np.stack([-np.sin(angle), np.cos(angle), np.zeros(agents)], axis=1)
    return wrapped(positions, zones.box), zones.speed * velocities


CASES: Mapping[str, Case] = {
    "swarm": Case(
        agents=150,
        steps=1000,
        zones=Zones(box=25, r_repulsion=2, r_orientation=3, r_attraction=15, max_turn=0.4, noise=0.2, blind_angle=30),
    ),
    "torus": Case(
        agents=200,
        steps=2000,
        ring=6.0,
        zones=Zones(
            box=25, r_repulsion=1, r_orientation=3, r_attraction=10, max_turn=0.2, noise=0.05, blind_angle=150, orientation_weight=0.1
        ),
    ),
    "dynamic-parallel": Case(
        agents=180,
        steps=1500,
        zones=Zones(box=28, speed=1.2, r_repulsion=1, r_orientation=10, r_attraction=18, max_turn=0.35, noise=0.12, blind_angle=25),
    ),
    "highly-parallel": Case(
        agents=250,
        steps=1000,
        zones=Zones(box=35, speed=1.5, r_repulsion=1, r_orientation=12, r_attraction=20, max_turn=0.2, noise=0.05, blind_angle=20),
    ),
    "mill": Case(
        agents=100,
        steps=2000,
        ring=5.0,
        zones=Zones(
            box=40,
            speed=3,
            r_repulsion=1,
            r_orientation=4,
            r_attraction=15,
            max_turn=0.07,
            noise=0.03,
            blind_angle=60,
            turn="slerp",  # along the chord, fish turn too slowly to stay on the ring
        ),
    ),
}
"""The four cases of arXiv:2602.07948, as its code ships them, and a mill of ours.

The paper's "torus" starts as a ring and does not stay one. "mill" does: fast fish that turn slowly, after Couzin et al. 2002 (speed 3, 0.07
radians a step). It wanders: measure it with the circular centroid.
"""
