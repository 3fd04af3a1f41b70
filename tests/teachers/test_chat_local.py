"""A chat with a model in this process says what a slow loop over the model's own predictions says."""

import math

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from preceptor.teachers.chat import Chat, ChatStopped, Settings, open_chat
from preceptor.teachers.chat.local import Local

WORDS = ["[end]", "system", "user", "assistant", *(f"w{i}" for i in range(12))]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + ' [end] ' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def make(seed=13, context=64, kind="llama"):
    torch.manual_seed(seed)
    tokens = {"vocab_size": len(WORDS), "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": context}
    more = {"intermediate_size": 16, "num_key_value_heads": 1} if kind == "llama" else {}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **tokens, **sizes, **more))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.7)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[end]"))
    words.pre_tokenizer = Whitespace()
    words.add_special_tokens(["[end]"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[end]", unk_token="[end]")
    tokenizer.chat_template = TEMPLATE
    return model, tokenizer


@pytest.fixture
def parts():
    return make()


@pytest.fixture(params=["llama", "gpt2"])
def kinds(request):
    """The second one has positions of its own, so that padding on the left must not move them."""
    return make(kind=request.param)


PROMPTS = [
    "w1 w2",
    "w3",
    [{"role": "system", "content": "w5"}, {"role": "user", "content": "w1 w2 w7 w8"}],
    "w9 w9 w9",
    "w4 w1",
    "w10",
    "w2 w2 w11 w0 w6",
]


def ids_of(prompt):
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    words = " ".join(f"{message['role']} {message['content']} [end]" for message in messages) + " assistant"
    return [WORDS.index(word) for word in words.split()]


@torch.no_grad()
def next_log_probs(model, ids):
    return model.eval()(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).tolist()


def greedy(model, ids, most):
    """Token by token, without a cache."""
    written = []
    while len(written) < most:
        row = next_log_probs(model, ids + written)
        written.append(row.index(max(row)))
        if written[-1] == 0:
            return " ".join(WORDS[i] for i in written[:-1]), "stop", len(written)
    return " ".join(WORDS[i] for i in written), "length", len(written)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_most_likely_answer(parts, batch):
    model, tokenizer = parts
    answers = Chat(Local(model, tokenizer, batch=batch)).ask(PROMPTS, Settings(max_tokens=12))
    expected = [greedy(model, ids_of(prompt), 12) for prompt in PROMPTS]
    assert [(answer.text, answer.finish, answer.completion_tokens) for answer in answers] == expected
    assert [answer.prompt_tokens for answer in answers] == [len(ids_of(prompt)) for prompt in PROMPTS]
    assert {"stop", "length"} <= {answer.finish for answer in answers}


def sum_of(model, ids, tokens):
    return sum(next_log_probs(model, ids + tokens[:at])[token] for at, token in enumerate(tokens))


def test_options_are_scored_by_their_tokens(kinds):
    model, tokenizer = kinds
    options = ["w1", "w2 w3 w4", "w5 w1", "w6"]
    for prompt, choice in zip(PROMPTS, Chat(Local(model, tokenizer)).choose(PROMPTS, options), strict=True):
        expected = [sum_of(model, ids_of(prompt), [WORDS.index(word) for word in option.split()]) for option in options]
        assert choice.log_probs == pytest.approx(expected, abs=1e-5)
        assert choice.option == options[expected.index(max(expected))]
        assert choice.answer.completion_tokens == 0
    nine = [f"w{i} w{j}" for i in range(3) for j in range(4)]  # more rows than are scored together
    (choice,) = Chat(Local(model, tokenizer)).choose(["w3"], nine)
    expected = [sum_of(model, ids_of("w3"), [WORDS.index(word) for word in option.split()]) for option in nine]
    assert choice.log_probs == pytest.approx(expected, abs=1e-5)


def test_where_one_option_begins_another_the_end_counts(kinds):
    model, tokenizer = kinds
    options = ["w1", "w1 w2", "w3"]
    (choice,) = Chat(Local(model, tokenizer)).choose(["w3"], options)
    expected = [sum_of(model, ids_of("w3"), [*(WORDS.index(word) for word in option.split()), 0]) for option in options]
    assert choice.log_probs == pytest.approx(expected, abs=1e-5)


def test_all_one_token_options_together_have_probability_one(parts):
    (choice,) = Chat(Local(*parts)).choose(["w3"], [*WORDS[1:], "[end]"])
    assert sum(math.exp(value) for value in choice.log_probs) == pytest.approx(1, abs=1e-5)


def test_draws_depend_on_their_seed_alone_and_move_no_other(parts):
    model, tokenizer = parts
    settings = Settings(max_tokens=10, temperature=1.0, seed=5)
    before = torch.get_rng_state()
    together = Chat(Local(model, tokenizer)).ask(PROMPTS, settings)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    alone = [Chat(Local(model, tokenizer, batch=1)).ask([prompt], settings)[0] for prompt in reversed(PROMPTS)][::-1]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    other = Chat(Local(model, tokenizer)).ask(PROMPTS, Settings(max_tokens=10, temperature=1.0, seed=6))
    assert [answer.text for answer in together] != [answer.text for answer in other]
    cold = Chat(Local(model, tokenizer)).ask(PROMPTS, Settings(max_tokens=10, temperature=1.0, top_p=1e-6, seed=6))
    assert [answer.text for answer in cold] == [greedy(model, ids_of(prompt), 10)[0] for prompt in PROMPTS]


def test_draws_follow_the_distribution(parts):
    """The first word of 400 draws against its probabilities: chi-squared, 15 degrees of freedom, 99.9 % quantile 37.7."""
    model, tokenizer = parts
    chat = Chat(Local(model, tokenizer))
    counts = dict.fromkeys(WORDS, 0)
    for seed in range(400):
        text = chat.ask(["w3"], Settings(max_tokens=1, temperature=2.0, seed=seed))[0].text
        counts[text or "[end]"] += 1
    scaled = [value / 2 for value in next_log_probs(model, ids_of("w3"))]
    total = sum(math.exp(value) for value in scaled)
    expected = {word: 400 * math.exp(value) / total for word, value in zip(WORDS, scaled, strict=True)}
    assert sum((counts[word] - expected[word]) ** 2 / expected[word] for word in WORDS) < 37.7


def test_an_answer_ends_before_a_stop(parts):
    model, tokenizer = parts
    whole = {prompt: greedy(model, ids_of(prompt), 12)[0] for prompt in PROMPTS if isinstance(prompt, str)}
    prompt = max(whole, key=lambda one: len(set(whole[one].split())))
    third = whole[prompt].split()[2]
    (answer,) = Chat(Local(model, tokenizer)).ask([prompt], Settings(max_tokens=12, stop=(third,)))
    assert answer.text == whole[prompt][: whole[prompt].index(third)]
    assert answer.finish == "stop"
    assert answer.completion_tokens <= 3


def test_settings_of_the_model_do_not_change_what_is_drawn(parts):
    model, tokenizer = parts
    expected = [greedy(model, ids_of(prompt), 12)[0] for prompt in PROMPTS]
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=3.0, repetition_penalty=5.0, top_k=2, max_new_tokens=3, eos_token_id=0, pad_token_id=0
    )
    kept = model.generation_config.to_dict()
    model.train()
    answers = Chat(Local(model, tokenizer)).ask(PROMPTS, Settings(max_tokens=12))
    assert model.training
    assert model.generation_config.to_dict() == kept
    assert [answer.text for answer in answers] == expected


def test_a_prompt_that_fills_the_context_is_its_own_failure():
    model, tokenizer = make(context=16)
    answers = Chat(Local(model, tokenizer)).ask(["w1", "w1 " * 13, "w1 " * 10], Settings(max_tokens=12))
    assert answers[0].text == greedy(model, ids_of("w1"), 12)[0]
    assert answers[1].failed == "prompt: expected fewer than the 16 tokens of the context, got 16"
    assert answers[2].completion_tokens <= 3  # what room there is


def test_a_chat_that_the_template_refuses_is_its_own_failure(parts):
    model, tokenizer = parts
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    tokenizer.chat_template = refusal + TEMPLATE
    answers = Chat(Local(model, tokenizer)).ask(PROMPTS, Settings(max_tokens=4))
    assert answers[2].failed == "messages: expected some that the chat template can lay out, got no system message"
    assert [answer.text for answer in answers if not answer.failed] == [
        greedy(model, ids_of(p), 4)[0] for p in PROMPTS if p is not PROMPTS[2]
    ]


def test_another_model_has_another_name(parts, tmp_path):
    model, tokenizer = parts
    before = Local(model, tokenizer, name="student").model
    assert before == Local(model, tokenizer, name="student").model
    assert before.startswith("student@")
    model.model.norm.weight.data[0] += 1e-3
    after = Local(model, tokenizer, name="student").model
    tokenizer.chat_template = TEMPLATE.replace("assistant", "user")
    assert len({before, after, Local(model, tokenizer, name="student").model}) == 3


def test_by_name_and_replayed_without_the_model(tmp_path, monkeypatch):
    model, tokenizer = make()
    model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    spec = f"hf:{tmp_path / 'lm'}"
    with open_chat(spec, journal=tmp_path / "j", parallel=2) as chat:
        answers = chat.ask(PROMPTS, Settings(max_tokens=5))
        assert chat.spent.requests == 4
    assert [answer.text for answer in answers] == [greedy(model, ids_of(prompt), 5)[0] for prompt in PROMPTS]
    monkeypatch.setattr(Local, "load", None)
    with open_chat(spec, journal=tmp_path / "j", replay=True) as chat:
        assert [answer.text for answer in chat.ask(PROMPTS, Settings(max_tokens=5))] == [answer.text for answer in answers]


def test_what_cannot_be(parts):
    model, tokenizer = parts
    with pytest.raises(ChatStopped, match=r"^extra: expected no parameters of an endpoint with a local model, got \{'a': 1\}; 0 of 1"):
        Chat(Local(model, tokenizer)).ask(["w1"], Settings(extra={"a": 1}))
    with pytest.raises(ValueError, match=r"^batch: expected at least 1, got 0$"):
        Local(model, tokenizer, batch=0)
    tokenizer.chat_template = None
    with pytest.raises(
        ValueError, match=r"^tokenizer: expected one with a chat template, got a .*TokenizersBackend without$|Fast without$"
    ):
        Local(model, tokenizer)
