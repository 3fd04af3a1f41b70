"""MVec: predict strategies of solving problems from vectors of mastery, with a small sample drawn evenly from clusters.

Paper: Shakya et al. 2023, Scalable and Equitable Math Problem Solving Strategy Prediction in Big Educational Data (arXiv:2308.03892, EDM
2023), and its follow-up, Mastery Guided Non-parametric Clustering (arXiv:2401.10210). No code was found; the details are a reconstruction.
Claim: trained on a few per cent of the data, drawn evenly from clusters of interchangeable strategies, a model is nearly as accurate as one
trained on all, and equally so for rare groups, for which a random sample of the same size fails.
Equation, with m(u, k) the mastery of student u in component k, and z the Node2Vec vectors of the graph of students, problems, components:
    x_i = [z_u / |z_u|; z_p / |z_p|],   min sum_i |x_i - mu_{a_i}|^2 + lambda K  (DP-means),
    h_0 = tanh(W x_i),  the strategy k_1..k_n, END by an LSTM from h_0, cross-entropy with teacher forcing.
The parts are in `preceptor.education`: ``solutions`` (a tutor's log to steps and vectors), ``walks`` (Node2Vec), ``clusters`` (DP-means,
refinement, samples), ``strategies`` (mastery, vectors of instances, the model that writes strategies, the report by group), and
``strategy_samples`` (all of it).
Deviations: none that could be checked; Node2Vec's chances are those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from preceptor.core.types import Card
from preceptor.education.clusters import cluster_sample, dp_means
from preceptor.education.strategies import StrategyModel, equity_report, mastery
from preceptor.education.strategy_samples import compare_samples
from preceptor.metrics.fidelity import rank_correlation
from preceptor.miniature import tutor
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


def _report(seen: Instances, test: Instances, steps: int, seed: int) -> dict[str, float]:
    model = StrategyModel(_COMPONENTS, steps=steps, seed=seed)
    model.fit(seen.x, seen.strategies)
    return equity_report(model.predict(test.x), test.strategies, test.group)


def from_logs(seed: int, *, depends: bool, full: bool) -> dict[str, dict[str, float]]:
    """From the log of a tutor to scores: mastery, graph, vectors, clusters, samples, and the strategies of each student's last problems.

    Groups are fifths of the students by their mean mastery. ``spearman`` compares mastery with the abilities behind the log, for the arm
    ``untrained`` with these dealt anew; ``narrowed`` is by how much the gap is less than that of a random sample.
    """
    students, attempts, epochs, budget, steps = (300, 12, 15, 240, 300) if full else (40, 6, 1, 24, 60)
    walking = {"dim": 32, "num_walks": 5, "length": 20, "window": 5, "epochs": 3} if full else {"dim": 8, "num_walks": 2, "length": 6}
    made = tutor.log(students, attempts, seed=seed, depends=depends)
    drills, last = int(made.drill.sum()), len(made.solutions) - students * attempts // 3
    seen, pool, later = (made.solutions.take(np.arange(*ends)) for ends in ((0, last), (drills, last), (last, len(made.solutions))))
    mastered = mastery(seen.steps(), tutor.COMPONENTS, epochs=epochs, seed=seed)
    arms = compare_samples(pool, later, mastered, budget=budget, steps=steps, walking=walking, seed=seed).scores
    for name, arm in arms.items():
        ability = made.ability if name != "untrained" else np.random.default_rng(seed).permuted(made.ability)
        arm["spearman"] = float(rank_correlation(*(torch.from_numpy(values.reshape(1, -1)) for values in (mastered, ability))))
        arm["narrowed"] = arms["random"]["gap"] - arm["gap"]
    return arms


def miniature(seed: int, size: Size) -> Miniature:
    """Two experiments. Vectors that are given: 6,000 instances of 12 groups, 8 strategies; models learn from 120 of 4,000, drawn at random
    or evenly from clusters, or from all. From logs (``logs-``): 300 made-up students, their mastery and vectors as in `from_logs`, 240 of
    2,400 solutions; ``dealt-`` is the control, where the way of solving does not depend on mastery.

    ``token``, ``exact`` and ``edit`` are means over others, ``worst`` the accuracy by tokens of the worst group, ``gap`` its distance from
    the best and ``std`` the standard deviation over groups. The arm ``everything`` sees the whole pool in as many updates.
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
    arms = {"untrained": _report(pool.take(samples["random"]), test, 1, seed)}
    arms |= {name: _report(pool.take(rows), test, steps=steps, seed=seed) for name, rows in samples.items()}
    for world, depends in (("logs", True), ("dealt", False)):
        arms |= {f"{world}-{name}": arm for name, arm in from_logs(seed, depends=depends, full=full).items()}
    return Miniature(
        arms=arms,
        claims=(
            Claim(name="the worst group does better than by a random sample", method="mvec", baseline="random", metric="worst"),
            Claim(name="groups differ less", method="mvec", baseline="random", metric="std", direction="lower"),
            Claim(name="as accurate as all data, but for .02", method="mvec", baseline="everything", metric="token", margin=-0.02),
            Claim(
                name="from logs, mastery follows ability by .6",
                method="logs-mvec",
                baseline="logs-untrained",
                metric="spearman",
                margin=0.6,
            ),
            Claim(name="from logs, groups differ less", method="logs-mvec", baseline="logs-random", metric="gap", direction="lower"),
            Claim(name="by more than where ways do not depend on mastery", method="logs-mvec", baseline="dealt-mvec", metric="narrowed"),
        ),
        notes=(f"{len(clusters.centres)} clusters at seed {seed}; {_BUDGET} of {len(pool.x)} instances, {steps} updates",),
    )
