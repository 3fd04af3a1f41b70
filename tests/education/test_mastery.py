"""Walks, clusters and strategies: what the mathematics says of each."""

import math

import numpy as np
import pytest
import torch

from preceptor.core.state import State
from preceptor.education.clusters import (
    cluster_sample,
    default_penalty,
    dp_means,
    edit_distance,
    refine,
    similarity,
    squared_distances,
    symmetry,
)
from preceptor.education.strategies import (
    StrategyModel,
    equity_report,
    instance_vectors,
    mastery,
    mastery_edges,
    steps_of,
    strategy_scores,
)
from preceptor.education.walks import SkipGram, graph_of, node2vec, transition, walks

EDGES = [[0, 1, 2.0], [0, 2, 1.0], [1, 2, 3.0], [2, 3, 0.5], [3, 4, 1.0]]


def test_without_bias_the_chances_are_the_weights():
    graph = graph_of(EDGES, nodes=6)
    neighbours, chances = transition(graph, 3, 2, p=1.0, q=1.0)
    assert neighbours.tolist() == [0, 1, 3]
    np.testing.assert_allclose(chances, np.array([1.0, 3.0, 0.5]) / 4.5, rtol=1e-12)


def test_chances_sum_to_1_and_p_decides_on_the_way_back():
    graph = graph_of(EDGES)
    for p, back in ((1e-9, 1.0), (1e9, 0.0)):
        for previous, current in ((0, 1), (2, 3), (1, 2)):
            neighbours, chances = transition(graph, previous, current, p=p, q=0.5)
            assert math.isclose(chances.sum(), 1, rel_tol=1e-12)
            assert math.isclose(chances[neighbours.tolist().index(previous)], back, abs_tol=1e-7)


def test_chances_against_a_slow_loop():
    random = np.random.default_rng(0)
    weights = {(a, b): random.random() + 0.1 for a in range(7) for b in range(a) if random.random() < 0.6}
    graph = graph_of([[a, b, w] for (a, b), w in weights.items()], nodes=7)
    both = weights | {(b, a): w for (a, b), w in weights.items()}
    for (t, v), _ in both.items():
        near = sorted(x for a, x in both if a == v)
        raw = [both[v, x] * (1 / 0.25 if x == t else 1 if (x, t) in both else 1 / 4) for x in near]
        neighbours, chances = transition(graph, t, v, p=0.25, q=4.0)
        assert neighbours.tolist() == near
        np.testing.assert_allclose(chances, np.array(raw) / sum(raw), rtol=1e-12)


def test_walks_follow_the_chances_and_stop_at_a_lonely_node():
    graph = graph_of(EDGES, nodes=6)
    found = walks(graph, num_walks=3000, length=3, p=0.3, q=2.0, seed=0)
    assert (found[found[:, 0] == 5, 1:] == -1).all()
    came = found[(found[:, 0] == 0) & (found[:, 1] == 2), 2]
    neighbours, chances = transition(graph, 0, 2, p=0.3, q=2.0)
    share = np.array([(came == x).mean() for x in neighbours])
    assert np.abs(share - chances).max() < 4 * np.sqrt(0.25 / len(came))
    first = found[found[:, 0] == 2, 1]
    assert abs((first == 1).mean() - 3 / 4.5) < 0.04


def test_vectors_of_neighbours_are_near_and_a_lonely_node_has_none():
    ring = [[a, b, 1.0] for start in (0, 5) for a in range(start, start + 5) for b in range(start, a)]
    graph = graph_of([*ring, [4, 5, 0.2]], nodes=11)
    options = {"dim": 8, "num_walks": 20, "length": 10, "window": 3, "epochs": 2, "batch_size": 512}
    found = node2vec(graph, **options, seed=1)
    assert torch.equal(found, node2vec(graph, **options, seed=1))
    assert not found[10].any()
    unit = torch.nn.functional.normalize(found[:10], dim=1)
    cosine = unit @ unit.T
    same = cosine[:5, :5].sum() - 5 + cosine[5:, 5:].sum() - 5
    assert same / 40 > cosine[:5, 5:].mean() + 0.3


def test_skip_gram_against_its_equation():
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({"node": torch.nn.Embedding(5, 3), "near": torch.nn.Embedding(5, 3)}).double()
    batch = {"x": torch.tensor([[0, 1], [2, 4]]), "negatives": torch.tensor([[3, 2], [0, 0]])}
    found = SkipGram().loss(batch, {}, {"student": network}, State(total_steps=1))["skip"]
    for row, value in enumerate(found.tolist()):
        z = network["node"].weight[batch["x"][row, 0]]
        c = network["near"].weight
        dots = [z @ c[batch["x"][row, 1]], *(-(z @ c[n]) for n in batch["negatives"][row])]
        assert math.isclose(value, sum(math.log1p(math.exp(-d)) for d in torch.stack(dots).tolist()), rel_tol=1e-12)


def test_dp_means_at_both_ends_of_its_penalty():
    x = np.random.default_rng(0).standard_normal((40, 3))
    assert len(dp_means(x, 1e6).centres) == 1
    distance = squared_distances(x, x)
    least = distance[~np.eye(40, dtype=bool)].min()
    assert len(dp_means(x, 0.99 * least).centres) == 40
    assert len(dp_means(np.concatenate([x, x]), 0.99 * least).centres) == 40  # points that come twice share a cluster
    assert len(dp_means(x, 0.99 * least, max_clusters=7).centres) <= 7


def test_dp_means_never_raises_its_objective_and_ends_at_a_fixed_point_of_k_means():
    x = np.random.default_rng(1).standard_normal((300, 4))
    for seed in range(5):
        found = dp_means(x, 4.0, seed=seed)
        assert (np.diff(found.trace) <= 1e-9).all()
        distance = squared_distances(x, found.centres)
        assert (distance.argmin(1) == found.labels).all()
        assert distance.min(1).max() <= 4.0
        for label, centre in enumerate(found.centres):
            np.testing.assert_allclose(x[found.labels == label].mean(0), centre, rtol=1e-12, atol=1e-12)
        slow = sum(((x[i] - found.centres[found.labels[i]]) ** 2).sum() for i in range(300)) + 4.0 * len(found.centres)
        assert math.isclose(found.trace[-1], slow, rel_tol=1e-12)


def test_edit_distance_and_symmetry():
    assert edit_distance([1, 2, 3], [1, 3]) == 1
    assert edit_distance([], [4, 4]) == 2
    assert edit_distance([0, 1, 2, 3], [3, 1, 2, 0]) == 2
    assert similarity([], []) == 1
    assert symmetry([(1, 2)] * 5) == 1
    assert symmetry([(1,), (2,)]) == 0
    assert symmetry([(1,)]) == 1


def test_refinement_splits_until_strategies_are_interchangeable():
    random = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [3, 0], [40, 0], [43, 0]])
    group = np.repeat(np.arange(4), 25)
    x = centres[group] + 0.1 * random.standard_normal((100, 2))
    strategies = [[(1, 2), (3, 4), (5,), (5,)][g] for g in group]
    labels = refine(x, strategies, penalty=100.0, levels=6)
    assert len(set(labels[group == 0])) == len(set(labels[group == 1])) == 1
    assert labels[0] != labels[25]
    assert len(set(labels[group >= 2])) == 1  # one strategy: no need to tell them apart
    assert default_penalty(x, guess=3) > 0


def test_samples_keep_to_the_cap_and_the_budget():
    labels = np.repeat([0, 1, 2, 3], [100, 50, 3, 1])
    for budget in (1, 3, 4, 10, 40, 154):
        found = cluster_sample(labels, budget, seed=0)
        counts = np.bincount(labels[found], minlength=4)
        assert len(set(found.tolist())) == budget
        assert counts.tolist() == sorted(counts, reverse=True)
        assert counts[0] - counts[1] <= 1 or counts[1] == 50
        assert counts[2:].sum() == 4 or budget < 16
    with pytest.raises(ValueError, match=r"^budget: expected a number in \[1, 154\], got 155$"):
        cluster_sample(labels, 155)


def test_mastery_by_counts_and_a_student_without_steps():
    steps = steps_of(np.array([[0, 0, 1], [-1, -1, -1]]), np.array([[1, 0, 1], [0, 0, 0]]))
    np.testing.assert_allclose(mastery(steps, 3, by="mean"), [[0.5, 2 / 3, 0.5], [0.5, 0.5, 0.5]])


def test_mastery_by_attention_follows_the_ability():
    random = np.random.default_rng(0)
    ability = random.standard_normal((150, 4)) + random.standard_normal((150, 1))
    component = random.integers(0, 4, (150, 25))
    component[0] = -1
    correct = random.random((150, 25)) < 1 / (1 + np.exp(-1.5 * np.take_along_axis(ability, component.clip(min=0), 1)))
    found = mastery(steps_of(component, correct), 4, epochs=15, seed=0)
    assert ((found > 0) & (found < 1)).all()
    assert (found[0] == 0.5).all()
    rank = [np.argsort(np.argsort(values[1:].ravel())) for values in (found, ability)]
    assert np.corrcoef(*rank)[0, 1] > 0.6


def test_edges_keep_the_best_component_of_a_student_who_masters_none():
    mastered = np.array([[0.9, 0.2, 0.7], [0.1, 0.3, 0.2]])
    edges = mastery_edges(mastered, [[0, 0, 2], []], np.array([[0, 1], [0, 1], [1, 0]]))
    assert edges[:, :2].tolist() == [[0, 4], [0, 6], [1, 5], [2, 4], [2, 6], [0, 3], [1, 2]]
    assert edges[:, 2].tolist() == [0.9, 0.7, 0.3, 1, 1, 1, 1]
    vectors = instance_vectors(np.array([[3.0, 4], [0, 0], [0, 2]]), np.array([0, 1]), np.array([0, 0]), num_users=2)
    np.testing.assert_allclose(vectors, [[0.6, 0.8, 0, 1], [0, 0, 0, 1]])


def test_a_perfect_model_has_no_gap():
    truth = [[1, 2], [3], [], [4, 5, 6]]
    found = equity_report(truth, truth, np.array([0, 0, 1, 1]))
    assert found == {"token": 1, "exact": 1, "edit": 1, "worst": 1, "gap": 0, "std": 0}
    half = equity_report([[1, 2], [3], [1], [4, 5, 6]], truth, np.array([0, 0, 1, 1]))
    assert (half["worst"], half["gap"], half["std"], half["exact"]) == (0.5, 0.5, 0.25, 0.75)
    assert strategy_scores([1, 2, 9], [1, 2]) == pytest.approx({"token": 2 / 3, "exact": 0.0, "edit": 2 / 3})


def test_the_model_writes_what_it_learned_the_empty_strategy_too():
    x = np.eye(3)
    strategies = [[2, 0, 1], [], [1, 1]]
    model = StrategyModel(3, width=16, steps=120, seed=0)
    model.fit(x, strategies)
    assert model.predict(x) == strategies


def test_bad_input_is_refused():
    for call, message in (
        (lambda: graph_of([[0, 1]]), r"^edges: expected rows \(a, b, weight\), got shape \(1, 2\)$"),
        (lambda: graph_of([[0, 1, -1.0]]), r"^edges: expected finite weights > 0, got another$"),
        (lambda: graph_of([[0, 9, 1.0]], nodes=3), r"^edges: expected nodes in \[0, 3\), got 0 to 9$"),
        (lambda: transition(graph_of(EDGES, nodes=6), 0, 5, p=1, q=1), r"^current: expected a node with neighbours, got 5"),
        (lambda: walks(graph_of(EDGES), p=0), r"^p: expected a finite number > 0, got 0$"),
        (lambda: node2vec(graph_of(np.zeros((0, 3)), nodes=2)), r"^graph: expected at least one edge, got none$"),
        (lambda: dp_means(np.zeros((0, 2)), 1.0), r"^x: expected at least one row of finite numbers, got shape \(0, 2\)$"),
        (lambda: dp_means(np.zeros((2, 2)), 0.0), r"^penalty: expected a finite number > 0, got 0\.0$"),
        (lambda: StrategyModel(2).fit(np.zeros((1, 2)), [[5]]), r"^strategies: expected symbols in \[0, 2\), got 5 to 5$"),
        (lambda: equity_report([], [], np.zeros(0)), r"^predicted, truth, group: expected as many of each, got 0, 0 and 0$"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
