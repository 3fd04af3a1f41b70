"""How closely a student follows its teacher, which is not how accurate it is (Stanton et al. 2021).

By logits, by the answers that both gave, and by the texts that both wrote; one value per example, but for `kappa`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from preceptor.metrics.checks import checked_student_teacher

Text = str | Sequence[Hashable]
"""Words apart by white space, or tokens."""


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


def same_answer(student: Sequence[Hashable | None], teacher: Sequence[Hashable | None]) -> Tensor:
    """Whether both gave the same final answer; None, an answer that could not be read, is the same as nothing, not even as None.

    Ramesh et al. 2025 (arXiv:2505.15442): agreement, before its mean. With one right answer per item the mean is at most
    1 - |accuracy of the student - accuracy of the teacher|.

    Args:
        student: N answers, N >= 1, such as strings or numbers, compared by ``==``.
        teacher: as many, to the same items.
    Returns:
        Shape (N,), float64, 0 or 1.
    Raises:
        ValueError: no answers, or unequal numbers of them.
    """
    _check_paired(student, teacher)
    return torch.tensor([a is not None and a == b for a, b in zip(student, teacher, strict=True)], dtype=torch.float64)


def kappa(student: Sequence[Hashable | None], teacher: Sequence[Hashable | None]) -> float:
    """Agreement of answers beyond that of two writers who answer as often as these, but at random.

    Cohen 1960:
        kappa = (a - c) / (1 - c),   a = mean of `same_answer`,   c = sum over answers v of share_student(v) share_teacher(v).

    Args:
        student: N answers, N >= 1; None as in `same_answer`.
        teacher: as many, to the same items.
    Returns:
        At most 1, no unit; NaN where both always give one and the same answer, which leaves nothing to be explained.
    Raises:
        ValueError: no answers, or unequal numbers of them.
    """
    observed = float(same_answer(student, teacher).mean())
    shares = Counter(student), Counter(teacher)
    chance = sum(shares[0][answer] * shares[1][answer] for answer in shares[0] if answer is not None) / len(student) ** 2
    return math.nan if chance == 1 else (observed - chance) / (1 - chance)


def sentence_bleu(candidate: Text, reference: Text) -> float:
    """BLEU-4 of one text against one other, with the counts of two to four tokens in a row raised by one.

    Papineni et al. 2002; smoothing of Lin, Och 2004. With m_n of the l_n runs of n tokens also in the reference (each as often as there):
        BLEU = min(1, exp(1 - r / c)) (prod_n p_n)^(1/4),   p_1 = m_1 / l_1,   p_n = (m_n + 1) / (l_n + 1) for n = 2, 3, 4,
    c and r tokens in candidate and reference.

    Args:
        candidate: the text to judge.
        reference: what it is compared with.
    Returns:
        In [0, 1]: 1 for equal texts, also two empty ones; 0 without a common token.
    """
    written, wanted = (text.split() if isinstance(text, str) else text for text in (candidate, reference))
    if not written or not wanted:
        return float(len(written) == len(wanted))
    log_precision = 0.0
    for order in range(1, 5):
        found, known = _runs(written, order), _runs(wanted, order)
        extra = int(order > 1)
        matched = (found & known).total() + extra
        if matched == 0:
            return 0.0
        log_precision += math.log(matched / (found.total() + extra)) / 4
    return math.exp(min(0.0, 1 - len(wanted) / len(written)) + log_precision)


def trace_fidelity(student: Sequence[Text], teacher: Sequence[Text], *, scorer: Callable[[Text, Text], float] = sentence_bleu) -> Tensor:
    """How alike the reasoning of both is, text by text.

    Ramesh et al. 2025 (arXiv:2505.15442): fidelity, before its mean.

    Args:
        student: N texts, N >= 1, the final answer removed.
        teacher: as many, on the same prompts.
        scorer: likeness of a student's text to the teacher's, such as the cosine of two embeddings.
    Returns:
        Shape (N,), float64; in [0, 1] with the default scorer.
    Raises:
        ValueError: no texts, or unequal numbers of them.
    """
    _check_paired(student, teacher)
    return torch.tensor([scorer(a, b) for a, b in zip(student, teacher, strict=True)], dtype=torch.float64)


def _runs(tokens: Sequence[Hashable], length: int) -> Counter[tuple[Hashable, ...]]:
    """How often each run of so many tokens occurs."""
    return Counter(tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1))


def _check_paired(student: Sequence[object], teacher: Sequence[object]) -> None:
    if not student:
        raise ValueError("student: expected at least one item, got none")
    if len(teacher) != len(student):
        raise ValueError(f"teacher: expected {len(student)} items like student, got {len(teacher)}")


def _centred_ranks(values: Tensor) -> Tensor:
    """Ranks along dim 1, ties at their mean, minus the mean rank; shape of ``values``, float64."""
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to - values.shape[1]).double() / 2
