"""A student without a network: a grid of skills, each of which is learned only after one beside it."""

from __future__ import annotations

import itertools

import numpy as np

from preceptor.losses.checks import check_counts
from preceptor.teachers.tasks import Box, TaskTeacher

_MOST, _ENOUGH = 100, 75  # of a cube's counter: its end, and where its neighbours can begin


class ToyGrid:
    """The cube [0, 1]^d cut into n^d parts with a counter each.

    Portelas et al. 2019 (arXiv:1910.07224): a visit adds 1, up to 100, to the counter of the corner, and to that of a part with a
    neighbour of lower index, also across corners, of at least 75. The return is the counter over 100.

    Args:
        n: parts of each side, at least 1.
        d: sides, at least 1.
        extent: in (0, 1]; the grid lies in [0, extent]^d, whatever is outside returns 0 and teaches nothing.

    Raises:
        ValueError: a number outside its range.
    """

    def __init__(self, n: int, d: int, *, extent: float = 1.0) -> None:
        check_counts(n=n, d=d)
        if not 0 < extent <= 1:
            raise ValueError(f"extent: expected a number in (0, 1], got {extent}")
        self.extent, self.counters = extent, np.zeros((n,) * d, int)
        self.box = Box([0.0] * d, [1.0] * d)
        self.before = [step for step in itertools.product((-1, 0), repeat=d) if any(step)]

    def __call__(self, x: np.ndarray) -> float:
        """Practise a task, (d,), and return what it gives afterwards, in [0, 1]."""
        n = len(self.counters)
        if (x > self.extent).any():
            return 0.0
        index = tuple(np.minimum((x / self.extent * n).astype(int), n - 1).tolist())
        if self._open(index):
            self.counters[index] = min(self.counters[index] + 1, _MOST)
        return float(self.counters[index]) / _MOST

    def _open(self, index: tuple[int, ...]) -> bool:
        places = [tuple(i + s for i, s in zip(index, step, strict=True)) for step in self.before]
        return not any(index) or any(min(place) >= 0 and self.counters[place] >= _ENOUGH for place in places)

    @property
    def mastered(self) -> float:
        """Percentage of parts whose counter is above 75."""
        return 100 * float((self.counters > _ENOUGH).mean())


def teach(teacher: TaskTeacher, grid: ToyGrid, *, episodes: int) -> None:
    """Practise so many tasks of a teacher."""
    for _ in range(episodes):
        task = teacher.sample()
        teacher.update(task, grid(task))
