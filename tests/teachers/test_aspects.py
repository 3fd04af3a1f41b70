"""Answers to yes/no questions."""

from __future__ import annotations

import json
import math

import pytest
import torch

from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.teachers.aspects import AspectBank, collect_aspects, yes_of_answers, yes_of_top, yes_probability

NAN = math.nan


@pytest.fixture
def bank() -> AspectBank:
    """Answers about examples 3, 5 and 9; one is missing."""
    return AspectBank(("a?", "b?"), torch.tensor([9, 3, 5]), torch.tensor([[0.9, 0.25], [0.3, 0.0], [NAN, 1.0]]))


def test_yes_against_no():
    logits = torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.0, 0.0, 0.0, 0.0]], dtype=torch.double)
    expected = (math.exp(1) + math.exp(0.5)) / (math.exp(1) + math.exp(0.5) + math.exp(-1))
    torch.testing.assert_close(yes_probability(logits, [0, 3], [2]), torch.tensor([expected, 2 / 3], dtype=torch.double))
    torch.testing.assert_close(yes_probability(logits + 7, [0], [2]), torch.sigmoid(logits[:, 0] - logits[:, 2]))


def test_yes_at_the_extremes():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-math.inf, -math.inf, 0.0], [-math.inf, 0.0, 0.0]])
    for dtype in (torch.float32, torch.bfloat16):
        assert yes_probability(logits.to(dtype), [0], [1]).tolist() == [1.0, 0.5, 0.0]


def test_yes_from_a_server():
    top = {"Yes": math.log(0.5), " yes": math.log(0.1), "No": math.log(0.2), "Maybe": math.log(0.2)}
    assert math.isclose(yes_of_top(top) or 0.0, 0.75)
    assert yes_of_top({"no": -0.1}) == 0.0
    assert yes_of_top({"The": -0.1}) is None
    assert yes_of_answers(["Yes.", "no", "yes", "perhaps"]) == 3 / 5
    assert yes_of_answers([]) == 0.5


def test_lookup(bank):
    found = bank.lookup(torch.tensor([5, 3, 4, 9, 100, 3]))
    expected = torch.tensor([[NAN, 1.0], [0.3, 0.0], [NAN, NAN], [0.9, 0.25], [NAN, NAN], [0.3, 0.0]])
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert bank.lookup(torch.zeros(0, dtype=torch.int64)).shape == (0, 2)
    empty = AspectBank(("a?",), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1))
    assert empty.lookup(torch.tensor([1])).isnan().all()


def test_a_bank_on_disk(bank, tmp_path):
    path = tmp_path / "bank.json"
    bank.save(path)
    assert json.loads(path.read_text())["answers"]["5"] == [None, 1.0]
    back = AspectBank.load(path)
    torch.testing.assert_close(back.probs, bank.probs, equal_nan=True, rtol=0, atol=0)
    assert (back.questions, back.ids.tolist(), repr(back)) == (bank.questions, [3, 5, 9], repr(bank))
    empty = AspectBank(("a?",), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1))
    empty.save(path)
    assert AspectBank.load(path).probs.shape == (0, 1)


def test_another_answer_is_another_bank(bank):
    changed = bank.probs.clone()
    changed[0, 1] = 0.5
    assert repr(AspectBank(bank.questions, bank.ids, changed)) != repr(bank)
    assert repr(bank).startswith("AspectBank(2 questions, 3 examples, ")


def test_questions_that_are_always_answered_alike_are_dropped():
    probs = torch.tensor([[0.5, 0.1, 0.3, NAN], [0.5, 0.9, NAN, NAN], [0.505, 0.1, 0.3, NAN]])
    kept = AspectBank(("a", "b", "c", "d"), torch.arange(3), probs).informative()
    assert kept.questions == ("b",)
    torch.testing.assert_close(kept.probs[:, 0], probs[:, 1])


def test_collecting_from_a_callable():
    images = torch.rand(7, 1, 2, 2)
    source = Source(examples_from((images, torch.zeros(7).long()), 1), batch_size=3)
    questions = ["Is it bright?", "Is its corner bright?"]
    bank = collect_aspects(lambda x, q: float(x[0, 0, 0] if "corner" in q else x.mean()), source.scan(), questions)
    assert bank.questions == tuple(questions)
    torch.testing.assert_close(bank.lookup(torch.arange(7)), torch.stack([images.mean((1, 2, 3)), images[:, 0, 0, 0]], dim=1))


@pytest.mark.parametrize(
    ("questions", "ids", "probs", "message"),
    [
        (("a",), [1, 2], [[0.5]], r"probs: expected shape \(2, 1\) for 2 examples and 1 questions, got \(1, 1\)"),
        (("a",), [7], [[1.5]], r"probs: expected numbers in \[0, 1\], got 1.5 in example 7"),
        (("a", "a"), [7], [[0.5, 0.5]], "questions, ids: expected each once, got some twice"),
        (("a",), [7, 7], [[0.5], [0.5]], "questions, ids: expected each once, got some twice"),
    ],
)
def test_bad_tables_are_refused(questions, ids, probs, message):
    with pytest.raises(ValueError, match=message):
        AspectBank(questions, torch.tensor(ids), torch.tensor(probs))


@pytest.mark.parametrize("text", ["{", "[]", '{"questions": ["a"]}', '{"questions": ["a"], "answers": {"x": [0.5]}}'])
def test_bad_files_are_refused_in_one_line(tmp_path, text):
    path = tmp_path / "bank.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^aspects: expected JSON with questions and answers by id, got .*bank.json' \([^\n]*\)$"):
        AspectBank.load(path)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"aspects: expected JSON .*No such file"):
        AspectBank.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"no_ids: expected tokens in \[0, 3\), at least one, got \[\]"):
        yes_probability(torch.zeros(3), [0], [])
    with pytest.raises(ValueError, match=r"yes_ids: expected tokens in \[0, 3\), at least one, got \[3\]"):
        yes_probability(torch.zeros(3), [3], [0])
