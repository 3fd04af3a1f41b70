"""Math feedback: score open answers and write feedback by the nearest past answer, a tuned model, or a prompted one.

Paper: Baral et al. 2024, Automated Feedback in Math Education: A Comparative Analysis of LLMs for Open-Ended Responses (arXiv:2411.08910).
Claim: a model tuned on teachers' scores scores best, since it learns their leniency; the feedback of a large model with a rubric is liked
best; both beat copying score and feedback of the most similar past answer.
Equation: d(z, z_i) = sum_k |z_k - z_ik| / (|z_k| + |z_ik|), 0 / 0 = 0; copy score and feedback of the first i with the least d;
    stand-in for the tuned model: minimise sum_{c < 4} BCE(sigmoid(theta_c - w . z), 1[s <= c]), theta increasing;
    RMSE and Cohen's kappa of the scores; AUC = mean over the scores c of (TPR_c + 1 - FPR_c) / 2 of the hard prediction.
The work is done by `preceptor.education`: `open_answers`, `ordinal` and `feedback` (`RubricScorer` asks a language model).
Deviations: the paper publishes no code. Embeddings are hashed n-grams of characters, or all-MiniLM-L6-v2; its tuned model is Mistral-7B
with LoRA, here ordinal regression on the same embeddings. An empty answer gets 0 before any model. A score that is absent from the truth
has no AUC and is left out of the mean. Which feedback people like cannot be measured without people, and is not claimed.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from preceptor.core.types import Card
from preceptor.education.feedback import scoring_report
from preceptor.education.open_answers import NearestAnswerScorer, char_ngrams
from preceptor.education.ordinal import OrdinalScorer
from preceptor.miniature.claim import Claim
from preceptor.miniature.ratios import PROBLEM, Answers, ratio_answers
from preceptor.miniature.run import Miniature, Size

CARD = Card(
    slug="math-feedback",
    title="Scores and feedback for open answers in mathematics",
    authors="Baral et al. 2024",
    arxiv="2411.08910",
    kind="scoring",
    tasks=("education", "text"),
    needs=("labels",),
    equation="argmin_i sum_k |z_k - z_ik| / (|z_k| + |z_ik|); or ordinal BCE with theta_c - w . z",
    cost="an embedding per answer; with a language model one question per answer",
    headline="AUC / RMSE / kappa: nearest answer .662 / 1.364 / .362, tuned 7B .697 / 1.119 / .422, prompted GPT-4 .639 / 1.160 / .266",
)


def majority(scores: tuple[int, ...]) -> int:
    """The most frequent score, of equals the lowest."""
    counts = Counter(scores)
    return min(counts, key=lambda score: (-counts[score], score))


def miniature(seed: int, size: Size) -> Miniature:
    """300 answers to a ratio problem, in five qualities and with words left out, scored from 320 past ones or from 20.

    A quarter of the teacher's scores are off by one. ``untrained-majority`` always gives the most frequent past score, ``nearest`` copies
    that of the nearest answer (Canberra), ``cosine`` by the angle, ``math-feedback`` is trained on the past scores. ``rmse``, ``kappa`` and
    ``auc`` are against the teacher with 320 past answers, ``rmse_20`` with 20.
    """
    generator = np.random.default_rng(seed)
    many, tested = (320, 300) if size == "full" else (60, 40)
    past, test = ratio_answers(generator, many), ratio_answers(generator, tested)
    steps = 300 if size == "full" else 20
    few = Answers(texts=past.texts[:20], quality=past.quality[:20], scores=past.scores[:20], messages=past.messages[:20])
    arms: dict[str, dict[str, float]] = {}
    for name in ("untrained-majority", "nearest", "cosine", "math-feedback"):
        report = scoring_report(test.scores, _scored(name, past, test.texts, steps))
        small = scoring_report(test.scores, _scored(name, few, test.texts, steps))
        arms[name] = {"rmse": report.rmse, "kappa": report.kappa, "auc": report.auc_mean, "rmse_20": small.rmse}
    floor = scoring_report(test.scores, test.quality).rmse
    claims = (
        ("a tuned scorer errs less than the nearest answer", "nearest", "rmse", "lower"),
        ("it agrees more with the teacher", "nearest", "kappa", "higher"),
        ("it tells the scores apart better", "nearest", "auc", "higher"),
        ("it errs less than the most frequent score", "untrained-majority", "rmse", "lower"),
    )
    return Miniature(
        arms=arms,
        claims=tuple(
            Claim(name=name, method="math-feedback", baseline=baseline, metric=metric, direction=direction)  # pyright: ignore[reportArgumentType]
            for name, baseline, metric, direction in claims
        ),
        notes=(
            f"{tested} answers, {many} past ones; embeddings are hashed n-grams in every arm",
            f"the true quality errs by {floor:.2f} against the teacher at seed {seed}",
        ),
    )


def _scored(name: str, past: Answers, texts: tuple[str, ...], steps: int) -> list[int | None]:
    if name == "untrained-majority":
        return [majority(past.scores)] * len(texts)
    if name == "math-feedback":
        return [*OrdinalScorer(embed=char_ngrams, steps=steps).fit(past.texts, past.scores).predict(texts)]
    scorer = NearestAnswerScorer(metric="cosine" if name == "cosine" else "canberra")
    scorer.fit([PROBLEM] * len(past.texts), past.texts, past.scores, past.messages)
    return [rating.score for rating in scorer.predict([PROBLEM] * len(texts), texts)]
