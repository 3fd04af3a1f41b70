"""Solutions in steps: read, written, compared."""

from __future__ import annotations

import pytest

from preceptor.data.steps import Step, Tags, Worked, key_details, read_steps, read_trace, same_answer, write_steps, write_trace

WHOLE = Worked(
    steps=(Step(text="2 + 3 = 5"), Step(text="5 * 5 <Key>a square</Key> = 20", cause="wrong product", correction="5 * 5 = 25")),
    generalized="add, then square",
    answer="20",
)


@pytest.mark.parametrize("tags", [Tags(), Tags(step="S", key="K", cause="Why", correction="Fix", generalized="G", answer="A.")])
@pytest.mark.parametrize("worked", [WHOLE, Worked(), Worked(steps=(Step(text="x < 3"),)), Worked(answer=""), Worked(generalized="g")])
def test_what_is_written_is_read_again(worked, tags):
    assert read_steps(write_steps(worked, tags), tags) == worked


@pytest.mark.parametrize(
    "text",
    [
        "<Step1>one</Step1><Step2>two</Step2><Answer>7</Answer>",
        "Well. <step 1> one </step 1> so <STEP 2>two</Step> hm <answer> 7 </answer> bye",
        "<Step1>one<Step2>two<Answer>7",
        "<Step4>one</Step4>\n<Step9>two</Step9>\n<Answer>5</Answer><Answer>7</Answer>",
        "< Step1 >one</ Step1 >< Step2 >two</ Step2 >< Answer >7</ Answer >",
    ],
)
def test_loose_tags_are_read(text):
    assert read_steps(text) == Worked(steps=(Step(text="one"), Step(text="two")), answer="7")


def test_causes_and_corrections_are_parts_of_their_step():
    inside = read_steps("<Step1>a<Cause>c</Cause><Correction>d</Correction></Step1><Step2>b</Step2>")
    assert inside == Worked(steps=(Step(text="a", cause="c", correction="d"), Step(text="b")))
    after = read_steps("<Step1>a</Step1><Cause>c<Correction>d<Step2>b")
    assert after == inside
    unclosed = read_steps("<Step1>a<Cause>c</Cause><Correction>d</Step1><Step2>b</Step2>")
    assert unclosed == inside
    assert inside.first_flaw == 1
    assert read_steps("<Step1>a</Step1><Step2>b<Cause>c</Cause></Step2>").first_flaw == 2
    assert WHOLE.first_flaw == 2
    assert Worked(steps=(Step(text="a"),)).first_flaw is None


def test_a_text_that_was_cut_off_has_no_answer():
    assert read_steps("<Step1>a</Step1><Step2>b").answer is None
    assert read_steps("no tags at all <Answ") == Worked()


def test_traces():
    assert read_trace(write_trace("why", "how")) == ("why", "how")
    assert read_trace("<correction>how</correction> <cause> why") == ("why", "how")
    assert read_trace("nothing") == ("", "")
    assert write_trace("", "how") == "<Correction>how</Correction>"
    assert write_trace("", "") == ""


def test_key_details():
    assert key_details(Step(text="a <Key>b</Key> c <key> d\n</key>")) == ["b", "d"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("7", " 7. "), ("$\\boxed{7}$", "7"), ("1,000", "1000"), ("\\frac{1}{2}", "0.5"), ("\\boxed{\\dfrac{3}{4}}", "3/4"), ("X + 1", "x+1")],
)
def test_answers_equal_up_to_how_they_are_written(one, other):
    assert same_answer(one, other)
    assert same_answer(other, one)


@pytest.mark.parametrize(("one", "other"), [("7", "8"), ("1/0", "0"), ("0.5", "0.50001"), ("x+1", "x-1"), ("", "0"), ("1,2", "12")])
def test_answers_that_differ(one, other):
    assert not same_answer(one, other)
