"""Cut cross-entropy as a method: equal to the plain loss, without the plain loss's logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.core.state import State
from preceptor.methods.cce import CARD, CutCrossEntropy, miniature
from preceptor.methods.ce import CrossEntropy
from preceptor.metrics.cost import peak_tensor_mb


def llama(vocabulary: int = 13) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes)).double()


def batch_of(rows: int = 3, width: int = 6) -> dict:
    ids = torch.randint(13, (rows, width + 1), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(rows, width)
    mask[0, 2:] = 0
    return {"x": {"input_ids": ids[:, :-1], "use_cache": False}, "y": ids[:, 1:], "mask": mask, "id": torch.arange(rows)}


def loss_and_gradients(method, model, batch):
    loss = (method.loss(batch, {}, {"student": model}, State(total_steps=1))["hard"] * batch["mask"]).mean()
    return loss, torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("chunk_rows", [None, 1, 5])
def test_it_is_cross_entropy(chunk_rows):
    model, batch = llama(), batch_of()
    ours, plain = (loss_and_gradients(method, model, batch) for method in (CutCrossEntropy(chunk_rows=chunk_rows), CrossEntropy()))
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


def test_smoothing_and_the_penalty_of_the_normaliser():
    model, batch = llama(), batch_of()
    found = CutCrossEntropy(label_smoothing=0.1, z_loss=0.01).loss(batch, {}, {"student": model}, State(total_steps=1))["hard"]
    logits = model(**batch["x"]).logits
    dense = F.cross_entropy(logits.transpose(1, 2), batch["y"], reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(found, (dense + 0.01 * logits.logsumexp(-1).square()) * batch["mask"])


def test_a_step_holds_far_less_than_all_logits():
    model, batch = llama(20_000).float(), batch_of(8, 64)
    peak = {
        type(method).__name__: peak_tensor_mb(lambda method=method: loss_and_gradients(method, model, batch))
        for method in (CrossEntropy(), CutCrossEntropy(chunk_rows=32))
    }
    logits = 8 * 64 * 20_000 * 4 / 1e6
    assert peak["CutCrossEntropy"] < 0.5 * logits < 2 * logits < peak["CrossEntropy"]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("label_smoothing", 1.5, "in \\[0, 1\\]"),
        ("z_loss", -1.0, ">= 0"),
        ("filter_mass", 1.0, "\\[0, 1\\)"),
        ("chunk_rows", 0, "at least 1"),
    ],
)
def test_numbers_outside_their_range_are_refused(field, value, expected):
    with pytest.raises(ValueError, match=f"^{field}: expected .*{expected}"):
        CutCrossEntropy(**{field: value})


def test_a_model_without_a_linear_output_layer_is_refused():
    with pytest.raises(TypeError, match="expected a causal language model of transformers with a linear output layer, got Embedding"):
        CutCrossEntropy().loss(batch_of(), {}, {"student": nn.Embedding(13, 4)}, State(total_steps=1))


def test_the_experiment_measures_the_same_training_in_less_memory():
    arms = miniature(0, "smoke").arms
    assert abs(arms["ce"]["nll"] - arms["cce"]["nll"]) < 1e-5 < arms["untrained"]["nll"] - arms["cce"]["nll"]
    assert arms["cce"]["memory_mb"] < arms["ce"]["memory_mb"]


def test_card():
    assert (CARD.slug, CARD.tasks, CARD.needs) == ("cce", ("language",), ("labels",))
