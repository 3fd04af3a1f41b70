"""pedagogy-benchmark: the made-up bank and the simulated models of the miniature, and the golden numbers."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from tests.parity import check_case, load_adapter

from preceptor.education.multiple_choice import LETTERS, NONE, Item, right
from preceptor.education.scoring import OVERALL, score
from preceptor.methods.pedagogy_benchmark import fraction_items, miniature, simulated
from preceptor.miniature.pupils import network, word_overlap

GOLDEN = Path(__file__).parents[1] / "golden" / "pedagogy-benchmark.json"


def test_parity():
    adapter = load_adapter("pedagogy-benchmark")
    for index, case in enumerate(json.loads(GOLDEN.read_text())["cases"]):
        line = check_case("pedagogy-benchmark", str(index), case, adapter.run)
        assert line.status == "ok", line


def test_the_adapter_drops_models_with_bad_answers():
    inputs = {"category": ["a", "a"], "answer": ["A", "B"], "pred_x": ["A", float("nan")], "pred_y": ["B", "B"]}
    found = load_adapter("pedagogy-benchmark").run({"bad_format_threshold": 50}, inputs)
    assert found == {"overall": {"y": [50, 0, 2]}, "a": {"y": [50, 0, 2]}}


def test_items_have_one_right_option():
    items = fraction_items(np.random.default_rng(0), 500, first_share=0.5)
    for item in items:
        asked = Fraction(item.question.split()[-1].rstrip("?"))
        equal = [LETTERS[i] for i, option in enumerate(item.options) if Fraction(option) == asked]
        assert equal == [item.answer]
        assert len(set(item.options)) == 4
    shares = Counter(item.answer for item in items)
    assert shares["A"] / 500 == pytest.approx(0.5, abs=0.07)
    assert shares["D"] / 500 == pytest.approx(1 / 6, abs=0.06)


def test_simulated_models_know_as_much_as_they_should():
    items = fraction_items(np.random.default_rng(1), 2000, first_share=0.5)
    for knowledge, habit in ((0.7, 0.0), (0.7, 0.4), (0.3, 0.9)):
        generator = np.random.default_rng(2)
        cyclic = score(items, simulated(items, generator, knowledge=knowledge, habit=habit, order="cyclic"))[OVERALL]
        given = score(items, simulated(items, generator, knowledge=knowledge, habit=habit, order="given"))[OVERALL]
        assert cyclic.accuracy == pytest.approx(100 * (habit / 4 + (1 - habit) * knowledge), abs=2)
        assert given.accuracy == pytest.approx(100 * (habit * 0.5 + (1 - habit) * knowledge), abs=4)
    always = simulated(items, np.random.default_rng(0), knowledge=0, habit=1, order="cyclic")
    assert score(items, always)[OVERALL].accuracy == 25


def test_students_learn_from_the_teacher():
    items = fraction_items(np.random.default_rng(3), 300)
    first = set(sorted({item.question for item in items})[::2])
    taught, asked = [item for item in items if item.question in first], [item for item in items if item.question not in first]
    answers, facit = [right(item) for item in taught], [right(item) for item in asked]
    shares = {
        "taught": np.equal(network(taught, answers, asked, seed=0), facit).mean(),
        "not yet": np.equal(network(taught, answers, asked, seed=0, updates=0), facit).mean(),
        "taught nonsense": np.equal(network(taught, [(at + 1) % 4 for at in answers], asked, seed=0), facit).mean(),
        "words": np.equal(word_overlap(taught, answers, asked), facit).mean(),
    }
    assert shares["taught"] > 0.6 > shares["words"]
    assert shares["not yet"] < 0.5
    assert shares["taught nonsense"] < 0.3


def test_word_overlap_counts_shared_words():
    def item(question, *options):
        return Item(id="1", question=question, options=options, answer="A")

    taught = [item("the cat", "sits", "runs"), item("a dog", "barks", "sleeps")]
    asked = [item("an old dog", "sits", "barks"), item("fish", "swim", "fly"), item("the cat", "runs", "sits")]
    assert word_overlap(taught, [0, 0], asked) == [1, 0, 1]
    assert word_overlap(taught, [1, NONE], asked) == [0, 0, 0]


def test_miniature():
    arms = miniature(0, "smoke").arms
    assert arms["pedagogy-benchmark"]["error"] < arms["untrained"]["error"]
    assert arms["balanced"]["error"] != arms["single-order"]["error"]
    assert arms["balanced"]["network"] != arms["pedagogy-benchmark"]["network"] == arms["single-order"]["network"]
    assert arms["pedagogy-benchmark"]["teacher"] > 80 > arms["untrained"]["teacher"]
