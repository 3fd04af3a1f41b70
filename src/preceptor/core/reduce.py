"""One reduction for every method: counts taken once over all microbatches and processes, then each term divided by its count.

A term with an item axis is summed and divided by the global sum of ``batch["mask/TERM"]`` where there is one, else of
``batch["mask"]`` (at least 1), else by the global number of its elements. A 0-dimensional term is added once per step. So training
with 1 or 4 microbatches, on 1 or many processes, computes the same gradient up to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from preceptor.core.types import Batch, Terms


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_examples(batch: Batch) -> int:
    """Length of the example axis: of ``id``, else of the first tensor.

    Raises:
        ValueError: the batch holds no tensor.
    """
    for value in (batch.get("id"), *batch.values()):
        if isinstance(value, Tensor) and value.ndim:
            return len(value)
        if isinstance(value, Mapping):
            return num_examples(dict(value))
    raise ValueError(f"batch: expected at least one tensor with an example axis, got keys {sorted(batch)}")


def _device(batch: Batch) -> torch.device:
    return next(leaf.device for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))


def split(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into ``parts`` microbatches along the example axis, as evenly as possible; views, not copies.

    Tensors and lists as long as the batch are cut, mappings entry by entry; everything else is repeated. A batch shorter than
    ``parts`` gives one microbatch per example (at least one). Every process gets as many, some of them possibly empty, since sharded
    roles talk to each other in every forward pass.
    """
    if parts == 1:
        return [batch]
    total = num_examples(batch)
    parts = max(1, min(parts, total))
    if world_size() > 1:
        most = torch.tensor(parts, device=_device(batch))
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        parts = int(most)
    if parts == 1:
        return [batch]
    bounds = [total * i // parts for i in range(parts + 1)]

    def cut(value: Any, start: int, stop: int) -> Any:
        if isinstance(value, Mapping):
            return {key: cut(entry, start, stop) for key, entry in value.items()}
        if (isinstance(value, Tensor) and value.ndim and len(value) == total) or (isinstance(value, list) and len(value) == total):
            return value[start:stop]
        return value

    return [cut(batch, start, stop) for start, stop in itertools.pairwise(bounds)]


def global_counts(batch: Batch) -> dict[str, float]:
    """Sums of every mask and the number of examples (``"examples"``), over the whole batch and all processes."""
    counts = {"examples": float(num_examples(batch))}
    counts |= {key: float(value.sum()) for key, value in batch.items() if key == "mask" or key.startswith("mask/")}
    if world_size() == 1:
        return counts
    vector = torch.tensor([counts[key] for key in sorted(counts)], dtype=torch.float64, device=_device(batch))
    dist.all_reduce(vector)
    return dict(zip(sorted(counts), vector.tolist(), strict=True))


def reduce_terms(terms: Terms, batch: Batch, counts: Mapping[str, float], parts: int) -> Terms:
    """This microbatch's share of the reduced terms: the shares of all microbatches and processes add up to the terms.

    Args:
        terms: what a loss returned for ``batch``.
        batch: the microbatch.
        counts: from `global_counts` of the whole batch.
        parts: microbatches times processes; a 0-dimensional term counts 1/parts here.
    Raises:
        ValueError: a term is neither 0-dimensional nor one value per item, or its mask has another shape.
    """
    return {name: _share(name, value, batch, counts, parts) for name, value in terms.items()}


def _share(name: str, value: Tensor, batch: Batch, counts: Mapping[str, float], parts: int) -> Tensor:
    if value.ndim == 0:
        return value / parts
    key = f"mask/{name}" if f"mask/{name}" in batch else "mask"
    if key in batch:
        mask = batch[key]
        if mask.shape != value.shape:
            raise ValueError(f"{key}: expected shape {tuple(value.shape)} like the term {name!r}, got {tuple(mask.shape)}")
        return (value.masked_fill(mask == 0, 0) * mask).sum() / max(counts[key], 1.0)
    size = num_examples(batch)
    if len(value) != size:
        raise ValueError(f"term {name!r}: expected a scalar or one value per example ({size}), got shape {tuple(value.shape)}")
    return value.sum() / max(counts["examples"] * value[:1].numel(), 1.0)


def all_reduce_terms(terms: Terms) -> Terms:
    """Add up every process's share of the reduced terms."""
    if world_size() == 1:
        return terms
    vector = torch.stack([value.to(torch.float64) for value in terms.values()])
    dist.all_reduce(vector)
    return {name: value.to(old.dtype) for (name, old), value in zip(terms.items(), vector, strict=True)}


def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, once per update, in one message per dtype.

    Called after the backward pass, so it also covers roles that a method called outside their forward (`functional_call`, JVP).
    Parameters sharded by FSDP are left alone: their gradients were reduced in the backward pass. A parameter that no process gave a
    gradient keeps None.
    """
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        if not isinstance(parameter, DTensor):
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
    for dtype, group in by_dtype.items():
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
        present = torch.tensor([p.grad is not None for p in group], dtype=dtype, device=group[0].device)
        flat = torch.cat([present, *(piece.reshape(-1) for piece in pieces)])
        dist.all_reduce(flat)
        values = flat[len(group) :].split([piece.numel() for piece in pieces])
        for parameter, count, value in zip(group, flat[: len(group)].tolist(), values, strict=True):
            parameter.grad = value.view_as(parameter) if count else None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(world_size())]
        dist.all_gather(sizes, torch.tensor([len(tensor)], device=tensor.device))
        lengths = [int(size) for size in sizes]
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        pieces = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(pieces, padded)
        ctx.span = (sum(lengths[: rank()]), len(tensor))
        return torch.cat([piece[:length] for piece, length in zip(pieces, lengths, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)  # autograd may hand the same tensor to others
        dist.all_reduce(gradient)
        start, length = ctx.span
        return gradient[start : start + length]


def gathered(tensor: Tensor) -> Tensor:
    """Join the items of all processes, in order of rank, with gradient; the tensor itself on one process.

    For `coupled` methods, whose loss relates the items of a batch: each process computes the same 0-dimensional term on the joined
    items, and the reduction counts it once.

    Args:
        tensor: (n, ...), n may differ from process to process.
    Returns:
        (sum of n, ...).
    """
    return tensor if world_size() == 1 else _Gather.apply(tensor)  # pyright: ignore[reportReturnType]
