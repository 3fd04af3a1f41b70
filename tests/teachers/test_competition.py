"""Competition of teacher and student over questions."""

from __future__ import annotations

import functools
import itertools
import math
import random
import re
from dataclasses import replace

import pytest

from preceptor.teachers.competition import Assessed, CompetitiveLoop, Item, assess, exact_match, novel, outcomes, rouge_l, split


def items(*texts: str) -> list[Item]:
    return [Item(instruction=text, kind=str(number)) for number, text in enumerate(texts)]


def says(answer: str):
    return lambda asked: [answer] * len(asked)


def longest(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """By its definition."""

    @functools.cache
    def of(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        return 1 + of(i + 1, j + 1) if a[i] == b[j] else max(of(i + 1, j), of(i, j + 1))

    return of(0, 0)


def test_rouge_l_by_its_definition():
    draw = random.Random(0)
    for _ in range(50):
        a, b = (tuple(draw.choices("abcd", k=draw.randint(1, 7))) for _ in range(2))
        common = longest(a, b)
        precision, recall = common / len(a), common / len(b)
        wanted = 2 * precision * recall / (precision + recall) if common else 0.0
        assert math.isclose(rouge_l(" ".join(a), " ".join(b)), wanted)
        assert rouge_l(" ".join(a), " ".join(a)) == 1
    assert rouge_l("", "a b") == 0
    assert rouge_l("Which one?", "which, ONE") == 1


def test_a_liking_for_the_first_place_cancels():
    def first_is_best(item, one, two):
        return 10.0, 0.0

    (row,) = assess(items("What is it?"), says("a"), says("b"), first_is_best)
    assert row.gap == 0
    (row,) = assess(items("What is it?"), says("a"), says("b"), first_is_best, swap=False)
    assert row.gap == 10


def test_equal_answers_make_no_gap_and_are_easy_where_they_are_right():
    def by_place(item, one, two):
        return 9.0, 4.0

    table = assess(items("What is it?"), says("a"), says("a"), by_place)
    assert table[0].gap == 0
    assert split(table) == ([], [table[0].item])


def test_scores_go_to_their_authors():
    (row,) = assess(items("What is it?"), says("a"), says("b"), exact_match(lambda item: "b"))
    assert (row.teacher, row.student, row.gap) == (0, 10, -10)


def test_an_assessor_without_a_score_is_asked_once_more_and_then_the_item_dropped():
    asked = []

    def sulky(item, one, two):
        asked.append(item.instruction)
        return None if item.instruction == "Never" or len(asked) == 1 else (7.0, 2.0)

    table = assess(items("Later", "Never"), says("a"), says("b"), sulky, swap=False)
    assert [row.item.instruction for row in table] == ["Later"]
    assert asked == ["Later", "Later", "Never", "Never"]
    with pytest.raises(ValueError, match=re.escape("assessor: expected scores in [0, 10], got (11, 2)")):
        assess(items("What"), says("a"), says("b"), lambda *_: (11, 2))


def rows() -> list[Assessed]:
    scores = [(10, 10), (10, 0), (0, 10), (0, 0), (6, 5), (7.5, 6)]
    return [Assessed(item, *pair) for item, pair in zip(items(*"abcdef"), scores, strict=True)]


def test_difficult_is_what_the_teacher_answers_better():
    hard, easy = split(rows())
    assert [item.instruction for item in hard] == ["b", "e", "f"]  # at tau is difficult
    assert [item.instruction for item in easy] == ["a", "c"]  # what both fail is neither
    assert [len(part) for part in split(rows(), -math.inf)] == [6, 0]
    assert [len(part) for part in split(rows(), math.inf)] == [0, 5]


def test_outcomes():
    assert outcomes(rows()) == {"both": 3, "teacher": 1, "student": 1, "neither": 1}
    assert outcomes([]) == {"both": 0, "teacher": 0, "student": 0, "neither": 0}


def test_what_is_there_already_is_not_new():
    store = items("How many dogs are in the picture?")
    apart = items("What colour is the roof?", "Who stands behind the tree?", "Name the animals that you see.")
    assert novel(store, store) == []
    assert novel(items("How many cats are in the picture?"), store) == []
    assert novel(items("How many cats are in the picture?"), store, threshold=0.9) != []
    for order in itertools.permutations(apart):
        assert {item.instruction for item in novel(order, store)} == {item.instruction for item in apart}
    assert len(novel([*apart, *apart], store)) == 3  # of equal ones the first
    assert novel(items("Too short", "1. What is in it?", "", "  "), []) == []


def test_the_same_question_about_another_image_may_be_new():
    (question,) = items("How many dogs are in the picture?")
    other = replace(question, image="b")
    assert novel([other], [replace(question, image="a")]) == []
    assert novel([other], [replace(question, image="a")], per_image=True) == [other]
    assert novel([other], [replace(question, image="b")], per_image=True) == []


WORDS = [f"{a}{b}" for a in "abcdefghij" for b in "aeiouy"]


class World:
    """Questions of words at random, a teacher that knows all, a student that knows the kinds it was tuned on."""

    def __init__(self):
        self.draw = random.Random(0)
        self.known: set[str] = set()
        self.tuned: list[tuple[int, int]] = []
        self.pool = [self.question(str(i % 8)) for i in range(80)]

    def question(self, kind: str) -> Item:
        return Item(instruction=" ".join(self.draw.choices(WORDS, k=8)), kind=kind)

    def student(self, asked):
        return [item.kind if item.kind in self.known else "?" for item in asked]

    def teacher(self, asked):
        return [item.kind for item in asked]

    def augment(self, item, count, hard):
        return [self.question(item.kind if hard else "easy") for _ in range(count)]

    def tune(self, trained, number):
        self.tuned.append((number, len(trained)))
        assert all(item.answer == item.kind for item in trained)
        counts = {kind: sum(item.kind == kind for item in trained) for kind in map(str, range(8))}
        self.known = {kind for kind, count in counts.items() if count >= 6}

    def run(self, loop: CompetitiveLoop, **options):
        given = [self.question(str(i % 3)) for i in range(18)]
        hooks = {"teacher": self.teacher, "student": self.student, "augmentor": self.augment, "tune": self.tune}
        hooks |= {"assessor": exact_match(lambda item: item.kind), "evaluate": lambda: {"kinds": float(len(self.known))}}
        return list(loop.run(given, self.pool, **{**hooks, **options}))


def test_the_loop_learns_where_the_student_loses_and_says_where_items_come_from():
    world = World()
    reports = world.run(CompetitiveLoop(num_pool=200, num_new=20))
    assert [report.round for report in reports] == list(range(len(reports)))
    assert reports[0].scores == {"kinds": 3}
    assert reports[-1].scores["kinds"] == 8
    assert len(reports) < 5  # with nothing difficult left it ends
    first = reports[1]
    assert (first.hard, first.outcomes) == (50, {"both": 30, "teacher": 50, "student": 0, "neither": 0})
    new = [item for item in first.trained if item.round == 1]
    assert len(new) == first.proposed - first.rejected == 20
    assert all(item.hard and item.seed is not None and item.seed.kind == item.kind not in "012" for item in new)
    assert len(first.trained) == 18 + 20
    assert world.tuned[:2] == [(0, 18), (1, 38)]
    assert sum(reports[2].outcomes.values()) == 80 + 20  # new items are asked again


def test_no_rounds_is_instruction_tuning_and_no_difficulty_ends_the_loop():
    for loop in (CompetitiveLoop(rounds=0), CompetitiveLoop(tau=math.inf)):
        world = World()
        (report,) = world.run(loop)
        assert (report.round, len(report.trained), world.tuned) == (0, 18, [(0, 18)])


def test_without_a_threshold_the_whole_pool_is_written_after():
    (_, report) = World().run(CompetitiveLoop(rounds=1, num_pool=80, num_new=80, tau=-math.inf))
    assert report.hard == 80
    assert {item.seed.kind for item in report.trained if item.seed} == set("01234567")
    assert not report.repeated


def test_half_of_the_new_items_after_easy_ones():
    (_, report) = World().run(CompetitiveLoop(rounds=1, num_pool=80, num_new=20, hard_share=0.5, kind_share=1.0))
    assert [sum(item.hard is hard for item in report.trained) for hard in (True, False, None)] == [10, 10, 18]
    assert all((item.kind == "easy") == (item.hard is False) for item in report.trained)


def test_replay_forgets_and_few_seeds_are_repeated():
    (_, report) = World().run(CompetitiveLoop(rounds=1, num_pool=80, num_new=60, replay=0.5))
    assert report.repeated  # 50 are difficult
    assert sum(item.round == 0 for item in report.trained) == 9


def test_no_kind_takes_over():
    world = World()
    (_, report) = world.run(CompetitiveLoop(rounds=1, num_pool=80, num_new=20), augmentor=lambda item, n, hard: [world.question("3")] * n)
    assert sum(item.round == 1 for item in report.trained) == 8
    assert report.rejected == 12


def test_a_copy_of_the_seed_and_what_is_held_out_are_rejected():
    (_, report) = World().run(CompetitiveLoop(rounds=1, num_pool=80, num_new=20), augmentor=lambda item, n, hard: [item])
    assert (report.proposed, report.rejected) == (20, 20)
    secret = Item(instruction="qa qe qi qo qu", kind="3", image="x")
    world = World()
    (_, report) = world.run(CompetitiveLoop(rounds=1, num_pool=80, num_new=20), augmentor=lambda *_: [secret], held_out=[secret])
    assert (report.proposed, report.rejected) == (20, 20)
    assert all(item.key != secret.key for item in report.trained)


def test_it_ends_after_rounds_without_gain():
    reports = World().run(CompetitiveLoop(rounds=9, num_pool=80, num_new=20), evaluate=lambda: {"score": 1.0}, tune=lambda *_: None)
    assert len(reports) == 3


def test_bad_numbers_are_refused():
    for options, message in (
        ({"rounds": -1}, "rounds: expected a number >= 0, got -1"),
        ({"num_new": 0}, "num_new: expected at least 1, got 0"),
        ({"hard_share": 1.5}, "hard_share: expected a number in [0, 1], got 1.5"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            CompetitiveLoop(**options)
