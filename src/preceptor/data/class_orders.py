"""Orders of whole classes for a learner that sees them one after another: designed from distances between classes, without training.

Singh et al. 2022, Learning to Learn: How to Continuously Teach Humans and Machines (arXiv:2211.15470): begin with a class that is about as
far from all others, go to one far from it, and end near it, so that late learning refreshes what was learned first. With D~ the distances
divided by their sums over rows, V_i the variance of row i and v = V / sum V, an order c_1..c_N has the score
    S(c) = (1 - v_{c_1}) + sum_{k=1..K} [ (1 - D~(c_k, c_{N+1-k})) + D~(c_k, c_{k+1}) ],   K = ceil((N - 1) / 2).
D~ is not symmetric: the row of c_k is read. For even N the last bracket is exactly 1. Values that only rounding parts are ties, which go
to the lower class, or the earlier order.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from preceptor.core.optional import require
from preceptor.losses.checks import INTEGERS, check_choice, check_counts, check_floating

Metric = Literal["cosine", "euclidean", "transport"]
"""Between mean features: 1 - cosine, or the Euclidean distance. Between samples: the 2-Wasserstein distance (needs scipy)."""

Variant = Literal["distance", "rank"]
"""Whether a score adds shares and distances, or their ranks."""

Search = Literal["auto", "exhaustive", "beam", "fill"]
"""``exhaustive``: all orders; ``beam``: from the outside in; ``fill``: the released generator; ``auto``: all orders or a beam."""

Groups = Sequence[Sequence[int]]
"""Classes that are learned together: group i holds the class numbers ``groups[i]``."""

ALL_ORDERS = 8
"""Most classes of which all orders are looked at: 40,320."""

_DECIMALS = 12


class Ranked(NamedTuple):
    """Orders of classes, the best first (those of ``fill`` as they were generated)."""

    orders: Tensor  # int64 (n, N), each row the classes in the order in which they are learned
    scores: Tensor  # (n,): float64, or int64 of the variant "rank"


def class_distance(features: Tensor, labels: Tensor, *, metric: Metric = "cosine", groups: Groups | None = None) -> Tensor:
    """How far classes, or groups of classes, are from each other in a teacher's eyes.

    The features may come from any model that was not trained on the classes: 250 to 500 examples of each, or one row per class, such as the
    embedding of its name.

    Args:
        features: (n, D), finite.
        labels: classes (n,), integers >= 0.
        metric: see `Metric`. The transport distance pairs the first m examples of two classes, m the size of the smallest: between data
            sets of one class each the label part of an optimal-transport data set distance repeats the part of the features.
        groups: N groups of classes without overlap, other classes are left out; by default every class is its own group, 0 to the largest.
    Returns:
        float64, (N, N), symmetric with a diagonal of 0.
    Raises:
        TypeError: features that are not floating, or labels that are no integers.
        ValueError: shapes that do not fit, values that are not finite, a class without an example or in two groups, or a class whose mean
            is the zero vector, which has no cosine.
    """
    check_choice(Metric, metric=metric)
    check_floating(features=features)
    if labels.dtype not in INTEGERS:
        raise TypeError(f"labels: expected integers, got {labels.dtype}")
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features: expected shape (examples, dimensions) with an example, got {tuple(features.shape)}")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels: expected shape ({len(features)},) like the features, got {tuple(labels.shape)}")
    if not features.isfinite().all():
        raise ValueError("features: expected finite numbers, got NaN or infinity")
    x = features.detach().cpu().double()
    samples = [x[rows] for rows in group_rows(labels.cpu(), groups)]
    if metric == "transport":
        return _transport(samples)
    means = torch.stack([sample.mean(dim=0) for sample in samples])
    if metric == "euclidean":
        return torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")
    norms = means.norm(dim=1)
    if not norms.all():
        raise ValueError(f"features: expected means other than 0 for the cosine, got 0 of group {int(norms.argmin())}")
    units = means / norms[:, None]
    return (1 - units @ units.mT).clamp_min(0).fill_diagonal_(0)


def group_rows(labels: Tensor, groups: Groups | None) -> list[Tensor]:
    """The examples of each group of classes, by position.

    Args:
        labels: classes (n,), integers >= 0.
        groups: as `class_distance` takes them.
    Returns:
        int64 positions (n_i,), rising, for each of N groups.
    Raises:
        ValueError: a class is missing, in two groups, or negative; or a group is empty.
    """
    if groups is None:
        groups = [(label,) for label in range(int(labels.max()) + 1)]
    classes = [label for group in groups for label in group]
    twice = next((label for label in classes if classes.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"groups: expected every class in one group, got class {twice} twice")
    if not groups or not all(len(group) for group in groups) or int(labels.min()) < 0:
        raise ValueError(f"groups: expected classes >= 0 in each of at least one group, got {[list(group) for group in groups]}")
    missing = sorted(set(classes) - set(labels.tolist()))
    if missing:
        raise ValueError(f"labels: expected an example of each of the classes {sorted(classes)}, got none of {missing}")
    return [torch.isin(labels, torch.tensor(list(group))).nonzero()[:, 0] for group in groups]


def row_normalised(distance: Tensor) -> Tensor:
    """D~: each row divided by its sum, the distance to itself included; a row of zeros becomes uniform.

    Args:
        distance: (N, N), finite, >= 0.
    Returns:
        float64, (N, N), rows with sum 1.
    Raises:
        ValueError: another shape, or an entry that is negative or not finite.
    """
    if distance.ndim != 2 or distance.shape[0] != distance.shape[1] or not len(distance):
        raise ValueError(f"distance: expected shape (classes, classes), got {tuple(distance.shape)}")
    if not ((distance >= 0) & distance.isfinite()).all():
        raise ValueError("distance: expected finite numbers >= 0, got a negative one, NaN or infinity")
    d = distance.detach().cpu().double()
    sums = d.sum(dim=1, keepdim=True)
    return torch.where(sums > 0, d / sums.where(sums > 0, 1.0), 1 / len(d))


def variance_share(distance: Tensor) -> Tensor:
    """v: the share of each class in the variances of the rows of D~; a class with a low one is about as far from all others.

    Args:
        distance: (N, N), see `row_normalised`.
    Returns:
        float64, (N,), >= 0, sum 1.
    """
    variance = row_normalised(distance).var(dim=1, correction=0)
    total = variance.sum()
    return variance / total if total > 0 else torch.full_like(variance, 1 / len(variance))


def score_orders(distance: Tensor, orders: Tensor | Sequence[Sequence[int]], *, variant: Variant = "distance") -> Tensor:
    """S of the module docstring for each order.

    The variant ``rank`` counts N - rank of v in the place of 1 - v, (N - 1) - r in that of 1 - D~ and r + 1 in that of D~, with r the rank
    of a class among the neighbours of c_k, nearest 0.

    Args:
        distance: (N, N), see `row_normalised`.
        orders: (n, N), each row a permutation of 0..N-1.
        variant: see `Variant`.
    Returns:
        (n,): float64, at most 1 + 2 K; int64 of ranks.
    Raises:
        ValueError: a row that is no permutation, or what `row_normalised` refuses.
    """
    start, near, far = _parts(distance, variant)
    size = len(start)
    rows = torch.as_tensor(orders, dtype=torch.int64)
    if rows.ndim != 2 or rows.shape[1] != size or not (rows.sort(dim=1).values == torch.arange(size)).all():
        raise ValueError(f"orders: expected rows that hold each class of 0 to {size - 1} once, got shape {tuple(rows.shape)}")
    total = start[rows[:, 0]]
    for k in range(size // 2):
        here = rows[:, k]
        total = total + near[here, rows[:, size - 1 - k]] + far[here, rows[:, k + 1]]
    return total if variant == "distance" else total.long()


def rank_orders(
    distance: Tensor,
    n_best: int | None = None,
    *,
    method: Search = "auto",
    variant: Variant = "distance",
    first: int | None = None,
    width: int = 200,
) -> Ranked:
    """Find the orders with the highest scores.

    Args:
        distance: (N, N), see `row_normalised`.
        n_best: most orders to return; None: all that were found.
        method: see `Search`. ``auto`` looks at all orders of up to `ALL_ORDERS` classes. ``fill`` begins with each of the ``n_best``
            classes of the lowest v (None: 2) and goes on by falling distance from that one class; its orders may have any score.
        variant: see `Variant`.
        first: class that is learned first, such as one already known.
        width: partial orders that a beam keeps, >= 1. A step adds one class: the last one, the second, the last but one, ...
    Returns:
        At most ``n_best`` orders with their scores.
    Raises:
        ValueError: an argument outside its range, or all orders of too many classes.
    """
    check_choice(Search, method=method)
    check_counts(width=width, **({} if n_best is None else {"n_best": n_best}))
    start, near, far = _parts(distance, variant)
    size = len(start)
    if first is not None and not 0 <= first < size:
        raise ValueError(f"first: expected a class of 0 to {size - 1}, got {first}")
    firsts = torch.arange(size) if first is None else torch.tensor([first])
    if method == "exhaustive" and size > ALL_ORDERS:
        raise ValueError(f"method: expected 'beam' or 'fill' for more than {ALL_ORDERS} classes, got 'exhaustive' for {size}")
    if method == "fill":
        orders = _filled(distance, firsts)[: n_best or 2]
        return Ranked(orders, score_orders(distance, orders, variant=variant))
    if method == "exhaustive" or (method == "auto" and size <= ALL_ORDERS):
        orders = torch.tensor(list(permutations(range(size))))
        orders = orders[torch.isin(orders[:, 0], firsts)]
    else:
        orders = _beam(start, near, far, firsts, width)
    scores = score_orders(distance, orders, variant=variant)
    best = _sorted(-scores)[:n_best]
    return Ranked(orders[best], scores[best])


def _parts(distance: Tensor, variant: Variant) -> tuple[Tensor, Tensor, Tensor]:
    """What a score adds: for the first class (N,), for the end near a class, and for the next class far from it (N, N)."""
    check_choice(Variant, variant=variant)
    d, v = row_normalised(distance), variance_share(distance)
    if variant == "distance":
        return 1 - v, 1 - d, d
    size = len(v)
    others = d.round(decimals=_DECIMALS).masked_fill(torch.eye(size, dtype=torch.bool), -1)  # the class itself has rank -1
    ranks = others.argsort(dim=1, stable=True).argsort(dim=1).double() - 1
    return size - _sorted(v).argsort().double(), size - 1 - ranks, ranks + 1


def _sorted(values: Tensor) -> Tensor:
    """Positions by rising value, ties to the earlier one."""
    return values.double().round(decimals=_DECIMALS).argsort(stable=True)


def _filled(distance: Tensor, firsts: Tensor) -> Tensor:
    """Orders that begin with each class, those of low v first.

    Nearest to the end and farthest to the front in turn, both measured from the first class, is the order of falling distance from it.
    """
    order = _sorted(variance_share(distance))
    rows = []
    for begin in order[torch.isin(order, firsts)].tolist():
        falling = _sorted(-row_normalised(distance)[begin])
        rows.append([begin, *(other for other in falling.tolist() if other != begin)])
    return torch.tensor(rows)


def _beam(start: Tensor, near: Tensor, far: Tensor, firsts: Tensor, width: int) -> Tensor:
    """Orders (n, N) built as c_1, c_N, c_2, c_{N-1}, ...; n <= width."""
    size = len(start)
    built, scores = firsts[:, None], start[firsts]
    for step in range(1, size):
        table = near if step % 2 else far
        totals = scores[:, None] + table[built[:, 2 * ((step - 1) // 2)]]  # from the class that the front has reached
        totals.scatter_(1, built, -torch.inf)
        best = _sorted(-totals.flatten())[: min(width, len(built) * (size - step))]
        scores = totals.flatten()[best]
        built = torch.cat([built[best // size], (best % size)[:, None]], dim=1)
    places = [step // 2 if step % 2 == 0 else size - 1 - step // 2 for step in range(size)]
    return built[:, torch.tensor(places).argsort()]


def _transport(samples: Sequence[Tensor]) -> Tensor:
    """2-Wasserstein distances of samples cut to the same size, exactly, by the cheapest pairing."""
    optimize = require("scipy.optimize", extra="study", purpose="the metric transport")
    count = min(map(len, samples))
    found = torch.zeros(len(samples), len(samples), dtype=torch.double)
    for i, one in enumerate(samples):
        for j, other in enumerate(samples[:i]):
            costs = torch.cdist(one[:count], other[:count], compute_mode="donot_use_mm_for_euclid_dist").square()
            rows, columns = optimize.linear_sum_assignment(costs.numpy())
            found[i, j] = found[j, i] = costs[rows, columns].mean().sqrt()
    return found
