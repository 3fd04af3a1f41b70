"""Divergences of logits that are there anyway, on the tokens that count, with nothing of their size beside them but their gradient.

`preceptor.losses.divergence` leaves the gradient to autograd, which keeps several tensors of the size of the logits; here value and
gradient of some rows are computed together, while they are in the cache, by the code that `preceptor.losses.linear` uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from preceptor.losses.checks import check_floating, check_same_shape
from preceptor.losses.linear_filter import blocks
from preceptor.losses.linear_inputs import Kind, resolve, rows_that_count, softmax_of
from preceptor.losses.linear_rows import TeacherLogits
from preceptor.losses.numeric import upcast


def masked_divergence(
    student: Tensor,
    teacher: Tensor,
    *,
    kind: Kind = "forward_kl",
    share: float | None = None,
    mask: Tensor | None = None,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """A divergence of `preceptor.losses.divergence` on the rows that count: same values and gradients, less time and memory.

    Args:
        student: logits, (..., V).
        teacher: logits of the same shape; constant.
        kind: which divergence.
        share: its one number in [0, 1], see `preceptor.losses.linear.linear_divergence`.
        mask: (...), 0 where a token does not count; its value is 0 and so is its gradient.
        temperature: T > 0, no unit; a number or one per token.

    Returns:
        (...), >= 0, in float32 or float64; no factor T^2, no second derivative.

    Raises:
        TypeError: logits are not floating point.
        ValueError: a shape does not fit, the kind is unknown or has no share, or a number is outside its range.
    """
    check_floating(student=student, teacher=teacher)
    check_same_shape(student=student, teacher=teacher)
    index = rows_that_count(student, mask, filter_mass=0.0)
    name, number = resolve(kind, share)
    softmax = softmax_of(student, None, temperature, index)
    loss = TeacherLogits(kind=name, share=number, softmax=softmax, teacher_softmax=softmax)
    where = torch.arange(student[..., 0].numel(), device=student.device) if index is None else index
    rows, given = (logits.reshape(-1, logits.shape[-1]) for logits in (student, teacher.detach()))
    values: Tensor = _Rows.apply(rows, given, where, loss, torch.is_grad_enabled())  # pyright: ignore[reportAssignmentType]
    return values.reshape(student.shape[:-1])


class _Rows(torch.autograd.Function):
    """A row loss of logits (rows, V), and its gradient in the same pass."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, logits: Tensor, teacher: Tensor, index: Tensor, loss: TeacherLogits, wanted: bool
    ) -> Tensor:
        ctx.save_for_backward(logits, teacher, index)
        ctx.loss = loss
        values, ctx.formed = _sweep(logits, teacher, index, loss, gradient=wanted and ctx.needs_input_grad[0])
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, teacher, index = ctx.saved_tensors
        gradient, ctx.formed = ctx.formed, None  # scaled in place: a second backward pass computes its own
        if gradient is None:
            _, gradient = _sweep(logits, teacher, index, ctx.loss, gradient=True)
        assert gradient is not None
        scale = upstream[index, None].to(gradient.dtype)
        if not (scale == 1).all():
            for block, rows in _blocks(index, logits):
                gradient[rows] = gradient[rows].mul_(scale[block])
        return gradient, None, None, None, None


def _sweep(logits: Tensor, teacher: Tensor, index: Tensor, loss: TeacherLogits, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Values (rows,), and the gradient (rows, V) of their sum."""
    values = torch.zeros(len(logits), dtype=upcast(logits[:0]).dtype, device=logits.device)
    formed = torch.empty_like(logits) if gradient else None
    if formed is not None:
        others = torch.ones(len(logits), dtype=torch.bool, device=index.device).index_fill_(0, index, value=False).nonzero()[:, 0]
        formed.index_fill_(0, others, 0.0)
    ones = values.new_ones(len(index), 1)
    for block, rows in _blocks(index, logits):
        part = logits[rows] if formed is None else formed[rows].copy_(logits[rows])  # in a slice of rows, where it is to be
        part, masked, empty = _cannot_be(part)
        beside, masked_beside, _ = _cannot_be(teacher[rows])
        softmax = replace(loss.softmax, masked=masked)
        bounded = replace(loss, softmax=softmax, teacher_softmax=replace(softmax, masked=masked_beside))
        with torch.autocast(logits.device.type, enabled=False):
            values[rows] = bounded.block(part, beside, block, None if formed is None else ones[block])[:, 0]
        if formed is not None:
            formed[rows] = part if empty is None else part.masked_fill_(empty, 0.0)
    return values, formed


def _blocks(index: Tensor, logits: Tensor) -> Iterator[tuple[slice, slice | Tensor]]:
    """Blocks of the rows that count, as a slice of ``index`` and as rows: a slice of them where they are neighbours."""
    places = index.tolist()
    for block in blocks(index[:, None].expand(-1, logits.shape[1])):
        first, last = places[block.start], places[block.stop - 1]
        yield block, slice(first, last + 1) if last - first == block.stop - 1 - block.start else index[block]


def _cannot_be(logits: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The logits (n, V); classes with a logit of -inf (n, V); rows without any other (n, 1), made uniform. None: no such logit."""
    if logits.amin() > -torch.inf:
        return logits, None, None
    masked = torch.isneginf(logits)
    empty = masked.all(dim=-1, keepdim=True)
    return logits.masked_fill(empty, 0.0), masked & ~empty, empty
