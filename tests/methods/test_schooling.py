"""Schooling: golden parity, and the miniature that its paper's figures come from."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.parity import check_case, load_adapter

from preceptor.methods.schooling import MEASURED, miniature, no_interaction, settled
from preceptor.simulation.motion import simulate
from preceptor.simulation.zones import CASES

GOLDEN = Path(__file__).parents[1] / "golden" / "schooling.json"


@pytest.mark.parametrize("number", range(3))
@pytest.mark.filterwarnings("ignore::preceptor.simulation.zones.SmallBox")
def test_parity(number):
    case, adapter = json.loads(GOLDEN.read_text())["cases"][number], load_adapter("schooling")
    assert adapter is not None
    line = check_case("schooling", str(number), case, adapter.run)
    assert line.status == "ok", line.reason
    assert line.absolute < 1e-13


def test_without_interaction_every_fish_goes_its_own_way():
    """Headings diffuse alone: after a step with noise sigma each is as far from the old as one drawn by itself."""
    case = no_interaction(CASES["swarm"].sized(2000))
    rng, own = np.random.default_rng(0), np.random.default_rng(0)
    first, second = list(simulate(case.start(rng), case.zones, rng, steps=1, path="numpy"))
    case.start(own)
    alone = first.velocities + 0.2 * own.standard_normal((2000, 3))
    np.testing.assert_allclose(second.velocities, alone / np.linalg.norm(alone, axis=1, keepdims=True), atol=1e-12)


def test_miniature():
    run = miniature(0, "smoke")
    assert run == miniature(0, "smoke")
    assert all(set(arm) == set(MEASURED) and all(map(math.isfinite, arm.values())) for arm in run.arms.values())
    assert list(run.arms) == ["untrained-random-walk", "swarm", "torus-schooling", "dynamic-parallel", "schooling", "mill-schooling"]


def test_the_mechanism_is_real():
    """Without interaction 40 fish keep to no direction; with it they have one."""
    case = CASES["highly-parallel"].sized(40)
    case = type(case)(zones=case.zones, agents=40, steps=300)
    assert settled(case, seed=0, every=10)["polarization"] > 0.9
    assert settled(no_interaction(case), seed=0, every=10)["polarization"] < 0.5


def test_a_mill_goes_on_turning_where_the_turn_is_exact():
    """Fish that start as a ring still mill after 60 units of time, some five rounds; with the published turn in the same zones, less."""
    case = replace(CASES["mill"], agents=60, steps=600)
    arc = settled(case, seed=0, every=20, centroid="circular")["rotation"]
    chord = settled(replace(case, zones=replace(case.zones, turn="nlerp")), seed=0, every=20, centroid="circular")["rotation"]
    assert arc > 0.7
    assert chord < arc - 0.1
