"""Gradients of hidden states and head from the gradient of the logits, chunk by chunk: exact, or filtered.

Predictions of language models are peaked: most of the logit gradient G of a chunk lies in few classes. With ``filter_mass`` the classes of
a chunk are ordered by their mass sum_i |G_iv|, and those with the least, which together hold at most that share of the chunk's mass, are
not multiplied one by one. What they hold, R, is replaced by its projection on the few directions of rows that the head sees best:
    R ~ U U^T R,   U = an orthonormal basis of R W Z (rows x rank),   Z = random signs (D x rank).
Wijmans et al. 2024 (arXiv:2411.09009), Sec. 4.3, skip blocks of small entries and lose what they held; a projection keeps most. Values
of the loss and the gradient of the bias are always exact. Rows are brought into an order in which neighbours are alike (`similar`), so that
a chunk needs few classes.

The error of each gradient, in the Frobenius norm and relative to its norm, is measured in the same run where a `FilterReport` is given:
|E W|^2 is the mean of |E W z|^2 over random signs z, for the error E = R - U U^T R, and likewise for the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.numeric import upcast

_CACHE = 2**18  # logits of one block of elementwise work: with its temporaries about the second-level cache of a core
_ALIKE = 32  # rows that are not told apart when rows are ordered
_CHOICE = 256  # rows that share a choice of classes: fewer need fewer classes, but slower products
_PER_RANK = 16  # rows per rank of the projection
_PENDING = 64  # ranks that are multiplied at once
_PROBES = 8  # random vectors of the error estimate
_DENSE = 0.8  # with more than this share of the classes, the exact product costs no more


@dataclass(kw_only=True)
class FilterReport:
    """What the last use of ``filter_mass`` left out and how large its error is; a loss that is given one fills it."""

    kept: float = 1.0
    """Share of classes computed one by one, mean over rows, in [0, 1]."""
    hidden_error: float = 0.0
    """|error| / |gradient| of the hidden states' gradient, Frobenius norms, estimated."""
    weight_error: float = 0.0
    """The same of the head's weight."""


def blocks(logits: Tensor) -> Iterator[slice]:
    """Slices of rows whose logits fit into the cache, so that elementwise work goes to memory once; all rows on an accelerator."""
    step = max(1, _CACHE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), step):
        yield slice(start, min(start + step, len(logits)))


@torch.no_grad()
def similar(hidden: Tensor) -> Tensor:
    """An order of rows (N, D) in which neighbours point the same way: halves along the leading direction, again and again. (N,) int64."""
    states = upcast(hidden)
    states = F.normalize(states - states.mean(dim=0), dim=-1)
    parts = [torch.arange(len(states), device=states.device)]
    while max(map(len, parts)) > _ALIKE:
        parts = [half for part in parts for half in _halves(states, part)]
    return torch.cat(parts)


def _halves(states: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """A part, split in the middle of its projection on its leading direction, which four power iterations find well enough."""
    centred = states[part] - states[part].mean(dim=0)
    direction = centred[centred.square().sum(dim=-1).argmax()]
    for _ in range(4):
        direction = F.normalize(centred.T @ (centred @ direction), dim=0)
    order = part[(centred @ direction).argsort()]
    return order[: len(part) // 2], order[len(part) // 2 :]


class Sums:
    """Gradients of hidden states, weight and bias, those that are needed; the last two are summed in float32 at least."""

    def __init__(self, hidden: Tensor, weight: Tensor, needs: tuple[bool, ...]) -> None:
        precise = upcast(hidden[:0]).dtype
        self.inputs, self.head = hidden, weight
        self.hidden = torch.empty_like(hidden) if needs[0] else None
        self.weight = torch.zeros_like(weight, dtype=precise) if needs[1] else None
        self.bias = weight.new_zeros(len(weight), dtype=precise) if needs[2] else None

    def add(self, gradient: Tensor, rows: slice) -> None:
        """Add a chunk, given the gradient of its logits (n, V), which may be overwritten."""
        if self.hidden is not None:
            torch.mm(gradient, self.head, out=self.hidden[rows])
        if self.weight is not None:
            add_product(self.weight, gradient.T, self.inputs[rows])
        self.add_bias(gradient)

    def add_bias(self, gradient: Tensor) -> None:
        """Add a chunk to the gradient of the bias."""
        if self.bias is not None:
            self.bias += gradient.sum(dim=0, dtype=self.bias.dtype)

    def finish(self) -> tuple[Tensor | None, ...]:
        """The gradients."""
        return self.hidden, self.weight, self.bias


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, where the sum may be of higher precision than the factors."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


class FilteredSums:
    """`Sums` with most classes replaced by a projection; see the module."""

    def __init__(self, sums: Sums, mass: float, report: FilterReport | None) -> None:
        self.sums, self.mass, self.report = sums, mass, report
        inputs, head = sums.inputs, sums.head
        self.rank, probes = _CHOICE // _PER_RANK, 0 if report is None else _PROBES
        signs = torch.randint(0, 2, (head.shape[1], self.rank + probes), generator=torch.Generator().manual_seed(0))
        self.signs = (2 * signs - 1).to(inputs)
        self.seen = head @ self.signs
        self.parts = inputs.new_empty(_PENDING, len(head))  # U^T R of pending chunks
        self.bases: list[tuple[slice, Tensor]] = []  # their rows and U
        self.kept = 0
        self.hidden_error = self.seen.new_zeros((), dtype=upcast(self.seen[:0]).dtype)  # squared
        self.weight_error = self.hidden_error.new_zeros(probes, len(head))  # E^T H z

    def add(self, gradient: Tensor, rows: slice) -> None:
        """Add a chunk, given the gradient of its logits (n, V), which is overwritten."""
        for start in range(0, len(gradient), _CHOICE):
            part = gradient[start : start + _CHOICE]
            self._add(part, slice(rows.start + start, rows.start + start + len(part)))

    def finish(self) -> tuple[Tensor | None, ...]:
        """The gradients; fills the report."""
        self._flush()
        if self.report is not None:
            sums = self.sums
            self.report.kept = self.kept / max(1, len(sums.inputs) * len(sums.head))
            self.report.hidden_error = _relative(self.hidden_error / _PROBES, sums.hidden)
            self.report.weight_error = _relative(self.weight_error.square().sum() / _PROBES, sums.weight)
        return self.sums.finish()

    def _add(self, gradient: Tensor, rows: slice) -> None:
        """Add rows that share a choice of classes."""
        keep = self._choose(gradient)
        if len(keep) > _DENSE * gradient.shape[1]:
            self.kept += gradient.numel()
            self.sums.add(gradient, rows)
            return
        self.kept += len(gradient) * len(keep)
        sums, inputs = self.sums, self.sums.inputs[rows]
        sums.add_bias(gradient)
        columns = gradient.index_select(1, keep)
        if sums.hidden is not None:
            torch.mm(columns, sums.head.index_select(0, keep), out=sums.hidden[rows])
        if sums.weight is not None:
            part = sums.weight.index_select(0, keep)
            add_product(part, columns.T, inputs)
            sums.weight.index_copy_(0, keep, part)
        self._project(gradient.index_fill_(1, keep, 0.0), rows)

    def _choose(self, gradient: Tensor) -> Tensor:
        """Classes to compute one by one, in ascending order."""
        mass = self.hidden_error.new_zeros(gradient.shape[1])
        for block in blocks(gradient):
            mass += upcast(gradient[block]).abs().sum(dim=0)
        ascending, order = mass.sort()
        dropped = int((ascending.cumsum(dim=0) <= self.mass * ascending.sum()).sum())
        return order[dropped:].sort().values

    def _project(self, rest: Tensor, rows: slice) -> None:
        """Note the projection of what is left of some rows, and its error."""
        seen, rank = rest @ self.seen, min(self.rank, len(rest))
        basis = torch.linalg.qr(upcast(seen[:, :rank])).Q.to(rest.dtype)
        left = basis
        if self.report is not None:
            probes = seen[:, self.rank :]
            self.hidden_error += (probes - basis @ (basis.T @ probes)).square().sum(dtype=self.hidden_error.dtype)
            states = self.sums.inputs[rows] @ self.signs[:, self.rank :]
            left = torch.cat([basis, states - basis @ (basis.T @ states)], dim=1)
        parts = left.T @ rest
        self.weight_error += parts[rank:]
        if (len(self.bases) + 1) * self.rank > len(self.parts):
            self._flush()
        place = len(self.bases) * self.rank
        self.parts[place : place + rank] = parts[:rank]
        self.parts[place + rank : place + self.rank] = 0.0
        self.bases.append((rows, basis))

    def _flush(self) -> None:
        """Multiply what is pending."""
        sums, parts, bases = self.sums, self.parts[: len(self.bases) * self.rank], self.bases
        self.bases = []
        if sums.hidden is not None and bases:
            for (rows, basis), product in zip(bases, (parts @ sums.head).split(self.rank), strict=True):
                sums.hidden[rows].addmm_(basis, product[: basis.shape[1]])
        if sums.weight is not None and bases:
            states = parts.new_zeros(len(parts), sums.inputs.shape[1])
            for (rows, basis), place in zip(bases, states.split(self.rank), strict=True):
                torch.mm(basis.T, sums.inputs[rows], out=place[: basis.shape[1]])
            add_product(sums.weight, parts.T, states)


def _relative(squared_error: Tensor, gradient: Tensor | None) -> float:
    """|error| / |gradient|; 0 where there is no gradient."""
    if gradient is None:
        return 0.0
    size = torch.linalg.vector_norm(gradient, dtype=squared_error.dtype)
    return float(squared_error.sqrt() / size.clamp_min(torch.finfo(size.dtype).tiny))
