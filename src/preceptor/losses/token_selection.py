"""Which tokens teach: scores of tokens from entropy and divergence, and the tokens with the largest.

Everything here is a function of the statistics of `preceptor.losses.token_stats`, one value per token, (N, T) for N rollouts of T tokens,
and works with any loss per token. "The batch" is that of all processes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from preceptor.core.reduce import gathered, rank
from preceptor.losses.checks import check_positive, check_same_shape
from preceptor.losses.divergence import log_probs


def scaled(values: Tensor, mask: Tensor, *, cap: float = 1.0) -> Tensor:
    """Bring the values that count to [0, 1] over the batch.

    Args:
        values: shape (N, T), any sign.
        mask: shape (N, T), 0 where a token does not count.
        cap: values above this quantile are cut to it first, in (0, 1]; 1 cuts nothing, and one huge value then presses all others to 0.

    Returns:
        Shape (N, T), 0 for the smallest, for masked tokens, and everywhere when all are equal.
    """
    check_same_shape(values=values, mask=mask)
    counts = mask != 0
    everyone = gathered(values[counts])
    if not everyone.numel():
        return torch.zeros_like(values)
    low, high = everyone.min(), everyone.quantile(cap)
    return ((values.clamp(max=high) - low) / (high - low)).where(counts & (high > low), 0.0)


def soft_or(first: Tensor, second: Tensor) -> Tensor:
    """a + b - a b = 1 - (1 - a) (1 - b) of numbers in [0, 1], which is in [0, 1] and falls in neither."""
    return first + second - first * second


def select(scores: Tensor, mask: Tensor, *, retention: float, per: Literal["rollout", "batch"] = "rollout") -> Tensor:
    """Choose the tokens with the largest scores; ties go to the earlier one.

    Args:
        scores: shape (N, T); -inf is never chosen.
        mask: shape (N, T), 0 where a token does not count.
        retention: the share to keep, in (0, 1]: of m tokens the largest whole number up to retention * m, at least one.
        per: shares of each rollout (N of them), or of the batch.

    Returns:
        Shape (N, T), bool.

    Raises:
        ValueError: shapes differ, or retention outside (0, 1].
    """
    check_same_shape(scores=scores, mask=mask)
    check_retention(retention)
    counts = mask != 0
    values = scores.masked_fill(~counts, -torch.inf)
    if per == "rollout":
        return _largest(values, counts.sum(dim=1), retention)
    here = torch.tensor([int(counts.sum())], device=mask.device)
    everyone, sizes = gathered(values[counts]), gathered(here)
    chosen = _largest(everyone[None], sizes.sum()[None], retention)[0]
    start = int(sizes[: rank()].sum())
    return torch.zeros_like(counts).masked_scatter(counts, chosen[start : start + int(here)])


def _largest(values: Tensor, sizes: Tensor, retention: float) -> Tensor:
    """Which entries of each row (N, T) are among its ``retention * size`` largest, as bool."""
    wanted = (retention * sizes.double() + 1e-9).floor().clamp(min=1)  # 0.29 * 100 is 28.999... in floating point
    places = values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (places < wanted[:, None]) & (values > -torch.inf)


def check_retention(retention: float) -> None:
    """Refuse a share outside (0, 1].

    Raises:
        ValueError: naming it.
    """
    if not 0 < retention <= 1:
        raise ValueError(f"retention: expected a share in (0, 1], got {retention}")


def quadrants(entropy: Tensor, divergence: Tensor, mask: Tensor) -> Tensor:
    """The region of each token, cut at the medians of the batch.

    Args:
        entropy: h, shape (N, T).
        divergence: d, shape (N, T).
        mask: shape (N, T), 0 where a token does not count.

    Returns:
        Shape (N, T), int64: 1 uncertain and far from the teacher, 2 uncertain and near, 3 sure and far, 4 sure and near, 0 masked.
    """
    check_same_shape(entropy=entropy, divergence=divergence, mask=mask)
    uncertain, far = (values > _median(values, mask) for values in (entropy, divergence))
    return (1 + 2 * (~uncertain).long() + (~far).long()).where(mask != 0, 0)


def _median(values: Tensor, mask: Tensor) -> Tensor:
    everyone = gathered(values[mask != 0])
    return everyone.median() if everyone.numel() else values.new_zeros(())


def importance(
    entropy: Tensor,
    divergence: Tensor,
    mask: Tensor,
    *,
    rule: Literal["soft_or", "entropy", "divergence", "q3", "q4"] = "soft_or",
    entropy_cap: float = 0.98,
    divergence_cap: float = 1.0,
) -> Tensor:
    r"""How much each token teaches, to be ranked.

    TIP (arXiv:2604.14084): s = h^ + d^ - h^ d^ with h^ and d^ of `scaled`; "entropy" has d^ = 0, "divergence" h^ = 0, "q3" ranks tokens
    with h up to its median by d, "q4" by -d.

    Args:
        entropy: h of the student, shape (N, T), >= 0; any unit.
        divergence: d, shape (N, T), >= 0; any unit.
        mask: shape (N, T), 0 where a token does not count.
        rule: see above.
        entropy_cap, divergence_cap: see `scaled`.

    Returns:
        Shape (N, T); -inf is never to be chosen.
    """
    match rule:
        case "entropy":
            return scaled(entropy, mask, cap=entropy_cap)
        case "divergence":
            return scaled(divergence, mask, cap=divergence_cap)
        case "q3" | "q4":
            sure = entropy <= _median(entropy, mask)
            return (divergence if rule == "q3" else -divergence).masked_fill(~sure, -torch.inf)
    return soft_or(scaled(entropy, mask, cap=entropy_cap), scaled(divergence, mask, cap=divergence_cap))


def sampling_scores(entropy: Tensor, divergence: Tensor, *, alpha: float = 1.0, gamma: float = 0.0, generator: torch.Generator) -> Tensor:
    r"""Scores whose largest k are k tokens drawn without replacement in proportion to w = max(h, 1e-8)^alpha max(j, 1e-8)^gamma.

    The released code of TIP (arXiv:2604.14084) draws so; log w + Gumbel noise has the same distribution of the largest k.

    Args:
        entropy: h = H(q) / ln V, shape (N, T), in [0, 1].
        divergence: j, the Jensen-Shannon divergence with equal shares / ln 2, shape (N, T), in [0, 1].
        alpha: >= 0; 0 leaves entropy out.
        gamma: >= 0; 0 leaves the divergence out.
        generator: on the CPU.

    Returns:
        Shape (N, T).
    """
    log_weight = alpha * entropy.clamp(min=1e-8).log() + gamma * divergence.clamp(min=1e-8).log()
    uniform = torch.rand(entropy.shape, dtype=torch.double, generator=generator).clamp(min=torch.finfo(torch.double).tiny)
    return log_weight.double() - (-uniform.log()).log().to(entropy.device)


def local_weight(student: Tensor, teacher: Tensor, *, learning_rate: float = 1.0) -> Tensor:
    r"""The step length that a token's own gradient deserves.

    TIP (arXiv:2604.14084), theory, for cross-entropy with the teacher and its logits as parameters:
        w = |g|^2 / (eta g^T H g),   g = q - p,   H = diag(q) - q q^T.

    Args:
        student: logits, shape (..., V).
        teacher: logits, same shape.
        learning_rate: eta > 0.

    Returns:
        Shape (...), >= 0, constant; 0 where student and teacher agree.
    """
    q, p = log_probs(student.detach()).exp(), log_probs(teacher.detach()).exp()
    g = q - p
    curvature = (q * g.square()).sum(-1) - (q * g).sum(-1).square()
    return (g.square().sum(-1) / (learning_rate * curvature)).where(curvature > 0, 0.0)


def oracle_weight(alignment: Tensor, moment: Tensor, *, learning_rate: float, smoothness: float) -> Tensor:
    """The weight of a token that lowers the loss most: alignment / (learning_rate * smoothness * moment).

    TIP (arXiv:2604.14084), theory.

    Args:
        alignment: inner product of the gradient of the whole loss and the mean gradient of the token, shape (...).
        moment: mean squared norm of the gradient of the token, shape (...), > 0.
        learning_rate: > 0.
        smoothness: largest curvature of the loss, > 0.
    """
    check_positive(moment=moment, learning_rate=learning_rate, smoothness=smoothness)
    return alignment / (learning_rate * smoothness * moment)
