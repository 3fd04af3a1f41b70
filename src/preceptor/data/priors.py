"""Training without data: an endless source of noise, and random times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from preceptor.core.types import Batch
from preceptor.losses.checks import check_counts

Sampler = Callable[[int, torch.Generator], Tensor]
"""From a number of points and a generator on the CPU to the points (N, ...)."""


class Prior:
    """A `preceptor.core.stream.Stream` of noise. Each batch has ``x`` and ``noise``, two independent draws, ``id`` that counts up, and
    ``cond``, class labels drawn uniformly, where there are classes.

    Args:
        shape: of one point.
        batch_size: points per global batch, all processes together; each process gets its share of the same draw.
        seed: of all draws.
        sample: the prior; None: standard normal.
        num_classes: classes to condition on, 0: none.
        dtype: of standard normal noise.
        rank: number of this process.
        world: number of processes.
    Raises:
        ValueError: a batch size below 1 or not divisible by ``world``, or a rank outside its range.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        batch_size: int,
        seed: int = 0,
        sample: Sampler | None = None,
        num_classes: int = 0,
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_counts(batch_size=batch_size)
        if not 0 <= rank < world:
            raise ValueError(f"rank: expected a number in [0, {world}), got {rank}")
        if batch_size % world:
            raise ValueError(f"batch_size: expected a multiple of the {world} processes, got {batch_size}")
        self.sample = sample or (lambda count, generator: torch.randn(count, *shape, generator=generator).to(dtype))
        self.shape, self.batch_size, self.num_classes, self.rank, self.world = shape, batch_size, num_classes, rank, world
        self.seed, self.drawn = seed, 0
        self.generator = torch.Generator().manual_seed(seed)

    def __next__(self) -> Batch:
        """The next batch of this process."""
        batch = self._draw(self.generator, self.drawn)
        self.drawn += self.batch_size
        return {name: value[self.rank :: self.world] for name, value in batch.items()}

    def scan(self) -> Iterable[Batch]:
        """The first batch alone, whole: noise has no end."""
        return [self._draw(torch.Generator().manual_seed(self.seed), 0)]

    def state_dict(self) -> dict[str, Any]:
        """Return what was drawn and the generator's state."""
        return {"drawn": self.drawn, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.drawn = state["drawn"]
        self.generator.set_state(state["generator"])

    def _draw(self, generator: torch.Generator, first: int) -> Batch:
        batch = {name: self.sample(self.batch_size, generator) for name in ("x", "noise")}
        for value in batch.values():
            if value.shape != (self.batch_size, *self.shape):
                raise ValueError(f"sample: expected points of shape {(self.batch_size, *self.shape)}, got {tuple(value.shape)}")
        if self.num_classes:
            batch["cond"] = torch.randint(self.num_classes, (self.batch_size,), generator=generator)
        return {**batch, "id": torch.arange(first, first + self.batch_size)}


def draw_times(
    count: int, generator: torch.Generator, *, normal: tuple[float, float] | None = None, interval: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """Random times within an interval: uniform, or the sigmoid of a normal variable, cut to the interval.

    Args:
        count: how many.
        generator: on the CPU.
        normal: mean and deviation under the sigmoid; None: uniform.
        interval: least and largest time, in [0, 1].
    Returns:
        float64, (count,).
    Raises:
        ValueError: an empty interval, or a deviation not > 0.
    """
    low, high = interval
    if not 0 <= low < high <= 1:
        raise ValueError(f"interval: expected two rising numbers in [0, 1], got {interval}")
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    if normal is None:
        return low + (high - low) * share
    mean, deviation = normal
    if not 0 < deviation < math.inf:
        raise ValueError(f"normal: expected a mean and a deviation > 0, got {normal}")
    ends = torch.special.ndtr((torch.logit(torch.tensor(interval, dtype=torch.float64)) - mean) / deviation)
    quantile = ends[0] + (ends[1] - ends[0]) * share
    return torch.sigmoid(mean + deviation * torch.special.ndtri(quantile)).clamp(low, high)
