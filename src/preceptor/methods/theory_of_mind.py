"""Theory of mind: a teacher decides which questions to explain to a weaker student, by a model of what the student would answer.

Paper: Saha, Hase, Bansal 2023, Can Language Models Teach Weaker Agents? Teacher Explanations Improve Students via Theory of Mind
(arXiv:2306.09299, NeurIPS 2023).
Claim: explanations cost. With explanations for a share b of the questions, a teacher that predicts from a few watched answers what its
student says without and with help, and explains where that differs most, buys most of the gain at small budgets; a teacher that misleads
brings the student down. Explanations written like those that helped this student help more.
Equation, with p_N and p_I the predicted probabilities of the right answer without and with the explanation:
    u_i = p_I(i) - p_N(i),   S_b = the floor(b n) largest u_i,   Acc(b) = (1 / n) sum_i [a_i = y_i],   a_i with help where i is in S_b.
It is no training method, and no weights change. Rankings and curves are in `preceptor.teachers.interventions`; students, teachers and
mental models that talk in `preceptor.teachers.mental_models`: of an endpoint, a local model, a table or any classifier.
Deviations: floor(b n) is taken after rounding to nine digits, so that 0.29 of 100 questions are 29. The oracle of true errors keeps to its
budget, in the released code it explains every error at every budget. Watching ends when both kinds of records are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preceptor.core.optional import require
from preceptor.core.types import Card
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.teachers.interventions import budget_curve, gain_over_random, random_line, rank_by_errors, rank_interventions

CARD = Card(
    slug="theory-of-mind",
    title="Theory of mind: which questions a teacher should explain",
    authors="Saha et al. 2023",
    arxiv="2306.09299",
    kind="LLM teacher",
    tasks=("evaluation",),
    needs=(),
    equation="u_i = p_I(i) - p_N(i); S_b = floor(b n) largest u_i; Acc(b) = mean right, with help inside S_b and without outside",
    cost="two answers of the student and two predictions of the teacher per question, whatever the budgets",
    headline="StrategyQA, ECQA, GSM8K: utility buys most of the gain of explanations at small budgets (no number of the paper is quoted)",
)

_SEEN = 5  # columns of an image of 8 that the student sees without help


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a student answers to digits of which it sees the left part, and what its teacher can tell of them.

    Of the watched images (w) and of the test (n): whether the student is right ``without`` and ``helped``; ``plain`` and ``explained`` are
    what the teacher sees of the image, and also of the image with the columns that it explained.
    """

    without: Mapping[str, NDArray[np.bool_]]  # "watched" (w,), "test" (n,)
    helped: Mapping[str, NDArray[np.bool_]]
    plain: Mapping[str, NDArray[np.float64]]  # "watched" (w, d), "test" (n, d)
    explained: Mapping[str, NDArray[np.float64]]


def digits_lesson(seed: int, *, watched: int, test: int, trees: int = 100, misleading: float = 0.25) -> Lesson:
    """A logistic regression sees five of eight columns of a digit; an explanation shows the others, some of them of another image.

    Args:
        seed: of the split, the forest and which explanations mislead.
        watched: images to watch the student on, at most 400.
        test: images to teach, at most 797.
        trees: of the teacher, a random forest.
        misleading: share of the explanations with columns of another image, in [0, 1].
    """
    sets = require("sklearn.datasets", extra="study", purpose="theory-of-mind")
    linear, ensemble = (require(f"sklearn.{name}", extra="study", purpose="theory-of-mind") for name in ("linear_model", "ensemble"))
    rng = np.random.default_rng(seed)
    images, labels = sets.load_digits(return_X_y=True)
    order = rng.permutation(len(images))
    images, labels = images[order] / 16, labels[order]
    half = images.reshape(-1, 8, 8).copy()
    half[:, :, _SEEN:] = 0
    half = half.reshape(-1, 64)
    learn, few = slice(0, 600), slice(0, 150)  # what the teacher saw, and the student of it
    student = linear.LogisticRegression(max_iter=300).fit(np.concatenate([images[few], half[few]]), np.tile(labels[few], 2))
    teacher = ensemble.RandomForestClassifier(trees, random_state=seed).fit(images[learn], labels[learn])
    parts = {"watched": slice(600, 600 + watched), "test": slice(1000, 1000 + test)}
    without, helped, plain, explained = {}, {}, {}, {}
    for name, rows in parts.items():
        shown = images[rows].reshape(-1, 8, 8).copy()
        wrong = rng.random(len(shown)) < misleading
        others = images[learn].reshape(-1, 8, 8)[rng.integers(600, size=len(shown))]
        shown[wrong, :, _SEEN:] = others[wrong, :, _SEEN:]
        shown = shown.reshape(-1, 64)
        without[name] = student.predict(half[rows]) == labels[rows]
        helped[name] = student.predict(shown) == labels[rows]
        plain[name] = _visible(teacher, images[rows], labels[rows])
        explained[name] = np.concatenate([plain[name], _visible(teacher, shown, labels[rows])], axis=1)
    return Lesson(without=without, helped=helped, plain=plain, explained=explained)


def _visible(teacher: Any, images: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """The teacher's probability of the class and of the likeliest other one, ink left and right of the student's sight."""
    columns = images.reshape(-1, 8, 8).sum(axis=1)
    ink = [columns[:, :_SEEN].sum(axis=1) / 10, columns[:, _SEEN:].sum(axis=1) / 10]
    probs = teacher.predict_proba(images)
    own = np.eye(10, dtype=bool)[labels]
    return np.stack([probs[own], np.where(own, 0, probs).max(axis=1), *ink], axis=1)


def predicted(lesson: Lesson, records: int, *, shuffle: int | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities that the student is right on the test, without and with help, by mental models of so many watched answers each.

    With ``shuffle``, a seed, the answers are dealt anew among the watched images: how often the student is right is all that is known.
    """
    linear = require("sklearn.linear_model", extra="study", purpose="theory-of-mind")

    def learned(seen: Mapping[str, NDArray[np.float64]], right: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.float64]:
        answers = right["watched"][:records]
        if shuffle is not None:
            answers = np.random.default_rng(shuffle).permutation(answers)
        if answers.all() or not answers.any():  # one-sided: nothing tells questions apart
            return np.full(len(right["test"]), answers.mean())
        model = linear.LogisticRegression(max_iter=300).fit(seen["watched"][:records], answers)
        return model.predict_proba(seen["test"])[:, 1]

    return learned(lesson.plain, lesson.without), learned(lesson.explained, lesson.helped)


def miniature(seed: int, size: Size) -> Miniature:
    """Digits seen in part, 797 of them to teach. An arm is an order in which questions are explained; all share the same answers.

    ``theory-of-mind`` watched 60 answers of each kind; "untrained-model" has the answers dealt anew, "random" is the mean over all
    orders by lot, "explain-all" help with every question.
    """
    lesson = digits_lesson(seed, watched=400, test=797) if size == "full" else digits_lesson(seed, watched=120, test=80, trees=10)
    right, helped = lesson.without["test"], lesson.helped["test"]
    many = 200 if size == "full" else 120
    models = {count: predicted(lesson, count) for count in (20, 60, many)}
    orders = {
        "untrained-model": rank_interventions(*predicted(lesson, 60, shuffle=seed)),
        "theory-of-mind": rank_interventions(*models[60]),
        "few-records": rank_interventions(*models[20]),
        "many-records": rank_interventions(*models[many]),
        "no-intervention": rank_interventions(*models[60], "no-intervention"),
        "intervention": rank_interventions(*models[60], "intervention"),
        "deceptive": rank_interventions(*models[60], deceive=True),
        "errors": rank_by_errors(right),
    }
    budgets = (0.2, 0.4, 0.8)

    def measured(curve: NDArray[np.float64], gain: float) -> dict[str, float]:
        return {**{f"accuracy_{round(100 * b)}": float(value) for b, value in zip(budgets, curve, strict=True)}, "gain": gain}

    arms = {"random": measured(random_line(right, helped, budgets), 0.0)}
    arms["explain-all"] = measured(np.full(len(budgets), helped.mean()), 0.0)
    for name, order in orders.items():
        arms[name] = measured(budget_curve(order, right, helped, budgets), gain_over_random(order, right, helped))
    claims = (
        ("with explanations for 40 % it beats lots by 0.8 points", "random", "accuracy_40", 0.008),
        ("it beats the misleading order", "deceptive", "accuracy_40", 0.0),
        ("at 80 % it beats explaining everything", "explain-all", "accuracy_80", 0.0),
        ("60 watched answers are better than 20", "few-records", "accuracy_40", 0.0),
    )
    return Miniature(
        arms=arms,
        claims=tuple(
            Claim(name=name, method="theory-of-mind", baseline=baseline, metric=metric, margin=margin)
            for name, baseline, metric, margin in claims
        ),
        notes=(
            f"{len(right)} images, a quarter of the explanations mislead; right without help {right.mean():.3f}, with {helped.mean():.3f}",
        ),
    )
