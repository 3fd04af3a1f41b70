"""Teachers that choose the parameters of the next task and see nothing of the student but its return.

`TaskTeacher` is what they share. Tasks are points of a box; a side of length 0 is left out of everything that is learned and comes back in
every task. Returns that are not finite are refused. All draws are of a generator of the teacher's own, so a seed gives one course.
`preceptor.teachers.mixtures` has teachers that fit mixtures, `preceptor.teachers.riac` one that splits the box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from preceptor.losses.checks import check_counts


class TaskTeacher(Protocol):
    """A teacher of tasks: ``x = teacher.sample()``, the student tries x and gets r, ``teacher.update(x, r)``."""

    def sample(self) -> np.ndarray:
        """Return the next task, (d,), inside the box."""
        ...

    def update(self, x: np.ndarray, r: float) -> None:
        """Hear the return of a task."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that was learned, made of numbers, strings, lists and dicts."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        ...


@dataclass(frozen=True)
class Box:
    """The tasks: all x with low <= x <= high.

    Args:
        low: (d,), d at least 1.
        high: (d,), nowhere below ``low``.

    Raises:
        ValueError: other shapes, numbers that are not finite, ends in the wrong order, or no side longer than 0.
    """

    low: Sequence[float]
    high: Sequence[float]

    def __post_init__(self) -> None:
        low, high = np.asarray(self.low, float), np.asarray(self.high, float)
        if low.ndim != 1 or low.shape != high.shape:
            raise ValueError(f"box: expected low and high of one shape (dimensions,), got {low.shape} and {high.shape}")
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all() and (low < high).any()):
            raise ValueError(f"box: expected finite low <= high, one of them low < high, got {low.tolist()} and {high.tolist()}")

    @property
    def free(self) -> np.ndarray:
        """Which sides are longer than 0, bool (d,)."""
        return np.asarray(self.high, float) > np.asarray(self.low, float)

    @property
    def dimensions(self) -> int:
        """How many these are."""
        return int(self.free.sum())

    def from_unit(self, u: np.ndarray) -> np.ndarray:
        """The task of a point of the unit cube of free sides, (dimensions,) -> (d,)."""
        x, high = np.array(self.low, float), np.asarray(self.high, float)
        free = self.free
        x[free] += u * (high - x)[free]
        return np.clip(x, self.low, self.high)

    def to_unit(self, x: np.ndarray) -> np.ndarray:
        """The point of the unit cube of a task.

        Raises:
            ValueError: another shape, or outside the box by more than rounding.
        """
        x, low, high, free = np.asarray(x, float), np.asarray(self.low, float), np.asarray(self.high, float), self.free
        if x.shape != low.shape or not (np.abs(x - np.clip(x, low, high)) <= 1e-9 * (1 + np.abs(x))).all():
            raise ValueError(f"task: expected one inside {low.tolist()} to {high.tolist()}, got {x.tolist()}")
        return np.clip((x - low)[free] / (high - low)[free], 0, 1)


@dataclass(frozen=True)
class Parameters:
    """Named parameters of a task of any kind as a box: a pair of floats is an interval, a ``range`` integers, a list the choices.

    Args:
        kinds: name -> kind. Integers and choices take one side each, of length their number.

    Raises:
        ValueError: no parameter, or a kind without a value.
    """

    kinds: Mapping[str, tuple[float, float] | range | list[Any]]

    def __post_init__(self) -> None:
        empty = [name for name, kind in self.kinds.items() if not len(kind)]
        if not self.kinds or empty:
            raise ValueError(f"kinds: expected at least one parameter, each with a value, got {dict(self.kinds)}")

    @property
    def box(self) -> Box:
        """Where teachers look for tasks."""
        ends = [kind if isinstance(kind, tuple) else (0.0, float(len(kind))) for kind in self.kinds.values()]
        return Box([low for low, _ in ends], [high for _, high in ends])

    def decode(self, x: np.ndarray) -> dict[str, Any]:
        """The parameters that a task stands for."""
        pairs = zip(self.kinds.items(), x.tolist(), strict=True)
        return {name: v if isinstance(kind, tuple) else kind[min(int(v), len(kind) - 1)] for (name, kind), v in pairs}


def check_return(r: float) -> float:
    """Refuse a return that is not finite.

    Raises:
        ValueError: NaN or infinite.
    """
    if not math.isfinite(r):
        raise ValueError(f"return: expected a finite number, got {r}")
    return float(r)


def normalised(r: float, ends: tuple[float, float] | None) -> float:
    """clip((r - low) / (high - low), 0, 1) of a checked return; as it is without ends."""
    r = check_return(r)
    return r if ends is None else min(max((r - ends[0]) / (ends[1] - ends[0]), 0.0), 1.0)


def proportional(interests: np.ndarray, rng: np.random.Generator) -> int:
    """A position drawn in proportion to numbers >= 0; any, where all are 0."""
    total = interests.sum()
    return int(rng.choice(len(interests), p=interests / total)) if total > 0 else int(rng.integers(len(interests)))


class RandomTeacher:
    """Every task of the box alike.

    Args:
        box: the tasks.
        seed: of the draws.
    """

    def __init__(self, box: Box, *, seed: int) -> None:
        self.box, self.rng = box, np.random.default_rng(seed)

    def sample(self) -> np.ndarray:
        """Draw a task."""
        return self.box.from_unit(self.rng.random(self.box.dimensions))

    def update(self, x: np.ndarray, r: float) -> None:
        """Check the return; nothing is learned."""
        check_return(r)

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator."""
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.rng.bit_generator.state = state["rng"]


class OracleTeacher:
    """A curriculum made by hand: a window that moves from the easy end of the box to the hard one.

    Portelas et al. 2019 (arXiv:1910.07224): after every ``step_rate`` returns, if their mean is above the threshold, the window moves by
    ``step`` and stops at the end of the box; tasks are uniform in it.

    Args:
        box: the tasks.
        step: (d,), in units of the task; its signs say where it gets harder, the window begins at the other end.
        threshold: of the mean return, as it comes.
        step_rate: returns that are averaged, at least 1.
        window: its size, as a part in (0, 1] of each side.
        seed: of the draws.

    Raises:
        ValueError: a step of another shape, or a number outside its range.
    """

    def __init__(
        self, box: Box, *, step: Sequence[float], threshold: float = 230.0, step_rate: int = 50, window: float = 1 / 6, seed: int
    ) -> None:
        check_counts(step_rate=step_rate)
        if not 0 < window <= 1:
            raise ValueError(f"window: expected a number in (0, 1], got {window}")
        self.box, self.threshold, self.step_rate, self.rng = box, threshold, step_rate, np.random.default_rng(seed)
        low, high, self.step = np.asarray(box.low, float), np.asarray(box.high, float), np.asarray(step, float)
        if self.step.shape != low.shape or not np.isfinite(self.step).all():
            raise ValueError(f"step: expected {len(low)} finite numbers, got {list(step)}")
        self.size = window * (high - low)
        self.last = high - self.size
        self.low = np.where(self.step < 0, self.last, low)
        self.returns: list[float] = []

    def sample(self) -> np.ndarray:
        """Draw a task in the window."""
        return np.minimum(self.low + self.rng.random(len(self.low)) * self.size, self.box.high)

    def update(self, x: np.ndarray, r: float) -> None:
        """Hear the return of a task; move the window where it is time."""
        self.returns.append(check_return(r))
        if len(self.returns) == self.step_rate:
            if sum(self.returns) / self.step_rate > self.threshold:
                self.low = np.clip(self.low + self.step, self.box.low, self.last)
            self.returns = []

    def state_dict(self) -> dict[str, Any]:
        """Where the window is, and the returns since it was last looked at."""
        return {"rng": self.rng.bit_generator.state, "low": self.low.tolist(), "returns": list(self.returns)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.rng.bit_generator.state = state["rng"]
        self.low, self.returns = np.array(state["low"]), list(state["returns"])
