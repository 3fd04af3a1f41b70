"""The grid of skills."""

from __future__ import annotations

import numpy as np
import pytest

from preceptor.miniature.toy_grid import ToyGrid, teach
from preceptor.teachers.tasks import RandomTeacher


def practise(grid, x, times):
    return [grid(np.array(x)) for _ in range(times)]


def test_a_skill_opens_when_one_beside_it_is_known():
    grid = ToyGrid(4, 2)
    assert practise(grid, [0.3, 0.3], 5) == [0.0] * 5
    assert practise(grid, [0.1, 0.1], 74)[-1] == 0.74
    assert grid(np.array([0.3, 0.3])) == 0.0
    grid(np.array([0.0, 0.0]))
    for x in ([0.3, 0.1], [0.1, 0.3], [0.3, 0.3]):  # across the corner too
        assert grid(np.array(x)) == 0.01
    assert grid(np.array([0.6, 0.1])) == 0.0
    assert grid.mastered == 0.0
    assert practise(grid, [0.1, 0.1], 60)[-1] == 1.0  # no more than 100
    assert grid.mastered == 100 / 16
    assert grid(np.array([1.0, 1.0])) == 0.0


def test_outside_its_extent_nothing_is_learned():
    grid = ToyGrid(2, 2, extent=0.5)
    assert practise(grid, [0.1, 0.51], 200) == [0.0] * 200
    assert practise(grid, [0.2, 0.2], 3) == [0.01, 0.02, 0.03]
    assert grid.counters.sum() == 3


def test_one_and_three_sides():
    for d in (1, 3):
        grid = ToyGrid(3, d)
        teach(RandomTeacher(grid.box, seed=0), grid, episodes=20)
        assert grid.counters.shape == (3,) * d
        assert grid.counters.sum() == grid.counters[(0,) * d]


def test_bad_numbers():
    for options, message in (((0, 2), "n: expected at least 1"), ((2, 0), "d: expected at least 1")):
        with pytest.raises(ValueError, match=message):
            ToyGrid(*options)
    with pytest.raises(ValueError, match=r"extent: expected a number in \(0, 1\], got 0"):
        ToyGrid(2, 2, extent=0)
