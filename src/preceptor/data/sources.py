"""Source: an endless stream of batches whose whole state is (epoch, batch index)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from preceptor.core.method import Method
from preceptor.core.types import Batch
from preceptor.data.examples import Examples
from preceptor.data.hashing import hash_ids
from preceptor.data.samplers import Epochs, Sampler

Augment = Callable[[Batch], Batch]
"""Turns a batch with ``id`` and ``epoch`` into its augmented view; it must depend on those two alone, see `preceptor.data.augment`."""


class Source:
    """Batches without end: dicts with ``x``, ``y``, ``id`` and ``epoch`` (an int), and what ``augment`` adds.

    Resuming is exact because nothing but the position is kept: the order depends on (seed, epoch) and every random number on
    (seed, epoch, id). That holds for a data set that draws random numbers as it reads, too: torch, numpy and ``random`` are
    seeded for each example, so that it gives the same view with any number of workers and of processes; generators of its own it must
    seed itself. Tensors in memory are indexed at once and need no workers.

    Args:
        examples: what to draw from.
        batch_size: examples per *global* batch, all processes together; the last of an epoch may be smaller.
        seed: of the order and of the random numbers of a data set.
        shuffle: False keeps the order of the data set.
        augment: applied to each batch of this process, in the main process.
        drop_last: leave a smaller last batch out.
        rank: number of this process; it gets the examples ``[rank::world]`` of each global batch, possibly none.
        world: number of processes.
        num_workers: worker processes that read a data set not in memory, a few batches ahead.
        sampler: draws the batches instead of shuffled epochs; ``batch_size``, ``shuffle`` and ``drop_last`` are then its own business.
    Raises:
        ValueError: an argument out of range, or workers with an adaptive sampler (they would draw before the feedback).
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        augment: Augment | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
        sampler: Sampler | None = None,
    ):
        if not 0 <= rank < world:
            raise ValueError(f"rank: expected a number in [0, {world}), got {rank}")
        if num_workers < 0:
            raise ValueError(f"num_workers: expected at least 0, got {num_workers}")
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.sampler = sampler or Epochs(len(examples), batch_size=batch_size, seed=seed, shuffle=shuffle, drop_last=drop_last)
        if num_workers and self.sampler.adaptive:
            raise ValueError(f"num_workers: expected 0 with an adaptive sampler, got {num_workers}")
        self.epoch = 0
        self.index = 0
        self._rank, self._world = rank, world
        self._num_workers = 0 if examples.in_memory else num_workers
        self._loader: Iterator[Batch] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one epoch, the same on every process."""
        return self.sampler.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._num_workers:
            if self._loader is None:
                self._loader = self._read_ahead()
            batch = next(self._loader)
        else:
            share = self.sampler.draw(self.epoch, self.index)[self._rank :: self._world]
            batch = _read(self.examples, self.seed, self.epoch, share)
        self.epoch, self.index = _after(self.epoch, self.index, self.batches_per_epoch)
        return batch if self.augment is None else self.augment(batch)

    def scan(self) -> Iterator[Batch]:
        """One pass over all examples in order, every process all of them, without augmentation; moves no position."""
        for indices in torch.arange(len(self.examples)).split(self.batch_size):
            yield _read(self.examples, self.seed, 0, indices)

    def feedback(self, ids: Tensor, scores: Tensor) -> None:
        """Tell an adaptive sampler how examples did: ids (B,), scores (B,), the same on every process; TypeError without such a sampler."""
        self.sampler.feedback(ids, scores)

    def state_dict(self) -> dict[str, Any]:
        """The position and the sampler's state: plain numbers and lists, independent of the number of processes and workers."""
        return {"epoch": self.epoch, "index": self.index, "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; the next batch is the one that would have followed.

        Raises:
            ValueError: the state belongs to other settings (the message names which).
        """
        self.sampler.load_state_dict(state["sampler"])
        self.epoch, self.index = state["epoch"], state["index"]
        self._loader = None

    def _read_ahead(self) -> Iterator[Batch]:
        keys = _Keys(self.sampler, self.epoch, self.index, self._rank, self._world)
        reader = _Reader(self.examples, self.seed)
        return iter(DataLoader(reader, sampler=keys, batch_size=None, collate_fn=_same, num_workers=self._num_workers))


def streams(method: Method, valid: Examples, *, batch_size: int, seed: int) -> dict[str, Source]:
    """The further data that a method `reads`, by name; the same on every process.

    Args:
        method: asks for them.
        valid: the validation part.
        batch_size: examples per batch, at most all of them.
        seed: of the order.
    """
    given = {"valid": valid}
    return {name: Source(given[name], batch_size=min(batch_size, len(given[name])), seed=seed) for name in method.reads}


def _read(examples: Examples, seed: int, epoch: int, indices: Tensor) -> Batch:
    seeds = None if examples.in_memory else hash_ids(examples.ids[indices], seed, epoch)
    return {**examples.batch(indices, seeds=seeds), "epoch": epoch}


def _same(batch: Any) -> Any:
    """Instead of a conversion by the loader; a module's function, so that workers can be spawned as well as forked."""
    return batch


def _after(epoch: int, index: int, batches_per_epoch: int) -> tuple[int, int]:
    return (epoch, index + 1) if index + 1 < batches_per_epoch else (epoch + 1, 0)


class _Keys:
    """Endless (epoch, positions of this process), from a position on.

    Holds no source: a source in a cycle with its workers would leave them to the garbage collector, which waits seconds for them.
    """

    def __init__(self, sampler: Sampler, epoch: int, index: int, rank: int, world: int):
        self._sampler, self._epoch, self._index, self._rank, self._world = sampler, epoch, index, rank, world

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        epoch, index = self._epoch, self._index
        while True:
            yield epoch, self._sampler.draw(epoch, index)[self._rank :: self._world]
            epoch, index = _after(epoch, index, self._sampler.batches_per_epoch)


class _Reader(Dataset[Batch]):
    """Reads whole batches in a worker."""

    def __init__(self, examples: Examples, seed: int):
        self._examples, self._seed = examples, seed

    def __getitem__(self, key: tuple[int, Tensor]) -> Batch:
        epoch, indices = key
        return _read(self._examples, self._seed, epoch, indices)
