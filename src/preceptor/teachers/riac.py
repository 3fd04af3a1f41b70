"""RIAC: a teacher that splits the box of tasks where halves differ in learning progress.

The interface is `preceptor.teachers.tasks.TaskTeacher`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from preceptor.losses.checks import check_counts, check_unit_interval
from preceptor.teachers.tasks import Box, normalised, proportional

_REDRAWS = 100  # of a threshold that leaves one side with too few tasks


def region_interest(returns: Sequence[float], *, window: int = 200) -> float:
    """|mean(first half) - mean(second half)| of the last W = min(n, window) returns, the second half floor(W / 2); 0 up to two returns.

    Baranes, Oudeyer 2009 (R-IAC, IEEE Transactions on Autonomous Mental Development 1), as released with arXiv:1910.07224.
    """
    if len(returns) <= 2:
        return 0.0
    last = np.asarray(returns, float)[-window:]
    second = len(last) // 2
    return float(abs(last[:-second].mean() - last[-second:].mean()))


@dataclass
class Region:
    """A box of the unit cube with its last tasks and returns, in order; a region that was split goes on remembering."""

    low: np.ndarray
    high: np.ndarray
    pairs: deque[tuple[np.ndarray, float]]
    interest: float = 0.0
    children: list[int] = field(default_factory=list)


class RIACTeacher:
    """Regions compete for tasks by their interest.

    As released with arXiv:1910.07224: a leaf with more than ``max_size`` pairs looks at random cuts and keeps the one with the largest
    n1 n2 |interest1 - interest2|; where none will do it forgets its oldest quarter. One task in ten varies the worst one of a region,
    two are uniform, seven uniform in a region.

    Deviations: the released score has the constant 4 for n1 n2 (``constant_factor``). Tasks are scaled to the unit cube, so that the noise
    of variation is relative to the sides. Cuts that leave one side with too few tasks are drawn again a hundred times, then dropped.

    Args:
        box: the tasks.
        max_size: pairs that a leaf holds before it is split, at least 20; a region keeps one more.
        window: returns of which `region_interest` is taken, at least 2.
        proposals: cuts looked at, at least 1.
        min_side: least length of a region's sides, in [0, 1].
        mutation: standard deviation of the noise of variation.
        mutation_rate: share of tasks that vary the worst one.
        random_rate: share of uniform tasks; with the former at most 1.
        leaves_only: whether regions that were split compete no more.
        constant_factor: whether the score of a cut is |interest1 - interest2| alone.
        return_range: ends that are brought to 0 and 1; None leaves returns as they are.
        seed: of the draws.

    Raises:
        ValueError: a number outside its range.
    """

    def __init__(
        self,
        box: Box,
        *,
        max_size: int = 200,
        window: int = 200,
        proposals: int = 50,
        min_side: float = 1 / 15,
        mutation: float = 0.1,
        mutation_rate: float = 0.1,
        random_rate: float = 0.2,
        leaves_only: bool = False,
        constant_factor: bool = False,
        return_range: tuple[float, float] | None = None,
        seed: int,
    ) -> None:
        check_counts(proposals=proposals, window=window - 1, max_size=max_size - 19)
        check_unit_interval(min_side=min_side, mutation_rate=mutation_rate, random_rate=random_rate, rates=mutation_rate + random_rate)
        self.box, self.max_size, self.window, self.proposals, self.min_side = box, max_size, window, proposals, min_side
        self.mutation, self.mutation_rate, self.random_rate = mutation, mutation_rate, random_rate
        self.leaves_only, self.constant_factor, self.return_range = leaves_only, constant_factor, return_range
        self.rng = np.random.default_rng(seed)
        self.regions = [self._region(np.zeros(box.dimensions), np.ones(box.dimensions), [])]

    @property
    def leaves(self) -> list[Region]:
        """The regions that were not split; they cover the cube once."""
        return [region for region in self.regions if not region.children]

    def sample(self) -> np.ndarray:
        """Draw a task."""
        kind = self.rng.random()
        if self.mutation_rate <= kind < self.mutation_rate + self.random_rate:
            return self.box.from_unit(self.rng.random(self.box.dimensions))
        competing = self.leaves if self.leaves_only else self.regions
        region = competing[proportional(np.array([each.interest for each in competing]), self.rng)]
        if kind < self.mutation_rate and region.pairs:
            worst, _ = min(region.pairs, key=lambda pair: pair[1])
            u = np.clip(worst + self.mutation * self.rng.standard_normal(len(worst)), region.low + 1e-5, region.high - 1e-5)
        else:
            u = self.rng.uniform(region.low, region.high)
        return self.box.from_unit(u)

    def update(self, x: np.ndarray, r: float) -> None:
        """Hear the return of a task; split its leaf where that is full."""
        u, r, index = self.box.to_unit(x), normalised(r, self.return_range), 0
        while True:
            region = self.regions[index]
            region.pairs.append((u, r))
            region.interest = self._interest(region.pairs)
            if not region.children:
                break
            left, right = region.children
            index = left if (u <= self.regions[left].high).all() else right
        if len(region.pairs) > self.max_size:
            self._split(region)

    def _split(self, region: Region) -> None:
        tasks = np.array([task for task, _ in region.pairs])
        best, found = -1.0, None
        for _ in range(self.proposals):
            proposal = self._cut(region, tasks)
            if proposal is None:
                continue
            side, threshold = proposal
            below = tasks[:, side] <= threshold
            parts = [[pair for pair, here in zip(region.pairs, mask, strict=True) if here] for mask in (below, ~below)]
            first, second = map(self._interest, parts)
            score = (1 if self.constant_factor else len(parts[0]) * len(parts[1])) * abs(first - second)
            if score > best:
                best, found = score, (side, threshold, parts)
        if found is None:
            for _ in range(len(region.pairs) // 4):
                region.pairs.popleft()
            region.interest = self._interest(region.pairs)
            return
        side, threshold, (below, above) = found
        middle_high, middle_low = region.high.copy(), region.low.copy()
        middle_high[side] = middle_low[side] = threshold
        region.children = [len(self.regions), len(self.regions) + 1]
        self.regions += [self._region(region.low, middle_high, below), self._region(middle_low, region.high, above)]

    def _cut(self, region: Region, tasks: np.ndarray) -> tuple[int, float] | None:
        """A side and where to cut it, or None where the halves get too small."""
        least = self.max_size // 20
        for _ in range(_REDRAWS):
            side = int(self.rng.integers(len(region.low)))
            threshold = float(self.rng.uniform(region.low[side], region.high[side]))
            count = int((tasks[:, side] <= threshold).sum())
            if least <= count <= len(tasks) - least:
                shorter = min(threshold - region.low[side], region.high[side] - threshold)
                return (side, threshold) if shorter >= self.min_side else None
        return None

    def _region(self, low: np.ndarray, high: np.ndarray, pairs: Sequence[tuple[np.ndarray, float]]) -> Region:
        return Region(low, high, deque(pairs, maxlen=self.max_size + 1), self._interest(pairs))

    def _interest(self, pairs: Sequence[tuple[np.ndarray, float]]) -> float:
        return region_interest([r for _, r in pairs], window=self.window)

    def state_dict(self) -> dict[str, Any]:
        """The regions with what they remember."""
        regions = [
            {
                "low": region.low.tolist(),
                "high": region.high.tolist(),
                "tasks": [task.tolist() for task, _ in region.pairs],
                "returns": [r for _, r in region.pairs],
                "children": list(region.children),
            }
            for region in self.regions
        ]
        return {"rng": self.rng.bit_generator.state, "regions": regions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.rng.bit_generator.state = state["rng"]
        self.regions = []
        for saved in state["regions"]:
            pairs = list(zip(map(np.array, saved["tasks"]), saved["returns"], strict=True))
            self.regions.append(self._region(np.array(saved["low"]), np.array(saved["high"]), pairs))
            self.regions[-1].children = list(saved["children"])
