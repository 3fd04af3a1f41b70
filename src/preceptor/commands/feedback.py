"""``preceptor feedback``: score open answers, and write feedback to students."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from preceptor.commands.asking import (
    JournalFile,
    Key,
    Money,
    Parallel,
    Price,
    Replay,
    Tokens,
    Url,
    answering,
    counted,
    opened,
    write_result,
)
from preceptor.commands.shared import AsJson, bars


def feedback(
    answers: Annotated[Path, typer.Argument(help="CSV or JSON Lines: id, answer, and problem, score, solution where known.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for ratings.csv and result.json.")],
    scorer: Annotated[
        Literal["nearest", "trained", "tuned", "chat"],
        typer.Option(help="Copy from the most similar past answer; train on past scores (no feedback); tune --model on them; or ask it."),
    ] = "nearest",
    past: Annotated[Path | None, typer.Option(help="Past answers with id, answer, score, and problem, feedback where known.")] = None,
    embed: Annotated[
        Literal["ngrams", "minilm"], typer.Option(help="Of answers: n-grams of characters, or sentence embeddings.")
    ] = "ngrams",
    model: Annotated[str | None, typer.Option(help="For tuned and chat: smollm2, gguf:FILE, hf:PATH; chat: a name at --url.")] = None,
    quantile: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="For nearest: no score for answers farther off than this part of the past ones are."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="For tuned: passes over --past.")] = 4,
    url: Url = None,
    key: Key = None,
    journal: JournalFile = None,
    replay: Replay = False,
    price: Price = None,
    max_money: Money = None,
    max_tokens: Tokens = None,
    parallel: Parallel = 8,
    as_json: AsJson = False,
) -> None:
    """Score answers from 0 to 4 with feedback; where a teacher's scores are known, say how well. A second call goes on."""
    with answering(shlex.join(["preceptor", *sys.argv[1:]])), bars() as shown:
        from preceptor.distillation import check_writable
        from preceptor.education.answer_files import read_answers, write_ratings
        from preceptor.education.feedback import RubricScorer, flaws, scoring_report
        from preceptor.education.open_answers import NearestAnswerScorer, Rating, char_ngrams, sentence_embedder
        from preceptor.education.ordinal import OrdinalScorer

        if (model is None) == (scorer in ("tuned", "chat")) or (scorer != "tuned" and (past is None) != (scorer == "chat")):
            wanted = "--past for nearest and trained, --model for chat, --model and perhaps --past for tuned"
            raise ValueError(f"scorer: expected {wanted}, got --scorer {scorer}")
        if quantile is not None and scorer != "nearest":
            raise ValueError(f"quantile: expected --scorer nearest, got {scorer}")
        new = read_answers(answers)
        known = None if past is None else read_answers(past, scored=True)
        check_writable(out)
        spent: list[str] = []
        if scorer == "tuned":
            from preceptor.education.tuned import TunedScorer
            from preceptor.models.language import load_language, load_tokenizer

            tuned = TunedScorer(model=load_language(str(model)), tokenizer=load_tokenizer(str(model)), epochs=epochs)
            if known is not None:
                given = known.problems, known.texts, [score for score in known.scores if score is not None], known.feedback
                tuned.fit(*given, out=out / "training", progress=lambda done, total: shown.count("tuning", done, total, "update"))
                tuned.save(out / "scorer")
                spent.append(f"tuned model: use it again with --scorer tuned --model hf:{out / 'scorer'}")
            found = tuned.predict(new.problems, new.texts, progress=lambda done, total: shown.count(str(model), done, total, "answer"))
        elif known is None:
            with opened(
                str(model),
                url=url,
                key=key,
                journal=journal or out / "chat.sqlite",
                replay=replay,
                price=price,
                money=max_money,
                tokens=max_tokens,
                parallel=parallel,
            ) as chat:
                found = RubricScorer(chat=chat).predict(new.problems, new.texts, progress=counted(shown, chat.model))
                spent.append(str(chat.spent))
        else:
            embedding = char_ngrams if embed == "ngrams" else sentence_embedder()
            scores = [score for score in known.scores if score is not None]  # all of them: read_answers checked
            if scorer == "trained":
                found = [Rating(score=score) for score in OrdinalScorer(embed=embedding).fit(known.texts, scores).predict(new.texts)]
            else:
                nearest = NearestAnswerScorer(embed=embedding, quantile=quantile).fit(known.problems, known.texts, scores, known.feedback)
                found = nearest.predict(new.problems, new.texts)
        parts = zip(new.texts, new.problems, new.solutions, found, strict=True)
        wrote = scorer != "trained"
        faults = [flaws(o.feedback, answer=text, problem=p, solution=s) if wrote and o.score is not None else [] for text, p, s, o in parts]
        write_ratings(out / "ratings.csv", new, found, faults)
        pairs = [(true, one.score) for true, one in zip(new.scores, found, strict=True) if true is not None]
        report = scoring_report(*map(list, zip(*pairs, strict=True))) if any(said is not None for _, said in pairs) else None
        result = {
            "kind": "feedback",
            "scorer": scorer if model is None else model,
            "answers": len(found),
            "without_score": sum(one.score is None for one in found),
            "failures": [{"id": key, "why": one.failed} for key, one in zip(new.ids, found, strict=True) if one.failed],
            "flaws": Counter(flaw for row in faults for flaw in row),
            "scoring": None if report is None else asdict(report),
        }
        plain = write_result(result, out)
        words = [f"{len(found)} answers, {result['without_score']} without a score"]
        words += (
            [f"RMSE {report.rmse:.3f}, kappa {report.kappa:.3f}, quadratic {report.kappa_quadratic:.3f}, AUC {report.auc_mean:.3f}"]
            if report
            else []
        )
        words += [f"feedback, {flaw}: {times}" for flaw, times in sorted(result["flaws"].items())]
        print(json.dumps(plain, indent=1) if as_json else "\n".join([*words, *spent, f"ratings: {out / 'ratings.csv'}"]))
