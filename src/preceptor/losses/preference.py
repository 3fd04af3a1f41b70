"""Preferences between two texts: log-probabilities of whole answers, and the loss of direct preference optimisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import check_floating, check_labels, check_positive, check_same_shape, check_unit_interval
from preceptor.losses.divergence import log_probs


def sequence_log_probs(logits: Tensor, labels: Tensor, *, mean: bool = False, ignore_index: int = -100) -> Tensor:
    """Log-probability of the labelled tokens of each text, sum_t log softmax(logits_t)_{labels_{t+1}}; the labels are shifted here.

    Args:
        logits: shape (N, T, V).
        labels: shape (N, T), integers in [0, V), or ``ignore_index`` where a token is prompt or padding.
        mean: over the labelled tokens instead of their sum.
        ignore_index: the label of a token that does not count.

    Returns:
        Shape (N,), nats, <= 0, in float32 or float64; 0 where a text has no labelled token after its first.

    Raises:
        TypeError: logits are not floating point, or labels not integers.
        ValueError: shapes do not fit, or a label is out of range.
    """
    check_floating(logits=logits)
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(f"labels: expected shape (N, T) for logits (N, T, V), got {tuple(labels.shape)} for {tuple(logits.shape)}")
    following = labels[:, 1:]
    counts = following != ignore_index
    rows, tokens = logits[:, :-1][counts], following[counts]
    check_labels(tokens, rows)
    said = log_probs(rows).gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)
    total = said.new_zeros(counts.shape).masked_scatter(counts, said).sum(dim=1)
    return total / counts.sum(dim=1).clamp_min(1) if mean else total


def preference_margin(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor) -> Tensor:
    """How much more than its reference the policy prefers the chosen text, in nats: (log pi/ref)(chosen) - (log pi/ref)(rejected).

    Args:
        chosen: log-probability of the chosen text under the policy, shape (N,).
        rejected: the same of the rejected text.
        reference_chosen: the same under the reference; constant.
        reference_rejected: likewise.

    Returns:
        Shape (N,).

    Raises:
        ValueError: shapes differ.
    """
    check_same_shape(chosen=chosen, rejected=rejected, reference_chosen=reference_chosen, reference_rejected=reference_rejected)
    return (chosen - rejected) - (reference_chosen - reference_rejected).detach()


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float = 0.1, smoothing: float = 0.0
) -> Tensor:
    """Direct preference optimisation, in nats.

    Rafailov et al. 2023 (arXiv:2305.18290), Eq. 7, with the margin h of `preference_margin`:
        L = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h),   log 2 where policy and reference agree.
    Its gradient by the chosen log-probability is -beta sigmoid(-beta h) at e = 0.

    Args:
        chosen: see `preference_margin`, like the next three.
        rejected: see there.
        reference_chosen: see there.
        reference_rejected: see there.
        beta: > 0, how far the policy is held to the reference.
        smoothing: e in [0, 1], the share of pairs whose labels are the wrong way round (Mitchell 2023, conservative DPO).

    Returns:
        Shape (N,), > 0.

    Raises:
        ValueError: shapes differ, beta is not > 0, or the smoothing outside [0, 1].
    """
    check_positive(beta=beta)
    check_unit_interval(smoothing=smoothing)
    scaled = beta * preference_margin(chosen, rejected, reference_chosen, reference_rejected)
    loss = F.softplus(-scaled)
    return loss if smoothing == 0 else (1 - smoothing) * loss + smoothing * F.softplus(scaled)
