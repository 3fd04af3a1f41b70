"""``preceptor simulate``: worlds that are simulated."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from preceptor.commands.shared import AsJson, bars, checked

CaseName = Annotated[
    Literal["swarm", "torus", "dynamic-parallel", "highly-parallel", "mill"], typer.Option(help="A published case, or mill, which is ours.")
]
CentroidName = Annotated[
    Literal["mean", "circular"] | None,
    typer.Option(help="circular is right for a school that a boundary cuts; by default mean, as published, and circular for mill."),
]

app = typer.Typer(help="Simulated worlds.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Simulated worlds."""


@app.command()
def schooling(
    out: Annotated[Path, typer.Option("--out", help="Folder for frames, schooling.nc, CSV files, report.html and picture.png.")],
    changes: Annotated[
        list[str] | None, typer.Argument(help="Parameters to change, such as r_repulsion=2.", metavar="[KEY=VALUE]...")
    ] = None,
    case: CaseName = "swarm",
    agents: Annotated[int | None, typer.Option(min=1, help="Number of fish; box and ring grow so that the density stays.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of the last step.")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Steps between two saved frames; by default about 200 frames.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the start and of the noise.")] = 0,
    centroid: CentroidName = None,
    sphere: Annotated[Literal["sine", "equal-area"], typer.Option(help="Bins of headings: as published, or of equal area.")] = "sine",
    correction: Annotated[bool, typer.Option("--correction", help="Correct the entropies for few fish (Miller and Madow).")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, also to more --steps.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a school of fish swim, measure its order, and write pages and files. Killed, it loses no saved frame."""
    words = [*(changes or []), "--case", case, "--seed", str(seed), "--out", str(out)]
    words += [f"--{name}={value}" for name, value in (("agents", agents), ("steps", steps), ("every", every)) if value is not None]
    words += [f"--{name}={value}" for name, value, usual in (("centroid", centroid, None), ("sphere", sphere, "sine")) if value != usual]
    words += ["--correction"] * correction
    with checked(f"preceptor simulate schooling {' '.join(words)} --resume"), bars() as shown:
        import warnings
        from dataclasses import replace

        from preceptor.distillation import check_writable
        from preceptor.report.schooling import lines, write_picture, write_schooling_report
        from preceptor.simulation.record import Plan
        from preceptor.simulation.run import run
        from preceptor.simulation.zones import CASES, SmallBox

        chosen = CASES[case]
        chosen = chosen if agents is None else chosen.sized(agents)
        pairs = dict(_pair(word) for word in changes or ())
        chosen = replace(chosen, zones=chosen.zones.changed(pairs), steps=steps or chosen.steps)
        check_writable(out)
        if chosen.zones.doubt:
            shown.say(f"warning: {chosen.zones.doubt}")
        plan = Plan(name=case, case=chosen, seed=seed, every=every or max(1, chosen.steps // 200))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SmallBox)  # said above
            result, frames = run(
                plan,
                out,
                resume=resume,
                centroid=centroid or _centroid(case),
                sphere=sphere,
                correction=correction,
                progress=lambda what, done, total: shown.count(case, done, total, "step" if what == "steps" else "measured"),
            )
        report = write_schooling_report(result, frames, out)
        write_picture(result, frames, out / "picture.png")
        if as_json:
            print(json.dumps(result, indent=1))
        else:
            print("\n".join([*lines(result), f"report: {report}", f"data: {out / 'schooling.nc'}"]))


@app.command()
def sweep(
    vary: Annotated[str, typer.Argument(help="The parameter and its values: r_orientation=2,4,8, or =2:14:7, seven from 2 to 14.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for runs.csv, result.json and report.html.")],
    changes: Annotated[
        list[str] | None, typer.Argument(help="Parameters to change at all values, such as noise=0.1.", metavar="[KEY=VALUE]...")
    ] = None,
    case: CaseName = "swarm",
    seeds: Annotated[int, typer.Option(min=1, help="Runs at each value, seeds 0, 1, ...")] = 5,
    agents: Annotated[int | None, typer.Option(min=1, help="Number of fish; box and ring grow so that the density stays.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of the last step.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Steps between two frames that are measured, all in the second half.")] = 5,
    centroid: CentroidName = None,
    sphere: Annotated[Literal["sine", "equal-area"], typer.Option(help="Bins of headings: as published, or of equal area.")] = "sine",
    correction: Annotated[bool, typer.Option("--correction", help="Correct the entropies for few fish (Miller and Madow).")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in --out, also with more values or seeds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let schools swim at several values of one parameter, with several seeds each. Killed, it loses no finished run."""
    with checked(" ".join(["preceptor", *sys.argv[1:], *["--resume"] * (not resume)])), bars() as shown:
        import warnings
        from dataclasses import replace

        from preceptor.distillation import check_writable
        from preceptor.report.school_sweep import lines, write_sweep_report
        from preceptor.simulation.sweep import Sweep
        from preceptor.simulation.sweep import sweep as run_sweep
        from preceptor.simulation.zones import CASES, SmallBox

        name, text = _pair(vary)
        chosen = CASES[case]
        chosen = chosen if agents is None else chosen.sized(agents)
        zones = chosen.zones.changed(dict(_pair(word) for word in changes or ()))
        plan = Sweep(
            name=case,
            case=replace(chosen, zones=zones, steps=steps or chosen.steps),
            parameter=name,
            values=_values(name, text),
            seeds=tuple(range(seeds)),
            every=every,
            centroid=centroid or _centroid(case),
            sphere=sphere,
            correction=correction,
        )
        check_writable(out)
        for doubt in dict.fromkeys(plan.zones(value).doubt for value in plan.values):
            if doubt:
                shown.say(f"warning: {doubt}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SmallBox)  # said above
            result = run_sweep(plan, out, resume=resume, progress=lambda done, total: shown.count(case, done, total, "run"))
        report = write_sweep_report(result, out)
        print(json.dumps(result, indent=1) if as_json else "\n".join([*lines(result), f"report: {report}", f"data: {out / 'runs.csv'}"]))


def _centroid(case: str) -> Literal["mean", "circular"]:
    return "circular" if case == "mill" else "mean"


def _values(name: str, text: str) -> tuple[float, ...]:
    """``2,4,8``, or ``2:14:7``, from 2 to 14 in seven values."""
    try:
        if ":" not in text:
            return tuple(float(part) for part in text.split(","))
        first, last, count = text.split(":")
        low, high, steps = float(first), float(last), int(count)
        if steps < 2:
            raise ValueError
    except ValueError:
        raise ValueError(f"{name}: expected numbers like 2,4,8 or first:last:count with count >= 2, got {text!r}") from None
    return tuple(round(low + (high - low) * i / (steps - 1), 12) for i in range(steps))


def _pair(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not (name and equals and value):
        raise ValueError(f"parameters: expected KEY=VALUE, got {word!r}")
    return name, value
