"""What a class said of its tasks, back into its interests: an exponential average of each student's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preceptor.education.personalise.records import Profile, Variant
from preceptor.education.personalise.targets import complete
from preceptor.education.tables import check_columns, read_rows

RATE = 0.3
"""Weight of the newest rating; ours."""


@dataclass(frozen=True, kw_only=True)
class Liking:
    """How much a student liked a variant, in [0, 1]."""

    student: str
    variant: str
    liking: float


def updated(profile: Profile, topic: str, reference: str = "", *, liking: float, rate: float = RATE) -> Profile:
    """A profile after one rating: w <- (1 - rate) w + rate liking for the topic that was shown, and likewise r for what it named.

    The other weights are scaled so that all add up to 1; where all of them are 0 they share what is left. After many ratings of one liking
    the weight is that liking.

    Args:
        profile: with topics.
        topic, reference: of the variant; "" for the original leaves all as it is.
        liking: in [0, 1].
        rate: in [0, 1].
    Raises:
        ValueError: a number out of its range, or a profile without topics.
    """
    for name, value in (("liking", liking), ("rate", rate)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    if not profile.topics:
        raise ValueError(f"topics of {profile.student}: expected some, got none")
    if not topic:
        return profile
    references = dict(profile.references)
    if reference:
        references[topic] = _moved(references.get(topic, {}), reference, liking, rate)
    return profile.model_copy(update={"topics": _moved(profile.topics, topic, liking, rate), "references": references})


def learn(profiles: Sequence[Profile], delivered: Sequence[Variant], likings: Sequence[Liking], *, rate: float = RATE) -> list[Profile]:
    """All profiles after the ratings, in the order in which they came; a student without a survey starts from the class's mean.

    Raises:
        ValueError: a rating of an unknown student or variant, or of one that the student did not get.
    """
    found = {profile.student: profile for profile in complete(profiles)}
    variants = {variant.id: variant for variant in delivered}
    rated = set()
    for one in likings:
        if one.student not in found:
            raise ValueError(f"student: expected one of the profiles, got {one.student!r}")
        if one.variant not in variants:
            raise ValueError(f"variant: expected one that was delivered, got {one.variant!r}")
        variant = variants[one.variant]
        if one.student not in variant.students:
            raise ValueError(f"variant: expected one that student {one.student!r} got, got {one.variant!r}")
        rated.add(one.student)
        found[one.student] = updated(found[one.student], variant.topic, variant.reference, liking=one.liking, rate=rate)
    return [found[profile.student] if profile.student in rated else profile for profile in profiles]


def read_likings(path: Path, *, scale: tuple[float, float] = (1.0, 5.0)) -> list[Liking]:
    """Read a CSV or JSON Lines file with columns ``student``, ``variant`` and ``rating``.

    Args:
        path: the file.
        scale: the worst rating and the best.
    Raises:
        ValueError: no such file or column, a scale that does not rise, or a rating outside it; the row is named.
    """
    low, high = scale
    if not low < high:
        raise ValueError(f"scale: expected two numbers that rise, got {low:g} {high:g}")
    rows = read_rows(path)
    check_columns(rows, ("student", "variant", "rating"), path)
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            rating = float(row["rating"])
        except (ValueError, TypeError, KeyError):
            rating = math.nan
        if not low <= rating <= high:
            raise ValueError(f"{path}: expected a rating from {low:g} to {high:g} in row {number}, got {row.get('rating')!r}")
        found.append(Liking(student=str(row.get("student")), variant=str(row.get("variant")), liking=(rating - low) / (high - low)))
    return found


def _moved(weights: Mapping[str, float], name: str, liking: float, rate: float) -> dict[str, float]:
    """Weights that add up to 1, with that of a name moved towards a liking; one that stands alone keeps it all."""
    total = sum(weights.values())
    shares = {key: weight / total if total else 0.0 for key, weight in weights.items()} | {name: weights.get(name, 0.0) / (total or 1.0)}
    others = [key for key in shares if key != name]
    if not others:
        return {name: 1.0}
    now = (1 - rate) * shares[name] + rate * liking
    rest = sum(shares[key] for key in others)
    return {key: now if key == name else (shares[key] / rest if rest else 1 / len(others)) * (1 - now) for key in shares}
