"""Language models from folders, configurations, a teacher's layers and the package that ships SmolLM2."""

import pytest
import torch

from preceptor.data.text import pack, parts, read_documents
from preceptor.metrics.language import hear, score_tokens
from preceptor.models.folder import save_student
from preceptor.models.language import context_length, load_language, load_tokenizer

LLAMA = {
    "hf_config": "llama",
    "vocab_size": 40,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 6,
    "max_position_embeddings": 64,
}
X = {"input_ids": torch.arange(10)[None], "use_cache": False}


@pytest.fixture(scope="module")
def smollm2():
    return load_tokenizer("smollm2"), load_language("smollm2").eval()


def test_a_folder_gives_back_the_model(tmp_path):
    model = load_language(LLAMA).eval()
    save_student(model, tmp_path / "student", {})
    again = load_language(f"hf:{tmp_path / 'student'}").eval()
    assert torch.equal(again(**X).logits, model(**X).logits)
    assert context_length(again) == 64


@pytest.mark.parametrize(
    ("spec", "kept"), [({"keep_layers": [0, 3, 5]}, [0, 3, 5]), ({"keep_layers": 3}, [0, 3]), ({"shrink": 0.5}, [0, 2, 4])]
)
def test_a_student_has_layers_of_its_teacher(spec, kept):
    teacher = load_language(LLAMA)
    student = load_language(spec, teacher=teacher)
    for mine, number in zip(student.model.layers, kept, strict=True):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, teacher.model.layers[number].state_dict()[name])
    assert torch.equal(student.model.embed_tokens.weight, teacher.model.embed_tokens.weight)


def test_adapters_alone_are_trained():
    student = load_language({"lora": {"r": 2, "target_modules": ["q_proj"]}, "of": {"keep_layers": 2}}, teacher=load_language(LLAMA))
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpt", "expected 'smollm2', 'gguf:FILE' or 'hf:PATH', got 'gpt'"),
        ("gguf:nothing.gguf", "expected an existing GGUF file, got 'nothing.gguf'"),
        ("hf:./nowhere", "expected a causal language model of transformers, got 'hf:./nowhere'"),
        ({"layers": 3}, "expected one of hf_config, keep_layers, shrink, lora, got layers"),
        ({"keep_layers": 2}, "expected a teacher to keep layers of"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(spec, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_language(spec)
    assert "\n" not in str(caught.value)


def test_a_model_out_of_a_gguf_file_is_saved_as_floats_and_comes_back(smollm2, tmp_path):
    short = load_language({"keep_layers": [0]}, teacher=smollm2[1])
    for model in (smollm2[1], short):
        model.save_pretrained(tmp_path)
        back = load_language(f"hf:{tmp_path}")
        assert not hasattr(back.config, "quantization_config")
        pairs = zip(model.parameters(), back.parameters(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_smollm2_knows_english(smollm2):
    tokenizer, model = smollm2
    texts = pack(parts(read_documents("python"))["valid"], tokenizer, length=64, most=4)
    scores, _ = score_tokens(hear(model, [texts.batch(torch.arange(4))]))
    assert scores["perplexity"] < 60
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], return_dict=False)
    assert max(chat) < len(tokenizer) == model.config.vocab_size
