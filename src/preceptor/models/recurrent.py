"""A small recurrent language model, for experiments in which a text is a row of symbols."""

from __future__ import annotations

from torch import Tensor, nn


class GRULanguageModel(nn.Module):
    """Embedding, one layer of gated recurrent units (Cho et al. 2014, arXiv:1406.1078), linear output; called as transformers' models are.

    Args:
        vocabulary: symbols, V.
        units: width of the embedding and of the recurrent state.
    """

    def __init__(self, *, vocabulary: int, units: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, units)
        self.recurrent = nn.GRU(units, units, batch_first=True)
        self.output = nn.Linear(units, vocabulary)

    def forward(self, input_ids: Tensor, **_: object) -> Tensor:
        """Logits (N, T, V) of what follows each symbol of texts (N, T); other keywords of a language model do nothing."""
        return self.output(self.recurrent(self.embedding(input_ids))[0])
