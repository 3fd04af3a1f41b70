"""Order parameters, entropies, index: against loops, limits and symmetries."""

import math

import numpy as np
import pytest

from preceptor.metrics.entropy import unit
from preceptor.simulation.motion import Frame
from preceptor.simulation.order import ENTROPIES, INDEX_WEIGHTS, METRICS, from_centroid, metrics, metrics_series, state_label, summary
from preceptor.simulation.zones import wrapped

BOX = 10.0


def state(number=50, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, BOX, (number, 3)), unit(rng.standard_normal((number, 3)))


def entropy(samples, bins, high):
    counts = [0] * bins
    for sample in samples:
        if 0 <= sample <= high:
            counts[min(int(sample / high * bins), bins - 1)] += 1
    total = sum(counts)
    return -sum(c / total * math.log(c / total) for c in counts if c) / math.log(bins)


def test_metrics_equal_loops_over_the_definitions():
    positions, velocities = state()
    found = metrics(positions, 3 * velocities, BOX)
    middle = positions.mean(axis=0)
    away = [(r - middle) / math.dist(r, middle) for r in positions]
    momentum = [np.cross(c, u) for c, u in zip(away, velocities, strict=True)]
    near = []
    for i, r in enumerate(positions):
        apart = [r - s for j, s in enumerate(positions) if j != i]
        near.append(sorted(math.sqrt(sum((a - BOX * np.round(a / BOX)) ** 2)) for a in apart)[:5])
    variation = [np.std(row) / (np.mean(row) + 1e-10) for row in near]
    pairs = [(1 + velocities[i] @ velocities[j]) / 2 for i in range(50) for j in range(i)]
    expected = {
        "polarization": np.linalg.norm(velocities.mean(axis=0)),
        "rotation": np.linalg.norm(np.mean(momentum, axis=0)),
        "spread": math.sqrt(np.mean([math.dist(r, middle) ** 2 for r in positions])),
        "school_cohesion_entropy": entropy([row[0] for row in near], 25, BOX / 2),
        "depth_stratification_entropy": entropy(positions[:, 2], 15, BOX),
        "angular_momentum_entropy": entropy([np.linalg.norm(m) for m in momentum], 20, 1),
        "nearest_neighbor_entropy": entropy(variation, 20, 2),
        "velocity_correlation_entropy": entropy(pairs, 20, 1),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-10), name
    assert found["order_index"] == max(found["polarization"], found["rotation"])
    assert found["oceanic_schooling_index"] == pytest.approx(sum(INDEX_WEIGHTS[name] * found[name] for name in ENTROPIES))
    assert sum(INDEX_WEIGHTS.values()) == pytest.approx(1)
    assert tuple(found) == METRICS


def test_identical_headings():
    found = metrics(state()[0], np.tile([[0.2, -0.4, 0.7]], (50, 1)), BOX)
    assert found["polarization"] == pytest.approx(1, abs=1e-12)
    assert found["polarization_entropy"] == found["velocity_correlation_entropy"] == 0


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 200])
@pytest.mark.parametrize("options", [{}, {"centroid": "circular", "sphere": "equal-area", "correction": True}])
def test_everything_is_in_its_range_for_any_number_of_fish(number, options):
    for seed in range(5):
        found = metrics(*state(number, seed), BOX, **options)
        assert all(math.isfinite(value) for value in found.values())
        assert all(0 <= found[name] <= 1 and str(found[name]) != "-0.0" for name in ENTROPIES)
    few = {1: 5, 2: 3, 3: 2, 4: 1, 5: 1, 6: 0, 200: 0}[number]  # cohesion, momentum, neighbours, correlation, shape
    named = ("school_cohesion_entropy", "angular_momentum_entropy", "nearest_neighbor_entropy", "velocity_correlation_entropy")
    assert [found[name] for name in (*named, "school_shape_entropy")].count(0.5) == few


def test_moving_the_school_around_the_box_changes_what_the_wrapped_mean_says_and_not_the_circular_one():
    rng = np.random.default_rng(0)
    positions = wrapped(5 + 0.8 * rng.standard_normal((60, 3)) * [2, 1, 0.5], BOX)
    velocities = unit(np.cross(positions - 5, [0, 0, 1.0]))
    plain = metrics(positions, velocities, BOX)
    moved = wrapped(positions + np.array([5.3, 4.6, 5.1]), BOX)
    same = ("school_cohesion_entropy", "nearest_neighbor_entropy", "velocity_correlation_entropy", "polarization_entropy")
    shifted, circular = metrics(moved, velocities, BOX), metrics(moved, velocities, BOX, centroid="circular")
    for name in same:
        assert shifted[name] == pytest.approx(plain[name], abs=1e-12)
    for name in ("rotation", "spread", "angular_momentum_entropy", "school_shape_entropy"):
        assert circular[name] == pytest.approx(plain[name], rel=1e-9)
        assert abs(shifted[name] - plain[name]) > 0.02
    np.testing.assert_allclose(from_centroid(moved, BOX, "circular"), positions - positions.mean(axis=0), atol=1e-12)


def test_equal_areas_and_the_correction_reach_the_index():
    given = state(150)
    plain, area, corrected = (metrics(*given, BOX, **o) for o in ({}, {"sphere": "equal-area"}, {"correction": True}))
    assert area["polarization_entropy"] > plain["polarization_entropy"] + 0.03
    assert all(corrected[name] > plain[name] for name in ("school_cohesion_entropy", "depth_stratification_entropy"))
    assert corrected["velocity_correlation_entropy"] == plain["velocity_correlation_entropy"]
    assert corrected["oceanic_schooling_index"] > plain["oceanic_schooling_index"]


def test_labels():
    wanted = {
        (0.95, 0): "highly parallel",
        (0.8, 0.6): "dynamic parallel",
        (0.5, 0.6): "torus",
        (0.1, 0.4): "transitional",
        (0.1, 0): "swarm",
    }
    assert {given: state_label(*given) for given in wanted} == wanted


def test_series_and_summary():
    frames = [Frame(step=i, positions=r, velocities=u) for i, (r, u) in enumerate(state(20, seed) for seed in range(5))]
    series = metrics_series(frames, BOX)
    values = [metrics(f.positions, f.velocities, BOX)["rotation"] for f in frames]
    assert series["rotation"].tolist() == values
    found = summary(series)["rotation"]
    assert found == pytest.approx(
        {"mean": np.mean(values[2:]), "sd": np.std(values[2:]), "final": values[-1], "min": min(values), "max": max(values)}
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, u: metrics(r, u[:1], BOX), "positions, velocities: expected the same shape (N, 3), N >= 1, got (50, 3) and (1, 3)"),
        (lambda r, u: metrics(r, u, BOX, centroid="no"), "centroid: expected 'mean' or 'circular', got 'no'"),
        (lambda r, u: metrics(np.ones((2, 3)), u[:2], 1.0), "points: expected all in [0, 1), got 1 to 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call(*state())
    assert str(error.value) == message
