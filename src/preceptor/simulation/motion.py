"""One step of a school, and a run of many: the same numbers on every path.

The sum over neighbours is taken by numpy over all pairs, or by numba over the cells of a grid; only that differs between the paths. Its
terms have lengths up to 1 and are cut to multiples of 2^-(62 - b), with b the bits of N, so that they add as whole numbers in any order
without error: for 1,000 fish that changes a term by less than 1e-15, for 100,000 by less than 1e-13. Turning and noise are numpy on every
path, and noise comes from the one generator given. So the same seed is the same run, bit for bit, with any number of threads.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from preceptor.core.optional import require
from preceptor.metrics.entropy import unit
from preceptor.simulation.zones import Array, SmallBox, Zones, wrapped

Path = Literal["auto", "numpy", "compiled"]
"""Where the neighbours are summed: numba where it is installed, else numpy up to 2,000 fish."""

_REACH = 2  # cells that an attraction radius crosses
_PLAIN_LIMIT = 2_000  # fish; beyond it all pairs take too long without a compiler
_PARALLEL = 1_000  # fish from which a second thread pays
_PAIRS = 1 << 16  # pairs that numpy holds at once: 0.5 MB an array


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A school after so many steps."""

    step: int
    positions: Array  # (N, 3), in [0, box)
    velocities: Array  # (N, 3), of length ``speed``


def step(
    positions: Array, velocities: Array, zones: Zones, rng: np.random.Generator | None = None, *, path: Path = "auto"
) -> tuple[Array, Array]:
    """Move a school by one step; all fish look at the same old state.

    Herho et al. 2026 (arXiv:2602.07948), after Couzin et al. 2002. With d the distance to the nearest image of another fish, e the
    direction to it and u a heading, a fish that sees it, u . e > -cos(blind), wants

        D = -sum e over d < r_repulsion, if there are any, else
        D = weight sum u_j over r_repulsion <= d < r_orientation  +  sum e over r_orientation <= d < r_attraction,

    turns towards D by at most ``max_turn``, gets noise times N(0, I) added to its heading, and swims on for ``dt``. Fish at the same place
    do not see each other; |D| < 1e-10 keeps the heading. The noise comes after the limit and can exceed it.

    Args:
        positions: (N, 3) in [0, box).
        velocities: (N, 3); only their directions matter, one of length 0 sees all around.
        zones: the parameters.
        rng: for the noise; not used, and not needed, without any.
        path: see `Path`.
    Returns:
        New positions and velocities.
    Raises:
        ValueError: shapes that differ, a number that is not finite, a position outside the box, noise without a generator, or another path.
        ImportError: numba is missing where it is asked for or needed.
    """
    _check(positions, velocities, zones)
    heading = unit(velocities)
    heading = _turned(heading, _wishes(positions, heading, zones, path), zones)
    if zones.noise > 0:
        if rng is None:
            raise ValueError("rng: expected a numpy Generator for the noise, got None")
        heading = unit(heading + zones.noise * rng.standard_normal(heading.shape))
    velocities = zones.speed * heading
    return wrapped(positions + zones.dt * velocities, zones.box), velocities


def simulate(
    start: tuple[Array, Array],
    zones: Zones,
    rng: np.random.Generator | None = None,
    *,
    steps: int,
    every: int = 1,
    first: int = 0,
    path: Path = "auto",
) -> Iterator[Frame]:
    """Yield the state before the first step, after every ``every`` steps, and after the last.

    Args:
        start: positions and velocities, both (N, 3).
        zones: the parameters.
        rng: for the noise.
        steps: number of the last step, >= first.
        every: steps between two frames, >= 1.
        first: number of steps that ``start`` has behind it; it is yielded when that is 0.
        path: see `Path`.
    Raises:
        ValueError: what `step` refuses, or numbers out of range.

    Warns:
        SmallBox: the box is smaller than twice the attraction radius.
    """
    if every < 1 or not 0 <= first <= steps:
        raise ValueError(f"steps, every: expected steps >= {max(first, 0)} and every >= 1, got {steps} and {every}")
    positions, velocities = start
    _check(positions, velocities, zones)
    if zones.doubt:
        warnings.warn(zones.doubt, SmallBox, stacklevel=2)
    return _frames(positions, velocities, zones, rng, steps, every, first, path)


def _frames(
    positions: Array, velocities: Array, zones: Zones, rng: np.random.Generator | None, steps: int, every: int, first: int, path: Path
) -> Iterator[Frame]:
    if first == 0:
        yield Frame(step=0, positions=positions, velocities=velocities)
    for number in range(first + 1, steps + 1):
        positions, velocities = step(positions, velocities, zones, rng, path=path)
        if number % every == 0 or number == steps:
            yield Frame(step=number, positions=positions, velocities=velocities)


def _check(positions: Array, velocities: Array, zones: Zones) -> None:
    if positions.ndim != 2 or positions.shape[1] != 3 or not len(positions):
        raise ValueError(f"positions: expected shape (N, 3) with N >= 1, got {positions.shape}")
    if velocities.shape != positions.shape:
        raise ValueError(f"velocities: expected shape {positions.shape} like positions, got {velocities.shape}")
    if not np.isfinite(velocities).all():
        raise ValueError("velocities: expected finite numbers, got some that are not")
    if not ((positions >= 0) & (positions < zones.box)).all():  # NaN is refused too
        raise ValueError(f"positions: expected all in [0, {zones.box:g}), got {positions.min():g} to {positions.max():g}")


def _wishes(positions: Array, heading: Array, zones: Zones, path: Path) -> Array:
    """The direction that each fish wants, not normalised, (N, 3)."""
    if path not in ("auto", "numpy", "compiled"):
        raise ValueError(f"path: expected 'auto', 'numpy' or 'compiled', got {path!r}")
    plain = path == "numpy"
    if path == "auto" and len(positions) <= _PLAIN_LIMIT:
        plain = importlib.util.find_spec("numba") is None
    return _all_pairs(positions, heading, zones) if plain else _by_cells(positions, heading, zones)


def _scale(agents: int) -> float:
    """Terms become whole numbers of this many parts: N of them stay below 2^62."""
    return 2.0 ** (62 - agents.bit_length())


def _whole(terms: Array, scale: float) -> NDArray[np.int64]:
    """Terms as whole numbers of parts, cut towards 0."""
    return (terms * scale).astype(np.int64)


def _sight(zones: Zones) -> float:
    """Largest cosine that is out of sight; -2 where all is seen."""
    return -math.cos(math.radians(zones.blind_angle)) if zones.blind_angle > 0 else -2.0


def _by_cells(positions: Array, heading: Array, zones: Zones) -> Array:
    require("numba", extra="simulation", purpose="many fish")
    kernels = importlib.import_module("preceptor.simulation.kernels")
    agents = len(positions)
    side = min(int(_REACH * zones.box / (zones.r_attraction * (1 + 1e-9))), math.ceil(agents ** (1 / 3)))
    side, reach = (side, _REACH) if side > 2 * _REACH + 1 else (1, 0)
    place = np.minimum((positions * (side / zones.box)).astype(np.int64), side - 1)
    cell = (place[:, 0] * side + place[:, 1]) * side + place[:, 2]
    order = np.argsort(cell, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=side**3))])
    wishes = np.empty_like(positions)
    radii = (zones.r_repulsion, zones.r_orientation, zones.r_attraction)
    numbers = (float(zones.box), tuple(map(float, radii)), _sight(zones), float(zones.orientation_weight), _scale(agents))
    kernel = kernels.parallel if agents >= _PARALLEL else kernels.serial
    parts = _whole(heading[order].T, numbers[-1])
    ordered = np.ascontiguousarray(positions[order].T), np.ascontiguousarray(heading[order].T), np.ascontiguousarray(parts)
    kernel(*ordered, cell[order], first, side, reach, *numbers, wishes)
    found = np.empty_like(wishes)
    found[order] = wishes
    return found


def _all_pairs(positions: Array, heading: Array, zones: Zones) -> Array:
    agents, scale = len(positions), _scale(len(positions))
    limits = np.where((heading != 0).any(axis=1), _sight(zones), -2.0)[:, None]
    follow = _whole(heading.T, scale)
    wishes = np.empty_like(positions)
    rows = max(1, _PAIRS // agents)
    for begin in range(0, agents, rows):
        here = slice(begin, begin + rows)
        apart = [_nearest_image(axis[None, :] - axis[here, None], zones.box) for axis in positions.T]
        distance = np.sqrt(apart[0] * apart[0] + apart[1] * apart[1] + apart[2] * apart[2])
        seen = (distance >= 1e-10) & (distance < zones.r_attraction)
        inverse = np.divide(1.0, distance, out=np.zeros_like(distance), where=seen)
        apart = [axis * inverse for axis in apart]
        u = heading[here]
        seen &= u[:, 0, None] * apart[0] + u[:, 1, None] * apart[1] + u[:, 2, None] * apart[2] > limits[here]
        avoided = seen & (distance < zones.r_repulsion)
        followed = seen & ~avoided & (distance < zones.r_orientation)
        approached = seen & ~avoided & ~followed
        avoids = avoided.any(axis=1)
        for axis, cosine in enumerate(apart):
            parts = _whole(cosine, scale)
            away, towards = np.where(avoided, parts, 0).sum(axis=1), np.where(approached, parts, 0).sum(axis=1)
            along = np.where(followed, follow[axis], 0).sum(axis=1)
            other = zones.orientation_weight * (along / scale) + towards / scale
            wishes[here, axis] = np.where(avoids, -away / scale, other)
    return wishes


def _nearest_image(apart: Array, box: float) -> Array:
    half = 0.5 * box
    return np.where(apart > half, apart - box, np.where(apart < -half, apart + box, apart))


def _dot(first: Array, second: Array) -> Array:
    """Inner products of rows, added in one order for any number of rows."""
    return first[:, 0] * second[:, 0] + first[:, 1] * second[:, 1] + first[:, 2] * second[:, 2]


def _turned(heading: Array, wishes: Array, zones: Zones) -> Array:
    """Headings after the turn towards the wishes."""
    length = np.sqrt(_dot(wishes, wishes))
    wants = length >= 1e-10
    target = np.where(wants[:, None], wishes / np.where(wants, length, 1.0)[:, None], heading)
    angle = np.arccos(np.clip(_dot(heading, target), -1.0, 1.0))
    far = angle > zones.max_turn
    limited = _along_the_arc(heading, target, zones.max_turn) if zones.turn == "slerp" else _along_the_chord(heading, target, angle, zones)
    return np.where(far[:, None], limited, np.where((angle < 1e-10)[:, None], heading, target))


def _along_the_chord(heading: Array, target: Array, angle: Array, zones: Zones) -> Array:
    """As published: the turn is not exactly ``max_turn``, and there is none towards what lies behind while max_turn < pi / 2."""
    share = np.minimum(zones.max_turn / np.maximum(angle, 1e-10), 1.0)[:, None]
    between = heading * (1 - share) + target * share
    length = np.sqrt(_dot(between, between))[:, None]
    return np.where(length > 1e-10, between / np.maximum(length, 1e-10), heading)


def _along_the_arc(heading: Array, target: Array, angle: float) -> Array:
    """A turn by exactly ``angle``; towards what lies exactly behind, about the axis that the heading is least along."""
    side = target - _dot(heading, target)[:, None] * heading
    axis = np.eye(3)[np.abs(heading).argmin(axis=1)]
    other = axis - _dot(heading, axis)[:, None] * heading
    side = np.where(np.sqrt(_dot(side, side))[:, None] > 1e-10, side, other)
    return unit(math.cos(angle) * heading + math.sin(angle) * unit(side))
