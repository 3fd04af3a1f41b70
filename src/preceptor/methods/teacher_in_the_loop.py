"""Teacher in the loop: tasks rewritten to students' interests, with a teacher who reviews all, some or none.

Paper: 2026, Should There be a Teacher In-the-Loop? A Study of Generative AI Personalized Tasks Middle School (arXiv:2602.15876).
Claim: students prefer tasks of a small grain, with references of their own, while teachers who review keep to a broad one, since every
variant must be checked; they come to make more interesting problems, but do not become faster.
The paper is a study of seven teachers and 521 students, which nothing here repeats. Here is a pipeline that measures the same things
(`preceptor.education.personalise`, ``preceptor personalise``) and a simulation of policies: what it shows follows from its assumptions.
Equation, for student u with topic weights w and weights r of references within a topic, and a variant of topic t and reference p:
    M(u, v) = w_t (1 + r_p [p given]),   value = mean M - c E,
with E the variants of a class that a teacher looks at and c the cost of one. The grain of a set of variants is -log2 of the mean share of
students who get the same one.
Deviations: only the abstract could be read, so records, checks, moves and simulation are ours.
"""

from __future__ import annotations

from typing import Literal

from preceptor.core.types import Card
from preceptor.education.personalise.policies import Policy, School, break_even, simulate
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size

CARD = Card(
    slug="teacher-in-the-loop",
    title="Teacher in the loop: personalised tasks with and without a teacher's review",
    authors="Teacher-in-the-loop study 2026",
    arxiv="2602.15876",
    kind="measurement",
    tasks=("education",),
    needs=(),
    equation="M(u, v) = w_t (1 + r_p [p given]);   value = mean M - c E;   grain = -log2 sum_v (n_v / S)^2",
    cost="one question to a model for each variant and draft; a teacher's minutes for each that is reviewed",
    headline="7 teachers, 521 students: with a teacher the grain stays broad, students prefer it fine; no effect sizes were read",
)

Direction = Literal["higher", "lower"]

COST = 0.02
"""Of a reviewed variant, in units of match: between the card's break-even of topics (0.023) and of references (0.010) for each student."""


def miniature(seed: int, size: Size) -> Miniature:
    """A simulated school of 20 classes, eight topics with twelve references each, and a generator that errs in 15 % of its drafts.

    ``match`` is the mean fit, ``variants`` how many a class gets, ``reviewed`` how many of them the teacher looks at, ``errors`` the share
    of delivered variants with an error, ``bits`` the grain of the class's variants, ``value`` match less 0.02 for each reviewed one, and
    ``limit`` the cost per reviewed variant below which teaching at this grain with a review of all beats every coarser grain (0 without a
    teacher's review of all). All arms meet the same students.
    """
    school = School(classes=20 if size == "full" else 3)
    policies = {
        "untrained": Policy(grain=0, gate="nobody"),
        "ai": Policy(grain=4, gate="nobody"),
        "ai-checks": Policy(grain=4, gate="checks"),
        "sample": Policy(grain=4, gate="sample"),
        "review-class": Policy(grain=1),
        "review-groups": Policy(grain=2),
        "review-topics": Policy(grain=3),
        "review-references": Policy(grain=4),
        "teacher-in-the-loop": Policy(grain=4, gate="exceptions"),
    }
    results = {name: simulate(policy, school, seed=seed) for name, policy in policies.items()}
    reviewed = ["untrained", "review-class", "review-groups", "review-topics", "review-references"]
    limits = dict(zip(reviewed[1:], break_even([results[name] for name in reviewed]), strict=True))
    arms = {
        name: {
            "match": result.match,
            "variants": result.variants,
            "reviewed": result.reviewed,
            "errors": result.errors,
            "bits": result.bits,
            "value": result.value(COST),
            "limit": max(0.0, limits.get(name, 0.0)),
        }
        for name, result in results.items()
    }
    claims: tuple[tuple[str, str, str, Direction, float], ...] = (
        ("review of exceptions delivers fewer errors than no review", "ai", "errors", "lower", 0.08),
        ("and than the review of a random tenth", "sample", "errors", "lower", 0.05),
        ("it looks at fewer variants than a review of all, by 15 a class", "review-references", "reviewed", "lower", 15.0),
        ("a reference of the student's own fits better than three topics a class", "review-groups", "match", "higher", 0.2),
        ("a set of such variants is finer than three topics a class, by a bit", "review-groups", "bits", "higher", 1.0),
        ("at this cost exceptions are worth more than a review of all", "review-references", "value", "higher", 0.0),
        ("and more than a review of topics of the students' own", "review-topics", "value", "higher", 0.0),
        ("it keeps more of the match than checks that fall back on the original", "ai-checks", "match", "higher", 0.05),
    )
    return Miniature(
        arms=arms,
        claims=tuple(
            Claim(name=name, method="teacher-in-the-loop", baseline=baseline, metric=metric, direction=direction, margin=margin)
            for name, baseline, metric, direction, margin in claims
        ),
        notes=(f"{school.classes} classes of {school.students} students", "a simulation: consequences of its assumptions, not evidence"),
    )
