"""What a model gives away: how far up the planted secrets stand among all that could have been planted."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.losses.checks import check_counts
from preceptor.losses.divergence import log_probs
from preceptor.metrics.cost import device_of
from preceptor.models.taps import forward


def exposure(log_likelihoods: Tensor, secret: int) -> float:
    """How much less a secret has to be guessed by those who have the model, in bits.

    Carlini, Liu, Erlingsson, Kos, Song 2018, The Secret Sharer (arXiv:1802.08232), Sec. 4.2, with |R| candidates:
        exposure = log2 |R| - log2 rank,   rank = 1 + number of candidates that the model finds likelier.
    Ties count against the model: among equals the secret comes first. A model that knows nothing has log2 e = 1.44 on average, or the
    maximum log2 |R| where all candidates are exactly equal to it.

    Args:
        log_likelihoods: of every candidate, shape (R,); -inf is one that the model rules out.
        secret: number of the true one, in [0, R).

    Returns:
        In [0, log2 R].

    Raises:
        ValueError: another shape, no candidate, NaN or infinity (a broken model would seem to know the secret), or no such candidate.
    """
    if log_likelihoods.ndim != 1 or len(log_likelihoods) == 0:
        raise ValueError(f"log_likelihoods: expected shape (candidates,) with at least one, got {tuple(log_likelihoods.shape)}")
    wrong = log_likelihoods.isnan() | log_likelihoods.isposinf()
    if wrong.any():
        raise ValueError(f"log_likelihoods: expected no NaN and no infinity, got {int(wrong.sum())} of {len(wrong)}")
    if not 0 <= secret < len(log_likelihoods):
        raise ValueError(f"secret: expected a number in [0, {len(log_likelihoods) - 1}], got {secret}")
    rank = 1 + int((log_likelihoods > log_likelihoods[secret]).sum())
    return math.log2(len(log_likelihoods)) - math.log2(rank)


@torch.no_grad()
def continuation_log_likelihoods(model: nn.Module, prefix: Tensor, symbols: Tensor, length: int) -> Tensor:
    """What a language model thinks of every way to go on from a text with so many of some symbols; run in eval mode for a moment.

    Args:
        model: called with ``input_ids`` (N, T), returns logits (N, T, V).
        prefix: tokens, int64 (P,), at least one.
        symbols: tokens of which continuations are made, int64 (S,).
        length: symbols in a continuation, at least 1; the model reads S^(length - 1) texts.

    Returns:
        float64 (S^length,), in nats, in lexical order: with the digits as symbols, entry 42 is that of "0042".

    Raises:
        ValueError: no prefix, no symbol or no length.
    """
    check_counts(prefix=len(prefix), symbols=len(symbols), length=length)
    places = torch.cartesian_prod(*[torch.arange(len(symbols))] * (length - 1)).view(-1, length - 1) if length > 1 else torch.zeros(1, 0)
    texts = torch.cat([prefix.expand(len(places), -1), symbols[places.long()]], dim=1)
    with evaluating(model):
        logits = forward(model, {"input_ids": texts.to(device_of(model))}).logits[:, len(prefix) - 1 :]
    found = log_probs(logits.double())[:, :, symbols.to(logits.device)].cpu()
    before = found[:, :-1].gather(2, places.long().unsqueeze(2)).sum((1, 2))
    return (before.unsqueeze(1) + found[:, -1]).flatten()
