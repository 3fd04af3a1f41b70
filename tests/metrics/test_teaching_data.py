"""Distinctness, the intrinsic score, and what explains a benchmark."""

import math

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler

from preceptor.metrics.teaching_data import FEATURES, INTRINSIC, distinctness, explain, intrinsic_z


def rows(count=8, seed=0):
    draws = np.random.default_rng(seed)
    return [
        {
            "teacher": f"t{i // 2}",
            "language": "xy"[i % 2],
            "distinct_prompts": draws.random(),
            "distinct_responses": draws.random(),
            "rubric": 1 + 4 * draws.random(),
            "perplexity": math.exp(3 * draws.random()),
            "prompt_length": draws.random(),
            "response_length": draws.random(),
            "result": draws.random(),
        }
        for i in range(count)
    ]


def changed(table, column, change):
    return [{**row, column: change(row[column])} for row in table]


def test_distinctness_of_equal_and_of_orthogonal_rows():
    assert distinctness([[3.0, 4.0]] * 5) == pytest.approx(0, abs=1e-15)
    assert distinctness(np.diag([1.0, 2.0, 5.0])) == pytest.approx(1, abs=1e-15)
    assert distinctness([[1.0, 0.0], [-2.0, 0.0]]) == pytest.approx(2)  # N / (N - 1)


def test_distinctness_is_the_slow_mean_over_pairs_where_zero_rows_have_cosine_zero():
    embeddings = np.random.default_rng(0).normal(size=(9, 4))
    embeddings[[2, 5]] = 0
    cosines = []
    for i, one in enumerate(embeddings):
        for j, other in enumerate(embeddings):
            if i != j:
                size = math.sqrt(sum(one**2) * sum(other**2))
                cosines.append(0.0 if size == 0 else sum(one * other) / size)
    assert distinctness(embeddings) == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-14)


def test_distinctness_does_not_depend_on_order_or_lengths():
    draws = np.random.default_rng(1)
    embeddings = draws.normal(size=(20, 6))
    lengths = 10.0 ** draws.uniform(-200, 200, size=(20, 1))
    assert distinctness((lengths * embeddings)[::-1]) == pytest.approx(distinctness(embeddings), abs=1e-12)


@pytest.mark.parametrize("bad", [[[1.0, 2.0]], [1.0, 2.0], np.zeros((0, 3)), [[1.0], [math.nan]], [[math.inf], [1.0]]])
def test_distinctness_refuses_what_it_cannot_measure(bad):
    with pytest.raises(ValueError, match="embeddings: expected"):
        distinctness(bad)


def test_z_is_the_mean_of_what_scikit_learn_standardises():
    table = rows()
    columns = np.array(
        [[row["distinct_prompts"], row["distinct_responses"], row["rubric"], -math.log1p(row["perplexity"])] for row in table]
    )
    assert np.allclose(intrinsic_z(table), StandardScaler().fit_transform(columns).mean(1), atol=1e-13)
    assert intrinsic_z(table).mean() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("column", ["distinct_prompts", "rubric"])
def test_z_is_unchanged_by_rising_straight_lines(column):
    table = rows()
    assert np.allclose(intrinsic_z(changed(table, column, lambda value: 7 * value - 30)), intrinsic_z(table), atol=1e-12)


def test_z_falls_with_perplexity():
    table = rows()
    table[3]["perplexity"], worse = 5.0, [dict(row) for row in table]
    worse[3]["perplexity"] = 9.0
    assert intrinsic_z(worse)[3] < intrinsic_z(table)[3]


@pytest.mark.parametrize("value", [0.1, 3.0, 1e9])
def test_a_column_without_spread_contributes_nothing(value):
    table = changed(rows(7), "rubric", lambda _: value)
    others = [name for name in INTRINSIC if name != "rubric"]
    assert np.allclose(intrinsic_z(table), 3 / 4 * intrinsic_z(table, others), atol=1e-14)


def test_an_infinite_perplexity_counts_as_a_million():
    table, capped = rows(), rows()
    table[0]["perplexity"], capped[0]["perplexity"] = math.inf, 1e6
    assert np.isfinite(intrinsic_z(table)).all()
    assert np.array_equal(intrinsic_z(table), intrinsic_z(capped))


def test_within_languages_other_languages_and_their_teachers_do_not_matter():
    table = rows(12)
    z = intrinsic_z(table, by="language")
    for language in "xy":
        part = np.array([row["language"] == language for row in table])
        assert np.allclose(z[part], intrinsic_z([row for row in table if row["language"] == language]))
    assert not np.allclose(z, intrinsic_z(table), atol=1e-3)
    assert not np.allclose(intrinsic_z(table)[:10], intrinsic_z(table[:10]), atol=1e-3)  # one teacher fewer moves all


@pytest.mark.parametrize(
    ("table", "by", "expected"),
    [
        ([], None, "at least 2 rows to standardise, got 0"),
        (rows(1), None, "at least 2 rows to standardise, got 1"),
        (rows(3), "language", "at least 2 rows of language 'y' to standardise, got 1"),
        (
            [{"teacher": "a", "rubrik": 1.0, **dict.fromkeys(INTRINSIC[:2], 0.5)}] * 2,
            None,
            r"row 0 \(a\): expected a column 'rubric', .*nearest: rubrik",
        ),
        (changed(rows(3), "rubric", lambda _: math.nan), None, r"rubric of row 0 \(t0, x\): expected a finite number, got nan"),
        (changed(rows(3), "rubric", lambda _: math.inf), None, "rubric of row 0 .* finite number, got inf"),
        (changed(rows(3), "rubric", lambda _: "4"), None, "finite number, got '4'"),
        (changed(rows(3), "perplexity", lambda _: math.nan), None, "perplexity of row 0 .*: expected a number, got nan"),
        (changed(rows(3), "perplexity", lambda _: -1.0), None, "perplexity of row 0: expected a number >= 0, got -1"),
    ],
)
def test_z_refuses_tables_in_one_clear_line(table, by, expected):
    with pytest.raises(ValueError, match=expected):
        intrinsic_z(table, by=by)


def test_z_wants_columns():
    with pytest.raises(ValueError, match="columns: expected at least one"):
        intrinsic_z(rows(), ())


def test_the_explanation_agrees_with_scikit_learn():
    table = rows(30)
    features = StandardScaler().fit_transform([[row[name] for name in FEATURES] for row in table])
    result = np.array([row["result"] for row in table])
    pca = PCA().fit(features)
    found = explain(table)
    assert np.allclose(found.variance, pca.explained_variance_ratio_)
    assert np.allclose(np.abs((found.loadings * pca.components_).sum(1)), 1)
    assert (found.loadings[np.arange(6), np.abs(found.loadings).argmax(1)] > 0).all()
    for count in range(1, 7):
        scores = features @ found.loadings[:count].T
        line = LinearRegression().fit(scores, result)
        assert found.r2[count - 1] == pytest.approx(line.score(scores, result))
        assert np.allclose(found.weights[:count], line.coef_)


def test_the_explanation_leaves_out_columns_that_say_nothing_new():
    table = [{**row, "prompt_length": 5.0, "response_length": 2 * row["rubric"]} for row in rows(20)]
    found = explain(table)
    assert found.loadings.shape == (4, 6)
    assert found.variance.sum() == pytest.approx(1)
    assert np.allclose(found.loadings[:, FEATURES.index("prompt_length")], 0)


def test_the_explanation_refuses_what_has_no_spread():
    with pytest.raises(ValueError, match="at least 3 rows"):
        explain(rows(2))
    with pytest.raises(ValueError, match="result with different values"):
        explain(changed(rows(9), "result", lambda _: 0.3))
    with pytest.raises(ValueError, match="got constant ones"):
        explain([dict(rows(1)[0], result=i) for i in range(5)])
