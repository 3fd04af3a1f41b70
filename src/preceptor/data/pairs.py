"""Batches of text in pairs: a context and two continuations, of which one is preferred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from preceptor.core.types import Batch
from preceptor.data.rollout import Completions, language_batch


def preference_batch(
    contexts: Sequence[str], chosen: Sequence[str], rejected: Sequence[str], tokenizer: Any, *, max_length: int
) -> tuple[Batch, int]:
    """Tokens of N pairs, as methods of preference train on them; each continuation ends with the end of text.

    Args:
        contexts: N texts.
        chosen: N texts that follow them.
        rejected: N others.
        tokenizer: of transformers, with an end of text; its beginning of text, if any, stands before each context.
        max_length: tokens of context and either continuation at most; longer pairs, and those with an empty text, are left out.
    Returns:
        ``prompt`` (contexts, padded on the left), ``x``, ``y`` and ``mask`` of the chosen, ``rejected`` with those of the rejected, and
        ``id``, the pairs' numbers; and how many pairs were left out.
    Raises:
        ValueError: lists of different lengths, a tokenizer without an end of text, or no pair that fits.
    """
    if not len(contexts) == len(chosen) == len(rejected):
        raise ValueError(f"chosen, rejected: expected {len(contexts)} texts like contexts, got {len(chosen)} and {len(rejected)}")
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError(f"tokenizer: expected an end-of-text token (eos_token), got a {type(tokenizer).__name__} without one")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    texts = [
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in row] for row in zip(contexts, chosen, rejected, strict=True)
    ]
    rows = [(i, [*begin, *z], [*a, end], [*b, end]) for i, (z, a, b) in enumerate(texts) if a and b and (begin or z)]
    rows = [row for row in rows if len(row[1]) + max(len(row[2]), len(row[3])) <= max_length]
    if not rows:
        raise ValueError(f"max_length: expected at least one of {len(texts)} pairs within {max_length} tokens, got none")
    numbers, given, *sides = zip(*rows, strict=True)
    width = max(map(len, given))
    prompt = {
        "input_ids": torch.tensor([[end] * (width - len(ids)) + ids for ids in given]),
        "attention_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in given]),
    }
    laid = []
    for side in sides:
        size = max(map(len, side))
        ids = torch.tensor([after + [end] * (size - len(after)) for after in side])
        mask = torch.tensor([[True] * len(after) + [False] * (size - len(after)) for after in side])
        finished = torch.ones(len(side), dtype=torch.bool)
        joined = language_batch(prompt, Completions(ids=ids, mask=mask, log_probs=torch.zeros(ids.shape), finished=finished))
        laid.append({key: joined[key] for key in ("x", "y", "mask")})
    return {**laid[0], "prompt": prompt, "rejected": laid[1], "id": torch.tensor(numbers)}, len(texts) - len(rows)
