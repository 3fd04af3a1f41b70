"""Perplexity of each example alone, from any language model and from one of transformers."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.metrics.perplexity import causal_log_probs, perplexity

PAIRS = [("ab", "cde"), ("a longer prompt than the others", "f"), ("", "xyz"), ("q", "a response that is quite a bit longer")]


class Letters:
    """A tokenizer of letters."""

    eos_token_id, bos_token_id = 1, None

    def encode(self, text, add_special_tokens=True):
        assert not add_special_tokens
        return [2 + ord(letter) % 40 for letter in text]


class Begun(Letters):
    bos_token_id = 0


def model(context=64, **more):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=42, max_position_embeddings=context, **sizes, **more)).double()


def slow(lm, tokenizer, prompt, response, between="\n\n"):
    """One pair alone, from the equation."""
    begin = 1 if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    before = [begin, *tokenizer.encode(prompt + between, add_special_tokens=False)]
    ids = [*before, *tokenizer.encode(response, add_special_tokens=False)]
    logits = lm(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [logits[at - 1, ids[at]].item() for at in range(len(before), len(ids))]


def test_it_is_the_exponential_of_the_mean_of_each_example():
    found = perplexity(lambda pairs: [[math.log(1 / 2)] * 3, [math.log(1 / 2), math.log(1 / 8)]], [("a", "b"), ("c", "d")])
    assert np.allclose(found, [2, 4])


def test_blank_responses_are_not_asked_about_and_have_none():
    asked = []

    def lm(pairs):
        asked.extend(pairs)
        return [[-1.0] if response != "no token" else [] for _, response in pairs]

    found = perplexity(lm, [("a", ""), ("b", "yes"), ("c", " \n"), ("d", "no token")])
    assert asked == [("b", "yes"), ("d", "no token")]
    assert np.isnan(found).tolist() == [True, False, True, True]
    assert found[1] == pytest.approx(math.e)
    assert perplexity(lm, []).shape == (0,)
    assert np.isnan(perplexity(lambda pairs: pytest.fail("asked"), [("a", "")])).all()


def test_impossible_tokens_count_as_a_million():
    found = perplexity(lambda pairs: [[-math.inf, -1.0], [-1e9], [-13.0], [0.0]], [("a", "b")] * 4)
    assert found == pytest.approx([1e6, 1e6, math.exp(13), 1])


@pytest.mark.parametrize("said", [[[-1.0]] * 2, [], [[math.nan]], [[0.5]], [[[-1.0]]]])
def test_a_model_that_says_something_else_is_refused(said):
    with pytest.raises(ValueError, match="lm: expected log-probabilities"):
        perplexity(lambda pairs: said, [("a", "b")])


@pytest.mark.parametrize("tokenizer", [Letters(), Begun()])
def test_log_probs_are_those_of_a_slow_loop(tokenizer):
    lm = model().train()
    found = causal_log_probs(lm, tokenizer, batch=3)(PAIRS)
    assert lm.training
    for (prompt, response), values in zip(PAIRS, found, strict=True):
        assert len(values) == len(response)
        assert values == pytest.approx(slow(lm.eval(), tokenizer, prompt, response), abs=1e-10)


def test_an_example_does_not_depend_on_the_others_in_its_batch():
    lm = model()
    alone = perplexity(causal_log_probs(lm, Letters(), batch=1), PAIRS)
    together = perplexity(causal_log_probs(lm, Letters(), batch=8), PAIRS[::-1])[::-1]
    assert np.allclose(alone, together, rtol=1e-10)
    assert np.ptp(alone) > 0.1  # each has its own


def test_what_stands_between_is_part_of_the_prompt():
    lm = model()
    one, other = (causal_log_probs(lm, Letters(), between=between)(PAIRS[:1])[0] for between in ("\n\n", " "))
    assert other == pytest.approx(slow(lm, Letters(), *PAIRS[0], between=" "), abs=1e-10)
    assert not np.allclose(one, other)


def test_what_does_not_fit_is_cut():
    lm = model(context=8)
    pairs = [("ab", "cdefgh"), ("abcdefghi", "j")]
    found = causal_log_probs(lm, Letters())(pairs)
    assert [len(values) for values in found] == [3, 0]  # 1 + 2 + 2 tokens stand before
    assert found[0] == pytest.approx(slow(model(context=64), Letters(), "ab", "cde"), abs=1e-10)
    assert np.isnan(perplexity(causal_log_probs(lm, Letters()), pairs)).tolist() == [False, True]


def test_a_model_without_a_linear_output_layer_is_heard_through_its_logits():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(42, 42, dtype=torch.double)

        def forward(self, input_ids, attention_mask=None):
            return self.table(input_ids)

    torch.manual_seed(1)
    lm = Plain()
    values = causal_log_probs(lm, Letters())([("a", "bc")])[0]
    ids = Letters().encode("\nbc", add_special_tokens=False)
    expected = lm.table.weight.log_softmax(-1)[ids[:2], ids[1:]]
    assert values == pytest.approx(expected.tolist(), abs=1e-12)


def test_settings_are_checked():
    class Nothing(Letters):
        eos_token_id = None

    with pytest.raises(ValueError, match="at least 1 pair"):
        causal_log_probs(model(), Letters(), batch=0)
    with pytest.raises(ValueError, match="got 8 and None"):
        causal_log_probs(model(), Nothing())
