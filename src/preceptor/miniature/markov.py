"""Languages with a known truth: second-order Markov chains over twelve symbols, and smoothed n-gram models that learn them.

Texts are rows of symbols, int64 (N, T), or strings with a letter for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LETTERS = "abcdefghijkl"
SYMBOLS = len(LETTERS)


def random_chain(generator: np.random.Generator, *, concentration: float = 0.2) -> np.ndarray:
    """Probabilities (V, V, V) of a symbol after the last two, each row from a symmetric Dirichlet distribution."""
    return generator.dirichlet(np.full(SYMBOLS, concentration), size=(SYMBOLS, SYMBOLS))


def tempered(chain: np.ndarray, temperature: float) -> np.ndarray:
    """A chain whose log-probabilities are divided by a temperature > 0."""
    powers = chain ** (1 / temperature)
    return powers / powers.sum(-1, keepdims=True)


def drawn(chain: np.ndarray, texts: np.ndarray, length: int, generator: np.random.Generator) -> np.ndarray:
    """Go on with texts (N, >= 2) up to ``length`` symbols."""
    sums = chain.cumsum(-1)
    while texts.shape[1] < length:
        limits = sums[texts[:, -2], texts[:, -1]]
        draws = generator.random(len(texts))[:, None] * limits[:, -1:]  # rounding: a sum may be a little below 1
        texts = np.column_stack([texts, (limits <= draws).sum(1)])
    return texts


def true_texts(chain: np.ndarray, count: int, length: int, generator: np.random.Generator) -> np.ndarray:
    """Texts (N, T) of a chain after two symbols that are any."""
    return drawn(chain, generator.integers(SYMBOLS, size=(count, 2)), length, generator)


def spelled(texts: np.ndarray) -> list[str]:
    """Texts as strings."""
    letters = np.array(list(LETTERS))
    return ["".join(row) for row in letters[texts]]


def symbols_of(texts: Sequence[str]) -> np.ndarray:
    """Strings of equal length as texts (N, T)."""
    return np.array([[LETTERS.index(letter) for letter in text] for text in texts])


@dataclass(frozen=True)
class Grams:
    """An n-gram model: counts of a symbol after the last one and two, each order smoothed by the shorter one.

    p(c | ab) = (n(abc) + k p(c | b)) / (n(ab) + k), p(c | b) likewise by p(c), and p(c) by 1 / V.
    """

    table: np.ndarray
    """p(c | ab), (V, V, V)"""

    @classmethod
    def fit(cls, texts: np.ndarray, *, order: int = 3, smoothing: float = 1.0) -> Grams:
        """Count.

        Args:
            texts: (N, T), T >= 3.
            order: symbols of the longest gram, 2 or 3.
            smoothing: k > 0.
        """
        table = np.full(SYMBOLS, 1 / SYMBOLS)
        for size in range(1, order + 1):
            counts = np.zeros((SYMBOLS,) * size)
            windows = np.lib.stride_tricks.sliding_window_view(texts, size, axis=1).reshape(-1, size)
            np.add.at(counts, tuple(windows.T), 1)
            table = (counts + smoothing * table) / (counts.sum(-1, keepdims=True) + smoothing)
        return cls(np.broadcast_to(table, (SYMBOLS,) * 3))

    def log_probs(self, texts: np.ndarray) -> np.ndarray:
        """Of the symbols of texts (N, T) from the third on, (N, T - 2), in nats."""
        return np.log(self.table[texts[:, :-2], texts[:, 1:-1], texts[:, 2:]])

    def accuracy(self, texts: np.ndarray) -> float:
        """Share of the symbols of texts (N, T) from the third on that are the likeliest."""
        return float((self.table.argmax(-1)[texts[:, :-2], texts[:, 1:-1]] == texts[:, 2:]).mean())
