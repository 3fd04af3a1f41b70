"""Curricula: which samples a round of training takes from a pool, by one score per sample, how many, and in what order.

A pool is what one `scan` of a source gives; its samples have positions in that order. Random numbers depend on the seed of the run, the
number of the round and a key: that of a batch of the pool is its place, which is smaller than all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from preceptor.core.reduce import gathered, num_examples, rank, world_size
from preceptor.core.stream import Stream
from preceptor.core.types import Batch
from preceptor.data.hashing import generator as generator_of
from preceptor.data.rows import join, take
from preceptor.losses.checks import check_choice, check_counts, check_unit_interval

MIX, _PASSES = 2**40, 2**41
"""Keys of the generator for `choose`, and of that for the first pass of `shuffled`."""

Pacing = Literal["linear", "quad", "sqrt", "step", "exp", "log"]
"""How a pool grows, see `pacing`."""

Ordering = Literal["curr", "anti", "rand"]
"""Easiest first, hardest first, shuffled."""


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


def pacing(name: Pacing, a: float, b: float, total_steps: int, total_items: int) -> Callable[[int], int]:
    """How many items of an order are in use after so many steps; works for samples, clients or classes.

    Wu, Dyer, Neyshabur 2021 (arXiv:2012.03107), Sec. 4.2, with N items, T steps, B = b N and tau = a T, cut to an integer in [1, N]:
        linear B + (N - B) t / tau,          quad B + (N - B) (t / tau)^2,      sqrt B + (N - B) (t / tau)^(1/2),
        step   B + N floor(t / tau),         exp  B + (N - B) (e^(10 t / tau) - 1) / (e^10 - 1),
        log    B + (N - B) (1 + ln(t / tau + e^-10) / 10).
    Each is a rate times a function of t, as in released code: its rounding decides the integer.

    Args:
        name: of the function.
        a: share of the steps at which everything is in, at least 0, more than 1 for never; 0 is everything at once.
        b: share of the items at the start, in [0, 1].
        total_steps: T, at least 1.
        total_items: N, at least 1.

    Returns:
        From t, at least 0, to the number of items: never smaller for a larger t.

    Raises:
        ValueError: an unknown name or a number outside its range.
    """
    check_choice(Pacing, name=name)
    check_counts(total_steps=total_steps, total_items=total_items)
    check_unit_interval(b=b)
    if not 0 <= a < math.inf:
        raise ValueError(f"a: expected a finite number >= 0, got {a}")
    first, full = b * total_items, a * total_steps
    rest = total_items - first
    if full == 0:
        return lambda t: total_items
    grown: dict[Pacing, Callable[[int], float]] = {
        "linear": lambda t: rest / full * t,
        "quad": lambda t: rest / full**2 * t**2,
        "sqrt": lambda t: rest / full**0.5 * t**0.5,
        "step": lambda t: total_items * (t // full),
        "exp": lambda t: rest / (math.exp(10) - 1) * (math.exp(t * (10 / full)) - 1),
        "log": lambda t: rest * (1 + 0.1 * math.log(t / full + math.exp(-10))),
    }
    grow = grown[name]
    return lambda t: total_items if t > full else max(1, min(int(grow(t) + first), total_items))


def order_samples(losses: Tensor, mode: Ordering, *, generator: torch.Generator | None = None) -> Tensor:
    """Positions in the order in which a curriculum takes them.

    Args:
        losses: one for each sample or client, shape (N,); those that are not finite come last, ties keep their order.
        mode: "curr" by rising loss, "anti" by falling loss, "rand" shuffled.
        generator: on the CPU; for "rand", which needs it.

    Returns:
        int64, (N,): every position once.

    Raises:
        ValueError: another shape, an unknown mode, or "rand" without a generator.
    """
    check_choice(Ordering, mode=mode)
    if losses.ndim != 1:
        raise ValueError(f"losses: expected shape (samples,), got {tuple(losses.shape)}")
    finite = losses.isfinite()
    if mode == "rand":
        if generator is None:
            raise ValueError("generator: expected one for the order 'rand', got None")
        order = torch.randperm(len(losses), generator=generator).to(losses.device)
    else:
        order = (losses if mode == "curr" else -losses).masked_fill(~finite, torch.inf).argsort(stable=True)
    return torch.cat([order[finite[order]], order[~finite[order]]])


class Paced:
    """A `preceptor.core.stream.Stream` over a growing beginning of an order: passes over what is in, shuffled anew in each.

    How much is in is looked up at the start of a pass, with the number of batches before it.

    Args:
        whole: all samples, N of them.
        order: int64 (n,), positions in them, the first ones to be used first.
        size: from batches done to how many of the order are in, as `pacing` returns.
        batch_size: samples in a batch, at least 1; the last one of a pass may be smaller.
        minimum: how many are in at least; all where there are no more.
        seed: of the order within passes.

    Raises:
        ValueError: an empty order or a batch size below 1.
    """

    def __init__(self, whole: Batch, order: Tensor, size: Callable[[int], int], *, batch_size: int, minimum: int = 1, seed: int) -> None:
        check_counts(batch_size=batch_size, minimum=minimum, samples=len(order))
        self.whole, self.order, self.size, self.batch_size, self.minimum, self.seed = whole, order, size, batch_size, minimum, seed
        self.step, self.left = 0, order[:0]

    def __next__(self) -> Batch:
        """The next batch of the pass, or the first of a new one."""
        if not len(self.left):
            subset = self.order[: max(self.size(self.step), self.minimum)]
            self.left = subset[torch.randperm(len(subset), generator=generator_of(self.seed, self.step)).to(subset.device)]
        rows, self.left = self.left[: self.batch_size], self.left[self.batch_size :]
        self.step += 1
        return take(self.whole, rows)

    def scan(self) -> Iterable[Batch]:
        """One pass over the whole order, in that order."""
        return (take(self.whole, rows) for rows in self.order.split(self.batch_size))

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"step": self.step, "left": self.left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` returned."""
        self.step, self.left = state["step"], state["left"]
