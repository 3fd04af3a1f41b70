"""The loop behind `preceptor.losses.linear`: logits of a few rows at a time, in one buffer that their gradient overwrites.

A row loss turns the logits of some rows into values and their gradient; the engine owns everything else. Where it may, it forms the
gradients of hidden states and head in the forward pass, while the logits are there: three matrix products instead of the four of a loss
that computes its logits again in the backward pass. They are formed for an upstream gradient that is the same in every row, which a sum or
a mean has, and scaled by it. Any other upstream gradient is exact too: the chunks are then computed once more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from preceptor.losses.checks import check_floating
from preceptor.losses.numeric import upcast
from preceptor.models.heads import Head

CHUNK_ROWS = 256
_CACHE = 2**19  # logits of one block of the elementwise part: what fits into the second-level cache of a core with its temporaries


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

    def block(self, logits: Tensor, teacher: Tensor | None, rows: slice, upstream: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Values of a block of rows, (n, K), and, with ``upstream`` (n, K), the gradient of the logits, (n, V).

        Args:
            logits: (n, V), after bias and soft cap, in any dtype; not edited.
            teacher: the teacher's logits of the same rows.
            rows: which rows these are.
            upstream: gradient of the values; None: none is wanted.
        """
        ...


def run(hidden: Tensor, head: Head, loss: RowLoss, mask: Tensor | None, *, chunk_rows: int, form: bool = True) -> Tensor:
    """Values of a row loss, (..., K), in float32 or float64; 0 in masked rows, which are dropped before any work.

    Args:
        hidden: (..., D).
        head: its weight and bias get gradients where they require one.
        loss: knows the rows that count only, in their order.
        mask: (rows,) bool, as `counted` returns it.
        chunk_rows: rows whose logits exist at a time.
        form: whether to form gradients in the forward pass, which is wasted where rows have different upstream gradients.

    Raises:
        ValueError: chunk_rows is not positive.
    """
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows: expected at least 1, got {chunk_rows}")
    rows, head = autocast(hidden.reshape(-1, hidden.shape[-1]), head)
    if mask is not None:
        rows = rows[mask]
    form = form and torch.is_grad_enabled()
    with torch.autocast(rows.device.type, enabled=False):
        values: Tensor = _Linear.apply(rows, head.weight, head.bias, head.soft_cap, loss, chunk_rows, form)  # pyright: ignore[reportAssignmentType]
    if mask is not None:
        values = values.new_zeros(len(mask), values.shape[1]).index_put((mask,), values)
    return values.reshape(*hidden.shape[:-1], values.shape[1])


def counted(hidden: Tensor, mask: Tensor | None) -> Tensor | None:
    """The mask of rows as (rows,) bool; None: all count.

    Raises:
        ValueError: the mask has not one entry per row.
    """
    if mask is None:
        return None
    if mask.shape != hidden.shape[:-1]:
        raise ValueError(f"mask: expected shape {tuple(hidden.shape[:-1])} (one per row), got {tuple(mask.shape)}")
    return (mask != 0).flatten()


def check_head(hidden: Tensor, head: Head, name: str = "") -> None:
    """Refuse hidden states and a head that do not fit; ``name`` is whose they are.

    Raises:
        TypeError: one of them is not floating point.
        ValueError: naming what does not fit.
    """
    check_floating(**{f"{name}hidden": hidden, f"{name}head": head.weight})
    shape = tuple(head.weight.shape)
    if len(shape) != 2 or hidden.ndim < 1 or hidden.shape[-1] != shape[-1]:
        raise ValueError(f"{name}hidden: expected shape (..., D) for a head of shape (V, D) = {shape}, got {tuple(hidden.shape)}")
    if head.bias is not None and head.bias.shape != shape[:1]:
        raise ValueError(f"{name}head: expected a bias of shape {shape[:1]}, got {tuple(head.bias.shape)}")


def autocast(hidden: Tensor, head: Head) -> tuple[Tensor, Head]:
    """Hidden states and head in the precision that `torch.autocast` would give to their product."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device) or hidden.dtype == torch.float64:
        return hidden, head
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), Head(head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype), head.soft_cap)


def _project(hidden: Tensor, head: Head, buffer: Tensor) -> Tensor:
    """Logits of a chunk, in the first rows of ``buffer``."""
    out = buffer[: len(hidden)]
    if head.bias is None:
        torch.mm(hidden, head.weight.T, out=out)
    else:
        torch.addmm(head.bias, hidden, head.weight.T, out=out)
    return out if head.soft_cap is None else out.div_(head.soft_cap).tanh_().mul_(head.soft_cap)


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
        chunk_rows: int,
        form: bool,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.settings = (soft_cap, loss, chunk_rows)
        upstream = None
        if form:
            upstream = torch.zeros(len(hidden), loss.columns, dtype=upcast(hidden[:0]).dtype, device=hidden.device)
            upstream[:, 0] = 1.0
        values, ctx.formed = _sweep(hidden, weight, bias, soft_cap, loss, chunk_rows, upstream, ctx.needs_input_grad[:3])
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients, ctx.formed = ctx.formed, None  # scaled in place: a second backward pass computes its own
        first = upstream[:1, 0]
        if gradients is not None and bool((upstream[:, 0] == first).all() and not upstream[:, 1:].any()):
            for gradient in gradients:
                if gradient is not None and len(upstream):
                    gradient.mul_(first)
        else:
            hidden, weight, bias = ctx.saved_tensors
            soft_cap, loss, chunk_rows = ctx.settings
            _, gradients = _sweep(hidden, weight, bias, soft_cap, loss, chunk_rows, upstream, ctx.needs_input_grad[:3])
            assert gradients is not None
        cast = (None if g is None else g.to(x.dtype) for g, x in zip(gradients, ctx.saved_tensors, strict=True))
        return (*cast, None, None, None, None)


def _sweep(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    soft_cap: float | None,
    loss: RowLoss,
    chunk_rows: int,
    upstream: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, list[Tensor | None] | None]:
    """Values (rows, K) and, with ``upstream``, the gradients that are needed of hidden, weight and bias, the latter in float32 at least."""
    precise = upcast(hidden[:0]).dtype
    values = torch.empty(len(hidden), loss.columns, dtype=precise, device=hidden.device)
    d_hidden = torch.empty_like(hidden) if upstream is not None and needs[0] else None
    d_weight = torch.zeros_like(weight, dtype=precise) if upstream is not None and needs[1] else None
    d_bias = weight.new_zeros(len(weight), dtype=precise) if upstream is not None and needs[2] else None
    if not any(needs):
        upstream = None
    buffer = hidden.new_empty(min(chunk_rows, len(hidden)), len(weight))
    teacher_buffer = None if loss.teacher is None else loss.teacher[0].new_empty(buffer.shape)
    for rows in _chunks(len(hidden), chunk_rows):
        inputs = hidden[rows]
        logits = _project(inputs, Head(weight, bias, soft_cap), buffer)
        teacher = None
        if loss.teacher is not None and teacher_buffer is not None:
            teacher = _project(loss.teacher[0][rows], loss.teacher[1], teacher_buffer)
        for block in _blocks(logits):
            here = slice(rows.start + block.start, rows.start + block.stop)
            beside = None if teacher is None else teacher[block]
            values[here], gradient = loss.block(logits[block], beside, here, None if upstream is None else upstream[here])
            if gradient is not None:
                if soft_cap is not None:
                    gradient.mul_(1 - (upcast(logits[block]) / soft_cap).square())
                logits[block] = gradient
        if d_hidden is not None:
            torch.mm(logits, weight, out=d_hidden[rows])
        if d_weight is not None and precise == weight.dtype:
            d_weight.addmm_(logits.T, inputs)
        elif d_weight is not None:
            d_weight += logits.T @ inputs
        if d_bias is not None:
            d_bias += logits.sum(dim=0, dtype=precise)
    return values, None if upstream is None else [d_hidden, d_weight, d_bias]


def _chunks(rows: int, chunk_rows: int) -> Iterator[slice]:
    """Slices of nearly equal size, at most ``chunk_rows``, that cover the rows."""
    count = math.ceil(rows / chunk_rows)
    for i in range(count):
        yield slice(i * rows // count, (i + 1) * rows // count)


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Slices of rows whose logits fit into the cache, so that elementwise work goes to memory once; all rows on an accelerator."""
    step = max(1, _CACHE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), step):
        yield slice(start, min(start + step, len(logits)))
