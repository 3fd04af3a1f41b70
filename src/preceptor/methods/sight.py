"""SIGHT: label students' comments by a rubric with a language model, measure agreement with people, and scale what is reliable.

Paper: Wang, Wirawarn, Goodman, Demszky 2023, SIGHT: A Large Annotated Dataset on Student Insights Gathered from Higher Education
Transcripts (arXiv:2306.09343, BEA 2023).
Claim: the agreement of a model with people rises with that of people among themselves, so that categories on which people agree can be
left to the model.
Equation: kappa = (p_o - p_e) / (1 - p_e) on the comments that both rated, p_o = mean(y_a = y_b), p_e = sum_v P_a(v) P_b(v);
    human-human HH_c = kappa(H1, H2), human-model HM_c = (kappa(H1, M) + kappa(H2, M)) / 2;
    category c is scaled only where HH_c >= 0.7 and HM_c >= 0.7 times the lower end of HH_c's 95 % interval;
    a student of the model's labels weighs category c with max(HM_c, 0).
The work is done by `preceptor.education`: `rubric`, `annotate`, `reliability` and `label_student`; ``preceptor annotate`` runs it.
Deviations from the released code (rosewang2008/sight): raters are joined on the comment's id, where it goes by the order of rows; a missing
label of the model is missing everywhere, where it counts as 0 in the charts; an answer that is neither true nor false is asked for twice
more with a complaint, where it is asked for once more; a final full stop or quotes around the word are taken. Polarity is part of the
rubric, and a category may have levels, with weighted kappas. The gate and the student are not the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from preceptor.core.types import Card
from preceptor.education.agreement import agreement
from preceptor.education.label_student import LabelStudent, agreement_weights
from preceptor.education.reliability import Reliability, regression, reliabilities, reliability
from preceptor.education.rubric import Category, Rubric
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size

CARD = Card(
    slug="sight",
    title="Rubric annotation by a language model, with agreement",
    authors="Wang et al. 2023",
    arxiv="2306.09343",
    kind="annotation",
    tasks=("education", "text"),
    needs=("labels", "generation"),
    equation="kappa = (p_o - p_e) / (1 - p_e); scale c where HH_c >= 0.7 and HM_c >= 0.7 low(HH_c)",
    cost="one short question per comment and category; about $0.002 per comment in the paper",
    headline="human-human kappa .74 to .95; human-model, zero-shot, .33 (personal) to .92 (gratitude); 15,784 comments",
)

_SAMPLE, _CATEGORIES, _FEATURES = 289, 9, 6
_TAUGHT, _WIDTH = 300, 100  # comments that a student learns from, and their features


@dataclass(frozen=True, kw_only=True)
class Raters:
    """A made-up sample: what is true of N comments in C categories, and what two people and a model say, all (N, C) of 0 and 1."""

    truth: np.ndarray
    first: np.ndarray
    second: np.ndarray
    model: np.ndarray


def shared_ambiguity(
    generator: np.random.Generator, items: int, ambiguity: np.ndarray, *, model: np.ndarray, prevalence: np.ndarray
) -> Raters:
    """Raters who turn a label of category c over with probability a_c, a model who does so with probability m_c.

    Args:
        generator: of the draws.
        items: N.
        ambiguity: (C,) a_c in [0, 1], of each person.
        model: (C,) m_c in [0, 1].
        prevalence: (C,) share of the comments of which a category is true.
    """
    truth = (generator.random((items, len(ambiguity))) < prevalence).astype(int)
    first, second, said = (np.where(generator.random(truth.shape) < rate, 1 - truth, truth) for rate in (ambiguity, ambiguity, model))
    return Raters(truth=truth, first=first, second=second, model=said)


def miniature(seed: int, size: Size) -> Miniature:
    """Two people and a model label 289 comments in 9 categories, some of which are harder than others for whoever labels them.

    A model turns labels over twice as often as people do. In ``sight`` the same categories are hard for both, in ``elsewhere`` others, at
    the same rates; ``untrained`` labels at random. ``correlation`` and ``slope`` are of kappas with the model on kappas of people. The
    model then labels more comments: all categories, or in ``sight`` those that pass the gate, where ``all`` has the same model without one.
    Of what was scaled, ``kappa`` is that of the labels with the truth, ``student`` that of a linear student on fresh comments who learned
    from these labels; ``categories`` counts them.

    Last, one student of all categories learns from few labels of the model. In ``sight`` each category counts with the kappa of people and
    model on the sample, in the other arms all alike, with the mean of these kappas in ``all``. ``distilled`` is the student's mean kappa
    with the truth on fresh comments, ``labels`` that of the labels that it learned from.
    """
    generator = np.random.default_rng(seed)
    more, draws = (4000, 200) if size == "full" else (400, 50)
    ambiguity = generator.permutation(np.linspace(0.004, 0.12, _CATEGORIES))
    prevalence = generator.uniform(0.15, 0.4, _CATEGORIES)
    turned = np.roll(np.argsort(ambiguity), _CATEGORIES // 2)
    elsewhere = np.empty(_CATEGORIES)
    elsewhere[turned] = np.sort(ambiguity)
    models = {"untrained": np.full(_CATEGORIES, 0.5), "elsewhere": 2 * elsewhere, "all": 2 * ambiguity, "sight": 2 * ambiguity}
    arms = {}
    for arm, rates in models.items():
        own = np.random.default_rng((seed, 1))  # the same comments and people in every arm
        sample = shared_ambiguity(own, _SAMPLE, ambiguity, model=rates, prevalence=prevalence)
        large = shared_ambiguity(own, more, ambiguity, model=rates, prevalence=prevalence)
        found = [
            reliability({"H1": sample.first[:, c], "H2": sample.second[:, c]}, sample.model[:, c], draws=draws, seed=seed)
            for c in range(_CATEGORIES)
        ]
        passed = [c for c, one in enumerate(found) if one.gate == "scale"] if arm == "sight" else list(range(_CATEGORIES))
        fresh, updates = (1000, 200) if size == "full" else (100, 20)
        learned = _distilled(np.random.default_rng((seed, 2)), ambiguity, rates, prevalence, fresh, updates, weighted=arm == "sight")
        arms[arm] = {**_measured(found, large, passed, own), **learned}
    claims = (
        ("the model's agreement rises with people's", "untrained", "correlation"),
        ("it does so where the same categories are hard for both", "elsewhere", "correlation"),
        ("labels that pass the gate are closer to the truth", "all", "kappa"),
        ("so are students who learn from them", "all", "student"),
        ("students learn better where categories count with the model's agreement", "all", "distilled"),
    )
    return Miniature(
        arms=arms,
        claims=tuple(Claim(name=name, method="sight", baseline=baseline, metric=metric) for name, baseline, metric in claims),
        notes=(
            f"{_SAMPLE} comments coded by two people, {more} more by the model; no language model is asked",
            "sight and elsewhere differ only in which categories are hard for the model: the correlation shows shared ambiguity, "
            "not understanding",
        ),
    )


def _measured(found: list[Reliability], large: Raters, passed: list[int], generator: np.random.Generator) -> dict[str, float]:
    """The metrics of one arm; 0 where no category was scaled."""
    pairs = [(one.human_human.value, with_model.kappa.value) for one in found for with_model in one.model.values()]
    line = regression([x for x, _ in pairs], [y for _, y in pairs])
    kappas = [agreement(large.truth[:, c], large.model[:, c], categories=2, draws=0).kappa.value for c in passed]
    students = [_student(large.truth[:, c], large.model[:, c], generator) for c in passed]
    return {
        "correlation": line.correlation,
        "slope": line.slope,
        "kappa": float(np.mean(kappas)) if passed else 0.0,
        "student": float(np.mean(students)) if passed else 0.0,
        "categories": float(len(passed)),
    }


def _distilled(
    generator: np.random.Generator,
    ambiguity: np.ndarray,
    rates: np.ndarray,
    prevalence: np.ndarray,
    fresh: int,
    updates: int,
    *,
    weighted: bool,
) -> dict[str, float]:
    """Mean kappas with the truth of a student of a model's labels, and of the labels."""
    sample, taught, asked = (
        shared_ambiguity(generator, count, ambiguity, model=rates, prevalence=prevalence) for count in (_SAMPLE, _TAUGHT, fresh)
    )
    rubric = Rubric(categories=tuple(Category(name=str(c), statement="made up") for c in range(_CATEGORIES)))
    found = reliabilities({"H1": sample.first, "H2": sample.second}, sample.model, rubric, draws=0)
    directions = 0.5 * generator.normal(size=(_CATEGORIES, _WIDTH))
    truth = np.concatenate([taught.truth, asked.truth])
    features = truth @ directions + generator.normal(size=(len(truth), _WIDTH))
    names = [str(row) for row in range(len(truth))]  # of comments that have features and no text

    weights = agreement_weights(found)
    if not weighted:
        weights = np.full(_CATEGORIES, weights.mean())
    student = LabelStudent(embed=lambda texts: features[[int(name) for name in texts]], steps=updates)
    student.fit(names[:_TAUGHT], taught.model, counts=[2] * _CATEGORIES, weights=weights.tolist())
    return {"distilled": _kappa(asked.truth, student.predict(names[_TAUGHT:])), "labels": _kappa(taught.truth, taught.model)}


def _kappa(truth: np.ndarray, said: np.ndarray) -> float:
    """Mean over categories; one that is always said or never counts 0."""
    values = [agreement(truth[:, c], said[:, c], categories=2, draws=0).kappa.value for c in range(truth.shape[1])]
    return float(np.nan_to_num(values).mean())


def _student(truth: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> float:
    """Kappa with the truth, on fresh comments, of a least-squares classifier that learned from labels."""

    def features(of: np.ndarray) -> np.ndarray:
        return np.column_stack([1.2 * of[:, None] + generator.normal(size=(len(of), _FEATURES)), np.ones(len(of))])

    x = features(truth)
    weights = np.linalg.solve(x.T @ x + np.eye(_FEATURES + 1), x.T @ (labels - 0.5))
    fresh = (generator.random(len(truth)) < truth.mean()).astype(int)
    value = agreement(fresh, (features(fresh) @ weights > 0).astype(int), categories=2, draws=0).kappa.value
    return 0.0 if np.isnan(value) else value
