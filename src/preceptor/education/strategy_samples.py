"""Which solutions should a model of strategies learn from: as many of every cluster, or drawn at random?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from preceptor.education.clusters import cluster_sample, refine
from preceptor.education.solutions import Solutions, embed
from preceptor.education.strategies import StrategyModel, equity_report, instance_vectors, mastery_groups


@dataclass(frozen=True, kw_only=True)
class Samples:
    """``scores`` and ``rows`` of the pool by sample, and the number of clusters.

    The samples are ``mvec`` (as many of each cluster), ``random`` (as many in all), ``everything``, and ``untrained``: a single update.
    """

    scores: dict[str, dict[str, float]]
    rows: dict[str, np.ndarray]
    clusters: int


def compare_samples(
    pool: Solutions,
    later: Solutions,
    mastered: np.ndarray,
    *,
    budget: int,
    groups: int = 5,
    steps: int = 300,
    walking: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Samples:
    """Embed and cluster ``pool``, train on samples of it, and score the strategies that are predicted for ``later`` by group of mastery.

    Args:
        pool: solutions to learn from.
        later: of the same students, problems and KCs.
        mastered: (U, K), from what came before ``later``.
        budget: solutions in a sample.
        groups: of students, by mean mastery.
        steps: updates of every model.
        walking: options of `preceptor.education.walks.node2vec`.
        seed: of everything drawn.
    Raises:
        ValueError: budget larger than the pool, more groups than students, or nothing in ``later``.
    """
    if not 1 <= budget <= len(pool):
        raise ValueError(f"budget: expected a number of solutions in [1, {len(pool)}], got {budget}")
    vectors, components = embed(pool, mastered, seed=seed, **(walking or {})), pool.components()
    x, x_later = (
        instance_vectors(vectors, part.student, part.problem, num_users=pool.num_students, components=components) for part in (pool, later)
    )
    labels = refine(x, pool.strategies, seed=seed)
    drawn = np.sort(np.random.default_rng(seed).choice(len(pool), budget, replace=False))
    even = cluster_sample(labels, budget, seed=seed)
    rows = {"untrained": drawn, "random": drawn, "mvec": even, "everything": np.arange(len(pool))}
    group, scores = mastery_groups(mastered, groups)[later.student], {}
    for name, chosen in rows.items():
        model = StrategyModel(pool.num_components, steps=1 if name == "untrained" else steps, seed=seed)
        model.fit(x[chosen], pool.take(chosen).strategies)
        scores[name] = equity_report(model.predict(x_later), later.strategies, group)
    return Samples(scores=scores, rows=rows, clusters=int(labels.max()) + 1)
