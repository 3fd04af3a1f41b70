"""Likelihoods of chunks of text, by which models with different tokenizers can be compared.

A text has a first token, number 0, which nobody predicts. ``log_probs`` of shape (N, T) hold at t the log-probability of token t + 1 and,
with a vocabulary axis, the distribution of token t + 1. A chunk is the tokens ``start <= u < stop``; chunks of one text come in order and
do not overlap. A chunk with start = stop = 0 is padding and stands after the others. Minixhofer, Vulic, Ponti 2025 (arXiv:2503.20083).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import check_positive, check_same_shape
from preceptor.losses.numeric import upcast

Divergence = Literal["binary_ce", "abs", "total_variation", "reverse_kl", "limit"]
"""How far two likelihoods of a chunk are apart, see `chunk_divergence`."""


def chunk_sums(values: Tensor, spans: Tensor) -> Tensor:
    """Add up what belongs to the predicted tokens of each chunk.

    Args:
        values: shape (N, T); the value at t belongs to token t + 1.
        spans: (start, stop) of each chunk, shape (N, C, 2), int64.

    Returns:
        Shape (N, C); 0 for a chunk without a predicted token.
    """
    (texts, length), chunks = values.shape, spans.shape[1]
    padding = spans[..., 1] <= spans[..., 0]
    low = (spans[..., 0] - 1).clamp(min=0).masked_fill(padding, length)
    high = (spans[..., 1] - 1).masked_fill(padding, length)
    position = torch.arange(length, device=values.device).repeat(texts, 1)
    chunk = torch.searchsorted(high, position, right=True)
    inside = position >= F.pad(low, (0, 1), value=length).gather(1, chunk)
    return values.new_zeros(texts, chunks + 1).scatter_add(1, torch.where(inside, chunk, chunks), values)[:, :chunks]


def boundary_log_probs(log_probs: Tensor, spans: Tensor, boundary: Tensor, *, inputs: Tensor | None = None) -> Tensor:
    """Log-probability that a chunk ends where it does: that a token of ``boundary`` follows its last one.

    Where a text is over, so that nothing is predicted after the chunk, the end is certain: 0.

    Args:
        log_probs: shape (N, T, V).
        spans: (start, stop) of each chunk, shape (N, C, 2), int64.
        boundary: the tokens that begin a new word or end the text, shape (K,), int64.
        inputs: 1 where the model was given a token, 0 for padding, shape (N, T); None: everywhere.

    Returns:
        Shape (N, C), <= 0; 0 for padding.

    Raises:
        ValueError: no boundary token.
    """
    if not boundary.numel():
        raise ValueError("boundary: expected at least one token that begins a word, got none")
    length, stops = log_probs.shape[1], spans[..., 1]
    last = (stops - 1).clamp(0, length - 1)
    follows = (stops > 0) & (stops <= length)
    if inputs is not None:
        follows = follows & (inputs.gather(1, last) != 0)
    rows = torch.arange(len(spans), device=spans.device)[:, None, None]
    ends = log_probs[rows, last.unsqueeze(-1), boundary].logsumexp(dim=-1).clamp(max=0.0)
    return torch.where(follows, ends, 0.0)


def merge_chunks(spans: Tensor, keep: Tensor) -> Tensor:
    """Join neighbouring chunks whose common boundary is not kept.

    Args:
        spans: chunks (teacher's start, teacher's stop, student's start, student's stop), shape (N, C, 4), int64.
        keep: whether the boundary after each chunk stays, shape (N, C), bool.

    Returns:
        Shape (N, C, 4): as many chunks as remain in each text, then padding. Chunks that do not touch, on either side, are not joined.
    """
    real = spans[..., 1] > 0
    touches = torch.zeros_like(keep)
    touches[:, :-1] = (spans[:, :-1, [1, 3]] == spans[:, 1:, [0, 2]]).all(dim=-1) & real[:, 1:]
    closes = real & (keep | ~touches)
    opens = real.clone()
    opens[:, 1:] &= closes[:, :-1] | ~real[:, :-1]
    text, _ = opens.nonzero(as_tuple=True)
    number = (opens.cumsum(dim=1) - 1)[opens]
    merged = torch.zeros_like(spans)
    merged[text, number] = torch.stack([spans[opens][:, 0], spans[closes][:, 1], spans[opens][:, 2], spans[closes][:, 3]], dim=-1)
    return merged


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, accurate at both ends: Maechler 2012, with the switch at -ln 2."""
    small = x > -math.log(2)
    # each branch gets an argument at which it and its gradient are finite, also where the other one counts
    near = torch.log(-torch.expm1(torch.where(small, x, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(small, -1.0, x)))
    return torch.where(small, near, far)


def chunk_divergence(
    student: Tensor, teacher: Tensor, *, divergence: Divergence = "binary_ce", temperature: float = 100.0, epsilon: float = 1e-6
) -> Tensor:
    r"""How far the student's likelihood of a chunk is from the teacher's, as a yes-or-no question: this text, or any other.

    Minixhofer et al. 2025 (arXiv:2503.20083), Sec. 3. With the log-likelihoods a of the teacher and b of the student,
    x = a / tau - epsilon and y = b / tau - epsilon:
        binary_ce         -(e^x y + (1 - e^x) log(1 - e^y)),   d/db = (e^y - e^x) / (tau (1 - e^y)),
        reverse_kl        e^y (y - x) + (1 - e^y) (log(1 - e^y) - log(1 - e^x)),
        total_variation   |e^x - e^y|,
        limit             (x - y) + x log(y / x) with tau = 1: what tau (binary_ce - its minimum) tends to as tau grows,
        abs               |a - b|.
    ``binary_ce`` is the forward KL of the two answers plus the entropy of the teacher's, which has no gradient: its minimum is not 0.

    Args:
        student: log-likelihoods, shape (...), <= 0.
        teacher: the same shape; treated as constant.
        divergence: one of the five.
        temperature: tau > 0, no unit; not used by ``limit`` and ``abs``.
        epsilon: > 0; keeps x and y below 0 where a model is certain.

    Returns:
        Shape (...), >= 0, least where student = teacher; in float32 or float64.

    Raises:
        ValueError: shapes differ, an unknown divergence, or a number that is not > 0.
    """
    check_same_shape(student=student, teacher=teacher)
    check_positive(temperature=temperature, epsilon=epsilon)
    b, a = upcast(student), upcast(teacher.detach())
    if divergence == "abs":
        return (a - b).abs()
    if divergence == "limit":
        x, y = a - epsilon, b - epsilon
        return (x - y) + x * torch.log(y / x)
    x, y = a / temperature - epsilon, b / temperature - epsilon
    if divergence == "binary_ce":
        return -(x.exp() * y - torch.expm1(x) * log1mexp(y))
    if divergence == "total_variation":
        return (x.exp() - y.exp()).abs()
    if divergence == "reverse_kl":
        return y.exp() * (y - x) - torch.expm1(y) * (log1mexp(y) - log1mexp(x))
    raise ValueError(f"divergence: expected one of {', '.join(get_args(Divergence))}, got {divergence!r}")
