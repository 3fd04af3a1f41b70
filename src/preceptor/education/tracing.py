"""Knowledge tracers: the chance that a student's next answer is correct, from the answers before it.

DKT and SAKT are trained on the project's loop by `Tracing`. The loss is the cross-entropy of the answer over the judged steps: not padding,
not a first step, and of a question that was taken apart by tags only the first row. Chance t never depends on answer t or a later one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.stream import Repeated
from preceptor.core.types import Batch, Record, Roles, Signal, Terms
from preceptor.education import bkt
from preceptor.education.scores import auc, by_history, score
from preceptor.education.sequences import Windows, batch_of
from preceptor.education.tracing_networks import DKT, SAKT

Name = Literal["item-mean", "bkt", "dkt", "sakt"]
"""Every tracer there is."""


class Tracer(Protocol):
    """What learns from windows and then says the chance of every answer."""

    def fit(self, seen: Windows, valid: Windows | None = None) -> None:
        """Learn from windows of some students; ``valid``, of others, chooses when to stop."""
        ...

    def predict(self, part: Windows) -> np.ndarray:
        """Chances (n, L), each from the steps of its window before it; anything at padding."""
        ...


class Tracing(Method):
    """Cross-entropy of the answers, one value per step; the mask says which are judged."""

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return ``bce`` (N, T)."""
        logits = roles["student"](**batch["x"])
        return {"bce": F.binary_cross_entropy_with_logits(logits.float(), batch["y"].float(), reduction="none")}


class ItemMean:
    """The share of correct answers to each item, drawn to the share of all by ``prior`` answers."""

    def __init__(self, items: int, *, prior: float = 2.0) -> None:
        self.prior, self.rate = prior, np.full(items, 0.5)

    def fit(self, seen: Windows, valid: Windows | None = None) -> None:
        """Count."""
        item, correct = seen.item[seen.first], seen.correct[seen.first]
        right, total = (np.bincount(item, weights, len(self.rate)) for weights in (correct, None))
        self.rate = (right + self.prior * right.sum() / max(1, total.sum())) / (total + self.prior)

    def predict(self, part: Windows) -> np.ndarray:
        """The same for every student."""
        return self.rate[part.item.clip(min=0)]


class BKT:
    """`preceptor.education.bkt` over the tags of items; an item without tags is a skill of its own where ``tags`` is None."""

    def __init__(self, items: int, *, tags: Tensor | None = None, iterations: int = 20) -> None:
        self.tags = np.arange(items)[:, None] if tags is None else tags.numpy()
        self.iterations = iterations
        self.skills: bkt.Skills | None = None

    def fit(self, seen: Windows, valid: Windows | None = None) -> None:
        """Run EM; the windows of a student count as separate students."""
        self.skills, _ = bkt.fit(self._of(seen), seen.correct, num_skills=int(self.tags.max()) + 1, iterations=self.iterations)

    def predict(self, part: Windows) -> np.ndarray:
        """Trace every window from the start."""
        if self.skills is None:
            raise ValueError("bkt: expected fit before predict")
        return bkt.trace(self._of(part), part.correct, self.skills)

    def _of(self, part: Windows) -> np.ndarray:
        """(n, L, M); rows that repeat an answer for a further tag belong to it all the same."""
        return np.where((part.item >= 0)[..., None], self.tags[part.item.clip(min=0)], -1)


class Neural:
    """DKT or SAKT, trained by Adam on the project's loop, with early stopping by AUC where there is a validation part.

    Args:
        network: called with ``item`` and ``correct``; trained in place.
        epochs: passes over the training windows.
        batch_size: windows in a batch.
        learning_rate: of Adam.
        patience: epochs without a better validation AUC before stopping.
        seed: of order and dropout.
        progress: told of every update.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        epochs: int = 20,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        patience: int = 5,
        seed: int = 0,
        progress: Callable[[Record], None] | None = None,
    ) -> None:
        self.network, self.epochs, self.batch_size, self.learning_rate = network, epochs, batch_size, learning_rate
        self.patience, self.seed, self.progress = patience, seed, progress

    def fit(self, seen: Windows, valid: Windows | None = None) -> None:
        """Train; with ``valid`` the best weights stay."""
        batches = _Shuffled(seen, self.batch_size, self.seed)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)

        def validate(roles: Roles, state: State) -> dict[str, float]:
            assert valid is not None
            return {"auc": auc(_chances(roles["student"], valid)[valid.judged], valid.correct[valid.judged])}

        options: dict[str, Any] = {} if valid is None else {"valid": validate, "monitor": "auc", "patience": self.patience}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            train(
                Tracing(),
                {"student": self.network},
                Repeated(batches),
                optimizer,
                steps=self.epochs * len(batches),
                evaluate_every=len(batches),
                seed=self.seed,
                clip=5.0,
                progress=self.progress,
                **options,
            )

    def predict(self, part: Windows) -> np.ndarray:
        """Chances of the network in eval mode."""
        with evaluating(self.network), torch.no_grad():
            return _chances(self.network, part)


class _Shuffled:
    """Batches of windows in an order of (seed, pass), of windows that have something to judge."""

    def __init__(self, seen: Windows, batch_size: int, seed: int) -> None:
        self.seen, self.batch_size, self.seed, self.epoch = seen.take(np.flatnonzero(seen.judged.any(1))), batch_size, seed, 0

    def __len__(self) -> int:
        return math.ceil(len(self.seen) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.seen))
        self.epoch += 1
        for start in range(0, len(order), self.batch_size):
            yield batch_of(self.seen.take(order[start : start + self.batch_size]))


def _chances(network: nn.Module, part: Windows, batch_size: int = 256) -> np.ndarray:
    found = np.full(part.item.shape, 0.5)
    device = next(network.parameters()).device
    for start in range(0, len(part), batch_size):
        x = batch_of(part.take(np.arange(start, min(start + batch_size, len(part)))))["x"]
        chances = torch.sigmoid(network(**{name: value.to(device) for name, value in x.items()}).float())
        found[start : start + len(chances), : chances.shape[1]] = chances.cpu().numpy()
    return found


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a neural tracer is built and trained; other tracers have no use for it."""

    width: int = 64
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    dropout: float = 0.2
    patience: int = 5
    max_len: int = 200


def knowledge_tracer(name: Name, items: int, *, tags: np.ndarray | None = None, training: Training | None = None, seed: int = 0) -> Tracer:
    """A tracer by its name.

    Args:
        name: of the tracer.
        items: numbers of items are below it.
        tags: (items, M) padded with -1; None: an item is all that is known of a question.
        training: of ``dkt`` and ``sakt``.
        seed: of weights and order.
    Raises:
        ValueError: another name.
    """
    training = training or Training()
    known = None if tags is None else torch.from_numpy(tags.astype(np.int64))
    if name == "item-mean":
        return ItemMean(items)
    if name == "bkt":
        return BKT(items, tags=known)
    if name not in ("dkt", "sakt"):
        raise ValueError(f"model: expected item-mean, bkt, dkt or sakt, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "dkt":
            network: nn.Module = DKT(items, tags=known, width=training.width, dropout=training.dropout)
        else:
            network = SAKT(items, tags=known, width=training.width, max_len=training.max_len, dropout=training.dropout)
    return Neural(
        network,
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        patience=training.patience,
        seed=seed,
    )


def evaluate(chances: np.ndarray, part: Windows, *, by: Literal["history"] | None = None) -> dict[str, Any]:
    """Scores of chances (n, L) over all judged steps together, and with ``by`` also for each length of history.

    Raises:
        ValueError: no judged step.
    """
    judged = part.judged
    if not judged.any():
        raise ValueError("students: expected at least one answer with another before it, got none")
    said, correct = chances[judged], part.correct[judged]
    found: dict[str, Any] = dict(score(said, correct))
    if by == "history":
        history = (part.start[:, None] + np.arange(part.item.shape[1]))[judged]
        found["by_history"] = by_history(said, correct, history)
    return found
