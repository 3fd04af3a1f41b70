"""Detectors of private tokens, planted secrets, noise by seeds."""

import math
import re
from collections import Counter

import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from preceptor.data.privacy import (
    PATTERNS,
    TokenTable,
    find_detector,
    item_seeds,
    plant_canaries,
    privacy_scores,
    regex_privacy_score,
    seeded_noise,
)


def spans(text, *pieces):
    """Places of pieces that follow each other, white space between them left out."""
    found, place = [], 0
    for piece in pieces:
        place = text.index(piece, place)
        found.append((place, place + len(piece)))
        place += len(piece)
    return found


def test_every_piece_of_a_private_word_has_its_highest_score():
    text = "call 555-0199, or (pin:12) then"
    pieces = spans(text, "call", "555", "-", "01", "99", ",", "or", "(", "pin", ":", "12", ")", "then")
    scores = regex_privacy_score([text], [pieces], {r"\d": 0.5, r"pin:\d+": 1.0})
    assert scores.tolist() == [[0, 0.5, 0.5, 0.5, 0.5, 0.5, 0, 1, 1, 1, 1, 1, 0]]


def test_default_patterns():
    text = "write to ann.b-c@mail.example.org or use sk_live-9aZ8bY7cX6dW5e but not internationalization"
    words = text.split()
    scores = dict(zip(words, regex_privacy_score([text], [spans(text, *words)])[0].tolist(), strict=True))
    assert {word for word, score in scores.items() if score} == {"ann.b-c@mail.example.org", "sk_live-9aZ8bY7cX6dW5e"}
    letters = r"\b(?=\w*\d)[\w-]{16,}\b"
    assert letters in PATTERNS
    assert re.search(letters, "abcdefgh1jklmnopq")
    assert not re.search(letters, "abcdefghijklmnopq")


def test_a_pattern_may_cross_words_and_a_token_may_cross_two():
    text = "my name is eve now"
    scores = regex_privacy_score([text], [spans(text, "my", "name", "is eve", "now")], {"is (?=eve)": 0.3, "eve": 0.7})
    assert scores[0].tolist() == pytest.approx([0, 0, 0.7, 0])


def test_padding_and_several_texts():
    texts = ["a 1", "2"]
    offsets = torch.tensor([[[0, 1], [1, 3]], [[0, 1], [0, 0]]])
    assert regex_privacy_score(texts, offsets).tolist() == [[0, 1], [1, 0]]
    assert regex_privacy_score(["", ""], torch.zeros(2, 3, 2, dtype=torch.int64)).tolist() == [[0] * 3] * 2


def test_with_a_real_tokenizer():
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(["the pin of ann is 12 34"] * 9, BpeTrainer(vocab_size=280, initial_alphabet=ByteLevel.alphabet()))
    text = "the pin of ann is 3142"
    encoded = tokenizer.encode(text)
    scores = regex_privacy_score([text], [encoded.offsets])[0]
    number = text.index("3142")
    assert [score == 1 for score in scores.tolist()] == [stop > number for _, stop in encoded.offsets]
    assert 0 < scores.sum() < len(scores)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([[(0, 1)], [(0, 1)]], r"offsets: expected shape \(1, tokens, 2\), got \(2, 1, 2\)"),
        ([[(0, 9)]], r"offsets: expected places in text 0 of 3 characters, got \(0, 9\)"),
        ([[(2, 1)]], r"offsets: expected places in text 0 of 3 characters, got \(2, 1\)"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(offsets, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        regex_privacy_score(["abc"], offsets)
    with pytest.raises(ValueError, match=r"^patterns: expected scores in \[0, 1\], got 2 for 'a'$"):
        regex_privacy_score(["abc"], [[(0, 1)]], {"a": 2})


def test_a_table_scores_what_is_to_be_predicted():
    table = TokenTable.of(["the", " pin", "is", " 12", "a@b.c", ""])
    assert table.scores.tolist() == [0, 0, 0, 1, 1, 0]
    batch = {"x": {"input_ids": torch.tensor([[3, 0, 1]])}, "y": torch.tensor([[0, 1, 3]])}
    assert table(batch).tolist() == [[0, 0, 1]]
    assert privacy_scores(batch, table).tolist() == [[0, 0, 1]]


def test_scores_come_from_the_batch_or_the_detector():
    batch = {"y": torch.tensor([0, 1]), "privacy": torch.tensor([1, 0])}
    assert privacy_scores(batch, lambda batch: batch["y"]).tolist() == [1.0, 0.0]
    bare = {"y": batch["y"]}
    assert privacy_scores(bare, find_detector("tests.needs:label_is_zero")).tolist() == [1.0, 0.0]
    assert privacy_scores(bare, lambda batch: batch["y"].double()).dtype == torch.double
    assert find_detector(None) is None
    for detector, message in (
        (None, r"privacy: expected scores in the batch or a detector, got neither"),
        (lambda _: torch.zeros(3), r"privacy: expected shape \(2,\) like y, got \(3,\)"),
        (lambda _: torch.tensor([0.0, math.nan]), r"privacy: expected scores in \[0, 1\], got nan"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            privacy_scores(bare, detector)


def test_canaries_are_planted_as_often_as_asked_and_nothing_else_changes():
    corpus = [f"line {chr(97 + i)}" for i in range(20)]
    planted, canaries = plant_canaries(corpus, "the pin of {name} is {secret}", 5, 3, seed=1)
    assert len(planted) == 35
    counts = Counter(planted)
    for canary in canaries:
        assert re.fullmatch(r"the pin of [a-z]{6} is ", canary.prefix)
        assert re.fullmatch(r"\d{4}", canary.secret)
        assert counts[canary.prefix + canary.secret] == 3
    added = {canary.prefix + canary.secret for canary in canaries}
    assert len(added) == 5
    assert [line for line in planted if line not in added] == corpus
    assert planted[-15:] != [line for line in planted if line in added]  # they are spread
    again = plant_canaries(corpus, "the pin of {name} is {secret}", 5, 3, seed=1)
    assert again == (planted, canaries)
    assert plant_canaries(corpus, "the pin of {name} is {secret}", 5, 3, seed=2)[1] != canaries


def test_secrets_are_uniform():
    _, canaries = plant_canaries([], "{name} {secret}", 2000, 1, seed=0, digits=1)
    assert stats.chisquare(list(Counter(canary.secret for canary in canaries).values())).pvalue > 1e-3
    assert len({canary.prefix for canary in canaries}) == 2000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x is {secret}", 1, 1), "template: expected {name} in it and {secret} at its end, got 'x is {secret}'"),
        (("{secret} of {name}", 1, 1), "template: expected {name} in it and {secret} at its end, got '{secret} of {name}'"),
        (("{name} {secret}", 0, 1), "n: expected at least 1, got 0"),
        (("{name} {secret}", 1, 0), "repeats: expected at least 1, got 0"),
    ],
)
def test_canaries_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        plant_canaries([], *arguments, seed=0)


def test_seeds_are_of_example_and_position_alone():
    whole = item_seeds(torch.tensor([3, 9, 4]), (3, 5), 1, 2)
    assert torch.equal(item_seeds(torch.tensor([4, 3]), (2, 5), 1, 2), whole[[2, 0]])
    assert torch.equal(item_seeds(torch.tensor([9]), (1, 3), 1, 2), whole[1:2, :3])
    assert not torch.isin(item_seeds(torch.tensor([3, 9, 4]), (3, 5), 1, 3), whole).any()
    assert item_seeds(torch.arange(400), torch.Size([400, 7])).unique().numel() == 2800
    assert item_seeds(torch.arange(400), (400,)).unique().numel() == 400
    assert item_seeds(torch.arange(4), (4, 2, 3)).shape == (4, 2, 3)


@pytest.mark.parametrize(("kind", "law"), [("laplace", stats.laplace), ("gaussian", stats.norm)])
def test_noise_has_its_law_and_is_independent(kind, law):
    noise = seeded_noise(item_seeds(torch.arange(300), (300, 5)), 40, kind)
    assert noise.dtype == torch.float64
    assert stats.kstest(noise.flatten().numpy(), law.cdf).pvalue > 1e-3
    for one, other in ((noise[..., 1:], noise[..., :-1]), (noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1])):
        assert abs(stats.pearsonr(one.flatten().numpy(), other.flatten().numpy()).statistic) < 0.02
    torch.testing.assert_close(seeded_noise(item_seeds(torch.arange(300), (300, 5)), 7, kind), noise[..., :7], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["laplace", "gaussian"])
def test_noise_is_finite_at_both_ends(kind, monkeypatch):
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.double)
    monkeypatch.setattr("preceptor.data.privacy.uniform", lambda ids: ends.expand(ids.shape))
    noise = seeded_noise(torch.tensor([1]), 2, kind)
    assert noise.isfinite().all()
    assert noise[0, 0] < -8 < 8 < noise[0, 1]


def test_an_unknown_noise_is_refused():
    with pytest.raises(ValueError, match=r"^kind: expected one of laplace, gaussian, got 'cauchy'$"):
        seeded_noise(torch.tensor([1]), 2, "cauchy")
