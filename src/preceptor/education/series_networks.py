"""Neural classifiers and forecasters of students' series: one network for all students, trained on the project's loop.

A step of a series goes in as its values, whether it is known, and for forecasts where in the season it lies. What is missing goes in as 0
with the mask saying so, and is never a target. Some training students are held out, and the weights that serve them best stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.data.examples import Examples
from preceptor.data.sources import Source
from preceptor.education.panel import Panel, carried
from preceptor.models.series import SeriesGRU, SeriesTCN

Network = Literal["gru", "tcn"]
"""Gated recurrent units, or a temporal convolutional network."""

_SEASONS = 4  # that make the usual one
_FEWEST = 10  # held-out students below which nothing is held out


@dataclass(frozen=True, kw_only=True)
class SeriesTraining:
    """How a network is built and trained, by Adam.

    Attributes:
        width: of the state, or channels.
        dropout: in [0, 1).
        epochs: passes over the training students, at most.
        batch_size: students in a batch.
        learning_rate: of Adam.
        held_out: share of the training students that chooses the weights, in [0, 1); with fewer than 10 of them nobody is held out and the
            last weights stay.
        patience: epochs without a better loss of the held-out students before stopping.
    """

    width: int = 32
    dropout: float = 0.1
    epochs: int = 60
    batch_size: int = 32
    learning_rate: float = 3e-3
    held_out: float = 0.2
    patience: int = 10


class SeriesClassification(Method):
    """Cross-entropy of the label after the last step; with two classes that is the binary one."""

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return ``ce`` (N,)."""
        return {"ce": F.cross_entropy(roles["student"](batch["x"]["series"])[:, -1].float(), batch["y"], reduction="none")}


class SeriesForecasting(Method):
    """Absolute error of the next steps, from every step of a series; what is not known costs nothing."""

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Make the mask of the targets that of the loss."""
        return {**batch, "mask": batch["x"]["known"]}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return ``absolute`` (N, T, horizon)."""
        x = batch["x"]
        error = x["level"] * roles["student"](x["series"]).float() - x["target"]
        return {"absolute": error.abs() * x["known"]}


def classify_by_network(
    train_panel: Panel, test: Panel, name: Network, *, training: SeriesTraining | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Learn the labels of some students from all that is known of them, and tell those of others.

    Values go in as sign(x) log(1 + |x|), standardised over the known values of the training students, beside the standardised static ones.

    Args:
        train_panel: with labels (U,).
        test: V other students, series as long.
        name: of the network.
        training: see `SeriesTraining`.
        seed: of weights, order and held-out students.
    Returns:
        Labels (V,), and the chance of the largest label, (V,).
    """
    training = training or SeriesTraining()
    classes, labels = np.unique(np.asarray(train_panel.labels), return_inverse=True)
    series, asked = (_inputs(part, like=train_panel) for part in (train_panel, test))
    network = _network(name, series.shape[-1], len(classes), series.shape[1], training, seed)
    examples = Examples({"series": series}, torch.from_numpy(labels.astype(np.int64)), num_classes=len(classes))
    _fit(network, SeriesClassification(), examples, training, seed)
    chances = _said(network, asked)[:, -1].softmax(-1).numpy()
    return classes[chances.argmax(1)], chances[:, -1]


def forecast_by_network(
    panel: Panel, horizon: int, name: Network, *, period: int = 7, training: SeriesTraining | None = None, seed: int = 0
) -> np.ndarray:
    """Forecasts (U, horizon) of the first dimension: the student's usual season and what one network adds to it.

    The usual season is the mean of the last four at most. The network reads each value, and writes what it adds, in units of the student's
    level, the mean absolute value over these seasons, so that what it learns holds for a quiet student too; errors count in units of the
    student's mean over the whole past. It begins as the usual season alone, and learns from every step after the first season.

    Args:
        panel: the past, longer than ``period + horizon``.
        horizon: steps ahead.
        name: of the network.
        period: of the season; 1 for none.
        training: see `SeriesTraining`.
        seed: of weights, order and held-out students.
    Raises:
        ValueError: the past is too short.
    """
    training, x = training or SeriesTraining(), carried(panel)
    steps = x.shape[1]
    if steps <= period + horizon:
        raise ValueError(f"panel: expected more than {period + horizon} steps for a season of {period} and {horizon} ahead, got {steps}")
    scale = np.abs(x).mean(1, keepdims=True) + 1e-9
    level = _level(x / scale, _SEASONS * period)
    usual = _usual(x / scale, horizon, period)
    ahead = np.arange(steps)[:, None] + 1 + np.arange(horizon)  # (T, horizon), the times that are asked for after each step
    inside = (ahead < steps) & (np.arange(steps) >= period - 1)[:, None]
    target = (x / scale)[:, ahead.clip(max=steps - 1)] - usual
    phase = 2 * np.pi * np.arange(steps) / period
    season = np.broadcast_to(np.stack([np.sin(phase), np.cos(phase)], -1), (len(x), steps, 2))
    series = _tensor(np.concatenate([np.stack([x / scale / level * panel.mask, panel.mask], -1), season], -1))
    known = _tensor(inside & panel.mask[:, ahead.clip(max=steps - 1)])
    network = _network(name, series.shape[-1], horizon, steps, training, seed)
    nn.init.zeros_(network.output.weight)
    nn.init.zeros_(network.output.bias)
    inputs = {"series": series, "level": _tensor(level[..., None]), "target": _tensor(target), "known": known}
    _fit(network, SeriesForecasting(), Examples(inputs, torch.zeros(len(x), dtype=torch.int64), num_classes=1), training, seed)
    said = _said(network, series)[:, -1].double().numpy()
    return (level[:, -1:] * said + usual[:, -1]) * scale


def _level(x: np.ndarray, window: int) -> np.ndarray:
    """(U, T): mean |x| over the last ``window`` steps, as many as there are, and a tenth, so that a quiet time is not divided by 0."""
    total = np.pad(np.abs(x).cumsum(1), ((0, 0), (1, 0)))
    end = np.arange(1, x.shape[1] + 1)
    begin = np.maximum(end - window, 0)
    return (total[:, end] - total[:, begin]) / (end - begin) + 0.1


def _usual(x: np.ndarray, horizon: int, period: int) -> np.ndarray:
    """(U, T, horizon): mean of the last values at the same place of the season, as known at each step; before the first season 0."""
    total, count = np.zeros((*x.shape, horizon)), np.zeros((x.shape[1], horizon))
    for back in range(_SEASONS):
        source = np.arange(x.shape[1])[:, None] + 1 + np.arange(horizon) % period - (back + 1) * period
        total += np.where(source >= 0, x[:, source.clip(min=0)], 0.0)
        count += source >= 0
    return total / np.maximum(count, 1)


def _inputs(panel: Panel, *, like: Panel) -> Tensor:
    def standard(x: np.ndarray, known: np.ndarray) -> np.ndarray:
        spread = known.std(0)
        return (x - known.mean(0)) / np.where(spread > 1e-12, spread, 1.0)

    def bent(part: Panel) -> np.ndarray:
        return np.sign(part.values) * np.log1p(np.abs(part.values))

    parts = [standard(bent(panel), bent(like)[like.mask]) * panel.mask[..., None], panel.mask[..., None]]
    if panel.static is not None and like.static is not None:
        static = standard(panel.static, like.static)
        parts.append(np.broadcast_to(static[:, None], (*panel.mask.shape, static.shape[1])))
    return _tensor(np.concatenate(parts, -1))


def _network(name: Network, inputs: int, outputs: int, steps: int, training: SeriesTraining, seed: int) -> SeriesGRU | SeriesTCN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "gru":
            return SeriesGRU(inputs, outputs, width=training.width, dropout=training.dropout)
        return SeriesTCN(inputs, outputs, steps=steps, width=training.width, dropout=training.dropout)


def _fit(network: nn.Module, method: Method, examples: Examples, training: SeriesTraining, seed: int) -> None:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(examples)))
    away = int(training.held_out * len(examples))
    away = away if away >= _FEWEST else 0
    held = examples.subset(order[:away])
    source = Source(examples.subset(order[away:]), batch_size=training.batch_size, seed=seed)

    def validate(roles: Roles, state: State) -> dict[str, float]:
        device = next(roles["student"].parameters()).device
        found = held.batch(torch.arange(away))
        moved = {"x": {name: value.to(device) for name, value in found["x"].items()}, "y": found["y"].to(device)}
        batch = method.prepare(moved, roles, state)
        (values,) = method.loss(batch, {}, roles, state).values()
        return {"loss": float(values.sum() / batch.get("mask", torch.ones_like(values)).sum().clamp(min=1))}

    options: dict[str, Any] = {"valid": validate, "monitor": "loss", "mode": "min", "patience": training.patience} if away else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        train(
            method,
            {"student": network},
            source,
            torch.optim.Adam(network.parameters(), lr=training.learning_rate),
            steps=training.epochs * source.batches_per_epoch,
            evaluate_every=source.batches_per_epoch,
            seed=seed,
            clip=5.0,
            **options,
        )


def _said(network: nn.Module, series: Tensor) -> Tensor:
    device = next(network.parameters()).device
    with evaluating(network), torch.no_grad():
        return torch.cat([network(part.to(device)).float().cpu() for part in series.split(256)])


def _tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
