"""Correctness-aware calibration: the losses, where they disagree with cross-entropy, and the calibrator."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.parity import check_folder
from torch import Tensor

from preceptor.catalog import load, read
from preceptor.losses.hard import hard_loss
from preceptor.methods.correctness_calibration import CARD, LOSSES, CorrectnessCalibrator, correctness_loss, miniature, one_hot_mse
from preceptor.metrics.calibration import confidence_brier, correctness_auroc
from preceptor.models.calibrators import TemperatureScaling

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """Logits of 40 examples and 4 classes, and labels of which about half are predicted."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(40, 4, generator=generator, dtype=torch.double)
    labels = torch.where(torch.rand(40, generator=generator) < 0.5, logits.argmax(1), torch.randint(4, (40,), generator=generator))
    return logits, labels


def told(n=600, seed=0):
    """Logits, labels, and two features: the first says how far to trust the prediction, the second nothing."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, 4, generator=generator, dtype=torch.double)
    features = torch.rand(n, 2, generator=generator, dtype=torch.double)
    temperature = torch.where(features[:, :1] > 0.5, 0.7, 6.0)
    return logits, torch.multinomial((logits / temperature).softmax(1), 1, generator=generator).squeeze(1), features


def test_the_card_and_that_no_student_is_trained():
    assert (CARD.slug, CARD.kind, CARD.needs) == ("correctness-calibration", "calibration", ("logits", "labels"))
    assert read("correctness-calibration").class_name == ""
    with pytest.raises(ValueError, match="'correctness-calibration' is not a training method; see"):
        load("correctness-calibration")


def test_defaults_are_those_of_the_code():
    made = CorrectnessCalibrator()
    assert (made.loss, made.hidden, made.temperature_range, made.learning_rate) == ("ca", 5, (0.1, 10.0), 1e-4)
    assert made.steps * made.batch_size == 10 * 50_000


@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_against_a_slow_loop(data, balanced):
    logits, labels = data
    gaps, right = [], []
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        confidence = max(math.exp(v) for v in z) / sum(math.exp(v) for v in z)
        right.append(z.index(max(z)) == y)
        gaps.append((confidence - right[-1]) ** 2)
    rate = sum(right) / len(right)
    weights = [(1 - rate if a else rate) if balanced else 1.0 for a in right]
    expected = sum(w * g for w, g in zip(weights, gaps, strict=True)) / sum(weights)
    assert math.isclose(correctness_loss(logits, labels, balanced=balanced).mean(), expected, rel_tol=1e-12)


def test_the_mean_is_the_brier_score_of_the_confidence(data):
    loss = correctness_loss(*data)
    torch.testing.assert_close(loss, confidence_brier(*data))
    assert ((loss >= 0) & (loss <= 1)).all()
    assert correctness_loss(100 * torch.eye(3), torch.tensor([1, 2, 0])).mean() == 1
    assert correctness_loss(100 * torch.eye(3), torch.tensor([0, 1, 2])).mean() == 0


@pytest.mark.parametrize(("balanced", "best"), [(False, 0.8), (True, 0.5)])
def test_the_best_constant_confidence(balanced, best):
    # eight of ten predictions are right: the plain loss wants to say 0.8, the balanced one 0.5
    labels = torch.tensor([0] * 8 + [1] * 2)
    grid = np.arange(0.5, 1.0, 0.01)

    def loss(c):
        logits = torch.tensor([c, 1 - c], dtype=torch.double).log().expand(10, 2)
        return float(correctness_loss(logits, labels, balanced=balanced).mean())

    assert math.isclose(grid[np.argmin([loss(c) for c in grid])], best, abs_tol=1e-9)


def test_balanced_weights_have_mean_one_and_give_each_side_half(data):
    logits, labels = data
    weights = correctness_loss(logits, labels, balanced=True) / correctness_loss(logits, labels)
    right = logits.argmax(1) == labels
    assert math.isclose(weights.mean(), 1, rel_tol=1e-9)
    assert math.isclose(weights[right].sum(), weights[~right].sum(), rel_tol=1e-9)


@pytest.mark.parametrize("shift", [0, 1])
def test_all_right_or_all_wrong_fall_back_to_equal_weights(shift):
    logits = torch.eye(4, dtype=torch.double)
    labels = (torch.arange(4) + shift) % 4
    assert torch.equal(correctness_loss(logits, labels, balanced=True), correctness_loss(logits, labels))


def slopes(z, y, temperature=1.0):
    """Derivatives of both losses by the temperature: descent lowers it, which raises confidence, where they are positive."""
    t = torch.tensor(temperature, dtype=torch.double, requires_grad=True)
    logits = torch.tensor([z], dtype=torch.double) / t
    losses = hard_loss(logits, {"y": torch.tensor([y])}), correctness_loss(logits, torch.tensor([y]))
    return [float(torch.autograd.grad(loss.sum(), t, retain_graph=True)[0]) for loss in losses]


def test_where_cross_entropy_and_the_loss_disagree():
    narrow = [2.0, 1.9, 0.0, 0.0, 0.0]
    weights = np.exp(narrow) / np.exp(narrow).sum()
    assert math.isclose(weights @ narrow, 1.61, abs_tol=0.005)
    ce, ca = slopes(narrow, 1)
    assert ce > 0 > ca  # narrowly wrong: one makes it surer, the other less sure
    ce, ca = slopes([2.0, 1.9, -3.0], 1)
    assert ce < 0
    assert ca < 0
    ce, ca = slopes(narrow, 0)
    assert ce > 0
    assert ca > 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_derivatives_by_the_temperature(data, temperature):
    for z, y in zip(*data, strict=True):
        q = (z / temperature).softmax(0)
        mean, predicted = float((q * z).sum()), int(z.argmax())
        confidence_slope = -float(q[predicted]) * (float(z[predicted]) - mean) / temperature**2
        assert confidence_slope <= 0
        ce, ca = slopes(z.tolist(), int(y), temperature)
        assert math.isclose(ce, (float(z[y]) - mean) / temperature**2, rel_tol=1e-9, abs_tol=1e-12)
        assert math.isclose(ca, 2 * (float(q[predicted]) - (predicted == int(y))) * confidence_slope, rel_tol=1e-9, abs_tol=1e-12)
        assert (ca > 0) == (predicted == int(y))
        assert ((ce > 0) != (ca > 0)) == (predicted != int(y) and float(z[y]) > mean)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(data, name):
    logits, labels = data
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, labels[:6]), (logits[:6].clone().requires_grad_(),))


def test_the_one_hot_loss_is_zero_only_for_a_sure_right_answer(data):
    logits, labels = data
    q = logits.softmax(1).tolist()
    expected = [sum((p - (k == y)) ** 2 for k, p in enumerate(row)) for row, y in zip(q, labels.tolist(), strict=True)]
    assert np.allclose(one_hot_mse(logits, labels).tolist(), expected, rtol=1e-12)
    assert (one_hot_mse(logits, labels) > 0).all()
    assert one_hot_mse(1000 * torch.eye(3), torch.arange(3)).sum() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_losses_at_numbers_that_break_careless_ones(data, name):
    loss = LOSSES[name]
    labels = data[1][:6]
    for logits in (1e4 * torch.randn(6, 4).sign(), torch.zeros(6, 4), data[0][:6].float().index_fill(1, torch.tensor([3]), -torch.inf)):
        z = logits.clone().requires_grad_()
        values = loss(z, labels.clamp_max(2))
        values.sum().backward()
        assert values.isfinite().all()
        assert z.grad is not None
        assert z.grad.isfinite().all()
    for dtype in (torch.float16, torch.bfloat16):
        half = data[0][:6].to(dtype)
        assert torch.equal(loss(half, labels), loss(half.float(), labels))
    assert (loss(torch.randn(3, 1), torch.zeros(3, dtype=torch.int64)) == 0).all()
    assert loss(torch.zeros(0, 4), labels[:0]).shape == (0,)
    assert loss(torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.int64)).shape == (2, 3)


def test_the_calibrator_keeps_predictions_and_is_reproducible():
    logits, labels, features = told()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    made = CorrectnessCalibrator(steps=60, learning_rate=1e-2)
    assert made.fit(logits, labels, features) is made
    assert torch.equal(torch.get_rng_state(), state)
    scaled = made.transform(logits, features)
    assert torch.equal(scaled.argmax(1), logits.argmax(1))
    torch.testing.assert_close(made.predict_proba(logits, features), scaled.softmax(1))
    again = CorrectnessCalibrator(steps=60, learning_rate=1e-2).fit(logits.numpy(), labels.numpy(), features.numpy())
    assert torch.equal(again.transform(logits.numpy(), features.numpy()), scaled)
    other = CorrectnessCalibrator(steps=60, learning_rate=1e-2, seed=1).fit(logits, labels, features)
    assert not torch.equal(other.transform(logits, features), scaled)


def test_it_finds_what_the_features_tell():
    made = CorrectnessCalibrator(steps=400, learning_rate=2e-2).fit(*told())
    logits, labels, features = told(seed=1)
    one = TemperatureScaling().fit(*told()[:2]).transform(logits)
    scaled = made.transform(logits, features)
    assert correctness_loss(scaled, labels).mean() < correctness_loss(one, labels).mean() - 0.02
    assert correctness_auroc(scaled, labels) > correctness_auroc(one, labels) + 0.05
    temperatures = made.network_.temperatures(features)
    assert temperatures[features[:, 0] > 0.6].mean() < temperatures[features[:, 0] < 0.4].mean()


def test_without_features_it_is_temperature_scaling():
    logits, labels, _ = told()
    start = TemperatureScaling().fit(logits, labels).temperature_
    ce = CorrectnessCalibrator(loss="ce", steps=50).fit(logits, labels)
    ratio = logits / ce.transform(logits)
    torch.testing.assert_close(ratio, torch.full_like(ratio, start), rtol=2e-3, atol=0)
    ca = CorrectnessCalibrator(steps=300, learning_rate=1e-2).fit(logits, labels)
    grid = [float(correctness_loss(logits / t, labels).mean()) for t in np.linspace(0.5, 9.5, 400)]
    assert math.isclose(correctness_loss(ca.transform(logits), labels).mean(), min(grid), rel_tol=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_training_lowers_the_loss_that_was_asked_for(name):
    logits, labels, features = told()
    found = {steps: CorrectnessCalibrator(loss=name, steps=steps, learning_rate=1e-2).fit(logits, labels, features) for steps in (1, 200)}
    values = {steps: float(LOSSES[name](made.transform(logits, features), labels).mean()) for steps, made in found.items()}
    assert values[200] < values[1] - 1e-3


def test_every_setting_changes_the_result():
    logits, labels, features = told(n=200)
    make = partial(CorrectnessCalibrator, steps=20, learning_rate=1e-2)

    def result(**options):
        return make(**options).fit(logits, labels, features).transform(logits, features)

    plain = result()
    for options in (
        {"loss": "ca-balanced"},
        {"loss": "ce"},
        {"loss": "mse-one-hot"},
        {"hidden": 3},
        {"temperature_range": (0.1, 1.0)},
        {"steps": 21},
        {"batch_size": 50},
        {"learning_rate": 2e-2},
        {"seed": 1},
    ):
        assert not torch.equal(result(**options), plain), options


def test_half_precision_is_single_precision():
    logits, labels, features = told(n=50)
    made = CorrectnessCalibrator(steps=3)
    half = made.fit(logits.half(), labels, features.half()).transform(logits.half(), features.half())
    whole = made.fit(logits.half().float(), labels, features.half().float()).transform(logits.half().float(), features.half().float())
    assert half.dtype == torch.float32
    assert torch.equal(half, whole)


def test_wrong_input_is_refused(data):
    logits, labels = data
    features = torch.rand(40, 3, dtype=torch.double)
    made = CorrectnessCalibrator(steps=1)
    with pytest.raises(ValueError, match=r"^logits: expected finite numbers, got nan$"):
        made.fit(logits * math.nan, labels, features)
    with pytest.raises(ValueError, match=r"^logits: expected at least 2 classes, got 1$"):
        made.fit(logits[:, :1], labels * 0, features)
    with pytest.raises(ValueError, match=r"^features: expected shape \(40, features\), got \(39, 3\)$"):
        made.fit(logits, labels, features[:39])
    with pytest.raises(ValueError, match=r"^features: expected finite numbers, got inf$"):
        made.fit(logits, labels, features / 0)
    made.fit(logits, labels, features)
    with pytest.raises(ValueError, match=r"^features: expected shape \(40, 3\), got \(40, 2\)$"):
        made.transform(logits, features[:, :2])
    with pytest.raises(ValueError, match=r"^labels: expected values in \[0, 3\], got 4$"):
        correctness_loss(logits, labels * 0 + 4)
    with pytest.raises(TypeError, match=r"^logits: expected a floating-point tensor, got torch.int64$"):
        one_hot_mse(labels[:, None], labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "brier"}, "loss: expected one of ca, ca-balanced, ce, mse-one-hot, got 'brier'"),
        ({"hidden": 0}, "hidden: expected at least 1, got 0"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a finite number > 0, got 0.0"),
        ({"temperature_range": (1.0, 1.0)}, "temperature_range: expected two numbers 0 < low < high, got 1.0 and 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        CorrectnessCalibrator(**options)


def test_parity():
    lines = [line for line in check_folder(GOLDEN) if line.slug == "correctness-calibration"]
    assert len(lines) == 2
    assert {line.status for line in lines} == {"ok"}


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() >= {"untrained-calibrator", "none", "temperature-scaling", "isotonic", "correctness-calibration", "balanced"}
    assert all(math.isfinite(value) for arm in run.arms.values() for value in arm.values())
    assert run.arms["correctness-calibration"]["accuracy"] == run.arms["none"]["accuracy"]
