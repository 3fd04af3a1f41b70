"""Rice coding: what goes in comes out, in few bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from preceptor.teachers.coding import decode, encode, rice_parameters


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_round_trip_of_rows_of_any_length(data):
    columns = data.draw(st.integers(1, 6))
    counts = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    most = data.draw(st.sampled_from([0, 1, 300, 100_000]))
    rows = [data.draw(arrays(np.int32, (n, columns), elements=st.integers(0, most))) for n in counts]
    parameters = rice_parameters(np.concatenate(rows))
    coded = [encode(row, parameters) for row in rows]
    np.testing.assert_array_equal(decode(coded, counts, parameters), np.concatenate(rows))


def test_each_column_gets_the_parameter_that_makes_it_shortest():
    values = np.stack([np.zeros(100), np.full(100, 1000), np.arange(100) % 7], axis=1).astype(np.int64)
    parameters = rice_parameters(values)
    for column, chosen in zip(values.T, parameters, strict=True):
        lengths = [sum(bits + 1 + (x >> bits) for x in column.tolist()) for bits in range(15)]
        assert lengths[chosen] == min(lengths)


@pytest.mark.parametrize("mean", [3, 50, 700])
def test_geometric_numbers_take_little_more_than_their_entropy(mean):
    values = np.random.default_rng(0).geometric(1 / mean, (400, 64)) - 1
    coded = encode(values, rice_parameters(values))
    p = 1 / mean
    entropy = (-p * np.log2(p) - (1 - p) * np.log2(1 - p)) / p  # bits per number
    assert 8 * len(coded) / values.size < entropy + 0.1


def test_low_bits_and_unary_parts_by_hand():
    coded = encode(np.array([[5, 2], [0, 3]]), np.array([1, 0], dtype=np.uint8))
    # low bits 1 | 0, one byte per item; unary of 5 >> 1, 2, 0, 3: 001 001 1 0001
    assert [f"{byte:08b}" for byte in coded] == ["10000000", "00000000", "00100110", "00100000"]
