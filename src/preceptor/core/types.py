"""The words that every part of preceptor shares: batches, signals, terms, records and method cards.

Nothing here imports torch, so that a catalogue of methods can be printed without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

Roles = Mapping[str, "nn.Module"]
"""Every network of a run by its name: ``student``, ``teacher``, ``ema``, ``projector``, ``peer``, ..."""

Batch = dict[str, Any]
"""One batch. Standard keys, all with the example axis first:

``x``         inputs, (N, ...), what the models are called with
``y``         class labels, (N,), int64
``id``        the example's number in its data set, (N,), int64: every source provides it
``mask``      1 for items that count, 0 for the others, shaped like the terms; absent means that all count
``mask/TERM`` the same for one term only

Language: ``x`` is a mapping of keywords, ``input_ids`` (N, T) and what else the model takes; ``y`` (N, T) is the token that each position
is to predict and ``mask`` (N, T) is 1 where it counts. Data sources shift, methods do not: the logits at t belong to ``y`` at t.
"""

Signal = Mapping[str, Any]
"""What the teacher side computed for one batch, without gradient: ``logits`` (N, C), ``features`` {layer: tensor}, ..."""

Terms = dict[str, "Tensor"]
"""Named loss terms, weights applied: one value per item, not reduced; a 0-dimensional term is a regulariser, added once per step."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one update reports. ``losses`` holds ``total`` and every term, per phase as ``PHASE/TERM`` when a method has several phases."""

    step: int  # updates done, this one included
    epoch: int  # epoch that the batch belongs to, from 0
    losses: dict[str, float]
    items: int  # examples seen in this update, all processes
    learning_rate: float  # of the first parameter group of the first optimizer; 0 without one
    gradient_norm: float | None = None  # before clipping, where the update measured it
    extras: dict[str, float] = field(default_factory=dict)  # what after_step put into state.log


def total_loss(losses: Mapping[str, float]) -> float:
    """Of a Record's losses the total of the student's phase, or of the only one; NaN where there was none."""
    return losses.get("total", losses.get("student/total", math.nan))


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a method is, for ``preceptor list`` and ``show``, the documentation and the checks of a recipe.

    A module writes it as ``CARD = Card(...)`` with literal arguments only, so that it can be read without importing the module.
    """

    slug: str
    title: str
    authors: str  # first author and year: "Hinton et al. 2015"
    arxiv: str  # "1503.02531", or "" when there is no such preprint
    kind: str  # "logits", "features", "relations", "online", "chain", ...
    tasks: tuple[str, ...]  # "classification", "language", ...
    needs: tuple[Literal["teacher", "logits", "features", "embeddings", "labels", "generation", "subclasses", "sigmoids"], ...]
    equation: str  # plain text, one line or a few
    cost: str  # in words, per step, next to training with cross-entropy alone
    headline: str  # the figure that the paper reports
