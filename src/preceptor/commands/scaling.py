"""``preceptor scaling``: fit a law to measured points, or train a ladder of students and fit it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from preceptor.commands.shared import AsJson, Overrides, RecipePath, bars, checked

if TYPE_CHECKING:
    from preceptor.scaling.sources import Candidate

app = typer.Typer(help="Scaling laws: what size for this loss, what loss at ten times the budget?", no_args_is_help=True)

Law = Literal["power", "power-constant", "separable", "product", "log"]
Loss = Annotated[list[float] | None, typer.Option("--loss", help="What size reaches this loss? Can be repeated.")]
At = Annotated[list[str] | None, typer.Option(help="What loss at this size: 1e9, 10x (times the largest), or N=1e9,D=2e10.")]
Compute = Annotated[list[str] | None, typer.Option(help="What loss for this compute: 1e21 FLOP, or 10x (times the largest run).")]
Draws = Annotated[int, typer.Option(min=0, help="Draws of the bootstrap; 0 leaves intervals out.")]
Seed = Annotated[int, typer.Option(help="Of the bootstrap.")]


@app.command("fit")
def fit_command(
    points: Annotated[Path, typer.Argument(help="A CSV file with headings, or a folder of runs.", metavar="POINTS.csv|RUNS_DIR")],
    out: Annotated[Path, typer.Option("--out", help="Folder for result.json and report.html.")],
    law: Annotated[Law, typer.Option(help="separable: N and D; product: Ne and Nd; log: a score of D.")] = "power-constant",
    x: Annotated[Literal["N", "D", "C"], typer.Option("-x", help="What a law of one size is of: parameters, data or compute.")] = "N",
    columns: Annotated[list[str] | None, typer.Option(help="Heading of a quantity: N='Model Size'. Can be repeated.")] = None,
    method: Annotated[str | None, typer.Option(help="Of the runs, when there are several.")] = None,
    loss: Loss = None,
    score: Annotated[list[float] | None, typer.Option("--score", help="For the law log: how much data reaches this score?")] = None,
    at: At = None,
    compute: Compute = None,
    cost: Annotated[tuple[float, float], typer.Option(help="Of a parameter of encoder and decoder, for the law product.")] = (1.0, 1.0),
    drop: Annotated[int, typer.Option(min=0, help="Leave out so many points with the highest loss.")] = 0,
    fixed: Annotated[list[str] | None, typer.Option("--fix", help="A parameter that is known: E=1.69. Can be repeated.")] = None,
    delta: Annotated[float | None, typer.Option(help="Threshold of the Huber loss; 0.001 for losses, 0.1 for scores.")] = None,
    holdout: Annotated[float, typer.Option(help="Share of the largest sizes held out to check the law's foresight.")] = 0.2,
    draws: Draws = 1000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit a law to points, with intervals, and write its report."""
    with checked():
        from preceptor.scaling.inquiry import Questions, inquire
        from preceptor.scaling.points import read_points

        wrong = "loss" if law == "log" and loss else "score" if law != "log" and score else None
        if wrong:
            raise ValueError(f"{wrong}: expected --{'score' if law == 'log' else 'loss'} for the law {law}, got --{wrong}")
        if min(cost) <= 0:
            raise ValueError(f"cost: expected two numbers above 0, got {cost[0]:g} {cost[1]:g}")
        known = {name: _number("fix", value) for name, value in _pairs("fix", fixed).items()}
        result = inquire(
            read_points(points, columns=_pairs("columns", columns), method=method),
            law,
            x=x,
            questions=Questions(targets=loss or score or (), at=at or (), budgets=compute or (), costs=cost),
            draws=draws,
            seed=seed,
            drop=drop,
            holdout=holdout,
            delta=delta,
            bounds={name: (value, value) for name, value in known.items()},
        )
        _write(result, out, as_json)


@app.command()
def sweep(
    recipe: RecipePath,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the runs, result.json and report.html; what it holds is not trained again.")
    ],
    overrides: Overrides = None,
    sizes: Annotated[str, typer.Option(help="Factors of the student's widths, separated by commas.")] = "0.25,0.35,0.5,0.7,1,1.4,2",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each size.")] = 1,
    law: Annotated[Literal["power", "power-constant"], typer.Option(help="What to fit.")] = "power-constant",
    loss: Loss = None,
    at: At = None,
    compute: Compute = None,
    draws: Draws = 1000,
    as_json: AsJson = False,
) -> None:
    """Train a ladder of students from a recipe, fit a law to their test losses, answer questions. Again after a stop, it goes on."""
    words = [str(recipe), *(overrides or []), "--sizes", sizes, "--seeds", str(seeds), "--out", str(out)]
    with checked(f"preceptor scaling sweep {' '.join(words)}"), bars() as shown:
        from preceptor.recipe import read_recipe
        from preceptor.scaling.inquiry import Questions
        from preceptor.sweeping import run_sweep

        result = run_sweep(
            read_recipe(recipe, overrides or []),
            [_number("sizes", size) for size in sizes.split(",")],
            seeds=seeds,
            law=law,
            questions=Questions(targets=loss or (), at=at or (), budgets=compute or ("10x",)),
            draws=draws,
            out=out,
            bars=shown,
        )
        _write(result, out, as_json)


@app.command()
def sources(
    runs: Annotated[Path, typer.Argument(help="A CSV file with columns source, D, score and loss.", metavar="RUNS.csv")],
    budget: Annotated[float, typer.Option(help="Tokens of pretraining that are to be spent.")],
    without: Annotated[float | None, typer.Option(help="Score of the same fine-tuning without pretraining.")] = None,
    columns: Annotated[list[str] | None, typer.Option(help="Heading of a quantity: D='Tokens seen'. Can be repeated.")] = None,
    ceiling: Annotated[float, typer.Option(help="The best possible score.")] = 100.0,
    draws: Draws = 1000,
    as_json: AsJson = False,
) -> None:
    """Which pretraining data suit a task: every source's checkpoints, fine-tuned alike, foretell its score at a budget."""
    with checked():
        from preceptor.scaling.points import read_points
        from preceptor.scaling.sources import compare_sources

        points = read_points(runs, columns=_pairs("columns", columns))
        names = points.names("source")
        if names is None:
            raise ValueError(f"source: expected a column source in {points.source}, got {', '.join(points.table)}")
        rows = zip(names, *(points.column(name).tolist() for name in ("D", "score", "loss")), strict=True)
        found = compare_sources(list(rows), budget=budget, without=without, draws=draws, ceiling=ceiling)
        described = [_described(one) for one in found]
        if as_json:
            print(json.dumps({"budget": budget, "sources": described}))
            return
        for row in described:
            between = "" if row["low"] is None else f" ({row['low']:.4g} to {row['high']:.4g})"
            foretold = "" if row["foretold"] is None else f", score {row['foretold']:.4g}{between} with {budget:.3g} tokens"
            gain = "" if row["gain"] is None else f", {row['gain']:+.3g} against no pretraining"
            error = "" if row["error"] is None else f"; held-out error {row['error']:.1%}, of a straight line {row['line_error']:.1%}"
            print(f"{row['source']}: {row['verdict']}{foretold}{gain}{error}")
            for warning in row["warnings"]:
                print(f"  warning: {warning}")


def _described(one: Candidate) -> dict[str, Any]:
    """A source as plain values."""
    law = one.source.law
    return {
        "source": one.name,
        **{
            name: getattr(one.source, name)
            for name in ("verdict", "error", "line_error", "covered", "rank_correlation", "drop", "loss_falls")
        },
        **{name: getattr(one, name) for name in ("foretold", "low", "high", "gain")},
        "parameters": None if law is None else {name: float(value) for name, value in law.natural.items()},
        "warnings": list(one.source.warnings),
    }


def _write(result: Mapping[str, Any], out: Path, as_json: bool) -> None:
    from preceptor.core.files import write_whole
    from preceptor.distillation import check_writable
    from preceptor.report.scaling import lines, write_scaling_report

    check_writable(out)
    write_whole(out / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    report = write_scaling_report(result, out)
    print(json.dumps(result, indent=1) if as_json else "\n".join([*lines(result), f"report: {report}"]))


def _pairs(name: str, given: Sequence[str] | None) -> dict[str, str]:
    """``KEY=VALUE`` words as a mapping."""
    pairs = {}
    for word in given or ():
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise ValueError(f"{name}: expected KEY=VALUE, got {word!r}")
        pairs[key] = value
    return pairs


def _number(name: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{name}: expected a number, got {word!r}") from None
