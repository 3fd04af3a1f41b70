"""Means by class."""

import pytest
import torch
from torch import nn

from preceptor.teachers.means import means_by_class


def batches(labels, size=3):
    x = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0))
    return x, [{"x": a, "y": b} for a, b in zip(x.split(size), torch.tensor(labels).split(size), strict=True)]


def test_absent_classes_have_a_row_of_zeros():
    model = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5))
    x, parts = batches([0, 2, 2, 0, 2, 2, 0])
    means, counts = means_by_class(model, parts, model, 4)
    assert counts.tolist() == [3, 0, 4, 0]
    expected = model[0](x)[torch.tensor([1, 2, 4, 5])].mean(dim=0)
    torch.testing.assert_close(means[2], expected)
    assert (means[[1, 3]] == 0).all()
    assert model.training
    assert not means.requires_grad


def test_half_precision_is_summed_in_double():
    model = nn.Identity()
    means, _ = means_by_class(model, ({"x": torch.full((100, 1), 1.001, dtype=torch.bfloat16), "y": torch.zeros(100).long()},), model, 1)
    assert means.dtype == torch.float32
    torch.testing.assert_close(means, torch.full((1, 1), float(torch.tensor(1.001, dtype=torch.bfloat16))))


def test_wrong_input_is_refused():
    model = nn.Identity()
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 1\], got 0 to 2"):
        means_by_class(model, batches([0, 2])[1], model, 2)
    with pytest.raises(ValueError, match="batches: expected at least one example, got none"):
        means_by_class(model, [], model, 2)
