"""Sentences: cutting, likelihoods, kinds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.data.sentences import (
    KINDS,
    divergence_score,
    kind_area,
    sentence_kinds,
    sentence_numbers,
    sentence_probabilities,
    sentences,
    sentences_of_tokens,
)


def words(text: str) -> list[tuple[int, int]]:
    """Offsets of words with the space before them, as byte-level tokenizers cut."""
    starts = [0, *(i for i in range(1, len(text)) if text[i] == " ")]
    return list(zip(starts, [*starts[1:], len(text)], strict=True)) if text else []


@given(st.text(alphabet="ab .?!\n", max_size=40), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_sentences_tile_the_text(text, shortest):
    for offsets in ((), (words(text),), (words(text), [(i, i + 1) for i in range(len(text))])):
        spans = sentences(text, *offsets, shortest=shortest)
        assert "".join(text[begin:end] for begin, end in spans) == text
        assert all(begin < end for begin, end in spans)
        for side in offsets:
            numbers = sentences_of_tokens(side, [end for _, end in spans])
            counts = [int((numbers == number).sum()) for number in range(len(spans))]
            assert len(spans) < 2 or min(counts) >= shortest
            assert sum(counts) == len(side)


def test_where_a_sentence_ends():
    text = "It is 3.5 m. Really?  Yes!\n\nThe end"
    assert [text[begin:end] for begin, end in sentences(text)] == ["It is 3.5 m. ", "Really?  ", "Yes!\n\n", "The end"]
    assert sentences("no end") == [(0, 6)]
    assert sentences("") == []
    assert sentences("", []) == []


def test_short_sentences_join_the_one_before():
    text = "One two three. Yes. No. Four five six."
    assert [text[b:e] for b, e in sentences(text, words(text))] == ["One two three. Yes. No. ", "Four five six."]
    first = "Yes. One two three. Four five six."
    assert [first[b:e] for b, e in sentences(first, words(first))] == ["Yes. One two three. ", "Four five six."]
    letters = [(i, i + 1) for i in range(len(text))]
    assert len(sentences(text, letters)) == 4  # each letter is a token
    assert len(sentences(text, letters, words(text))) == 2  # and the tokenizer with fewer tokens decides


def test_a_token_belongs_where_its_last_character_is():
    text = "A b. C d."
    assert sentences_of_tokens(words(text), [5, 9]).tolist() == [0, 0, 1, 1]


def test_sentences_by_tokens():
    dot, end = 1, 2
    ids = torch.tensor([[9, 5, 6, 7, dot, end, 5, 6, 7, 8], [9, 5, dot, 5, 6, 7, dot, 6, dot, 0], [5, 6, 7, 8, 5, 6, 7, 8, 9, 9]])
    mask = torch.ones(3, 10, dtype=torch.bool)
    mask[:2, 0] = mask[1, 9] = False
    numbers = sentence_numbers(ids, mask, (dot, end))
    assert numbers.tolist() == [[-1, 0, 0, 0, 0, 0, 1, 1, 1, 1], [-1, 0, 0, 0, 0, 0, 0, 0, 0, -1], [0] * 10]
    assert sentence_numbers(ids, mask, (dot, end), shortest=1)[1].tolist() == [-1, 0, 0, 1, 1, 1, 1, 2, 2, -1]
    assert sentence_numbers(ids, mask, (dot, end), shortest=1)[0].tolist() == [-1, 0, 0, 0, 0, 0, 1, 1, 1, 1]  # one end of two tokens
    assert sentence_numbers(ids, mask).tolist() == torch.where(mask, 0, -1).tolist()
    assert (sentence_numbers(ids, ~mask & False, (dot,)) == -1).all()


def test_the_likelihood_of_a_sentence():
    torch.manual_seed(0)
    log_probs = -3 * torch.rand(2, 5, dtype=torch.double)
    numbers = torch.tensor([[-1, 0, 0, 1, 1], [0, 1, 2, 2, -1]])
    probabilities, tokens = sentence_probabilities(log_probs, numbers)
    p = log_probs.tolist()
    expected = [
        [math.exp((p[0][1] + p[0][2]) / 2), math.exp((p[0][3] + p[0][4]) / 2), 0.0],
        [math.exp(p[1][0]), math.exp(p[1][1]), math.exp((p[1][2] + p[1][3]) / 2)],  # one token: its probability
    ]
    torch.testing.assert_close(probabilities, torch.tensor(expected, dtype=torch.double))
    assert tokens.tolist() == [[2, 2, 0], [1, 1, 2]]


def test_how_a_total_is_split_does_not_matter():
    numbers = torch.zeros(1, 4, dtype=torch.int64)
    even, uneven = (sentence_probabilities(torch.tensor([row]).double(), numbers)[0] for row in ([-1.0] * 4, [-3.0, -0.5, -0.5, 0.0]))
    torch.testing.assert_close(even, uneven)


def test_hopeless_and_absent_sentences():
    probabilities, tokens = sentence_probabilities(torch.full((2, 3), -1e4), torch.tensor([[0, 0, 0], [-1, -1, -1]]))
    assert (probabilities == 0).all()
    assert tokens.tolist() == [[3], [0]]
    with pytest.raises(ValueError, match=r"numbers: expected shape \(2, 3\) like log_probs, got \(2, 2\)"):
        sentence_probabilities(torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("teacher", "student", "trained", "kind"),
    [
        (0.8, 0.3, 0.7, "teacher"),
        (0.3, 0.8, 0.4, "student"),
        (0.5, 0.55, 0.52, "shared"),
        (0.5, 0.55, 0.9, "boosted"),
        (0.5, 0.55, 0.1, "boosted"),
        (0.5, 0.58, 0.65, "other"),
    ],
)
def test_kinds(teacher, student, trained, kind):
    assert KINDS[int(sentence_kinds(*(torch.tensor(p) for p in (teacher, student, trained))))] == kind


def test_area_between_correct_and_incorrect_answers():
    teacher, shared = KINDS.index("teacher"), KINDS.index("shared")
    right = [[teacher, teacher, shared], [teacher, shared, -1]]
    wrong = [[shared, shared, shared], [teacher, shared, -1]]
    kinds, correct = torch.tensor(right + wrong), torch.tensor([True, True, False, False])
    assert kind_area(kinds, correct, "teacher", least=2) == pytest.approx(0.5 + 0.5)  # the third position has too few
    assert kind_area(kinds, correct, "teacher", least=1) == pytest.approx(1.0)
    assert kind_area(kinds, correct, "teacher", least=3) == 0
    assert kind_area(torch.cat([kinds, kinds]), torch.tensor([True] * 4 + [False] * 4), "shared", least=1) == 0


def test_score_reference():
    teacher, student = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.0, 0.0]]), torch.tensor([[0.4, 0.3, 0.5], [0.8, 0.0, 0.0]])
    tokens = torch.tensor([[3, 5, 2], [4, 0, 0]])
    torch.testing.assert_close(divergence_score(teacher, student, tokens), torch.tensor([(0.5 - 0.1 + 0.0) / 3, -0.7]))
    torch.testing.assert_close(divergence_score(teacher, student, tokens, by_tokens=True), torch.tensor([(1.5 - 0.5) / 10, -0.7]))


def test_score_properties():
    torch.manual_seed(0)
    teacher, student = torch.rand(2, 50, 4, dtype=torch.double)
    tokens = torch.randint(0, 5, (50, 4))
    for by_tokens in (False, True):
        score = divergence_score(teacher, student, tokens, by_tokens=by_tokens)
        assert (score.abs() <= 1).all()
        torch.testing.assert_close(score, -divergence_score(student, teacher, tokens, by_tokens=by_tokens))
        assert (divergence_score(teacher, teacher, tokens, by_tokens=by_tokens) == 0).all()
        assert (divergence_score(torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2, 3), by_tokens=by_tokens) == 1).all()
        assert (divergence_score(teacher, student, 0 * tokens, by_tokens=by_tokens) == 0).all()
    with pytest.raises(ValueError, match=r"student: expected shape \(50, 4\) like teacher, got \(4,\)"):
        divergence_score(teacher, student[0], tokens)
