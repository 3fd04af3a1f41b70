"""Statistics of tokens: entropy, divergence from a teacher, log-probability, the largest log-probabilities, all of one log-softmax.

`stats` takes log-probabilities that are there already; `linear_stats` takes hidden states and output layers, holds the logits of a few rows
at a time, and is a pass without gradient: what selectors of tokens look at before anything expensive is done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import (
    check_choice,
    check_counts,
    check_floating,
    check_labels,
    check_same_shape,
    check_unit_interval,
    check_vocabularies,
)
from preceptor.losses.divergence import jsd, kl, log_probs
from preceptor.losses.numeric import lift_to_zero, upcast
from preceptor.models.heads import Head

Aggregate = Literal["top_fraction", "mean", "max"]
"""How the entropies of an answer's tokens become one number, see `prefix_score`."""

Divergence = Literal["reverse_kl", "forward_kl", "generalized_jsd"]
"""KL(student || teacher), KL(teacher || student), or `preceptor.losses.divergence.jsd` with the teacher's share beta."""


@dataclass(frozen=True, kw_only=True)
class TokenStats:
    """One value per token, shape (...)."""

    entropy: Tensor  # of the prediction, in nats, in [0, log V]
    divergence: Tensor | None = None  # from the teacher, in nats, >= 0; None without one
    log_prob: Tensor | None = None  # of the given token, in nats; None without tokens
    top: Tensor | None = None  # (..., k), the largest log-probabilities, falling; None for k = 0


def entropy(log_p: Tensor) -> Tensor:
    """-sum_v p_v log p_v of finite log-probabilities (..., V), in nats: shape (...), >= 0."""
    return lift_to_zero(-(log_p.exp() * log_p).sum(dim=-1))


def candidate_entropy(log_probs: Tensor, *, base: float = 2.0, eps: float = 0.0) -> Tensor:
    r"""Entropy of a few reported candidates, brought to sum 1: -sum_k p_k log(p_k + eps) / log(base).

    EDCO (arXiv:2601.03725), released code.

    Args:
        log_probs: of the K candidates, shape (..., K), up to a constant in each row; -inf is a candidate that is not there.
        base: > 1; 2 for bits, e for nats.
        eps: >= 0; the released code has 1e-12.

    Returns:
        Shape (...), in [0, log K / log base] for eps = 0, at most what all tokens together have for peaked distributions.

    Raises:
        TypeError: log_probs are not floating point.
        ValueError: base not above 1, or eps below 0.
    """
    check_floating(log_probs=log_probs)
    if not base > 1 or eps < 0:
        raise ValueError(f"base, eps: expected base > 1 and eps >= 0, got {base} and {eps}")
    p = log_probs.softmax(dim=-1)
    return -torch.xlogy(p, p + eps).sum(dim=-1) / math.log(base)


def prefix_score(entropies: Tensor, mask: Tensor, *, aggregate: Aggregate = "top_fraction", fraction: float = 0.2) -> Tensor:
    """One number for each answer from the entropies of its tokens.

    Args:
        entropies: shape (N, T), any unit.
        mask: shape (N, T), 0 where no token was generated.
        aggregate: the mean of the largest max(1, int(fraction * tokens)), of all, or the largest.
        fraction: in (0, 1].

    Returns:
        Shape (N,), in the unit given; NaN for an answer without tokens: it is unscored.

    Raises:
        ValueError: shapes differ, an unknown aggregate, or a fraction outside (0, 1].
    """
    check_same_shape(entropies=entropies, mask=mask)
    check_choice(Aggregate, aggregate=aggregate)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected a number in (0, 1], got {fraction}")
    counts = (mask != 0).sum(dim=1)
    top = (fraction * counts.double() + 1e-9).long().clamp(min=1)
    number = {"mean": counts, "max": counts.clamp(max=1), "top_fraction": top}[aggregate]
    ordered = entropies.masked_fill(mask == 0, -torch.inf).sort(dim=1, descending=True).values
    chosen = torch.arange(entropies.shape[1], device=entropies.device) < number[:, None]
    return torch.where(counts > 0, ordered.masked_fill(~chosen, 0.0).sum(dim=1) / number, torch.nan)


def stats(
    log_q: Tensor,
    *,
    teacher: Tensor | None = None,
    kind: Divergence = "reverse_kl",
    beta: float = 0.5,
    among: int = 0,
    tokens: Tensor | None = None,
    top: int = 0,
) -> TokenStats:
    """What one log-softmax says about each token.

    Args:
        log_q: log-probabilities of the model, finite, shape (..., V).
        teacher: log-probabilities of a teacher, the same shape; None: no divergence.
        kind: which divergence.
        beta: the teacher's share of the mixture, in [0, 1].
        among: compare only the teacher's so many likeliest tokens, both sides brought to sum 1 over them; 0: all.
        tokens: shape (...), integers in [0, V); None: no log-probability.
        top: k, how many of the largest log-probabilities; at most V.
    Raises:
        ValueError: an unknown divergence, more tokens asked for than there are, or a token out of range.
        TypeError: tokens are not integers.
    """
    for name, number in (("among", among), ("top", top)):
        if not 0 <= number <= log_q.shape[-1]:
            raise ValueError(f"{name}: expected a number of tokens from 0 to {log_q.shape[-1]}, got {number}")
    check_choice(Divergence, kind=kind)
    check_unit_interval(beta=beta)
    if tokens is not None:
        check_labels(tokens, log_q)
    q = log_q.exp()
    if teacher is None:
        divergence = None
    elif kind == "reverse_kl" and not among:
        divergence = lift_to_zero((q * (log_q - teacher)).sum(dim=-1))
    else:
        divergence = _divergence(log_q, teacher, kind, beta, among)
    return TokenStats(
        entropy=lift_to_zero(-(q * log_q).sum(dim=-1)),
        divergence=divergence,
        log_prob=None if tokens is None else log_q.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1),
        top=log_q.topk(top, dim=-1).values if top else None,
    )


def _divergence(log_q: Tensor, log_p: Tensor, kind: Divergence, beta: float, among: int) -> Tensor:
    if among:
        log_p, chosen = log_p.topk(among, dim=-1)
        log_p, log_q = F.log_softmax(log_p, dim=-1), F.log_softmax(log_q.gather(-1, chosen), dim=-1)
    match kind:
        case "reverse_kl":
            return kl(log_q, log_p)
        case "forward_kl":
            return kl(log_p, log_q)
        case _:
            return jsd(log_p, log_q, beta=beta)


@torch.no_grad()
def linear_stats(
    hidden: Tensor,
    head: Head,
    *,
    teacher: tuple[Tensor, Head] | None = None,
    kind: Divergence = "reverse_kl",
    beta: float = 0.5,
    among: int = 0,
    tokens: Tensor | None = None,
    top: int = 0,
    mask: Tensor | None = None,
    chunk_rows: int = 256,
) -> TokenStats:
    """`stats` from hidden states and heads, without gradient: one matrix product and one log-softmax per side.

    Args:
        hidden: of the model, shape (..., D).
        head: of the model, (V, D).
        teacher: hidden states (..., E) with the same leading shape, and head (V, E); None: no divergence.
        kind, beta, among, tokens, top: see `stats`.
        mask: shape (...), 0 where a token does not count: it costs nothing, and its values are 0.
        chunk_rows: rows whose logits exist at a time, at least 1.
    Raises:
        TypeError: hidden states are not floating point, or tokens not integers.
        ValueError: vocabularies differ, a shape does not fit, or what `stats` refuses.
    """
    sides = [(hidden, head)] if teacher is None else [(hidden, head), teacher]
    shape = hidden.shape[:-1]
    for name, (states, layer) in zip(("hidden", "teacher hidden"), sides, strict=False):
        check_floating(**{name: states})
        if states.shape[:-1] != shape or states.shape[-1:] != layer.weight.shape[-1:]:
            raise ValueError(f"{name}: expected shape {(*shape, layer.weight.shape[-1])}, got {tuple(states.shape)}")
    for name, values in (("tokens", tokens), ("mask", mask)):
        if values is not None and values.shape != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)} (one per row), got {tuple(values.shape)}")
    if teacher is not None:
        check_vocabularies(len(head.weight), teacher=len(teacher[1].weight))
    check_counts(chunk_rows=chunk_rows)
    index = (torch.ones(shape, device=hidden.device) if mask is None else mask).flatten().nonzero().squeeze(1)
    columns = len(sides) + (tokens is not None) + top
    table = torch.zeros(shape.numel(), columns, dtype=upcast(head.weight[:0]).dtype, device=hidden.device)
    step = max(1, _CACHE // len(head.weight)) if hidden.device.type == "cpu" else chunk_rows
    for rows in index.split(chunk_rows):
        logits = [layer.logits(states.reshape(-1, states.shape[-1])[rows]) for states, layer in sides]
        for *block, here in zip(*(side.split(step) for side in logits), rows.split(step), strict=True):
            log_q, *log_p = (_log_softmax(values, layer) for values, (_, layer) in zip(block, sides, strict=True))
            given = None if tokens is None else tokens.flatten()[here]
            said = stats(log_q, teacher=log_p[0] if log_p else None, kind=kind, beta=beta, among=among, tokens=given, top=top)
            single = [values for values in (said.entropy, said.divergence, said.log_prob) if values is not None]
            table[here] = torch.cat([torch.stack(single, dim=-1), *([] if said.top is None else [said.top])], dim=-1)
    found = list(table.view(*shape, columns).unbind(dim=-1))
    return TokenStats(
        entropy=found.pop(0),
        divergence=None if teacher is None else found.pop(0),
        log_prob=None if tokens is None else found.pop(0),
        top=torch.stack(found, dim=-1) if top else None,
    )


def _log_softmax(logits: Tensor, layer: Head) -> Tensor:
    """As `log_probs`, which looks for classes with a logit of -inf; only a bias makes them."""
    return F.log_softmax(upcast(logits), dim=-1) if layer.bias is None else log_probs(logits)


_CACHE = 2**19  # logits of one block of the elementwise part: what fits into the second-level cache of a core with its temporaries
