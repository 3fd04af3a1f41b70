"""Students that answer, teachers that explain, and predictions of answers, with functions in the place of models."""

from __future__ import annotations

import math

import pytest

from preceptor.teachers.mental_models import (
    Item,
    MentalModel,
    Record,
    answer_all,
    answer_prompt,
    explain_all,
    personalised,
    watched,
    without_answer,
)

ITEMS = [Item(question=f"Is {n} even?", options=("yes", "no"), answer="yes" if n % 2 == 0 else "no") for n in range(12)]


def says_yes(prompts, options):
    return [[math.log(0.6), math.log(0.2)] for _ in options]


def reads_the_explanation(prompts, options):
    """Says what the explanation in the last case tells, else yes."""
    return [[-3.0, -0.1] if "odd" in prompt.rpartition("Question:")[2] else [-0.1, -3.0] for prompt in prompts]


def explanations():
    return [f"{n} is {'even' if n % 2 == 0 else 'odd'}." for n in range(12)]


def test_help_stands_where_the_students_own_words_would():
    shown = Record(item=ITEMS[1], said="no", explanation="1 is odd.")
    prompt = answer_prompt(ITEMS[2], [shown], "2 is even.")
    first, second = prompt.split("\n\n")
    assert first.endswith("Answer: 1 is odd. So the answer is no")
    assert second.endswith("Answer: 2 is even. So the answer is")
    assert answer_prompt(ITEMS[2]).endswith("Answer:")


def test_answers_without_and_with_help_and_what_made_the_difference():
    alone = answer_all(reads_the_explanation, ITEMS, [None] * 12)
    helped = answer_all(reads_the_explanation, ITEMS, explanations())
    assert [record.right for record in alone] == [n % 2 == 0 for n in range(12)]
    assert all(record.right for record in helped)
    assert [record.item for record in personalised(alone, helped)] == ITEMS[1::2]


def test_an_unknown_probability_is_no_answer_and_counts_as_wrong():
    (record,) = answer_all(lambda prompts, options: [[-math.inf, -math.inf]], ITEMS[:1], [None])
    assert record.said is None
    assert not record.right
    assert watched([record], 3) == []


def test_watched_answers_are_half_of_each_as_far_as_there_are():
    records = [Record(item=item, said="yes" if n < 9 else "no") for n, item in enumerate(ITEMS)]
    for count, yes in ((4, 2), (6, 3), (8, 5), (20, 9)):
        chosen = watched(records, count, seed=3)
        assert len(chosen) == min(count, 12)
        assert sum(record.said == "yes" for record in chosen) == yes
    assert watched(records, 4, seed=3) == watched(records, 4, seed=3)
    assert any(watched(records, 4, seed=0) != watched(records, 4, seed=seed) for seed in range(1, 5))


def test_predictions_are_of_the_whole_vocabulary_unless_asked_otherwise():
    model = MentalModel(choose=says_yes, records=[])
    assert model.predict(ITEMS[:2]) == pytest.approx([0.6, 0.2])
    assert MentalModel(choose=says_yes, records=[], renormalise=True).predict(ITEMS[:2]) == pytest.approx([0.75, 0.25])


def test_a_mental_model_is_shown_what_the_student_said_and_the_explanation():
    seen = []

    def choose(prompts, options):
        seen.extend(prompts)
        return says_yes(prompts, options)

    records = [Record(item=ITEMS[0], said="no", explanation="0 is even.")]
    MentalModel(choose=choose, records=records).predict(ITEMS[1:2], ["1 is odd."])
    MentalModel(choose=choose, records=records, show_answer=False).predict(ITEMS[1:2])
    assert "Correct answer: yes\nExplanation given to the student: 0 is even.\nAnswer of the student: no" in seen[0]
    assert seen[0].endswith("Correct answer: no\nExplanation given to the student: 1 is odd.\nAnswer of the student:")
    assert "Correct answer" not in seen[1]
    assert seen[1].endswith("Options: yes, no\nAnswer of the student:")


def test_explanations_do_not_hand_over_the_answer():
    assert without_answer("Two divides it. So the answer is yes.") == "Two divides it."
    assert without_answer("Two divides it.\nso, the correct answer is yes") == "Two divides it."
    assert without_answer("So the answer is yes.") == ""
    assert without_answer("First. Second. Third.", sentences=1) == "First."
    prompts = []
    texts = explain_all(lambda given: prompts.extend(given) or ["It ends in 2. So the answer is yes."] * len(given), ITEMS[:2])
    assert texts == ["It ends in 2."] * 2
    shown = [Record(item=ITEMS[3], said="no", explanation="3 is odd."), Record(item=ITEMS[5], said="no")]
    explain_all(lambda given: prompts.extend(given) or [""], ITEMS[:1], shown)
    assert "Is 3 even?" in prompts[-1]
    assert "Explanation: 3 is odd." in prompts[-1]
    assert "Is 5 even?" not in prompts[-1]


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match=r"answer: expected one of at least 2 different options \('a', 'a'\), got 'a'"):
        Item(question="?", options=("a", "a"), answer="a")
    with pytest.raises(ValueError, match="explanations: expected 12, one or None for each item, got 1"):
        answer_all(says_yes, ITEMS, [None])
    with pytest.raises(ValueError, match="explanations: expected 12, one or None for each item, got 1"):
        MentalModel(choose=says_yes, records=[]).predict(ITEMS, ["x"])
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        watched([], 0)
