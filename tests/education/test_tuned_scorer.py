"""The tuned language model: what it reads out of texts, what it learns from, low rank, going on after a stop, and errors."""

from __future__ import annotations

import copy

import pytest
import tokenizers
import torch
import transformers

from preceptor.education.feedback import rating_prompt
from preceptor.education.open_answers import NO_ATTEMPT
from preceptor.education.tuned import RatingTuning, TunedScorer, written_rating

PROBLEM = "How much is 4 times 2?"
TEXTS = ["it is 8 dollars", "it is 6 dollars", "no idea", "8 since 4 groups of 2 make 8"]
SCORES = [3, 1, 0, 4]
SAID = ["Say why.", "Use groups.", "", "Clear."]


def words(*, template=False):
    """A byte-level tokenizer whose pieces are the words of these tests."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    texts = [rating_prompt(PROBLEM, " ".join(TEXTS), rubric="", max_words=4), *SAID, 'Write two lines: "Score: " Feedback: 0 1 2 3 4']
    made.train_from_iterator(texts * 20, trainer)
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
    if template:
        found.chat_template = (
            "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} [assistant] {% endif %}"
        )
    return found


def scorer(*, context=160, template=False, **options):
    torch.manual_seed(0)
    tokenizer = words(template=template)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=0,
    )
    options = {"rubric": "", "max_words": 4, "lora": None, "learning_rate": 1e-2, "epochs": 1, **options}
    return TunedScorer(model=transformers.LlamaForCausalLM(config), tokenizer=tokenizer, **options)


def fit(made, **more):
    return made.fit([PROBLEM] * 4, TEXTS, SCORES, SAID, **more)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Score: 3\nFeedback: Say why.", (3, "Say why.")),
        ("score 4", (4, "")),
        ("**Score (0-4):** 2\n\n**Feedback:** Use a table:\nrow by row", (2, "** Use a table:\nrow by row")),
        ("I will score this answer.\nScore: 1/4 feedback: no", (1, "no")),
        ("Score is 0. Feedback:", (0, "")),
        ("Score: 10", None),
        ("Score: 3.5", None),
        ("Score: -1", None),
        ("Score: 5", None),
        ("3", None),
        ("Feedback: 3 groups", None),
        ("", None),
    ],
)
def test_ratings_are_read(text, found):
    assert written_rating(text) == found


@pytest.mark.parametrize("template", [False, True])
def test_only_tokens_of_ratings_are_learned_and_padding_changes_nothing(template):
    made = scorer(template=template)
    made.model.double()
    rows = [(made._prompt(PROBLEM, text), made._rating(score, said)) for text, score, said in zip(TEXTS, SCORES, SAID, strict=True)]
    assert ("[assistant]" in made.tokenizer.decode(rows[0][0])) == template
    assert made.tokenizer.decode(rows[0][1]) == "Score: 3\nFeedback: Say why.<end>"
    assert made.tokenizer.decode(rows[2][1]) == "Score: 0<end>"
    slow = []
    for prompt, rating in rows:
        log_p = made.model(torch.tensor([[*prompt, *rating]])).logits.detach().log_softmax(-1)[0]
        slow.append(-sum(float(log_p[len(prompt) - 1 + at, token]) for at, token in enumerate(rating)))
    batch = made._examples(rows).batch(torch.arange(4))
    found = RatingTuning().loss(batch, {}, {"student": made.model}, None)["rating"]
    assert batch["mask"].sum(1).tolist() == [len(rating) for _, rating in rows]
    assert (found[~batch["mask"]] == 0).all()
    assert found.sum(1).tolist() == pytest.approx(slow, rel=1e-9)


def test_it_learns_scores_and_messages_and_writes_each_by_itself():
    made = fit(scorer(epochs=150, learning_rate=5e-3))
    found = made.predict([PROBLEM] * 6, [*TEXTS, " ", "<br>"])
    assert [(one.score, one.feedback) for one in found] == [*zip(SCORES, SAID, strict=True), (0, NO_ATTEMPT), (0, NO_ATTEMPT)]
    assert [made.predict([PROBLEM], [text])[0] for text in TEXTS] == found[:4]
    assert made.predict([], []) == []


def test_what_is_written_does_not_depend_on_neighbours():
    made = scorer(max_words=2)
    for parameter in made.model.parameters():
        parameter.data.normal_(std=0.5)
    prompts = [made.tokenizer.encode(text) for text in ("8", "it is 8 dollars and " * 4, "no idea")]
    together = made._written(prompts, 1.0, 1e-6)
    assert together == [made._written([prompt], 1.0, 1e-6)[0] for prompt in prompts]
    assert len(set(together)) == 3
    assert made._written(prompts, 1e-3, 1.0) == together != made._written(prompts, 9.0, 1.0)


def test_adapters_change_weights_by_a_low_rank_and_nothing_else():
    made = scorer(lora={"r": 2, "target_modules": ["q_proj"]}, epochs=3)
    before = copy.deepcopy(made.model).state_dict()
    kind = type(made.model)
    state = torch.get_rng_state()
    fit(made)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(made.model) is kind
    changed = {name: value - before[name] for name, value in made.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj"}
    assert len(changed) == 2
    assert all(torch.linalg.matrix_rank(gap, atol=1e-6) <= 2 for gap in changed.values())
    again = scorer(lora={"r": 2, "target_modules": ["q_proj"]}, epochs=3)
    torch.manual_seed(9)  # the adapters have a seed of their own
    weights = fit(again).model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in made.model.state_dict().items())


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    whole, options = fit(scorer(epochs=3, batch_size=2)), {"epochs": 3, "batch_size": 2}

    def stop(done, total):
        assert total == 6
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(scorer(**options), out=tmp_path, progress=stop)
    seen = []
    made = fit(scorer(**options), out=tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == [5, 6]
    assert all(torch.equal(value, made.model.state_dict()[name]) for name, value in whole.model.state_dict().items())
    with pytest.raises(Exception, match="ratings"):
        scorer(**options).fit([PROBLEM], ["8"], [4], [""], out=tmp_path)


def test_settings_reach_the_training():
    usual = fit(scorer(epochs=2)).model.state_dict()
    for change in ({"learning_rate": 1e-3}, {"warmup": 0}, {"batch_size": 1}, {"epochs": 3}, {"rubric": "4: right"}, {"max_words": 5}):
        other = fit(scorer(**{"epochs": 2, **change})).model.state_dict()
        assert any(not torch.equal(value, other[name]) for name, value in usual.items()), change
    shuffled = [fit(scorer(epochs=1, batch_size=1, seed=seed)).model.state_dict() for seed in (0, 1)]
    assert any(not torch.equal(value, shuffled[1][name]) for name, value in shuffled[0].items())


def test_what_gets_no_score():
    made = scorer(context=140)
    asked = []
    write = made._written
    made._written = lambda prompts, *how: asked.append((len(prompts), how)) or write(prompts, *how)
    seen = []
    found = made.predict([PROBLEM] * 3, ["8", "", "8 " * 90], progress=lambda *counts: seen.append(counts))
    assert found[0].score is None
    assert found[0].failed.startswith('expected "Score:" and a whole number 0 to 4, got')
    assert found[1].score == 0
    assert found[2].failed.startswith("prompt: expected fewer than 140 tokens, got ")
    assert asked == [(1, (1.0, 1e-6)), (1, (0.5, 0.5))]
    assert seen == [(1, 1), (1, 1)]


def test_bad_answers():
    for given, message in (
        (([], [], [], []), r"at least 1 not empty, got \[0, 0, 0, 0\]"),
        ((["p"], [" "], [0], [""]), r"at least 1 not empty, got \[1, 1, 1, 1\]"),
        ((["p"], ["x"], [4], []), r"got \[1, 1, 1, 0\]"),
        ((["p"], ["x"], [7], [""]), "scores: expected whole numbers 0 to 4, got 7"),
        ((["p"], ["8 " * 200], [4], [""]), "answers: expected at most 160 tokens with prompt and rating, got"),
    ):
        with pytest.raises(ValueError, match=message):
            scorer().fit(*given)
    with pytest.raises(ValueError, match="texts: expected 2, one for each problem, got 1"):
        scorer().predict(["p", "p"], ["x"])
