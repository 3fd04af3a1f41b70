"""The hard-label term of every classification method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import INTEGERS, check_floating, check_labels, check_same_shape
from preceptor.losses.divergence import log_probs
from preceptor.losses.numeric import all_finite, lift_to_zero, upcast

_NO_LABEL = torch.iinfo(torch.int64).min  # no label is left out


def hard_loss(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy with the labels of a batch, in nats.

    With ``batch["targets"]``, class probabilities such as mixup writes: -sum_c targets_c log softmax(logits)_c. Else with the class numbers
    ``batch["y"]``: -log softmax(logits)_y. A class with a logit of -inf counts as in `preceptor.losses.divergence`.

    Args:
        logits: shape (..., classes).
        batch: ``targets`` of shape (..., classes), rows >= 0 with sum 1, or ``y`` of shape (...), integers in [0, classes).

    Returns:
        Shape (...), >= 0.

    Raises:
        TypeError: logits are not floating point, or labels not integers.
        ValueError: shapes do not fit, or a label is out of range.
    """
    if "targets" in batch:
        check_same_shape(logits=logits, targets=batch["targets"])
        return lift_to_zero(-(batch["targets"] * log_probs(logits)).sum(dim=-1))
    check_floating(logits=logits)
    labels = batch["y"]
    if labels.device.type != "cpu" or labels.dtype not in INTEGERS or labels.shape != logits.shape[:-1]:
        check_labels(labels, logits)
    labels = labels.long()
    rows = upcast(logits) if logits.ndim <= 2 else upcast(logits).flatten(0, -2)
    try:
        loss = F.cross_entropy(rows, labels.flatten() if labels.ndim > 1 else labels, reduction="none", ignore_index=_NO_LABEL)
    except IndexError:  # on a CPU it looks at the labels itself
        check_labels(labels, logits)
        raise
    if all_finite(loss):
        return loss.view(labels.shape) if labels.ndim > 1 else loss
    return -log_probs(logits).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
