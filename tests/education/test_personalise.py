"""Targets, arithmetic, checks and drafts of personalised tasks."""

import datetime
import json
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor.education.personalise.arithmetic import numbers_in, operations, value_of
from preceptor.education.personalise.checks import Rules, check, reading_level
from preceptor.education.personalise.generate import Request, chat_generator, plan, template_generator
from preceptor.education.personalise.records import Catalogue, Problem, Profile, Variant, lines_of, read_records
from preceptor.education.personalise.targets import grain_of, match, targets_for
from preceptor.teachers.chat import Chat, Said

PROBLEM = Problem(
    id="p1",
    text="Ann buys 3 packs of pencils for 4 € each and a ruler for 2 €. How much does she pay?",
    template="Ann buys 3 packs of {thing} for 4 € each and {extra} for 2 €. How much does she pay?",
    slots={"thing": "pencils", "extra": "a ruler"},
    solution="3 * 4 + 2",
    ranges={"€": (0.5, 200)},
)
CATALOGUE = Catalogue.model_validate(
    {
        "topics": {
            "football": {
                "words": ["match", "goal"],
                "slots": {"thing": "football cards", "extra": "a scarf"},
                "references": {"Inter": {"checked": "2026-09-01"}, "Roma": {"checked": "2020-01-01"}},
            },
            "music": {
                "words": ["song"],
                "slots": {"thing": "guitar strings"},
                "references": {"Mozart": {}, "Vulgar Band": {"min_age": 18}},
            },
        }
    }
)
CLASS = [
    Profile(student="anna-17", topics={"football": 3, "music": 1}, references={"football": {"Inter": 3, "Roma": 1}}),
    Profile(student="bo-21", topics={"football": 1, "music": 4}, references={"music": {"Mozart": 1}}),
    Profile(student="cy-30", topics={"football": 1}, references={}),
    Profile(student="di-44"),
]
RULES = Rules(catalogue=CATALOGUE, profiles=CLASS, today=datetime.date(2026, 11, 1))


def variant(text, *, solution="3 * 4 + 2", topic="football", reference=""):
    return Variant(id="p1:x", problem="p1", students=("anna-17",), topic=topic, reference=reference, text=text, solution=solution)


def kinds(*args, problem=PROBLEM, rules=RULES, **rest):
    return [failure.kind for failure in check(variant(*args, **rest), problem, rules)]


def test_value_of_is_exact():
    assert value_of("3 * 4 + 2") == 14
    assert value_of("(0.1 + 0.2) * 10") == 3
    assert value_of("12 ÷ 8 − 1/2") == 1
    assert value_of("2^10 : 4") == 256
    assert value_of("-20% * 5") == -1
    assert operations("3 * (4 + 2) - 1") == ["+", "*", "-"]


@pytest.mark.parametrize(
    "text",
    ["", "3 +", "__import__('os')", "x + 1", "9 ** 99", "9 ** 9 ** 9", "1 / 0", "True + 1", "(1).real", "1 if 1 else 2", "[1]", "1" * 500],
)
def test_what_is_no_arithmetic(text):
    with pytest.raises(ValueError, match=r"^solution: expected "):
        value_of(text)


@given(st.integers(1, 99), st.integers(1, 99), st.sampled_from("+-*/"))
def test_value_of_any_pair(a, b, sign):
    exact = {"+": Fraction(a + b), "-": Fraction(a - b), "*": Fraction(a * b), "/": Fraction(a, b)}
    assert value_of(f"{a} {sign} {b}") == exact[sign]


def test_numbers_in():
    assert numbers_in("Three cats, 2.5 kg and 1.200 stamps at 3,50") == {3: 1, Fraction(5, 2): 1, 1200: 1, Fraction(7, 2): 1}
    assert numbers_in("Due gatti e due cani, una casa", lang="it") == {2: 2}
    assert numbers_in("Two gatti", lang="it") == {}
    with pytest.raises(ValueError, match=r"^lang: expected 'it' or 'en', got 'fr'$"):
        numbers_in("deux", lang="fr")


def test_another_context_passes_and_another_number_does_not():
    good = "Ann buys 3 packs of football cards for 4 € each and a scarf for 2 €. How much does she pay?"
    assert kinds(good) == []
    assert kinds(good.replace("4", "5")) == ["numbers", "numbers"]  # one missing, one added
    assert kinds(good.replace("3 packs", "three packs")) == []
    assert kinds(good, solution="3 * 4 + 3") == ["answer"]
    assert kinds(good, solution="2 + 3 * 4") == []
    assert kinds(good, solution="28 / 2") == ["operations"]  # the answer stays, the way to it does not
    assert kinds(good, solution="fourteen") == ["answer"]
    free = PROBLEM.model_copy(update={"free_numbers": (4.0,)})
    assert kinds(good.replace("4", "5"), problem=free) == []
    assert kinds(good.replace("4", "5").replace("2 €", "7 €"), problem=free) == ["numbers", "numbers"]


def test_every_part_of_a_problem_keeps_its_answer():
    two = PROBLEM.model_copy(update={"solution": "3 * 4; 3 * 4 + 2"})
    good = "Ann buys 3 packs of football cards for 4 € each and a scarf for 2 €. How much does she pay?"
    assert kinds(good, solution="4 * 3 ; 2 + 3 * 4", problem=two) == []
    (failure,) = check(variant(good, solution="3 * 4; 3 * 4 + 3"), two, RULES)
    assert failure.message == "the answer of part 2 is 15, not 14"
    (failure,) = check(variant(good, solution="24 / 2; 3 * 4 + 2"), two, RULES)
    assert (failure.kind, failure.message) == ("operations", "the operations of part 1 are /, not *")
    (failure,) = check(variant(good, solution="3 * 4"), two, RULES)
    assert (failure.kind, failure.message) == ("answer", "the solution has 1 parts, not 2")


def test_wording_and_realism():
    good = "Ann buys 3 packs of football cards for 4 € each and a scarf for 2 €. How much does she pay?"
    assert kinds(good + " She is a great fan of this very old and famous football club.") == ["length"]
    hard = (
        "Ann purchases 3 collections of football memorabilia costing 4 € individually, additionally 2 € accessories. Calculate expenditure?"
    )
    assert "reading" in kinds(hard)
    assert kinds(good.replace("scarf for 2 €", "scarf for 2 € less than 900 €")) == ["numbers", "realism"]
    assert (
        reading_level("The cat sat. The dog ran.", "en") < 2 < reading_level("Photosynthesis necessitates electromagnetic radiation.", "en")
    )
    assert reading_level("Il gatto dorme.", "it") < reading_level("L'amministrazione comunale predispone provvedimenti.", "it")
    assert reading_level("", "it") == 0.0


def test_interests_and_references():
    text = "Ann buys 3 {} for 4 € each and a {} for 2 €. How much does she pay in all now?"
    assert kinds(text.format("pencils", "ruler")) == ["interest"]
    assert kinds(text.format("tickets of Inter", "flag"), reference="Inter") == []
    assert kinds(text.format("tickets", "flag"), reference="Inter") == ["interest"]
    assert kinds(text.format("tickets of Roma", "flag"), reference="Roma") == ["reference"]  # looked at in 2020
    assert kinds(text.format("tickets of Lazio", "flag"), reference="Lazio") == ["reference"]
    assert kinds(text.format("songs of Vulgar Band", "flag"), topic="music", reference="Vulgar Band") == ["reference"]
    assert kinds(text.format("chess sets", "flag"), topic="chess") == ["interest"]


def test_nobody_elses_interest_and_no_student():
    text = "Ann buys 3 songs of {} for 4 € each and a book for 2 €. How much does she pay?"
    assert kinds(text.format("Mozart"), topic="music", reference="Mozart") == []
    assert kinds(text.format("Mozart and Inter"), topic="music", reference="Mozart") == ["stranger"]
    assert kinds(text.format("Mozart"), topic="music") == ["stranger"]
    assert kinds(text.format("Mozart with bo-21"), topic="music", reference="Mozart") == ["numbers", "privacy"]


def test_grain_of():
    assert grain_of([30]) == 0.0
    assert grain_of([1] * 30) == pytest.approx(math.log2(30))
    assert grain_of([15, 15]) == pytest.approx(1.0)
    assert grain_of([20, 0, 10]) == pytest.approx(-math.log2(4 / 9 + 1 / 9))
    with pytest.raises(ValueError, match=r"^sizes: expected numbers of students >= 0, one of them above, got \[0\]$"):
        grain_of([0])


def test_targets():
    assert [target[1:] for target in targets_for(CLASS, 0)] == [("", "")]
    assert [target[1:] for target in targets_for(CLASS, 1)] == [("football", "")]
    by_topic = {target.topic: target.students for target in targets_for(CLASS, 3)}
    assert by_topic == {"football": ("anna-17", "cy-30", "di-44"), "music": ("bo-21",)}  # no survey: the class's mean
    fine = targets_for(CLASS, 4, CATALOGUE)
    assert {(t.topic, t.reference): t.students for t in fine} == {
        ("football", "Inter"): ("anna-17",),
        ("music", "Mozart"): ("bo-21",),
        ("football", ""): ("cy-30", "di-44"),
    }
    for grain in range(5):
        students = [student for target in targets_for(CLASS, grain, CATALOGUE) for student in target.students]
        assert sorted(students) == sorted(profile.student for profile in CLASS)
    only_music = Catalogue(topics={"music": CATALOGUE.topics["music"]})
    assert [target.topic for target in targets_for(CLASS, 3, only_music)] == ["music"]
    assert match(CLASS[0], "football", "Inter") == pytest.approx(0.75 * 1.75)
    assert match(CLASS[0], "music") == pytest.approx(0.25)
    assert match(CLASS[0], "") == 0.0


@pytest.mark.parametrize(
    ("profiles", "grain", "message"),
    [
        ([], 1, "profiles: expected at least one, got none"),
        (CLASS[3:], 1, "profiles: expected at least one student with topics, got none of 1"),
        ([CLASS[0], CLASS[0]], 1, "profiles: expected every student once, got 'anna-17' twice"),
        (CLASS, 7, "grain: expected 0 to 4, got 7"),
        ([Profile(student="x", topics={"chess": 1})], 1, "topics: expected one that the catalogue and a profile have, got none"),
    ],
)
def test_bad_targets(profiles, grain, message):
    with pytest.raises(ValueError, match="expected") as error:
        targets_for(profiles, grain, CATALOGUE)
    assert str(error.value) == message


def test_weights_are_checked():
    with pytest.raises(ValueError, match="topics of x: expected weights >= 0, one of them above, got"):
        Profile(student="x", topics={"music": 0})


def test_a_template_keeps_the_problem():
    generator = template_generator(CATALOGUE)
    for topic in ("football", "music"):
        (draft,) = generator(Request(problem=PROBLEM, topic=topic))
        assert check(variant(draft.text, topic=topic), PROBLEM, RULES) == []
    with pytest.raises(ValueError, match=r"^problem p2: expected a template, or a model to write drafts, got none$"):
        generator(Request(problem=Problem(id="p2", text="1 and 1?", solution="1+1"), topic="music"))
    odd = PROBLEM.model_copy(update={"template": "{hero} has 3"})
    with pytest.raises(ValueError, match=r"^problem p1: expected slots for its template, got none for 'hero'$"):
        generator(Request(problem=odd, topic="music"))


def test_a_model_is_asked_without_students_and_bad_json_gives_no_draft():
    asked = []

    class Model:
        model, batch, parallel = "fake", 1, 1

        def answer(self, questions):
            asked.extend(question.messages[0]["content"] for question in questions)
            seed = questions[0].settings.seed
            return [Said(text=json.dumps({"text": f"draft {seed}", "solution": "3*4+2"}) if seed != 1 else "no JSON") for _ in questions]

    generator = chat_generator(Chat(Model()))
    request = Request(problem=PROBLEM, topic="music", reference="Mozart", count=3, note="shorter", before="old", examples=(("a", "b"),))
    assert [draft.text for draft in generator(request)] == ["draft 0", "draft 2"]
    assert len(asked) == 1 + 3 + 1  # three times for the answer that was no JSON
    assert all(word in asked[0] for word in ("music, naming Mozart", PROBLEM.text, "shorter", "old", "a\n-> b"))
    assert not any(profile.student in text for profile in CLASS for text in asked)


def test_plan():
    made = plan(PROBLEM, CLASS, 3, CATALOGUE)
    assert [one.id for one in made] == ["p1:football", "p1:music"]
    assert all(one.text == "" for one in made)
    (kept,) = plan(PROBLEM.model_copy(update={"context_matters": True}), CLASS, 3, CATALOGUE)
    assert (kept.id, kept.text, len(kept.students)) == ("p1:original", PROBLEM.text, 4)


def test_records_are_read_and_written(tmp_path):
    path = tmp_path / "profiles.jsonl"
    path.write_text(lines_of(CLASS), encoding="utf-8")
    assert read_records(path, Profile) == CLASS
    path.write_text('{"student": "x"}\n{"student": "y", "age": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="expected a Profile at line 2, got age: Extra inputs are not permitted"):
        read_records(path, Profile)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected at least one Profile, got none"):
        read_records(path, Profile)
    with pytest.raises(ValueError, match="expected an existing file, got none"):
        Catalogue.read(tmp_path / "no.yaml")
    path.write_text("topics: 3", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a catalogue of topics, got topics: Input should be a valid dictionary"):
        Catalogue.read(path)
