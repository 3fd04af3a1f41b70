"""A world in which the learning rate jumps once: networks trained with Adam, and one step that is many times too long."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LambdaLR

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.data.datasets import load
from preceptor.data.sources import Source
from preceptor.metrics.evaluate import predict, score
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import blobs_world, seeded
from preceptor.models.reference import MLP


def spiked(
    method: Method,
    *,
    seed: int,
    size: Size,
    clip: float | None = None,
    factor: float = 1000.0,
    learning_rate: float = 1e-2,
    steps: int = 200,
    spike_at: int = 50,
) -> dict[str, float]:
    """Train an MLP 64-128-10 on scikit-learn's digits, 64 images a step, one step of which has a learning rate many times as high.

    Args:
        method: what to train by, without a teacher and with one phase.
        seed: of the weights and of the order of batches.
        size: ``"smoke"``: clouds instead of digits, and a tenth of the steps.
        clip: largest gradient norm.
        factor: of the learning rate in that one step.
        learning_rate: of Adam otherwise.
        steps: updates in all.
        spike_at: number of that step, from 0.

    Returns:
        Every metric of `preceptor.metrics.evaluate.score` on the test part.

    Raises:
        ImportError: scikit-learn is missing (one line says what to install).
    """
    if size == "full":
        data = load("digits")
        examples, test, student = data.train, data.test, seeded(lambda: MLP(inputs=64, hidden=(128,)), seed)
    else:
        world = blobs_world(seed)
        examples, test, student, steps, spike_at = world.train, world.test, world.student(), steps // 10, spike_at // 10
    optimizer = torch.optim.Adam(student.parameters(), lr=learning_rate)
    schedule = LambdaLR(optimizer, lambda step: factor if step == spike_at else 1.0)
    source = Source(examples, batch_size=64, seed=seed)
    train(method, {"student": student}, source, optimizer, steps=steps, schedulers=schedule, clip=clip, seed=seed)
    predictions = predict(student, Source(test, batch_size=500).scan())
    return score(predictions.logits, predictions.labels)
