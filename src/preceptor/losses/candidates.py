"""Lists of candidates per query: which of them a student is to score, and how sure the teacher is of each query."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import check_choice, check_counts, check_floating
from preceptor.losses.numeric import upcast

Selection = Literal["hard", "random", "semi-hard"]
"""Negatives that the teacher scores highest; the first ones, for lists in random order; or the highest of those below the positive."""


def select_candidates(teacher: Tensor, num_negatives: int, *, selection: Selection = "hard") -> Tensor:
    """Choose the candidates that a student scores: the positive and some of the negatives.

    Rao et al. 2023, DCD (arXiv:2207.01426). The positive is candidate 0. Where semi-hard negatives run out, those above the positive
    follow, the nearest first.

    Args:
        teacher: scores, shape (B, F + 1), higher is better; no order is needed.
        num_negatives: H >= 1, F where there are fewer.
        selection: see `Selection`.
    Returns:
        Positions, int64, shape (B, min(H, F) + 1): 0, then hard negatives in descending order of scores, equal ones in ascending order of
        position.
    Raises:
        TypeError: scores are not floating point.
        ValueError: wrong shape, a number below 1, or another word.
    """
    check_floating(teacher=teacher)
    check_counts(num_negatives=num_negatives)
    check_choice(Selection, selection=selection)
    if teacher.ndim != 2 or teacher.shape[1] < 2:
        raise ValueError(f"teacher: expected scores of shape (queries, candidates), at least two of these, got {tuple(teacher.shape)}")
    positive, negatives = teacher.detach()[:, :1], teacher.detach()[:, 1:]
    if selection == "random":
        order = torch.arange(negatives.shape[1], device=teacher.device).expand(negatives.shape)
    elif selection == "hard":
        order = negatives.argsort(dim=1, descending=True, stable=True)
    else:
        order = (negatives - positive).abs().argsort(dim=1, stable=True)
        order = order.gather(1, (negatives >= positive).gather(1, order).to(torch.uint8).argsort(dim=1, stable=True))
    return F.pad(order[:, :num_negatives] + 1, (1, 0))


def entropy_shares(teacher: Tensor) -> Tensor:
    """Each query's share of the teacher's uncertainty: e_i = h_i / sum_k h_k, h the entropy of a row's softmax.

    Rao et al. 2023, DCD (arXiv:2207.01426). Where all entropies are 0 each of B queries has 1 / B.

    Args:
        teacher: scores, shape (B, K); treated as constant; -inf is a candidate that cannot be.
    Returns:
        Shape (B,), >= 0, sum 1, at least float32.
    """
    check_floating(teacher=teacher)
    p = torch.softmax(upcast(teacher.detach()), dim=1)
    entropy = torch.special.entr(p).sum(dim=1)
    total = entropy.sum()
    return torch.where(total > 0, entropy / total.clamp_min(torch.finfo(entropy.dtype).tiny), torch.full_like(entropy, 1 / max(len(p), 1)))
