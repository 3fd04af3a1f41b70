from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from preceptor.models.transformer import keep_layers

SMALL = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
TOKENS = {"input_ids": torch.tensor([[3, 7, 5, 2], [1, 4, 9, 6]])}


def vit() -> PreTrainedModel:
    return ViTForImageClassification(ViTConfig(**SMALL, num_hidden_layers=5, image_size=8, patch_size=4, num_channels=1))


def bert() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(**SMALL, num_hidden_layers=5, vocab_size=11, num_labels=3))


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_hidden_layers=5, vocab_size=11, tie_word_embeddings=True))


def gpt2() -> PreTrainedModel:
    config = GPT2Config(n_layer=5, n_embd=8, n_head=2, vocab_size=11, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config)


CASES = [(vit, "vit.layers"), (bert, "bert.encoder.layer"), (llama, "model.layers"), (gpt2, "transformer.h")]


def inputs_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.linspace(-1, 1, 128).view(2, 1, 8, 8)} if model.config.model_type == "vit" else TOKENS


@pytest.mark.parametrize(("make", "path"), CASES)
@pytest.mark.parametrize(("how", "kept"), [({"every": 2}, [0, 2, 4]), ({"indices": [1, 4]}, [1, 4]), ({"share": 0.4}, [0, 2])])
def test_equals_the_teacher_with_the_other_layers_taken_out(
    make: Callable[[], PreTrainedModel], path: str, how: dict, kept: list[int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)  # far from the identity, so that every layer tells
    inputs = inputs_of(model)
    before = model(**inputs).logits
    smaller = keep_layers(model, **how)
    assert smaller.config.num_hidden_layers == len(kept)
    assert torch.equal(model(**inputs).logits, before)
    logits = smaller(**inputs).logits
    assert not torch.allclose(logits, before)

    smaller.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, logits)

    layers = model.get_submodule(path)
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent).add_module(name, nn.ModuleList(layers[i] for i in kept))
    model.config.num_hidden_layers = len(kept)
    uncached = {"use_cache": False} if make in (llama, gpt2) else {}  # these layers still have their old places in a cache
    torch.testing.assert_close(model(**inputs, **uncached).logits, logits)


def test_keeping_all_changes_nothing_and_copies() -> None:
    model = vit().eval()
    copy = keep_layers(model, every=1)
    inputs = inputs_of(model)
    assert torch.equal(copy(**inputs).logits, model(**inputs).logits)
    assert {p.data_ptr() for p in copy.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())


def test_random_state_mode_and_dtype_stay() -> None:
    model = vit().to(torch.bfloat16).train()
    state = torch.get_rng_state()
    smaller = keep_layers(model, every=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert smaller.training
    assert smaller.dtype == torch.bfloat16
    assert not keep_layers(model.eval(), every=2).training


def test_a_decoder_generates_with_its_cache() -> None:
    torch.manual_seed(0)
    smaller = keep_layers(llama().eval(), indices=[1, 3])
    assert [layer.self_attn.layer_idx for layer in smaller.model.layers] == [0, 1]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    cached, plain = (smaller.generate(**TOKENS, **options, use_cache=flag) for flag in (True, False))
    assert torch.equal(cached, plain)


def test_layer_types_follow_their_layers() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    types = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = Qwen2Config(**SMALL, num_key_value_heads=2, num_hidden_layers=4, vocab_size=11, layer_types=types, use_sliding_window=True)
    assert keep_layers(Qwen2ForCausalLM(config), indices=[1, 2]).config.layer_types == ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "keep_layers: expected one of every, indices and share, got every=None, indices=None, share=None"),
        ({"every": 2, "indices": [0]}, "keep_layers: expected one of every, indices and share, got every=2"),
        ({"share": 0}, r"shrink: expected a share of the layers in \(0, 1\], got 0"),
        ({"share": 1.5}, r"shrink: expected a share"),
        ({"share": "a"}, r"shrink: expected a share of the layers in \(0, 1\], got 'a'"),
        ({"every": 0}, "every: expected a whole number of at least 1, got 0"),
        ({"indices": [0, 5]}, r"indices: expected rising layer numbers from 0 to 4, got \[0, 5\]"),
        ({"indices": [-1]}, "indices: expected rising"),
        ({"indices": [2, 1]}, "indices: expected rising"),
        ({"indices": []}, "indices: expected rising"),
        ({"indices": "ab"}, "indices: expected rising"),
    ],
)
def test_bad_indices(how: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        keep_layers(vit(), **how)


def test_models_without_one_stack_are_refused() -> None:
    convnext = ConvNextForImageClassification(ConvNextConfig(num_channels=1, hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1]))
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, vocab_size=11))
    for model in (convnext, t5):
        with pytest.raises(ValueError, match=f"^model: expected one stack of equal layers .*got {type(model).__name__}"):
            keep_layers(model, every=2)
