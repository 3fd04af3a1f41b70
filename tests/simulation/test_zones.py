"""Parameters, cases, and how schools start."""

from dataclasses import replace

import numpy as np
import pytest

from preceptor.simulation.order import metrics
from preceptor.simulation.zones import CASES, Zones, ring_start, uniform_start

GOOD = {"box": 20, "r_repulsion": 1, "r_orientation": 2, "r_attraction": 3, "max_turn": 0.3, "noise": 0.1, "blind_angle": 30}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r_repulsion": 2}, "r_repulsion: expected a number below r_orientation 2, got 2"),
        ({"r_orientation": 4}, "r_orientation: expected at most r_attraction 3, got 4"),
        ({"r_repulsion": 0}, "r_repulsion: expected a number above 0, got 0"),
        ({"box": float("nan")}, "box: expected a finite number, got nan"),
        ({"dt": "fast"}, "dt: expected a finite number, got 'fast'"),
        ({"noise": -1}, "noise: expected a number >= 0, got -1"),
        ({"blind_angle": 181}, "blind_angle: expected degrees up to 180, got 181"),
        ({"orientation_weight": 1.5}, "orientation_weight: expected a number in [0, 1], got 1.5"),
        ({"turn": "lerp"}, "turn: expected 'nlerp' or 'slerp', got 'lerp'"),
    ],
)
def test_bad_parameters(changes, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Zones(**{**GOOD, **changes})
    assert str(error.value) == message


def test_an_orientation_zone_may_end_where_attraction_ends():
    assert Zones(**{**GOOD, "r_orientation": 3}).r_orientation == 3


def test_changes_by_text():
    zones = Zones(**GOOD).changed({"noise": "0.4", "turn": "slerp"})
    assert (zones.noise, zones.turn, zones.box) == (0.4, "slerp", 20)
    with pytest.raises(ValueError, match=r"^r_repulsoin: expected one of box, .*, nearest: 'r_repulsion'$"):
        zones.changed({"r_repulsoin": "1"})
    with pytest.raises(ValueError, match=r"^noise: expected a number, got 'loud'$"):
        zones.changed({"noise": "loud"})


def test_the_doubt_about_a_small_box():
    assert Zones(**GOOD).doubt == ""
    assert Zones(**{**GOOD, "box": 6}).doubt == ""
    assert Zones(**{**GOOD, "box": 5}).doubt.startswith("box: expected at least twice r_attraction, 6, got 5")
    assert [name for name, case in CASES.items() if not case.zones.doubt] == ["torus", "mill"]


def test_a_case_of_another_size_has_the_same_density():
    case = CASES["torus"].sized(1600)
    assert case.zones.box == pytest.approx(50)
    assert case.ring == pytest.approx(12)
    assert CASES["swarm"].sized(150) is CASES["swarm"]
    with pytest.raises(ValueError, match=r"^agents: expected at least 1, got 0$"):
        case.sized(0)


def test_a_perfect_ring_turns_as_one():
    """Rotation 1, polarisation 0, and one bin of angular momentum."""
    zones = replace(CASES["torus"].zones, speed=2.0)
    positions, velocities = ring_start(100, zones, np.random.default_rng(0), radius=6, spread=0, height=0)
    found = metrics(positions, velocities, zones.box)
    assert found["rotation"] == pytest.approx(1, abs=1e-12)
    assert found["polarization"] < 1e-12
    assert found["angular_momentum_entropy"] == 0.0
    assert found["spread"] == pytest.approx(6)
    assert np.linalg.norm(velocities, axis=1) == pytest.approx(2)


def test_starts_lie_in_the_box_and_their_spread_is_the_one_asked_for():
    zones = CASES["torus"].zones
    positions, velocities = uniform_start(5000, zones, np.random.default_rng(0))
    assert ((positions >= 0) & (positions < zones.box)).all()
    assert np.abs(velocities.mean(axis=0)).max() < 0.03
    positions, _ = ring_start(5000, zones, np.random.default_rng(0), radius=6)
    away = positions - zones.box / 2
    assert np.hypot(away[:, 0], away[:, 1]).std() == pytest.approx(0.9, rel=0.05)
    assert away[:, 2].std() == pytest.approx(1.8, rel=0.05)
