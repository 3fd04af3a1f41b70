"""The input of the class head."""

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from preceptor.models.embeddings import class_head, embed
from preceptor.models.reference import CNN, MLP, ResNet


@pytest.mark.parametrize("model", [MLP(inputs=9, hidden=(5,)), CNN(channels=(2, 3)), ResNet(depth=8, channels=(2, 2, 2), in_channels=1)])
def test_of_reference_models(model):
    assert class_head(model) == "fc"


def test_of_a_transformer():
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4)
    model = ViTForImageClassification(config).eval()
    assert class_head(model) == "classifier"
    logits, embeddings = embed(model, torch.randn(2, 3, 8, 8))
    torch.testing.assert_close(model.classifier(embeddings), logits)


def test_logits_are_the_head_of_the_embeddings():
    model = MLP(inputs=6, hidden=(5, 3), classes=4)
    x = torch.randn(7, 6)
    logits, embeddings = embed(model, x)
    torch.testing.assert_close(model.fc(embeddings), logits)
    torch.testing.assert_close(logits, model(x))
    assert embeddings.requires_grad
    assert embed(model, x, "hidden1")[1].shape == (7, 5)


def test_what_has_no_embedding_is_refused():
    with pytest.raises(ValueError, match="layers: expected a model with a linear class head, or the name of a layer, got Conv2d"):
        class_head(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match=r"layers: expected a vector per example \(N, D\) at 'block1', got \(2, 2, 3, 3\)"):
        embed(CNN(channels=(2, 3)), torch.randn(2, 1, 6, 6), "block1")
