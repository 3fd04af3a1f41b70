"""The two halves of a language model give its logits, whatever the family; documents in one row do not see each other."""

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from preceptor.models.heads import head, hidden_states

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "llama": {**SMALL, "intermediate_size": 32, "num_key_value_heads": 1},
    "qwen2": {**SMALL, "intermediate_size": 32, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gemma2": {
        **SMALL,
        "intermediate_size": 32,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "final_logit_softcapping": 2.0,
        "pad_token_id": 0,
    },
    "gpt2": {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0},
    "phi": {**SMALL, "intermediate_size": 32, "bos_token_id": 0, "eos_token_id": 0},  # a head with a bias
}


def build(family, **more):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family], **more)).double().eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_halves_give_the_logits(family):
    model = build(family)
    x = {"input_ids": torch.randint(0, 50, (2, 7)), "use_cache": False}
    layer = head(model)
    logits = hidden_states(model, x) @ layer.weight.T
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
        logits = logits + layer.bias
    if layer.soft_cap is not None:
        logits = layer.soft_cap * torch.tanh(logits / layer.soft_cap)
    torch.testing.assert_close(logits, model(**x).logits, rtol=1e-12, atol=1e-12)


def test_a_tied_head_is_the_embedding_itself():
    model = build("qwen2")
    assert head(model).weight is model.get_input_embeddings().weight


def test_positions_that_start_again_keep_documents_apart():
    model = build("llama")
    ids = torch.randint(0, 50, (3, 8))
    packed = {"input_ids": ids, "position_ids": torch.tensor([0, 1, 2, 0, 1, 2, 3, 4]).expand(3, 8), "use_cache": False}
    alone = hidden_states(model, {"input_ids": ids[:, 3:]})
    torch.testing.assert_close(hidden_states(model, packed)[:, 3:], alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(**packed).logits[:, 3:], model(input_ids=ids[:, 3:]).logits, rtol=1e-12, atol=1e-12)


def test_factors_on_the_logits_and_other_models_are_refused():
    granite = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("granite", **SMALL, intermediate_size=32, num_key_value_heads=1, logits_scaling=8.0)
    )
    with pytest.raises(ValueError, match=r"got logits_scaling=8.0"):
        head(granite)
    with pytest.raises(TypeError, match="expected a causal language model"):
        head(torch.nn.Linear(2, 2))


def test_adapters_of_peft_are_inside():
    model = build("llama")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).double().eval()
    x = {"input_ids": torch.randint(0, 50, (2, 5)), "use_cache": False}
    torch.testing.assert_close(hidden_states(wrapped, x) @ head(wrapped).weight.T, wrapped(**x).logits, rtol=1e-12, atol=1e-12)
