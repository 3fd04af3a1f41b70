"""Series of many students on one time grid, with what is missing told from what is zero; made-up ones with known truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Series of U students over T times.

    Attributes:
        values: (U, T, d); anything where the mask is False.
        mask: (U, T) True where the values are known.
        labels: (U,) of the students, or (U, T) of the times, or None.
        static: (U, f) what does not change, or None.
    """

    values: np.ndarray
    mask: np.ndarray
    labels: np.ndarray | None = None
    static: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.mask.shape != self.values.shape[:2]:
            raise ValueError(f"panel: expected values (U, T, d) and mask (U, T), got shapes {self.values.shape} and {self.mask.shape}")
        if not self.values.size:
            raise ValueError("panel: expected at least one student and one time, got none")
        if not np.isfinite(self.values[self.mask]).all():
            raise ValueError("panel: expected finite values where the mask is True, got others; missing values belong to the mask")

    def first(self, steps: int) -> Panel:
        """What was known after so many times."""
        labels = self.labels[:, :steps] if self.labels is not None and self.labels.ndim == 2 else self.labels
        return replace(self, values=self.values[:, :steps], mask=self.mask[:, :steps], labels=labels)

    def take(self, rows: np.ndarray | slice) -> Panel:
        """Some students, by number, by a mask (U,), or a slice."""
        labels, static = (None if part is None else part[rows] for part in (self.labels, self.static))
        return replace(self, values=self.values[rows], mask=self.mask[rows], labels=labels, static=static)


def panel_of(values: np.ndarray, *, mask: np.ndarray | None = None, labels: np.ndarray | None = None) -> Panel:
    """A panel from (U, T) or (U, T, d); NaN is missing."""
    values = np.asarray(values, dtype=float)
    values = values if values.ndim == 3 else values[..., None]
    known = np.asarray(np.isfinite(values).all(-1))
    return Panel(values=np.where(known[..., None], values, 0.0), mask=known if mask is None else known & mask, labels=labels)


def panel_from_events(
    student: np.ndarray,
    time: np.ndarray,
    value: np.ndarray | None = None,
    *,
    kind: np.ndarray | None = None,
    period: float = 86_400_000.0,
    begin: float | None = None,
    ends: np.ndarray | None = None,
) -> tuple[Panel, np.ndarray]:
    """Count events, or add up their values, per period; a period without one is zero inside a student's enrolment and missing outside.

    Args:
        student: (n,) numbers.
        time: (n,) in the unit of ``period``.
        value: (n,) added up; None counts.
        kind: (n,) of the events; each kind is a dimension, in rising order. None: one dimension.
        period: length of a step; a day of milliseconds.
        begin: when the first step begins, such as a midnight in the school's time zone; None: with the first event, so that a step is no
            calendar day.
        ends: (U,) end of each student's enrolment, in order of their numbers; None: all stay to the last event of anyone, so that nobody is
            taken to have dropped out because the record ends.
    Returns:
        The panel, and the students of its rows. Enrolment begins with the first event.
    Raises:
        ValueError: no event, or one before ``begin``.
    """
    if not len(student):
        raise ValueError("events: expected at least one, got none")
    begin = float(time.min()) if begin is None else begin
    if time.min() < begin:
        raise ValueError(f"begin: expected at most {time.min()}, the time of the first event, got {begin}")
    known, row = np.unique(student, return_inverse=True)
    kinds, column = (np.zeros(1), np.zeros(len(row), np.int64)) if kind is None else np.unique(kind, return_inverse=True)
    step = ((time - begin) // period).astype(np.int64)
    values = np.zeros((len(known), int(step.max()) + 1, len(kinds)))
    np.add.at(values, (row, step, column), 1.0 if value is None else value)
    first = np.full(len(known), values.shape[1])
    np.minimum.at(first, row, step)
    last = np.full(len(known), values.shape[1]) if ends is None else ((ends - begin) // period).astype(np.int64) + 1
    grid = np.arange(values.shape[1])
    return Panel(values=values, mask=(grid >= first[:, None]) & (grid < last[:, None])), known


def z_scored(panel: Panel, *, past: int) -> Panel:
    """Each student less their mean over the first ``past`` times, over the standard deviation there; a constant series becomes zeros."""
    known = panel.mask[:, :past, None]
    count = np.maximum(known.sum(1, keepdims=True), 1)
    mean = (panel.values[:, :past] * known).sum(1, keepdims=True) / count
    spread = np.sqrt((((panel.values[:, :past] - mean) * known) ** 2).sum(1, keepdims=True) / count)
    scaled = np.where(spread > 1e-12, (panel.values - mean) / np.where(spread > 1e-12, spread, 1.0), 0.0)
    return replace(panel, values=np.where(panel.mask[..., None], scaled, 0.0))


def carried(panel: Panel) -> np.ndarray:
    """(U, T): the first dimension, each missing value replaced by the last known one, 0 before the first."""
    place = np.maximum.accumulate(np.where(panel.mask, np.arange(panel.mask.shape[1]), -1), 1)
    found = np.take_along_axis(panel.values[..., 0], place.clip(min=0), 1)
    return np.where(place >= 0, found, 0.0)


def rolling_origins(steps: int, horizon: int, *, count: int = 3) -> Iterator[tuple[slice, slice]]:
    """(past, future) slices of time, the last future ending at the last step; the past holds nothing of the future.

    Raises:
        ValueError: the series is too short for so many origins.
    """
    if count < 1 or horizon < 1 or steps - count * horizon < 2:
        raise ValueError(f"steps: expected at least {count * horizon + 2} for {count} origins of {horizon}, got {steps}")
    for origin in range(steps - count * horizon, steps, horizon):
        yield slice(0, origin), slice(origin, origin + horizon)


def synthetic_panel(
    kind: Literal["archetypes", "activity", "anomalies", "changes"], seed: int, *, students: int = 100, steps: int = 0
) -> Panel:
    """Made-up panels with known truth.

    ``archetypes``: 24 steps of a peak, two peaks or a step, shifted by up to 5; labels (U,) are the shapes.
    ``activity``: 84 days of Poisson counts with a week's rhythm, half of the students declining; labels (U,) 1 where they decline.
    ``anomalies``: 84 such days of steady students, with one weekend day in eight at the level of a weekday; labels (U, T) mark them.
    ``changes``: 84 such days, half of the students falling to 40 % of their level somewhere between the middle and five sixths; labels
    (U, T) are 1 from there on.
    """
    random = np.random.default_rng(seed)
    if kind == "archetypes":
        length = steps or 24
        label, shift = random.integers(0, 3, students), random.integers(-5, 6, students)
        t = np.arange(length) - shift[:, None]
        middle = length / 2

        def peak(at: float, width: float) -> np.ndarray:
            return np.exp(-(((t - at) / width) ** 2))

        shapes = np.stack([2 * peak(middle, 2.5), 1.6 * (peak(middle - 4, 1.7) + peak(middle + 4, 1.7)), 2 / (1 + np.exp(-(t - middle)))])
        return panel_of(shapes[label, np.arange(students)] + 0.15 * random.standard_normal((students, length)), labels=label)
    if kind not in ("activity", "anomalies", "changes"):
        raise ValueError(f"kind: expected archetypes, activity, anomalies or changes, got {kind!r}")
    length = steps or 84
    day = np.arange(length) % 7
    week = np.where(day >= 5, 0.15, 1.0) * (1 + 0.3 * np.cos(2 * np.pi * day / 7))
    level = random.gamma(6.0, 1.5, students)[:, None]
    declines = random.random(students) < 0.5 if kind != "anomalies" else np.zeros(students, bool)
    slope = np.where(declines & (kind == "activity"), -0.02, 0.0)[:, None]
    mean = level * week * np.exp(slope * np.arange(length))
    strange = np.zeros((students, length), bool)
    if kind == "anomalies":
        strange = (day >= 5) & (random.random((students, length)) < 0.125)
        mean = np.where(strange, level * 1.1, mean)
    if kind == "changes":
        strange = declines[:, None] & (np.arange(length) >= random.integers(length // 2, 5 * length // 6, students)[:, None])
        mean = np.where(strange, 0.4 * mean, mean)
    return panel_of(random.poisson(mean).astype(float), labels=(declines if kind == "activity" else strange).astype(int))
