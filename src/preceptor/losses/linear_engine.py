"""The loop behind `preceptor.losses.linear`: logits of a few rows at a time, in one buffer that their gradient overwrites.

A row loss turns the logits of some rows into values and their gradient; the engine owns everything else. Where it may, it forms the
gradients of hidden states and head in the forward pass, while the logits are there: three matrix products instead of the four of a loss
that computes its logits again in the backward pass. They are formed for an upstream gradient that is the same in every row, which a sum or
a mean has, and scaled by it. Any other upstream gradient is exact too: the chunks are then computed once more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from preceptor.losses.linear_filter import FilteredSums, FilterReport, Sums, blocks
from preceptor.losses.numeric import upcast
from preceptor.models.heads import Head

_ROWS = 512  # of all logits that exist at a time, where the caller does not say; on CPUs products of fewer rows are slower


class RowLoss(Protocol):
    """What a loss computes from the logits of some rows."""

    @property
    def columns(self) -> int:
        """Number K of values per row; gradients are formed in the forward pass for the first."""
        ...

    @property
    def teacher(self) -> tuple[Tensor, Head] | None:
        """Hidden states (rows, E) and head of a teacher whose logits are computed beside the student's, or None."""
        ...

    def block(self, logits: Tensor, teacher: Tensor | None, rows: slice, upstream: Tensor | None) -> Tensor:
        """Values of a block of rows, (n, K).

        Args:
            logits: (n, V), after bias and soft cap, in any dtype; with ``upstream``, overwritten by their gradient.
            teacher: the teacher's logits of the same rows.
            rows: which rows these are.
            upstream: gradient of the values, (n, K); None: no gradient is wanted.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the engine runs."""

    chunk_rows: int | None  # rows whose logits exist at a time
    form: bool = True  # gradients in the forward pass, which is wasted where rows have different upstream gradients
    filter_mass: float = 0.0  # see `preceptor.losses.linear_filter`
    filter_report: FilterReport | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.chunk_rows is not None and self.chunk_rows < 1:
            raise ValueError(f"chunk_rows: expected at least 1, got {self.chunk_rows}")
        if not 0 <= self.filter_mass < 1:
            raise ValueError(f"filter_mass: expected a number in [0, 1), got {self.filter_mass}")


def run(hidden: Tensor, head: Head, loss: RowLoss, index: Tensor | None, settings: Settings) -> Tensor:
    """Values of a row loss, (..., K), in float32 or float64; 0 in rows that do not count, which are dropped before any work.

    Args:
        hidden: (..., D).
        head: its weight and bias get gradients where they require one.
        loss: knows the rows of ``index`` only, in that order.
        index: (rows,) int64, the rows that count; None: all, as they come.
        settings: how to run.
    """
    states, head = autocast(hidden.reshape(-1, hidden.shape[-1]), head)
    rows = states if index is None else states[index]
    with torch.autocast(rows.device.type, enabled=False):
        form = settings.form and torch.is_grad_enabled()
        values: Tensor = _Linear.apply(rows, head.weight, head.bias, head.soft_cap, loss, settings, form)  # pyright: ignore[reportAssignmentType]
    if index is not None:
        values = values.new_zeros(len(states), values.shape[1]).index_put((index,), values)
    return values.reshape(*hidden.shape[:-1], values.shape[1])


def autocast(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Hidden states and head in the precision that `torch.autocast` would give to their product."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device) or hidden.dtype == torch.float64:
        return hidden, head
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), Head(head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype), head.soft_cap)


class _Linear(torch.autograd.Function):
    """Row losses of hidden @ weight.T + bias; see the module."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        soft_cap: float | None,
        loss: RowLoss,
        settings: Settings,
        form: bool,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.rest = (soft_cap, loss, settings)
        upstream = None
        if form:
            upstream = torch.zeros(len(hidden), loss.columns, dtype=upcast(hidden[:0]).dtype, device=hidden.device)
            upstream[:, 0] = 1.0
        values, ctx.formed = _sweep(hidden, Head(weight, bias, soft_cap), loss, settings, upstream, ctx.needs_input_grad)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias = ctx.saved_tensors
        formed, ctx.formed = ctx.formed, None  # scaled in place: a second backward pass computes its own
        first = upstream[:1, 0]
        if formed is not None and bool((upstream[:, 0] == first).all() and not upstream[:, 1:].any()):
            for gradient in formed:
                if gradient is not None and len(upstream):
                    gradient.mul_(first)
        else:
            soft_cap, loss, settings = ctx.rest
            _, formed = _sweep(hidden, Head(weight, bias, soft_cap), loss, settings, upstream, ctx.needs_input_grad)
            assert formed is not None
        cast = (None if g is None else g.to(x.dtype) for g, x in zip(formed, (hidden, weight, bias), strict=True))
        return (*cast, None, None, None, None)


def _sweep(
    hidden: Tensor, head: Head, loss: RowLoss, settings: Settings, upstream: Tensor | None, needs: tuple[bool, ...]
) -> tuple[Tensor, tuple[Tensor | None, ...] | None]:
    """Values (rows, K) and, with ``upstream``, the gradients that are needed of hidden states, weight and bias."""
    values = torch.empty(len(hidden), loss.columns, dtype=upcast(hidden[:0]).dtype, device=hidden.device)
    sums = None
    if upstream is not None and any(needs):
        sums = Sums(hidden, head.weight, needs)
        if settings.filter_mass > 0:
            sums = FilteredSums(sums, settings.filter_mass, settings.filter_report)
    chunk_rows = settings.chunk_rows or (_ROWS if loss.teacher is None and settings.filter_mass == 0 else _ROWS // 2)
    buffer = hidden.new_empty(min(chunk_rows, len(hidden)), len(head.weight))
    teacher_buffer = None if loss.teacher is None else loss.teacher[0].new_empty(buffer.shape)
    for rows in _chunks(len(hidden), chunk_rows):
        logits, teacher = _project(hidden[rows], head, buffer), None
        if loss.teacher is not None and teacher_buffer is not None:
            teacher = _project(loss.teacher[0][rows], loss.teacher[1], teacher_buffer)
        for block in blocks(logits):
            here = slice(rows.start + block.start, rows.start + block.stop)
            part, beside = logits[block], None if teacher is None else teacher[block]
            slope = None if sums is None or head.soft_cap is None else 1 - (upcast(part) / head.soft_cap).square()
            values[here] = loss.block(part, beside, here, None if sums is None or upstream is None else upstream[here])
            if slope is not None:
                part.mul_(slope)
        if sums is not None:
            sums.add(logits, rows)
    return values, None if sums is None else sums.finish()


def _project(hidden: Tensor, head: Head, buffer: Tensor) -> Tensor:
    """Logits of a chunk, in the first rows of ``buffer``."""
    out = buffer[: len(hidden)]
    if head.bias is None:
        torch.mm(hidden, head.weight.T, out=out)
    else:
        torch.addmm(head.bias, hidden, head.weight.T, out=out)
    return out if head.soft_cap is None else out.div_(head.soft_cap).tanh_().mul_(head.soft_cap)


def _chunks(rows: int, chunk_rows: int) -> Iterator[slice]:
    """Slices of nearly equal size, at most ``chunk_rows``, that cover the rows."""
    count = math.ceil(rows / chunk_rows)
    for i in range(count):
        yield slice(i * rows // count, (i + 1) * rows // count)
