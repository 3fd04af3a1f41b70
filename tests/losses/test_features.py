"""Hints and attention maps."""

from __future__ import annotations

import math

import pytest
import torch

from preceptor.losses.features import attention_map, attention_transfer, hint_loss


def test_hint_is_the_mean_squared_difference():
    student, teacher = torch.randn(2, 4, 3, 2, 2, dtype=torch.double)
    value = hint_loss(student, teacher)
    for got, s, t in zip(value.tolist(), student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True):
        assert math.isclose(got, sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / 12, rel_tol=1e-12)
    torch.testing.assert_close(value.mean(), torch.nn.functional.mse_loss(student, teacher))


def test_hint_refuses_features_that_differ_in_shape():
    with pytest.raises(ValueError, match=r"teacher: expected shape \(2, 3\) like student, got \(2, 4\)"):
        hint_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"student: expected features of shape \(N, ...\), got \(2,\)"):
        hint_loss(torch.zeros(2), torch.zeros(2))


def slow_attention(maps: list, p: int) -> list[float]:
    """The equation for one example, channels x height x width."""
    height, width = len(maps[0]), len(maps[0][0])
    flat = [sum(channel[h][w] ** p for channel in maps) / len(maps) for h in range(height) for w in range(width)]
    norm = math.sqrt(sum(v * v for v in flat))
    return [v / norm for v in flat]


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_attention_reference(p):
    student, teacher = torch.randn(3, 2, 4, 3, dtype=torch.double), torch.randn(3, 5, 4, 3, dtype=torch.double)
    value = attention_transfer(student, teacher, p=p)
    for got, s, t in zip(value.tolist(), student.tolist(), teacher.tolist(), strict=True):
        a, b = slow_attention(s, p), slow_attention(t, p)
        assert math.isclose(got, sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 12, rel_tol=1e-10)


def test_attention_ignores_the_scale_of_either_map():
    student, teacher = torch.randn(3, 2, 4, 4, dtype=torch.double), torch.randn(3, 5, 4, 4, dtype=torch.double)
    value = attention_transfer(student, teacher)
    torch.testing.assert_close(attention_transfer(7 * student, teacher), value)
    torch.testing.assert_close(attention_transfer(student, 0.01 * teacher), value)
    torch.testing.assert_close(attention_transfer(-student, teacher), value)  # p is even
    assert (value <= 4 / 16).all()


@pytest.mark.parametrize(("small", "large"), [((2, 2), (4, 4)), ((3, 2), (6, 8)), ((2, 3), (5, 7))])
def test_the_larger_map_is_pooled_to_the_smaller(small, large):
    a, b = torch.randn(3, 2, *small, dtype=torch.double), torch.randn(3, 5, *large, dtype=torch.double)
    pooled = torch.nn.functional.adaptive_avg_pool2d(b, small)
    torch.testing.assert_close(attention_transfer(a, b), attention_transfer(a, pooled))
    torch.testing.assert_close(attention_transfer(b, a), attention_transfer(pooled, a))


def test_maps_larger_on_different_axes_meet_at_the_smaller_of_each():
    a, b = torch.randn(2, 3, 2, 6, dtype=torch.double), torch.randn(2, 3, 4, 3, dtype=torch.double)
    meet = [torch.nn.functional.adaptive_avg_pool2d(x, (2, 3)) for x in (a, b)]
    torch.testing.assert_close(attention_transfer(a, b), attention_transfer(*meet))


def test_a_map_of_zeros_is_zero_with_a_finite_gradient():
    zeros = torch.zeros(2, 3, 2, 2, dtype=torch.double, requires_grad=True)
    assert (attention_map(zeros) == 0).all()
    attention_transfer(zeros, torch.randn(2, 3, 2, 2, dtype=torch.double)).sum().backward()
    assert zeros.grad is not None
    assert torch.isfinite(zeros.grad).all()


def test_attention_map_has_unit_norm():
    norms = attention_map(torch.randn(3, 2, 4, 4, dtype=torch.double), p=4).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(3, dtype=torch.double))


def test_attention_refuses_what_is_no_map():
    with pytest.raises(ValueError, match=r"teacher: expected shape \(N, channels, height, width\) with N like student"):
        attention_transfer(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 16))
    with pytest.raises(ValueError, match="p: expected an integer >= 1, got 0"):
        attention_map(torch.zeros(2, 3, 4, 4), p=0)
    with pytest.raises(ValueError, match=r"features: expected shape \(N, channels, height, width\), got \(2, 3\)"):
        attention_map(torch.zeros(2, 3))
