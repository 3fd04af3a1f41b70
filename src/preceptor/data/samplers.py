"""Which examples each global batch holds: shuffled epochs, or weights that feedback moves."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from preceptor.data.hashing import generator


class Sampler(Protocol):
    """Draws batches by their place in the run, so that a position is enough to resume."""

    adaptive: bool
    """Whether `feedback` changes later draws; batches are then never drawn ahead."""
    batches_per_epoch: int

    def draw(self, epoch: int, index: int) -> Tensor:
        """Positions of global batch number ``index`` of the epoch, int64."""
        ...

    def feedback(self, ids: Tensor, scores: Tensor) -> None:
        """Learn from scores (B,) of the examples with these ids (B,); every process must be given the same."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What `feedback` changed, and what must agree when it is loaded; plain numbers and lists."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state; ValueError when it belongs to another sampler."""
        ...


def check_state(state: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a saved state whose settings differ from those of the object that loads it."""
    for key, value in expected.items():
        if state.get(key) != value:
            raise ValueError(f"{key}: expected {value} as in this run, got {state.get(key)} in the saved state")


class Epochs:
    """Every example once per epoch, in an order that depends on (seed, epoch) alone.

    Args:
        size: number of examples N >= 1.
        batch_size: examples per global batch, >= 1; the last one of an epoch may be smaller.
        seed: of the order.
        shuffle: False keeps the order of the data set.
        drop_last: leave a smaller last batch out.
    Raises:
        ValueError: batch_size below 1, or no batch at all.
    """

    adaptive = False

    def __init__(self, size: int, *, batch_size: int, seed: int = 0, shuffle: bool = True, drop_last: bool = False):
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if drop_last and batch_size > size:
            raise ValueError(f"batch_size: expected at most the {size} examples when drop_last is set, got {batch_size}")
        self.batches_per_epoch = size // batch_size if drop_last else -(-size // batch_size)
        self._settings = {"size": size, "batch_size": batch_size, "seed": seed, "shuffle": shuffle, "drop_last": drop_last}
        self._order: tuple[int, Tensor] = (-1, torch.arange(size))

    def draw(self, epoch: int, index: int) -> Tensor:
        """Positions of global batch number ``index`` of the epoch, int64."""
        size, batch_size = self._settings["size"], self._settings["batch_size"]
        if self._settings["shuffle"] and self._order[0] != epoch:
            self._order = (epoch, torch.randperm(size, generator=generator(self._settings["seed"], epoch)))
        return self._order[1][index * batch_size : (index + 1) * batch_size]

    def feedback(self, ids: Tensor, scores: Tensor) -> None:
        """Refused: shuffled epochs do not adapt.

        Raises:
            TypeError: always.
        """
        raise TypeError("feedback: expected a source with an adaptive sampler such as Weighted, got shuffled epochs")

    def state_dict(self) -> dict[str, Any]:
        """The settings, to be compared on loading."""
        return dict(self._settings)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the settings agree; ValueError when one differs."""
        check_state(state, self._settings)


class Weighted:
    """Batches drawn in proportion to weights that feedback moves: a curriculum, no example twice in a batch.

    Batch (epoch, index) is drawn with a generator seeded by (seed, epoch, index) from the weights of that moment. Feedback is an
    exponential average: w_i <- (1 - rate) w_i + rate max(score_i, floor), so that with floor > 0 no example is lost for ever.

    Args:
        ids: int64 (N,), ids of the examples (``examples.ids``).
        batch_size: examples per global batch, in [1, N].
        rate: of the average, in (0, 1].
        floor: smallest weight, > 0; weights start at 1.
        seed: of the draws.
    Raises:
        ValueError: an argument outside its range.
    """

    adaptive = True

    def __init__(self, ids: Tensor, *, batch_size: int, rate: float = 0.5, floor: float = 1e-3, seed: int = 0):
        if not 1 <= batch_size <= len(ids):
            raise ValueError(f"batch_size: expected a number in [1, {len(ids)}], got {batch_size}")
        if not 0 < rate <= 1:
            raise ValueError(f"rate: expected a number in (0, 1], got {rate}")
        if not 0 < floor <= 1:
            raise ValueError(f"floor: expected a number in (0, 1], got {floor}")
        self.batches_per_epoch = -(-len(ids) // batch_size)
        self.weights = torch.ones(len(ids), dtype=torch.float64)
        """float64 (N,), by position."""
        self._settings = {"size": len(ids), "batch_size": batch_size, "rate": rate, "floor": floor, "seed": seed}
        self._sorted, self._positions = ids.sort()

    def draw(self, epoch: int, index: int) -> Tensor:
        """Positions of global batch number ``index`` of the epoch, int64."""
        return torch.multinomial(self.weights, self._settings["batch_size"], generator=generator(self._settings["seed"], epoch, index))

    def feedback(self, ids: Tensor, scores: Tensor) -> None:
        """Move the weights of these ids (B,) towards scores (B,), finite, any sign; each id at most once.

        Raises:
            ValueError: shapes differ, an unknown id, or a score that is not finite.
        """
        ids, scores = ids.detach().cpu(), scores.detach().cpu().double()
        if ids.shape != scores.shape or ids.ndim != 1:
            raise ValueError(f"scores: expected shape {tuple(ids.shape)} like ids, one axis, got {tuple(scores.shape)}")
        if not bool(torch.isfinite(scores).all()):
            raise ValueError("scores: expected finite numbers, got NaN or infinity")
        places = torch.searchsorted(self._sorted, ids).clamp_max(len(self._sorted) - 1)
        unknown = self._sorted[places] != ids
        if bool(unknown.any()):
            raise ValueError(f"ids: expected ids of the sampler's examples, got {int(ids[unknown][0])}")
        positions, rate = self._positions[places], self._settings["rate"]
        self.weights[positions] = (1 - rate) * self.weights[positions] + rate * scores.clamp_min(self._settings["floor"])

    def state_dict(self) -> dict[str, Any]:
        """Settings and weights."""
        return {**self._settings, "weights": self.weights.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the weights; ValueError when a setting differs."""
        check_state(state, self._settings)
        self.weights = torch.tensor(state["weights"], dtype=torch.float64)
