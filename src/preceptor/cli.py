"""The command line. Every command imports what it needs when it runs, so that ``--help`` and ``list`` load neither torch nor an extra.

Exit status: 0 done; 2 bad input, nothing was written; 1 a run failed and can be resumed; 128 + n stopped by signal n, saved.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from preceptor.commands import ednet, personalise, raters, scaling, simulate
from preceptor.commands.annotate import annotate
from preceptor.commands.crossword import crossword
from preceptor.commands.feedback import feedback
from preceptor.commands.pedagogy import pedagogy
from preceptor.commands.shared import AsJson, Out, Overrides, RecipePath, Resume, bars, checked, fail
from preceptor.commands.strategies import strategies

app = typer.Typer(
    name="preceptor",
    help="Teach models from models: knowledge distillation and everything around it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> NoReturn:
    """Run the command line; the entry point. Modules of the working directory can be named in recipes."""
    sys.path.insert(0, "")
    app()
    raise SystemExit(0)


@app.command("list")
def list_command(
    task: Annotated[str | None, typer.Option(help="Only methods for this task, such as classification.")] = None, as_json: AsJson = False
) -> None:
    """List the methods."""
    from dataclasses import asdict

    from preceptor.catalog import list_methods

    cards = list_methods(task)
    if as_json:
        print(json.dumps([asdict(card) for card in cards], indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("method", "kind", "needs", "title", "paper"):
        table.add_column(heading, overflow="fold")
    for card in cards:
        table.add_row(
            card.slug, card.kind, ", ".join(card.needs), card.title, card.authors + (f", arXiv:{card.arxiv}" if card.arxiv else "")
        )
    Console().print(table)


@app.command()
def show(slug: Annotated[str, typer.Argument(help="A method of `preceptor list`.")], as_json: AsJson = False) -> None:
    """Show a method: paper, equation, hyper-parameters with their sources, and a recipe that runs."""
    from dataclasses import asdict

    from preceptor.catalog import describe, read

    try:
        entry = read(slug)
    except ValueError as error:
        fail(error, 2)
    print(json.dumps(asdict(entry), indent=1) if as_json else describe(entry))


@app.command()
def distill(recipe: RecipePath, overrides: Overrides = None, out: Out = None, resume: Resume = False, as_json: AsJson = False) -> None:
    """Train one student by the recipe's method, measure it, save it, write its report."""
    folder = out or Path("runs") / recipe.stem
    go_on = f"preceptor distill {' '.join([str(recipe), *(overrides or [])])} --out {folder} --resume"
    with checked(go_on), bars() as shown:
        from preceptor.execute import run_distill
        from preceptor.recipe import read_recipe

        described = read_recipe(recipe, overrides or [])
        result = run_distill(described, out=folder, resume=resume, bars=shown)
    _print_result(result.result, as_json, folder)


@app.command()
def compare(
    recipe: RecipePath,
    overrides: Overrides = None,
    methods: Annotated[str | None, typer.Option(help="Slugs, separated by commas, instead of the recipe's.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds, instead of the recipe's.")] = None,
    out: Out = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Run several methods with several seeds at equal budget and report what each buys."""
    folder = out or Path("runs") / recipe.stem
    changes = list(overrides or [])
    changes += [f"study.methods=[{methods}]"] if methods else []
    changes += [f"study.seeds={seeds}"] if seeds else []
    go_on = f"preceptor compare {' '.join([str(recipe), *changes])} --out {folder} --resume"
    with checked(go_on), bars() as shown:
        from preceptor.execute import run_compare
        from preceptor.recipe import read_recipe

        described = read_recipe(recipe, changes)
        study = run_compare(described, out=folder, resume=resume, bars=shown)
    _print_result(study.result, as_json, folder)


@app.command()
def cache(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the cache; by default the recipe's teacher.cache, or runs/NAME-cache.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the recipe's teacher about every training example once and keep its answers; again after a stop, it goes on."""
    go_on = f"preceptor cache {' '.join([str(recipe), *(overrides or [])])}{f' --out {out}' if out else ''}"
    with checked(go_on), bars() as shown:
        from preceptor.caching import run_cache
        from preceptor.recipe import read_recipe

        made = run_cache(read_recipe(recipe, overrides or []), out=out, name=recipe.stem, bars=shown)
    facts = {"folder": str(made.folder), "items": made.items, "bytes_per_item": made.bytes_per_item, "kl_bound": made.kl_bound}
    print(json.dumps(facts, indent=1) if as_json else f"cache: {made}\nuse it with: teacher.cache={made.folder}")


@app.command()
def evaluate(run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")], as_json: AsJson = False) -> None:
    """Measure a saved student again on the test part of its recipe."""
    with checked(), bars() as shown:
        from preceptor.execute import run_evaluate

        metrics = run_evaluate(run, shown)
    if as_json:
        print(json.dumps(metrics, indent=1))
    else:
        print("\n".join(f"{name:18} {value:.4f}" for name, value in metrics.items()))


@app.command()
def reproduce(
    slug: Annotated[str | None, typer.Argument(help="A method of `preceptor list`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All methods.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; a verdict needs five.")] = 5,
    size: Annotated[Literal["smoke", "full"], typer.Option(help="smoke is a quick look without a verdict.")] = "full",
    verdicts: Annotated[Path | None, typer.Option(help="File of verdicts to bring up to date, such as docs/verdicts.json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a method's own experiment over seeds and say whether its claim shows."""
    if every == (slug is not None):
        fail("reproduce: expected a slug or --all, one of the two", 2)
    from dataclasses import asdict

    with checked(), bars() as shown:
        from preceptor.catalog import read, slugs
        from preceptor.miniature.run import reproduce as run_miniature

        claiming = [name for name in slugs() if read(name).card.kind != "baseline"]
        chosen = claiming if every else [read(str(slug)).card.slug]
        if chosen[0] not in claiming:
            raise ValueError(f"slug: expected a method with a claim of its own, got {slug!r}, a baseline")
        found = [run_miniature(name, seeds=range(seeds), size=size, verdicts=verdicts, progress=shown.say) for name in chosen]
    if as_json:
        print(json.dumps([measurements.to_json() for measurements in found], indent=1))
        return
    for measurements in found:
        for claim, verdict in zip(measurements.claims, measurements.verdicts, strict=True):
            pair = {**asdict(claim), **asdict(verdict)}
            if claim.direction == "lower":  # a verdict counts in the direction of its claim: baseline minus method
                pair |= {"method": claim.baseline, "baseline": claim.method}
            print(f"{measurements.slug}: {claim.name}\n  {_sentence(pair)}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    to: Annotated[Literal["onnx", "torch-export", "int8"], typer.Option(help="Format of the artefact.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the artefact; by default RUN/export.")] = None,
    as_json: AsJson = False,
) -> None:
    """Export a saved student and check it in a fresh process: agreement, size, latency."""
    with checked(), bars() as shown:
        from dataclasses import asdict

        from preceptor.execute import run_export

        found = asdict(run_export(run, shown, to=to, out=out))
    print(json.dumps(found, indent=1) if as_json else "\n".join(f"{name:18} {value}" for name, value in found.items()))


@app.command()
def docs(
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("docs/methods.md"),
    check: Annotated[bool, typer.Option(help="Write nothing; exit 1 when the file is stale.")] = False,
) -> None:
    """Write the documentation's catalogue of methods from their cards."""
    from preceptor.catalog import catalogue_page

    page = catalogue_page()
    if not check:
        out.write_text(page, encoding="utf-8")
        print(out)
    elif not out.exists() or out.read_text(encoding="utf-8") != page:
        fail(f"docs: {out} is stale, run: preceptor docs --out {out}", 1)


def _print_result(result: dict[str, Any], as_json: bool, folder: Path) -> None:
    if as_json:
        print(json.dumps(result, indent=1))
        return
    from rich.console import Console

    from preceptor.report.page import summary_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(summary_table(result))
    for pair in result["paired"]:
        console.print(_sentence(pair), markup=False, highlight=False)
    for label, path in (("report", folder / "report.html"), ("student", folder / "student")):
        console.print(f"{label}: {path}", markup=False, highlight=False, soft_wrap=True)


def _sentence(pair: dict[str, Any]) -> str:
    span = "" if pair["low"] is None else f", 95 % interval {pair['low']:+.4f} to {pair['high']:+.4f}"
    p_holm = "" if pair["p_holm"] is None else f", Holm p = {pair['p_holm']:.2g}"
    return f"{pair['method']} - {pair['baseline']} in {pair['metric']}: {pair['mean']:+.4f}{span}{p_holm}: {pair['verdict']}"


app.add_typer(scaling.app, name="scaling")
app.add_typer(simulate.app, name="simulate")
app.add_typer(ednet.app, name="ednet")
app.add_typer(personalise.app, name="personalise")
app.add_typer(raters.app, name="raters")
for command in (annotate, pedagogy, feedback, crossword, strategies):
    app.command()(command)

if __name__ == "__main__":
    main()
