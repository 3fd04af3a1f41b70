"""Losses from what a model said (`preceptor.models.heads.speak`): without its logits where it can be halved, from its logits elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from preceptor.core.types import Signal
from preceptor.losses.divergence import log_probs
from preceptor.losses.linear import linear_entropy, linear_log_probs, linear_sparse_cross_entropy, linear_topk_kl
from preceptor.losses.policy import token_log_probs
from preceptor.losses.sparse import signal_kl
from preceptor.losses.token_stats import entropy


def said_kl(said: Signal, signal: Signal, *, mask: Tensor | None = None, temperature: float | Tensor = 1.0) -> Tensor:
    """KL(teacher || student) from a teacher of which a few tokens are known; `preceptor.losses.sparse.signal_kl` without the logits.

    Args:
        said: what `preceptor.models.heads.speak` says of the student.
        signal: ``top_indices`` and ``top_logprobs``, or ``sample_indices`` and ``sample_weights``; see `signal_kl`.
        mask: (...), 0 where a token does not count.
        temperature: T > 0, no unit; what is known of the teacher is at this temperature.

    Returns:
        (...), in nats; of a sample the KL up to a constant.

    Raises:
        TypeError, ValueError: as `linear_topk_kl`.
    """
    if "logits" in said:
        return signal_kl(said["logits"], signal, temperature=temperature)
    hidden, head = said["hidden"], said["head"]
    if "top_logprobs" in signal:
        given = signal["top_indices"], signal["top_logprobs"]
        return linear_topk_kl(hidden, head, *given, tail=True, mask=mask, temperature=temperature)
    given = signal["sample_indices"], signal["sample_weights"]
    return linear_sparse_cross_entropy(hidden, head, *given, mask=mask, temperature=temperature)


def said_log_probs(said: Signal, tokens: Tensor, *, mask: Tensor | None = None, temperature: float | Tensor = 1.0) -> Tensor:
    """Log-probability of every given token, from what a model said; `linear_log_probs` where it can be halved.

    Args:
        said: what `preceptor.models.heads.speak` says of the model.
        tokens: (...), integers in [0, V).
        mask: (...), 0 where a token does not count: its value is 0.
        temperature: T > 0, no unit; a number or one per token.

    Returns:
        (...), <= 0, in nats.

    Raises:
        TypeError, ValueError: as `linear_log_probs`.
    """
    if "hidden" in said:
        return linear_log_probs(said["hidden"], said["head"], tokens, mask=mask, temperature=temperature)
    found = token_log_probs(said["logits"], tokens, temperature=temperature)
    return found if mask is None else torch.where(mask != 0, found, 0.0)


def said_entropy(said: Signal, *, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Entropy of every prediction, from what a model said; `linear_entropy` where it can be halved.

    Args:
        said: what `preceptor.models.heads.speak` says of the model.
        mask: (...), 0 where a token does not count: its value is 0.
        temperature: T > 0, no unit.

    Returns:
        (...), in [0, log V], in nats.

    Raises:
        TypeError, ValueError: as `linear_entropy`.
    """
    if "hidden" in said:
        return linear_entropy(said["hidden"], said["head"], mask=mask, temperature=temperature)
    found = entropy(log_probs(said["logits"], temperature=temperature))
    return found if mask is None else torch.where(mask != 0, found, 0.0)
