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
        Literal["nearest", "trained", "chat"],
        typer.Option(help="Copy from the most similar past answer; train on past scores (no feedback); or ask --model."),
    ] = "nearest",
    past: Annotated[Path | None, typer.Option(help="Past answers with id, answer, score, and problem, feedback where known.")] = None,
    embed: Annotated[
        Literal["ngrams", "minilm"], typer.Option(help="Of answers: n-grams of characters, or sentence embeddings.")
    ] = "ngrams",
    model: Annotated[str | None, typer.Option(help="For --scorer chat: smollm2, gguf:FILE, hf:PATH, or a name at --url.")] = None,
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

        if (past is None) != (scorer == "chat") or (model is None) == (scorer == "chat"):
            raise ValueError(f"scorer: expected --past for nearest and trained, --model for chat, got --scorer {scorer}")
        new = read_answers(answers)
        known = None if past is None else read_answers(past, scored=True)
        check_writable(out)
        spent: list[str] = []
        if known is None:
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
                nearest = NearestAnswerScorer(embed=embedding).fit(known.problems, known.texts, scores, known.feedback)
                found = nearest.predict(new.problems, new.texts)
        parts = zip(new.texts, new.problems, new.solutions, found, strict=True)
        faults = [flaws(one.feedback, answer=text, problem=p, solution=s) if scorer != "trained" else [] for text, p, s, one in parts]
        write_ratings(out / "ratings.csv", new.ids, found, faults)
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
