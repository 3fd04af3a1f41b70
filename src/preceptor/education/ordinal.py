"""A small scorer that is trained: ordinal regression on the embedding of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.education.open_answers import SCORES, Embed, char_ngrams, check_scores, clean


class OrdinalHead(nn.Module):
    """Logits of P(score <= c) for every score but the highest: theta_c - w . z, theta increasing.

    Args:
        width: D of the embedding.
        scores: how many there are, at least 2.
    Raises:
        ValueError: fewer scores.
    """

    def __init__(self, width: int, scores: int = len(SCORES)) -> None:
        super().__init__()
        if scores < 2:
            raise ValueError(f"scores: expected at least 2, got {scores}")
        self.weight = nn.Parameter(torch.zeros(width))
        self.first = nn.Parameter(torch.tensor(-1.0))
        self.gaps = nn.Parameter(torch.zeros(scores - 2))  # softplus makes the distances between thresholds positive

    def forward(self, z: Tensor) -> Tensor:
        """(N, D) -> (N, scores - 1)."""
        thresholds = torch.cat([self.first[None], self.first + F.softplus(self.gaps).cumsum(0)])
        return thresholds - (z @ self.weight)[:, None]


def ordinal_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """sum over c of BCE(sigmoid(logits_c), 1[score <= c]), in nats.

    Args:
        logits: (N, C), of P(score <= c) for c = 0 ... C - 1.
        scores: (N,) whole numbers 0 to C.
    Returns:
        (N,), >= 0.
    Raises:
        ValueError: another shape.
    """
    if logits.ndim != 2 or scores.shape != logits.shape[:1]:
        raise ValueError(f"scores: expected shape ({len(logits)},) for logits (N, C), got {tuple(scores.shape)} for {tuple(logits.shape)}")
    below = (scores[:, None] <= torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, below, reduction="none").sum(1)


def likeliest(logits: Tensor) -> Tensor:
    """(N, C) -> (N,): the median of each distribution, the number of c with P(score <= c) < 1/2."""
    return (logits < 0).sum(1)


@dataclass(frozen=True, kw_only=True)
class OrdinalRegression(Method):
    """Trains an `OrdinalHead` on ``x`` (N, D) and the scores ``y`` (N,)."""

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """The ordinal loss of every answer, (N,)."""
        return {"ordinal": ordinal_loss(roles["student"](batch["x"]), batch["y"])}


@dataclass(kw_only=True)
class OrdinalScorer:
    """Scores answers to one problem, or to several alike, by what teachers gave to past ones. An empty answer gets 0.

    Args:
        embed: texts to numbers.
        steps: updates on all answers at once.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
    """

    embed: Embed = char_ngrams
    steps: int = 300
    learning_rate: float = 0.1
    weight_decay: float = 0.1
    _head: OrdinalHead | None = field(default=None, repr=False)

    def fit(self, texts: Sequence[str], scores: Sequence[int]) -> OrdinalScorer:
        """Train on N answers.

        Raises:
            ValueError: different lengths, no answers, or a score outside 0 to 4.
        """
        if len(texts) != len(scores) or not texts:
            raise ValueError(f"scores: expected as many as texts, at least 1, got {len(scores)} for {len(texts)}")
        check_scores(scores)
        x = self._features(texts)
        batch = {"x": x, "y": torch.tensor(list(scores)), "id": torch.arange(len(x))}
        self._head = OrdinalHead(x.shape[1])
        optimizer = torch.optim.AdamW(self._head.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        train(OrdinalRegression(), {"student": self._head}, [batch], optimizer, steps=self.steps)
        return self

    def predict(self, texts: Sequence[str]) -> list[int]:
        """Score M answers.

        Raises:
            ValueError: not trained yet.
        """
        if self._head is None:
            raise ValueError("answers: expected past answers from fit, got none")
        if not texts:
            return []
        with torch.no_grad(), evaluating(self._head):
            scores = likeliest(self._head(self._features(texts))).tolist()
        return [score if clean(text) else 0 for text, score in zip(texts, scores, strict=True)]

    def _features(self, texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(np.asarray(self.embed([clean(text) for text in texts]), dtype=np.float32))
