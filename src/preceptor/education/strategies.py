"""Strategies of solving a problem: what a student masters, a network that writes the strategy, and how evenly it does for all groups.

A strategy is the row of knowledge components (KCs) that a student uses on a problem, after Shakya et al. 2023 (arXiv:2308.03892).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.stream import Repeated
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.education.clusters import similarity
from preceptor.education.sequences import PAD, Windows
from preceptor.education.tracing import Neural
from preceptor.education.tracing_networks import SAKT

LAST = 5
"""Steps over whose ends the mastery is averaged."""


def steps_of(component: np.ndarray, correct: np.ndarray) -> Windows:
    """Students' steps, (U, T) padded with -1, as windows with one student each."""
    return Windows(
        user=np.arange(len(component)),
        start=np.zeros(len(component), np.int64),
        item=component.astype(np.int32),
        correct=np.where(component >= 0, correct, PAD).astype(np.int8),
        elapsed=np.zeros(component.shape, np.int32),
        first=component >= 0,
    )


def mastery(
    steps: Windows, num_components: int, *, by: Literal["attention", "mean"] = "attention", epochs: int = 20, seed: int = 0
) -> np.ndarray:
    """The chance that a student answers a step of each KC correctly, (U, K) in (0, 1).

    Args:
        steps: one window per student; ``item`` is the KC.
        num_components: K.
        by: a SAKT tracer (one block, width 64) asked for every KC, the mean over the ends of the last 5 steps; or (1 + sum c) / (2 + n),
            the mean of Beta(1, 1). A student without steps gets 1/2 in any case.
        epochs: of the tracer.
        seed: of its weights and order.
    """
    lengths = (steps.item >= 0).sum(1)
    row, column = np.nonzero(steps.item >= 0)
    right, count = np.zeros((2, len(steps), num_components))
    np.add.at(right, (row, steps.item[row, column]), steps.correct[row, column])
    np.add.at(count, (row, steps.item[row, column]), 1)
    mean = (1 + right) / (2 + count)
    if by == "mean" or not steps.judged.any():
        return mean
    longest = steps.item.shape[1] + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SAKT(num_components, width=64, max_len=longest)
    Neural(network, epochs=epochs, learning_rate=3e-3, seed=seed).fit(steps)
    item = torch.from_numpy(np.pad(steps.item, ((0, 0), (0, 1)), constant_values=0).clip(min=0)).long()
    correct = torch.from_numpy(np.pad(steps.correct, ((0, 0), (0, 1))).clip(min=0)).long()
    found, times, everyone = torch.zeros(len(steps), num_components), torch.zeros(len(steps), 1), torch.arange(len(steps))
    with evaluating(network), torch.no_grad():
        for back in range(LAST):
            place = torch.from_numpy(lengths - back)
            present = (place > 0).float()[:, None]
            for component in range(num_components):
                asked = item.clone()
                asked[everyone, place.clamp(min=0)] = component
                logits = network(item=asked, correct=correct)[everyone, place.clamp(min=0)]
                found[:, component] += torch.sigmoid(logits) * present[:, 0]
            times += present
    return np.where(lengths[:, None] > 0, (found / times.clamp(min=1)).numpy(), mean)


def mastery_edges(mastered: np.ndarray, problems: Sequence[Sequence[int]], attempts: np.ndarray, *, threshold: float = 0.6) -> np.ndarray:
    """Edges (a, b, weight) of students, then problems, then KCs.

    Args:
        mastered: (U, K); an edge where it reaches ``threshold``, with that weight, and one to the best KC of a student without any.
        problems: the KCs of each.
        attempts: (n, 2) student and problem.
        threshold: tau_m.
    """
    users = len(mastered)
    kept = mastered >= threshold
    kept[np.flatnonzero(~kept.any(1)), mastered[~kept.any(1)].argmax(1)] = True
    user, component = np.nonzero(kept)
    first_component = users + len(problems)
    known = np.stack([user, first_component + component, mastered[kept]], 1)
    parts = np.array([(users + i, first_component + k, 1.0) for i, own in enumerate(problems) for k in sorted(set(own))]).reshape(-1, 3)
    tried = np.unique(attempts, axis=0)
    return np.concatenate([known, parts, np.stack([tried[:, 0], users + tried[:, 1], np.ones(len(tried))], 1)])


def instance_vectors(
    vectors: np.ndarray, users: np.ndarray, problems: np.ndarray, *, num_users: int, components: Sequence[Sequence[int]] | None = None
) -> np.ndarray:
    """MVec of each instance: the vectors of student and problem, each of length 1, one after the other, (n, 2 D).

    Args:
        vectors: (N, D) of students, then problems, then KCs.
        users: (n,).
        problems: (n,).
        num_users: U.
        components: the KCs of every problem; a problem without a vector of its own gets the mean of theirs.
    """
    vectors = vectors.copy()
    first_component = num_users + len(components or ())
    for problem, own in enumerate(components or ()):
        if own and not vectors[num_users + problem].any():
            vectors[num_users + problem] = vectors[first_component + np.array(own)].mean(0)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.concatenate([unit[users], unit[num_users + problems]], 1)


def mastery_groups(mastered: np.ndarray, count: int = 4) -> np.ndarray:
    """The group of every student, (U,) from 0 for the least to ``count - 1``: quantiles of the mean mastery, sizes differ by one at most.

    Raises:
        ValueError: fewer students than groups, or count < 1.
    """
    if not 1 <= count <= len(mastered):
        raise ValueError(f"count: expected a number of groups in [1, {len(mastered)}], got {count}")
    rank = np.empty(len(mastered), np.int64)
    rank[np.argsort(mastered.mean(1), kind="stable")] = np.arange(len(mastered))
    return rank * count // len(mastered)


class _Writer(nn.Module):
    """One-to-many LSTM: from x (N, D) and the symbols so far (N, T), logits (N, T, K + 1); symbol K + 1 begins, K ends."""

    def __init__(self, inputs: int, symbols: int, width: int) -> None:
        super().__init__()
        self.start, self.symbol = nn.Linear(inputs, width), nn.Embedding(symbols + 2, width)
        self.recurrent, self.output = nn.LSTM(width, width, batch_first=True), nn.Linear(width, symbols + 1)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        hidden = torch.tanh(self.start(x))[None]
        return self.output(self.recurrent(self.symbol(before), (hidden, torch.zeros_like(hidden)))[0])


class _Writing(Method):
    """Cross-entropy of each symbol, END included, with teacher forcing."""

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        logits = roles["student"](batch["x"], batch["before"])
        return {"hard": F.cross_entropy(logits.flatten(0, 1), batch["y"].flatten(), reduction="none").view(batch["y"].shape)}


class StrategyModel:
    """Writes strategies from vectors of instances.

    Args:
        num_components: K; symbols of strategies are in [0, K).
        width: of the LSTM.
        steps: updates.
        batch_size: instances per update.
        learning_rate: of Adam.
        seed: of weights and order.
    """

    def __init__(
        self, num_components: int, *, width: int = 64, steps: int = 300, batch_size: int = 32, learning_rate: float = 5e-3, seed: int = 0
    ) -> None:
        self.end, self.width, self.steps, self.batch_size = num_components, width, steps, batch_size
        self.learning_rate, self.seed, self.longest = learning_rate, seed, 1
        self.network: _Writer | None = None

    def fit(self, x: np.ndarray, strategies: Sequence[Sequence[int]]) -> None:
        """Train on instances (n, D) and their strategies; a strategy may be empty.

        Raises:
            ValueError: no instance, or a symbol outside [0, K).
        """
        if not len(x) or len(x) != len(strategies):
            raise ValueError(f"strategies: expected one per instance and at least one, got {len(strategies)} for {len(x)}")
        symbols = {symbol for strategy in strategies for symbol in strategy}
        if symbols and (min(symbols) < 0 or max(symbols) >= self.end):
            raise ValueError(f"strategies: expected symbols in [0, {self.end}), got {min(symbols)} to {max(symbols)}")
        self.longest = max(map(len, strategies))
        y = torch.full((len(x), self.longest + 1), self.end)
        mask = torch.zeros(y.shape)
        for row, strategy in enumerate(strategies):
            y[row, : len(strategy)] = torch.tensor(list(strategy), dtype=torch.int64)
            mask[row, : len(strategy) + 1] = 1
        before = F.pad(y[:, :-1], (1, 0), value=self.end + 1)
        values = {"x": torch.from_numpy(x).float(), "before": before, "y": y, "mask": mask, "id": torch.arange(len(x))}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = _Writer(x.shape[1], self.end, self.width)
            optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)
            source = Repeated(_Passes(values, self.batch_size, self.seed))
            train(_Writing(), {"student": self.network}, source, optimizer, steps=self.steps, seed=self.seed)

    def predict(self, x: np.ndarray) -> list[list[int]]:
        """The likeliest symbol at each step, to END or one and a half times the longest strategy seen."""
        if self.network is None:
            raise ValueError("strategy model: expected fit before predict")
        before = torch.full((len(x), 1), self.end + 1)
        ended = torch.zeros(len(x), dtype=torch.bool)
        with evaluating(self.network), torch.no_grad():
            given = torch.from_numpy(x).float()
            for _ in range(max(1, -(-3 * self.longest // 2))):
                symbol = self.network(given, before)[:, -1].argmax(-1)
                ended = ended | (symbol == self.end)
                before = torch.cat([before, torch.where(ended, self.end, symbol)[:, None]], 1)
                if bool(ended.all()):
                    break
        return [[symbol for symbol in row if symbol != self.end] for row in before[:, 1:].tolist()]


class _Passes:
    def __init__(self, values: Batch, batch_size: int, seed: int) -> None:
        self.values, self.batch_size, self.seed, self.epoch = values, batch_size, seed, 0

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.values["id"]), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch))
        self.epoch += 1
        for rows in order.split(self.batch_size):
            yield {name: value[rows] for name, value in self.values.items()}


def strategy_scores(predicted: Sequence[int], truth: Sequence[int]) -> dict[str, float]:
    """``token``: share of equal symbols on aligned positions of the longer one; ``exact``: 0 or 1; ``edit``: 1 less the edit distance."""
    longest = max(len(predicted), len(truth))
    token = sum(a == b for a, b in zip(predicted, truth, strict=False)) / longest if longest else 1.0
    return {"token": token, "exact": float(list(predicted) == list(truth)), "edit": similarity(predicted, truth)}


def equity_report(predicted: Sequence[Sequence[int]], truth: Sequence[Sequence[int]], group: np.ndarray) -> dict[str, float]:
    """Scores over all, and of the accuracy by tokens of each group the worst, the gap from best to worst and the standard deviation.

    Args:
        predicted: n strategies.
        truth: n strategies.
        group: (n,) any labels, such as quantiles of the mean mastery.
    Raises:
        ValueError: lengths differ, or nothing to report on.
    """
    if not len(truth) or not len(predicted) == len(truth) == len(group):
        raise ValueError(f"predicted, truth, group: expected as many of each, got {len(predicted)}, {len(truth)} and {len(group)}")
    rows = [strategy_scores(p, t) for p, t in zip(predicted, truth, strict=True)]
    token = np.array([row["token"] for row in rows])
    by_group = np.array([token[group == label].mean() for label in np.unique(group)])
    means = {name: float(np.mean([row[name] for row in rows])) for name in ("token", "exact", "edit")}
    return means | {"worst": float(by_group.min()), "gap": float(np.ptp(by_group)), "std": float(by_group.std())}
