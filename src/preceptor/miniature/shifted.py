"""What a small network says about noisier inputs than it was trained on: on some it is to be calibrated, on others measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from preceptor.data.datasets import load
from preceptor.data.examples import Examples
from preceptor.data.splits import stratified_order
from preceptor.data.views import transformed
from preceptor.metrics.calibration import correctness_auroc, ece
from preceptor.metrics.classification import accuracy
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import Labels, fit, seeded
from preceptor.models.calibrators import class_scores
from preceptor.models.reference import MLP
from preceptor.models.taps import forward

NOISE, MORE_NOISE = 0.35, 0.6
"""Standard deviations of the noise on pixels in [0, 1]: of calibration and test, and of the shifted test."""


class Said(NamedTuple):
    """What the network said about N images."""

    logits: Tensor  # (N, 10)
    features: Tensor  # (N, 12), how three transformed copies score the four likeliest classes
    labels: Tensor  # (N,)


class ShiftedWorld(NamedTuple):
    """One frozen network on three sets; see `shifted_world`."""

    held_out: Said  # to calibrate on
    test: Said  # with as much noise
    shifted: Said  # the images of the test with more noise


def shifted_world(seed: int, size: Size = "full") -> ShiftedWorld:
    """scikit-learn's digits, split anew by each seed: 300 clean ones train an MLP 64-96-10, 700 noisy ones calibrate, 797 test.

    Raises:
        ImportError: scikit-learn is missing (one line says what to install).
    """
    part = load("digits").train
    whole = Examples(part.inputs, part.all_labels, num_classes=part.num_classes)
    order = stratified_order(whole.labels, seed=seed)
    train, held_out, test = (whole.subset(order[a:b]) for a, b in ((0, 300), (300, 1000), (1000, len(whole))))
    network = seeded(lambda: MLP(inputs=64, hidden=(96,)), seed)
    fit(Labels(), {"student": network}, train, steps=600 if size == "full" else 60, learning_rate=2e-3, seed=seed)
    network.eval()
    generator = torch.Generator().manual_seed(seed)

    def hear(examples: Examples, sigma: float) -> Said:
        batch = examples.batch(torch.arange(len(examples)))
        x = batch["x"] + sigma * torch.randn(batch["x"].shape, generator=generator)
        with torch.no_grad():
            logits, *views = (forward(network, copy).logits for copy in (x, *transformed(x, seed=seed)))
        return Said(logits, class_scores(logits, views), batch["y"])

    return ShiftedWorld(held_out=hear(held_out, NOISE), test=hear(test, NOISE), shifted=hear(test, MORE_NOISE))


def measured(calibrate: Callable[[Said], Tensor], world: ShiftedWorld) -> dict[str, float]:
    """Calibration error (15 bins), AUROC of the confidence for correctness, and accuracy, on both tests.

    Args:
        calibrate: from what was said to calibrated logits (N, 10).
        world: the tests.
    """
    found = {}
    for name, said in (("", world.test), ("shifted_", world.shifted)):
        logits = calibrate(said)
        found[f"{name}ece"] = float(ece(logits, said.labels))
        found[f"{name}auroc"] = float(correctness_auroc(logits, said.labels))
        found[f"{name}accuracy"] = float(accuracy(logits, said.labels).mean())
    return found
