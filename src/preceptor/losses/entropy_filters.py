"""Which sampled tokens shrink the entropy of a policy when they are reinforced, and filters that leave them out.

Wang et al. 2026 (arXiv:2602.03392).
"""

from __future__ import annotations

import torch
from torch import Tensor

from preceptor.core.types import Signal
from preceptor.losses.checks import check_counts, check_labels, check_same_shape
from preceptor.losses.divergence import Temperature, log_probs
from preceptor.losses.token_stats import entropy


def entropy_discriminator(logits: Tensor, tokens: Tensor, *, temperature: Temperature = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """How each sampled token bears on the entropy of its position, what the average token does, and that entropy; in nats, constant.

    arXiv:2602.03392, Sec. 3: S = p_k (H + log p_k), N = sum_i p_i^2 (H + log p_i), H = -sum_i p_i log p_i.

    Args:
        logits: shape (..., V).
        tokens: the sampled ones, shape (...), integers in [0, V).
        temperature: of the sampling, T > 0, no unit.
    Returns:
        S, N >= 0, and H >= 0, each of shape (...). S sums to 0 over the vocabulary; its mean under p is N.
    Raises:
        TypeError: logits are not floating point, or tokens not integers.
        ValueError: shapes do not fit, a token is out of range, or temperature <= 0.
    """
    check_labels(tokens, logits)
    log_p = log_probs(logits.detach(), temperature=temperature)
    h = entropy(log_p)
    sampled = log_p.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)
    n = (log_p.mul(2).exp() * (h.unsqueeze(-1) + log_p)).sum(-1)
    return sampled.exp() * (h + sampled), n.clamp(min=0), h


@torch.no_grad()
def said_discriminator(
    said: Signal, tokens: Tensor, *, mask: Tensor, temperature: float = 1.0, chunk_rows: int = 256
) -> tuple[Tensor, Tensor, Tensor]:
    """`entropy_discriminator` from what a model said: where it can be halved, logits exist for some tokens at a time.

    Args:
        said: what `preceptor.models.heads.speak` says of the model.
        tokens: the sampled ones, shape (N, T), integers in [0, V).
        mask: same shape, 0 where a token does not count: it costs nothing, and its values are 0.
        temperature: of the sampling, T > 0, no unit.
        chunk_rows: tokens computed at a time, at least 1.
    Returns:
        S, N and H, each of shape (N, T).
    Raises:
        TypeError, ValueError: as `entropy_discriminator`, or chunk_rows < 1.
    """
    check_same_shape(tokens=tokens, mask=mask)
    check_counts(chunk_rows=chunk_rows)
    counts = mask != 0
    layer, values = said.get("head"), said["logits" if "logits" in said else "hidden"][counts]
    parts = []
    for rows, theirs in zip(values.split(chunk_rows), tokens[counts].split(chunk_rows), strict=True):
        parts.append(entropy_discriminator(rows if layer is None else layer.logits(rows), theirs, temperature=temperature))
    s, n, h = (torch.cat(columns) for columns in zip(*parts, strict=True))
    nothing = s.new_zeros(mask.shape)
    return nothing.masked_scatter(counts, s), nothing.masked_scatter(counts, n), nothing.masked_scatter(counts, h)


def clip_b(s: Tensor, advantages: Tensor, mask: Tensor, *, mu: float = 2.5, symmetric: bool = False) -> Tensor:
    """The tokens that the filter keeps: S is compared with its mean over the batch.

    Args:
        s: discriminators, any shape.
        advantages: the same shape.
        mask: the same shape; what is 0 stays out.
        mu: > 0, in standard deviations of S over the batch.
        symmetric: also leave out rewarded tokens with S - mean S > mu std S.
    Returns:
        bool, the same shape; the mask itself where all S are equal.
    """
    check_same_shape(s=s, advantages=advantages, mask=mask)
    counts = mask != 0
    if not counts.any():
        return counts
    return _keep(s - s[counts].mean(), s[counts], advantages, counts, mu, symmetric)


def clip_v(
    s: Tensor, n: Tensor, advantages: Tensor, mask: Tensor, *, mu: float = 8.5, max_share: float | None = 1e-4, symmetric: bool = False
) -> Tensor:
    """The tokens that the filter keeps: S is compared with its mean over the vocabulary, N.

    Args:
        s: discriminators, any shape.
        n: their means under the policy, the same shape.
        advantages: the same shape.
        mask: the same shape; what is 0 stays out.
        mu: > 0, in standard deviations of N - S over the batch.
        max_share: at most this share of the tokens that count, but at least one token, is left out; None: no limit.
        symmetric: also leave out rewarded tokens with S - N > mu std(N - S).
    Returns:
        bool, the same shape; the mask itself where all N - S are equal.
    """
    check_same_shape(s=s, n=n, advantages=advantages, mask=mask)
    counts = mask != 0
    if not counts.any():
        return counts
    return _keep(s - n, (n - s)[counts], advantages, counts, mu, symmetric, max_share)


def _keep(
    centred: Tensor, spread: Tensor, advantages: Tensor, counts: Tensor, mu: float, symmetric: bool, max_share: float | None = None
) -> Tensor:
    sigma = float(spread.std(correction=0))
    if sigma < 1e-12:
        return counts
    shrinks = advantages.sign() * centred  # in the direction of a smaller entropy, to first order
    dropped = counts & (shrinks > mu * sigma)
    if not symmetric:
        dropped &= advantages < 0
    if max_share is not None:
        most = max(1, int(max_share * int(counts.sum())))
        chosen = shrinks.masked_fill(~dropped, -torch.inf).flatten().topk(min(most, dropped.numel())).indices
        dropped &= torch.zeros_like(dropped).flatten().index_fill_(0, chosen, True).view_as(dropped)
    return counts & ~dropped


def drop_at_random(kept: Tensor, advantages: Tensor, mask: Tensor, *, generator: torch.Generator) -> Tensor:
    """The control of a filter: leave out as many rewarded and as many punished tokens, by lot.

    Args:
        kept: what the filter keeps of the mask, bool, any shape.
        advantages: the same shape.
        mask: the same shape; what is 0 stays out.
        generator: of the lots, on the CPU.
    Returns:
        bool, the same shape.
    """
    check_same_shape(kept=kept, advantages=advantages, mask=mask)
    counts = mask != 0
    lots = torch.rand(mask.shape, generator=generator).to(mask.device)
    dropped = torch.zeros_like(counts)
    for sign in (-1, 1):
        drawn_from = counts & (advantages.sign() == sign)
        number = int((drawn_from & ~kept).sum())
        chosen = lots.masked_fill(~drawn_from, torch.inf).flatten().topk(number, largest=False).indices
        dropped = dropped.flatten().index_fill(0, chosen, True).view_as(dropped)
    return counts & ~dropped
