"""Policy gradients on tokens: log-probabilities, advantages, the clipped surrogate, and reductions over tokens or sequences.

Tokens stand in (N, T), N sequences of T positions. Log-probabilities are in nats. Where a function takes a mask, non-zero means that a
token counts; a masked token changes nothing, whatever its value.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from preceptor.losses.checks import check_labels, check_same_shape
from preceptor.losses.divergence import Temperature, log_probs
from preceptor.losses.numeric import lift_to_zero

Aggregation = Literal["token-mean", "sequence-mean", "sequence-sum"]
"""Mean over all tokens; mean over sequences of the mean, or of the sum, over their tokens."""

_LARGEST = 20.0  # of a log-ratio, as in verl: e^20 is far beyond every clip


def token_log_probs(logits: Tensor, tokens: Tensor, *, temperature: Temperature = 1.0) -> Tensor:
    """Log-probability of each token, log softmax(logits / T) at its number.

    Args:
        logits: shape (..., V).
        tokens: shape (...), integers in [0, V).
        temperature: T > 0, no unit.
    Returns:
        Shape (...), <= 0, finite, in float32 or float64.
    Raises:
        TypeError: logits are not floating point, or tokens not integers.
        ValueError: shapes do not fit, a token is out of range, or temperature <= 0.
    """
    check_labels(tokens, logits)
    return log_probs(logits, temperature=temperature).gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)


def group_advantages(rewards: Tensor, groups: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Rewards relative to those of the other answers to the same prompt.

    Shao et al. 2024, GRPO (arXiv:2402.03300), Sec. 4.1.2, with the sample standard deviation (n - 1):
        A_i = (r_i - mean) / (std + eps) inside a group.
    A group of one has mean 0 and std 1; equal rewards have advantage 0.

    Args:
        rewards: shape (N,), finite.
        groups: the prompt of each answer, shape (N,), any integers.
        eps: > 0, in units of the reward.
    Returns:
        Shape (N,), in the dtype of the rewards, or float32 where that is none of floating point.
    Raises:
        ValueError: shapes differ, or a reward is not finite.
    """
    check_same_shape(rewards=rewards, groups=groups)
    if rewards.ndim != 1:
        raise ValueError(f"rewards: expected shape (N,), got {tuple(rewards.shape)}")
    if not rewards.isfinite().all():
        raise ValueError(f"rewards: expected finite numbers, got {rewards[~rewards.isfinite()][0].item()}")
    values = rewards.double()  # equal rewards must give 0, and eps is small
    _, place, sizes = groups.unique(return_inverse=True, return_counts=True)

    def summed(x: Tensor) -> Tensor:
        return torch.zeros(len(sizes), dtype=x.dtype, device=x.device).index_add_(0, place, x)

    alone = sizes == 1
    mean = (summed(values) / sizes).masked_fill(alone, 0.0)
    centred = values - mean[place]
    std = (summed(centred.square()) / (sizes - 1).clamp(min=1)).sqrt().masked_fill(alone, 1.0)
    advantages = centred / (std[place] + eps)
    return advantages.to(rewards.dtype if rewards.is_floating_point() else torch.float32)


def importance_weights(log_probs: Tensor, sampling_log_probs: Tensor, *, cap: float = 5.0) -> Tensor:
    """How much likelier a token is under the policy than under what drew it, cut off: min(pi / pi_sampling, cap); constant.

    Args:
        log_probs: of the policy, shape (N, T).
        sampling_log_probs: of the distribution that the tokens were drawn from, same shape.
        cap: > 0, no unit.
    Returns:
        Shape (N, T), in (0, cap].
    """
    check_same_shape(log_probs=log_probs, sampling_log_probs=sampling_log_probs)
    return _ratio(log_probs, sampling_log_probs).detach().clamp(max=cap)


def ppo_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 3.0,
) -> Tensor:
    r"""The clipped policy-gradient loss of each token, to be minimised.

    Schulman et al. 2017, PPO (arXiv:1707.06347), Eq. 7, with the second clip of Ye et al. 2020 (arXiv:1912.09729), Eq. 4:
        r = pi / pi_old,   u = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)),   and u = min(u, -dual_clip A) where A < 0.
    At r = 1 the gradient with respect to ``log_probs`` is -A.

    Args:
        log_probs: of the policy that is trained, shape (N, T).
        old_log_probs: of the policy that wrote the tokens, same shape; constant.
        advantages: A, same shape; constant.
        clip_low, clip_high: >= 0, no unit; clip_low < 1.
        dual_clip: > 1, no unit; infinity for none.
    Returns:
        Shape (N, T).
    Raises:
        ValueError: shapes differ, or a clip is out of range.
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    check_clips(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    advantages = advantages.detach()
    ratio = _ratio(log_probs, old_log_probs.detach())
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    if math.isinf(dual_clip):
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def check_clips(*, clip_low: float, clip_high: float, dual_clip: float) -> None:
    """Refuse clips out of range.

    Raises:
        ValueError: naming the clip.
    """
    if not 0 <= clip_low < 1:
        raise ValueError(f"clip_low: expected a number in [0, 1), got {clip_low}")
    if not clip_high >= 0:
        raise ValueError(f"clip_high: expected a number >= 0, got {clip_high}")
    if not dual_clip > 1:
        raise ValueError(f"dual_clip: expected a number > 1, got {dual_clip}")


def kl_estimate(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    r"""What each sampled token says about KL(pi || reference): unbiased, and never negative.

    Schulman 2020, "Approximating KL divergence", the third estimator; GRPO's penalty (arXiv:2402.03300, Eq. 4):
        e^d - d - 1,   d = log reference - log pi.

    Args:
        log_probs: of the policy, shape (N, T).
        reference_log_probs: same shape; constant.
    Returns:
        Shape (N, T), >= 0; 0 exactly where the two agree.
    """
    check_same_shape(log_probs=log_probs, reference_log_probs=reference_log_probs)
    difference = (reference_log_probs.detach() - log_probs).clamp(-_LARGEST, _LARGEST)
    return lift_to_zero(difference.expm1() - difference)


def sequence_means(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each sequence that count, (N, T) -> (N,); 0, with a gradient of 0, for a sequence without any."""
    check_same_shape(values=values, mask=mask)
    counts = mask != 0
    return values.masked_fill(~counts, 0.0).sum(-1) / counts.sum(-1).clamp(min=1)


def aggregate(values: Tensor, mask: Tensor, *, mode: Aggregation = "token-mean") -> Tensor:
    """One number from tokens, for a training loop of one's own; sequences without a token that counts are left out.

    Args:
        values: shape (N, T).
        mask: same shape.
        mode: what is averaged over what.
    Returns:
        0-dimensional; 0 with a gradient of 0 where nothing counts.
    Raises:
        ValueError: shapes differ, or an unknown mode.
    """
    check_same_shape(values=values, mask=mask)
    counts = mask != 0
    kept = values.masked_fill(~counts, 0.0)
    match mode:
        case "token-mean":
            return kept.sum() / counts.sum().clamp(min=1)
        case "sequence-mean":
            return sequence_means(values, mask).sum() / counts.any(-1).sum().clamp(min=1)
        case "sequence-sum":
            return kept.sum() / counts.any(-1).sum().clamp(min=1)
    raise ValueError(f"mode: expected 'token-mean', 'sequence-mean' or 'sequence-sum', got {mode!r}")


def _ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    return (log_probs - old_log_probs).clamp(-_LARGEST, _LARGEST).exp()
