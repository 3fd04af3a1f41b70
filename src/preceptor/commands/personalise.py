"""``preceptor personalise``: tasks rewritten to students' interests, with a teacher's review in the terminal."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from preceptor.commands.shared import AsJson, checked, fail

app = typer.Typer(help="Tasks rewritten to students' interests, checked, and reviewed by a teacher.", no_args_is_help=True)


@app.command("review")
def review_command(
    problems: Annotated[Path, typer.Argument(help="Problems, JSON lines.", metavar="PROBLEMS.jsonl")],
    profiles: Annotated[Path, typer.Argument(help="Students' interests, JSON lines; they stay on this machine.", metavar="PROFILES.jsonl")],
    catalogue: Annotated[Path, typer.Argument(help="Topics and references that may be used.", metavar="CATALOGUE.yaml")],
    out: Annotated[Path, typer.Option("--out", help="Folder for events.jsonl and delivered.jsonl; what it holds is gone on with.")],
    grain: Annotated[int, typer.Option(min=0, max=4, help="0 original, 1 class, 2 groups, 3 student's topic, 4 student's reference.")] = 2,
    groups: Annotated[int, typer.Option(min=1, help="Topics of a class at grain 2.")] = 3,
    lang: Annotated[Literal["it", "en"], typer.Option(help="Of the tasks.")] = "en",
    age: Annotated[int, typer.Option(min=3, help="Of the students.")] = 12,
    drafts: Annotated[int, typer.Option(min=1, help="Asked for at once; the one with the fewest failures is shown.")] = 1,
    exceptions: Annotated[bool, typer.Option("--exceptions", help="Show only what fails a check; the rest is accepted.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Who writes: a name at --url, smollm2, gguf:FILE or hf:PATH. None: the problems' templates.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Of an OpenAI-compatible server.")] = None,
    key: Annotated[str | None, typer.Option(help="Environment variable that holds its key.")] = None,
) -> None:
    """Draft variants and review them one by one. Stop at any time: the same command goes on."""
    with checked(f"preceptor personalise review {problems} {profiles} {catalogue} --out {out}"):
        from preceptor.core.files import write_whole
        from preceptor.education.personalise.checks import Rules
        from preceptor.education.personalise.events import EventLog
        from preceptor.education.personalise.generate import chat_generator, plan, template_generator
        from preceptor.education.personalise.records import Catalogue, Problem, Profile, lines_of, read_records
        from preceptor.education.personalise.review import Review
        from preceptor.education.personalise.terminal import edit_text, terminal_reviewer
        from preceptor.teachers.chat import ChatStopped, open_chat

        known = Catalogue.read(catalogue)
        asked, students = read_records(problems, Problem), read_records(profiles, Profile)
        variants = [variant for problem in asked for variant in plan(problem, students, grain, known, groups=groups)]
        chat = None if model is None else open_chat(model, url=url, key=key, journal=out / "answers.sqlite")
        generator = template_generator(known) if chat is None else chat_generator(chat, lang=lang)
        with EventLog(out / "events.jsonl") as log:
            review = Review(
                variants,
                asked,
                rules=Rules(catalogue=known, profiles=students, lang=lang, age=age),
                generator=generator,
                log=log,
                drafts=drafts,
                exceptions=exceptions,
            )
            try:
                review.run(terminal_reviewer(input, print, lambda text: edit_text(text, input)))
            except ChatStopped as stop:
                fail(f"{stop}; the same command goes on", 1)
            finally:
                if chat is not None:
                    chat.close()
                write_whole(out / "delivered.jsonl", lines_of(review.outcome().delivered))
        found = review.outcome()
        print(f"{len(found.delivered)} delivered, {len(found.rejected)} rejected, {len(found.open)} open: {out / 'delivered.jsonl'}")
        for name, why in found.failed.items():
            print(f"no draft: {name}: {why}")
        if found.open:
            print("the same command goes on")


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of reviews, one for each teacher.", metavar="DIR...")],
    draws: Annotated[int, typer.Option(min=0, help="Draws of the bootstrap over teachers.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """What reviews cost: minutes, turns, moves, ownership, and whether teachers become faster."""
    with checked():
        from preceptor.education.personalise.effort import effort_report, learning_curve
        from preceptor.education.personalise.events import read_events

        found: dict[str, Any] = {}
        minutes: dict[str, list[float]] = {}
        for folder in folders:
            whole, parts = effort_report(read_events(folder / "events.jsonl"))
            found[str(folder)] = {**_plain(asdict(whole)), "problems": {name: _plain(asdict(part)) for name, part in parts.items()}}
            minutes[str(folder)] = [part.minutes for part in parts.values() if part.minutes > 0]
        curve = learning_curve(minutes, draws=draws) if any(len(values) > 1 for values in minutes.values()) else None
        if as_json:
            print(json.dumps({"teachers": found, "learning_curve": None if curve is None else _plain(asdict(curve))}))
            return
        for name, row in found.items():
            kept = "-" if row["distance"] is None else f"{100 * (1 - row['distance']):.0f} %"
            moves = ", ".join(f"{move} {count}" for move, count in row["moves"].items())
            print(
                f"{name}: {row['minutes']:.1f} active minutes, {row['variants']} variants, {row['turns']} turns, "
                f"{row['characters']} characters written, {kept} of the model's text kept, {row['drafts']} drafts"
            )
            if moves:
                print(f"  moves: {moves}")
        if curve is not None:
            interval = "" if math.isnan(curve.low) else f" ({curve.low:.2f} to {curve.high:.2f})"
            print(f"minutes grow as n^{curve.slope:.2f}{interval}, {curve.teachers} teachers, {curve.problems} problems")


@app.command()
def reactions(
    ratings: Annotated[Path, typer.Argument(help="Columns student, teacher, grain, match, rating, perhaps place.", metavar="RATINGS.csv")],
    as_json: AsJson = False,
) -> None:
    """Whether students prefer specific variants to broad ones."""
    with checked():
        from preceptor.education.personalise.effort import quality_curve
        from preceptor.education.personalise.reactions import reaction_report, read_ratings

        rows = read_ratings(ratings)
        found = reaction_report(rows)
        placed: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            if row.place:
                placed.setdefault(row.teacher, []).append((row.place, row.rating))
        curve = quality_curve(placed) if placed else None
        if as_json:
            print(json.dumps(_plain(asdict(found)) | {"quality_curve": None if curve is None else _plain(asdict(curve))}))
            return
        print(f"specific less broad, within {found.students} students: {_interval(asdict(found.contrast))}")
        for grain, term in found.grains.items():
            print(f"grain {grain}, mixed model: {_interval(asdict(term))}")
        print(f"per unit of match: {_interval(asdict(found.match))}{'' if found.converged else '; the model did not converge'}")
        if curve is not None:
            interval = "" if math.isnan(curve.low) else f" ({curve.low:+.2f} to {curve.high:+.2f})"
            print(f"ratings grow by {curve.slope:+.2f}{interval} per log n of a teacher's n-th problem, {curve.teachers} teachers")


@app.command()
def learn(
    profiles: Annotated[Path, typer.Argument(help="Students' interests, JSON lines.", metavar="PROFILES.jsonl")],
    delivered: Annotated[Path, typer.Argument(help="What a review delivered.", metavar="DELIVERED.jsonl")],
    ratings: Annotated[Path, typer.Argument(help="Columns student, variant, rating.", metavar="RATINGS.csv")],
    out: Annotated[Path, typer.Option("--out", help="File for the new profiles.")],
    rate: Annotated[float, typer.Option(help="Weight of the newest rating, 0 to 1.")] = 0.3,
    scale: Annotated[tuple[float, float], typer.Option(help="The worst rating and the best.")] = (1.0, 5.0),
) -> None:
    """Move profiles towards what students liked, by an exponential average."""
    with checked():
        from preceptor.core.files import write_whole
        from preceptor.education.personalise import learning
        from preceptor.education.personalise.records import Profile, Variant, lines_of, read_records

        known, likings = read_records(profiles, Profile), learning.read_likings(ratings, scale=scale)
        found = learning.learn(known, read_records(delivered, Variant), likings, rate=rate)
        write_whole(out, lines_of(found))
        print(f"{sum(a != b for a, b in zip(known, found, strict=True))} of {len(found)} profiles changed: {out}")


@app.command()
def simulate(
    cost: Annotated[float, typer.Option(min=0.0, help="Of a variant that a teacher looks at, in units of match.")] = 0.01,
    classes: Annotated[int, typer.Option(min=1)] = 20,
    students: Annotated[int, typer.Option(min=1, help="In a class.")] = 30,
    error: Annotated[float, typer.Option(min=0.0, max=1.0, help="Chance that a draft has an error.")] = 0.15,
    recall: Annotated[float, typer.Option(min=0.0, max=1.0, help="Chance that the checks flag it.")] = 0.8,
    false_alarm: Annotated[float, typer.Option(min=0.0, max=1.0, help="Chance that they flag a good draft.")] = 0.1,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: AsJson = False,
) -> None:
    """Compare policies in a simulated school. Consequences of its assumptions, not evidence about teachers."""
    with checked():
        from preceptor.education.personalise.policies import Gate, Policy, School, simulate
        from preceptor.education.personalise.targets import GRAINS

        school = School(classes=classes, students=students, error=error, recall=recall, false_alarm=false_alarm)
        alone: list[Gate] = ["nobody", "checks", "sample", "exceptions"]
        plans = [
            Policy(grain=0, gate="nobody"),
            *(Policy(grain=grain) for grain in range(1, 5)),
            *(Policy(grain=4, gate=gate) for gate in alone),
        ]
        rows = []
        for policy in plans:
            made = simulate(policy, school, seed=seed)
            rows.append({"grain": policy.grain, "gate": policy.gate, **asdict(made), "value": made.value(cost)})
        if as_json:
            print(json.dumps(rows))
            return
        print(f"{'':18}{'gate':12}{'match':>7}{'variants':>10}{'reviewed':>10}{'errors':>8}{'value':>8}")
        for row in rows:
            print(
                f"{GRAINS[row['grain']]:18}{row['gate']:12}{row['match']:7.2f}{row['variants']:10.1f}{row['reviewed']:10.1f}"
                f"{100 * row['errors']:6.1f} %{row['value']:8.2f}"
            )
        print("Consequences of the assumptions, not evidence about teachers.")


def _interval(term: dict[str, float]) -> str:
    return "-" if math.isnan(term["value"]) else f"{term['value']:+.2f} ({term['low']:+.2f} to {term['high']:+.2f})"


def _plain(value: Any) -> Any:
    """NaN as null, which JSON has."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
