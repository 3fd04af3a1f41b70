"""The card's simulation, and the policies of the miniature."""

import math
from dataclasses import replace

import numpy as np
import pytest

from preceptor.education.personalise.policies import Policy, School, best_grains, break_even, simulate
from preceptor.methods.teacher_in_the_loop import miniature

LARGE = School(classes=300)


@pytest.mark.parametrize(("grain", "match", "variants"), [(1, 0.17, 1.0), (2, 0.32, 3.0), (3, 0.43, 7.8), (4, 0.61, 25.4)])
def test_match_and_variants_are_those_of_the_card(grain, match, variants):
    made = simulate(Policy(grain=grain), LARGE)
    assert made.match == pytest.approx(match, abs=0.012)
    assert made.variants == pytest.approx(variants, abs=0.8)  # the card's own error: 20 classes with a standard deviation of 1.7
    assert made.reviewed == made.variants
    assert made.errors == 0.0


def test_break_even_costs_are_those_of_the_card():
    results = [simulate(Policy(grain=grain), LARGE) for grain in range(5)]
    assert break_even(results) == pytest.approx([0.17, 0.075, 0.023, 0.010], rel=0.06)
    assert best_grains(results, [0.005, 0.015, 0.05, 0.12, 0.2]) == [4, 3, 2, 1, 0]
    for number, limit in enumerate(break_even(results), start=1):
        fine, coarse = results[number], results[:number]
        assert all(fine.value(0.99 * limit) > other.value(0.99 * limit) for other in coarse)
        assert any(fine.value(1.01 * limit) < other.value(1.01 * limit) for other in coarse)


def test_exception_review_is_the_arithmetic_of_recall_and_false_alarms():
    made = simulate(Policy(grain=4, gate="exceptions"), LARGE)
    assert made.errors == pytest.approx(0.15 * 0.2, abs=0.006)
    assert made.reviewed / made.variants == pytest.approx(0.15 * 0.8 + 0.85 * 0.1, abs=0.01)
    assert simulate(Policy(grain=4, gate="nobody"), LARGE).errors == pytest.approx(0.15, abs=0.012)
    assert simulate(Policy(grain=4, gate="sample", share=0.5), LARGE).errors == pytest.approx(0.075, abs=0.012)
    checks = simulate(Policy(grain=4, gate="checks"), LARGE)
    assert checks.errors == made.errors
    assert checks.match < made.match
    perfect = replace(LARGE, recall=1.0, false_alarm=0.0)
    assert simulate(Policy(grain=4, gate="exceptions"), perfect).errors == 0.0


def test_limits():
    alone = simulate(Policy(grain=3), School(students=1, topics=1))
    assert (alone.match, alone.variants, alone.bits) == (1.0, 1.0, 0.0)
    original = simulate(Policy(grain=0))
    assert (original.match, original.reviewed, original.errors) == (0.0, 0.0, 0.0)
    fine = simulate(Policy(grain=4), School(references=5000, topics=1))
    assert fine.bits == pytest.approx(math.log2(30), abs=0.05)
    assert simulate(Policy(grain=2), School(groups=8)).match == pytest.approx(simulate(Policy(grain=3)).match)
    assert simulate(Policy(grain=2), School(groups=1)).match == pytest.approx(simulate(Policy(grain=1)).match)


def test_all_policies_meet_the_same_students():
    made = [simulate(Policy(grain=4, gate=gate), seed=3) for gate in ("nobody", "teacher", "exceptions", "sample")]
    assert len({(one.match, one.variants) for one in made}) == 1
    assert made[0] == simulate(Policy(grain=4, gate="nobody"), seed=3) != simulate(Policy(grain=4, gate="nobody"), seed=4)


def test_match_by_hand():
    students = np.random.default_rng([5, 0])
    school = School(classes=1, students=4, topics=3, references=2)
    weights = students.dirichlet([0.5] * 3, size=4)
    names = students.dirichlet([0.3] * 2, size=(4, 3))
    expected = []
    for w, r in zip(weights.tolist(), names.tolist(), strict=True):
        topic = w.index(max(w))
        expected.append(w[topic] * (1 + max(r[topic])))
    assert simulate(Policy(grain=4), school, seed=5).match == pytest.approx(sum(expected) / 4)
    best = max(sum(w[topic] for w in weights.tolist()) for topic in range(3)) / 4
    assert simulate(Policy(grain=1), school, seed=5).match == pytest.approx(best)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Policy(grain=5), "grain: expected 0 to 4, got 5"),
        (lambda: Policy(grain=1, gate="me"), "gate: expected nobody, checks, teacher, exceptions or sample, got 'me'"),
        (lambda: School(students=0), "students: expected at least 1, got 0"),
        (lambda: School(error=1.2), "error: expected a number in [0, 1], got 1.2"),
        (lambda: School(topic_spread=0.0), "topic_spread: expected a number above 0, got 0.0"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match="expected") as error:
        make()
    assert str(error.value) == message


def test_miniature():
    found = miniature(0, "smoke")
    assert found == miniature(0, "smoke")
    assert found.arms["teacher-in-the-loop"]["reviewed"] < found.arms["review-references"]["reviewed"]
