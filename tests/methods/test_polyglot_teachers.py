"""polyglot-teachers: the golden numbers, the protocol on made-up teachers, and the miniature."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tests.parity import check_case, load_adapter

from preceptor.education.open_answers import char_ngrams
from preceptor.methods.polyglot_teachers import evaluate_teachers, measure_data, miniature
from preceptor.metrics.teaching_data import FEATURES, intrinsic_z
from preceptor.miniature.polyglots import PolyglotWorld

GOLDEN = Path(__file__).parents[1] / "golden" / "polyglot-teachers.json"
PAIRS = [("one", "eins"), ("two", "zwei zwei"), ("three", "")]


def lm(pairs):
    """The longer a response, the less surprising its letters."""
    return [[-1 / len(response)] * len(response) for _, response in pairs]


def judge(prompts):
    return [f"[RESULT] {3 + index % 2}" for index in range(len(prompts))]


class Recorder:
    """Two teachers, the second of whom knows more; what was asked of whom."""

    def __init__(self, base=0.2, reference=0.6):
        self.made, self.base, self.reference = [], base, reference

    def make_data(self, teacher, language):
        self.made.append((teacher, language))
        return [(f"{language} {i} {'abc'[i % teacher]}", "x" * (i + teacher)) for i in range(6)]

    def train_student(self, pairs, language):
        return 0.1 * len({response for _, response in pairs}) * (1 if language == "x" else 0.5) + len(pairs[0][1]) / 10

    def evaluate(self, benchmarks=None, **options):
        default = {"own": lambda model, language: {language: model, "en": 50.0}, "same": lambda model, language: {language: model}}
        given = {"base": self.base, "reference": self.reference, "embed": char_ngrams, "judge": judge, "lm": lm, **options}
        names = given.pop("teachers", {"small": 1, "large": 2})
        return evaluate_teachers(
            names, given.pop("languages", ["x", "y"]), self.make_data, self.train_student, benchmarks or default, **given
        )


def test_parity():
    adapter = load_adapter("polyglot-teachers")
    for index, case in enumerate(json.loads(GOLDEN.read_text())["cases"]):
        line = check_case("polyglot-teachers", str(index), case, adapter.run)
        assert line.status == "ok", line


def test_the_adapter_takes_inverted_references_as_the_released_code_does():
    student = [{"teacher_model": "A", "target_lang": "x", "eval_lang": "x", "result": 0.5}]
    anchors = {name: [{"eval_lang": "x", "result": value}] for name, value in (("base", 0.4), ("reference", 0.3))}
    found = load_adapter("polyglot-teachers").run({"function": "compute_extrinsic_pgr"}, {"student": student, **anchors})
    assert found["rows"][0]["pgr"] == pytest.approx(-1)


def test_data_are_measured_without_a_student():
    found = measure_data(PAIRS, embed=char_ngrams, judge=judge, lm=lm)
    assert found.keys() == {*FEATURES, "items", "unread", "no_perplexity"}
    assert found["perplexity"] == pytest.approx((math.exp(1 / 4) + math.exp(1 / 9)) / 2)  # the empty response has none
    assert (found["items"], found["unread"], found["no_perplexity"]) == (3, 0, 1)
    assert found["rubric"] == pytest.approx(10 / 3)
    assert found["prompt_length"] == pytest.approx(11 / 3)
    assert found["response_length"] == pytest.approx(13 / 3)
    vectors = char_ngrams([prompt for prompt, _ in PAIRS])
    assert found["distinct_prompts"] == pytest.approx(1 - (vectors @ vectors.T)[~np.eye(3, dtype=bool)].mean())
    spoken = []
    measure_data(PAIRS, embed=char_ngrams, judge=lambda prompts: spoken.extend(prompts) or judge(prompts), lm=lm, rubric_text="BE STRICT")
    assert all("BE STRICT" in prompt for prompt in spoken)


@pytest.mark.parametrize(
    ("pairs", "expected"), [(PAIRS[:1], "at least 2, got 1"), ([("a", ""), ("b", " ")], "a perplexity, got none of 2")]
)
def test_data_that_cannot_be_measured(pairs, expected):
    with pytest.raises(ValueError, match=expected):
        measure_data(pairs, embed=char_ngrams, judge=judge, lm=lm)


def test_the_table_has_a_row_for_each_teacher_and_language():
    world = Recorder()
    table = world.evaluate(alpha=0.25)
    assert [(row["teacher"], row["language"]) for row in table] == [("small", "x"), ("small", "y"), ("large", "x"), ("large", "y")]
    assert world.made == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert np.allclose([row["z"] for row in table], intrinsic_z(table))
    for row in table:
        student = world.train_student(world.make_data({"small": 1, "large": 2}[row["teacher"]], row["language"]), row["language"])
        assert row["result"] == pytest.approx(student)  # English does not count
        assert row["gain"] == pytest.approx(student - 0.2)
        assert row["pgr"] == pytest.approx((student - 0.2) / 0.4)
        assert row["pg"] == pytest.approx(0.25 * row["z"] + 0.75 * row["pgr"])
        assert not row["inverted"]
    within = world.evaluate(by="language")
    assert np.allclose([row["z"] for row in within], intrinsic_z(table, by="language"))
    assert not np.allclose([row["z"] for row in within], [row["z"] for row in table])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"reference": 0.205}, "language x: reference: expected more than the base"),
        ({"languages": ["x", "x"]}, "expected small / x once, got it 2 times"),
        ({"teachers": {"a": 1}, "languages": ["x"]}, "at least 2 rows to standardise, got 1"),
        ({"teachers": {"a": 1}, "by": "language"}, "at least 2 rows of language 'x'"),
        ({"teachers": {}}, "at least one row"),
        ({"alpha": 2.0}, "alpha"),
        ({"on_inverted": "keep"}, "on_inverted"),
        ({"benchmarks": {"english": lambda model, language: {"en": 0.4}}}, "base: expected results in 'x', got none"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(options, expected):
    world = Recorder()
    with pytest.raises(ValueError, match=expected):
        world.evaluate(**options)
    assert world.made == []


def test_an_inverted_reference_is_flagged_in_every_row():
    table = Recorder(reference=0.18).evaluate(on_inverted="gain")
    assert all(row["inverted"] and row["pgr"] == row["gain"] for row in table)


def test_data_of_a_teacher_that_cannot_be_measured_are_named():
    world = Recorder()
    world.make_data = lambda teacher, language: [("a", "")] * 3
    with pytest.raises(ValueError, match="small, x: pairs: expected at least one response with a perplexity"):
        world.evaluate()


def test_the_simulated_teachers_are_what_they_say():
    world = PolyglotWorld(0, "smoke")
    accuracies = [world.foretold(model, one)[one] for model in (world.base, world.reference) for one in world.languages]
    assert max(accuracies[:3]) < min(accuracies[3:])
    pairs = world.make_data("teacher 3", "two")
    assert len({prompt for prompt, _ in pairs}) <= world.facts["teacher 3", "two"].starts
    assert {len(prompt + response) for prompt, response in pairs} == {20}
    assert {len(values) for values in world.log_probs(pairs)} == {16}
    student = world.train_student(pairs, "two")["two"]
    assert np.allclose(student.table.sum(-1), 1)


def test_miniature():
    run = miniature(100, "smoke")
    assert run.arms == miniature(100, "smoke").arms
    assert run.arms != miniature(101, "smoke").arms
    assert all(math.isfinite(value) for metrics in run.arms.values() for value in metrics.values())
    assert run.arms["size"]["size"] == pytest.approx(1)
    assert run.arms["recovered"]["agreement"] == run.arms["polyglot-teachers"]["agreement"] != run.arms["untrained"]["agreement"]
