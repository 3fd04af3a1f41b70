"""Post-hoc calibrators: temperature, vector and isotonic scaling, the network of temperatures, and its features."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize, minimize_scalar

from preceptor.core.state import State
from preceptor.metrics.calibration import ece
from preceptor.models.calibrators import (
    Fitting,
    IsotonicCalibration,
    TemperatureNetwork,
    TemperatureScaling,
    VectorScaling,
    class_scores,
)

CALIBRATORS = [TemperatureScaling, VectorScaling, IsotonicCalibration]


def drawn(n=4000, classes=5, temperature=1.0, seed=0):
    """Logits, and labels drawn from softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=generator, dtype=torch.double)
    return logits, torch.multinomial((logits / temperature).softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_the_temperature_of_synthetic_labels_is_found(truth):
    logits, labels = drawn(temperature=truth)
    found = TemperatureScaling().fit(logits, labels).temperature_
    p = (logits / truth).softmax(1)
    spread = (p * logits.square()).sum(1) - (p * logits).sum(1).square()
    error = truth**2 / math.sqrt(float(spread.sum()))  # by the Fisher information of 1 / T
    assert abs(found - truth) < 4 * error


def test_at_the_temperature_the_mean_logit_is_that_of_the_labels():
    logits, labels = drawn(n=300)
    scaling = TemperatureScaling().fit(logits, labels)
    p = scaling.predict_proba(logits)
    residual = (p * logits).sum(1) - logits.gather(1, labels[:, None]).squeeze(1)
    assert abs(float(residual.mean())) < 1e-12


def test_the_temperature_is_that_of_a_general_minimiser():
    logits, labels = drawn(n=200, temperature=2.0)

    def nll(beta):
        return float(F.cross_entropy(beta * logits, labels))

    beta = minimize_scalar(nll, bounds=(0.01, 10), method="bounded", options={"xatol": 1e-9}).x
    assert math.isclose(TemperatureScaling().fit(logits, labels).temperature_, 1 / beta, rel_tol=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_temperature_grows_with_the_logits(scale):
    logits, labels = drawn(n=300)
    once = TemperatureScaling(bounds=(1e-6, 1e6)).fit(logits, labels).temperature_
    assert math.isclose(TemperatureScaling(bounds=(1e-6, 1e6)).fit(scale * logits, labels).temperature_, scale * once, rel_tol=1e-9)


def test_a_shift_of_logits_changes_nothing():
    logits, labels = drawn(n=300)
    shifted = logits + torch.linspace(-500, 500, 300, dtype=torch.double)[:, None]
    found = [TemperatureScaling().fit(z, labels).temperature_ for z in (logits, shifted)]
    assert math.isclose(*found, rel_tol=1e-9)


def test_without_a_root_the_temperature_is_a_bound():
    logits, scaling = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), TemperatureScaling(bounds=(0.05, 20.0))
    assert scaling.fit(logits, torch.tensor([0, 1])).temperature_ == pytest.approx(0.05, rel=1e-9)
    assert scaling.fit(logits, torch.tensor([1, 0])).temperature_ == pytest.approx(20.0, rel=1e-9)
    assert 0.05 <= scaling.fit(torch.zeros(3, 4), torch.tensor([0, 1, 2])).temperature_ <= 20
    huge = 1e4 * torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert scaling.fit(huge, torch.tensor([0, 1])).temperature_ == pytest.approx(20.0, rel=1e-9)


def test_the_limits_of_the_temperature():
    scaling = TemperatureScaling()
    logits = drawn(n=20)[0]
    scaling.temperature_ = 1e9
    assert torch.allclose(scaling.predict_proba(logits), torch.full_like(logits, 0.2))
    scaling.temperature_ = 1e-6
    assert torch.allclose(scaling.predict_proba(logits).amax(1), torch.ones(20, dtype=torch.double))


def test_one_temperature_keeps_predictions_and_lowers_the_error():
    logits, labels = drawn(temperature=2.5)
    test_logits, test_labels = drawn(temperature=2.5, seed=1)
    scaling = TemperatureScaling().fit(logits, labels)
    assert torch.equal(scaling.transform(test_logits).argmax(1), test_logits.argmax(1))
    assert ece(scaling.transform(test_logits), test_labels) < 0.03
    assert ece(test_logits, test_labels) > 0.15


def test_vector_scaling_against_scipy_and_at_a_stationary_point():
    logits, labels = drawn(n=500, classes=3, temperature=1.5)
    logits = logits * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([1.0, 0.0, -1.0])
    vector = VectorScaling().fit(logits, labels)
    z, y = logits.numpy(), labels.numpy()

    def nll(w):
        a = z * w[:3] + w[3:]
        return float(np.mean(np.log(np.exp(a).sum(1)) - a[np.arange(len(y)), y]))

    best = minimize(nll, np.r_[np.ones(3), np.zeros(3)], method="BFGS", options={"gtol": 1e-7})
    assert math.isclose(float(F.cross_entropy(vector.transform(logits), labels)), best.fun, rel_tol=1e-9)
    gap = vector.predict_proba(logits) - F.one_hot(labels, 3)
    assert (gap * logits).mean(0).abs().max() < 1e-6
    assert gap.mean(0).abs().max() < 1e-6
    one = TemperatureScaling().fit(logits, labels)
    assert F.cross_entropy(vector.transform(logits), labels) <= F.cross_entropy(one.transform(logits), labels)


def test_vector_scaling_of_separable_data_stays_finite():
    logits = 1e4 * torch.eye(3)
    assert VectorScaling().fit(logits, torch.arange(3)).predict_proba(logits).isfinite().all()


def pool_adjacent_violators(x, hits):
    """Least squares among rising functions, by the definition: pool neighbours until means rise; equal x are one point."""
    points = {}
    for value, hit in zip(x, hits, strict=True):
        points.setdefault(value, []).append(hit)
    blocks = []
    for value in sorted(points):
        blocks.append([sum(points[value]), len(points[value]), [value]])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count, values = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count, blocks[-1][2] + values]
    return {value: total / count for total, count, values in blocks for value in values}


def test_isotonic_calibration_against_pooling_by_hand():
    logits, labels = drawn(n=60, classes=3, temperature=3.0)
    probs = logits.softmax(1)
    steps = [pool_adjacent_violators(probs[:, k].tolist(), (labels == k).double().tolist()) for k in range(3)]
    expected = torch.tensor([[step[value] for step, value in zip(steps, row, strict=True)] for row in probs.tolist()], dtype=torch.double)
    total = expected.sum(1, keepdim=True)
    expected = torch.where(total > 0, expected / total, 1 / 3)
    torch.testing.assert_close(IsotonicCalibration().fit(logits, labels).predict_proba(logits), expected)


def test_isotonic_calibration_lowers_the_error_and_a_row_of_zeros_is_uniform():
    logits, labels = drawn(temperature=2.5)
    test_logits, test_labels = drawn(temperature=2.5, seed=1)
    isotonic = IsotonicCalibration().fit(logits, labels)
    assert ece(isotonic.predict_proba(test_logits).log(), test_labels) < 0.05
    never = IsotonicCalibration().fit(torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 4.0], [9.0, 9.0, 0.0]]), torch.tensor([2, 2, 0]))
    torch.testing.assert_close(never.predict_proba(torch.tensor([[-9.0, 20.0, -9.0]])), torch.full((1, 3), 1 / 3))


@pytest.mark.parametrize("make", CALIBRATORS)
def test_probabilities_of_arrays_and_of_halves(make):
    logits, labels = drawn(n=100)
    fitted = make()
    assert fitted.fit(logits.numpy(), labels.numpy()) is fitted
    probs = fitted.predict_proba(logits)
    torch.testing.assert_close(probs.sum(1), torch.ones(100, dtype=torch.double))
    assert torch.equal(fitted.predict_proba(logits.numpy()), probs)
    half = make().fit(logits.half(), labels).predict_proba(logits.half())
    whole = make().fit(logits.half().float(), labels).predict_proba(logits.half().float())
    assert half.dtype == torch.float32
    assert torch.equal(half, whole)
    assert make().fit(logits.half(), labels.to(torch.uint8)).predict_proba(1e4 * logits).isfinite().all()


@pytest.mark.parametrize("make", CALIBRATORS)
def test_bad_input_is_refused(make):
    logits, labels = drawn(n=10)
    for bad in (math.nan, math.inf, -math.inf):
        wrong = logits.clone()
        wrong[3, 2] = bad
        with pytest.raises(ValueError, match=rf"^logits: expected finite numbers, got {re.escape(str(bad))}$"):
            make().fit(wrong, labels)
        with pytest.raises(ValueError, match=r"^logits: expected finite numbers"):
            make().fit(logits, labels).predict_proba(wrong)
    with pytest.raises(ValueError, match=r"^logits: expected at least 2 classes, got 1$"):
        make().fit(logits[:, :1], labels * 0)
    with pytest.raises(ValueError, match=r"^logits: expected shape \(examples, classes\) with an example at least, got \(0, 5\)$"):
        make().fit(logits[:0], labels[:0])
    with pytest.raises(ValueError, match=r"^labels: expected values in \[0, 4\], got 5$"):
        make().fit(logits, labels * 0 + 5)
    with pytest.raises(ValueError, match=r"^labels: expected shape \(10,\) like the logits, got \(9,\)$"):
        make().fit(logits, labels[:9])
    with pytest.raises(TypeError, match=r"^labels: expected integers, got torch.float64$"):
        make().fit(logits, labels.double())
    with pytest.raises(TypeError, match=r"^logits: expected a floating-point tensor, got torch.int64$"):
        make().fit(labels[:, None].repeat(1, 3), labels)
    if make is not TemperatureScaling:
        with pytest.raises(ValueError, match=r"^logits: expected 5 classes, got 4$"):
            make().fit(logits, labels).predict_proba(logits[:, :4])


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"^bounds: expected two numbers 0 < low < high, got 2 and 1$"):
        TemperatureScaling(bounds=(2, 1))
    with pytest.raises(ValueError, match=r"^max_iterations: expected at least 1, got 0$"):
        VectorScaling(max_iterations=0)
    with pytest.raises(ValueError, match=r"^temperature_range: expected two numbers 0 < low < high, got 0 and 1$"):
        TemperatureNetwork(3, temperature_range=(0, 1))
    with pytest.raises(ValueError, match=r"^features: expected at least 1, got 0$"):
        TemperatureNetwork(0)
    with pytest.raises(ValueError, match=r"^temperature: expected a number in \[0.1, 10.0\], got 0$"):
        TemperatureNetwork(3, temperature=0)


def network(features=4, seed=0, **options):
    """A network with all weights drawn."""
    torch.manual_seed(seed)
    made = TemperatureNetwork(features, **options).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def test_temperatures_against_a_slow_loop():
    made = network(hidden=3, temperature_range=(0.5, 2.0))
    features, logits = torch.rand(20, 4, dtype=torch.double), drawn(n=20)[0]
    w1, b1, w2, b2 = (parameter.tolist() for parameter in made.parameters())
    for f, z, t, row in zip(features.tolist(), logits.tolist(), made.temperatures(features).tolist(), made(logits, features), strict=True):
        hidden = [max(0.0, sum(w * x for w, x in zip(line, f, strict=True)) + b) for line, b in zip(w1, b1, strict=True)]
        expected = min(max(sum(w * h for w, h in zip(w2[0], hidden, strict=True)) + b2[0], 0.5), 2.0)
        assert math.isclose(t, expected, rel_tol=1e-12)
        assert np.allclose(row.tolist(), [value / expected for value in z], rtol=1e-12)
    assert 0.5 in made.temperatures(features) or 2.0 in made.temperatures(features)


def test_the_network_starts_at_one_temperature_and_every_weight_can_learn():
    made = TemperatureNetwork(4, temperature=1.7).double()
    features, logits = torch.rand(9, 4, dtype=torch.double), drawn(n=9)[0]
    torch.testing.assert_close(made(logits, features), logits / 1.7, rtol=1e-6, atol=0)  # 1.7 was stored in float32
    made(logits, features).square().sum().backward()
    assert made.out.weight.grad.any()
    assert made.out.bias.grad.any()


def test_the_gradient_of_the_network():
    made, features = network(temperature_range=(1e-3, 1e3)), torch.rand(5, 4, dtype=torch.double)
    made.out.bias.data.fill_(30.0)  # away from the clamp
    logits = drawn(n=5)[0].requires_grad_()
    assert torch.autograd.gradcheck(made, (logits, features.requires_grad_()))


def test_scores_are_those_of_the_original_classes():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 5.0]])
    views = [torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]), -logits]
    scores = class_scores(logits, views, k=2)
    order = [[0, 2], [2, 0]]  # of equal logits the lower class
    expected = [[float(view.softmax(1)[i, c]) for view in views for c in order[i]] for i in range(2)]
    assert np.allclose(scores.tolist(), expected)
    assert class_scores(logits, views).shape == (2, 6)  # three classes, although k is 4
    torch.testing.assert_close(class_scores(logits, [logits], k=3).sum(1), torch.ones(2))
    assert class_scores(logits.half(), [views[0].half()]).dtype == torch.float32


def test_scores_refuse_what_does_not_fit():
    logits = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"^views: expected the logits of at least one, got none$"):
        class_scores(logits, [])
    with pytest.raises(ValueError, match=r"^views: expected 4 examples like the logits, got 2$"):
        class_scores(logits, [logits[:2]])
    with pytest.raises(ValueError, match=r"^logits: expected 3 classes, got 2$"):
        class_scores(logits, [logits[:, :2]])
    with pytest.raises(ValueError, match=r"^k: expected at least 1, got 0$"):
        class_scores(logits, [logits], k=0)


def test_the_method_that_fits_hands_on_logits_and_labels():
    made, logits, features = network(), drawn(n=6)[0], torch.rand(6, 4, dtype=torch.double)
    labels = torch.arange(6) % 5
    method = Fitting(value=lambda z, y: z.gather(1, y[:, None]).squeeze(1))
    batch = {"x": {"logits": logits, "features": features}, "y": labels}
    terms = method.loss(batch, {}, {"student": made}, State(total_steps=1))
    torch.testing.assert_close(terms["calibration"], made(logits, features)[torch.arange(6), labels])
    assert method.coupled
