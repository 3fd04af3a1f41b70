"""``preceptor ednet``: a zip of tutoring logs to parquet, made-up logs, and tracers of what students know."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from preceptor.commands.shared import AsJson, checked

app = typer.Typer(help="EdNet: convert logs, make some up, trace what students know.", no_args_is_help=True)

Seed = Annotated[int, typer.Option(help="Of every draw.")]


@app.command("convert")
def convert_command(
    zip_path: Annotated[Path, typer.Argument(help="A zip of u1.csv, u2.csv, ..., such as EdNet-KT1.zip.", metavar="ZIP")],
    out: Annotated[Path, typer.Option("--out", help="Folder for interactions.parquet and the content tables.")],
    contents: Annotated[Path | None, typer.Option(help="Zip or folder with questions.csv, where ZIP has none.")] = None,
    level: Annotated[Literal["KT1", "KT2", "KT3", "KT4"] | None, typer.Option(help="By default told from the columns.")] = None,
    answers: Annotated[bool, typer.Option("--answers", help="Of actions (KT2 to KT4) keep the answers, as rows of KT1.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn a zip of one CSV per student into one parquet file, without extracting it."""
    with checked():
        from preceptor.distillation import check_writable
        from preceptor.education.ednet import INTERACTIONS, convert

        for name, path in (("ZIP", zip_path), ("contents", contents)):
            if path is not None and not path.exists():
                raise ValueError(f"{name}: expected a file, got {path}, which does not exist")
        check_writable(out)
        report = convert(zip_path, out, level=level, contents=contents, answers=answers)
        skipped = f", {len(report.skipped)} skipped" if report.skipped else ""
        line = f"{report.level}: {report.rows:,} rows of {report.users:,} students ({report.empty:,} empty{skipped}): {out / INTERACTIONS}"
        if answers:
            found = report.responses
            line += (
                f"\n{found.kept:,} answers of {found.given:,} responses: {found.replaced:,} changed, {found.unsubmitted:,} not submitted,"
            )
            line += f" {found.unknown:,} to unknown questions"
        print(json.dumps(asdict(report), indent=1) if as_json else line)


@app.command("synthesize")
def synthesize_command(
    users: Annotated[int, typer.Option(min=1, help="Students.")],
    out: Annotated[Path, typer.Option("--out", help="The zip to write.", metavar="ZIP")],
    length: Annotated[float, typer.Option(min=1, help="Mean number of answers of a student.")] = 120.0,
    questions: Annotated[int, typer.Option(min=1, max=32767, help="Questions.")] = 2000,
    tags: Annotated[int, typer.Option(min=1, max=32767, help="Skills.")] = 100,
    level: Annotated[Literal["KT1", "KT2"], typer.Option(help="Answers, or the actions behind them.")] = "KT1",
    seed: Seed = 0,
) -> None:
    """Write made-up students in the true schema, questions included."""
    with checked():
        from preceptor.distillation import check_writable
        from preceptor.education.synthetic import School, synthesize

        check_writable(out.parent)
        rows = synthesize(users, out, level=level, school=School(mean_length=length, questions=questions, tags=tags), seed=seed)
        print(f"{rows:,} rows of {users:,} students: {out}")


@app.command()
def trace(
    folder: Annotated[Path, typer.Argument(help="Written by `preceptor ednet convert`.", metavar="DIR")],
    model: Annotated[Literal["dkt", "sakt", "bkt", "item-mean"], typer.Option(help="What traces.")] = "dkt",
    students: Annotated[int | None, typer.Option(min=7, help="Draw so many of all; 5000 makes a small benchmark.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="At most; the validation part may stop earlier.")] = 20,
    width: Annotated[int, typer.Option(min=4, help="Of dkt and sakt, a multiple of 4.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows per update.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of Adam.")] = 1e-3,
    max_len: Annotated[int, typer.Option(min=2, help="Steps of a window.")] = 200,
    tags: Annotated[Literal["mean", "expand"], typer.Option(help="A question with m tags: one step, or m, one of them judged.")] = "mean",
    out: Annotated[Path | None, typer.Option("--out", help="Also write the scores to this JSON file.")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a tracer on 80 % of the students and score it on the others: AUC and accuracy, also by length of history."""
    with checked():
        import numpy as np

        from preceptor.core.files import write_whole
        from preceptor.education.sequences import load_windows, read_questions, split_students
        from preceptor.education.tracing import Training, evaluate, knowledge_tracer

        questions = read_questions(folder)
        users = None
        if students is not None:
            everyone = _users(folder)
            if students > len(everyone):
                raise ValueError(f"students: expected at most the {len(everyone)} of {folder}, got {students}")
            users = np.random.default_rng(seed).choice(everyone, students, replace=False)
        whole = load_windows(folder, users=users, max_len=max_len, tags=tags)
        parts = split_students(whole.user, seed=seed)
        test, valid = (whole.take(np.isin(whole.user, parts[part])) for part in ("test", "fold-0"))
        seen = whole.take(~np.isin(whole.user, np.concatenate([parts["test"], parts["fold-0"]])))
        training = Training(width=width, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, max_len=max_len)
        count, known = (len(questions.answer), questions.tags) if tags == "mean" else (questions.num_tags, None)
        tracer = knowledge_tracer(model, count, tags=known, training=training, seed=seed)
        tracer.fit(seen, valid)
        result = {"model": model, "students": {"train": len(np.unique(seen.user)), "test": len(parts["test"])}}
        result |= evaluate(tracer.predict(test), test, by="history")
        if out is not None:
            write_whole(out, json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1) if as_json else "\n".join(_lines(result)))


def _users(folder: Path) -> Any:
    from preceptor.education.ednet import scan

    return scan(folder).select("user").unique().sort("user").collect()["user"].to_numpy()


def _lines(result: dict[str, Any]) -> list[str]:
    """A table of the scores."""
    head = f"{result['model']}: {result['students']['train']} students to learn from, {result['students']['test']} to score"
    rows: list[tuple[str, ...]] = [("history", "answers", "AUC", "accuracy", "log-loss")]
    for name, scores in [("all", result), *result["by_history"].items()]:
        rows.append((name, f"{scores['n']:,.0f}", *(f"{scores[key]:.3f}" for key in ("auc", "accuracy", "log_loss"))))
    return [head, *("".join(f"{cell:>10}" for cell in row) for row in rows)]
