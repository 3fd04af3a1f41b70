"""theory-of-mind: the digits that a student sees in part, and its teacher's predictions."""

from __future__ import annotations

import numpy as np

from preceptor.methods.theory_of_mind import digits_lesson, miniature, predicted


def test_true_explanations_help_and_misleading_ones_do_not():
    true, false = (digits_lesson(0, watched=100, test=300, trees=10, misleading=share) for share in (0.0, 1.0))
    assert np.array_equal(true.without["test"], false.without["test"])
    assert true.helped["test"].mean() > true.without["test"].mean() + 0.02
    assert false.helped["test"].mean() < false.without["test"].mean()


def test_a_mental_model_learns_from_watched_answers_alone():
    lesson = digits_lesson(1, watched=200, test=300, trees=30)
    alone, helped = predicted(lesson, 200)
    for p, right in ((alone, lesson.without["test"]), (helped, lesson.helped["test"])):
        assert p.shape == right.shape
        assert p[right].mean() > p[~right].mean() + 0.05
    lesson.without["test"][:] = True
    assert np.array_equal(predicted(lesson, 200)[0], alone)


def test_answers_dealt_anew_tell_nothing():
    lesson = digits_lesson(1, watched=200, test=300, trees=30)
    p, right = predicted(lesson, 200, shuffle=0)[0], lesson.without["test"]
    assert p[right].mean() < p[~right].mean() + 0.05


def test_one_sided_records_tell_nothing_apart():
    lesson = digits_lesson(1, watched=20, test=30, trees=5)
    lesson.without["watched"][:] = True
    assert np.array_equal(predicted(lesson, 20)[0], np.ones(30))


def test_misleading_orders_mirror_utility_around_the_line():
    arms = miniature(0, "smoke").arms
    assert arms["random"]["gain"] == 0
    assert arms["errors"]["gain"] >= max(arms[name]["gain"] for name in ("deceptive", "random"))
    assert set(arms["theory-of-mind"]) == {"accuracy_20", "accuracy_40", "accuracy_80", "gain"}
