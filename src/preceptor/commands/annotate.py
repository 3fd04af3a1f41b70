"""``preceptor annotate``: label comments by a rubric with a language model, and say which categories can be left to it."""

from __future__ import annotations

import json
import shlex
import sys
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


def annotate(
    comments: Annotated[Path, typer.Argument(help="CSV or JSON Lines with an id and a comment.", metavar="COMMENTS.csv|jsonl")],
    rubric: Annotated[Path, typer.Option(help="YAML: categories with a name and a statement each.")],
    model: Annotated[str, typer.Option(help="smollm2, gguf:FILE, hf:PATH, or a name at --url.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for labels.csv, result.json and report.html.")],
    style: Annotated[
        Literal["zero-shot", "few-shot", "reasoning"], typer.Option(help="Of the prompts; the last two show the rubric's examples.")
    ] = "zero-shot",
    reading: Annotated[
        Literal["text", "log-probs"], typer.Option(help="Of the answers: the word written, or the more likely word, for small models.")
    ] = "text",
    id_column: Annotated[str, typer.Option(help="Column of the id, in all files.")] = "id",
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "comment",
    context: Annotated[list[str] | None, typer.Option(help="Column that goes into the prompt too. Can be repeated.")] = None,
    human: Annotated[
        list[str] | None,
        typer.Option(help="PERSON=FILE with labels, or PERSON of --human-columns. Can be repeated.", metavar="PERSON[=FILE]"),
    ] = None,
    human_columns: Annotated[str, typer.Option(help="How a person's columns are called.")] = "{person}:{category}",
    student: Annotated[
        Path | None,
        typer.Option(help="More comments, labelled by a small student of the model's labels.", metavar="MORE.csv|jsonl"),
    ] = None,
    embed: Annotated[
        Literal["ngrams", "minilm"], typer.Option(help="What the student sees: n-grams of characters, or sentence embeddings.")
    ] = "ngrams",
    least_kappa: Annotated[float, typer.Option(min=0, max=1, help="Gate: kappa that people must reach among themselves.")] = 0.7,
    least_share: Annotated[
        float, typer.Option(min=0, help="Gate: share of the lower end of people's kappa that the model must reach.")
    ] = 0.7,
    asks: Annotated[int, typer.Option(min=1, help="Tries of one question.")] = 3,
    draws: Annotated[int, typer.Option(min=0, help="Draws of the bootstrap; 0 leaves intervals out.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
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
    """Label every comment in every category; with people's labels, say how far the model agrees with them. A second call goes on."""
    with answering(shlex.join(["preceptor", *sys.argv[1:]])), bars() as shown:
        from preceptor.distillation import check_writable
        from preceptor.education.annotate import annotate as label
        from preceptor.education.comments import read_comments
        from preceptor.education.label_student import LabelStudent, distil
        from preceptor.education.open_answers import char_ngrams, sentence_embedder
        from preceptor.education.reliability import reliabilities
        from preceptor.education.rubric import read_rubric
        from preceptor.report.annotation import annotation_result, lines, write_annotation, write_labels

        questions = read_rubric(rubric)
        people = {name: Path(file) if file else None for name, _, file in (given.partition("=") for given in human or ())}
        texts = read_comments(
            comments,
            questions,
            id_column=id_column,
            text_column=text_column,
            context=context or (),
            people=people,
            people_columns=human_columns,
        )
        more = read_comments(student, questions, id_column=id_column, text_column=text_column) if student else None
        embedding = sentence_embedder() if student and embed == "minilm" else char_ngrams
        check_writable(out)
        with opened(
            model,
            url=url,
            key=key,
            journal=journal or out / "chat.sqlite",
            replay=replay,
            price=price,
            money=max_money,
            tokens=max_tokens,
            parallel=parallel,
        ) as chat:
            said = label(texts, questions, chat, style=style, reading=reading, asks=asks, progress=counted(shown, model))
            spent = str(chat.spent)
        found = reliabilities(
            texts.people, said.labels, questions, draws=draws, seed=seed, least_kappa=least_kappa, least_share=least_share
        )
        taught, wrote = None, []
        if more is not None:
            taught = distil(texts, questions, said.labels, found, LabelStudent(embed=embedding), draws=draws, seed=seed)
            write_labels(out / "student.csv", questions.names, more.ids, questions, taught.student.predict(more.texts))
            wrote = [f"the student's labels: {out / 'student.csv'}"]
        result = annotation_result(texts, questions, said, found, model=chat.model, style=style, draws=draws, student=taught)
        page = write_annotation(result, texts, questions, said, out)
        plain = write_result(result, out)
        print(
            json.dumps(plain, indent=1)
            if as_json
            else "\n".join([*lines(result), spent, f"labels: {out / 'labels.csv'}", *wrote, f"report: {page}"])
        )
