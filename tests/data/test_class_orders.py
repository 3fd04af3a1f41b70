"""Orders of classes: facts of the score, slow references, the searches, and what is refused."""

import itertools
import math

import pytest
import torch

from preceptor.data.class_orders import class_distance, group_rows, rank_orders, row_normalised, score_orders, variance_share


def random_distance(size, seed=0):
    points = torch.randn(size, 4, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    return torch.cdist(points, points)


def all_orders(size):
    return torch.tensor(list(itertools.permutations(range(size))))


def slow_score(distance, order, variant):
    """S written from the paper with classes counted from 1 and plain lists."""
    size = len(order)
    d = [[value / sum(row) for value in row] for row in distance.tolist()]
    variances = [sum((value - 1 / size) ** 2 for value in row) / size for row in d]
    v = [value / sum(variances) for value in variances]
    c = dict(enumerate(order, start=1))
    neighbours = [sorted((j for j in range(size) if j != i), key=lambda j, i=i: d[i][j]) for i in range(size)]
    by_v = sorted(range(size), key=lambda i: v[i])
    total = 1 - v[c[1]] if variant == "distance" else size - by_v.index(c[1])
    for k in range(1, math.ceil((size - 1) / 2) + 1):
        here, near, far = c[k], c[size + 1 - k], c[k + 1]
        if variant == "distance":
            total += (1 - d[here][near]) + d[here][far]
        else:
            total += (size - 1 - neighbours[here].index(near)) + (neighbours[here].index(far) + 1)
    return total


@pytest.mark.parametrize("variant", ["distance", "rank"])
@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_scores_against_a_slow_reference(size, variant):
    distance = random_distance(size)
    orders = all_orders(size)
    expected = [slow_score(distance, order, variant) for order in orders.tolist()]
    found = score_orders(distance, orders, variant=variant)
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.double), rtol=1e-12, atol=1e-12)
    assert found.dtype == (torch.double if variant == "distance" else torch.int64)


def test_rows_and_shares_sum_to_1_and_scores_have_their_bound():
    for size in range(1, 7):
        distance = random_distance(size)
        torch.testing.assert_close(row_normalised(distance).sum(1), torch.ones(size, dtype=torch.double))
        assert math.isclose(variance_share(distance).sum().item(), 1)
        assert (score_orders(distance, all_orders(size)) <= 1 + 2 * math.ceil((size - 1) / 2)).all()


@pytest.mark.parametrize("variant", ["distance", "rank"])
def test_scale_and_names_of_classes_do_not_matter(variant):
    distance, orders = random_distance(6), all_orders(6)
    scores = score_orders(distance, orders, variant=variant)
    torch.testing.assert_close(score_orders(7.5 * distance, orders, variant=variant), scores)
    new = torch.tensor([3, 0, 5, 1, 4, 2])  # class i is called new[i]
    renamed = torch.empty_like(distance)
    renamed[new[:, None], new] = distance
    torch.testing.assert_close(score_orders(renamed, new[orders], variant=variant), scores)


@pytest.mark.parametrize("size", [3, 4, 5, 6, 7])
def test_equal_distances_make_all_orders_equal_and_ties_go_to_the_first(size):
    distance = 0.3 * (1 - torch.eye(size, dtype=torch.double))
    torch.testing.assert_close(variance_share(distance), torch.full((size,), 1 / size, dtype=torch.double))
    ranked = rank_orders(distance)
    torch.testing.assert_close(ranked.scores, ranked.scores[:1].expand_as(ranked.scores))
    assert torch.equal(ranked.orders, all_orders(size))
    assert rank_orders(distance, method="fill").orders.tolist() == [[0, *range(1, size)], [1, 0, *range(2, size)]]
    assert torch.equal(rank_orders(distance, 1, method="beam").orders[0].sort().values, torch.arange(size))


def test_three_classes_and_the_swap_of_the_last_two():
    distance = random_distance(3)
    d, v = row_normalised(distance), variance_share(distance)
    one, other = score_orders(distance, [[0, 1, 2], [0, 2, 1]])
    assert math.isclose(one.item(), (1 - v[0] + 1 - d[0, 2] + d[0, 1]).item())
    assert math.isclose((other - one).item(), 2 * (d[0, 2] - d[0, 1]).item())


def test_the_last_bracket_of_an_even_number_is_1_and_two_classes_have_2_less_v():
    distance = random_distance(2)
    torch.testing.assert_close(score_orders(distance, all_orders(2)), 2 - variance_share(distance))
    d, v = row_normalised(random_distance(4)), variance_share(random_distance(4))
    expected = 1 - v[2] + (1 - d[2, 3]) + d[2, 0] + 1
    torch.testing.assert_close(score_orders(random_distance(4), [[2, 0, 1, 3]])[0], expected)
    assert score_orders(torch.zeros(1, 1), [[0]]).item() == 0


def test_alike_classes_and_nonzero_self_distances():
    distance = random_distance(4)
    distance[1] = 0
    torch.testing.assert_close(row_normalised(distance)[1], torch.full((4,), 0.25, dtype=torch.double))
    assert variance_share(distance)[1] == 0
    torch.testing.assert_close(variance_share(torch.zeros(4, 4)), torch.full((4,), 0.25, dtype=torch.double))
    with_self = random_distance(4) + torch.eye(4)  # entropic transport: the sum over a row holds it
    torch.testing.assert_close(row_normalised(with_self).sum(1), torch.ones(4, dtype=torch.double))
    assert (row_normalised(with_self).diagonal() > 0).all()


@pytest.mark.parametrize("variant", ["distance", "rank"])
@pytest.mark.parametrize("size", [2, 3, 5, 6, 7])
def test_searches(size, variant):
    distance = random_distance(size, seed=size)
    best = rank_orders(distance, variant=variant)
    assert len(best.orders) == math.factorial(size)
    assert (best.scores[:-1] >= best.scores[1:] - 1e-9).all()
    for method in ("beam", "fill"):
        found = rank_orders(distance, 2, method=method, variant=variant)
        assert len(found.orders) == 2
        assert (found.scores <= best.scores[0] + 1e-9).all()
        torch.testing.assert_close(found.scores, score_orders(distance, found.orders, variant=variant))
    wide = rank_orders(distance, method="beam", variant=variant, width=math.factorial(size))
    torch.testing.assert_close(wide.scores, best.scores)  # a beam that drops nothing is the whole search
    assert sorted(map(tuple, wide.orders.tolist())) == sorted(map(tuple, best.orders.tolist()))
    narrow, usual = (rank_orders(distance, 1, method="beam", variant=variant, width=width).scores[0] for width in (1, 200))
    assert narrow <= usual + 1e-9


def test_the_usual_beam_finds_nearly_the_best_of_8_classes_and_is_taken_beyond():
    gaps, by_lot = [], []
    for seed in range(5):
        distance = random_distance(8, seed=seed)
        best = rank_orders(distance)
        gaps.append((best.scores[0] - rank_orders(distance, 1, method="beam").scores[0]).item())
        by_lot.append((best.scores[0] - best.scores.mean()).item())
    assert max(gaps) < 0.02 * min(by_lot)
    large = random_distance(30)
    ranked = rank_orders(large, 5)
    assert torch.equal(ranked.orders.sort(dim=1).values, torch.arange(30).expand(5, 30))
    assert ranked.scores[0] > score_orders(large, [torch.randperm(30).tolist() for _ in range(50)]).max()
    assert len(rank_orders(large).orders) == 200


def test_the_first_class_can_be_given():
    distance = random_distance(5)
    for method in ("exhaustive", "beam", "fill"):
        assert (rank_orders(distance, method=method, first=3).orders[:, 0] == 3).all()
    free = rank_orders(distance)
    begins = free.orders[:, 0] == 3
    torch.testing.assert_close(rank_orders(distance, first=3).scores, free.scores[begins])


def test_the_released_generator_step_by_step():
    for size in (3, 5, 7):
        distance = random_distance(size)
        d, v = row_normalised(distance), variance_share(distance)
        for found, begin in zip(rank_orders(distance, 3, method="fill").orders.tolist(), v.argsort().tolist(), strict=False):
            free = [c for c in range(size) if c != begin]
            front, end = [begin], []
            while free:
                end.insert(0, free.pop(min(range(len(free)), key=lambda i: d[begin, free[i]])))
                front.append(free.pop(max(range(len(free)), key=lambda i: d[begin, free[i]])))
            assert found == front + end


def test_distances_of_means():
    torch.manual_seed(0)
    features, labels = torch.randn(60, 5), torch.arange(60) % 3
    means = [features[labels == label].double().mean(0) for label in range(3)]
    for metric, between in (
        ("cosine", lambda a, b: 1 - torch.cosine_similarity(a, b, dim=0)),
        ("euclidean", lambda a, b: (a - b).norm()),
    ):
        found = class_distance(features, labels, metric=metric)
        for i, j in itertools.product(range(3), repeat=2):
            assert math.isclose(found[i, j].item(), between(means[i], means[j]).item() if i != j else 0.0, abs_tol=1e-12)
    names = torch.randn(4, 7)  # one row per class, such as embeddings of names
    torch.testing.assert_close(class_distance(names, torch.arange(4), metric="euclidean"), torch.cdist(names.double(), names.double()))


def test_cosine_knows_no_scale_of_features():
    torch.manual_seed(0)
    features, labels = torch.randn(20, 5), torch.arange(20) % 4
    torch.testing.assert_close(class_distance(100 * features, labels), class_distance(features, labels))


def test_transport_on_a_line_is_the_distance_of_sorted_samples_and_a_shift_is_its_length():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 12, 1, generator=generator)
    labels = torch.tensor([0] * 12 + [1] * 15)
    features = torch.cat([a, b, torch.zeros(3, 1)])  # of the larger class the first 12 count
    found = class_distance(features, labels, metric="transport")
    expected = (a.double().sort(dim=0).values - b.double().sort(dim=0).values).square().mean().sqrt()
    torch.testing.assert_close(found, expected * (1 - torch.eye(2, dtype=torch.double)))
    cloud, shift = torch.randn(10, 3, generator=generator), torch.tensor([1.0, 2.0, 2.0])
    moved = class_distance(torch.cat([cloud, cloud.flip(0) + shift]), torch.arange(20) // 10, metric="transport")
    assert math.isclose(moved[0, 1].item(), 3.0, rel_tol=1e-6)


def test_groups_are_means_over_all_their_examples_and_others_are_left_out():
    torch.manual_seed(0)
    features, labels = torch.randn(40, 3), torch.arange(40) % 5
    groups = [(0, 3), (4, 1)]
    found = class_distance(features, labels, groups=groups)
    merged = torch.tensor([0, 1, 9, 0, 1])[labels]
    torch.testing.assert_close(found, class_distance(features[merged < 9], merged[merged < 9]))
    assert [rows.tolist() for rows in group_rows(torch.tensor([7, 2, 7, 5]), [(5, 7), (2,)])] == [[0, 2, 3], [1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_distance(torch.ones(3, 2), torch.tensor([0, 2, 2])), r"^labels: expected an example .* got none of \[1\]$"),
        (lambda: class_distance(torch.zeros(2, 1), torch.tensor([0, 1])), r"^features: expected means other than 0 .*group 0$"),
        (lambda: class_distance(torch.tensor([[math.nan]]), torch.tensor([0])), r"^features: expected finite numbers"),
        (lambda: class_distance(torch.ones(3), torch.zeros(3).long()), r"^features: expected shape \(examples, dimensions\).*got \(3,\)$"),
        (lambda: class_distance(torch.ones(3, 2), torch.zeros(2).long()), r"^labels: expected shape \(3,\) like the features, got \(2,\)$"),
        (lambda: class_distance(torch.ones(2, 2), torch.tensor([0, -1])), r"^groups: expected classes >= 0"),
        (lambda: class_distance(torch.ones(2, 2), torch.tensor([0, 1]), groups=[(0,), ()]), r"^groups: expected classes >= 0 in each"),
        (lambda: class_distance(torch.ones(2, 2), torch.tensor([0, 1]), groups=[(0, 1), (1,)]), r"^groups: .* got class 1 twice$"),
        (lambda: class_distance(torch.ones(2, 2), torch.tensor([0, 1]), metric="l1"), r"^metric: expected one of .*, got 'l1'$"),
        (lambda: row_normalised(torch.ones(2, 3)), r"^distance: expected shape \(classes, classes\), got \(2, 3\)$"),
        (lambda: row_normalised(-torch.ones(2, 2)), r"^distance: expected finite numbers >= 0"),
        (lambda: score_orders(torch.ones(3, 3), [[0, 1, 1]]), r"^orders: expected rows that hold each class of 0 to 2 once"),
        (lambda: score_orders(torch.ones(3, 3), [[0, 1, 2]], variant="mean"), r"^variant: expected one of distance, rank, got 'mean'$"),
        (lambda: rank_orders(torch.ones(9, 9), method="exhaustive"), r"^method: expected 'beam' or 'fill' for more than 8 classes"),
        (lambda: rank_orders(torch.ones(3, 3), method="greedy"), r"^method: expected one of auto, exhaustive, beam, fill, got 'greedy'$"),
        (lambda: rank_orders(torch.ones(3, 3), 0), r"^n_best: expected at least 1, got 0$"),
        (lambda: rank_orders(torch.ones(3, 3), first=3), r"^first: expected a class of 0 to 2, got 3$"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_types_are_refused():
    with pytest.raises(TypeError, match=r"^labels: expected integers, got torch.float32$"):
        class_distance(torch.ones(2, 2), torch.ones(2))
    with pytest.raises(TypeError, match=r"^features: expected a floating-point tensor, got torch.int64$"):
        class_distance(torch.ones(2, 2).long(), torch.arange(2))
