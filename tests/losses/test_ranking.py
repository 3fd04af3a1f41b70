"""Rankings and their likelihood."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from preceptor.losses.ranking import plackett_luce_nll, teacher_optimal_ranking


def slow(scores: list[float], ranking: list[int], weights: list[float]) -> float:
    total = 0.0
    for k, weight in enumerate(weights):
        top = max(scores[c] for c in ranking[k:])
        total += weight * (top + math.log(sum(math.exp(scores[c] - top) for c in ranking[k:])) - scores[ranking[k]])
    return total


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("labelled", [True, False])
def test_ranking_is_a_stable_sort_with_the_label_first(dtype, labelled):
    torch.manual_seed(0)
    teacher = torch.randint(-3, 4, (40, 17)).to(dtype)  # many equal logits, of both signs
    teacher[teacher == 0] = -0.0
    teacher[::3, 4] = 0.0
    teacher[::5, :6] = -torch.inf
    labels = torch.randint(17, (40,))
    ranking = teacher_optimal_ranking(teacher, labels if labelled else None)
    for row, label, got in zip(teacher.tolist(), labels.tolist(), ranking.tolist(), strict=True):
        first = [label] if labelled else []
        assert got == first + sorted((c for c in range(17) if c not in first), key=lambda c: -row[c])


def test_more_axes_than_two():
    torch.manual_seed(0)
    teacher, labels = torch.randn(2, 3, 4), torch.randint(4, (2, 3))
    ranking = teacher_optimal_ranking(teacher, labels)
    assert torch.equal(ranking, teacher_optimal_ranking(teacher.flatten(0, 1), labels.flatten()).view(2, 3, 4))
    scores = torch.randn(2, 3, 4)
    nll = plackett_luce_nll(scores, ranking)
    torch.testing.assert_close(nll, plackett_luce_nll(scores.flatten(0, 1), ranking.flatten(0, 1)).view(2, 3))


@pytest.mark.parametrize(
    ("size", "dtype", "rtol"), [(1, torch.double, 1e-12), (3e4, torch.double, 1e-12), (10, torch.float, 1e-5), (1e4, torch.float, 1e-5)]
)
def test_reference(size, dtype, rtol):  # float32 sums 9 logarithms of sums
    torch.manual_seed(0)
    scores, weights = (size * torch.randn(6, 9)).to(dtype), torch.rand(6, 9, dtype=dtype)
    ranking = torch.rand(6, 9).argsort(dim=-1)
    got = plackett_luce_nll(scores, ranking, weights)
    assert got.dtype == dtype
    for i, value in enumerate(got.tolist()):
        assert math.isclose(value, slow(scores[i].tolist(), ranking[i].tolist(), weights[i].tolist()), rel_tol=rtol)


def test_the_likelihoods_of_all_rankings_sum_to_1():
    scores = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.double)
    rankings = torch.tensor(list(itertools.permutations(range(4))))
    torch.testing.assert_close(plackett_luce_nll(scores.expand(24, 4), rankings).neg().exp().sum(), torch.ones((), dtype=torch.double))


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_gradient(size):
    torch.manual_seed(0)
    scores = (size * torch.randn(3, 5, dtype=torch.double)).requires_grad_()
    ranking, weights = torch.rand(3, 5).argsort(dim=-1), torch.rand(3, 5, dtype=torch.double)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return plackett_luce_nll(x, ranking, weights)

    assert torch.autograd.gradcheck(loss, (scores,))
    if size == 1:
        assert torch.autograd.gradgradcheck(loss, (scores,))
    (gradient,) = torch.autograd.grad(loss(scores).sum(), scores)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(3, dtype=torch.double), rtol=0, atol=1e-13 * size)
    expected = torch.zeros_like(scores)
    for i, k, j in itertools.product(range(3), range(5), range(5)):
        if j >= k:  # class at rank j takes part in the choices k <= j
            rest = scores[i, ranking[i, k:]]
            expected[i, ranking[i, j]] += weights[i, k] * (scores[i, ranking[i, j]] - rest.logsumexp(0)).exp()
    expected.scatter_add_(1, ranking, -weights)
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-10, atol=1e-12)


def test_both_ways_to_sum_agree():
    torch.manual_seed(0)
    scores = torch.randn(4, 6, dtype=torch.double)
    apart = torch.cat([scores, torch.full((4, 1), -700.0, dtype=torch.double)], dim=1)  # too far for plain sums, and of no weight
    ranking = torch.rand(4, 6).argsort(dim=-1)
    longer = torch.cat([ranking, torch.full((4, 1), 6)], dim=1)
    weights = torch.rand(4, 6, dtype=torch.double)
    padded = torch.cat([weights, torch.zeros(4, 1, dtype=torch.double)], dim=1)
    torch.testing.assert_close(plackett_luce_nll(apart, longer, padded), plackett_luce_nll(scores, ranking, weights))


def test_masked_classes_single_classes_and_no_items():
    scores = torch.tensor([[1.0, -torch.inf, 0.5], [-torch.inf] * 3], requires_grad=True)
    ranking = torch.tensor([[0, 2, 1], [2, 1, 0]])
    nll = plackett_luce_nll(scores, ranking)
    assert nll.isfinite().all()
    torch.testing.assert_close(nll[0], math.log(1 + math.exp(-0.5)) + torch.zeros(()))
    assert torch.autograd.grad(nll.sum(), scores)[0].isfinite().all()
    assert plackett_luce_nll(torch.tensor([[7.0], [-3.0]]), torch.zeros(2, 1, dtype=torch.int64)).tolist() == [0.0, 0.0]
    none = torch.zeros(0, 3, requires_grad=True)
    assert plackett_luce_nll(none, torch.zeros(0, 3, dtype=torch.int64)).shape == (0,)
    assert torch.autograd.grad(plackett_luce_nll(none, torch.zeros(0, 3, dtype=torch.int64)).sum(), none)[0].shape == (0, 3)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"ranking: expected shape \(2, 3\) like scores, got \(2, 2\)"):
        plackett_luce_nll(torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 2\], got 3"):
        teacher_optimal_ranking(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(TypeError, match=r"teacher: expected a floating-point tensor, got torch\.int64"):
        teacher_optimal_ranking(torch.zeros(2, 3, dtype=torch.int64))
