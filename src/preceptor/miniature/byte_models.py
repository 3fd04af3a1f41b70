"""Byte models that train in a second, and text for them that ships with Python: the library's source code and the reference topics."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.core.run import train
from preceptor.losses.hard import hard_loss
from preceptor.miniature.worlds import Labels, seeded

CONTEXT = 8
"""Bytes that a model sees."""


class ByteMLP(nn.Module):
    """The next byte from the last `CONTEXT` ones: embeddings of 8 numbers, one hidden layer.

    Args:
        hidden: units, at least 1.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 8)
        self.hidden = nn.Linear(CONTEXT * 8, hidden)
        self.out = nn.Linear(hidden, 256)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 256) of bytes (N, CONTEXT), int64."""
        return self.out(torch.relu(self.hidden(self.embed(x).flatten(1))))

    @property
    def size(self) -> int:
        """Parameters without the embeddings."""
        return sum(parameter.numel() for part in (self.hidden, self.out) for parameter in part.parameters())


def byte_model(hidden: int, seed: int) -> ByteMLP:
    """A new model with the weights of a seed."""
    model = seeded(lambda: ByteMLP(hidden), seed)
    assert isinstance(model, ByteMLP)
    return model


@cache
def library() -> tuple[Tensor, Tensor]:
    """Source code of the standard library's top-level modules, for training and for test (every tenth file), int64 (bytes,)."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return tuple(  # pyright: ignore[reportReturnType]
        _bytes(b"\n".join(file.read_bytes() for number, file in enumerate(files) if (number % 10 == 0) == held)) for held in (False, True)
    )


@cache
def reference_topics() -> tuple[Tensor, Tensor]:
    """English reference topics (``pydoc_data``), for training and for test (every fifth topic), int64 (bytes,)."""
    from pydoc_data.topics import topics  # 600 kB

    texts = [topics[name].encode() for name in sorted(topics)]
    return _bytes(b"\n".join(t for i, t in enumerate(texts) if i % 5)), _bytes(b"\n".join(texts[::5]))


def places(text: Tensor, number: int, seed: int) -> Tensor:
    """Different places in a text, (number,), in a random order.

    Raises:
        ValueError: the text has fewer.
    """
    there = len(text) - CONTEXT
    if number > there:
        raise ValueError(f"number: expected at most the {there} places of the text, got {number}")
    return torch.randperm(there, generator=torch.Generator().manual_seed(seed))[:number]


def learn(
    model: nn.Module, text: Tensor, at: Tensor, *, steps: int, optimizer: torch.optim.Optimizer | None = None, batch_size: int = 128
) -> None:
    """Train in place, the places in their order, again from the first when they are used up; by default by a new Adam at 3e-3."""
    order = at.repeat(-(-steps * batch_size // len(at)))
    batches = [{"x": _seen(text, some), "y": text[some + CONTEXT]} for some in order.split(batch_size)[:steps]]
    train(Labels(), {"student": model}, batches, optimizer or torch.optim.Adam(model.parameters(), lr=3e-3), steps=len(batches))


def judge(model: nn.Module, text: Tensor, at: Tensor) -> tuple[float, float]:
    """Mean loss in nats per byte, and the share of bytes that come first."""
    y = text[at + CONTEXT]
    with torch.no_grad(), evaluating(model):
        logits = model(_seen(text, at))
    return float(hard_loss(logits, {"y": y}).mean()), float((logits.argmax(-1) == y).double().mean())


def _seen(text: Tensor, at: Tensor) -> Tensor:
    return text[at[:, None] + torch.arange(CONTEXT)]


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
