"""What small experiments with language models share: networks in two halves, a way to sample from them, a stream of rows in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.reduce import num_examples
from preceptor.core.run import train
from preceptor.core.types import Batch, Record, Roles
from preceptor.data.rollout import Completions, Prompt, draw
from preceptor.data.rows import take
from preceptor.data.samplers import Epochs
from preceptor.models.taps import forward


class Halves(nn.Module):
    """A body and a linear output layer, called as transformers' causal language models are: `preceptor.models.heads` takes it apart.

    Args:
        body: from ``input_ids`` (N, T, ...) to hidden states (N, T, D).
        output: from D to V.
    """

    def __init__(self, body: nn.Module, output: nn.Linear) -> None:
        super().__init__()
        self.base_model, self.output, self.config = _Body(body), output, SimpleNamespace()

    def get_output_embeddings(self) -> nn.Linear:
        """The output layer."""
        return self.output

    def forward(self, **inputs: Any) -> Mapping[str, Tensor]:
        """``logits`` (N, T, V)."""
        return {"logits": self.output(self.base_model(**inputs).last_hidden_state)}


class _Body(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.body(input_ids))


class LastSymbols(nn.Module):
    """The last ``context`` symbols at each position, as one-hot vectors; before the first stands symbol 0.

    Args:
        symbols: V.
        context: symbols seen, the present one included.
        joint: one vector of symbols ** context entries for them together, instead of ``context`` vectors of V entries.
    """

    def __init__(self, *, symbols: int, context: int, joint: bool = False) -> None:
        super().__init__()
        self.symbols, self.context, self.joint = symbols, context, joint
        self.size = symbols**context if joint else symbols * context

    def forward(self, ids: Tensor) -> Tensor:
        """(N, T) -> (N, T, size)."""
        seen = F.pad(ids, (self.context - 1, 0)).unfold(-1, self.context, 1)
        if not self.joint:
            return F.one_hot(seen, self.symbols).flatten(-2).to(torch.get_default_dtype())
        powers = self.symbols ** torch.arange(self.context - 1, -1, -1)
        return F.one_hot((seen * powers).sum(-1), self.size).to(torch.get_default_dtype())


def small_network(*, symbols: int, context: int, hidden: int) -> Halves:
    """A network that sees the last ``context`` of its ``symbols``, with one hidden layer of tanh; weights of torch's random state."""
    body = LastSymbols(symbols=symbols, context=context)
    return Halves(nn.Sequential(body, nn.Linear(body.size, hidden), nn.Tanh()), nn.Linear(hidden, symbols))


class ToySampler:
    """A `preceptor.data.rollout.Sampler` for any model with logits: no cache, no stop token, all completions equally long."""

    student: nn.Module

    def sync(self, student: nn.Module) -> None:
        """Sample from this model from now on."""
        self.student = student

    def sample(self, prompt: Prompt, *, max_new_tokens: int, temperature: float = 1.0, top_p: float = 1.0, seed: int) -> Completions:
        """See `preceptor.data.rollout.Completer.sample`."""
        generator = torch.Generator().manual_seed(seed)
        ids, found = prompt["input_ids"], []
        with torch.no_grad(), evaluating(self.student):
            for _ in range(max_new_tokens):
                logits = forward(self.student, {"input_ids": ids}).logits[:, -1]
                tokens, log_probs = draw(logits, temperature=temperature, top_p=top_p, generator=generator)
                ids = torch.cat([ids, tokens[:, None]], dim=1)
                found.append(log_probs)
        written = ids[:, prompt["input_ids"].shape[1] :]
        finished = torch.zeros(len(ids), dtype=torch.bool)
        return Completions(ids=written, mask=torch.ones_like(written, dtype=torch.bool), log_probs=torch.stack(found, 1), finished=finished)


class Rows:
    """A `preceptor.core.stream.Stream` over the rows of one batch, shuffled anew in each epoch by the seed.

    Args:
        whole: all rows.
        batch_size: rows in a batch.
        seed: of the order.
        scan_size: rows in a batch of `scan`; None: as many.
    """

    def __init__(self, whole: Batch, *, batch_size: int, seed: int, scan_size: int | None = None) -> None:
        self.whole, self.scan_size = whole, scan_size or batch_size
        self.sampler = Epochs(num_examples(whole), batch_size=batch_size, seed=seed)
        self.place = 0

    def __next__(self) -> Batch:
        epoch, index = divmod(self.place, self.sampler.batches_per_epoch)
        self.place += 1
        return {**take(self.whole, self.sampler.draw(epoch, index)), "epoch": epoch}

    def scan(self) -> Iterator[Batch]:
        """One pass in order."""
        return (take(self.whole, rows) for rows in torch.arange(num_examples(self.whole)).split(self.scan_size))

    def state_dict(self) -> dict[str, Any]:
        """The number of batches given."""
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go there."""
        self.place = state["place"]


def fit_rows(
    method: Method,
    roles: Roles,
    rows: Batch,
    *,
    batch_size: int,
    learning_rate: float,
    steps: int,
    seed: int,
    progress: Callable[[Record], None] | None = None,
) -> None:
    """Train ``roles["student"]`` in place by Adam, on `Rows` in an order of the seed; ``progress`` is told of every update."""
    optimizer = torch.optim.Adam(roles["student"].parameters(), lr=learning_rate)
    train(method, roles, Rows(rows, batch_size=batch_size, seed=seed), optimizer, steps=steps, seed=seed, progress=progress)
