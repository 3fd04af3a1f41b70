"""Absolute learning progress, and mixtures of tasks."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from preceptor.teachers.mixtures import LearningProgress, MixtureTeacher, criterion_of, interests
from preceptor.teachers.tasks import Box

SQUARE = Box([0.0, 0.0], [1.0, 1.0])


def progress(tasks, returns, **options):
    measure = LearningProgress(**options)
    return np.array([measure(x, r) for x, r in zip(tasks, returns, strict=True)])


def made(count=1300, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((count, 2)), rng.random(count)


def test_reference():
    """Beyond the first 500 tasks a tree and a list are searched together."""
    tasks, returns = made()
    found = progress(tasks, returns)
    for k in range(len(tasks)):
        nearest = np.linalg.norm(tasks[:k] - tasks[k], axis=1).argmin() if k >= 6 else None
        assert found[k] == (0.0 if nearest is None else abs(returns[k] - returns[nearest]))


def test_progress_is_of_differences():
    tasks, returns = made(80)
    found = progress(tasks, returns)
    assert (found[:6] == 0).all()
    assert (found >= 0).all()
    assert (found[6:] > 0).any()
    np.testing.assert_allclose(progress(tasks, returns + 7.0), found, atol=1e-12)
    np.testing.assert_allclose(progress(tasks, -3.0 * returns), 3.0 * found)
    repeated = np.tile(tasks[:10], (3, 1))
    assert (progress(repeated, np.tile(returns[:10], 3))[10:] == 0).all()  # a student that does not change
    assert (progress(tasks, returns, min_history=1)[1:6] > 0).all()


def test_old_tasks_can_be_forgotten():
    tasks, returns = made()
    kept = LearningProgress(max_size=100)
    for x, r in zip(tasks, returns, strict=True):
        kept(x, r)
    assert len(kept.tasks) < 600
    assert kept.tasks[-1] == tasks[-1].tolist()
    assert len(LearningProgress(max_size=None).tasks) == 0
    with pytest.raises(ValueError, match="max_size: expected at least 1, got 0"):
        LearningProgress(max_size=0)


def teach(teacher, returns, episodes):
    tasks = []
    for k in range(episodes):
        tasks.append(teacher.sample())
        teacher.update(tasks[-1], returns(tasks[-1], k))
    return np.array(tasks)


def test_before_the_first_fit_and_at_random_rate_1_tasks_are_uniform():
    early = teach(MixtureTeacher(SQUARE, seed=1), lambda x, k: float(k % 2), 250)
    assert np.abs(np.histogram(early[:, 0], 4, (0, 1))[0] / 250 - 0.25).max() < 0.08
    teacher = MixtureTeacher(SQUARE, random_rate=1.0, fit_rate=50, ks=(2,), seed=1)
    late = teach(teacher, lambda x, k: float(x[0] < 0.2) * (k % 2), 1500)
    assert np.abs(np.histogram(late[:, 0], 4, (0, 1))[0] / 1500 - 0.25).max() < 0.04


def test_tasks_come_from_the_cluster_that_progresses():
    teacher = MixtureTeacher(SQUARE, random_rate=0.0, fit_rate=200, ks=(2,), seed=0)
    rng = np.random.default_rng(0)
    near = np.vstack([rng.normal(0.25, 0.04, (100, 2)), rng.normal(0.75, 0.04, (100, 2))])
    alp = np.r_[rng.normal(0.65, 0.05, 100), rng.normal(0.02, 0.005, 100)]
    teacher._fit(np.c_[near, alp])
    drawn = np.array([teacher.sample() for _ in range(500)])
    assert (np.abs(drawn - 0.25).max(1) < 0.25).mean() > 0.9
    assert np.abs(drawn[(drawn < 0.5).all(1)].std(0) - 0.04).max() < 0.02


def test_weights_of_the_mixture_do_not_matter():
    teacher = MixtureTeacher(SQUARE, random_rate=0.0, fit_rate=200, ks=(2,), seed=0)
    rng = np.random.default_rng(0)
    near = np.vstack([rng.normal(0.25, 0.04, (180, 2)), rng.normal(0.75, 0.04, (20, 2))])
    teacher._fit(np.c_[near, np.full(200, 0.5) + rng.normal(0, 0.01, 200)])
    drawn = np.array([teacher.sample() for _ in range(600)])
    assert 0.42 < (drawn[:, 0] < 0.5).mean() < 0.58


def test_interests():
    means = np.array([[0.1, 0.4], [0.2, -0.3]])
    covariances = np.array([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, 0.25], [0.25, 1.0]]])
    assert interests(means, covariances, "alp").tolist() == [0.4, 0.0]
    assert interests(means, covariances, "covariance").tolist() == [0.0, 0.25]
    assert interests(means, covariances, "absolute covariance").tolist() == [0.5, 0.25]


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_rising_returns_are_interesting_to_covariance_and_falling_ones_only_by_size(slope):
    for kind in ("covariance", "absolute covariance"):
        teacher = MixtureTeacher(SQUARE, progress=kind, fit_rate=100, ks=(1,), seed=0)
        teach(teacher, lambda x, k: slope * (k % 100) / 100, 100)
        assert (teacher.interests > 0.01).all() == (slope > 0 or kind != "covariance")
        assert (teacher.interests >= 0).all()


def test_the_mixture_is_fitted_to_the_last_points_only():
    teacher = MixtureTeacher(SQUARE, fit_rate=60, ks=(1,), seed=0)
    teach(teacher, lambda x, k: 0.0 if k < 60 else float(k % 2), 60)
    assert teacher.means[0, -1] == pytest.approx(0.0)
    teach(teacher, lambda x, k: float(k % 2), 59)
    assert teacher.means[0, -1] == pytest.approx(0.0)
    teach(teacher, lambda x, k: 1.0, 1)
    assert teacher.means[0, -1] > 0.2


def test_equal_tasks_and_few_points_are_no_trouble():
    teacher = MixtureTeacher(SQUARE, fit_rate=6, seed=0)  # two to three components at most
    for _ in range(60):
        teacher.update(np.array([0.5, 0.5]), 0.1)
    assert 1 <= len(teacher.means) <= 3
    assert np.isfinite(teacher.sample()).all()


def test_criteria():
    points = np.random.default_rng(0).normal(size=(60, 3))
    for kind, each in (("full", 9), ("diag", 6)):
        fit = GaussianMixture(2, covariance_type=kind, random_state=0).fit(points)
        q, likelihood = 2 * each + 1, 60 * fit.score(points)
        assert criterion_of(fit, points, "aic") == pytest.approx(2 * q - 2 * likelihood)
        assert criterion_of(fit, points, "bic") == pytest.approx(q * np.log(60) - 2 * likelihood)
        assert criterion_of(fit, points, "aicc") == pytest.approx(2 * q - 2 * likelihood + 2 * q * (q + 1) / (60 - q - 1))
        assert criterion_of(fit, points[: q + 1], "aicc") == np.inf


def test_the_criterion_chooses():
    rng = np.random.default_rng(0)
    points = np.vstack([rng.normal(c, 0.02, (60, 3)) for c in (0.2, 0.5, 0.8)])
    numbers = {}
    for name in ("aic", "bic", "aicc"):
        teacher = MixtureTeacher(SQUARE, criterion=name, ks=(1, 2, 3, 10), seed=0)
        teacher._fit(points)
        numbers[name] = len(teacher.means)
    assert numbers["bic"] == 3
    assert numbers["aicc"] < 10


def test_options_matter():
    def late(**options):
        return teach(MixtureTeacher(SQUARE, **{"fit_rate": 60, "ks": (2, 3), "seed": 0} | options), lambda x, k: x[0] * k, 150)

    usual = late()
    for options in ({"covariance": "diag"}, {"return_range": (0.0, 1.0)}, {"random_rate": 0.9}, {"ks": (5,)}, {"progress": "covariance"}):
        assert not np.array_equal(usual, late(**options)), options
    assert np.isfinite(late(max_history=10)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"progress": "size"}, "progress: expected one of alp"),
        ({"criterion": "dic"}, "criterion: expected one of aic"),
        ({"covariance": "tied"}, "covariance: expected one of full"),
        ({"covariance": "diag", "progress": "covariance"}, "covariance: expected 'full' for progress 'covariance'"),
        ({"ks": ()}, "ks: expected at least 1"),
        ({"fit_rate": 1}, "fit_rate: expected at least"),
        ({"random_rate": 1.5}, "random_rate: expected"),
    ],
)
def test_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        MixtureTeacher(SQUARE, seed=0, **options)
