"""Relational distillation: slow references, invariances, guards."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.relations import rkd_angle, rkd_distance


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Embeddings of seven examples, of different dimension."""
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(7, 4, generator=generator, dtype=torch.double),
        torch.randn(7, 6, generator=generator, dtype=torch.double),
    )


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def slow_distances(points: list[list[float]], power: int) -> list[list[float]]:
    table = [[math.dist(a, b) ** power for b in points] for a in points]
    positive = [d for row in table for d in row if d > 0]
    return [[d / (sum(positive) / len(positive)) for d in row] for row in table]


@pytest.mark.parametrize("squared", [False, True])
def test_distance_reference(pair, squared):
    student, teacher = (slow_distances(x.tolist(), 2 if squared else 1) for x in pair)
    expected = [sum(smooth_l1(a - b) for a, b in zip(s, t, strict=True)) / 7 for s, t in zip(student, teacher, strict=True)]
    value = rkd_distance(*pair, squared=squared)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.double), rtol=0, atol=1e-10)


def slow_cosine(points: list[list[float]], i: int, j: int, k: int) -> float:
    if i in (j, k):
        return 0.0
    a, b = ([x - y for x, y in zip(points[other], points[i], strict=True)] for other in (j, k))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def test_angle_reference(pair):
    student, teacher = (x.tolist() for x in pair)
    total = [0.0] * 7
    for i, j, k in itertools.product(range(7), repeat=3):
        total[i] += smooth_l1(slow_cosine(student, i, j, k) - slow_cosine(teacher, i, j, k)) / 49
    torch.testing.assert_close(rkd_angle(*pair), torch.tensor(total, dtype=torch.double), rtol=0, atol=1e-10)


def difference_cosines(x: Tensor) -> Tensor:
    sides = F.normalize(x[None, :] - x[:, None], dim=2)
    return sides @ sides.mT


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_angle_value_and_gradient_equal_those_of_the_difference_tensor(offset):
    generator = torch.Generator().manual_seed(1)
    student = (torch.randn(24, 16, generator=generator, dtype=torch.double) + offset).requires_grad_()
    teacher = torch.randn(24, 32, generator=generator, dtype=torch.double)
    value = rkd_angle(student, teacher)
    expected = F.smooth_l1_loss(difference_cosines(student), difference_cosines(teacher), reduction="none").mean(dim=(1, 2))
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(v.sum(), student)[0] for v in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.double, torch.float])
def test_identical_points_have_no_angle_whatever_the_rounding(dtype):
    points = torch.randn(20, 67, generator=torch.Generator().manual_seed(1), dtype=dtype)
    twins = torch.cat([points, points[torch.arange(20).flip(0)], points[:5]])
    twins.requires_grad_()
    teacher = torch.randn(45, 8, generator=torch.Generator().manual_seed(2), dtype=dtype)
    value = rkd_angle(twins, teacher)
    expected = F.smooth_l1_loss(difference_cosines(twins), difference_cosines(teacher), reduction="none").mean(dim=(1, 2))
    size = 1e-10 if dtype == torch.double else 1e-5
    torch.testing.assert_close(value, expected, rtol=0, atol=size)
    assert torch.autograd.grad(value.sum(), twins)[0].abs().max() < 1


def test_the_mean_distance_is_not_constant_for_the_student(pair):
    student, teacher = pair
    student.requires_grad_()
    rkd_distance(student, teacher).sum().backward()
    assert student.grad is not None
    # Scale invariance: the gradient has no component along the embedding, which a constant mean would leave.
    assert (student.grad * student).sum().abs() < 1e-12
    assert student.grad.abs().max() > 1e-3


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
@pytest.mark.parametrize("side", [0, 1])
def test_scaling_rotation_and_translation_change_nothing(pair, loss, side):
    rotation, _ = torch.linalg.qr(torch.randn(pair[side].shape[1], pair[side].shape[1], dtype=torch.double))
    for moved in (3.7 * pair[side], pair[side] @ rotation, pair[side] + 11, 0.02 * pair[side] @ rotation - 5):
        changed = list(pair)
        changed[side] = moved
        torch.testing.assert_close(loss(*changed), loss(*pair), rtol=0, atol=1e-9)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
@pytest.mark.parametrize("dtype", [torch.double, torch.float])
def test_identical_points_are_finite(loss, dtype):
    generator = torch.Generator().manual_seed(2)
    points = torch.randn(5, 3, generator=generator, dtype=dtype)
    some = points[[0, 0, 1, 2, 3]].clone().requires_grad_()
    collapsed = torch.ones(5, 3, dtype=dtype, requires_grad=True)
    for student in (some, collapsed):
        value = loss(student, points)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()
        assert torch.isfinite(loss(points, student)).all()


def test_a_triplet_is_needed_for_an_angle(pair):
    assert (rkd_angle(pair[0][:2], pair[1][:2]) < 1e-15).all()
    assert (rkd_distance(pair[0][:2], pair[1][:2]) < 1e-15).all()  # one distance, divided by itself
    assert (rkd_angle(pair[0][:3], pair[1][:3]) > 0).all()


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_mixed_precision_leaves_the_gram_matrix_alone(pair, loss):
    student, teacher = (x.float() for x in pair)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher)
    torch.testing.assert_close(value, loss(student, teacher))


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_what_is_no_embedding_is_refused(loss):
    with pytest.raises(ValueError, match=r"teacher: expected embeddings \(N, D\) with N like student \(4, 3\), got \(5, 3\)"):
        loss(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="expected embeddings"):
        loss(torch.zeros(4, 3, 2), torch.zeros(4, 3, 2))


def test_the_floor_is_positive(pair):
    with pytest.raises(ValueError, match="eps: expected a finite number > 0, got 0"):
        rkd_distance(*pair, eps=0.0)
