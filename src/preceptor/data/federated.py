"""Data of many clients: a partition into unequal shares of the classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from preceptor.losses.checks import check_counts, check_positive

_ATTEMPTS = 1000


def dirichlet_partition(
    labels: Tensor, n: int, *, beta: float, seed: int, order: Tensor | None = None, minimum: int = 10
) -> tuple[Tensor, ...]:
    """Share out samples among clients whose classes differ.

    Hsu, Qi, Brown 2019 (arXiv:1909.06335): client i draws q_i from Dir(beta K p), with p the frequencies of the K classes, and class k is
    split among the clients in proportion to q_1k, ..., q_nk; drawn again until every client has the smallest number.

    Args:
        labels: int64, (N,).
        n: clients, at least 1.
        beta: > 0; small: few classes for each client, large: every client as the whole.
        seed: of the draws.
        order: int64 (N,), positions by rising difficulty: the first clients get the easy samples of each class. None: at random.
        minimum: samples that every client has at least.

    Returns:
        n tensors of positions in [0, N), together every one once.

    Raises:
        ValueError: a number outside its range, an order that is none, or no partition with that minimum in a thousand draws.
    """
    check_counts(n=n, minimum=minimum)
    check_positive(beta=beta)
    rng = np.random.default_rng(seed)
    if order is None:
        order = torch.from_numpy(rng.permutation(len(labels)))
    elif order.shape != labels.shape or not torch.equal(order.sort().values, torch.arange(len(labels))):
        raise ValueError(f"order: expected every position in [0, {len(labels)}) once, got a tensor of shape {tuple(order.shape)}")
    classes, counts = labels.unique(return_counts=True)
    members = [order[labels[order] == label] for label in classes]
    concentration = (beta * len(classes) * counts.double() / len(labels)).numpy()
    for _ in range(_ATTEMPTS):
        shares = rng.dirichlet(concentration, size=n).T
        with np.errstate(invalid="ignore"):  # a class that no client wants gives NaN and is drawn again
            ends = shares.cumsum(axis=1) / shares.sum(axis=1, keepdims=True)
        if not np.isfinite(ends).all():
            continue
        cuts = [np.round(row[:-1] * len(of_class)).astype(int).tolist() for row, of_class in zip(ends, members, strict=True)]
        parts = zip(*(of_class.tensor_split(cut) for cut, of_class in zip(cuts, members, strict=True)), strict=True)
        clients = tuple(torch.cat(part) for part in parts)
        if min(map(len, clients)) >= minimum:
            return clients
    raise ValueError(
        f"minimum: expected {n} clients with at least {minimum} of {len(labels)} samples, got none in {_ATTEMPTS} draws with beta {beta}"
    )
