"""How closely a student follows its teacher, which is not how accurate it is (Stanton et al. 2021): one value per example."""

from __future__ import annotations

import torch
from torch import Tensor

from preceptor.metrics.checks import checked_student_teacher


def agreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Whether both predict the same class; of equal logits the lowest class wins.

    Stanton et al. 2021 (arXiv:2106.05945): average top-1 agreement, before its mean.

    Args:
        student: logits, shape (N, classes), N >= 1.
        teacher: logits, the same shape.
    Returns:
        Shape (N,), 0 or 1.
    Raises:
        ValueError, TypeError: see `preceptor.metrics.checks.checked_student_teacher`.
    """
    student, teacher = checked_student_teacher(student, teacher)
    return (student.argmax(dim=1) == teacher.argmax(dim=1)).to(student.dtype)


def kl_to_teacher(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of the predictions at temperature 1, in nats.

    Stanton et al. 2021 (arXiv:2106.05945): average predictive KL, before its mean:
        sum_c p_c (log p_c - log q_c),   p = softmax(teacher),   q = softmax(student).
    It is computed in float64; a class that the teacher rules out (-inf) adds nothing.

    Args:
        student: logits, shape (N, classes), N >= 1.
        teacher: logits, the same shape.
    Returns:
        Shape (N,), float64, >= 0; infinite where the student rules out what the teacher does not.
    Raises:
        ValueError, TypeError: see `preceptor.metrics.checks.checked_student_teacher`.
    """
    student, teacher = checked_student_teacher(student, teacher)
    log_q, log_p = student.double().log_softmax(dim=1), teacher.double().log_softmax(dim=1)
    terms = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q))
    return terms.sum(dim=1).clamp(min=0)


def rank_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Spearman's rank correlation between the two rows of logits of each example.

    Spearman 1904; equal logits share the mean of their ranks, and the correlation is Pearson's of the ranks.

    Args:
        student: logits, shape (N, classes), N >= 1.
        teacher: logits, the same shape.
    Returns:
        Shape (N,), float64, in [-1, 1]; 0 where all logits of either row are equal, which is no ranking.
    Raises:
        ValueError, TypeError: see `preceptor.metrics.checks.checked_student_teacher`.
    """
    student, teacher = checked_student_teacher(student, teacher)
    a, b = _centred_ranks(student), _centred_ranks(teacher)
    scale = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    return torch.where(scale > 0, (a * b).sum(dim=1) / scale, 0.0).clamp(-1, 1)


def _centred_ranks(values: Tensor) -> Tensor:
    """Ranks along dim 1, ties at their mean, minus the mean rank; shape of ``values``, float64."""
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to - values.shape[1]).double() / 2
