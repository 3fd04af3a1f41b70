"""What a language model says about texts, measured over the tokens that count, without ever holding the logits of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.core.types import Batch
from preceptor.metrics.calibration import Reliability, reliability
from preceptor.metrics.cost import device_of, to_device
from preceptor.models.heads import Head, head, hidden_states
from preceptor.models.taps import forward

ROWS = 256
"""Tokens whose logits are held at a time."""


@dataclass(frozen=True)
class Said:
    """The last hidden states of a model at the n tokens that count (or its logits, where it cannot be halved), and its output layer."""

    states: Tensor
    """(n, D), or logits (n, V) where ``head`` is None; on the model's device, float32 or float64."""
    targets: Tensor
    """int64 (n,)"""
    head: Head | None

    def logits(self, rows: slice) -> Tensor:
        """Logits (rows, V) of some of the tokens."""
        if self.head is None:
            return self.states[rows]
        with torch.no_grad():
            logits = self.head.logits(self.states[rows])
        return logits if logits.dtype == torch.float64 else logits.float()


def hear(model: nn.Module, batches: Iterable[Batch]) -> Said:
    """Run a language model over texts, in eval mode for a moment and without gradient.

    Args:
        model: on its device; batches are moved there.
        batches: with ``x``, ``y`` and ``mask``, see `preceptor.core.types.Batch`.
    Raises:
        ValueError: no token counts.
    """
    device = device_of(model)
    try:
        layer = head(model)
    except TypeError:
        layer = None
    states, targets = [], []
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            x, counts = to_device(batch["x"], device), batch["mask"].to(device) != 0
            found = forward(model, x).logits if layer is None else hidden_states(model, x)  # pyright: ignore[reportArgumentType]
            found = found[counts]
            states.append(found if found.dtype == torch.float64 else found.float())
            targets.append(batch["y"].to(device)[counts])
    if not sum(map(len, targets)):
        raise ValueError("mask: expected at least one token that counts, got none")
    return Said(torch.cat(states), torch.cat(targets), layer)


def score_tokens(model: Said, teacher: Said | None = None) -> tuple[dict[str, float], Reliability]:
    """Measure what a model said, and what its confidence is worth.

    Args:
        model: n tokens.
        teacher: the same tokens in the same order.
    Returns:
        ``perplexity`` (exp of the mean negative log-likelihood), ``nll`` (nats per token), ``accuracy`` of the most probable token,
        ``ece``; with a teacher also ``agreement`` of the most probable tokens and ``kl_to_teacher``, KL(teacher || model) in nats per
        token.
    Raises:
        ValueError: the vocabularies differ.
    """
    sums = dict.fromkeys(("nll", "accuracy", "agreement", "kl_to_teacher"), 0.0)
    confidence: list[Tensor] = []
    correct: list[Tensor] = []
    for rows in _slices(len(model.targets)):
        log_q = model.logits(rows).log_softmax(-1)
        targets = model.targets[rows]
        sums["nll"] -= float(log_q.gather(1, targets[:, None]).double().sum())
        best = log_q.max(-1)
        right = (best.indices == targets).double()
        sums["accuracy"] += float(right.sum())
        confidence.append(best.values.double().exp())
        correct.append(right)
        if teacher is not None:
            log_p = teacher.logits(rows).to(log_q.device).log_softmax(-1)
            if log_p.shape != log_q.shape:
                raise ValueError(f"teacher: expected the student's vocabulary of {log_q.shape[1]}, got {log_p.shape[1]}")
            sums["agreement"] += float((log_p.argmax(-1) == best.indices).double().sum())
            sums["kl_to_teacher"] += float((log_p.exp() * (log_p - log_q)).sum(-1).double().sum())
    mean = {name: value / len(model.targets) for name, value in sums.items() if teacher is not None or name in ("nll", "accuracy")}
    curve = reliability(torch.cat(confidence).cpu(), torch.cat(correct).cpu())
    ece = float((curve.count * (curve.accuracy - curve.confidence).abs()).sum() / curve.count.sum())
    return {"perplexity": math.exp(min(mean["nll"], 700.0)), **mean, "ece": ece}, curve


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, count, ROWS))
