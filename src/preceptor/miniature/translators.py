"""Encoder-decoder models that sort digits, the smallest task on which encoder and decoder can be scaled apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.core.run import train
from preceptor.losses.hard import hard_loss
from preceptor.miniature.worlds import Labels, seeded

LENGTH, DIGITS = 8, 10
_BEGIN = DIGITS


class Translator(nn.Module):
    """A GRU reads the source, another writes the target, given the tokens before.

    Args:
        encoder: units of the first.
        decoder: units of the second.
    """

    def __init__(self, encoder: int, decoder: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(DIGITS + 1, 8)
        self.encoder = nn.GRU(8, encoder, batch_first=True)
        self.decoder = nn.ModuleDict({"begin": nn.Linear(encoder, decoder), "rnn": nn.GRU(8, decoder, batch_first=True)})
        self.out = nn.Linear(decoder, DIGITS)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, LENGTH, DIGITS) of (N, 2, LENGTH): sources, and the target's tokens before each place."""
        read = self.encoder(self.embed(x[:, 0]))[1]
        written = self.decoder["rnn"](self.embed(x[:, 1]), torch.tanh(self.decoder["begin"](read)))[0]
        return self.out(written)


def pairs(number: int, seed: int) -> dict[str, Tensor]:
    """Random digits and the same in order: ``x`` (N, 2, LENGTH) and ``y`` (N, LENGTH), int64."""
    source = torch.randint(DIGITS, (number, LENGTH), generator=torch.Generator().manual_seed(seed))
    target = source.sort(dim=1).values
    before = torch.cat([torch.full((number, 1), _BEGIN), target[:, :-1]], dim=1)
    return {"x": torch.stack([source, before], dim=1), "y": target}


def machine_made(rows: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The same pairs, every second target replaced by what a model writes, its most probable digit each time."""
    source = rows["x"][:, 0]
    before = torch.full_like(source, _BEGIN)
    written = before[:, 0]
    with torch.no_grad(), evaluating(model):
        for place in range(LENGTH):
            written = model(torch.stack([source, before], dim=1))[:, place].argmax(-1)
            if place + 1 < LENGTH:
                before[:, place + 1] = written
    target, given = torch.cat([before[:, 1:], written[:, None]], dim=1), rows["x"][:, 1]
    kept = (torch.arange(len(source)) % 2 == 0)[:, None]
    return {"x": torch.stack([source, torch.where(kept, given, before)], dim=1), "y": torch.where(kept, rows["y"], target)}


def trained_translator(
    encoder: int, decoder: int, *, steps: int, seed: int, writer: nn.Module | None = None, batch_size: int = 64
) -> Translator:
    """A model trained by Adam at 5e-3 with a linear decay, every pair seen once; the same pairs for all sizes of a seed.

    Args:
        encoder, decoder: units.
        steps: updates.
        seed: of weights and pairs.
        writer: a model that makes half of the targets, see `machine_made`.
        batch_size: pairs in an update.
    """
    model = seeded(lambda: Translator(encoder, decoder), seed)
    assert isinstance(model, Translator)
    rows = pairs(steps * batch_size, seed)
    rows = rows if writer is None else machine_made(rows, writer)
    batches = [{"x": x, "y": y} for x, y in zip(rows["x"].split(batch_size), rows["y"].split(batch_size), strict=True)]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    train(Labels(), {"student": model}, batches, optimizer, steps=steps, schedulers=decay, clip=1.0)
    return model


def token_loss(model: nn.Module, rows: dict[str, Tensor]) -> float:
    """Mean cross-entropy in nats per token."""
    with torch.no_grad(), evaluating(model):
        return float(hard_loss(model(rows["x"]), rows).mean())
