"""``preceptor strategies``: predict how students will solve problems, and see for whom that works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from preceptor.commands.shared import AsJson, checked


def strategies(
    path: Annotated[Path, typer.Argument(help="CSV or JSON Lines, a step a row: student, problem, component, correct.", metavar="LOG")],
    budget: Annotated[int, typer.Option(min=1, help="Solutions to learn from; more than there are clusters.")],
    groups: Annotated[int, typer.Option(min=1, help="Groups of students by mean mastery.")] = 5,
    mastery: Annotated[Literal["attention", "mean"], typer.Option(help="A tracer, or the mean of a student's steps.")] = "attention",
    test_rate: Annotated[float, typer.Option(help="Share of every student's solutions, the last ones, to predict.")] = 0.33,
    steps: Annotated[int, typer.Option(min=1, help="Updates of a model.")] = 300,
    out: Annotated[Path | None, typer.Option("--out", help="Also write scores and chosen solutions to this JSON file.")] = None,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Learn students' strategies from an even sample of clusters, a random one and all; score their last problems by group of mastery."""
    with checked():
        from preceptor.core.files import write_whole
        from preceptor.education.solutions import COLUMNS, solutions_from, split_last
        from preceptor.education.strategies import mastery as mastery_of
        from preceptor.education.strategy_samples import compare_samples
        from preceptor.education.tables import check_columns, read_rows

        rows = read_rows(path)
        check_columns(rows, COLUMNS, path)
        solutions = solutions_from(rows, str(path))
        pool, later = split_last(solutions, test_rate)
        mastered = mastery_of(pool.steps(), pool.num_components, by=mastery, seed=seed)
        found = compare_samples(pool, later, mastered, budget=budget, groups=groups, steps=steps, seed=seed)
        result: dict[str, Any] = {"pool": len(pool), "test": len(later), "students": pool.num_students, "clusters": found.clusters}
        result |= {"scores": found.scores, "chosen": found.rows["mvec"].tolist()}
        if out is not None:
            write_whole(out, json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1) if as_json else "\n".join(_lines(result, budget)))


def _lines(result: dict[str, Any], budget: int) -> list[str]:
    """A table of the scores, and a word of warning where the sample cannot hold every cluster."""
    columns = ("token", "exact", "edit", "worst", "gap", "std")
    lines = [f"{result['pool']:,} solutions of {result['students']:,} students to learn from, {result['test']:,} to predict"]
    lines.append("".join(f"{cell:>12}" for cell in ("sample", *columns)))
    lines += ["".join([f"{name:>12}", *(f"{scores[key]:>12.3f}" for key in columns)]) for name, scores in result["scores"].items()]
    if budget < result["clusters"]:
        lines.append(f"{result['clusters']} clusters: a budget of {budget} leaves some of them out")
    return lines
