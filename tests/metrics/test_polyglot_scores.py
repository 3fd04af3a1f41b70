"""Recovered gaps, the sign trap, and polyglot scores."""

import math

import numpy as np
import pytest
from scipy import stats

from preceptor.metrics.polyglot import by_teacher, polyglot_score, polyglot_table, robustness, size_correlation, spearman
from preceptor.metrics.recovered import Extrinsic, extrinsic, pgr


def row(teacher, language, eval_language, result):
    return {"teacher": teacher, "language": language, "eval_language": eval_language, "result": result}


BASE = [{"eval_language": "x", "result": 0.2}, {"eval_language": "x", "result": 0.4}, {"eval_language": "y", "result": 0.1}]
REFERENCE = [{"eval_language": "x", "result": 0.8}, {"eval_language": "y", "result": 0.5}]


def measured(teachers=4, seed=0):
    """A table of both sides."""
    draws = np.random.default_rng(seed)
    data = [
        {"teacher": f"t{i}", "language": language, "distinct_prompts": draws.random(), "distinct_responses": draws.random()}
        | {"rubric": 5 * draws.random(), "perplexity": 1 + draws.random(), "items": 7}
        for i in range(teachers)
        for language in "xy"
    ]
    gains = extrinsic([row(one["teacher"], one["language"], one["language"], draws.random()) for one in data], BASE, REFERENCE)
    return data, gains


def test_the_gap_is_none_at_the_base_all_at_the_reference_and_unbounded():
    assert pgr(0.2, 0.2, 0.6) == 0
    assert pgr(0.6, 0.2, 0.6) == 1
    assert pgr(1.0, 0.2, 0.6) == pytest.approx(2)
    assert pgr(0.0, 0.2, 0.6) == pytest.approx(-0.5)


@pytest.mark.parametrize("gap", [-0.02, 0.0, 0.0099])
def test_a_reference_that_is_not_better_is_flagged(gap):
    student, base, reference = 0.45, 0.4, 0.4 + gap
    with pytest.raises(ValueError, match=r"reference: expected more than the base 0\.4 \+ 0\.01, got 0\."):
        pgr(student, base, reference)
    assert math.isnan(pgr(student, base, reference, on_inverted="nan"))
    assert pgr(student, base, reference, on_inverted="gain") == student - base
    assert pgr(student, base, reference, on_inverted="floor") == (student - base) / 0.01
    if gap:
        assert pgr(student, base, reference, on_inverted="ratio") == (student - base) / (reference - base)
    else:
        with pytest.raises(ValueError, match="another value than the base"):
            pgr(student, base, reference, on_inverted="ratio")


@pytest.mark.parametrize("choice", ["raise", "nan", "gain", "floor", "ratio"])
def test_a_better_reference_gives_the_same_whatever_is_chosen(choice):
    assert pgr(0.5, 0.4, 0.42, on_inverted=choice) == pytest.approx(5)


def test_epsilon_says_what_better_is():
    with pytest.raises(ValueError, match="reference"):
        pgr(0.5, 0.4, 0.42, epsilon=0.03)
    assert pgr(0.5, 0.4, 0.42, epsilon=0.04, on_inverted="floor") == pytest.approx(2.5)


def test_bad_results_are_refused():
    with pytest.raises(ValueError, match="finite numbers, got student nan"):
        pgr(math.nan, 0.1, 0.5)
    with pytest.raises(ValueError, match="epsilon: expected a number > 0, got 0"):
        pgr(0.2, 0.1, 0.5, epsilon=0)
    with pytest.raises(ValueError, match="on_inverted: expected raise, nan, gain, floor or ratio, got 'keep'"):
        pgr(0.2, 0.1, 0.5, on_inverted="keep")


def test_the_mean_is_over_the_rows_of_the_language():
    rows = [row("B", "y", "y", 0.3), row("A", "x", "x", 0.5), row("A", "x", "x", 0.7), row("A", "x", "en", 99.0), row("A", "y", "en", 0.2)]
    found = extrinsic(rows, BASE, REFERENCE)
    assert [(one.teacher, one.language, one.foreign) for one in found] == [("A", "x", False), ("A", "y", True), ("B", "y", False)]
    first = found[0]
    assert (first.result, first.base, first.reference) == pytest.approx((0.6, 0.3, 0.8))
    assert first.pgr == pytest.approx(0.6)
    assert first.gain == pytest.approx(0.3)
    assert found[1].pgr == pytest.approx(0.25)  # of all rows, where none is in the language
    assert not first.inverted


def test_a_language_without_anchors_or_with_inverted_ones_is_named():
    with pytest.raises(ValueError, match="base: expected results in 'z', got x, y"):
        extrinsic([row("A", "z", "z", 0.3)], BASE, REFERENCE)
    with pytest.raises(ValueError, match="reference: expected results in 'y', got x"):
        extrinsic([row("A", "y", "y", 0.3)], BASE, REFERENCE[:1])
    with pytest.raises(ValueError, match=r"language y: reference: expected more than the base 0\.1 \+ 0\.01, got 0\.1,"):
        extrinsic([row("A", "y", "y", 0.3)], BASE, BASE)
    with pytest.raises(ValueError, match="students: expected at least one row"):
        extrinsic([], BASE, REFERENCE)
    with pytest.raises(ValueError, match=r"row 0 .*: expected a column 'eval_language'"):
        extrinsic([{"teacher": "A", "language": "x", "result": 1.0}], BASE, REFERENCE)


def test_the_sign_trap():
    """A reference 0.02 below the base turns the order of students around; the guard fires, and the gain keeps the order."""
    draws = np.random.default_rng(0)
    students = [row(f"t{i}", language, language, draws.random()) for i in range(8) for language in "xy"]
    below = [{"eval_language": "x", "result": 0.28}, {"eval_language": "y", "result": 0.08}]
    with pytest.raises(ValueError, match="language x: reference"):
        extrinsic(students, BASE, below)
    for choice, sign in (("ratio", -1), ("gain", 1), ("floor", 1)):
        found = extrinsic(students, BASE, below, on_inverted=choice)
        assert all(one.inverted for one in found)
        for language in "xy":
            part = [one for one in found if one.language == language]
            assert spearman([one.result for one in part], [one.pgr for one in part]) == pytest.approx(sign)


def test_scores_mix_both_sides():
    z, recovered = np.array([0.5, -1.0]), np.array([2.0, 0.2])
    assert np.array_equal(polyglot_score(z, recovered, 0), recovered)
    assert np.array_equal(polyglot_score(z, recovered, 1), z)
    assert np.allclose(polyglot_score(z, recovered), (z + recovered) / 2)
    assert np.allclose(polyglot_score(z, recovered, 0.25), [1.625, -0.1])
    assert np.array_equal(polyglot_score(z, np.array([math.nan, 1.0]), 1), z)
    with pytest.raises(ValueError, match=r"alpha: expected a number in \[0, 1\], got 1.5"):
        polyglot_score(z, recovered, 1.5)
    with pytest.raises(ValueError, match=r"pgr: expected shape \(2,\) like z, got \(3,\)"):
        polyglot_score(z, [1, 2, 3])


def test_the_table_joins_by_name_not_by_place():
    data, gains = measured()
    table = polyglot_table(data, gains[::-1], alpha=0.3)
    assert [(one["teacher"], one["language"]) for one in table] == [(one["teacher"], one["language"]) for one in data]
    known = {(one.teacher, one.language): one for one in gains}
    for one in table:
        assert one["pgr"] == known[one["teacher"], one["language"]].pgr
        assert one["pg"] == pytest.approx(0.3 * one["z"] + 0.7 * one["pgr"])
        assert one["items"] == 7
    assert sum(one["z"] for one in table) == pytest.approx(0, abs=1e-12)


def test_names_that_differ_between_tables_are_told():
    data, gains = measured()
    renamed = [{**one, "teacher": one["teacher"].replace("t3", "t-3")} for one in data]
    with pytest.raises(ValueError, match=r"intrinsic: expected a row of t3 / x, got none \(nearest: t-3 / x\)"):
        polyglot_table(renamed, gains)
    with pytest.raises(ValueError, match="gains: expected a row of t3 / y, got none"):
        polyglot_table(data, gains[:-1])
    with pytest.raises(ValueError, match="intrinsic: expected t0 / x once, got it 2 times"):
        polyglot_table([*data, data[0]], gains)


def test_teachers_are_averaged_over_languages_best_first():
    data, gains = measured()
    table = polyglot_table(data, gains)
    means = by_teacher(table)
    assert [one["pg"] for one in means] == sorted((one["pg"] for one in means), reverse=True)
    best = [one for one in table if one["teacher"] == means[0]["teacher"]]
    for name in ("z", "pgr", "pg", "gain", "result"):
        assert means[0][name] == pytest.approx((best[0][name] + best[1][name]) / 2)
    assert means[0]["languages"] == 2


def test_languages_without_a_recovered_gap_are_counted_out():
    data, gains = measured(3)
    holes = [
        Extrinsic(**{**vars(one), "pgr": math.nan, "inverted": True}) if one.language == "y" or one.teacher == "t1" else one
        for one in gains
    ]
    means = by_teacher(polyglot_table(data, holes))
    assert [(one["languages"], one["inverted"]) for one in means] == [(1, 1), (1, 1), (0, 2)]
    assert means[-1]["teacher"] == "t1"
    assert math.isnan(means[-1]["pg"])
    assert means[0]["pgr"] == next(one.pgr for one in gains if one.teacher == means[0]["teacher"] and one.language == "x")


def test_rank_correlation_agrees_with_scipy():
    draws = np.random.default_rng(2)
    x, y = draws.integers(0, 5, 20), draws.random(20)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(spearman([1], [2]))
    with pytest.raises(ValueError, match="finite"):
        spearman([1, math.nan], [1, 2])
    with pytest.raises(ValueError, match="x, y"):
        spearman([1, 2, 3], [1, 2])


def test_robustness_compares_orders_over_alpha():
    data, gains = measured(6)
    table = polyglot_table(data, gains)
    found = robustness(table)
    assert found.shape == (5, 5)
    assert np.allclose(found, found.T)
    assert np.allclose(np.diag(found), 1)
    means = by_teacher(table)
    assert found[0, 4] == pytest.approx(stats.spearmanr([one["pgr"] for one in means], [one["z"] for one in means]).statistic)
    same = [{**one, "pgr": one["z"]} for one in table]
    assert np.allclose(robustness(same), 1)


def test_sizes_by_name():
    data, gains = measured()
    table = polyglot_table(data, gains)
    order = [one["teacher"] for one in by_teacher(table)]
    sizes = {name: 10.0**-place for place, name in enumerate(order)} | {"unused": 5.0}
    assert size_correlation(table, sizes) == pytest.approx(1)
    assert size_correlation(table, {name: math.log(size) for name, size in sizes.items()}) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"sizes: expected 't0', got none \(nearest: t-0\)"):
        size_correlation(table, {"t-0": 1.0, "t1": 1.0, "t2": 1.0, "t3": 1.0})
