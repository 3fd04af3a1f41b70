"""How surprising responses are to a language model that reads the prompts first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from preceptor.core.method import evaluating
from preceptor.losses.said import said_log_probs
from preceptor.metrics.cost import device_of
from preceptor.models.heads import speak
from preceptor.models.language import context_length

Pair = tuple[str, str]
"""A prompt and a response."""

LogProbs = Callable[[Sequence[Pair]], Sequence[ArrayLike]]
"""A language model: pairs -> of each the log-probabilities of the tokens of its response after its prompt, in nats, (T,)."""

LARGEST = 1e6
"""A perplexity above it counts as this, so that one impossible token does not outweigh all other examples."""


def perplexity(lm: LogProbs, pairs: Sequence[Pair]) -> np.ndarray:
    """exp(mean negative log-likelihood of the tokens of a response), of each example alone.

    Args:
        lm: any language model; `causal_log_probs` makes one of a model of transformers.
        pairs: N prompts and responses; ``lm`` is not asked about blank responses.
    Returns:
        (N,), in [1, 1e6]; NaN for a blank response and for one without a token, which have no perplexity.
    Raises:
        ValueError: another number of answers, or a log-probability that is NaN or above 0.
    """
    asked = [i for i, (_, response) in enumerate(pairs) if response.strip()]
    answers = lm([pairs[i] for i in asked]) if asked else []
    if len(answers) != len(asked):
        raise ValueError(f"lm: expected log-probabilities of {len(asked)} responses, got {len(answers)}")
    found = np.full(len(pairs), math.nan)
    for i, answer in zip(asked, answers, strict=True):
        values = np.asarray(answer, dtype=np.float64)
        if values.ndim != 1 or np.isnan(values).any() or values.max(initial=0.0) > 1e-6:
            raise ValueError(f"lm: expected log-probabilities (T,) <= 0 of pair {i}, got {values.tolist()!r:.60}")
        if values.size:
            found[i] = math.exp(min(max(-values.mean(), 0.0), math.log(LARGEST)))
    return found


def causal_log_probs(model: nn.Module, tokenizer: Any, *, batch: int = 8, between: str = "\n\n") -> LogProbs:
    """The log-probabilities of a causal language model, which do not depend on what else is in a batch.

    A row begins with the token for that, or the end-of-text token, so that the first token of a response has something before it even
    without a prompt. Prompt and response are tokenised apart. What does not fit into the model's context is cut off at the end.

    Args:
        model: of transformers, on its device.
        tokenizer: of the model.
        batch: pairs that are read together, at least 1.
        between: what stands between prompt and response.
    Raises:
        ValueError: batch below 1, or a tokenizer with neither token.
    """
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if batch < 1 or begin is None:
        raise ValueError(f"batch, tokenizer: expected at least 1 pair and a first or last token, got {batch} and {begin}")
    device, context = device_of(model), context_length(model)

    def log_probs(pairs: Sequence[Pair]) -> list[np.ndarray]:
        before = [[begin, *tokenizer.encode(prompt + between, add_special_tokens=False)] for prompt, _ in pairs]
        rows = [
            (ids + tokenizer.encode(response, add_special_tokens=False))[:context] for ids, (_, response) in zip(before, pairs, strict=True)
        ]
        found: list[np.ndarray] = [np.empty(0)] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        with torch.no_grad(), evaluating(model):
            for part in (order[start : start + batch] for start in range(0, len(order), batch)):
                width = max(len(rows[i]) for i in part)
                ids = torch.tensor([rows[i] + [begin] * (width - len(rows[i])) for i in part])
                read = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in part])
                counts = read[:, 1:].clone()
                for row, i in zip(counts, part, strict=True):
                    row[: len(before[i]) - 1] = 0
                x = {"input_ids": ids[:, :-1].to(device), "attention_mask": read[:, :-1].to(device)}
                said = said_log_probs(speak(model, x), ids[:, 1:].to(device), mask=counts.to(device)).double().cpu()
                for i, values, kept in zip(part, said, counts, strict=True):
                    found[i] = values[kept != 0].numpy()
        return found

    return log_probs
