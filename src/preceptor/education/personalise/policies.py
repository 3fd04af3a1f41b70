"""What a policy of personalising gains and costs, in a simulated school. Consequences of its assumptions, not evidence about teachers.

A generator's draft has an error (of realism or of a reference) with a fixed chance. Checks flag it with a chance, the recall, and
flag a good draft with another, the false alarms. A teacher who reviews a variant finds and mends every error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from preceptor.education.personalise.targets import grain_of

Gate = Literal["nobody", "checks", "teacher", "exceptions", "sample"]
"""Who stands between a draft and the students: nobody; the checks alone, and a flagged draft gives way to the original; the teacher, for
all; the teacher, for what the checks flag; the teacher, for a random share."""


@dataclass(frozen=True, kw_only=True)
class School:
    """What is assumed. Defaults are the card's."""

    classes: int = 20
    students: int = 30  # in a class
    topics: int = 8
    references: int = 12  # in each topic
    topic_spread: float = 0.5  # of the Dirichlet distribution of a student's topics; small: few topics
    reference_spread: float = 0.3
    error: float = 0.15  # chance that a draft has one
    recall: float = 0.8  # chance that the checks flag it
    false_alarm: float = 0.1  # chance that they flag a good draft
    groups: int = 3  # topics at grain 2

    def __post_init__(self) -> None:
        for name in ("classes", "students", "topics", "references", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("topic_spread", "reference_spread"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        for name in ("error", "recall", "false_alarm"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How fine, see `GRAINS`, and who looks; ``share`` is of the variants that ``sample`` looks at."""

    grain: int
    gate: Gate = "teacher"
    share: float = 0.1

    def __post_init__(self) -> None:
        if self.grain not in range(5):
            raise ValueError(f"grain: expected 0 to 4, got {self.grain}")
        if self.gate not in ("nobody", "checks", "teacher", "exceptions", "sample"):
            raise ValueError(f"gate: expected nobody, checks, teacher, exceptions or sample, got {self.gate!r}")


@dataclass(frozen=True, kw_only=True)
class Result:
    """Means over classes.

    Attributes:
        match: of students and what they got.
        variants: made for a class.
        reviewed: of them, those that the teacher looked at.
        errors: share of the students' variants that have one.
        bits: grain of the class's variants, see `grain_of`.
    """

    match: float
    variants: float
    reviewed: float
    errors: float
    bits: float

    def value(self, cost: float) -> float:
        """Match less ``cost`` for each variant of a class that the teacher looks at."""
        return self.match - cost * self.reviewed


def simulate(policy: Policy, school: School = School(), *, seed: int = 0) -> Result:
    """Give every class of a school its variants.

    Args:
        policy: what is done; all policies meet the same students at the same seed.
        school: what is assumed.
        seed: of students, errors and choices.
    """
    students, drafts = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    rows = [_class(policy, school, students, drafts) for _ in range(school.classes)]
    match, variants, reviewed, errors, bits = (float(value) for value in np.mean(rows, axis=0))
    return Result(match=match, variants=variants, reviewed=reviewed, errors=errors, bits=bits)


def best_grains(results: Sequence[Result], costs: Sequence[float]) -> list[int]:
    """For each cost of a reviewed variant the place of the result with the highest value; of equal ones the first."""
    return [max(range(len(results)), key=lambda number: (results[number].value(cost), -number)) for cost in costs]


def break_even(results: Sequence[Result]) -> list[float]:
    """The cost of a reviewed variant below which each result is worth more than all before it; -inf where it never is, inf where always.

    Args:
        results: by the number of variants to review, the least first.
    Returns:
        One for each result but the first.
    """
    found = []
    for number, fine in enumerate(results[1:], start=1):
        limits = []
        for coarse in results[:number]:
            gain, more = fine.match - coarse.match, fine.reviewed - coarse.reviewed
            limits.append(gain / more if more > 0 else (np.inf if gain > 0 else -np.inf))
        found.append(float(min(limits)))
    return found


def _class(policy: Policy, school: School, students: np.random.Generator, drafts: np.random.Generator) -> tuple[float, ...]:
    """Match, variants, reviewed, errors and bits of one class."""
    s = school.students
    weights = students.dirichlet(np.full(school.topics, school.topic_spread), size=s)
    names = students.dirichlet(np.full(school.references, school.reference_spread), size=(s, school.topics))
    if policy.grain == 0:
        return 0.0, 1.0, 0.0, 0.0, 0.0
    topic = _topics(policy.grain, school, weights)
    match = weights[np.arange(s), topic]
    key = topic
    if policy.grain == 4:
        own = names[np.arange(s), topic]
        match = match * (1 + own.max(1))
        key = topic * school.references + own.argmax(1)
    _, variant, counts = np.unique(key, return_inverse=True, return_counts=True)
    wrong = drafts.random(len(counts)) < school.error
    flagged = drafts.random(len(counts)) < np.where(wrong, school.recall, school.false_alarm)
    looked_at = {
        "nobody": np.zeros(len(counts), dtype=bool),
        "checks": np.zeros(len(counts), dtype=bool),
        "teacher": np.ones(len(counts), dtype=bool),
        "exceptions": flagged,
        "sample": drafts.random(len(counts)) < policy.share,
    }[policy.gate]
    dropped = flagged if policy.gate == "checks" else np.zeros(len(counts), dtype=bool)
    bad = wrong & ~looked_at & ~dropped
    sizes = [*counts[~dropped], int(counts[dropped].sum())]  # who gets the original is one group
    return (
        float((match * ~dropped[variant]).mean()),
        float(len(counts)),
        float(looked_at.sum()),
        float(bad[variant].mean()),
        grain_of(sizes),
    )


def _topics(grain: int, school: School, weights: np.ndarray) -> np.ndarray:
    """The topic of each student."""
    if grain >= 3:
        return weights.argmax(1)
    few: list[int] = []
    for _ in range(min(1 if grain == 1 else school.groups, school.topics)):  # each the one that adds most: within 1 - 1/e of the best
        best = weights[:, few].max(1, initial=0.0)
        gains = np.maximum(weights, best[:, None]).sum(0)
        gains[few] = -1.0
        few.append(int(gains.argmax()))
    return np.array(few)[weights[:, few].argmax(1)]
