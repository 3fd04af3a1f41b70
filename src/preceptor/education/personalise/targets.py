"""Who gets which variant: from one for all to one for each student, and how well they fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from preceptor.education.personalise.records import Catalogue, Profile

GRAINS = ("original", "class topic", "group topics", "student topic", "student reference")
"""How fine an assignment is, by its number: 0 the original, 1 one topic per class, 2 one per group, 3 and 4 one per student."""
_SEARCHED = 5000  # choices of group topics that are all tried


class Target(NamedTuple):
    """Students who get one variant, its topic and its reference; "" for none."""

    students: tuple[str, ...]
    topic: str
    reference: str

    @property
    def name(self) -> str:
        """Of the interest, without the students."""
        return "/".join(part for part in (self.topic, self.reference) if part) or "original"


def complete(profiles: Sequence[Profile]) -> list[Profile]:
    """Profiles in which a student without a survey has the class's mean topics, and no references.

    Raises:
        ValueError: no profiles, a student twice, or no survey at all.
    """
    if not profiles:
        raise ValueError("profiles: expected at least one, got none")
    twice = [student for student, count in Counter(profile.student for profile in profiles).items() if count > 1]
    if twice:
        raise ValueError(f"profiles: expected every student once, got {twice[0]!r} twice")
    asked = [profile for profile in profiles if profile.topics]
    if not asked:
        raise ValueError(f"profiles: expected at least one student with topics, got none of {len(profiles)}")
    topics = dict.fromkeys(topic for profile in asked for topic in profile.topics)
    mean = {topic: sum(profile.weight(topic) for profile in asked) / len(asked) for topic in topics}
    return [profile if profile.topics else Profile(student=profile.student, topics=mean) for profile in profiles]


def targets_for(profiles: Sequence[Profile], grain: int, catalogue: Catalogue | None = None, *, groups: int = 3) -> list[Target]:
    """Who gets what at a grain; students with the same interest share a variant.

    Args:
        profiles: of the class.
        grain: 0 to 4, see `GRAINS`.
        catalogue: only its topics and references are used; None: whatever the profiles name.
        groups: K, topics at grain 2: those that fit the class best, and each student gets the one of them that fits best.
    Returns:
        Targets with every student in exactly one.
    Raises:
        ValueError: an unknown grain, groups < 1, no topic that may be used, or profiles that are none.
    """
    if grain not in range(len(GRAINS)):
        raise ValueError(f"grain: expected 0 to {len(GRAINS) - 1}, got {grain}")
    if groups < 1:
        raise ValueError(f"groups: expected at least 1, got {groups}")
    whole = complete(profiles)
    allowed = [t for t in dict.fromkeys(t for p in whole for t in p.topics) if catalogue is None or t in catalogue.topics]
    if grain and not allowed:
        raise ValueError("topics: expected one that the catalogue and a profile have, got none")
    chosen: list[tuple[str, str]] = []
    if grain == 0:
        chosen = [("", "")] * len(whole)
    elif grain in (1, 2):
        few = _best_topics(whole, allowed, 1 if grain == 1 else groups)
        chosen = [(max(few, key=profile.weight), "") for profile in whole]
    else:
        for profile in whole:
            topic = max(allowed, key=profile.weight)
            names = [r for r in profile.references.get(topic, {}) if catalogue is None or r in catalogue.topics[topic].references]
            named = max(names, key=lambda name, p=profile, t=topic: p.reference_weight(t, name), default="") if grain == 4 else ""
            chosen.append((topic, named))
    students: dict[tuple[str, str], list[str]] = {}
    for profile, interest in zip(whole, chosen, strict=True):
        students.setdefault(interest, []).append(profile.student)
    return [Target(tuple(names), *interest) for interest, names in students.items()]


def match(profile: Profile, topic: str, reference: str = "") -> float:
    """How well a variant fits a student: M = w (1 + r), r only where a reference is named; 0 for the original."""
    return profile.weight(topic) * (1 + (profile.reference_weight(topic, reference) if reference else 0.0))


def grain_of(sizes: Iterable[int]) -> float:
    """How fine a set of variants is, in bits: -log2 of the mean share of students who get the same variant as a student does.

    Args:
        sizes: students of each variant, >= 0.
    Returns:
        0 where all get the same, log2 S where every one of S gets another.
    Raises:
        ValueError: no students.
    """
    counts = list(sizes)
    total = sum(counts)
    if total < 1 or min(counts) < 0:
        raise ValueError(f"sizes: expected numbers of students >= 0, one of them above, got {counts}")
    return -math.log2(sum((count / total) ** 2 for count in counts)) + 0.0


def _best_topics(profiles: Sequence[Profile], topics: Sequence[str], count: int) -> tuple[str, ...]:
    """The topics whose best for each student add up to most: all choices are tried where they are few, else one after the other."""

    def worth(few: tuple[str, ...]) -> float:
        return sum(max(map(profile.weight, few)) for profile in profiles)

    count = min(count, len(topics))
    if math.comb(len(topics), count) <= _SEARCHED:
        return max(combinations(topics, count), key=worth)
    few: tuple[str, ...] = ()
    for _ in range(count):
        few = max(((*few, topic) for topic in topics if topic not in few), key=worth)
    return few
