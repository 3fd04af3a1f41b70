"""MVec: predict strategies of solving problems from vectors of mastery, with a small sample drawn evenly from clusters.

Paper: Shakya et al. 2023, Scalable and Equitable Math Problem Solving Strategy Prediction in Big Educational Data (arXiv:2308.03892, EDM
2023), and its follow-up, Mastery Guided Non-parametric Clustering (arXiv:2401.10210). No code was found; the details are a reconstruction.
Claim: trained on a few per cent of the data, drawn evenly from clusters of interchangeable strategies, a model is nearly as accurate as one
trained on all, and equally so for rare groups, for which a random sample of the same size fails.
Equation, with m(u, k) the mastery of student u in component k, and z the Node2Vec vectors of the graph of students, problems, components:
    x_i = [z_u / |z_u|; z_p / |z_p|],   min sum_i |x_i - mu_{a_i}|^2 + lambda K  (DP-means),
    h_0 = tanh(W x_i),  the strategy k_1..k_n, END by an LSTM from h_0, cross-entropy with teacher forcing.
The parts are in `preceptor.education`: ``walks`` (Node2Vec), ``clusters`` (DP-means, refinement, samples), ``strategies`` (mastery,
vectors of instances, the model that writes strategies, the report by group).
Deviations: none that could be checked; Node2Vec's chances are those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preceptor.core.types import Card
from preceptor.education.clusters import cluster_sample, dp_means
from preceptor.education.strategies import StrategyModel, equity_report
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size

CARD = Card(
    slug="mvec",
    title="MVec: strategies predicted fairly from vectors of mastery",
    authors="Shakya et al. 2023",
    arxiv="2308.03892",
    kind="sampling",
    tasks=("education",),
    needs=(),
    equation="x_i = [z_u; z_p], min sum |x_i - mu_{a_i}|^2 + lambda K, as many instances of each cluster",
    cost="walks and clusters once; training on a few per cent of the instances",
    headline="near-full accuracy from a small share of MATHia's data, similar at all levels of mastery",
)

_GROUPS, _STRATEGIES, _COMPONENTS, _DIM = 12, 8, 10, 16
_PENALTY = 12.0  # lambda, a squared distance; between two of a group it is about 4, between centres about 100
_BUDGET = 120


@dataclass(frozen=True, kw_only=True)
class Instances:
    """Vectors (n, D), strategies and groups (n,)."""

    x: np.ndarray
    strategies: Sequence[Sequence[int]]
    group: np.ndarray

    def take(self, rows: np.ndarray) -> Instances:
        """Some of them."""
        return Instances(x=self.x[rows], strategies=[self.strategies[i] for i in rows], group=self.group[rows])


def instances(count: int, *, seed: int) -> Instances:
    """Groups of Zipf(1.6) sizes, each a Gaussian cloud with one strategy; some groups share theirs."""
    random = np.random.default_rng(seed)
    chance = np.arange(1, _GROUPS + 1) ** -1.6
    group = np.concatenate([np.arange(_GROUPS), random.choice(_GROUPS, count - _GROUPS, p=chance / chance.sum())])
    group = random.permutation(group)
    known = [tuple(random.choice(_COMPONENTS, random.integers(2, 6), replace=False).tolist()) for _ in range(_STRATEGIES)]
    of_group = np.concatenate([np.arange(_STRATEGIES), random.integers(0, _STRATEGIES, _GROUPS - _STRATEGIES)])
    random.shuffle(of_group)
    centres = 1.8 * random.standard_normal((_GROUPS, _DIM))
    x = centres[group] + 0.35 * random.standard_normal((count, _DIM))
    return Instances(x=x, strategies=[known[of_group[g]] for g in group], group=group)


def miniature(seed: int, size: Size) -> Miniature:
    """6,000 instances of 12 groups, 8 strategies; models learn from 120 of 4,000, drawn at random or evenly from clusters, or from all.

    ``token``, ``exact`` and ``edit`` are means over 2,000 others, ``worst`` the accuracy by tokens of the worst group, ``gap`` its distance
    from the best and ``std`` the standard deviation over groups. The arm ``everything`` sees all 4,000 in as many updates.
    """
    full = size == "full"
    count, steps = (6000, 400) if full else (600, 10)
    whole = instances(count, seed=seed)
    pool, test = whole.take(np.arange(2 * count // 3)), whole.take(np.arange(2 * count // 3, count))
    clusters = dp_means(pool.x, _PENALTY, seed=seed)
    random = np.random.default_rng(seed)
    samples = {
        "random": np.sort(random.choice(len(pool.x), _BUDGET, replace=False)),
        "mvec": cluster_sample(clusters.labels, _BUDGET, seed=seed),
        "everything": np.arange(len(pool.x)),
    }

    def measured(rows: np.ndarray, steps: int) -> dict[str, float]:
        model = StrategyModel(_COMPONENTS, steps=steps, seed=seed)
        seen = pool.take(rows)
        model.fit(seen.x, seen.strategies)
        return equity_report(model.predict(test.x), test.strategies, test.group)

    arms = {"untrained": measured(samples["random"], 1)} | {name: measured(rows, steps) for name, rows in samples.items()}
    return Miniature(
        arms=arms,
        claims=(
            Claim(name="the worst group does better than by a random sample", method="mvec", baseline="random", metric="worst"),
            Claim(name="groups differ less", method="mvec", baseline="random", metric="std", direction="lower"),
            Claim(name="as accurate as all data, but for .02", method="mvec", baseline="everything", metric="token", margin=-0.02),
        ),
        notes=(f"{len(clusters.centres)} clusters at seed {seed}; {_BUDGET} of {len(pool.x)} instances, {steps} updates",),
    )
