"""Polyglot teachers: which model writes the best data to teach others in several languages.

Paper: Miranda, Vulić, Korhonen 2026, Polyglot Teachers: Evaluating Language Models for Multilingual Synthetic Data Generation
(arXiv:2604.11290).
Claim: what is measured of data and what students gain from them, together, rank teachers much alike over families of students; size alone
does not tell good teachers.
Equation, of a teacher T and a language l:
    distinct = 1 - mean_{i != j} cos(e_i, e_j),   ppl = mean over examples of exp(mean NLL of the response after its prompt),
    z = mean of the standardised [distinct prompts, distinct responses, rubric, -ln(1 + ppl)],   over all rows (T, l),
    PGR = (S - S_base) / (S_ref - S_base),   PG = alpha z + (1 - alpha) PGR,   averaged over languages.
Parts: `preceptor.metrics` (`teaching_data`, `perplexity`, `recovered`, `polyglot`); models are asked by `preceptor.teachers.instructions`.
Deviations from the released code (ljvmiranda921/polyglot-teachers): perplexity is of each example alone, without padding, and 1e6 at most,
where it is of the padded tokens of eight together. A reference that is not better than the base is refused or flagged: in the released
tables it is worse in four of six languages, and there a better student gets a lower score. z can be taken within a language. Strategies and
rubric are worded anew. The body of the paper was not read. Whoever calls trains the students: 4-bit LoRA runs are not repeated here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from preceptor.core.types import Card
from preceptor.education.open_answers import Embed, char_ngrams
from preceptor.metrics.perplexity import LogProbs, Pair, perplexity
from preceptor.metrics.polyglot import polyglot_score, polyglot_table, spearman
from preceptor.metrics.recovered import OnInverted, extrinsic, pgr
from preceptor.metrics.tables import Row
from preceptor.metrics.teaching_data import INTRINSIC, distinctness, explain
from preceptor.miniature.claim import Claim
from preceptor.miniature.polyglots import PolyglotWorld
from preceptor.miniature.run import Miniature, Size
from preceptor.teachers.instructions import RUBRIC, Write, rubric

CARD = Card(
    slug="polyglot-teachers",
    title="Polyglot score: which model writes the best multilingual training data",
    authors="Miranda et al. 2026",
    arxiv="2604.11290",
    kind="evaluation",
    tasks=("language", "text"),
    needs=("generation",),
    equation="PG = alpha z + (1 - alpha) (S - S_base) / (S_ref - S_base)",
    cost="data, a judgement and a perplexity per example, and one trained student, for each teacher and language",
    headline="10 teachers, 6 languages, 240 students: Gemma-3-27B (.73) and Aya-Expanse-32B (.71) first; six features explain R^2 = .66",
)

Teacher = TypeVar("Teacher")
Student = TypeVar("Student")
Benchmark = Callable[[Student, str], Mapping[str, float]]
"""A model, and the language it was taught -> results by the language they were measured in, higher is better."""


def measure_data(pairs: Sequence[Pair], *, embed: Embed, judge: Write, lm: LogProbs, rubric_text: str = RUBRIC) -> dict[str, float | int]:
    """What can be said of data without a student: one row's part of the table.

    Args:
        pairs: N >= 2 prompts and responses.
        embed: texts to numbers.
        judge: see `preceptor.teachers.instructions.rubric`.
        lm: see `preceptor.metrics.perplexity.perplexity`.
        rubric_text: what each score stands for.
    Returns:
        The columns of `preceptor.metrics.teaching_data.FEATURES`, lengths in characters; ``items``; ``unread``, judgements that could not
        be read; ``no_perplexity``, responses that have none and are left out of its mean.
    Raises:
        ValueError: fewer than two pairs, or no response that has a perplexity.
    """
    if len(pairs) < 2:
        raise ValueError(f"pairs: expected at least 2, got {len(pairs)}")
    prompts, responses = ([pair[side] for pair in pairs] for side in (0, 1))
    surprise = perplexity(lm, pairs)
    known = ~np.isnan(surprise)
    if not known.any():
        raise ValueError(f"pairs: expected at least one response with a perplexity, got none of {len(pairs)}")
    judged = rubric(judge, pairs, rubric_text)
    return {
        "distinct_prompts": distinctness(embed(prompts)),
        "distinct_responses": distinctness(embed(responses)),
        "rubric": judged.mean,
        "perplexity": float(surprise[known].mean()),
        "prompt_length": float(np.mean([len(text) for text in prompts])),
        "response_length": float(np.mean([len(text) for text in responses])),
        "items": len(pairs),
        "unread": judged.unread,
        "no_perplexity": int((~known).sum()),
    }


def evaluate_teachers(
    teachers: Mapping[str, Teacher],
    languages: Sequence[str],
    make_data: Callable[[Teacher, str], Sequence[Pair]],
    train_student: Callable[[Sequence[Pair], str], Student],
    benchmarks: Mapping[str, Benchmark[Student]],
    *,
    base: Student,
    reference: Student,
    embed: Embed,
    judge: Write,
    lm: LogProbs,
    rubric_text: str = RUBRIC,
    alpha: float = 0.5,
    by: str | None = None,
    on_inverted: OnInverted = "raise",
) -> list[dict[str, Any]]:
    """Let every teacher write in every language, train a student on it, and put all measurements into one table.

    Args:
        teachers: by name; whatever ``make_data`` takes.
        languages: each once, with the teachers at least two rows.
        make_data: a teacher and a language to pairs, `preceptor.teachers.instructions.write_instructions` for one; as many for each.
        train_student: pairs and their language to a student, from the same start each time.
        benchmarks: by name, at least one.
        base: the student before training.
        reference: a model of its size that is known to be good.
        embed, judge, lm, rubric_text: see `measure_data`.
        alpha: see `preceptor.metrics.polyglot.polyglot_score`.
        by: "language" to standardise within each language.
        on_inverted: see `preceptor.metrics.recovered.pgr`; with ``raise`` the reference is looked at before anything is written.
    Returns:
        A row for each teacher and language with what `measure_data` and `preceptor.metrics.recovered.Extrinsic` say, ``z`` and ``pg``.
    Raises:
        ValueError: data that cannot be measured, or before anything is written what `extrinsic` and `polyglot_table` refuse.
    """
    anchors = [
        [row for language in languages for row in _results(model, language, benchmarks) if row["eval_language"] == language]
        for model in (base, reference)
    ]
    blank = [
        {"teacher": name, "language": language, "eval_language": language, "result": 0.0, **dict.fromkeys(INTRINSIC, 0.0)}
        for name in teachers
        for language in languages
    ]  # a table of zeros: what cannot become one is refused before anything is paid for
    polyglot_table(blank, extrinsic(blank, *anchors, on_inverted=on_inverted), alpha=alpha, by=by)
    measured: list[Row] = []
    results: list[Row] = []
    for name, teacher in teachers.items():
        for language in languages:
            pairs = make_data(teacher, language)
            try:
                found = measure_data(pairs, embed=embed, judge=judge, lm=lm, rubric_text=rubric_text)
            except ValueError as error:
                raise ValueError(f"{name}, {language}: {error}") from error
            measured.append({"teacher": name, "language": language, **found})
            student = train_student(pairs, language)
            results += [{"teacher": name, **row} for row in _results(student, language, benchmarks)]
    return polyglot_table(measured, extrinsic(results, *anchors, on_inverted=on_inverted), alpha=alpha, by=by)


def miniature(seed: int, size: Size) -> Miniature:
    """Ten simulated teachers in three made-up languages, Markov chains, so that their true quality is known.

    A teacher mixes the true chain with a false one (its quality is the share of the true one), has a temperature, few or many beginnings,
    and a size that means nothing. Students are trigram models of what it wrote, the base learned from 8 true texts, the reference from
    600; a result is the share of true symbols foretold. The judge sees the quality through noise.

    An arm is a score of teachers: ``untrained`` by lot (means of 200), ``size``, ``rubric``, ``intrinsic`` (z), ``recovered`` (PGR),
    ``polyglot-teachers`` (PG), and with a reference 0.02 below the base ``inverted``, PG as released, and ``guarded``, the gain for PGR.
    ``quality`` is its rank correlation with the true quality, ``size`` that with the size, without its sign, and ``others`` that with the
    results of bigram students, averaged over languages; ``picked`` the result of the students of the best teacher by the score;
    ``agreement`` the rank correlation of z and PGR, ``explained`` the R^2 of PGR on the four measures of data, where ``untrained`` has PGR
    shuffled, and the last two arms have what stands for it there.
    """
    world = PolyglotWorld(seed, size)
    table = evaluate_teachers(
        world.teachers,
        world.languages,
        world.make_data,
        world.train_student,
        {"next symbol": world.foretold},
        base=world.base,
        reference=world.reference,
        embed=lambda texts: char_ngrams(texts, dimensions=256),
        judge=world.judge,
        lm=world.log_probs,
    )
    draws = np.random.default_rng((seed, 1))
    z, recovered, result, base = (np.array([row[name] for row in table]) for name in ("z", "pgr", "result", "base"))
    keys = [(row["teacher"], row["language"]) for row in table]
    quality, sizes = (np.array([getattr(world.facts[key], name) for key in keys]) for name in ("quality", "size"))
    others = np.array([world.other_result(*key) for key in keys])
    parts = [np.flatnonzero([language == one for _, language in keys]) for one in world.languages]

    def measured(score: np.ndarray, side: np.ndarray) -> dict[str, float]:
        rows = [{**row, "target": value} for row, value in zip(table, side, strict=True)]
        return {
            "quality": spearman(score, quality),
            "size": abs(spearman(score, sizes)),
            "others": float(np.mean([spearman(score[part], others[part]) for part in parts])),
            "picked": float(np.mean([result[part[score[part].argmax()]] for part in parts])),
            "agreement": spearman(z, side),
            "explained": float(explain(rows, INTRINSIC, target="target").r2[-1]),
        }

    def upside_down(on_inverted: OnInverted) -> dict[str, float]:
        side = np.array([pgr(mine, below, below - 0.02, on_inverted=on_inverted) for mine, below in zip(result, base, strict=True)])
        return measured(polyglot_score(z, side), side)

    lots = [
        measured(draws.permutation(len(table)).astype(float), draws.permutation(recovered)) for _ in range(200 if size == "full" else 5)
    ]
    arms = {
        "untrained": {name: float(np.mean([lot[name] for lot in lots])) for name in lots[0]},
        "size": measured(sizes, recovered),
        "rubric": measured(np.array([row["rubric"] for row in table]), recovered),
        "intrinsic": measured(z, recovered),
        "recovered": measured(recovered, recovered),
        "polyglot-teachers": measured(np.array([row["pg"] for row in table]), recovered),
        "inverted": upside_down("ratio"),
        "guarded": upside_down("gain"),
    }
    claims: list[tuple[str, str, str, Literal["higher", "lower"], float]] = [
        ("PG orders teachers by their true quality, by 0.6", "untrained", "quality", "higher", 0.6),
        ("it does so better than z alone", "intrinsic", "quality", "higher", 0.0),
        ("it does so better than PGR alone", "recovered", "quality", "higher", 0.0),
        ("it hangs on size by less than 0.2 more than a lot does", "untrained", "size", "lower", -0.2),
        ("data and students agree, by 0.25", "untrained", "agreement", "higher", 0.25),
        ("four measures of data explain PGR, R^2 higher by 0.5", "untrained", "explained", "higher", 0.5),
        ("PG foretells the results of other students, by 0.5", "untrained", "others", "higher", 0.5),
        ("it picks better teachers than size", "size", "picked", "higher", 0.0),
        ("it orders better with a reference above the base than with one below", "inverted", "quality", "higher", 0.0),
    ]
    return Miniature(
        arms=arms,
        claims=tuple(
            Claim(name=name, method="polyglot-teachers", baseline=baseline, metric=metric, direction=direction, margin=margin)
            for name, baseline, metric, direction, margin in claims
        ),
        notes=(f"{len(table)} teachers and languages, simulated as judge and size are: the protocol is tested, not a model",),
    )


def _results(model: Student, language: str, benchmarks: Mapping[str, Benchmark[Student]]) -> list[Row]:
    return [
        {"language": language, "eval_language": measured, "benchmark": name, "result": result}
        for name, benchmark in benchmarks.items()
        for measured, result in benchmark(model, language).items()
    ]
