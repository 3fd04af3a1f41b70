"""Toy languages of a few symbols: small networks that predict the next symbol from the last ones, with exact divergences.

A context is a row of the last ``context`` symbols, int64; before the first symbol of a text stands symbol 0. All sizes are symbols.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ContextLM(nn.Module):
    """A language model that sees the last ``context`` symbols: one-hot symbols, one hidden layer of tanh, logits.

    Args:
        symbols: size V of the vocabulary.
        context: symbols seen.
        hidden: units; 0 for a table with one row of logits for each context, zero at the start.
    """

    def __init__(self, *, symbols: int = 10, context: int = 3, hidden: int = 64) -> None:
        super().__init__()
        self.symbols, self.context = symbols, context
        if hidden == 0:
            self.table = nn.Parameter(torch.zeros(symbols**context, symbols))
        else:
            self.inner = nn.Linear(symbols * context, hidden)
            self.outer = nn.Linear(hidden, symbols)
        self.is_table = hidden == 0

    def forward(self, contexts: Tensor) -> Tensor:
        """Logits (..., V) of contexts (..., context)."""
        if self.is_table:
            return self.table[code(contexts, self.symbols)]
        return self.outer(torch.tanh(self.inner(F.one_hot(contexts, self.symbols).flatten(-2).to(self.inner.weight.dtype))))


class TextLM(nn.Module):
    """A network of contexts, called as a language model is; before a text stands symbol 0."""

    def __init__(self, network: ContextLM) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, **_: object) -> Tensor:
        """Logits (N, T, V) of what follows each symbol of texts (N, T); other keywords of a language model do nothing."""
        return self.network(F.pad(input_ids, (self.network.context - 1, 0)).unfold(-1, self.network.context, 1))


def code(contexts: Tensor, symbols: int) -> Tensor:
    """Number of each context (..., context) -> (...), in [0, symbols ** context), in the order of `all_contexts`."""
    powers = symbols ** torch.arange(contexts.shape[-1] - 1, -1, -1)
    return (contexts * powers).sum(-1)


def all_contexts(symbols: int, context: int) -> Tensor:
    """Every context, (symbols ** context, context), in lexical order."""
    return torch.tensor(list(itertools.product(range(symbols), repeat=context)))


def contexts_of(texts: Tensor, context: int) -> Tensor:
    """What stands before each symbol of texts (N, T): (N, T, context)."""
    padded = F.pad(texts, (context, 0))
    return padded.unfold(-1, context, 1)[:, :-1]


@torch.no_grad()
def sample(model: ContextLM, texts: int, length: int, *, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
    """Draw texts (texts, length) from a model, symbol by symbol."""
    drawn = torch.zeros(texts, model.context, dtype=torch.int64)
    for _ in range(length):
        probabilities = (model(drawn[:, -model.context :]) / temperature).softmax(-1)
        drawn = torch.cat([drawn, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    return drawn[:, model.context :]


def peaked_table(symbols: int, context: int, *, sharpness: float, generator: torch.Generator) -> ContextLM:
    """A random language: a table with logits drawn from a normal distribution of this standard deviation."""
    table = ContextLM(symbols=symbols, context=context, hidden=0)
    with torch.no_grad():
        table.table.copy_(sharpness * torch.randn(table.table.shape, generator=generator))
    return table.requires_grad_(False)
