"""Post-hoc calibration: maps from a frozen classifier's logits to probabilities that mean what they say, fitted on held-out examples.

The interface is scikit-learn's: ``fit(logits, labels)`` returns the calibrator, what it learned ends in an underscore, and
``predict_proba(logits)`` returns probabilities. Logits have the shape (N, classes), as tensors or as arrays, finite, with two classes at
least; half precision is computed in float32. Fit on examples that the classifier was not trained on: there it is too sure of itself.

`TemperatureScaling` keeps every prediction; `VectorScaling` and `IsotonicCalibration` may change some. One temperature for each example is
what `TemperatureNetwork` gives; see the method ``correctness-calibration``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.optional import require
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.models.taps import forward

Array = Tensor | np.ndarray
"""Numbers as torch or as NumPy has them."""


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def finite_logits(logits: Array, classes: int | None = None) -> Tensor:
    """Return logits as a tensor without gradient, half precision as float32.

    Args:
        logits: shape (N, classes), N >= 1, finite.
        classes: how many there must be; None: at least two.

    Raises:
        TypeError: not floating point.
        ValueError: another shape, fewer than two classes or another number than asked for, or an entry that is not finite.
    """
    z = torch.as_tensor(logits).detach()
    if not z.is_floating_point():
        raise TypeError(f"logits: expected a floating-point tensor, got {z.dtype}")
    if z.ndim != 2 or len(z) == 0:
        raise ValueError(f"logits: expected shape (examples, classes) with an example at least, got {tuple(z.shape)}")
    if z.shape[1] < 2 or classes not in (None, z.shape[1]):
        raise ValueError(f"logits: expected {classes or 'at least 2'} classes, got {z.shape[1]}")
    if not z.isfinite().all():
        raise ValueError(f"logits: expected finite numbers, got {z[~z.isfinite()][0].item()}")
    return z.float() if z.dtype in (torch.float16, torch.bfloat16) else z


def finite_pair(logits: Array, labels: Array) -> tuple[Tensor, Tensor]:
    """Return logits as `finite_logits` does, and labels, shape (N,), as int64 beside them.

    Raises:
        TypeError: labels are not integers.
        ValueError: labels do not name one class per example.
    """
    z, y = finite_logits(logits), torch.as_tensor(labels)
    if y.dtype not in _INTEGERS:
        raise TypeError(f"labels: expected integers, got {y.dtype}")
    if y.shape != z.shape[:1]:
        raise ValueError(f"labels: expected shape ({len(z)},) like the logits, got {tuple(y.shape)}")
    wrong = (y < 0) | (y >= z.shape[1])
    if wrong.any():
        raise ValueError(f"labels: expected values in [0, {z.shape[1] - 1}], got {y[wrong][0].item()}")
    return z, y.to(z.device, torch.int64)


def check_range(**ranges: tuple[float, float]) -> None:
    """Refuse a pair that is not a smaller number > 0 and a larger finite one.

    Raises:
        ValueError: naming the argument.
    """
    for name, (low, high) in ranges.items():
        if not 0 < low < high < math.inf:
            raise ValueError(f"{name}: expected two numbers 0 < low < high, got {low} and {high}")


def _check_counts(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


class TemperatureScaling:
    """softmax(z / T) with the one T of least negative log-likelihood.

    Guo, Pleiss, Sun, Weinberger 2017 (arXiv:1706.04599), Sec. 4.2. The likelihood is convex in b = 1 / T, and T* the only root of
        sum_i (E_(k ~ softmax(b z_i)) z_ik - z_i,y_i) = 0,
    found by Newton's method, kept between bounds by bisection. Where there is no root in range (all right: T -> 0) T is the bound.

    Args:
        bounds: smallest and largest temperature, no unit.

    Attributes:
        temperature_: T*, within the bounds.
    """

    temperature_: float

    def __init__(self, *, bounds: tuple[float, float] = (0.01, 100.0)) -> None:
        check_range(bounds=bounds)
        self.bounds = bounds

    def fit(self, logits: Array, labels: Array) -> TemperatureScaling:
        """Find the temperature.

        Args:
            logits: shape (N, K).
            labels: shape (N,), integers in [0, K).

        Raises:
            TypeError, ValueError: see `finite_pair`.
        """
        z, y = finite_pair(logits, labels)
        z = z.double() - z.double().gather(1, y[:, None])  # differences from the label's logit: no cancellation later
        low, high = 1 / self.bounds[1], 1 / self.bounds[0]
        b = min(max(1.0, low), high)
        for _ in range(200):
            p = (b * z).softmax(dim=1)
            mean = (p * z).sum(dim=1)
            slope, curvature = float(mean.mean()), float((p * (z - mean[:, None]).square()).sum(dim=1).mean())
            low, high = (low, b) if slope > 0 else (b, high)
            newton = b - slope / curvature if curvature > 0 else math.nan
            previous, b = b, newton if low <= newton <= high else math.sqrt(low * high)
            if abs(b - previous) <= 1e-13 * b:
                break
        self.temperature_ = min(max(1 / b, self.bounds[0]), self.bounds[1])
        return self

    def transform(self, logits: Array) -> Tensor:
        """Return z / T, shape (N, K)."""
        return finite_logits(logits) / self.temperature_

    def predict_proba(self, logits: Array) -> Tensor:
        """Return softmax(z / T), shape (N, K)."""
        return self.transform(logits).softmax(dim=1)


class VectorScaling:
    """softmax(w * z + b) with a factor and a bias for each class, of least negative log-likelihood.

    Guo et al. 2017 (arXiv:1706.04599), Sec. 4.2. A convex problem, solved by L-BFGS from w = 1, b = 0; where all can be right there
    is no minimum, and the number of iterations decides.

    Args:
        max_iterations: of L-BFGS, >= 1.

    Attributes:
        scale_: w, shape (K,), float64.
        bias_: b, shape (K,), float64; only differences matter.
    """

    scale_: Tensor
    bias_: Tensor

    def __init__(self, *, max_iterations: int = 200) -> None:
        _check_counts(max_iterations=max_iterations)
        self.max_iterations = max_iterations

    def fit(self, logits: Array, labels: Array) -> VectorScaling:
        """Find factors and biases; arguments and errors as in `TemperatureScaling.fit`."""
        z, y = finite_pair(logits, labels)
        z = z.double()
        scale, bias = z.new_ones(z.shape[1], requires_grad=True), z.new_zeros(z.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [scale, bias], max_iter=self.max_iterations, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            scale.grad = bias.grad = None
            value = F.cross_entropy(scale * z + bias, y)
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)  # pyright: ignore[reportArgumentType]
        self.scale_, self.bias_ = scale.detach(), bias.detach()
        return self

    def transform(self, logits: Array) -> Tensor:
        """Return w * z + b, shape (N, K)."""
        z = finite_logits(logits, classes=len(self.scale_))
        return self.scale_.to(z) * z + self.bias_.to(z)

    def predict_proba(self, logits: Array) -> Tensor:
        """Return softmax(w * z + b), shape (N, K)."""
        return self.transform(logits).softmax(dim=1)


class IsotonicCalibration:
    """A rising step function for each class's probability, fitted by least squares one class against the rest, then normalised.

    Zadrozny, Elkan 2002 (Transforming Classifier Scores into Accurate Multiclass Probability Estimates, KDD), with scikit-learn's
    IsotonicRegression. An example to which no class leaves a probability counts as uniform; zeros are possible, so the negative
    log-likelihood may be infinite.

    Attributes:
        regressions_: one fitted ``IsotonicRegression`` for each class.
    """

    regressions_: list[Any]

    def fit(self, logits: Array, labels: Array) -> IsotonicCalibration:
        """Fit the functions; arguments and errors as in `TemperatureScaling.fit`.

        Raises:
            ImportError: scikit-learn is missing (one line says what to install).
        """
        isotonic = require("sklearn.isotonic", extra="vision", purpose="isotonic calibration")
        z, y = finite_pair(logits, labels)
        probs, hits = z.double().softmax(dim=1).cpu().numpy(), F.one_hot(y, z.shape[1]).double().cpu().numpy()
        make = isotonic.IsotonicRegression
        self.regressions_ = [make(y_min=0, y_max=1, out_of_bounds="clip").fit(p, hit) for p, hit in zip(probs.T, hits.T, strict=True)]
        return self

    def predict_proba(self, logits: Array) -> Tensor:
        """Return probabilities, shape (N, K)."""
        z = finite_logits(logits, classes=len(self.regressions_))
        probs = z.double().softmax(dim=1).cpu().numpy()
        found = np.stack([regression.predict(p) for regression, p in zip(self.regressions_, probs.T, strict=True)], axis=1)
        total = found.sum(axis=1, keepdims=True)
        found = np.where(total > 0, found / np.where(total > 0, total, 1), 1 / z.shape[1])
        return torch.from_numpy(found).to(z)


def class_scores(logits: Array, views: Sequence[Array], *, k: int = 4) -> Tensor:
    """Features: how each view scores the k likeliest classes of the original.

    Args:
        logits: of the original inputs, shape (N, K).
        views: M logits, each of the same shape: of transformed inputs, or of dropout passes, prompts, checkpoints.
        k: classes, >= 1; with fewer classes than that, all. Of equal logits the lower class comes first.
    Returns:
        Shape (N, M min(k, K)), in [0, 1], view after view, each by falling logit of the original.
    Raises:
        TypeError, ValueError: see `finite_logits`; no view, a view of another shape, or k < 1.
    """
    z = finite_logits(logits)
    _check_counts(k=k)
    if not views:
        raise ValueError("views: expected the logits of at least one, got none")
    top = z.argsort(dim=1, descending=True, stable=True)[:, :k]
    scores = []
    for view in views:
        other = finite_logits(view, classes=z.shape[1]).to(z.device)
        if len(other) != len(z):
            raise ValueError(f"views: expected {len(z)} examples like the logits, got {len(other)}")
        scores.append(other.softmax(dim=1).gather(1, top))
    return torch.cat(scores, dim=1)


class TemperatureNetwork(nn.Module):
    """z / T(f) with a temperature for each example: T(f) = clamp(w_2 ReLU(W_1 f + b_1) + b_2, low, high).

    Liu et al. 2024 (arXiv:2404.13016). Outside the range the temperature has no gradient. Weights start as torch draws linear layers, but
    w_2 = 0 and b_2 = ``temperature``: drawn like the others, b_2 lies near 0 and most examples would be stuck at the lowest temperature.

    Args:
        features: numbers in f, >= 1.
        hidden: rows of W_1, >= 1.
        temperature_range: low and high.
        temperature: T of every example at the start, in the range.
    """

    def __init__(
        self, features: int, *, hidden: int = 5, temperature_range: tuple[float, float] = (0.1, 10.0), temperature: float = 1.0
    ) -> None:
        super().__init__()
        _check_counts(features=features, hidden=hidden)
        check_range(temperature_range=temperature_range)
        if not temperature_range[0] <= temperature <= temperature_range[1]:
            low, high = temperature_range
            raise ValueError(f"temperature: expected a number in [{low}, {high}], got {temperature}")
        self.range = temperature_range
        self.hidden, self.out = nn.Linear(features, hidden), nn.Linear(hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, temperature)

    def temperatures(self, features: Tensor) -> Tensor:
        """T of features (N, F): shape (N,)."""
        return self.out(self.hidden(features).relu()).squeeze(1).clamp(*self.range)

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """Return logits (N, K), divided by the temperatures of their features (N, F)."""
        return logits / self.temperatures(features)[:, None]


@dataclass(frozen=True, kw_only=True)
class Fitting(Method):
    """Trains the role ``student``, a network that calibrates logits, by a function of its own logits and the labels."""

    coupled: ClassVar[bool] = True  # the function may relate the examples of a batch

    value: Callable[[Tensor, Tensor], Tensor]  # logits (N, K) and labels (N,) -> (N,)

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the function's values."""
        return {"calibration": self.value(forward(roles["student"], batch["x"]).logits, batch["y"])}
