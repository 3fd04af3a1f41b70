"""Habits of letters: a prior that is measured and taken off, and an accuracy in which every letter is right equally often."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preceptor.education.multiple_choice import NONE, Item, empty_priors, sit
from preceptor.education.scoring import OVERALL, balanced, score
from preceptor.teachers.chat import Chat, Said

GENERATOR = np.random.default_rng(0)
ITEMS = [
    Item(
        id=str(i), question=f"Q{i}", options=tuple(f"o{i}{k}" for k in range(2 + i % 3)), answer="A", category="xy"[i % 2], year=str(i % 4)
    )
    for i in range(30)
]
EVIDENCE = {option: GENERATOR.normal() for item in ITEMS for option in item.options}
HABIT = dict(zip("ABCD", (1.5, -0.5, 0.0, 0.7), strict=True))


class Habitual:
    """Log-probabilities of the letters: what it knows of each option, and so much for each letter as such."""

    model, batch, parallel = "habitual", 8, 1

    def __init__(self, habit=None, unseen=""):
        self.habit, self.unseen, self.asked = habit or dict.fromkeys("ABCD", 0.0), unseen, []

    def answer(self, questions):
        return [self.one(question) for question in questions]

    def one(self, question):
        text = question.messages[0]["content"]
        self.asked.append(text)
        shown = {line[0]: line[3:] for line in text.splitlines() if line[1:3] == ". "}
        raw = [EVIDENCE.get(shown[letter], 0.0) + self.habit[letter] for letter in question.options]
        total = math.log(sum(map(math.exp, raw)))
        pairs = zip(raw, question.options, strict=True)
        return Said(log_probs=tuple(-math.inf if letter in self.unseen else value - total for value, letter in pairs))


def test_a_habit_of_letters_is_taken_off_exactly():
    for order, prior in (("given", "empty"), ("cyclic", "empty"), ("cyclic", "test")):
        clean = sit(ITEMS, Chat(Habitual()), order=order, parsing="log-probs")
        mended = sit(ITEMS, Chat(Habitual(HABIT)), order=order, parsing="log-probs", letter_prior=prior)
        assert mended.chosen == clean.chosen
        assert sit(ITEMS, Chat(Habitual(HABIT)), order=order, parsing="log-probs").chosen != clean.chosen
        assert sit(ITEMS, Chat(Habitual()), order=order, parsing="log-probs", letter_prior=prior).chosen == clean.chosen


def test_in_cyclic_order_the_means_over_the_test_are_the_habit():
    model = Habitual(HABIT)
    mean = sit(ITEMS, Chat(model), order="cyclic", parsing="log-probs", letter_prior="test").priors
    assert len(model.asked) == sum(len(item.options) for item in ITEMS)  # no question more
    for one, two in zip(mean, empty_priors(ITEMS, Chat(Habitual(HABIT))), strict=True):
        assert one == pytest.approx(two)
        assert sum(map(math.exp, one)) == pytest.approx(1)
    sitting = sit(ITEMS, Chat(Habitual(HABIT, unseen="B")), order="cyclic", parsing="log-probs", letter_prior="test")
    assert all(math.isfinite(value) for row in sitting.priors for value in row)
    assert all(place != 1 for row in sitting.places for place in row)
    nothing = sit(ITEMS, Chat(Habitual(unseen="ABCD")), parsing="log-probs", letter_prior="test")
    assert {place for row in nothing.places for place in row} == {NONE}


def test_the_prior_is_that_of_the_letters_of_each_number_of_options():
    model = Habitual(HABIT)
    found = empty_priors(ITEMS, Chat(model))
    assert len(model.asked) == 3  # the same question for both categories, which have no examples
    for item, prior in zip(ITEMS, found, strict=True):
        letters = "ABCD"[: len(item.options)]
        total = sum(math.exp(HABIT[letter]) for letter in letters)
        assert prior == pytest.approx([HABIT[letter] - math.log(total) for letter in letters])
    shots = {"x": [ITEMS[0]], "y": [ITEMS[1]]}
    model = Habitual()
    empty_priors(ITEMS, Chat(model), shots=shots)
    assert len(model.asked) == 6
    assert sum(ITEMS[0].question in text for text in model.asked) == 3


def test_a_letter_that_an_endpoint_does_not_tell_counts_as_the_least_likely():
    (prior,) = empty_priors(ITEMS[2:3], Chat(Habitual(HABIT, unseen="D")))
    assert prior[3] == prior[1] == min(prior)
    assert sum(map(math.exp, prior)) == pytest.approx(1)
    with pytest.raises(ValueError, match="letter_prior: expected log-probabilities of letters for an empty question, got none"):
        empty_priors(ITEMS, Chat(Habitual(unseen="ABCD")))


def test_a_prior_needs_log_probabilities():
    with pytest.raises(ValueError, match="letter_prior: expected parsing 'log-probs' with it, got 'lenient'"):
        sit(ITEMS, Chat(Habitual()), parsing="lenient", letter_prior="test")
    with pytest.raises(ValueError, match="letter_prior: expected one of none, empty, test, got 'emtpy', nearest: 'empty'"):
        sit(ITEMS, Chat(Habitual()), parsing="log-probs", letter_prior="emtpy")


def slow_balanced(items, chosen):
    """Reweighted: each question counts with the inverse of how often its letter is right among items with as many options."""
    asked = [
        (len(item.options), ("ABCDEFG".index(item.answer) - shift) % len(item.options), "ABCDEFG".index(item.answer) == one, len(row))
        for item, row in zip(items, chosen, strict=True)
        if item.answer in "ABCDEFG"[: len(item.options)]
        for shift, one in enumerate(row)
    ]
    total = 0.0
    for options, letter, hit, turns in asked:
        alike = sum(1 for k, at, _, _ in asked if (k, at) == (options, letter))
        total += hit * sum(1 for k, *_ in asked if k == options) / turns / options / alike
    return 100 * total / len(items)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["given", "cyclic"]))
def test_balanced_accuracy(seed, order):
    generator = np.random.default_rng(seed)
    items, chosen = [], []
    for i in range(40):
        k = 2 + i % 2
        items.append(
            Item(
                id=str(i), question="q", options=("o",) * k, answer="?" if i == 7 else "ABC"[i // 2 % k if i < 6 else generator.integers(k)]
            )
        )
        chosen.append(generator.integers(-1, k, k if order == "cyclic" else 1).tolist())
    found = balanced(items, chosen)
    assert found == pytest.approx(slow_balanced(items, chosen))
    if order == "cyclic":
        plain = np.mean(
            [100 * np.mean([one == "ABC".find(item.answer) != NONE for one in row]) for item, row in zip(items, chosen, strict=True)]
        )
        assert found == pytest.approx(plain)


def test_whoever_always_says_a_gets_chance_where_letters_are_balanced():
    items = [Item(id=str(i), question="q", options=("x",) * 4, answer="AAAAAABCD"[i % 9]) for i in range(90)]
    assert balanced(items, [[0]] * 90) == 25
    assert math.isnan(balanced([item for item in items if item.answer != "C"], [[0]] * 80))


def test_items_are_grouped_by_what_is_asked_for():
    sitting = sit(ITEMS, Chat(Habitual()), parsing="log-probs")
    assert list(score(ITEMS, sitting, by="year")) == [OVERALL, "0", "1", "2", "3"]
    assert list(score(ITEMS, sitting)) == [OVERALL, "x", "y"]
    assert list(score(ITEMS, sitting, by="age_group")) == [OVERALL]
    with pytest.raises(ValueError, match="by: expected one of category, age_group, year, got 'yaer', nearest: 'year'"):
        score(ITEMS, sitting, by="yaer")
