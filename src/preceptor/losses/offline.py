"""Rewards and policy gradients for answers that were written beforehand: groups of G answers to each of B questions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from preceptor.losses.checks import check_same_shape
from preceptor.losses.policy import ppo_surrogate, sequence_means


def distillation_reward(divergences: Tensor, valid: Tensor | None = None) -> Tensor:
    """How easily each answer of a group passes from teacher to student: (D_max - D) / (D_max - D_min), 0 where all are equal.

    Masters (arXiv:2512.22238). Unchanged by positive affine maps of D.

    Args:
        divergences: D, shape (B, G).
        valid: same shape, non-zero for answers that count; None: all. One that is not finite never counts.
    Returns:
        Shape (B, G), in [0, 1]; 0 for answers that do not count; constant.
    Raises:
        ValueError: shapes differ or are not (B, G).
    """
    values, counts = _group(divergences, valid)
    low = values.masked_fill(~counts, math.inf).amin(1, keepdim=True)
    high = values.masked_fill(~counts, -math.inf).amax(1, keepdim=True)
    spread = high - low
    even = ~(spread > 0)
    return ((high - values) / spread.masked_fill(even, 1.0)).masked_fill(even | ~counts, 0.0)


def group_advantage(rewards: Tensor, valid: Tensor | None = None, *, eps: float = 1e-4) -> Tensor:
    """Rewards relative to their group: (R - mean) / (std + eps), with the population's standard deviation; 0 where all are equal.

    Args:
        rewards: shape (B, G).
        valid: same shape, non-zero for answers that count; None: all. A reward that is not finite never counts.
        eps: >= 0, in units of the reward.
    Returns:
        Shape (B, G), of sum 0 in each group; 0 for answers that do not count; constant.
    Raises:
        ValueError: shapes differ or are not (B, G).
    """
    values, counts = _group(rewards, valid)
    values = values.masked_fill(~counts, 0.0)
    number = counts.sum(1, keepdim=True).clamp(min=1)
    centred = (values - values.sum(1, keepdim=True) / number).masked_fill(~counts, 0.0)
    std = (centred.square().sum(1, keepdim=True) / number).sqrt()
    same = values.masked_fill(~counts, -math.inf).amax(1, keepdim=True) <= values.masked_fill(~counts, math.inf).amin(1, keepdim=True)
    return (centred / (std + eps).masked_fill(same, 1.0)).masked_fill(same, 0.0)


def grpo_offline_loss(
    log_probs: Tensor,
    advantages: Tensor,
    kl: Tensor,
    mask: Tensor,
    *,
    behaviour_log_probs: Tensor | None = None,
    clip: float = 0.2,
    beta: float = 0.1,
) -> Tensor:
    """The policy-gradient loss of each answer, -mean_t min(rho A, clip(rho) A) + beta mean_t KL.

    Masters (arXiv:2512.22238): rho is exp(log pi - its own constant), that is 1 with the gradient of log pi. It then has no lower bound
    where A < 0: only small steps and the KL hold it. With ``behaviour_log_probs`` rho is the true ratio and the clip acts.

    Args:
        log_probs: of the tokens under the student, shape (N, T), in nats.
        advantages: A, shape (N,); constant.
        kl: KL(student || reference) at each token, shape (N, T), in nats.
        mask: shape (N, T), non-zero for tokens of the answer.
        behaviour_log_probs: of the tokens under what drew them, shape (N, T); constant. None: the ratio is 1.
        clip: in [0, 1).
        beta: weight of the KL, no unit.
    Returns:
        Shape (N,).
    Raises:
        ValueError: shapes do not fit, or a clip outside its range.
    """
    check_same_shape(log_probs=log_probs, kl=kl, mask=mask)
    if advantages.shape != log_probs.shape[:1]:
        raise ValueError(f"advantages: expected shape {tuple(log_probs.shape[:1])}, one per answer, got {tuple(advantages.shape)}")
    old = log_probs.detach() if behaviour_log_probs is None else behaviour_log_probs
    per_token = advantages.to(log_probs.dtype).unsqueeze(1).expand_as(log_probs)
    surrogate = ppo_surrogate(log_probs, old, per_token, clip_low=clip, clip_high=clip, dual_clip=math.inf)
    return sequence_means(surrogate, mask) + beta * sequence_means(kl, mask)


def _group(values: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values as constants, and which of them count."""
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"groups: expected shape (questions, answers), got {tuple(values.shape)}")
    values = values.detach()
    counts = torch.isfinite(values)
    if valid is not None:
        check_same_shape(values=values, valid=valid)
        counts = counts & (valid != 0)
    return values, counts
