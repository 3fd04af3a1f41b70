"""Regions of tasks that compete."""

from __future__ import annotations

import numpy as np
import pytest

from preceptor.teachers.riac import RIACTeacher, region_interest
from preceptor.teachers.tasks import Box

SQUARE = Box([0.0, 0.0], [1.0, 1.0])


def teach(teacher, returns, episodes):
    tasks = []
    for k in range(episodes):
        tasks.append(teacher.sample())
        teacher.update(tasks[-1], returns(tasks[-1], k))
    return np.array(tasks)


def corner(x, k):
    """Returns rise in a corner only."""
    return min(1.0, k / 2000) if (x < 0.4).all() else 0.0


def test_interest_by_hand():
    assert region_interest([]) == region_interest([1.0, 5.0]) == 0.0
    assert region_interest([1.0, 2.0, 9.0]) == 7.5  # two, one
    assert region_interest([100.0, 1.0, 2.0, 9.0], window=3) == 7.5
    returns = np.random.default_rng(0).random(50).tolist()
    for n in range(3, 51):
        last = returns[:n][-20:]
        second = len(last) // 2
        expected = abs(sum(last[:-second]) / (len(last) - second) - sum(last[-second:]) / second)
        assert region_interest(returns[:n], window=20) == pytest.approx(expected)


def test_leaves_cover_the_box_once_and_hold_their_tasks():
    teacher = RIACTeacher(SQUARE, seed=0)
    teach(teacher, corner, 2500)
    leaves = teacher.leaves
    assert len(leaves) > 3
    assert sum(np.prod(leaf.high - leaf.low) for leaf in leaves) == pytest.approx(1.0)
    for point in np.random.default_rng(0).random((200, 2)):
        assert sum(((leaf.low < point) & (point < leaf.high)).all() for leaf in leaves) == 1
    for region in teacher.regions:
        assert (region.high - region.low >= 1 / 15 - 1e-12).all()
        assert len(region.pairs) <= 201
        assert all(((region.low <= x) & (x <= region.high)).all() for x, _ in region.pairs)
        assert region.interest == region_interest([r for _, r in region.pairs])
        if region.children:
            assert [len(teacher.regions[i].low) for i in region.children] == [2, 2]
    assert len(teacher.regions) == 2 * len(leaves) - 1  # parents go on competing


def test_more_tasks_where_returns_change():
    tasks = teach(RIACTeacher(SQUARE, seed=0), corner, 2000)
    assert (tasks[1000:] < 0.4).all(1).mean() > 2 * 0.16


def test_constant_returns_interest_nobody():
    teacher = RIACTeacher(SQUARE, mutation_rate=0.0, random_rate=0.0, leaves_only=True, seed=0)
    teach(teacher, lambda x, k: 0.5, 900)
    assert {region.interest for region in teacher.regions} == {0.0}
    drawn = [teacher.sample() for _ in range(3000)]
    share = [np.mean([((leaf.low <= x) & (x <= leaf.high)).all() for x in drawn]) for leaf in teacher.leaves]
    np.testing.assert_allclose(share, 1 / len(teacher.leaves), atol=0.04)


def test_a_leaf_that_cannot_be_split_forgets_its_oldest_quarter():
    teacher = RIACTeacher(SQUARE, max_size=40, seed=0)
    for k in range(41):
        teacher.update(np.array([0.5, 0.5]), float(k))
    root = teacher.regions[0]
    assert len(teacher.regions) == 1
    assert [r for _, r in root.pairs] == [float(k) for k in range(10, 41)]
    assert root.interest == region_interest([float(k) for k in range(10, 41)])
    assert root.pairs.maxlen == 41
    rough = RIACTeacher(SQUARE, max_size=40, min_side=0.6, seed=0)
    teach(rough, corner, 41)
    assert len(rough.regions) == 1  # no cut leaves both sides 0.6


def split_at(constant):
    teacher = RIACTeacher(SQUARE, proposals=300, constant_factor=constant, seed=0)
    rng = np.random.default_rng(0)
    for k in range(201):
        x = rng.random(2)
        teacher.update(x, float(x[0] > 0.3) * k / 200)
    left = teacher.regions[1]
    side = int((left.high < 1).argmax())
    return side, float(left.high[side]), len(left.pairs)


def test_the_cut_tells_progress_apart():
    side, threshold, count = split_at(constant=False)
    assert side == 0
    assert 0.2 < threshold < 0.5
    assert 10 <= count <= 191
    assert split_at(constant=True) != (side, threshold, count)


def test_kinds_of_tasks():
    worst = np.array([0.9, 0.1])

    def taught(**rates):
        teacher = RIACTeacher(SQUARE, mutation=0.01, seed=0, **rates)
        for _ in range(20):
            teacher.update(np.array([0.2, 0.2]), 1.0)
        teacher.update(worst, -1.0)
        return np.array([teacher.sample() for _ in range(1500)])

    assert np.abs(taught(mutation_rate=1.0, random_rate=0.0) - worst).max() < 0.06
    near = (np.abs(taught() - worst).max(1) < 0.05).mean()
    assert 0.08 < near - 0.01 * 0.9 < 0.13  # one in ten
    assert (np.abs(taught(mutation_rate=0.0) - worst).max(1) < 0.05).mean() < 0.03
    wide = RIACTeacher(SQUARE, mutation=50.0, mutation_rate=1.0, random_rate=0.0, seed=0)
    wide.update(worst, 0.0)
    tasks = np.array([wide.sample() for _ in range(50)])
    assert ((tasks >= 1e-5) & (tasks <= 1 - 1e-5)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_size": 10}, "max_size: expected at least"),
        ({"proposals": 0}, "proposals: expected at least 1"),
        ({"window": 1}, "window: expected at least"),
        ({"mutation_rate": 0.6, "random_rate": 0.6}, "rates: expected"),
        ({"min_side": 2.0}, "min_side: expected"),
    ],
)
def test_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        RIACTeacher(SQUARE, seed=0, **options)
