"""How well a stream of classes was learned in an order, and how far two rankings of orders agree.

A run is told by its accuracies R (T, N), in [0, 1]: of the N classes (or groups of classes) after each of the T = N tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from preceptor.losses.checks import check_counts, check_same_shape
from preceptor.metrics.fidelity import rank_correlation


def f_score(first_task_accuracy: Tensor, average_accuracy: Tensor) -> Tensor:
    """What was learned against what was forgotten: the harmonic mean of the last average accuracy A and 1 / forgetting of the first task.

    Singh et al. 2022 (arXiv:2211.15470): F = 2 A / (Phi A + 1), Phi = first task's accuracy after task 1 less that after the last task.

    Args:
        first_task_accuracy: of the first task after each task, shape (..., T), in [0, 1].
        average_accuracy: over all classes seen so far, same shape, in [0, 1].
    Returns:
        Shape (...), >= 0: 2 A without forgetting, more where the first task got better later.
    Raises:
        ValueError: shapes differ, accuracies outside [0, 1] (percent would change the score, not only its scale), or Phi A = -1.
    """
    check_same_shape(first_task_accuracy=first_task_accuracy, average_accuracy=average_accuracy)
    for name, value in (("first_task_accuracy", first_task_accuracy), ("average_accuracy", average_accuracy)):
        if value.ndim < 1 or not value.shape[-1]:
            raise ValueError(f"{name}: expected shape (..., tasks), got {tuple(value.shape)}")
        wrong = ~((value >= 0) & (value <= 1))
        if wrong.any():
            raise ValueError(f"{name}: expected shares in [0, 1], got {value[wrong].flatten()[0].item():g}")
    forgotten = first_task_accuracy[..., 0] - first_task_accuracy[..., -1]
    last = average_accuracy[..., -1]
    if (forgotten * last <= -1).any():
        raise ValueError("first_task_accuracy: expected forgetting times accuracy above -1, got -1: the first task went from 0 to 1")
    return 2 * last / (forgotten * last + 1)


def order_quality(accuracy: Tensor, order: Tensor) -> Tensor:
    """`f_score` of a run from its accuracies.

    Args:
        accuracy: R, shape (N, N), in [0, 1], columns by class.
        order: the classes in the order in which they were learned, int64 (N,).
    Returns:
        0-dimensional.
    Raises:
        ValueError: shapes that do not fit, or what `f_score` refuses.
    """
    if accuracy.shape != (len(order), len(order)):
        raise ValueError(f"accuracy: expected shape {(len(order), len(order))}, got {tuple(accuracy.shape)}")
    learned = accuracy[:, order]
    average = learned.tril().sum(dim=1) / torch.arange(1, len(order) + 1)
    return f_score(learned[:, 0], average)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two rankings of the same orders agree; entries of a list are of the bins of the reference, its highest scores first."""

    spearman: float  # rank correlation of the scores, in [-1, 1]
    hamming: list[float]  # share of classes that differ, rank by rank and position by position, in [0, 1]; 0 in an empty bin
    random_hamming: list[float]  # the same of rankings by lot, their mean
    sizes: list[int]  # orders of each bin


def compare_rankings(reference: Tensor, scores: Tensor, orders: Tensor, *, bins: int = 5, draws: int = 100, seed: int = 0) -> Agreement:
    """Compare how two scores rank orders of classes, and how well lots do.

    Singh et al. 2022 (arXiv:2211.15470): Hamming distances of the sorted orders within bins of equal width of the reference's scores.
    Deviation: the release writes all first classes, then all second ones, ..., as one text and cuts that by the sizes of the bins, from the
    lowest on; here a bin holds the ranks that have its scores.

    Args:
        reference: scores (n,), higher is better, such as measured quality.
        scores: of the same orders, (n,).
        orders: int64 (n, N).
        bins: >= 1.
        draws: rankings by lot, >= 1.
        seed: of the lots.
    Raises:
        ValueError: shapes that do not fit, fewer than two orders, or a number out of range.
    """
    check_same_shape(reference=reference, scores=scores)
    check_counts(bins=bins, draws=draws)
    if reference.ndim != 1 or len(reference) < 2 or orders.shape[:1] != reference.shape:
        raise ValueError(f"orders: expected a row for each of at least two scores {tuple(reference.shape)}, got {tuple(orders.shape)}")
    reference, scores = reference.double(), scores.double()
    places = reference.argsort(descending=True, stable=True)
    low, high = reference.aminmax()
    share = (high - reference[places]) / (high - low).where(high > low, 1.0)
    of_bin = (share * bins).long().clamp_max(bins - 1)
    sizes = torch.bincount(of_bin, minlength=bins)

    def distances(ranking: Tensor) -> Tensor:
        differing = (orders[places] != orders[ranking]).double().mean(dim=1)
        return torch.zeros(bins, dtype=torch.double).index_add_(0, of_bin, differing) / sizes.clamp_min(1)

    generator = torch.Generator().manual_seed(seed)
    lots = torch.stack([distances(torch.randperm(len(scores), generator=generator)) for _ in range(draws)])
    return Agreement(
        spearman=rank_correlation(reference[None], scores[None]).item(),
        hamming=distances(scores.argsort(descending=True, stable=True)).tolist(),
        random_hamming=lots.mean(dim=0).tolist(),
        sizes=sizes.tolist(),
    )
