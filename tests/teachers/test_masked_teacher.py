"""Masks by magnitude, their schedule, and a teacher that wears them."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from preceptor.models.reference import MLP
from preceptor.teachers.masked import MaskSchedule, magnitude_mask, masked_teacher, masked_weights


def model():
    torch.manual_seed(0)
    return MLP(inputs=6, hidden=(7, 5), classes=3)


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.05, 0.2, 0.5, 0.99, 1.0])
def test_exactly_the_rounded_share_is_dropped_as_torch_prunes(ratio):
    torch.manual_seed(1)
    weight = torch.randn(5, 9)
    mask = magnitude_mask(weight, ratio)
    assert int((~mask).sum()) == round(ratio * 45)
    if (~mask).any() and mask.any():
        assert weight[~mask].abs().max() < weight[mask].abs().min()
    layer = nn.Linear(9, 5)
    layer.weight.data.copy_(weight)
    prune.l1_unstructured(layer, "weight", amount=ratio)
    assert torch.equal(layer.weight_mask.bool(), mask)


def test_masks_are_nested_and_ties_go_by_index():
    weight = torch.tensor([1.0, -1.0, 0.5, 1.0, -0.5, 1.0])
    assert magnitude_mask(weight, 0.5).tolist() == [False, True, False, True, False, True]
    torch.manual_seed(2)
    weight = torch.randint(-3, 4, (40,)).float()
    masks = [magnitude_mask(weight, r / 20) for r in range(21)]
    assert all(bool((small | ~large).all()) for small, large in itertools.pairwise(masks))


def test_magnitudes_of_bfloat16_count_as_they_are_and_integers_are_refused():
    weight = torch.randn(30).bfloat16()
    assert torch.equal(magnitude_mask(weight, 0.3), magnitude_mask(weight.float(), 0.3))
    with pytest.raises(TypeError, match="weight"):
        magnitude_mask(torch.arange(4), 0.5)
    with pytest.raises(ValueError, match="ratio"):
        magnitude_mask(torch.ones(3), 1.2)


def test_the_default_schedule_gives_back_in_five_equal_stages():
    ratios = [MaskSchedule(0.2, 0.05, 20)(i) for i in range(20)]
    assert ratios == [r for r in (0.2, 0.15, 0.1, 0.05, 0.0) for _ in range(4)]
    assert MaskSchedule(0.2, 0.05, 20)(20) == 0.0
    assert [MaskSchedule(0.0, 0.05, 3)(i) for i in range(3)] == [0.0] * 3
    with pytest.raises(ValueError, match="multiple of step"):
        MaskSchedule(0.2, 0.15, 10)
    with pytest.raises(ValueError, match="step"):
        MaskSchedule(0.2, 0.0, 10)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_a_teacher_gets_its_weights_back_bit_for_bit(ratio, scope):
    teacher = model()
    before = copy.deepcopy(teacher.state_dict())
    with masked_teacher(teacher, ratio, scope=scope):
        weights = [teacher.hidden1.linear.weight, teacher.hidden2.linear.weight]
        zeros = [int((w == 0).sum()) for w in weights]
        if scope == "layer":
            assert zeros == [round(ratio * w.numel()) for w in weights]
        assert sum(zeros) == round(ratio * 77)
        assert torch.equal(teacher.fc.weight, before["fc.weight"])
        assert torch.equal(teacher.hidden1.linear.bias, before["hidden1.linear.bias"])
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_weights_come_back_after_an_exception():
    teacher = model()
    before = copy.deepcopy(teacher.state_dict())

    def fails():
        with masked_teacher(teacher, 0.5):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fails()
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_shared_weights_are_masked_once_and_never_those_of_an_embedding_or_the_output():
    shared = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = shared.weight
    embedding, head = nn.Embedding(9, 4), nn.Linear(4, 9)
    head.weight = embedding.weight
    assert [id(w) for w in masked_weights(nn.Sequential(embedding, shared, tied, head))] == [id(shared.weight)]
    teacher = model()
    assert [id(w) for w in masked_weights(teacher, ["fc"])] == [id(teacher.fc.weight)]
    with pytest.raises(ValueError, match="none"):
        masked_weights(teacher, ["hidden1.relu"])
    with pytest.raises(ValueError, match="without any"):
        masked_weights(nn.Linear(3, 2))
