"""Sliced Wasserstein distances: shifts, permutations, one dimension against the cheapest pairing."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from preceptor.metrics.transport import sliced_wasserstein


def draws():
    return torch.Generator().manual_seed(0)


def test_in_one_dimension_it_is_the_cheapest_pairing():
    a, b = torch.randn(30, 1, dtype=torch.double), torch.rand(30, 1, dtype=torch.double)
    costs = (a - b.T).square().numpy()
    expected = math.sqrt(costs[linear_sum_assignment(costs)].mean())
    assert math.isclose(sliced_wasserstein(a, b, projections=3, generator=draws()), expected, rel_tol=1e-9)


def test_order_does_not_matter_and_a_shift_is_its_length_over_the_root_of_dimensions():
    a = torch.randn(40, 2)
    assert sliced_wasserstein(a, a.flip(0), generator=draws()) < 1e-12
    shift = sliced_wasserstein(a, a + torch.tensor([3.0, 0.0]), projections=20000, generator=draws())
    assert abs(shift - 3 / math.sqrt(2)) < 0.02


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"b: expected points \(N, D\)"):
        sliced_wasserstein(torch.zeros(3, 2), torch.zeros(4, 2), generator=draws())
