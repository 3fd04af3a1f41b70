"""Curricula over a pool: which samples a round of training takes, from one score per sample, and in what order.

A pool is what one `scan` of a source gives; its samples have positions in that order. Random numbers depend on the seed of the run, the
number of the round and a key: that of a batch of the pool is its place, which is smaller than all others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from preceptor.core.reduce import gathered, num_examples, rank, world_size
from preceptor.core.stream import Stream
from preceptor.core.types import Batch
from preceptor.data.hashing import generator as generator_of
from preceptor.data.rows import join, take
from preceptor.losses.checks import check_counts, check_unit_interval

MIX, _PASSES = 2**40, 2**41
"""Keys of the generator for `choose`, and of that for the first pass of `shuffled`."""


def ranked(scores: Tensor, *, skip_top: float = 0.0) -> Tensor:
    """The samples of a pool by falling score, ties to the earlier one.

    Args:
        scores: one for each sample, shape (N,); NaN is unscored and left out.
        skip_top: share in [0, 1] of the scored samples with the largest scores that is left out, as outliers.

    Returns:
        int64 positions (n,), n <= N.

    Raises:
        ValueError: another shape, or a share outside [0, 1].
    """
    check_unit_interval(skip_top=skip_top)
    if scores.ndim != 1:
        raise ValueError(f"scores: expected shape (samples,), got {tuple(scores.shape)}")
    unscored = scores.isnan()
    order = scores.masked_fill(unscored, -torch.inf).argsort(descending=True, stable=True)
    order = order[~unscored[order]]
    return order[int(skip_top * len(order) + 1e-9) :]


def choose(order: Tensor, number: int, *, mix_random: float = 0.0, generator: torch.Generator) -> Tensor:
    """The samples of a round: the first ones of an order, some of them replaced by random others.

    Args:
        order: positions in a pool, int64 (n,), the wanted ones first.
        number: how many, at least 1; all where there are no more.
        mix_random: share in [0, 1] of the round that is drawn uniformly from the rest of the order instead.
        generator: on the CPU; used only with mix_random.

    Returns:
        int64 positions (min(number, n),), drawn ones last.

    Raises:
        ValueError: a number below 1 or a share outside its range.
    """
    check_counts(number=number)
    check_unit_interval(mix_random=mix_random)
    number = min(number, len(order))
    first = number - round(mix_random * number)
    rest = order[first:]
    drawn = torch.randperm(len(rest), generator=generator)[: number - first].to(order.device)
    return torch.cat([order[:first], rest[drawn]])


def pool_scores(pool: Stream, score: Callable[..., Tensor], *, seed: int, number: int, device: torch.device) -> Tensor:
    """Score a whole pool; each process scores its share of the batches, and all know all scores.

    Args:
        pool: equal on all processes; its position is not moved.
        score: from a batch on ``device`` and ``seed``, one of its own, to one score for each sample.
        seed: of the run.
        number: of the round.
        device: of the scores.

    Returns:
        float64, (N,); NaN is unscored.
    """
    positions, scores = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.double, device=device)]
    size = 0
    for place, part in enumerate(pool.scan()):
        if place % world_size() == rank():
            draws = int(torch.randint(2**62, (), generator=generator_of(seed, number, place)))
            scores.append(score(send_to_device(part, device), seed=draws))
            positions.append(torch.arange(size, size + num_examples(part)))
        size += num_examples(part)
    table = torch.full((size,), torch.nan, dtype=torch.double, device=device)
    table[gathered(torch.cat(positions).to(device))] = gathered(torch.cat(scores))
    return table


def pool_rows(pool: Stream, wanted: Tensor) -> Batch:
    """The samples of a pool that are wanted, in its order: ``x``, ``y``, ``mask`` and ``id``, as far as it has them.

    Args:
        pool: its position is not moved.
        wanted: bool, (N,), at least one.
    """
    parts, start = [], 0
    for part in pool.scan():
        here = wanted[start : start + num_examples(part)]
        start += len(here)
        if here.any():
            parts.append(take({key: part[key] for key in ("x", "y", "mask", "id") if key in part}, here))
    return join(parts)


def shuffled(total: int, start: int, count: int, *, seed: int, number: int) -> Tensor:
    """A stretch of endless passes over the samples of a round, each shuffled anew.

    Args:
        total: samples, at least 1.
        start: draws before the stretch, from 0.
        count: draws.
        seed: of the run.
        number: of the round.

    Returns:
        int64 positions in [0, total), (count,).
    """
    passes = range(start // total, (start + count) // total + 1)
    order = torch.cat([torch.randperm(total, generator=generator_of(seed, number, _PASSES + i)) for i in passes])
    first = start - passes[0] * total
    return order[first : first + count]
