"""Contrast of views and prototypes."""

import math

import pytest
import torch
from torch import nn

from preceptor.losses.contrastive import nearest_prototypes, prototype_contrast, views_contrast


def views(num_views=3, num=4, seed=0):
    return torch.randn(num_views, num, 5, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def test_reference():
    given = views()
    flat = [row / row.norm() for row in given.flatten(0, 1)]
    expected = [0.0] * 4
    for a, z in enumerate(flat):
        others = math.log(sum(math.exp(float(z @ w) / 0.2) for b, w in enumerate(flat) if b != a))
        positives = [b for b in range(12) if b % 4 == a % 4 and b != a]
        expected[a % 4] -= sum(float(z @ flat[b]) / 0.2 - others for b in positives) / 2 / 3
    torch.testing.assert_close(views_contrast(given, temperature=0.2), torch.tensor(expected, dtype=torch.double))


def test_lengths_and_order_do_not_matter():
    given, order = views(), torch.tensor([2, 0, 3, 1])
    value = views_contrast(given)
    lengths = torch.rand(3, 4, 1, dtype=torch.double) + 0.1
    torch.testing.assert_close(views_contrast(given * lengths), value)
    torch.testing.assert_close(views_contrast(given[:, order]), value[order])
    torch.testing.assert_close(views_contrast(given.flip(0)), value)


def test_limits():
    torch.testing.assert_close(views_contrast(torch.ones(3, 4, 5)), torch.full((4,), math.log(11)))
    alone = views(num=1)
    assert views_contrast(alone) > math.log(2)
    torch.testing.assert_close(views_contrast(torch.eye(3).reshape(3, 1, 3)), torch.tensor([math.log(2)]))
    assert views_contrast(torch.zeros(3, 0, 5)).shape == (0,)
    zeros = torch.zeros(3, 2, 5, requires_grad=True)
    views_contrast(zeros).sum().backward()
    assert zeros.grad.isfinite().all()


def test_gradient():
    assert torch.autograd.gradcheck(views_contrast, (views().requires_grad_(),))


def test_the_nearest_is_that_of_the_largest_cosine_and_never_one_without_examples():
    features, prototypes = views()[0], views(seed=1)[1] * torch.tensor([[1.0], [50.0], [0.01], [3.0]], dtype=torch.double)
    cosine = torch.cosine_similarity(features[:, None], prototypes[None], dim=-1)
    assert torch.equal(nearest_prototypes(features, prototypes), cosine.argmax(1))
    gone = int(nearest_prototypes(features, prototypes)[0])
    prototypes[gone] = torch.nan
    cosine[:, gone] = -2
    assert torch.equal(nearest_prototypes(features, prototypes), cosine.argmax(1))
    opposite = torch.tensor([[-1.0, 0.0], [torch.nan, 0.0]])
    assert nearest_prototypes(torch.tensor([[1.0, 0.0]]), opposite) == 0
    with pytest.raises(ValueError, match="at least one finite row, got none of 4"):
        nearest_prototypes(features, prototypes * torch.nan)


def test_gradient_reaches_features_and_projector_but_no_prototype():
    torch.manual_seed(0)
    (features, augmented, prototypes), projector = views().requires_grad_(), nn.Linear(5, 3).double()
    leaves = [each.detach().requires_grad_() for each in (features, augmented, prototypes)]
    prototype_contrast(*leaves, projector).sum().backward()
    assert leaves[0].grad.any()
    assert leaves[1].grad.any()
    assert leaves[2].grad is None
    assert projector.weight.grad.any()


def test_prototype_contrast_is_contrast_of_three_views():
    features, augmented, prototypes = views()
    chosen = prototypes[nearest_prototypes(features, prototypes)]
    torch.testing.assert_close(
        prototype_contrast(features, augmented, prototypes), views_contrast(torch.stack([chosen, features, augmented]))
    )
    torch.testing.assert_close(prototype_contrast(features * 3, augmented, prototypes), prototype_contrast(features, augmented, prototypes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: views_contrast(torch.ones(1, 4, 5)), r"views: expected shape \(views, N, D\) with at least 2 views, got \(1, 4, 5\)"),
        (lambda: views_contrast(views(), temperature=0.0), "temperature: expected a finite number > 0, got 0.0"),
        (lambda: nearest_prototypes(torch.ones(2, 3), torch.ones(4, 5)), r"prototypes: expected shape \(C, D\) with D like features"),
        (lambda: prototype_contrast(torch.ones(2, 3), torch.ones(3, 3), torch.ones(2, 3)), r"augmented: expected shape \(2, 3\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
