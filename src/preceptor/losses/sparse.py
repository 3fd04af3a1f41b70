r"""Losses from a teacher that is known in a few classes: its most probable ones, or a random sample of its distribution.

The student's logits are all there; `preceptor.losses.linear` has the same losses from hidden states, without logits. One notation: p is the
teacher at its temperature, q = softmax(student / T). The teacher is constant, item axes are kept, values are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from preceptor.core.types import Signal
from preceptor.losses.checks import INTEGERS, check_floating
from preceptor.losses.divergence import Temperature, forward_kl, log_probs
from preceptor.losses.numeric import lift_to_zero


def topk_kl(student: Tensor, indices: Tensor, teacher: Tensor, *, tail: bool = False, temperature: Temperature = 1.0) -> Tensor:
    r"""KL(teacher || student) from a teacher that is known in its k most probable classes.

    Without ``tail`` the teacher's k probabilities are brought to sum 1:
        L = sum_j p_j (log p_j - log q_j),   p = softmax(teacher).
    With ``tail`` all other classes are one bucket, p_t = 1 - sum_j p_j and q_t = 1 - sum_j q_j:
        L = sum_j p_j (log p_j - log q_j) + p_t (log p_t - log q_t) <= KL(p || q),   p = exp(teacher).

    Args:
        student: logits, shape (..., classes).
        indices: (..., k), integers in [0, classes), all different in an item.
        teacher: (..., k), its log-probabilities at ``temperature``; -inf is a class that does not count.
        tail: whether the rest of the teacher's mass is a bucket.
        temperature: T > 0 of the student; a number or one per item.

    Returns:
        Shape (...), >= 0.

    Raises:
        TypeError: student or teacher are not floating point, or indices not integers.
        ValueError: a shape does not fit, an index is out of range, or a temperature is not > 0.
    """
    _check(student, indices, teacher)
    log_q = log_probs(student, temperature=temperature)
    teacher = teacher.detach().to(log_q.dtype)
    log_p = teacher if tail else teacher.log_softmax(dim=-1)
    p = log_p.exp()
    loss = (p * (log_p.masked_fill(p == 0, 0.0) - log_q.gather(-1, indices.long()))).sum(dim=-1)
    if tail and indices.shape[-1] < student.shape[-1]:
        rest = (1 - p.sum(dim=-1)).clamp_min(0.0)
        log_rest_q = log_q.scatter(-1, indices.long(), -torch.inf).logsumexp(dim=-1)
        loss = loss + torch.special.xlogy(rest, rest) - rest * log_rest_q
    return lift_to_zero(loss)


def sparse_cross_entropy(student: Tensor, indices: Tensor, weights: Tensor, *, temperature: Temperature = 1.0) -> Tensor:
    r"""Cross-entropy with weights on a few classes: L = -sum_j w_j log q_j.

    With a sample of the teacher's distribution, E[sum_j w_j 1[c = i_j]] = p_c for every class c, this is an unbiased estimate of
    KL(p || q) + H(p), and its gradient one of the gradient of KL(p || q): H(p) does not depend on the student. See
    `preceptor.teachers.targets` for such a sample.

    Args:
        student: logits, shape (..., classes).
        indices: (..., k), integers in [0, classes); a class may stand in an item more than once.
        weights: w >= 0, (..., k).
        temperature: T > 0 of the student; a number or one per item.

    Returns:
        Shape (...), >= 0.

    Raises:
        TypeError, ValueError: as `topk_kl`.
    """
    _check(student, indices, weights)
    log_q = log_probs(student, temperature=temperature)
    return -(weights.detach().to(log_q.dtype) * log_q.gather(-1, indices.long())).sum(dim=-1)


def signal_kl(student: Tensor, signal: Signal, *, temperature: Temperature = 1.0) -> Tensor:
    """KL(teacher || student) from what is known of the teacher: all logits, its top, or a sample.

    Args:
        student: logits, shape (..., classes).
        signal: ``logits``; or ``top_indices`` and ``top_logprobs``, with a bucket for the rest; or ``sample_indices`` and
            ``sample_weights``, which give the KL up to a constant.
        temperature: T > 0, no unit; a top or a sample is of the teacher at this temperature.

    Returns:
        Shape (...).

    Raises:
        TypeError, ValueError: as `topk_kl`.
    """
    if "top_logprobs" in signal:
        return topk_kl(student, signal["top_indices"], signal["top_logprobs"], tail=True, temperature=temperature)
    if "sample_weights" in signal:
        return sparse_cross_entropy(student, signal["sample_indices"], signal["sample_weights"], temperature=temperature)
    return forward_kl(student, signal["logits"], temperature=temperature)


def _check(student: Tensor, indices: Tensor, values: Tensor) -> None:
    check_floating(student=student, values=values)
    if indices.dtype not in INTEGERS:
        raise TypeError(f"indices: expected integers, got {indices.dtype}")
    if indices.ndim != student.ndim or indices.shape[:-1] != student.shape[:-1] or values.shape != indices.shape:
        wanted = f"{tuple(student.shape[:-1])} + (k,)"
        raise ValueError(f"indices: expected shape {wanted}, and as many values, got {tuple(indices.shape)} and {tuple(values.shape)}")
    wrong = (indices < 0) | (indices >= student.shape[-1])
    if wrong.any():
        raise ValueError(f"indices: expected values in [0, {student.shape[-1] - 1}], got {indices[wrong][0].item()}")
