"""What is measured of a language model equals the plain computation on all logits, token by token."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.metrics import language
from preceptor.metrics.calibration import ece
from preceptor.metrics.language import hear, score_tokens

VOCABULARY = 13


def llama(seed, vocabulary=VOCABULARY):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, initializer_range=0.5, **sizes)).double()


def batches():
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(3):
        tokens = torch.randint(VOCABULARY, (2, 8), generator=generator)
        made.append({"x": {"input_ids": tokens[:, :-1]}, "y": tokens[:, 1:], "mask": torch.rand(2, 7, generator=generator) < 0.6})
    return made


def dense(model):
    logits, targets = [], []
    with torch.no_grad():
        for batch in batches():
            logits.append(model(**batch["x"]).logits[batch["mask"]])
            targets.append(batch["y"][batch["mask"]])
    return torch.cat(logits), torch.cat(targets)


class OnlyLogits(nn.Module):
    """A model without an output layer to take off."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids).logits


@pytest.mark.parametrize("wrap", [lambda model: model, OnlyLogits])
def test_scores_are_those_of_all_logits(wrap, monkeypatch):
    monkeypatch.setattr(language, "ROWS", 4)
    student, teacher = llama(0), llama(1)
    (logits, targets), (said, _) = dense(student), dense(teacher)
    scores, curve = score_tokens(hear(wrap(student), batches()), hear(wrap(teacher), batches()))
    nll = F.cross_entropy(logits, targets).item()
    expected = {
        "nll": nll,
        "perplexity": math.exp(nll),
        "accuracy": (logits.argmax(-1) == targets).double().mean().item(),
        "agreement": (logits.argmax(-1) == said.argmax(-1)).double().mean().item(),
        "kl_to_teacher": F.kl_div(logits.log_softmax(-1), said.log_softmax(-1), log_target=True, reduction="batchmean").item(),
        "ece": float(ece(logits, targets)),
    }
    assert scores == pytest.approx(expected, rel=1e-12)
    assert int(curve.count.sum()) == len(targets)


def test_a_model_agrees_with_itself():
    said = hear(llama(0), batches())
    scores, _ = score_tokens(said, said)
    assert scores["agreement"] == 1
    assert scores["kl_to_teacher"] == 0


def test_training_mode_comes_back():
    model = llama(0).train()
    hear(model, batches())
    assert all(module.training for module in model.modules())


def test_other_vocabularies_and_empty_masks_are_refused():
    with pytest.raises(ValueError, match="vocabulary of 13, got 14"):
        score_tokens(hear(llama(0), batches()), hear(llama(1, VOCABULARY + 1), batches()))
    with pytest.raises(ValueError, match="expected at least one token that counts"):
        hear(llama(0), [{**batch, "mask": batch["mask"] & False} for batch in batches()])
