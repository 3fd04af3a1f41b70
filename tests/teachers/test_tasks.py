"""Boxes of tasks, named parameters, random tasks and a window moved by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from preceptor.teachers.mixtures import MixtureTeacher
from preceptor.teachers.riac import RIACTeacher
from preceptor.teachers.tasks import Box, OracleTeacher, Parameters, RandomTeacher, normalised, proportional

BOX = Box([-1.0, 2.0, 0.0], [3.0, 2.0, 0.5])  # the second side has no length

TEACHERS = {
    "random": lambda seed: RandomTeacher(BOX, seed=seed),
    "oracle": lambda seed: OracleTeacher(BOX, step=[0.5, 0.0, -0.1], threshold=0.3, step_rate=10, seed=seed),
    "alp": lambda seed: MixtureTeacher(BOX, fit_rate=40, ks=(2, 3), seed=seed),
    "covariance": lambda seed: MixtureTeacher(BOX, progress="covariance", fit_rate=40, ks=(2, 3), seed=seed),
    "absolute": lambda seed: MixtureTeacher(BOX, progress="absolute covariance", fit_rate=40, ks=(2,), seed=seed),
    "riac": lambda seed: RIACTeacher(BOX, max_size=40, seed=seed),
}
EVERY = pytest.mark.parametrize("name", TEACHERS)


class Student:
    """Gets better at tasks with a large first coordinate."""

    def __init__(self):
        self.times = 0

    def __call__(self, x):
        self.times += 1
        return float(x[0] / 3 * min(1, self.times / 100))


def course(teacher, student, episodes):
    tasks = []
    for _ in range(episodes):
        tasks.append(teacher.sample())
        teacher.update(tasks[-1], student(tasks[-1]))
    return np.array(tasks)


@EVERY
def test_tasks_stay_in_the_box_and_a_seed_is_a_course(name):
    tasks = course(TEACHERS[name](7), Student(), 200)
    assert tasks.shape == (200, 3)
    assert (tasks >= BOX.low).all()
    assert (tasks <= BOX.high).all()
    assert (tasks[:, 1] == 2.0).all()
    np.testing.assert_array_equal(tasks, course(TEACHERS[name](7), Student(), 200))
    assert (tasks[:, 0] != course(TEACHERS[name](0), Student(), 200)[:, 0]).any()  # 0 is a seed like others
    np.testing.assert_array_equal(course(TEACHERS[name](0), Student(), 50), course(TEACHERS[name](0), Student(), 50))


@EVERY
def test_a_teacher_goes_on_from_what_was_saved(name):
    teacher, student = TEACHERS[name](3), Student()
    course(teacher, student, 130)
    file = io.BytesIO()
    torch.save(teacher.state_dict(), file)
    file.seek(0)
    other, twin = TEACHERS[name](9), Student()
    other.load_state_dict(torch.load(file, weights_only=True))
    twin.times = student.times
    np.testing.assert_array_equal(course(teacher, student, 120), course(other, twin, 120))


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_return_that_is_no_number_is_refused(name, bad):
    teacher = TEACHERS[name](0)
    with pytest.raises(ValueError, match="return: expected a finite number"):
        teacher.update(teacher.sample(), bad)


def test_a_box_and_its_unit_cube():
    assert BOX.dimensions == 2
    x = BOX.from_unit(np.array([0.25, 1.0]))
    np.testing.assert_allclose(x, [0.0, 2.0, 0.5])
    np.testing.assert_allclose(BOX.to_unit(x), [0.25, 1.0])
    for low, high in (([0.0], [0.0]), ([1.0], [0.0]), ([0.0], [np.inf]), ([0.0, 1.0], [2.0])):
        with pytest.raises(ValueError, match="box: expected"):
            Box(low, high)
    for task in ([0.0, 2.0], [0.0, 2.5, 0.1], [np.nan, 2.0, 0.1]):
        with pytest.raises(ValueError, match="task: expected one inside"):
            BOX.to_unit(np.array(task))


def test_parameters_of_any_kind():
    space = Parameters({"height": (0.5, 2.0), "steps": range(3, 9, 2), "shape": ["round", "flat"]})
    teacher = RandomTeacher(space.box, seed=0)
    seen = [space.decode(teacher.sample()) for _ in range(300)]
    assert {each["steps"] for each in seen} == {3, 5, 7}
    counts = [sum(each["shape"] == shape for each in seen) for shape in ("round", "flat")]
    assert min(counts) > 120
    assert all(0.5 <= each["height"] <= 2.0 for each in seen)
    assert space.decode(np.array(space.box.high)) == {"height": 2.0, "steps": 7, "shape": "flat"}
    for kinds in ({}, {"shape": []}, {"steps": range(0)}):
        with pytest.raises(ValueError, match="kinds: expected at least one parameter, each with a value"):
            Parameters(kinds)


def test_returns_and_choices():
    assert [normalised(r, (-150, 350)) for r in (-200, -150, 100, 350, 400)] == [0, 0, 0.5, 1, 1]
    assert normalised(-200, None) == -200
    rng = np.random.default_rng(0)
    drawn = np.bincount([proportional(np.array([0.0, 1.0, 3.0]), rng) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(drawn, [0, 0.25, 0.75], atol=0.03)
    even = np.bincount([proportional(np.zeros(3), rng) for _ in range(3000)]) / 3000
    np.testing.assert_allclose(even, [1 / 3] * 3, atol=0.04)


def test_random_tasks_are_uniform():
    tasks = course(RandomTeacher(BOX, seed=0), Student(), 4000)
    np.testing.assert_allclose(np.histogram(tasks[:, 0], 4, (-1, 3))[0] / 4000, [0.25] * 4, atol=0.03)


def test_the_window_moves_on_time_and_stops_at_the_end():
    teacher = OracleTeacher(Box([0.0, 0.0], [3.0, 6.0]), step=[0.4, -0.9], threshold=5.0, step_rate=3, seed=0)
    lows = []
    for k in range(60):
        x = teacher.sample()
        assert (teacher.low <= x).all()
        assert (x <= teacher.low + np.array([0.5, 1.0])).all()
        teacher.update(x, 5.0 if k < 6 else 6.0)  # 5.0 does not exceed the threshold
        lows.append(teacher.low.copy())
    moved = [k + 1 for k in range(1, 60) if (lows[k] != lows[k - 1]).any()]
    assert moved[0] == 9
    assert all(k % 3 == 0 for k in moved)
    np.testing.assert_allclose(lows[0], [0.0, 5.0])
    np.testing.assert_allclose(lows[8], [0.4, 4.1])
    np.testing.assert_allclose(lows[-1], [2.5, 0.0])
    for options, message in (
        ({"step": [0.1]}, "step: expected 2 finite numbers"),
        ({"step": [0.1, 0.1], "window": 0.0}, r"window: expected a number in \(0, 1\]"),
        ({"step": [0.1, 0.1], "step_rate": 0}, "step_rate: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            OracleTeacher(Box([0.0, 0.0], [3.0, 6.0]), seed=0, **options)
