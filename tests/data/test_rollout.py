"""Rollouts: what is drawn is the student's own, from the seed alone, and lines up with what is trained on."""

from __future__ import annotations

import copy
import dataclasses

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.core.state import State
from preceptor.data.rollout import (
    Completions,
    GenerateSampler,
    answer_matches,
    check_on_policy,
    draw,
    language_batch,
    roll_out,
    score_rows,
)
from preceptor.losses.policy import token_log_probs
from preceptor.models.taps import forward

VOCABULARY = 11


@pytest.fixture
def student():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=32, attention_dropout=0.3, **sizes
    )
    model = LlamaForCausalLM(config).train()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    return model


@pytest.fixture
def prompt():
    ids = torch.tensor([[0, 0, 5], [3, 4, 5], [0, 9, 7], [6, 8, 10]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def sample(student, prompt, *, stop=None, **options):
    sampler = GenerateSampler(stop=stop)
    sampler.sync(student)
    return sampler.sample(prompt, **{"max_new_tokens": 8, "seed": 3} | options)


def test_draws_follow_the_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -torch.inf, -1.0])
    tokens, found = draw(logits.expand(40000, 5), temperature=2.0, generator=torch.Generator().manual_seed(0))
    expected = (logits / 2).softmax(-1)
    assert (torch.bincount(tokens, minlength=5) / 40000 - expected).abs().max() < 0.01
    assert (tokens != 3).all()
    torch.testing.assert_close(found, expected.log()[tokens])


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.6, 2), (0.8, 2), (0.81, 3), (1.0, 4)])
def test_the_nucleus_is_the_smallest_set_with_enough_probability(top_p, kept):
    probabilities = torch.tensor([0.1, 0.5, 0.1, 0.3], dtype=torch.double)
    order = [1, 3, 0, 2]
    tokens, found = draw(probabilities.log().expand(2000, 4), top_p=top_p, generator=torch.Generator().manual_seed(0))
    assert set(tokens.tolist()) == set(order[:kept]) or (kept == 3 and len(set(tokens.tolist())) == 3)  # two are equally likely
    mass = probabilities[order[:kept]].sum()
    torch.testing.assert_close(found, (probabilities / mass).log()[tokens])


def test_completions_have_the_probability_that_training_sees(student, prompt):
    for temperature in (1.0, 0.7):
        completions = sample(student, prompt, temperature=temperature)
        batch = language_batch(prompt, completions)
        with torch.no_grad():
            logits = forward(student.eval(), batch["x"]).logits
        expected = token_log_probs(logits, batch["y"], temperature=temperature)
        torch.testing.assert_close(batch["sampling_log_probs"][batch["mask"]], expected[batch["mask"]], rtol=1e-4, atol=1e-5)
        assert batch["mask"].sum() == completions.mask.sum() > 4
        assert (batch["y"][batch["mask"]] == completions.ids[completions.mask]).all()


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5, "top_p": 0.6}])
def test_entropies_are_those_of_the_model_whatever_is_drawn(student, prompt, settings):
    completions = sample(student, prompt, **settings)
    batch = language_batch(prompt, completions)
    with torch.no_grad():
        log_p = forward(student.eval(), batch["x"]).logits.log_softmax(-1)
    expected = -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close(batch["sampling_entropies"][batch["mask"]], expected[batch["mask"]], rtol=1e-4, atol=1e-5)
    assert (batch["sampling_entropies"][~batch["mask"]] == 0).all()
    silent = dataclasses.replace(completions, entropies=None)
    assert "sampling_entropies" not in language_batch(prompt, silent)


def test_padding_on_the_left_changes_nothing(student, prompt):
    batch = language_batch(prompt, sample(student, prompt))
    alone = {key: value[:1, 2:] for key, value in prompt.items()}
    short = language_batch(alone, Completions(**{key: value[:1] for key, value in vars(sample(student, prompt)).items()}))
    student.eval()
    with torch.no_grad():
        padded, bare = (forward(student, x["x"]).logits[0] for x in (batch, short))
    counts = batch["mask"][0]
    torch.testing.assert_close(padded[counts], bare[short["mask"][0]], rtol=1e-5, atol=1e-6)
    assert (batch["x"]["position_ids"][0, 2:] == short["x"]["position_ids"][0]).all()


def test_the_seed_alone_decides(student, prompt):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = sample(student, prompt)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = sample(student, prompt), sample(student, prompt, seed=4)
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.log_probs, again.log_probs)
    assert first.ids.shape != other.ids.shape or not torch.equal(first.ids, other.ids)


def test_a_completion_ends_at_the_first_stop_token(student, prompt):
    many = {key: value.repeat(20, 1) for key, value in prompt.items()}
    found = sample(student, many, stop=(4, 7))
    assert found.ids.shape[1] <= 8
    assert 0 < found.finished.sum() < len(found.finished)
    for ids, mask, finished in zip(found.ids.tolist(), found.mask.tolist(), found.finished.tolist(), strict=True):
        stops = [i for i, token in enumerate(ids) if token in (4, 7)]
        assert finished == bool(stops)
        length = stops[0] + 1 if stops else len(ids)
        assert mask == [i < length for i in range(len(ids))]
    assert (sample(student, many, stop=()).mask).all()


def test_the_models_stop_tokens_are_the_default(student, prompt):
    many = {key: value.repeat(20, 1) for key, value in prompt.items()}
    found = sample(student, many)
    assert torch.equal(found.finished, (found.ids == 2).any(1))
    student.generation_config.eos_token_id = [4, 7]
    assert torch.equal(sample(student, many).ids, sample(student, many, stop=(4, 7)).ids)


def test_nothing_of_the_model_is_changed_or_bends_the_draws(student, prompt):
    plain = sample(student, prompt)
    student.generation_config.repetition_penalty = 5.0
    student.generation_config.top_k = 1
    configured = copy.deepcopy(student.generation_config)
    again = sample(student, prompt)
    assert torch.equal(plain.ids, again.ids)
    assert student.generation_config == configured
    assert student.training
    with pytest.raises(ValueError, match="temperature"):
        sample(student, prompt, temperature=0.0)
    assert student.generation_config == configured
    assert all(module.training for module in student.modules())


def test_a_student_with_adapters_is_sampled_with_them(student, prompt):
    plain = sample(student, prompt)
    adapted = peft.get_peft_model(student, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    found = sample(adapted, prompt)
    batch = language_batch(prompt, found)
    with torch.no_grad():
        expected = token_log_probs(forward(adapted.eval(), batch["x"]).logits, batch["y"])
    torch.testing.assert_close(batch["sampling_log_probs"][batch["mask"]], expected[batch["mask"]], rtol=1e-4, atol=1e-5)
    assert not torch.equal(plain.log_probs[:, 0], found.log_probs[:, 0])


def test_bad_prompts_and_settings_are_refused(student, prompt):
    right = {key: value.flip(1) for key, value in prompt.items()}
    with pytest.raises(ValueError, match=r"prompt: expected .* padding on the left only, got row 0 100"):
        sample(student, right)
    with pytest.raises(ValueError, match=r"prompt: expected at least one token in each row .* got row 1 000"):
        sample(student, {**prompt, "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0], [1, 1, 1], [1, 1, 1]])})
    with pytest.raises(ValueError, match=r"prompt: expected input_ids and attention_mask of one shape"):
        sample(student, {**prompt, "attention_mask": torch.ones(4, 2)})
    for number in (0, 30):
        with pytest.raises(ValueError, match=rf"max_new_tokens: expected at least 1 and at most 29 .* got {number}"):
            sample(student, prompt, max_new_tokens=number)
    with pytest.raises(ValueError, match=r"top_p: expected a number in \(0, 1\], got 0"):
        sample(student, prompt, top_p=0)
    with pytest.raises(ValueError, match="sampler: GenerateSampler needs a causal language model of transformers, got Linear"):
        sample(nn.Linear(1, 1), prompt)
    with pytest.raises(ValueError, match=r"sampler: expected sync\(student\) before sample"):
        GenerateSampler().sample(prompt, max_new_tokens=1, seed=0)


class Server:
    """Samples, but cannot follow a student."""

    def sample(self, prompt, *, max_new_tokens, temperature, top_p, seed):
        raise AssertionError


def test_what_cannot_follow_the_student_is_refused(student, prompt):
    message = r"sampler: expected one with sync\(student\) for on-policy training, got Server, whose model never learns"
    with pytest.raises(ValueError, match=message) as caught:
        check_on_policy(Server())
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        roll_out({"prompt": prompt}, student, State(total_steps=1), sampler=Server(), max_new_tokens=2)
    sampler = GenerateSampler()
    assert check_on_policy(sampler) is sampler


def test_a_rollout_answers_each_prompt_several_times(student, prompt):
    batch = {"prompt": prompt, "id": torch.tensor([7, 8, 9, 10]), "answer": ["a", "b", "c", "d"], "title": "x"}
    kept = copy.deepcopy(batch)
    state = State(total_steps=1)
    made, repeated, completions = roll_out(batch, student, state, answers=3, max_new_tokens=4)
    assert batch.keys() == kept.keys()
    assert batch["answer"] == kept["answer"]
    torch.testing.assert_close([batch["prompt"], batch["id"]], [kept["prompt"], kept["id"]], rtol=0, atol=0)
    assert made["id"].tolist() == repeated["id"].tolist() == [7] * 3 + [8] * 3 + [9] * 3 + [10] * 3
    assert repeated["answer"] == list("aaabbbcccddd")
    assert repeated["title"] == "x"
    assert (made["x"]["input_ids"][3:6, :3] == prompt["input_ids"][1]).all()
    assert state.log["completion_tokens"] == completions.mask.sum() / 12
    assert state.log["finished"] == completions.finished.double().mean()
    assert not torch.equal(completions.log_probs[3], completions.log_probs[4])


def test_a_resumed_run_draws_the_same(student, prompt):
    state = State(total_steps=1)
    roll_out({"prompt": prompt}, student, state, max_new_tokens=4)
    saved = state.state_dict()
    second = roll_out({"prompt": prompt}, student, state, max_new_tokens=4)[2]
    resumed = State(total_steps=1, seed=9)
    resumed.load_state_dict(saved)
    assert torch.equal(roll_out({"prompt": prompt}, student, resumed, max_new_tokens=4)[2].ids, second.ids)


def test_a_batch_without_prompts_is_refused(student, prompt):
    with pytest.raises(ValueError, match=r"prompt: expected the beginnings of texts .* got a batch without"):
        roll_out({"x": 1, "id": 2}, student, State(total_steps=1), max_new_tokens=2)
    with pytest.raises(ValueError, match="answers: expected at least 1, got 0"):
        roll_out({"prompt": prompt}, student, State(total_steps=1), answers=0, max_new_tokens=2)


def test_rows_are_scored_in_parts_and_in_eval_mode(student, prompt):
    made = roll_out({"prompt": prompt}, student, State(total_steps=1), answers=2, max_new_tokens=4)[0]
    whole, by_three = (score_rows(student, made, lambda logits, y: (token_log_probs(logits, y), y), rows=n) for n in (8, 3))
    assert student.training
    torch.testing.assert_close(whole, by_three)
    assert torch.equal(whole[1], made["y"])
    torch.testing.assert_close(whole[0][made["mask"]], made["sampling_log_probs"][made["mask"]], rtol=1e-4, atol=1e-5)


def test_answers_match_with_or_without_the_stop_token():
    batch = {"y": torch.tensor([[9, 3, 4, 0], [9, 3, 4, 2], [9, 3, 4, 2], [9, 3, 4, 0]]), "mask": torch.tensor([[0, 1, 1, 0]] * 4)}
    batch["mask"][1:3, 3] = 1
    ids = torch.tensor([[3, 4, 2], [3, 4, 2], [3, 4, 5], [3, 4, 5]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    finished = torch.tensor([True, True, False, False])
    completions = Completions(ids=ids, mask=mask, log_probs=torch.zeros(4, 3), finished=finished)
    assert answer_matches(batch, completions).tolist() == [True, True, False, False]
