"""Templates and corrections asked of language models."""

from __future__ import annotations

import pytest

from preceptor.data.steps import Step, Worked, read_steps, write_steps
from preceptor.teachers.chat import Chat, Fault, Said
from preceptor.teachers.corrections import (
    Attempt,
    Pair,
    Prompts,
    asked_judge,
    correction_pairs,
    inspected,
    locate_first_error,
    templates,
)

FLAW = "<Cause>no</Cause><Correction>4 + 1 = 5</Correction>"
OWN = "<Cause>hm</Cause><Correction>4 + 1 = 7</Correction>"


class Scripted:
    """A backend that says what a function makes of the last message, and keeps what it was asked."""

    model, batch, parallel = "scripted", 1, 1

    def __init__(self, say):
        self.say, self.asked = say, []

    def answer(self, questions):
        found = []
        for question in questions:
            self.asked.append(question.messages[-1]["content"])
            said = self.say(self.asked[-1])
            found.append(said if isinstance(said, (Said, Fault)) else Said(text=said))
        return found


def chat(say):
    backend = Scripted(say if callable(say) else lambda _: say)
    return Chat(backend), backend


def attempt(answer="6", *, right="5", steps=("2 + 2 = 4", "4 + 1 = 6", "so 6")):
    solution = Worked(steps=tuple(Step(text=step) for step in steps), answer=answer)
    return Attempt(problem="2 + 2 + 1", reference="It is {5}.", answer=right, solution=solution)


def marked(step=2, trace=FLAW, steps=("2 + 2 = 4", "4 + 1 = 6", "so 6")):
    return "".join(f"<Step{i}>{text}{trace if i == step else ''}</Step{i}>" for i, text in enumerate(steps, start=1))


def pairs_of(attempts, teacher, student=OWN, **options):
    return correction_pairs(attempts, chat(teacher)[0], chat(student)[0], **options)


def test_a_pair_holds_the_verified_steps_and_both_corrections():
    teacher, asked = chat(marked())
    student, own = chat(OWN)
    found = correction_pairs([attempt()], teacher, student)
    assert found.dropped == {}
    (pair,) = found.pairs
    assert (pair.chosen, pair.rejected, pair.step) == (FLAW, OWN, 2)
    assert pair.steps == "<Step1>2 + 2 = 4</Step1>"
    assert pair.steps in pair.context
    assert "4 + 1" not in pair.context
    assert own.asked == [pair.context]
    assert "It is {5}." not in pair.context
    assert "It is {5}." in asked.asked[0]


def test_the_first_step_has_no_prefix_and_the_error_is_shown_where_asked_for():
    assert pairs_of([attempt()], marked(1)).pairs[0].steps == ""
    shown = pairs_of([attempt()], marked(1), show_error=True).pairs[0]
    assert shown.steps == "<Step1>2 + 2 = 4</Step1>"
    assert shown.step == 1


def test_of_several_errors_the_first_counts():
    both = f"<Step1>2 + 2 = 4</Step1><Step2>4 + 1 = 6{FLAW}</Step2><Step3>so 6<Cause>also</Cause><Correction>5!</Correction></Step3>"
    assert pairs_of([attempt()], both).pairs[0].step == 2


def test_without_the_reference_the_teacher_does_not_see_it():
    teacher, asked = chat(marked())
    correction_pairs([attempt()], teacher, chat(OWN)[0], grounded=False)
    assert "It is {5}." not in asked.asked[0]


@pytest.mark.parametrize(
    ("attempts", "teacher", "student", "reason"),
    [
        ([attempt("5")], marked(), OWN, "no wrong answer"),
        ([attempt("$5.0$")], marked(), OWN, "no wrong answer"),
        ([attempt(None)], marked(), OWN, "no wrong answer"),
        ([attempt()], marked(4), OWN, "no wrong step found"),
        ([attempt()], Fault("no", ends="question"), OWN, "no wrong step found"),
        ([attempt()], Said(text=marked(), finish="length"), OWN, "no wrong step found"),
        ([attempt()], marked(1, steps=("2 + 2 = 4",)), OWN, "other steps than the student's"),
        ([attempt()], marked(trace="<Cause>no</Cause>"), OWN, "no correction"),
        ([attempt()], marked(trace="<Correction> 5. </Correction>"), OWN, "the answer alone"),
        ([attempt()], marked(), "dunno", "the student wrote no correction"),
        ([attempt()], marked(), Fault("no", ends="question"), "the student wrote no correction"),
        ([attempt()], marked(), "<Correction>4 +  1 = 5</Correction>", "the student is right"),
    ],
)
def test_what_gives_no_pair_is_counted(attempts, teacher, student, reason):
    found = pairs_of(attempts, teacher, student)
    assert found.pairs == ()
    assert found.dropped == {reason: 1}


def test_a_verifier_says_whether_the_student_is_right():
    seen = []

    def right(one, step, correction):
        seen.append((one.problem, step, correction))
        return True

    assert pairs_of([attempt()], marked(), right=right).dropped == {"the student is right": 1}
    assert seen == [("2 + 2 + 1", 2, "4 + 1 = 7")]


def test_templates_need_steps_a_strategy_and_the_right_answer():
    whole = "<Step1>a</Step1><Generalized>g</Generalized><Answer>5</Answer>"
    answers = iter([whole, whole.replace("5", "6"), whole.replace("Generalized", "G"), "<Answer>5</Answer>"])
    teacher, asked = chat(lambda _: next(answers))
    found = templates(teacher, [(f"problem {i}", "It is 5.", "5") for i in range(4)])
    assert found == [read_steps(whole), None, None, None]
    assert all(f"problem {i}" in text and "It is 5." in text for i, text in enumerate(asked.asked))


PAIR = Pair(problem="p", reference="r", steps="s", context="c", step=1, chosen=FLAW, rejected=OWN)


def test_an_inspector_is_asked_until_it_agrees():
    verdicts = iter(["The sum is wrong.", "OK."])
    inspector, asked = chat(lambda _: next(verdicts))
    teacher, revised = chat("<Cause>c</Cause><Correction>better</Correction>")
    (found,) = inspected([PAIR], inspector, teacher)
    assert found.chosen == "<Cause>c</Cause><Correction>better</Correction>"
    assert "The sum is wrong." in revised.asked[0]
    assert found.chosen in asked.asked[1]
    assert inspected([PAIR], chat("ok")[0], chat("nothing")[0]) == [PAIR]


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_what_stays_bad_is_dropped_after_the_rounds(rounds):
    verdicts = iter(f"wrong {i}" for i in range(9))
    corrections = iter(f"<Correction>try {i}</Correction>" for i in range(9))
    inspector, asked = chat(lambda _: next(verdicts))
    teacher, revised = chat(lambda _: next(corrections))
    assert inspected([PAIR], inspector, teacher, max_rounds=rounds) == []
    assert (len(asked.asked), len(revised.asked)) == (rounds, rounds - 1)
    with pytest.raises(ValueError, match="max_rounds: expected at least 1, got 0"):
        inspected([PAIR], inspector, teacher, max_rounds=0)


def test_the_first_wrong_step_by_any_judge():
    assert locate_first_error("p", ["a", "b"], lambda problem, steps: 2) == 2
    assert locate_first_error("p", ["a", "b"], lambda problem, steps: 0) == 1
    assert locate_first_error("p", ["a", "b"], lambda problem, steps: None) is None
    assert locate_first_error("p", [], lambda problem, steps: 1) is None
    with pytest.raises(ValueError, match="judge: expected a step from 0 to 2 or None, got 3"):
        locate_first_error("p", ["a", "b"], lambda problem, steps: 3)


@pytest.mark.parametrize(("said", "step"), [("Step 2.", 2), ("none", None), ("0", 1), ("17", None)])
def test_a_language_model_as_the_judge(said, step):
    judge, asked = chat(said)
    assert locate_first_error("p", ["first", "second"], asked_judge(judge)) == step
    assert "1. first\n2. second" in asked.asked[0]


def test_an_unknown_name_in_a_prompt_is_refused():
    with pytest.raises(ValueError, match=r"prompts.context: expected names out of problem, steps, got 'step'.*steps"):
        Prompts(context="{problem} {step}")
    with pytest.raises(ValueError, match=r"prompts.context: expected names out of problem, steps, got 'reference'"):
        Prompts(context="{problem} {reference}")


def test_steps_that_were_marked_keep_their_round_trip():
    worked = read_steps(marked())
    assert read_steps(write_steps(worked)) == worked
