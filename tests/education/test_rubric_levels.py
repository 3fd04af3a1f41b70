"""Rubrics with levels: reading them, asking, people's labels, and weighted agreement."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from preceptor.education.agreement import MISSING
from preceptor.education.annotate import annotate, parse_answer, prompt
from preceptor.education.comments import read_comments
from preceptor.education.reliability import reliabilities, reliability
from preceptor.education.rubric import parse_rubric
from preceptor.teachers.chat import Chat, Said

EXAMPLES = [{"comment": "I am lost", "answer": "very much", "explanation": "Nothing is clear."}]
LEVELS = ["none", "a little", "very much"]
RUBRIC = parse_rubric(
    {
        "categories": [
            {"name": "confusion", "statement": "How confused is the student?", "levels": LEVELS, "examples": EXAMPLES},
            {"name": "thanks", "statement": "It thanks.", "examples": [{"comment": "ta", "answer": True}]},
        ]
    }
)
CONFUSION, THANKS = RUBRIC.categories


class Counting:
    """Finds a student the more confused the more question marks there are."""

    model, batch, parallel = "counting", 4, 1

    def answer(self, questions):
        return [self.one(question) for question in questions]

    def one(self, question):
        text = question.messages[0]["content"]
        comment = text.rpartition("<comment>")[2].partition("</comment>")[0]
        level = min(comment.count("?"), 2)
        if "confused" not in text:
            return Said(text="false")
        if question.options:
            return Said(log_probs=tuple(-0.1 if k == level else -5.0 for k in range(3)))
        odd = "puzzled" if comment.startswith("odd") and len(question.messages) == 1 else ""
        assert len(question.messages) == 1 or '"none", "a little" or "very much"' in question.messages[-1]["content"]
        return Said(text=odd or f"Label: {LEVELS[level].upper()}.")


@pytest.fixture
def comments(tmp_path):
    (tmp_path / "c.csv").write_text("id,comment,H:confusion,H:thanks\na,fine,None,0\nb,why?,A little,\nc,why??,2,1\nd,odd?,,0\n")
    return read_comments(tmp_path / "c.csv", RUBRIC)


def test_levels_become_labels(comments):
    assert comments.people["H"].tolist() == [[0, 0], [1, MISSING], [2, 1], [MISSING, 0]]  # a level "none" is no missing label
    found = annotate(comments, RUBRIC, Chat(Counting()))
    assert found.labels.tolist() == [[0, 0], [1, 0], [2, 0], [1, 0]]
    assert len(found.answers[3][0]) == 2
    chosen = annotate(comments, parse_rubric({"categories": [CONFUSION.model_dump()]}), Chat(Counting()), reading="log-probs")
    assert chosen.labels[:, 0].tolist() == [0, 1, 2, 1]


def test_an_answer_that_is_no_level_is_missing(comments):
    found = annotate(comments, RUBRIC, Chat(Counting()), asks=1)
    assert found.labels[3].tolist() == [MISSING, 0]
    assert found.failed[3][0] == "expected none or a little or very much, got 'puzzled'"


def test_prompts_name_the_levels():
    zero = prompt(RUBRIC, CONFUSION, "hm", style="zero-shot")
    assert "Question: How confused is the student?" in zero
    assert zero.endswith('Which answer fits this comment? Answer with one of "none", "a little" or "very much".')
    reasons = prompt(RUBRIC, CONFUSION, "hm", style="reasoning")
    assert "Nothing is clear. Label: very much" in reasons
    assert prompt(RUBRIC, THANKS, "hm", style="zero-shot").endswith('Answer with one word, "true" or "false".')
    assert [parse_answer(text, LEVELS) for text in ("None", "Label: a  little.", "little", "")] == [0, 1, None, None]


def test_the_version_of_a_statement_without_levels_is_what_it_was():
    turned = THANKS.model_copy(update={"levels": ("no", "yes")})
    assert RUBRIC.version(THANKS, "zero-shot") == "zero-shot-2c0106e2"
    assert RUBRIC.version(turned, "zero-shot") != RUBRIC.version(THANKS, "zero-shot")
    assert RUBRIC.version(CONFUSION.model_copy(update={"weights": "linear"}), "zero-shot") == RUBRIC.version(CONFUSION, "zero-shot")


def test_levels_that_are_numbers_are_read_as_words():
    category = parse_rubric({"categories": [{"name": "a", "statement": "b", "levels": ["1", "2", "3"]}]}).categories[0]
    assert [category.read(text) for text in ("1", "3", "0", "2.0", "")] == [0, 2, None, None, MISSING]
    assert [CONFUSION.read(text) for text in ("1", "2.0", "NONE", "nan", "3", "much")] == [1, 2, 0, MISSING, None, None]
    assert [THANKS.read(text) for text in ("1", "False", "none", "2")] == [1, 0, MISSING, None]


@pytest.mark.parametrize("weights", ["nominal", "linear", "quadratic"])
def test_agreement_of_levels_is_weighted(weights):
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 300)
    first, second, model = (
        np.clip(truth + generator.integers(-1, 2, 300) * (generator.random(300) < rate), 0, 3) for rate in (0.2, 0.2, 0.6)
    )
    found = reliability({"H1": first, "H2": second}, model, categories=4, weights=weights, draws=50)
    expected = [cohen_kappa_score(rater, model, weights=None if weights == "nominal" else weights) for rater in (first, second)]
    assert found.human_model.value == pytest.approx(np.mean(expected), abs=1e-12)
    assert found.positives == min(300 - np.bincount(rater).max() for rater in (first, second))
    category = {"name": "a", "statement": "b", "levels": list("wxyz"), "weights": weights}
    whole = reliabilities({"H1": first[:, None], "H2": second[:, None]}, model[:, None], parse_rubric({"categories": [category]}), draws=50)
    assert whole == [found]


def test_two_levels_are_true_and_false():
    generator = np.random.default_rng(1)
    first, second, model = (generator.integers(0, 2, 200) for _ in range(3))
    plain = reliability({"H1": first, "H2": second}, model, draws=20)
    assert reliability({"H1": first, "H2": second}, model, weights="quadratic", draws=20) == plain
    labels = {"H1": np.stack([first, first], 1), "H2": np.stack([second, np.full(200, MISSING)], 1)}
    only = {"H1": np.full((200, 2), MISSING)}
    assert reliabilities(labels, np.stack([model, model], 1), RUBRIC, draws=20)[1].people == {}
    assert reliabilities(only, np.stack([model, model], 1), RUBRIC, draws=20) == [None, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": ["yes"]}, "a: expected at least 2 levels that differ, got yes"),
        ({"levels": ["Yes", "yes."]}, "a: expected at least 2 levels that differ, got Yes, yes."),
        ({"levels": ["no", "yes"], "polarity": False}, "a: expected no polarity with levels: turn their order"),
        ({"weights": "linear"}, "a: expected levels with weights, got none"),
        ({"levels": ["no", "yes"], "weights": "cubic"}, "categories.0.weights: expected 'nominal', 'linear' or 'quadratic', got 'cubic'"),
        ({"levels": ["low", "high"], "examples": [{"comment": "x", "answer": "mid"}]}, "answers of examples out of low, high, got 'mid'"),
        ({"levels": ["low", "high"], "examples": [{"comment": "x", "answer": True}]}, "answers of examples out of low, high, got True"),
        ({"examples": [{"comment": "x", "answer": "yes"}]}, "a: expected answers of examples out of true, false, got 'yes'"),
        ({"levels": [1, 2]}, "categories.0.levels.0: expected a valid string, got 1"),
    ],
)
def test_bad_levels(change, message):
    with pytest.raises(ValueError, match="expected") as error:
        parse_rubric({"categories": [{"name": "a", "statement": "b", **change}]})
    assert message in str(error.value)


def test_a_label_outside_the_levels_is_refused(tmp_path):
    (tmp_path / "c.csv").write_text("id,comment,H:confusion\na,x,a littel\n")
    with pytest.raises(
        ValueError, match="H:confusion of a: expected one of none, a little, very much, or nothing, got 'a littel', nearest: 'a little'"
    ):
        read_comments(tmp_path / "c.csv", RUBRIC)
