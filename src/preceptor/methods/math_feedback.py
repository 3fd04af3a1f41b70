"""Math feedback: score open answers and write feedback by the nearest past answer, a tuned model, or a prompted one.

Paper: Baral et al. 2024, Automated Feedback in Math Education: A Comparative Analysis of LLMs for Open-Ended Responses (arXiv:2411.08910).
Claim: a model tuned on teachers' scores scores best, since it learns their leniency; the feedback of a large model with a rubric is liked
best; both beat copying score and feedback of the most similar past answer.
Equation: d(z, z_i) = sum_k |z_k - z_ik| / (|z_k| + |z_ik|), 0 / 0 = 0; copy score and feedback of the first i with the least d;
    stand-in for the tuned model: minimise sum_{c < 4} BCE(sigmoid(theta_c - w . z), 1[s <= c]), theta increasing;
    RMSE and Cohen's kappa of the scores; AUC = mean over the scores c of (TPR_c + 1 - FPR_c) / 2 of the hard prediction.
The work is done by `preceptor.education`: `open_answers`, `ordinal`, `tuned` (`TunedScorer` tunes a language model by LoRA), `feedback`
(`RubricScorer` asks one) and `raters` (sheets on which people compare the feedback of several systems, blind).
Deviations: the paper publishes no code. Embeddings are hashed n-grams of characters, or all-MiniLM-L6-v2. Its tuned model is Mistral-7B;
`TunedScorer` takes any causal model, and where the miniature runs, ordinal regression on the same embeddings stands in for it. An empty
answer gets 0 before any model. A score that is absent from the truth has no AUC and is left out of the mean. Which feedback people like
cannot be measured without people, and is not claimed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from preceptor.core.types import Card
from preceptor.education.feedback import scoring_report
from preceptor.education.open_answers import Embed, Metric, NearestAnswerScorer, char_ngrams, sentence_embedder
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


Scorer = Callable[[Answers, Sequence[str]], Sequence[int | None]]
"""From past answers to scores of new texts."""

_PAST = {"full": (320, 80, 20), "smoke": (60, 40, 20)}
_TESTED = {"full": 300, "smoke": 40}


def majority(scores: Sequence[int]) -> int:
    """The most frequent score, of equals the lowest."""
    counts = Counter(scores)
    return min(counts, key=lambda score: (-counts[score], score))


def miniature(seed: int, size: Size) -> Miniature:
    """300 answers to a ratio problem, in five qualities and with words left out, scored from 320, 80 or 20 past ones.

    A quarter of the teacher's scores are off by one. ``untrained-majority`` always gives the most frequent past score, ``untrained-mean``
    their rounded mean, ``nearest`` copies that of the nearest answer (Canberra), ``cosine`` by the angle, ``math-feedback`` is trained on
    the past scores. ``nearest-minilm`` and ``trained-minilm`` are the same on sentence embeddings of all-MiniLM-L6-v2; without the package
    that ships them, and in a smoke run, they are left out. ``rmse``, ``kappa`` and ``auc`` are against the teacher with all past answers,
    ``rmse_80`` and ``rmse_20`` with fewer.
    """
    generator = np.random.default_rng(seed)
    many, *fewer = _PAST[size]
    past, test = ratio_answers(generator, many), ratio_answers(generator, _TESTED[size])
    steps = 300 if size == "full" else 20

    def measured(score: Scorer) -> dict[str, float]:
        report = scoring_report(test.scores, score(past, test.texts))
        found = {"rmse": report.rmse, "kappa": report.kappa, "auc": report.auc_mean}
        for number, few in zip((80, 20), fewer, strict=True):
            found[f"rmse_{number}"] = scoring_report(test.scores, score(past.first(few), test.texts)).rmse
        return found

    arms = {
        "untrained-majority": measured(lambda known, texts: [majority(known.scores)] * len(texts)),
        "untrained-mean": measured(lambda known, texts: [round(float(np.mean(known.scores)))] * len(texts)),
        "nearest": measured(_nearest(char_ngrams, "canberra")),
        "cosine": measured(_nearest(char_ngrams, "cosine")),
        "math-feedback": measured(_trained(char_ngrams, steps)),
    }
    claims: list[tuple[str, str, str, str, Literal["higher", "lower"]]] = [
        ("a tuned scorer errs less than the nearest answer", "math-feedback", "nearest", "rmse", "lower"),
        ("it agrees more with the teacher", "math-feedback", "nearest", "kappa", "higher"),
        ("it tells the scores apart better", "math-feedback", "nearest", "auc", "higher"),
        ("it errs less than the mean score", "math-feedback", "untrained-mean", "rmse", "lower"),
    ]
    sentences, left_out = _sentences([*past.texts, *test.texts], size)
    if sentences is not None:
        arms["nearest-minilm"] = measured(_nearest(sentences, "canberra"))
        arms["trained-minilm"] = measured(_trained(sentences, steps))
        claims.append(("on sentence embeddings too, a tuned scorer errs less", "trained-minilm", "nearest-minilm", "rmse", "lower"))
    floor = scoring_report(test.scores, test.quality).rmse
    return Miniature(
        arms=arms,
        claims=tuple(
            Claim(name=name, method=method, baseline=baseline, metric=metric, direction=direction)
            for name, method, baseline, metric, direction in claims
        ),
        notes=(
            f"{_TESTED[size]} answers, {many} past ones; embeddings are hashed n-grams but in the arms of MiniLM{left_out}",
            f"the true quality errs by {floor:.2f} against the teacher at seed {seed}",
        ),
    )


def _nearest(embed: Embed, metric: Metric) -> Scorer:
    def scored(known: Answers, texts: Sequence[str]) -> list[int | None]:
        scorer = NearestAnswerScorer(embed=embed, metric=metric)
        scorer.fit([PROBLEM] * len(known.texts), known.texts, known.scores, known.messages)
        return [rating.score for rating in scorer.predict([PROBLEM] * len(texts), texts)]

    return scored


def _trained(embed: Embed, steps: int) -> Scorer:
    return lambda known, texts: [*OrdinalScorer(embed=embed, steps=steps).fit(known.texts, known.scores).predict(texts)]


def _sentences(texts: Sequence[str], size: Size) -> tuple[Embed | None, str]:
    """MiniLM, which reads each text once, or why there is none."""
    if size == "smoke":
        return None, ", which a smoke run leaves out"
    try:
        embed = sentence_embedder()
    except ImportError as error:
        return None, f", left out: {error}"
    table = dict(zip(texts, embed(texts), strict=True))
    return lambda asked: np.stack([table[text] for text in asked]), ""
