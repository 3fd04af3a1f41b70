"""Language models: logits at one position predict the token at the next."""

from __future__ import annotations

import torch
from torch import Tensor

from preceptor.losses.checks import check_same_shape


def shift_tokens(
    labels: Tensor, *logits: Tensor, mask: Tensor | None = None, ignore_index: int = -100
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Align logits with the tokens that they predict: labels, mask and every set of logits move together.

    Position t of each result pairs the logits at t with the label and the mask of token t + 1, so that a masked token costs nothing and
    the logits at a masked token still predict the one after it.

    Args:
        labels: token ids, shape (..., tokens), int64; ``ignore_index`` marks tokens that do not count.
        logits: of the student, the teacher, ...: each of shape (..., tokens, vocabulary), vocabularies may differ.
        mask: non-zero for the tokens that count as targets, shape (..., tokens); None: all do.
        ignore_index: the label of a token that does not count.

    Returns:
        Labels of shape (..., tokens - 1), with 0 where they do not count, the mask of the same shape (bool), and the logits (views).

    Raises:
        ValueError: a shape does not fit the labels, or there is no token.
    """
    if labels.ndim < 1 or labels.shape[-1] < 1:
        raise ValueError(f"labels: expected shape (..., tokens) with at least one token, got {tuple(labels.shape)}")
    for i, values in enumerate(logits):
        if values.shape[:-1] != labels.shape:
            raise ValueError(f"logits {i}: expected shape {tuple(labels.shape)} + (vocabulary,) like labels, got {tuple(values.shape)}")
    counts = labels != ignore_index
    if mask is not None:
        check_same_shape(labels=labels, mask=mask)
        counts = counts & (mask != 0)
    targets, counts = labels[..., 1:], counts[..., 1:]
    return torch.where(counts, targets, 0), counts, tuple(values[..., :-1, :] for values in logits)
