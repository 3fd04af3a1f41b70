"""Multiple-choice tests: letters read from answers, orders of the options, scores, comparisons, prices and the frontier."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats import contingency_tables as tables
from statsmodels.stats import proportion

from preceptor.education.frontier import Steps, frontier, hypervolume, progress, steps
from preceptor.education.item_files import read_items
from preceptor.education.multiple_choice import (
    NONE,
    Item,
    draw_shots,
    held_out,
    lenient_letter,
    prompt,
    right,
    sit,
    strict_letter,
)
from preceptor.education.prices import Offer, offer_of, read_offers
from preceptor.education.scoring import OVERALL, accuracy_table, compare_sittings, letters, mcnemar, score, wilson
from preceptor.teachers.chat import Chat, Said

ITEMS = [
    Item(
        id=str(i),
        question=f"Question {i}?",
        options=("red", "green", "blue", "grey")[: 2 + i % 3],
        answer="AB"[i % 2],
        category="xyz"[i % 3],
    )
    for i in range(24)
]


class Always:
    """Answers with the same text, or with the right letter when it knows the option."""

    model, batch, parallel = "always", 4, 1

    def __init__(self, text=None, knows="green"):
        self.text, self.knows = text, knows

    def answer(self, questions):
        return [self.one(question) for question in questions]

    def one(self, question):
        lines = question.messages[0]["content"].splitlines()
        letter = next((line[0] for line in reversed(lines) if line.endswith(f". {self.knows}")), "?")
        if question.options:
            return Said(log_probs=tuple(-0.1 if option == letter else -4.0 for option in question.options))
        return Said(text=self.text or letter, prompt_tokens=7, completion_tokens=1)


STRICT = {
    "A": "A", "  B": "B", "\n\nC": "C", "D.": "D", "E) x": "E", "F:": "F", "G* y": "G", "A B": "A", "A and B": "A",
    "B. C": "B", "A\nbecause": "A",
    "A, C": None, "AB": None, "a": None, "(A)": None, "The answer is C": None, "H": None, "": None, "  ": None, "Reasoning\nB.": None,
    "Reasoning\nB": "B", 'Reasoning\nB"': "B", 'Reasoning\nB"\n': "B", "Reasoning\nB\n\n": None, "Reasoning\n B": None,
    "<think>A or B</think>\n\nC": "C", "<think>A</think> I say C": "C", "<think>A</think>\n\nC.": None,
    "<think>it is A": None, "x <think>y</think> C": None,
    "## Step 1: look\nanswer D.": "D", "## Step 1: look\nanswer D. . ": "D", "## Step 1": None, "## Step 2\nanswer D.": None,
}  # fmt: skip


@pytest.mark.parametrize(("text", "letter"), STRICT.items())
def test_strict_letters(text, letter):
    assert strict_letter(text) == letter
    assert strict_letter(None) is None
    assert letter is None or lenient_letter(text) == letter


LENIENT = {
    "(A)": "A", "a": "A", "**B**": "B", "[c].": "C", "The answer is C": "C", "The correct answer is (D).": "D",
    "Answer: **B** because A is wrong": "B",
    "I would choose B": "B", "": None, "The answer is a good one": None, "<think>A</think>The answer: C.": "C", "Either B or C": None,
    "no letter": None, "It's E's turn": None,
}  # fmt: skip


@pytest.mark.parametrize(("text", "letter"), LENIENT.items())
def test_lenient_letters(text, letter):
    assert lenient_letter(text) == letter


def test_each_option_stands_at_each_letter_once():
    item = Item(id="1", question="Q", options=("w", "x", "y"), answer="B")
    seen = Counter(line for shift in range(3) for line in prompt(item, shift=shift).splitlines() if line[1:3] == ". ")
    assert seen == Counter(f"{letter}. {option}" for letter in "ABC" for option in "wxy")


def test_whoever_always_says_a_gets_chance_when_options_are_turned():
    found = score(ITEMS, sit(ITEMS, Chat(Always("A")), order="cyclic"))
    for one in found.values():
        assert one.accuracy == pytest.approx(one.chance, abs=1e-12)
        assert one.bad == 0
    assert sum(found[name].items for name in "xyz") == found[OVERALL].items == 24
    assert found[OVERALL].accuracy == pytest.approx(np.mean([100 / len(item.options) for item in ITEMS]))


def test_whoever_knows_is_right_wherever_the_option_stands():
    for parsing in ("strict-official", "lenient", "log-probs"):
        sitting = sit(ITEMS, Chat(Always()), order="cyclic", parsing=parsing)
        assert all(set(row) == {1} for row in sitting.chosen)
        assert score(ITEMS, sitting)[OVERALL].accuracy == 50
    once = sit(ITEMS, Chat(Always()))
    assert [len(row) for row in once.chosen] == [1] * 24
    assert letters(once) == {"A": 0, "B": 24, "none": 0}


def test_no_letter_is_wrong_and_bad():
    found = score(ITEMS, sit(ITEMS, Chat(Always("maybe"))))[OVERALL]
    assert (found.accuracy, found.bad) == (0, 100)
    beyond = sit(ITEMS, Chat(Always("G")))
    assert letters(beyond)["none"] == 24  # a letter of no option


def test_an_item_with_two_right_letters_is_never_right():
    item = Item(id="1", question="Q", options=("x", "y"), answer="A, B")
    assert right(item) == NONE
    assert score([item], sit([item], Chat(Always("?"))))[OVERALL].accuracy == 0
    assert right(Item(id="1", question="Q", options=("x", "y"), answer="C")) == NONE


def test_examples_are_held_out_with_their_copies():
    items = [Item(id=str(i), question=f"Q{i % 5}!", options=("x", "y"), answer="A", category="c", age_group=str(i % 3)) for i in range(10)]
    shots = draw_shots(items, 3, seed=1)
    assert [item.age_group for item in shots["c"]] == ["0", "1", "2"]
    kept = held_out(items, shots)
    assert not {item.question for item in kept} & {item.question for item in shots["c"]}
    text = prompt(kept[0], shots["c"])
    assert text.count("\nA\n") == 3
    assert draw_shots(items, 3, seed=1) == shots
    assert {seed for seed in range(9) if draw_shots(items, 3, seed=seed) != shots}
    assert len(draw_shots(items, 99)["c"]) == 5
    with pytest.raises(ValueError, match="shots: expected a number >= 0, got -1"):
        draw_shots(items, -1)


def test_files_of_both_forms(tmp_path):
    rows = [{"question": "Q1", "options": ["x", "y"], "answer": "A"}, {"question": "Q2", "options": ["x", "y"], "answer": None}]
    (tmp_path / "i.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    items, missing = read_items(tmp_path / "i.jsonl")
    assert (len(items), missing, items[0].id) == (1, 1, "1")
    (tmp_path / "i.csv").write_text('prompt,A,B,C,answer,category\n"Q, 1",x,y,,B,maths\n')
    items, _ = read_items(tmp_path / "i.csv", {"question": "prompt"})
    assert items == [Item(id="1", question="Q, 1", options=("x", "y"), answer="B", category="maths")]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("quest,A,B,answer\nq,x,y,A\n", {}, "i.csv: expected a column 'question', got quest, A, B, answer, nearest: 'quest'"),
        ("question,A,B,answer\nq,x,y,\n", {}, "i.csv: expected an answer in column 'answer', got missing ones only"),
        ("question,A,B,answer\nq,x,,A\n", {}, "i.csv: expected 2 to 7 options in row 1, got 1 options"),
        ("question,A,answer\nq,x,A\n", {}, "i.csv: expected a column 'B', got question, A, answer"),
        ("question,A,B,answer\n,x,y,A\n", {}, "i.csv: expected a question in row 1, got none"),
        ("question,options,answer\nq,x y,A\n", {}, "i.csv: expected options as a JSON list in row 1, got 'x y'"),
        ("id,question,A,B,answer\n1,q,x,y,A\n1,q,x,y,A\n", {}, "i.csv: expected every id once, got '1' twice"),
        ("question,A,B,answer\nq,x,y,A\n", {"questoin": "question"}, "columns: expected one of id, question"),
    ],
)
def test_bad_files(text, columns, message, tmp_path):
    (tmp_path / "i.csv").write_text(text)
    with pytest.raises(ValueError, match="expected") as error:
        read_items(tmp_path / "i.csv", columns)
    assert message in str(error.value)


def test_bad_calls():
    with pytest.raises(ValueError, match="items: expected at least one to test with, got none"):
        sit([], Chat(Always()))
    with pytest.raises(
        ValueError, match="parsing: expected one of strict-official, lenient, log-probs, got 'strict', nearest: 'strict-official'"
    ):
        sit(ITEMS, Chat(Always()), parsing="strict")
    with pytest.raises(ValueError, match="sitting: expected answers to 3 items, at least 1, got 24"):
        score(ITEMS[:3], sit(ITEMS, Chat(Always())))


def test_wilson_and_mcnemar_against_other_implementations():
    for right_ones, total in ((0, 5), (5, 5), (3, 7), (80, 200)):
        assert wilson(right_ones / total, total) == pytest.approx(
            proportion.proportion_confint(right_ones, total, method="wilson"), abs=1e-12
        )
    for better, worse in ((0, 0), (1, 0), (3, 9), (40, 20)):
        assert mcnemar(better, worse) == pytest.approx(
            tables.mcnemar([[5, better], [worse, 5]], exact=True).pvalue if better + worse else 1.0
        )
    assert wilson(0.0, 1)[0] == 0
    assert wilson(1.0, 1)[1] == 1
    with pytest.raises(ValueError, match=r"share: expected a number in \[0, 1\] of at least 1 item, got 1.5 of 3"):
        wilson(1.5, 3)
    with pytest.raises(ValueError, match="counts: expected numbers >= 0, got -1 and 0"):
        mcnemar(-1, 0)


def test_two_models_on_the_same_items():
    good, bad = sit(ITEMS, Chat(Always(knows="green"))), sit(ITEMS, Chat(Always("?")))
    found = compare_sittings(ITEMS, good, bad)
    assert (found.difference, found.better, found.worse) == (50, 12, 0)
    assert found.p_value == 2 / 2**12
    assert found.low < 50 < found.high
    turned = compare_sittings(ITEMS, bad, good)
    assert (turned.difference, turned.p_value) == (-50, found.p_value)
    assert compare_sittings(ITEMS, good, good).p_value == 1


def test_tables_count_none_as_wrong():
    table = accuracy_table(["a", "a", "b"], ["A", "B", "C"], ["A", None, None])
    assert table == {"overall": (100 / 3, 200 / 3, 3), "a": (50, 50, 2), "b": (0, 100, 1)}
    with pytest.raises(ValueError, match="predictions: expected as many as answers, at least 1, got 0 for 0"):
        accuracy_table([], [], [])


points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)


@settings(max_examples=200, deadline=None)
@given(points)
def test_the_frontier_is_what_nobody_beats(pairs):
    cost, accuracy = [float(c) for c, _ in pairs], [float(a) for _, a in pairs]

    def beaten(i):
        return any(
            cost[j] <= cost[i] and accuracy[j] >= accuracy[i] and (cost[j] < cost[i] or accuracy[j] > accuracy[i])
            for j in range(len(pairs))
        )

    assert sorted(frontier(cost, accuracy, ties=True)) == [i for i in range(len(pairs)) if not beaten(i)]
    kept = frontier(cost, accuracy)
    assert {(cost[i], accuracy[i]) for i in kept} == {(cost[i], accuracy[i]) for i in range(len(pairs)) if not beaten(i)}
    assert frontier([c**2 + 1 for c in cost], accuracy) == kept  # only the order of costs counts
    again = frontier(cost[::-1], accuracy[::-1])
    assert {(cost[::-1][i], accuracy[::-1][i]) for i in again} == {(cost[i], accuracy[i]) for i in kept}
    if pairs:
        found = steps(cost, accuracy)
        assert found.value(math.inf) == max(accuracy)
        assert found.cost[0] == min(cost)
        for budget in range(7):
            best = max((a for c, a in zip(cost, accuracy, strict=True) if c <= budget), default=math.nan)
            assert found.value(budget) == best or math.isnan(best)


def test_models_without_a_price_or_an_accuracy_are_left_out():
    assert frontier([math.nan, 1.0, 2.0], [99.0, 50.0, math.nan]) == [1]
    assert math.isnan(steps([], []).value(1))
    with pytest.raises(ValueError, match=r"cost: expected numbers >= 0, got -1.0"):
        frontier([-1.0], [1.0])
    with pytest.raises(ValueError, match="accuracy: expected 1 numbers like cost, got 2"):
        frontier([1.0], [1.0, 2.0])


def test_the_frontier_over_time_never_falls():
    generator = np.random.default_rng(0)
    cost, accuracy = np.exp(generator.normal(size=30)).tolist(), generator.uniform(20, 90, 30).tolist()
    released = [f"2024-{month:02d}" for month in generator.integers(1, 13, 30)]
    released[0] = ""
    dated = progress(cost, accuracy, released)
    areas = [hypervolume(found, low=0.01, high=100, base=20) for _, found in dated]
    assert [date for date, _ in dated] == sorted(set(released) - {""})
    assert areas == sorted(areas)
    values = [found.value(1.0) for _, found in dated]
    assert all(a <= b for a, b in pairwise(values) if not math.isnan(a))


def test_the_area_is_an_integral():
    found = Steps(cost=(0.0, 0.5, 4.0), accuracy=(30.0, 50.0, 80.0))
    grid = np.linspace(math.log(0.1), math.log(10), 200_001)
    slow = np.mean([max(found.value(math.exp(x)) - 40, 0) for x in grid[::20]]) * (grid[-1] - grid[0])
    assert hypervolume(found, low=0.1, high=10, base=40) == pytest.approx(slow, rel=1e-3)
    assert found.price(60) == 4.0
    assert found.price(99) == math.inf
    with pytest.raises(ValueError, match="low: expected 0 < low < high, got 0 and 1"):
        hypervolume(found, low=0, high=1, base=0)


def test_price_lists(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("model,input,output,released\nsmollm2,0,0,2024-11\nbig,3,15,2025-02-01\n")
    offers = read_offers(path)
    assert offer_of("smollm2@0123", offers).released == "2024-11"
    assert offer_of("big", offers).cost("blend") == pytest.approx(0.8 * 3 + 0.2 * 15)
    assert math.isnan(offer_of("other", offers).cost("input"))
    assert math.isnan(Offer(model="x", input=1).cost("run"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modell\nx\n", "p.csv: expected a column 'model', got modell, nearest: 'modell'"),
        (
            "model,inputs\nx,1\n",
            "p.csv: expected columns out of model, input, output, released, parameters, accuracy, got 'inputs', nearest: 'input'",
        ),
        ("model,input\nx,cheap\n", "p.csv: x: expected input as a number >= 0, got 'cheap'"),
        ("model,input\nx,-1\n", "p.csv: x: expected input as a number >= 0, got '-1'"),
        ("model,released\nx,May 2025\n", "p.csv: x: expected released as YYYY-MM or YYYY-MM-DD, got 'May 2025'"),
        ("model,accuracy\nx,101\n", "p.csv: x: expected accuracy in percent, got 101"),
        ("model\nx\nx\n", "p.csv: expected every id once, got 'x' twice"),
    ],
)
def test_bad_price_lists(text, message, tmp_path):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match="expected") as error:
        read_offers(tmp_path / "p.csv")
    assert message in str(error.value)
