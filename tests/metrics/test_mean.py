import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.metrics.mean import Mean


def mean_of(*batches):
    mean = Mean()
    for batch in batches:
        mean.update(batch)
    return mean.compute()


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30), st.data())
@settings(max_examples=100, deadline=None)
def test_exact_whatever_the_split_and_the_order(values, draw):
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(values)), max_size=4)))
    shuffled = draw.draw(st.permutations(values))
    bounds = [0, *cuts, len(values)]
    batches = [torch.tensor(shuffled[a:b], dtype=torch.double) for a, b in pairwise(bounds)]
    exact = float(sum(map(Fraction, values), Fraction(0)) / len(values))
    assert mean_of(*batches) == mean_of(torch.tensor(values, dtype=torch.double)) == exact


def test_survives_cancellation_where_a_float_sum_does_not():
    values = torch.tensor([1e16, 1.0, -1e16, 1.0], dtype=torch.double)
    assert mean_of(values) == 0.5
    assert float(values.cumsum(0)[-1]) / 4 != 0.5


def test_batches_weigh_by_their_size():
    assert mean_of(torch.ones(3), torch.zeros(1), torch.zeros(0)) == 0.75
    assert mean_of(torch.ones(2, 3), torch.tensor(0.0)) == 6 / 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_every_type_is_summed_in_full(dtype):
    assert mean_of(torch.ones(3000, dtype=dtype), torch.zeros(3000, dtype=dtype)) == 0.5


def test_values_that_are_not_finite():
    inf, nan = torch.tensor([math.inf, 1.0]), torch.tensor([math.nan])
    assert mean_of(inf, torch.ones(3)) == math.inf
    assert math.isnan(mean_of(inf, -inf))
    assert math.isnan(mean_of(torch.ones(3), nan))


def test_no_value_is_an_error():
    with pytest.raises(ValueError, match="Mean: expected at least one value, got none"):
        mean_of(torch.zeros(0))
