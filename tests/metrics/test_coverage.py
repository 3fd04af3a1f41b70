"""pass@k."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from preceptor.metrics.coverage import coverage, pass_at_k, pass_curve


@pytest.mark.parametrize("p", [0.0, 1e-6, 0.03, 0.4, 0.97, 1.0])
@pytest.mark.parametrize("k", [1, 2, 7, 20])
def test_the_estimate_is_unbiased(p, k):
    n = 20
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    values = pass_at_k(torch.arange(n + 1), n, k)
    mean = sum(w * v for w, v in zip(weights, values.tolist(), strict=True))
    assert abs(mean - (1 - (1 - p) ** k)) < 1e-12
    assert abs(mean - coverage(torch.tensor(p, dtype=torch.double), k).item()) < 1e-12


def test_reference():
    for n, k in ((5, 1), (5, 3), (5, 5), (300, 17)):
        expected = [1 - math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)]
        torch.testing.assert_close(pass_at_k(torch.arange(n + 1), n, k), torch.tensor(expected, dtype=torch.double), rtol=1e-11, atol=1e-13)


def test_one_sample_gives_the_share_that_is_right():
    c = torch.arange(9)
    torch.testing.assert_close(pass_at_k(c, 8, 1), c.double() / 8, rtol=1e-13, atol=1e-15)


def test_it_rises_with_samples_and_with_right_ones():
    n = 30
    table = torch.stack([pass_at_k(torch.arange(n + 1), n, k) for k in range(1, n + 1)])
    assert (table.diff(dim=0) >= -1e-14).all()
    assert (table.diff(dim=1) >= -1e-14).all()
    assert (table[:, 0] == 0).all()
    assert (table[:, -1] == 1).all()


def test_problems_may_have_different_numbers_of_samples():
    c, n = torch.tensor([0, 1, 3, 4]), torch.tensor([4, 9, 5, 6])
    alone = [pass_at_k(c[i : i + 1], int(n[i]), 3).item() for i in range(4)]
    assert pass_at_k(c, n, 3).tolist() == pytest.approx(alone, abs=1e-14)


def test_the_plug_in_estimate_is_lower_on_average():
    n, p, k = 10, 0.1, 5
    weights = torch.tensor([math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)], dtype=torch.double)
    plug_in = coverage(torch.arange(n + 1) / n, k)
    assert (weights * plug_in).sum() < (weights * pass_at_k(torch.arange(n + 1), n, k)).sum() - 0.01


def test_two_sure_problems_against_two_hard_ones():
    sure, hard = torch.tensor([1.0, 0.0]), torch.tensor([0.1, 0.1])
    assert [coverage(sure, k).mean().item() for k in (1, 10, 1000)] == [0.5, 0.5, 0.5]
    assert math.isclose(coverage(hard, 1).mean().item(), 0.1, rel_tol=1e-6)
    assert coverage(hard, 1000).mean().item() > 1 - 1e-12


def test_small_probabilities_keep_their_digits():
    assert math.isclose(coverage(torch.tensor(1e-15, dtype=torch.double), 4).item(), 4e-15, rel_tol=1e-12)


def test_the_curve_has_the_error_over_problems():
    correct = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    curve = pass_curve(correct, (1, 2))
    pairs = [[any(row[i] for i in pair) for pair in itertools.combinations(range(4), 2)] for row in correct.tolist()]
    values = [sum(row) / 6 for row in pairs]
    mean = sum(values) / 3
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / 2 / 3)
    assert curve[1][0] == pytest.approx(0.25)
    assert curve[2] == (pytest.approx(mean), pytest.approx(error))
    assert math.isnan(pass_curve(correct[:1], (1,))[1][1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor([1]), 3, 4), "k: expected at most the number of samples, 3, got 4"),
        ((torch.tensor([1]), 3, 0), "k: expected at least 1, got 0"),
        ((torch.tensor([4]), 3, 1), "num_correct: expected counts from 0"),
        ((torch.tensor([[1]]), 3, 1), "num_samples: expected one number"),
    ],
)
def test_counts_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(*arguments)


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="expected integers"):
        pass_at_k(torch.tensor([0.5]), 3, 1)
    with pytest.raises(ValueError, match=r"probability: expected numbers in \[0, 1\], got 1.5"):
        coverage(torch.tensor([0.5, 1.5]), 2)
    with pytest.raises(ValueError, match=r"k: expected a number of at least 1, got 0\.5"):
        coverage(torch.tensor([0.5]), 0.5)
    with pytest.raises(ValueError, match="correct: expected shape"):
        pass_curve(torch.zeros(0, 3, dtype=torch.bool), (1,))
