"""Heads of subclasses."""

import math

import pytest
import torch
from torch import nn

from preceptor.models.embeddings import embed
from preceptor.models.folder import load_student, save_student
from preceptor.models.reference import CNN, MLP, ResNet, build, shrink
from preceptor.models.subclasses import SubclassHead, collapse, subclass_head


def test_reference():
    outputs = torch.randn(3, 6, dtype=torch.double)
    found = collapse(outputs, 2).tolist()
    for row, logs in zip(outputs.tolist(), found, strict=True):
        total = sum(math.exp(v) for v in row)
        for c, value in enumerate(logs):
            assert math.isclose(value, math.log((math.exp(row[2 * c]) + math.exp(row[2 * c + 1])) / total), rel_tol=1e-9)


def test_log_probabilities_of_classes_sum_to_one():
    logs = collapse(torch.randn(4, 5, 12), 3)
    assert logs.shape == (4, 5, 4)
    torch.testing.assert_close(logs.exp().sum(-1), torch.ones(4, 5))
    assert torch.autograd.gradcheck(lambda x: collapse(x, 3), (torch.randn(2, 6, dtype=torch.double, requires_grad=True),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_extremes(dtype):
    logs = collapse(torch.tensor([[1e4, -1e4, 0.0, 5.0], [-math.inf, 1.0, 2.0, 3.0]], dtype=dtype), 2)
    assert logs.dtype == torch.float32
    assert logs.isfinite().all()


def test_one_subclass_is_a_linear_head():
    torch.manual_seed(0)
    head, x = SubclassHead(5, 3, 1), torch.randn(4, 5)
    torch.testing.assert_close(head(x), head.outputs(x).log_softmax(-1))


@pytest.mark.parametrize("family", [{"reference": "mlp", "inputs": 36}, {"reference": "cnn"}, {"reference": "resnet", "in_channels": 1}])
def test_reference_models_can_have_one(family, tmp_path):
    model = build({**family, "classes": 3, "subclasses": 4})
    assert isinstance(model, (MLP, CNN, ResNet))
    assert model.config["subclasses"] == 4
    assert "subclasses" not in build(family).config
    assert shrink(model, 0.5).config["subclasses"] == 4
    name, head = subclass_head(model)
    assert name == "fc"
    assert (head.classes, head.subclasses, head.outputs.out_features) == (3, 4, 12)
    x = torch.randn(2, 1, 6, 6)
    logits, embeddings = embed(model.eval(), x)
    torch.testing.assert_close(head(embeddings), logits)
    save_student(model, tmp_path / "student", {})
    torch.testing.assert_close(load_student(tmp_path / "student")(x), model(x), rtol=0, atol=0)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="outputs: expected a multiple of 4 subclasses, got 6"):
        collapse(torch.zeros(2, 6), 4)
    with pytest.raises(ValueError, match="subclasses: expected at least 1, got 0"):
        build({"reference": "mlp", "subclasses": 0})
    with pytest.raises(
        ValueError,
        match=r"student: expected a preceptor.models.subclasses.SubclassHead in the place of .* subclasses: 4, got Linear without",
    ):
        subclass_head(nn.Linear(2, 2))
