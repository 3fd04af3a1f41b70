"""The motion: against a loop written from the equations, its symmetries, and one run on every path."""

import math
import warnings
from dataclasses import replace

import numba
import numpy as np
import pytest

from preceptor.metrics.entropy import unit
from preceptor.simulation.motion import simulate, step
from preceptor.simulation.zones import CASES, SmallBox, Zones, uniform_start, wrapped

ZONES = Zones(box=8, r_repulsion=1, r_orientation=2.2, r_attraction=3.9, max_turn=0.3, noise=0, blind_angle=60, orientation_weight=0.7)
PATHS = pytest.mark.parametrize("path", ["numpy", "compiled"])


def school(number=40, zones=ZONES, seed=0):
    return uniform_start(number, zones, np.random.default_rng(seed))


def slow_step(positions, velocities, zones):
    """One step without noise, a fish at a time, from the equations."""
    headings = [v / np.linalg.norm(v) for v in velocities]
    after = []
    for i, u in enumerate(headings):
        avoid, align, approach, avoids = np.zeros(3), np.zeros(3), np.zeros(3), False
        for j, other in enumerate(headings):
            apart = positions[j] - positions[i]
            apart = apart - zones.box * np.round(apart / zones.box)
            distance = math.sqrt(sum(apart**2))
            if i == j or distance < 1e-10:
                continue
            e = apart / distance
            if zones.blind_angle > 0 and not u @ e > -math.cos(math.radians(zones.blind_angle)):
                continue
            if distance < zones.r_repulsion:
                avoid, avoids = avoid - e, True
            elif distance < zones.r_orientation:
                align = align + other
            elif distance < zones.r_attraction:
                approach = approach + e
        wish = avoid if avoids else zones.orientation_weight * align + approach
        new = u
        if np.linalg.norm(wish) >= 1e-10:
            target = wish / np.linalg.norm(wish)
            angle = math.acos(max(-1, min(1, u @ target)))
            if angle <= zones.max_turn:
                new = target
            elif zones.turn == "nlerp":
                t = zones.max_turn / angle
                new = u * (1 - t) + target * t
            else:
                new = (math.sin(angle - zones.max_turn) * u + math.sin(zones.max_turn) * target) / math.sin(angle)
        after.append(zones.speed * new / np.linalg.norm(new))
    return np.mod(positions + zones.dt * np.array(after), zones.box), np.array(after)


@PATHS
@pytest.mark.parametrize(
    "changes", [{}, {"turn": "slerp"}, {"blind_angle": -1, "speed": 2.5}, {"blind_angle": 150, "max_turn": 2}, {"box": 40}]
)
def test_steps_equal_a_loop_over_the_equations(path, changes):
    zones = replace(ZONES, **changes)
    state = slow = school(50, replace(zones, box=8))
    for _ in range(4):
        state, slow = step(*state, zones, path=path), slow_step(*slow, zones)
    for found, expected in zip(state, slow, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("number", [1, 2, 60, 1300])
def test_one_seed_is_one_run_on_every_path(name, number):
    runs = []
    for path in ("numpy", "compiled", "compiled"):
        case, rng = CASES[name].sized(number), np.random.default_rng(5)
        state = case.start(rng)
        for _ in range(12 if number < 100 else 3):
            state = step(*state, case.zones, rng, path=path)
        runs.append(state)
    for positions, velocities in runs[1:]:
        assert np.array_equal(positions, runs[0][0])
        assert np.array_equal(velocities, runs[0][1])


def test_cells_are_used_and_the_number_of_threads_changes_nothing():
    zones = replace(ZONES, box=40, noise=0.1)
    start = uniform_start(4000, zones, np.random.default_rng(0))
    before, found = numba.get_num_threads(), []
    try:
        for threads in (1, before):
            numba.set_num_threads(threads)
            found.append(step(*start, zones, np.random.default_rng(1), path="compiled"))
    finally:
        numba.set_num_threads(before)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], step(*start, zones, np.random.default_rng(1), path="numpy"))


@PATHS
def test_the_order_of_the_fish_does_not_matter(path):
    positions, velocities = school()
    order = np.random.default_rng(3).permutation(len(positions))
    plain, mixed = step(positions, velocities, ZONES, path=path), step(positions[order], velocities[order], ZONES, path=path)
    assert np.array_equal(plain[0][order], mixed[0])
    assert np.array_equal(plain[1][order], mixed[1])


def symmetries():
    yield "moved", lambda r: wrapped(r + np.array([3.3, 7.1, 0.2]), 8), lambda v: v
    yield "axes changed", lambda r: r[:, [2, 0, 1]], lambda v: v[:, [2, 0, 1]]
    yield "mirrored", lambda r: wrapped(r * [1, -1, 1], 8), lambda v: v * [1, -1, 1]


@pytest.mark.parametrize(("name", "place", "direction"), list(symmetries()))
def test_symmetries_of_the_box_commute_with_a_step(name, place, direction):
    positions, velocities = school()
    moved = step(place(positions), direction(velocities), ZONES)
    plain = step(positions, velocities, ZONES)
    np.testing.assert_allclose(moved[1], direction(plain[1]), atol=1e-12)
    apart = moved[0] - place(plain[0])
    np.testing.assert_allclose(apart - 8 * np.round(apart / 8), 0, atol=1e-12)


@PATHS
def test_speed_is_kept_and_a_turn_along_the_arc_is_never_too_large(path):
    zones = replace(ZONES, turn="slerp", speed=1.7)
    state = school(60, zones)
    largest = 0.0
    for _ in range(30):
        before, state = unit(state[1]), step(*state, zones, path=path)
        assert np.linalg.norm(state[1], axis=1) == pytest.approx(1.7, abs=1e-12)
        assert ((state[0] >= 0) & (state[0] < zones.box)).all()
        cosine = np.clip((before * state[1] / 1.7).sum(axis=1), -1, 1)
        largest = max(largest, np.arccos(cosine).max())
    assert largest == pytest.approx(0.3, abs=1e-6)


def pair(distance, first, second):
    return np.array([[0.0, 4, 4], [distance, 4, 4]]), np.array([first, second], dtype=float)


def test_two_near_fish_part_two_far_ones_meet():
    zones = replace(ZONES, blind_angle=0)
    for distance, sign in ((0.5, 1), (3.0, -1)):
        state = pair(distance, [0, 1, 0], [0, 1, 0])
        for _ in range(5):
            state = step(*state, zones)
        apart = state[0][1] - state[0][0]
        gap = np.linalg.norm(apart - 8 * np.round(apart / 8))
        assert sign * (gap - distance) > 0.1


def test_zones_are_half_open():
    zones = replace(ZONES, blind_angle=0, r_repulsion=1, r_orientation=2, r_attraction=3)

    def heading_of_first(distance):
        return step(*pair(distance, [0, 1, 0], [0, 0, 1]), zones)[1][0]

    avoid, follow, approach, stay = (heading_of_first(d) for d in (np.nextafter(1.0, 0), 1.0, 2.0, 3.0))
    assert avoid[0] < 0
    assert follow[2] > 0
    assert approach[0] > 0
    assert stay.tolist() == [0, 1, 0]


def test_what_lies_exactly_behind():
    """The chord does not turn at all while the turn is below a right angle, as published; the arc does."""
    state = pair(3.0, [-1, 0, 0], [1, 0, 0])
    zones = replace(ZONES, blind_angle=0)
    assert step(*state, zones)[1].tolist() == [[-1, 0, 0], [1, 0, 0]]
    turned = step(*state, replace(zones, turn="slerp"))[1]
    assert np.arccos(-turned[0, 0]) == pytest.approx(0.3)


@PATHS
def test_edge_cases(path):
    alone = np.array([[7.99, 1, 1]]), np.array([[2.0, 0, 0]])
    (positions,), (velocity,) = step(*alone, ZONES, path=path)
    assert positions == pytest.approx([0.09, 1, 1])
    assert velocity.tolist() == [1, 0, 0]
    together = np.full((3, 3), 2.0), np.eye(3)
    assert np.array_equal(step(*together, ZONES, path=path)[1], np.eye(3))  # at one place they do not see each other
    still = np.array([[4.0, 4, 4], [4.5, 4, 4]]), np.array([[0.0, 0, 0], [0, 1, 0]])
    assert np.isfinite(step(*still, ZONES, path=path)[1]).all()
    assert step(*still, replace(ZONES, blind_angle=150), path=path)[1][0, 0] < 0  # without a heading it sees all around
    assert wrapped(np.array([-1e-20, 8.0]), 8.0).tolist() == [0, 0]


def test_noise_is_one_draw_per_step_from_the_generator_given():
    zones = replace(ZONES, noise=0.2)
    state, rng, own = school(5), np.random.default_rng(7), np.random.default_rng(7)
    quiet = step(*state, ZONES)[1]
    found = step(*state, zones, rng)[1]
    np.testing.assert_allclose(found, unit(quiet + 0.2 * own.standard_normal((5, 3))), atol=1e-15)
    assert rng.bit_generator.state == own.bit_generator.state
    with pytest.raises(ValueError, match=r"^rng: expected a numpy Generator for the noise, got None$"):
        step(*state, zones)


def test_frames_come_at_the_start_at_every_interval_and_at_the_end():
    frames = list(simulate(school(), ZONES, steps=10, every=4))
    assert [frame.step for frame in frames] == [0, 4, 8, 10]
    later = list(simulate((frames[1].positions, frames[1].velocities), ZONES, steps=10, every=4, first=4))
    assert [frame.step for frame in later] == [8, 10]
    assert np.array_equal(later[-1].positions, frames[-1].positions)


def test_a_small_box_warns_once_and_a_large_one_does_not():
    with pytest.warns(
        SmallBox, match=r"^box: expected at least twice r_attraction, 7.8, got 7: of a far fish only the nearest image acts$"
    ):
        simulate(school(3, replace(ZONES, box=7)), replace(ZONES, box=7), steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(simulate(school(), ZONES, steps=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.zeros((2, 2))}, "positions: expected shape (N, 3) with N >= 1, got (2, 2)"),
        ({"positions": np.zeros((0, 3))}, "positions: expected shape (N, 3) with N >= 1, got (0, 3)"),
        ({"velocities": np.zeros((1, 3))}, "velocities: expected shape (2, 3) like positions, got (1, 3)"),
        ({"velocities": np.full((2, 3), np.inf)}, "velocities: expected finite numbers, got some that are not"),
        ({"positions": np.full((2, 3), 8.0)}, "positions: expected all in [0, 8), got 8 to 8"),
        ({"positions": np.full((2, 3), np.nan)}, "positions: expected all in [0, 8), got nan to nan"),
        ({"path": "gpu"}, "path: expected 'auto', 'numpy' or 'compiled', got 'gpu'"),
    ],
)
def test_bad_input(change, message):
    given = {"positions": np.ones((2, 3)), "velocities": np.ones((2, 3)), "zones": ZONES, **change}
    with pytest.raises(ValueError) as error:  # noqa: PT011
        step(**given)
    assert str(error.value) == message


def test_bad_numbers_of_steps():
    with pytest.raises(ValueError, match=r"^steps, every: expected steps >= 4 and every >= 1, got 3 and 1$"):
        simulate(school(), ZONES, steps=3, first=4)
