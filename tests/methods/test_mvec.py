"""mvec: the made-up instances are what they are said to be, and an even sample holds every group."""

import numpy as np

from preceptor.education.clusters import cluster_sample, dp_means
from preceptor.methods.mvec import instances, miniature


def test_groups_are_unequal_and_each_has_one_strategy():
    found = instances(3000, seed=0)
    counts = np.bincount(found.group)
    assert len(counts) == 12
    assert counts.max() > 20 * counts.min()
    for group in range(12):
        assert len({tuple(found.strategies[i]) for i in np.flatnonzero(found.group == group)}) == 1
    assert len({tuple(strategy) for strategy in found.strategies}) <= 8


def test_clusters_are_the_groups_and_a_sample_of_them_holds_the_rare_ones():
    found = instances(3000, seed=0)
    clusters = dp_means(found.x, 12.0)
    assert 12 <= len(clusters.centres) <= 14
    for label in range(len(clusters.centres)):
        assert len(set(found.group[clusters.labels == label])) == 1
    sample = np.bincount(found.group[cluster_sample(clusters.labels, 120)], minlength=12)
    assert sample.min() >= 8


def test_miniature():
    run = miniature(1, "smoke")
    names = ("untrained", "random", "mvec", "everything")
    assert list(run.arms) == [f"{world}{name}" for world in ("", "logs-", "dealt-") for name in names]
    assert run.arms["logs-random"]["narrowed"] == 0
    assert run.arms["logs-mvec"]["narrowed"] == run.arms["logs-random"]["gap"] - run.arms["logs-mvec"]["gap"]
    assert all(0 <= arm["token"] <= 1 for arm in run.arms.values())
