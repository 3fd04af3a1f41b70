"""A small student that learns a rubric from a model's labels, each category weighted by how far the model agrees with people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.education.agreement import MISSING
from preceptor.education.comments import Comments
from preceptor.education.open_answers import Embed, char_ngrams, clean
from preceptor.education.ordinal import OrdinalHead, likeliest, ordinal_loss
from preceptor.education.reliability import Reliability, reliabilities
from preceptor.education.rubric import Rubric

LEAST_TEXTS = 20  # that a student can learn from


def agreement_weights(found: Sequence[Reliability | None]) -> np.ndarray:
    """(C,) max(HM_c, 0), the mean kappa of people and model; 0 where it is not known, and 1 everywhere where nobody labelled anything."""
    if not any(found):
        return np.ones(len(found))
    kappas = [math.nan if one is None else one.human_model.value for one in found]
    return np.array([0.0 if math.isnan(kappa) else max(kappa, 0.0) for kappa in kappas])


class Heads(nn.Module):
    """An `OrdinalHead` for each category, on the same features; of two labels it is logistic regression.

    Args:
        width: D of the features.
        labels: of each category, how many there are.
    """

    def __init__(self, width: int, labels: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(OrdinalHead(width, count) for count in labels)

    def forward(self, z: Tensor) -> list[Tensor]:
        """(N, D) -> for each category (N, labels - 1)."""
        return [head(z) for head in self.heads]


@dataclass(frozen=True, kw_only=True)
class WeightedLabels(Method):
    """sum over categories of w_c times the ordinal loss where there is a label, and penalty / 2 times the squares of the weights.

    ``weights`` (C,), ``penalty`` >= 0 per text. A batch has ``x`` (N, D) and ``y`` (N, C).
    """

    weights: tuple[float, ...]
    penalty: float

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """The loss of every text, (N,), in nats, and the penalty."""
        total = torch.zeros(len(batch["x"]))
        for weight, logits, labels in zip(self.weights, roles["student"](batch["x"]), batch["y"].T, strict=True):
            given = labels != MISSING
            total = total + weight * given * ordinal_loss(logits, labels.clamp(min=0))
        squares = [values.square().sum() for name, values in roles["student"].named_parameters() if name.endswith("weight")]
        return {"labels": total, "penalty": self.penalty / 2 * torch.stack(squares).sum()}


@dataclass(kw_only=True)
class LabelStudent:
    """Logistic or ordinal regression on TF-IDF of texts, for all categories of a rubric.

    Args:
        embed: texts to counts or embeddings, (N, D).
        penalty: on the squares of the weights, shared by all categories: where the model is less to be trusted, the student dares less.
        steps: updates on all texts at once.
        learning_rate: of Adam.
    """

    embed: Embed = char_ngrams
    penalty: float = 0.1
    steps: int = 200
    learning_rate: float = 0.1
    _rarity: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    _known: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool), repr=False)
    _heads: Heads | None = field(default=None, repr=False)

    def fit(
        self, texts: Sequence[str], labels: np.ndarray, *, counts: Sequence[int], weights: Sequence[float] | None = None
    ) -> LabelStudent:
        """Learn.

        Args:
            texts: N.
            labels: (N, C) codes, `MISSING` for none.
            counts: of each category, how many labels there are, at least 2.
            weights: (C,) >= 0, see `agreement_weights`; a category with 0 is not learned. None: 1 for all.
        Raises:
            ValueError: other shapes, no text, codes out of range, or weights that are none.
        """
        weights = [1.0] * len(counts) if weights is None else [float(weight) for weight in weights]
        if labels.shape != (len(texts), len(counts)) or not texts:
            raise ValueError(f"labels: expected shape ({len(texts)}, {len(counts)}), at least one text, got {labels.shape}")
        if len(weights) != len(counts) or not all(0 <= weight < math.inf for weight in weights):
            raise ValueError(f"weights: expected {len(counts)} numbers >= 0, got {weights}")
        over = next((c for c, count in enumerate(counts) if labels[:, c].min() < MISSING or labels[:, c].max() >= count), None)
        if over is not None:
            raise ValueError(f"labels: expected 0 to {counts[over] - 1} in category {over}, {MISSING} for none, got others")
        found = self.embed([clean(text) for text in texts])
        self._rarity = np.log((1 + len(found)) / (1 + (found != 0).sum(0))) + 1  # of TF-IDF
        self._known = np.array([weight > 0 and (labels[:, c] != MISSING).any() for c, weight in enumerate(weights)])
        self._heads = Heads(found.shape[1], counts)
        method = WeightedLabels(weights=tuple(weights), penalty=self.penalty / len(texts))
        batch = {"x": self._scaled(found), "y": torch.from_numpy(labels.astype(np.int64)), "id": torch.arange(len(texts))}
        train(
            method, {"student": self._heads}, [batch], torch.optim.Adam(self._heads.parameters(), lr=self.learning_rate), steps=self.steps
        )
        return self

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """(M, C) labels of M texts; `MISSING` in categories that were not learned.

        Raises:
            ValueError: not trained yet.
        """
        if self._heads is None:
            raise ValueError("texts: expected labels to learn from in fit, got none")
        if not texts:
            return np.zeros((0, len(self._known)), dtype=int)
        with torch.no_grad(), evaluating(self._heads):
            found = self._heads(self._scaled(self.embed([clean(text) for text in texts])))
        labels = torch.stack([likeliest(logits) for logits in found], 1).numpy()
        return np.where(self._known, labels, MISSING)

    def _scaled(self, found: np.ndarray) -> Tensor:
        weighed = found * self._rarity
        length = np.linalg.norm(weighed, axis=1, keepdims=True)
        return torch.from_numpy((weighed / np.where(length > 0, length, 1)).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """A student of a model's labels, and how far it agrees with people on comments that it did not learn from.

    Attributes:
        weights: (C,); 0 for a category that it does not label.
        learned_from: how many comments.
        reliability: of each category, the student in the place of the model; None where nobody labelled it or it was not learned.
    """

    student: LabelStudent
    weights: np.ndarray
    learned_from: int
    reliability: tuple[Reliability | None, ...]


def distil(
    comments: Comments,
    rubric: Rubric,
    labels: np.ndarray,
    found: Sequence[Reliability | None],
    student: LabelStudent,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Distilled:
    """Train a student on the comments that no person labelled, and compare it with people on the others.

    Args:
        comments: N.
        rubric: C categories.
        labels: (N, C), the model's.
        found: agreement of the model with people; see `reliabilities`.
        student: to be trained.
        draws: of the bootstrap.
        seed: of the draws.
    Raises:
        ValueError: too few comments to learn from, or no category in which the model agrees with people.
    """
    coded = np.zeros(len(comments.ids), dtype=bool)
    for given in comments.people.values():
        coded |= (given != MISSING).any(1)
    rows = np.flatnonzero(~coded & (labels != MISSING).any(1))
    if len(rows) < LEAST_TEXTS:
        raise ValueError(f"student: expected at least {LEAST_TEXTS} comments that the model labelled and no person did, got {len(rows)}")
    weights = agreement_weights(found)
    if not weights.any():
        raise ValueError("student: expected a category in which the model agrees with people, got none")
    counts = [len(category.labels) for category in rubric.categories]
    student.fit([comments.texts[i] for i in rows], labels[rows], counts=counts, weights=weights.tolist())
    tested = np.flatnonzero(coded)
    said = student.predict([comments.texts[i] for i in tested])
    people = {name: given[tested] for name, given in comments.people.items()}
    compared = reliabilities(people, said, rubric, draws=draws, seed=seed) if people else [None] * len(counts)
    kept = tuple(one if weight > 0 else None for one, weight in zip(compared, weights, strict=True))
    return Distilled(student=student, weights=weights, learned_from=len(rows), reliability=kept)
