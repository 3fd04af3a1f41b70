"""F of a stream of classes, and the agreement of rankings of orders."""

import itertools
import math

import pytest
import torch
from scipy import stats

from preceptor.metrics.class_streams import compare_rankings, f_score, order_quality


def score(first, last, average):
    return f_score(torch.tensor([first, last], dtype=torch.double), torch.tensor([first, average], dtype=torch.double)).item()


def test_f_is_the_harmonic_mean_of_accuracy_and_1_over_forgetting():
    for first, last, average in ((0.9, 0.2, 0.5), (1.0, 0.0, 1.0), (0.5, 0.4, 0.1)):
        assert math.isclose(score(first, last, average), stats.hmean([average, 1 / (first - last)]))


def test_f_rises_with_accuracy_and_falls_with_forgetting_and_is_2_a_without():
    accuracies = [score(0.9, 0.3, average) for average in (0.0, 0.2, 0.5, 1.0)]
    assert accuracies == sorted(accuracies)
    assert accuracies[0] == 0
    forgetting = [score(0.9, last, 0.5) for last in (1.0, 0.9, 0.5, 0.0)]
    assert forgetting == sorted(forgetting, reverse=True)
    assert forgetting[0] > forgetting[1] == 2 * 0.5  # the first task got better later, or stayed


def test_only_the_ends_count_and_leading_axes_stay():
    torch.manual_seed(0)
    first, average = torch.rand(2, 4, 3, 6, dtype=torch.double)
    found = f_score(first, average)
    assert found.shape == (4, 3)
    torch.testing.assert_close(found, f_score(first[..., [0, -1]], average[..., [0, -1]]))


def test_quality_of_a_run_reads_the_columns_of_the_classes_seen():
    order = torch.tensor([2, 0, 1])
    accuracy = torch.tensor([[0.3, 0.7, 0.9], [0.8, 0.6, 0.5], [0.4, 0.6, 0.2]], dtype=torch.double)
    forgotten, last = 0.9 - 0.2, (0.4 + 0.6 + 0.2) / 3
    assert math.isclose(order_quality(accuracy, order).item(), 2 * last / (forgotten * last + 1))


def test_agreement():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    reference = torch.rand(24, generator=torch.Generator().manual_seed(0))
    same = compare_rankings(reference, 3 * reference - 1, orders)
    assert same.spearman == 1
    assert same.hamming == [0] * 5
    assert sum(same.sizes) == 24
    low, high = reference.aminmax()
    assert same.sizes[0] == int((reference >= high - (high - low) / 5).sum())
    lots = [share for share, size in zip(same.random_hamming, same.sizes, strict=True) if size]
    assert all(abs(share - 0.75) < 0.05 for share in lots)  # two orders by lot agree in one of four classes
    other = torch.rand(24, generator=torch.Generator().manual_seed(1))
    assert math.isclose(compare_rankings(reference, other, orders).spearman, stats.spearmanr(reference, other).statistic, rel_tol=1e-6)


def test_hamming_against_a_slow_loop():
    orders = torch.tensor(list(itertools.permutations(range(3))))
    reference, scores = torch.tensor([0.0, 1.0, 0.95, 0.2, 0.5, 0.49]), torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    found = compare_rankings(reference, scores, orders, bins=2, draws=1)
    ranked = sorted(range(6), key=lambda i: -reference[i])
    shares = [sum(a != b for a, b in zip(orders[i].tolist(), orders[rank].tolist(), strict=True)) / 3 for rank, i in enumerate(ranked)]
    assert found.sizes == [2, 4]  # a score on the edge, here 0.5, is in the lower bin
    torch.testing.assert_close(torch.tensor(found.hamming), torch.tensor([sum(shares[:2]) / 2, sum(shares[2:]) / 4]))
    assert compare_rankings(reference, scores, orders, seed=1) != compare_rankings(reference, scores, orders, seed=2)


def test_equal_scores_are_no_ranking():
    orders = torch.tensor(list(itertools.permutations(range(3))))
    found = compare_rankings(torch.ones(6), torch.arange(6.0), orders)
    assert found.spearman == 0
    assert found.sizes == [6, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score(90.0, 20.0, 0.5), r"^first_task_accuracy: expected shares in \[0, 1\], got 90$"),
        (lambda: score(0.9, 0.2, 50.0), r"^average_accuracy: expected shares in \[0, 1\], got 50$"),
        (lambda: score(0.9, math.nan, 0.5), r"^first_task_accuracy: expected shares in \[0, 1\], got nan$"),
        (lambda: score(0.0, 1.0, 1.0), r"^first_task_accuracy: expected forgetting times accuracy above -1"),
        (
            lambda: f_score(torch.zeros(3), torch.zeros(4)),
            r"^average_accuracy: expected shape \(3,\) like .*, got \(4,\)$",
        ),
        (lambda: f_score(torch.zeros(0), torch.zeros(0)), r"^first_task_accuracy: expected shape \(..., tasks\), got \(0,\)$"),
        (lambda: order_quality(torch.zeros(2, 3), torch.arange(3)), r"^accuracy: expected shape \(3, 3\), got \(2, 3\)$"),
        (lambda: compare_rankings(torch.zeros(3), torch.zeros(3), torch.zeros(2, 3)), r"^orders: expected a row for each"),
        (lambda: compare_rankings(torch.zeros(2), torch.zeros(2), torch.zeros(2, 3), bins=0), r"^bins: expected at least 1, got 0$"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
