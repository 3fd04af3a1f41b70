"""Losses of scores in groups, one group of N candidates per query: RankNet, LambdaRank, ListNet and the likelihood of a positive.

None of them changes when a constant is added to all scores of a group, so the gradient over a group sums to 0. Where groups differ in size
``valid`` says which entries are candidates; the others have no influence and no gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import check_labels, check_logits
from preceptor.losses.divergence import forward_kl
from preceptor.losses.numeric import upcast


def ranknet(student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
    """Pairwise cross-entropy with the teacher's preferences, the mean over all pairs i < j of a group.

    Burges et al. 2005 (RankNet), with soft targets as in Abdallah et al. 2025, DeAR (arXiv:2508.16998):
        L = mean_(i < j) [softplus(s_i - s_j) - p_ij (s_i - s_j)],   p_ij = sigmoid(t_i - t_j).

    Args:
        student: scores, shape (..., N).
        teacher: scores, same shape; treated as constant.
        valid: bool, same shape; None: all are candidates.
    Returns:
        Nats, shape (...), at least the mean entropy of p_ij, with equality where all gaps agree; 0 without a pair.
    Raises:
        TypeError: scores are not floating point.
        ValueError: shapes differ.
    """
    valid = _checked(student, teacher, valid)
    s, t = (upcast(scores).masked_fill(~valid, 0.0) for scores in (student, teacher.detach()))
    first, second = torch.triu_indices(s.shape[-1], s.shape[-1], offset=1, device=s.device)
    gaps = s[..., first] - s[..., second]
    losses = F.softplus(gaps) - torch.sigmoid(t[..., first] - t[..., second]) * gaps
    return _mean(losses, valid[..., first] & valid[..., second])


def lambdarank(student: Tensor, relevance: Tensor, valid: Tensor | None = None) -> Tensor:
    """Pairwise loss weighted by what a swap of the two would change in nDCG, the mean over pairs with rel_i > rel_j.

    Burges, Ragno, Le 2006 (LambdaRank):
        L = -mean |D_ij| log sigmoid(s_i - s_j),   D_ij = (g_i - g_j) (d_i - d_j) / IDCG,   g = 2^rel - 1,   d = 1 / log2(1 + rank),
    with ranks from 1 by the present scores, of equal ones the earlier first; no gradient flows through ranks.

    Args:
        student: scores, shape (..., N).
        relevance: rel >= 0, floating point, same shape.
        valid: bool, same shape; None: all are candidates.
    Returns:
        Shape (...), >= 0; 0 without such a pair.
    Raises:
        TypeError: scores are not floating point.
        ValueError: shapes differ.
    """
    valid = _checked(student, relevance, valid)
    s = upcast(student).masked_fill(~valid, 0.0)
    gains = torch.exp2(relevance.detach().to(s).masked_fill(~valid, 0.0)) - 1
    order = s.detach().masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    discounts = 1 / torch.arange(2, s.shape[-1] + 2, device=s.device, dtype=s.dtype).log2()
    own = torch.empty_like(s).detach().scatter(-1, order, discounts.expand_as(s))
    ideal = (gains.sort(dim=-1, descending=True).values * discounts).sum(dim=-1, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny)
    swaps = ((_gaps(gains) * _gaps(own)).abs() / ideal.unsqueeze(-1)).flatten(-2)
    better = (_gaps(gains) > 0) & valid.unsqueeze(-1) & valid.unsqueeze(-2)
    return _mean(swaps * F.softplus(-_gaps(s)).flatten(-2), better.flatten(-2))


def positive_nll(student: Tensor, positive: Tensor, valid: Tensor | None = None) -> Tensor:
    """Cross-entropy of the labelled candidate among those of its group.

    Args:
        student: scores, shape (..., N).
        positive: its position, integers, shape (...).
        valid: bool, like ``student``; None: all are candidates.
    Returns:
        Nats, shape (...).
    Raises:
        TypeError: scores are not floating point or positions not integers.
        ValueError: shapes do not fit, or the position is out of range or names none of the candidates.
    """
    valid = _checked(student, student, valid)
    check_labels(positive, student)
    at = positive.long().unsqueeze(-1)
    if not valid.gather(-1, at).all():
        raise ValueError("positive: expected a position where valid is true, got one of padding")
    scores = upcast(student).masked_fill(~valid, -torch.inf)
    return -F.log_softmax(scores, dim=-1).gather(-1, at).squeeze(-1)


def listnet(student: Tensor, teacher: Tensor, valid: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """KL(softmax(t / T) || softmax(s / T)) over the candidates of a group, without T^2.

    Cao et al. 2007 (ListNet, top-1 probabilities), less the entropy of the teacher.

    Args:
        student: scores, shape (..., N).
        teacher: scores, same shape; treated as constant.
        valid: bool, same shape; None: all are candidates.
        temperature: T > 0.
    Returns:
        Nats, shape (...), >= 0; 0 exactly where s - t is constant.
    Raises:
        TypeError: scores are not floating point.
        ValueError: shapes differ, or T is not > 0.
    """
    valid = _checked(student, teacher, valid)
    s, t = (upcast(scores).masked_fill(~valid, -torch.inf) for scores in (student, teacher.detach()))
    return forward_kl(s, t, temperature=temperature)


def _checked(student: Tensor, other: Tensor, valid: Tensor | None) -> Tensor:
    check_logits(student=student, teacher=other)
    if valid is None:
        return torch.ones_like(student, dtype=torch.bool)
    if valid.shape != student.shape or valid.dtype != torch.bool:
        raise ValueError(f"valid: expected bool of shape {tuple(student.shape)} like student, got {valid.dtype} {tuple(valid.shape)}")
    return valid


def _gaps(x: Tensor) -> Tensor:
    """x_i - x_j, (..., N, N)."""
    return x.unsqueeze(-1) - x.unsqueeze(-2)


def _mean(losses: Tensor, counted: Tensor) -> Tensor:
    """Over the counted pairs on the last axis; 0 with a gradient where there are none."""
    return losses.masked_fill(~counted, 0.0).sum(dim=-1) / counted.sum(dim=-1).clamp_min(1)
