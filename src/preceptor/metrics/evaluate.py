"""From a model and data to numbers: `predict` runs the model, `score` measures what it said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.core.types import Batch
from preceptor.metrics.calibration import adaptive_ece, classwise_ece, ece
from preceptor.metrics.classification import accuracy, brier, nll, top_k
from preceptor.metrics.cost import device_of, to_device
from preceptor.metrics.fidelity import agreement, kl_to_teacher, rank_correlation
from preceptor.metrics.mean import Mean
from preceptor.models.taps import forward


class Predictions(NamedTuple):
    """What a model said about examples, on the CPU, in the order they came."""

    logits: Tensor  # (N, classes), at least float32
    labels: Tensor  # (N,), int64
    ids: Tensor  # (N,), int64


def predict(model: nn.Module, batches: Iterable[Batch]) -> Predictions:
    """Run a model over finitely many batches, in eval mode for a moment and without gradient.

    Args:
        model: a classifier, on its device; batches are moved there.
        batches: with ``x``, ``y`` and ``id``; for a source, ``source.scan()``. A batch without examples is passed over.
    Returns:
        Logits, labels and ids.
    Raises:
        ValueError: no example in all batches.
    """
    device = device_of(model)
    logits, labels, ids = [], [], []
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            if len(batch["y"]) == 0:
                continue
            out = forward(model, to_device(batch["x"], device)).logits
            logits.append((out.float() if out.dtype in (torch.float16, torch.bfloat16) else out).cpu())
            labels.append(batch["y"].cpu())
            ids.append(batch["id"].cpu())
    if not logits:
        raise ValueError("batches: expected at least one example, got none")
    return Predictions(torch.cat(logits), torch.cat(labels), torch.cat(ids))


def score(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, float]:
    """Measure predictions with every metric that applies.

    Args:
        logits: of the model, shape (N, classes), N >= 1.
        labels: shape (N,), in [0, classes).
        teacher_logits: shape (N, classes), of the same examples in the same order.
    Returns:
        ``accuracy``, ``top5`` (only with more than 5 classes), ``nll`` (nats), ``brier`` (0 to 2), ``ece``, ``classwise_ece``,
        ``adaptive_ece``; with a teacher also ``agreement``, ``kl_to_teacher`` (nats) and ``rank_correlation`` (-1 to 1).
        Those without a range here are in [0, 1].
    Raises:
        ValueError, TypeError: see `preceptor.metrics.checks`.
    """
    items = {"accuracy": accuracy(logits, labels)}
    if logits.shape[1] > 5:
        items["top5"] = top_k(logits, labels, k=5)
    items |= {"nll": nll(logits, labels), "brier": brier(logits, labels)}
    if teacher_logits is not None:
        items["agreement"] = agreement(logits, teacher_logits)
        items["kl_to_teacher"] = kl_to_teacher(logits, teacher_logits)
        items["rank_correlation"] = rank_correlation(logits, teacher_logits)
    scores = {name: _mean(values) for name, values in items.items()}
    for name, function in {"ece": ece, "classwise_ece": classwise_ece, "adaptive_ece": adaptive_ece}.items():
        scores[name] = float(function(logits, labels))
    return scores


def _mean(values: Tensor) -> float:
    mean = Mean()
    mean.update(values)
    return mean.compute()
