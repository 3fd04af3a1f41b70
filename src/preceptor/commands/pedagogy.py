"""``preceptor pedagogy``: a multiple-choice test for language models, with what each costs."""

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


def pedagogy(
    items: Annotated[Path, typer.Argument(help="JSON Lines or CSV: question, options or A, B, ..., answer.", metavar="ITEMS.jsonl|csv")],
    model: Annotated[list[str], typer.Option(help="smollm2, gguf:FILE, hf:PATH, or a name at --url. Can be repeated.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for answers.csv, result.json and report.html.")],
    parsing: Annotated[
        Literal["strict-official", "lenient", "log-probs"],
        typer.Option(help="How a letter is read from an answer; log-probs: the most likely letter, no text."),
    ] = "strict-official",
    letter_prior: Annotated[
        Literal["none", "empty", "test"],
        typer.Option(help="With log-probs: take off what letters get as such, for an empty question or on average over the test."),
    ] = "none",
    permutations: Annotated[Literal["given", "cyclic"], typer.Option(help="Options as they stand, or in every cyclic order.")] = "given",
    by: Annotated[Literal["category", "age_group", "year"], typer.Option(help="What groups the items in the tables.")] = "category",
    shots: Annotated[int, typer.Option(min=0, help="Solved examples of each category in the prompt, held out of the test.")] = 3,
    columns: Annotated[list[str] | None, typer.Option(help="Name of a column: question=Q, A='Option 1'. Can be repeated.")] = None,
    prices: Annotated[
        Path | None, typer.Option(help="CSV: model, input, output, released, parameters, accuracy (measured elsewhere).")
    ] = None,
    cost: Annotated[Literal["input", "blend", "run", "parameters"], typer.Option(help="What the frontier takes for cost.")] = "input",
    at_cost: Annotated[float, typer.Option(min=0, help="Follow the frontier over time at this cost.")] = 0.1,
    at_accuracy: Annotated[float | None, typer.Option(min=0, max=100, help="Follow the least cost of so many percent over time.")] = None,
    max_bad: Annotated[float | None, typer.Option(help="Percent of bad format from which a model is left out of the frontier.")] = None,
    answer_tokens: Annotated[int, typer.Option(min=1, help="The most an answer may have; many for a model that thinks aloud.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the examples and the bootstrap.")] = 0,
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
    """Ask models multiple-choice questions: accuracy with intervals, who is better, and which is worth its price. A second call goes on."""
    with answering(shlex.join(["preceptor", *sys.argv[1:]])), bars() as shown:
        from preceptor.distillation import check_writable
        from preceptor.education.item_files import read_items
        from preceptor.education.multiple_choice import draw_shots, held_out, sit
        from preceptor.education.prices import offer_of, read_offers
        from preceptor.report.pedagogy import lines, pedagogy_result, write_pedagogy

        if len(set(model)) < len(model):
            raise ValueError(f"model: expected each once, got {', '.join(model)}")
        named = {name: given for name, _, given in (word.partition("=") for word in columns or ())}
        if not all(named.values()):
            raise ValueError(f"columns: expected NAME=COLUMN, got {' '.join(columns or ())!r}")
        read, left_out = read_items(items, named)
        offers = read_offers(prices) if prices else []
        examples = draw_shots(read, shots, seed=seed)
        asked = held_out(read, examples)
        check_writable(out)
        sittings, spent = [], []
        for name in model:
            offer = offer_of(name, offers)
            listed = (offer.input, offer.output) if offer.input >= 0 and offer.output >= 0 else None  # NaN: not known
            with opened(
                name,
                url=url,
                key=key,
                journal=journal or out / "chat.sqlite",
                replay=replay,
                price=listed or price,
                money=max_money,
                tokens=max_tokens,
                parallel=parallel,
            ) as chat:
                sittings.append(
                    sit(
                        asked,
                        chat,
                        shots=examples,
                        order=permutations,
                        parsing=parsing,
                        letter_prior=letter_prior,
                        max_tokens=answer_tokens,
                        progress=counted(shown, name),
                    )
                )
                spent.append(f"{name}: {chat.spent}")
        result = pedagogy_result(
            asked,
            sittings,
            source=items.name,
            order=permutations,
            parsing=parsing,
            shots=shots,
            by=by,
            offers=offers,
            basis=cost,
            at_cost=at_cost,
            at_accuracy=at_accuracy,
            max_bad=max_bad,
            left_out=left_out,
            seed=seed,
        )
        page = write_pedagogy(result, asked, sittings, out)
        plain = write_result(result, out)
        print(
            json.dumps(plain, indent=1)
            if as_json
            else "\n".join([*lines(result), *spent, f"answers: {out / 'answers.csv'}", f"report: {page}"])
        )
