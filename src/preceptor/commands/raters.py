"""``preceptor raters``: people compare the feedback of several systems, blind."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from preceptor.commands.shared import AsJson, checked

app = typer.Typer(help="People compare the feedback of several systems, blind.", no_args_is_help=True)


@app.command()
def sheets(
    answers: Annotated[Path, typer.Argument(help="The file of answers that `preceptor feedback` was given.")],
    system: Annotated[list[str], typer.Option(help="NAME=FOLDER of a run of `preceptor feedback`; at least two.", metavar="NAME=FOLDER")],
    out: Annotated[Path, typer.Option("--out", help="Folder for rater-1.csv, ... and key.csv.")],
    raters: Annotated[int, typer.Option(min=1, help="Number of sheets.")] = 2,
    per_problem: Annotated[int | None, typer.Option(min=1, help="Answers drawn of each problem; by default all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of draws and orders.")] = 0,
) -> None:
    """Write a sheet for each rater; who wrote a message stands in key.csv alone."""
    with checked():
        from preceptor.education.answer_files import read_answers
        from preceptor.education.raters import write_sheets
        from preceptor.education.tables import by_id, check_columns, read_rows

        asked = read_answers(answers)
        messages: dict[str, list[str]] = {}
        for word in system:
            name, equals, folder = word.partition("=")
            if not (name and equals and folder):
                raise ValueError(f"system: expected NAME=FOLDER, got {word!r}")
            path = Path(folder) / "ratings.csv"
            rows = read_rows(path)
            check_columns(rows, ("id", "feedback"), path)
            known = by_id(rows, "id", path)
            absent = next((key for key in asked.ids if key not in known), None)
            if absent is not None:
                raise ValueError(f"{path}: expected a rating of answer {absent}, got none")
            messages[name] = [known[key]["feedback"] for key in asked.ids]
        made = write_sheets(out, asked, messages, raters=raters, per_problem=per_problem, seed=seed)
        print("\n".join([*map(str, made), f"who wrote what, not for raters: {out / 'key.csv'}"]))


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Of sheets that were filled in.")], as_json: AsJson = False) -> None:
    """Say how often the feedback of each system is accurate, relevant, motivating, preferred, and how far raters agree."""
    with checked():
        from preceptor.education.feedback import feedback_report
        from preceptor.education.raters import rater_agreement, read_sheets
        from preceptor.report.sheet import strict

        ratings = read_sheets(folder)
        found = {name: asdict(one) for name, one in feedback_report(ratings).items()}
        alphas = rater_agreement(ratings)
        if as_json:
            print(json.dumps(strict({"systems": found, "agreement": alphas}), indent=1))
            return
        for name, row in found.items():
            shares = ", ".join(f"{mark} {100 * value:.0f} %" for mark, value in row.items() if mark != "messages")
            print(f"{name} ({row['messages']} messages): {shares}")
        print("agreement (Krippendorff's alpha): " + ", ".join(f"{mark} {alpha:.2f}" for mark, alpha in alphas.items()))
