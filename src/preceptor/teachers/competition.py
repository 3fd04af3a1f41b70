"""Teacher and student answer the same questions, an assessor scores both, and new questions are written like those the student loses.

Li et al. 2023 (arXiv:2311.08213), in the manner of adversarial distillation (Lion, Jiang et al. 2023, arXiv:2305.12870): who answers,
assesses, writes and tunes are plain callables, backed by an endpoint, a local model or a simulation.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from preceptor.losses.checks import check_counts, check_unit_interval


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question about an image, with where it comes from."""

    instruction: str
    kind: str = ""  # type of question
    image: Hashable = None  # the image's name, path or hash; None: no image
    answer: str = ""  # the teacher's
    round: int = 0  # in which it was written, 0: it was given
    seed: Item | None = None  # what it was written after
    hard: bool | None = None  # whether that was difficult

    @property
    def key(self) -> tuple[Hashable, str]:
        """What makes two items the same."""
        return self.image, self.instruction


Answerer = Callable[[Sequence[Item]], Sequence[str]]
"""One answer for each item."""
Assessor = Callable[[Item, str, str], tuple[float, float] | None]
"""Scores in [0, 10] of two answers to one item; None: what it said was no score."""
Augmentor = Callable[[Item, int, bool], Sequence[Item]]
"""So many new items like the first, which is difficult; else of another domain."""


class Assessed(NamedTuple):
    """One item and the scores of both."""

    item: Item
    teacher: float
    student: float

    @property
    def gap(self) -> float:
        """Above 0 where the student loses."""
        return self.teacher - self.student


def assess(items: Sequence[Item], teacher: Answerer, student: Answerer, assessor: Assessor, *, swap: bool = True) -> list[Assessed]:
    """Let both answer and score the answers; an item without scores, also when asked again, is left out.

    Args:
        items: what to answer.
        teacher: who is expected to win.
        student: who learns.
        assessor: scores two answers side by side.
        swap: ask in both orders and average each author's scores, so that a liking for a position cancels.
    """
    table = []
    for item, right, own in zip(items, teacher(items), student(items), strict=True):
        said = _ask(assessor, item, right, own)
        turned = _ask(assessor, item, own, right) if swap else said and said[::-1]
        if said and turned:
            table.append(Assessed(item, (said[0] + turned[1]) / 2, (said[1] + turned[0]) / 2))
    return table


def _ask(assessor: Assessor, item: Item, first: str, second: str) -> tuple[float, float] | None:
    scores = assessor(item, first, second) or assessor(item, first, second)
    if scores and not all(0 <= score <= 10 for score in scores):
        raise ValueError(f"assessor: expected scores in [0, 10], got {scores}")
    return scores


def exact_match(truth: Callable[[Item], str]) -> Assessor:
    """The assessor of verifiable tasks: 10 for the true answer, else 0."""
    return lambda item, first, second: (10.0 * (first == truth(item)), 10.0 * (second == truth(item)))


def split(table: Sequence[Assessed], tau: float = 1.0, *, mark: float = 5.0) -> tuple[list[Item], list[Item]]:
    """Difficult items, with a gap of at least ``tau``, and easy ones; those that both answer worse than ``mark`` are not easy."""
    hard = [row.item for row in table if row.gap >= tau]
    return hard, [row.item for row in table if row.gap < tau and max(row.teacher, row.student) >= mark]


def outcomes(table: Sequence[Assessed], *, mark: float = 5.0) -> dict[str, int]:
    """How many answers reach ``mark``: of ``both``, the ``teacher`` alone, the ``student`` alone, ``neither``."""
    names = {(True, True): "both", (True, False): "teacher", (False, True): "student", (False, False): "neither"}
    found = Counter(names[row.teacher >= mark, row.student >= mark] for row in table)
    return {name: found[name] for name in names.values()}


def rouge_l(a: str, b: str) -> float:
    """F1 of the longest common subsequence of words, in [0, 1]; case and punctuation do not count."""
    first, second = (re.findall(r"\w+", text.lower()) for text in (a, b))
    if not first or not second:
        return 0.0
    row = [0] * (len(second) + 1)
    for word in first:
        before = row
        row = [0]
        for j, other in enumerate(second):
            row.append(before[j] + 1 if word == other else max(before[j + 1], row[j]))
    return 2 * row[-1] / (len(first) + len(second))


def novel(
    items: Iterable[Item], store: Iterable[Item], threshold: float = 0.7, *, least_words: int = 4, per_image: bool = False
) -> list[Item]:
    """The items whose instruction is like none of the store and none kept before.

    Args:
        items: what is proposed.
        store: what there is.
        threshold: of `rouge_l`, from which two instructions are alike.
        least_words: shorter instructions, and those that do not begin with a letter, are left out.
        per_image: whether the same instruction about another image is new.
    """
    known: dict[Hashable, dict[str, None]] = {}
    for item in store:
        known.setdefault(item.image if per_image else None, {})[item.instruction] = None
    kept = []
    for item in items:
        near = known.setdefault(item.image if per_image else None, {})
        text = item.instruction.strip()
        if len(text.split()) < least_words or not text[0].isalpha() or any(rouge_l(text, other) >= threshold for other in near):
            continue
        near[text] = None
        kept.append(item)
    return kept


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one round did."""

    round: int
    scores: Mapping[str, float]  # of the evaluation after tuning
    outcomes: Mapping[str, int]  # of the pool, before; round 0 has none
    hard: int  # difficult items of the pool
    student_wins: float  # share of the pool with a gap below 0
    proposed: int
    rejected: int  # not new, held out, or of a kind that has its share
    repeated: bool  # there were fewer seeds than new items
    trained: tuple[Item, ...]  # the training set of the round


@dataclass(frozen=True, kw_only=True)
class CompetitiveLoop:
    """Rounds of competition. ``tau=-math.inf`` takes seeds from the whole pool: the random control, of equal size and steps."""

    rounds: int = 4  # Sec. 4: four
    num_pool: int = 2000
    num_new: int = 500
    hard_share: float = 1.0  # of new items written after difficult ones, the rest after easy ones; Lion: 0.5
    replay: float = 1.0  # share of the earlier training set that stays
    tau: float = 1.0  # Lion
    stop_share: float = 0.05  # ends where fewer of the pool are difficult
    patience: int = 2  # ends after so many rounds without a better score
    kind_share: float = 0.4  # most new items of one kind
    per_image: bool = False  # see `novel`
    threshold: float = 0.7  # see `novel`

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_counts(num_pool=self.num_pool, num_new=self.num_new, patience=self.patience)
        shares = {name: getattr(self, name) for name in ("hard_share", "replay", "stop_share", "kind_share", "threshold")}
        check_unit_interval(**shares)
        if self.rounds < 0:
            raise ValueError(f"rounds: expected a number >= 0, got {self.rounds}")

    def run(
        self,
        given: Sequence[Item],
        pool: Sequence[Item],
        *,
        teacher: Answerer,
        student: Answerer,
        assessor: Assessor,
        augmentor: Augmentor,
        tune: Callable[[Sequence[Item], int], None],
        evaluate: Callable[[], Mapping[str, float]],
        held_out: Iterable[Item] = (),
        seed: int = 0,
    ) -> Iterator[Report]:
        """Tune on given items with the teacher's answers, then compete; yields a report after each tuning.

        Args:
            given: the seed instructions, round 0.
            pool: instructions that both answer; new items join it.
            teacher: answers what the student learns.
            student: answers as it is at the moment.
            assessor: see `assess`.
            augmentor: writes new items.
            tune: trains the student on items with answers, in round r.
            evaluate: scores by name, higher is better; the first one decides about stopping.
            held_out: items that must not be learned: those of the evaluation.
            seed: of all draws.
        """
        draw = random.Random(seed)
        forbidden = {item.key for item in held_out}
        pool, trained = list(pool), _answered([item for item in given if item.key not in forbidden], teacher)
        tune(trained, 0)
        scores = evaluate()
        best, since = next(iter(scores.values())), 0
        yield Report(
            round=0, scores=scores, outcomes={}, hard=0, student_wins=0.0, proposed=0, rejected=0, repeated=False, trained=tuple(trained)
        )
        for number in range(1, self.rounds + 1):
            table = assess(draw.sample(pool, min(self.num_pool, len(pool))), teacher, student, assessor)
            hard, easy = split(table, self.tau)
            if not hard or len(hard) < self.stop_share * len(table):
                return
            proposals, repeated = self._propose(hard, easy, augmentor, number, draw)
            unseen = [item for item in proposals if item.key not in forbidden]
            fresh = self._balanced(novel(unseen, [*trained, *pool], self.threshold, per_image=self.per_image))
            new = _answered(fresh, teacher)
            trained = [*draw.sample(trained, round(self.replay * len(trained))), *new]
            tune(trained, number)
            pool += new
            scores = evaluate()
            yield Report(
                round=number,
                scores=scores,
                outcomes=outcomes(table),
                hard=len(hard),
                student_wins=sum(row.gap < 0 for row in table) / len(table),
                proposed=len(proposals),
                rejected=len(proposals) - len(new),
                repeated=repeated,
                trained=tuple(trained),
            )
            score = next(iter(scores.values()))
            best, since = (score, 0) if score > best else (best, since + 1)
            if since >= self.patience:
                return

    def _propose(
        self, hard: list[Item], easy: list[Item], augmentor: Augmentor, number: int, draw: random.Random
    ) -> tuple[list[Item], bool]:
        wanted = round(self.hard_share * self.num_new) if easy else self.num_new
        proposals, repeated = [], False
        for seeds, count, difficult in ((hard, wanted, True), (easy, self.num_new - wanted, False)):
            if len(seeds) < count:
                repeated = True
            for seed in draw.sample(seeds, count) if len(seeds) >= count else draw.choices(seeds, k=count):
                written = augmentor(seed, 1, difficult)
                proposals += [replace(item, answer="", round=number, seed=seed, hard=difficult) for item in written]
        return proposals, repeated

    def _balanced(self, items: list[Item]) -> list[Item]:
        """Of each kind the first, up to its share of the new items."""
        most, found, kept = math.ceil(self.kind_share * self.num_new), Counter[str](), []
        for item in items:
            found[item.kind] += 1
            if not item.kind or found[item.kind] <= most:
                kept.append(item)
        return kept


def _answered(items: Sequence[Item], teacher: Answerer) -> list[Item]:
    return [replace(item, answer=answer) for item, answer in zip(items, teacher(items), strict=True)]
