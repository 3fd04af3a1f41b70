"""Correctness-aware calibration: a temperature for each example, trained on whether the prediction was right.

Paper: Liu, Wang, Zou, Zou, Zheng 2024, Optimizing Calibration by Gaining Aware of Prediction Correctness (arXiv:2404.13016).
Claim: cross-entropy raises the confidence of predictions that are narrowly wrong. A calibrator that is trained to be sure where the
prediction is right and unsure where it is wrong, from how transformed copies of the input score the predicted classes, is better calibrated
than temperature scaling on shifted data, and its confidence tells right from wrong better. Predictions stay.
Equation, with logits z, q = softmax(z / T), confidence c = max_k q_k, a = 1 where the prediction is right and 0 elsewhere:
    L = mean (c - a)^2,   T = clamp(w_2 ReLU(W_1 f + b_1) + b_2, 0.1, 10),   f = scores of the k likeliest classes in M transformed copies.
By T, cross-entropy has the gradient (z_y - E_q z) / T^2, and c has -c (max z - E_q z) / T^2: the two losses disagree on wrong predictions
with z_y > E_q z, and nowhere else.
Deviations: the code weighs right and wrong predictions to equal shares (``ca-balanced``). That fits the confidence of a population of which
half is right: of constants 1/2 is best, not the accuracy; it is off by default. T starts at the temperature of temperature scaling, where
the code's starts near 0, most of it clamped to 0.1 without a gradient. The code's second head gets no loss and is left out.
The classifier is not trained: `CorrectnessCalibrator` is fitted after it was, on held-out examples. Features are
`preceptor.models.calibrators.class_scores` of its logits for transformed copies (`preceptor.data.views`), dropout passes or prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.run import train
from preceptor.core.types import Card
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.losses.checks import check_choice, check_counts, check_floating, check_labels, check_positive
from preceptor.losses.divergence import log_probs
from preceptor.losses.hard import hard_loss
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.shifted import Said, measured, shifted_world
from preceptor.miniature.worlds import seeded
from preceptor.models.calibrators import (
    Array,
    Fitting,
    IsotonicCalibration,
    TemperatureNetwork,
    TemperatureScaling,
    VectorScaling,
    check_range,
    finite_logits,
    finite_pair,
)

CARD = Card(
    slug="correctness-calibration",
    title="Correctness-aware calibration: a temperature for each example",
    authors="Liu et al. 2024",
    arxiv="2404.13016",
    kind="calibration",
    tasks=("classification",),
    needs=("logits", "labels"),
    equation="L = mean (c - a)^2, c = max softmax(z / T(f)), a = [argmax z = y], T(f) = clamp(w_2 ReLU(W_1 f + b_1) + b_2, 0.1, 10)",
    cost="after training: a forward pass for each of M transformed copies of every input, and a network of 71 weights",
    headline="ImageNet-A/R/S and ObjectNet, ten backbones: competitive or best calibration error, better AUROC (tables not verified)",
)

Loss = Literal["ca", "ca-balanced", "ce", "mse-one-hot"]
"""``ca``: see the module; ``ca-balanced``: right and wrong predictions weigh the same; ``ce``, ``mse-one-hot``: towards the labels."""


def correctness_loss(logits: Tensor, labels: Tensor, *, balanced: bool = False) -> Tensor:
    """Squared distance of the confidence from whether the prediction is right; the mean is the top-1 Brier score.

    Args:
        logits: calibrated, z / T, shape (..., K).
        labels: shape (...), integers in [0, K).
        balanced: weigh right predictions by 1 - r and wrong ones by r, the share r that is right, so that each side has half of the weight;
            scaled to a mean weight of 1. Where all are right, or all wrong, every weight is 1.
    Returns:
        Shape (...), >= 0, <= 1 unless balanced; at least float32. Its gradient passes through the confidence alone.
    Raises:
        TypeError: logits are not floating point, or labels not integers.
        ValueError: labels do not name one class per item.
    """
    check_floating(logits=logits)
    check_labels(labels, logits)
    predicted = logits.detach().argmax(dim=-1)
    confidence = log_probs(logits).exp().gather(-1, predicted[..., None]).squeeze(-1)
    right = (predicted == labels).to(confidence)
    loss = (confidence - right).square()
    if not balanced:
        return loss
    rate = right.mean()
    weights = torch.where(right == 1, 1 - rate, rate)
    return loss * torch.where(weights.sum() > 0, weights * weights.numel() / weights.sum(), 1.0)


def one_hot_mse(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared distance of softmax(logits) (..., K) from the labels (...), summed over classes: shape (...), in [0, 2]."""
    check_floating(logits=logits)
    check_labels(labels, logits)
    return (log_probs(logits).exp() - F.one_hot(labels.long(), logits.shape[-1])).square().sum(dim=-1)


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "ca": correctness_loss,
    "ca-balanced": partial(correctness_loss, balanced=True),
    "ce": lambda logits, labels: hard_loss(logits, {"y": labels}),
    "mse-one-hot": one_hot_mse,
}


class CorrectnessCalibrator:
    """The calibrator, with scikit-learn's interface; see the module. Without features it is temperature scaling by the same loss.

    Args:
        loss: see `Loss`.
        hidden: units of the network; the code has 5.
        temperature_range: smallest and largest T; the code's.
        steps: updates of Adam; the code's 10 epochs of 50,000 images in batches of 1,000.
        batch_size: examples per update; the code's.
        learning_rate: of Adam; the code's, by which temperatures leave the start slowly: choose it by validation.
        seed: of weights and the order of batches; torch's global random state stays.

    Attributes:
        network_: a `TemperatureNetwork`.
    """

    network_: TemperatureNetwork

    def __init__(
        self,
        *,
        loss: Loss = "ca",
        hidden: int = 5,
        temperature_range: tuple[float, float] = (0.1, 10.0),
        steps: int = 500,
        batch_size: int = 1000,
        learning_rate: float = 1e-4,
        seed: int = 0,
    ) -> None:
        check_choice(Loss, loss=loss)
        check_counts(hidden=hidden, steps=steps, batch_size=batch_size)
        check_range(temperature_range=temperature_range)
        check_positive(learning_rate=learning_rate)
        self.loss: Loss = loss
        self.hidden, self.temperature_range, self.seed = hidden, temperature_range, seed
        self.steps, self.batch_size, self.learning_rate = steps, batch_size, learning_rate

    def fit(self, logits: Array, labels: Array, features: Array | None = None) -> CorrectnessCalibrator:
        """Train the network on held-out examples.

        Args:
            logits: shape (N, K), finite.
            labels: shape (N,), integers in [0, K).
            features: shape (N, F), finite.
        Raises:
            TypeError, ValueError: see `preceptor.models.calibrators.finite_pair`, or features that do not fit.
        """
        z, y = finite_pair(logits, labels)
        f = _features(features, z)
        start = TemperatureScaling(bounds=self.temperature_range).fit(z, y).temperature_
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = TemperatureNetwork(f.shape[1], hidden=self.hidden, temperature_range=self.temperature_range, temperature=start).to(z)
        data = examples_from(({"logits": z.cpu(), "features": f.cpu()}, y.cpu()), z.shape[1])
        source = Source(data, batch_size=self.batch_size, seed=self.seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        train(Fitting(value=LOSSES[self.loss]), {"student": network}, source, optimizer, steps=self.steps, seed=self.seed)
        self.network_ = network.to(z)
        return self

    def transform(self, logits: Array, features: Array | None = None) -> Tensor:
        """Return z / T(f), shape (N, K)."""
        z = finite_logits(logits).to(self.network_.out.bias)
        with torch.no_grad():
            return self.network_(z, _features(features, z, self.network_.hidden.in_features))

    def predict_proba(self, logits: Array, features: Array | None = None) -> Tensor:
        """Return softmax(z / T(f)), shape (N, K)."""
        return self.transform(logits, features).softmax(dim=1)


def _features(features: Array | None, logits: Tensor, width: int | None = None) -> Tensor:
    """Checked features in the precision of the logits; without any, a column of zeros."""
    if features is None:
        features = logits.new_zeros(len(logits), 1)
    f = torch.as_tensor(features).detach().to(logits)
    if f.ndim != 2 or len(f) != len(logits) or width not in (None, f.shape[1]):
        raise ValueError(f"features: expected shape ({len(logits)}, {width or 'features'}), got {tuple(f.shape)}")
    if not f.isfinite().all():
        raise ValueError(f"features: expected finite numbers, got {f[~f.isfinite()][0].item()}")
    return f


def miniature(seed: int, size: Size) -> Miniature:
    """Digits under noise: a network that saw 300 clean ones, calibrated on 700 noisy ones, tested on 797, also with more noise.

    ``untrained-calibrator`` is the temperature network as the code draws it, ``shuffled-features`` learns from features of other examples,
    ``ce-calibrator`` by cross-entropy.
    """
    world = shifted_world(seed, size)
    z, y, f = world.held_out.logits, world.held_out.labels, world.held_out.features
    temperature, vector, isotonic = TemperatureScaling().fit(z, y), VectorScaling().fit(z, y), IsotonicCalibration().fit(z, y)
    drawn = seeded(lambda: TemperatureNetwork(f.shape[1]), seed).requires_grad_(False)
    drawn.out = seeded(lambda: nn.Linear(5, 1), seed).requires_grad_(False)
    make = partial(CorrectnessCalibrator, steps=500 if size == "full" else 20, seed=seed)
    shuffled = f[torch.randperm(len(f), generator=torch.Generator().manual_seed(seed))]
    networks = {
        "correctness-calibration": make(learning_rate=3e-4).fit(z, y, f),
        "balanced": make(loss="ca-balanced", learning_rate=3e-3).fit(z, y, f),
        "ce-calibrator": make(loss="ce", learning_rate=3e-4).fit(z, y, f),
        "shuffled-features": make(learning_rate=3e-4).fit(z, y, shuffled),
    }
    arms: dict[str, Callable[[Said], Tensor]] = {
        "untrained-calibrator": lambda said: drawn(said.logits, said.features),
        "none": lambda said: said.logits,
        "temperature-scaling": lambda said: temperature.transform(said.logits),
        "vector-scaling": lambda said: vector.transform(said.logits),
        "isotonic": lambda said: isotonic.predict_proba(said.logits).log(),
        **{name: lambda said, c=c: c.transform(said.logits, said.features) for name, c in networks.items()},
    }
    lower = partial(Claim, method="correctness-calibration", direction="lower")
    return Miniature(
        arms={name: measured(calibrate, world) for name, calibrate in arms.items()},
        claims=(
            lower(name="less error than without calibration", baseline="none", metric="ece"),
            lower(name="less error than temperature scaling, shifted", baseline="temperature-scaling", metric="shifted_ece"),
            lower(name="a better AUROC, shifted", baseline="temperature-scaling", metric="shifted_auroc", direction="higher"),
        ),
        notes=(
            f"{len(y)} examples to calibrate on, {len(world.test.labels)} to test; 15 bins; {make().steps} updates of each network",
            "learning rates: for each loss the best of five, 1e-4 to 1e-2, by that loss on 200 of the held-out examples, seeds 100 to 102",
        ),
    )
