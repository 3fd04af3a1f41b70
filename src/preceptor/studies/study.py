"""`compare`: several methods on one task at equal budget, over seeds, with paired statistics and one report."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import nn

from preceptor.core.files import write_whole
from preceptor.core.method import Method
from preceptor.core.types import Record
from preceptor.data.sources import Augment
from preceptor.data.splits import take
from preceptor.distillation import data_identity, make_method, make_task, make_training, notes_on, refuse_other_run, size_of, write_recipe
from preceptor.models.folder import save_student
from preceptor.preflight import preflight
from preceptor.report.page import summary_table, write_report
from preceptor.result import build_result, write_result
from preceptor.studies.statistics import paired, summary
from preceptor.studies.workers import Tell, check_workers, side_by_side
from preceptor.task import Task
from preceptor.teachers.cache import Cache
from preceptor.training import HIGHER_IS_BETTER, Training
from preceptor.trial import Trial, run_trial

StudyProgress = Callable[[str, Record | None, int, int, int], None]
"""Called as ``(trial, record, updates of the trial, trials done, trials in all)``; the record is None when a trial ends."""

BUDGET = "budget.json"
"""What a budget came to when a study began, in its folder: to resume is to go on with as many updates."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What `compare` gives back.

    Attributes:
        result: everything, as in ``result.json``.
        trials: arm -> trials, one per seed, with the trained students.
        report: path of ``report.html``; None when nothing was written.
    """

    result: dict[str, Any]
    trials: dict[str, list[Trial]]
    report: Path | None

    def table(self) -> Table:
        """The headline table for a terminal."""
        return summary_table(self.result)


def compare(
    *,
    student: Callable[[], nn.Module] | nn.Module,
    train: Any,
    methods: Sequence[str] | Mapping[str, Method | Mapping[str, Any]],
    teacher: nn.Module | Cache | None = None,
    valid: Any = None,
    test: Any = None,
    seeds: int | Sequence[int] = 5,
    baseline: str = "ce",
    metrics: Sequence[str] = ("accuracy",),
    epochs: float | None = None,
    budget: str | None = None,
    training: Training | Mapping[str, Any] | None = None,
    sweep: Mapping[int, Sequence[str]] | None = None,
    sweep_pool: Any = None,
    workers: int = 1,
    out: str | Path | None = None,
    resume: bool = False,
    augment: Augment | None = None,
    roles: Mapping[str, nn.Module] | None = None,
    check_teacher: bool = True,
    identity: Mapping[str, Any] | None = None,
    recipe: str = "",
    title: str | None = None,
    class_names: tuple[str, ...] = (),
    teacher_seconds: float | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    progress: StudyProgress | None = None,
) -> Study:
    """Train the student by every method with every seed, on the same data for the same number of updates, and compare.

    Args:
        student: makes a student; called once per trial with torch seeded by the trial's seed. A module is copied for every trial, so all
            start from its weights.
        train: training data, as in `preceptor.distill`.
        methods: slugs; or name -> hyper-parameters (of the slug of that name, or of ``{"method": SLUG, ...}``) or a method object.
        teacher: shared by all, as in `preceptor.distill`.
        valid: validation data; by default a stratified tenth of ``train``.
        test: data for the final numbers.
        seeds: how many (0, 1, ...), or which; a verdict needs five.
        baseline: the arm that others are compared with; run even when ``methods`` leaves it out.
        metrics: what paired differences are reported in; each one more makes all verdicts more cautious.
        epochs: passes over the training data, instead of ``training.epochs``.
        budget: total time instead, such as "10m" or "90s": the number of updates, equal for all trials and those of a sweep, is chosen to
            fit.
        training: see `preceptor.training.Training`; the same for all methods.
        sweep: further sizes: number of training examples -> methods to run there.
        sweep_pool: the examples that sweep sizes are taken from, the first ones; by default ``train``.
        workers: trials to train side by side, each in a process of its own with one thread; on CPUs only.
        out: study directory: ``trials/``, ``student/`` (the best by validation), ``result.json``, ``report.html``.
        resume: use the trials that ``out`` holds and go on with the others.
        augment, roles, check_teacher, identity, recipe, title, class_names, teacher_seconds, say: as in `preceptor.distill`.
        progress: called after every update and every trial.
    Raises:
        ValueError, TypeError: bad input, one line; nothing was written.
        Interrupted, NonFinite, CheckpointError: see `preceptor.core.run.train`; ``out`` can be resumed.
    """
    task = make_task(train, valid, test, teacher=teacher, augment=augment, roles=roles)
    chosen = _methods(methods, baseline)
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or len(set(numbers)) != len(numbers):
        raise ValueError(f"seeds: expected at least one, each once, got {seeds}")
    for metric in metrics:
        if metric not in HIGHER_IS_BETTER:
            raise ValueError(f"metrics: expected some of {', '.join(HIGHER_IS_BETTER)}, got {metric!r}")
    check_workers(workers)
    if budget is not None:
        _seconds(budget)
    training = make_training(training, epochs)
    folder = Path(out) if out is not None else None
    refuse_other_run(folder, resume)
    found = preflight(task, chosen, _make(student, numbers[0]), training, check_teacher=check_teacher, trials=len(numbers))
    pool = task.train if sweep_pool is None else sweep_pool
    plan = [_Place(name, seed, "trials", task) for name in chosen for seed in numbers]
    for size, names in (sweep or {}).items():
        unknown = [name for name in names if name not in chosen]
        if unknown:
            raise ValueError(f"sweep: expected methods out of {list(chosen)}, got {unknown}")
        if task.cache is not None and size > len(task.train):
            raise ValueError(f"sweep: expected at most the {len(task.train)} examples of the cache, got {size}")
        if size != len(task.train):
            smaller = replace(task, train=take(pool, size, seed=None))
            plan += [_Place(name, seed, f"sweep/{size}", smaller) for name in names for seed in numbers]
    lines = list(found.lines)
    if budget is not None:
        steps = _allowed(budget, sum(found.seconds_per_step[place.arm] for place in plan) / workers, folder, resume)
        training = training.model_copy(update={"steps": steps})
        lines = [
            f"budget: {budget} allows {steps} updates per trial, {len(plan)} trials",
            *(x for x in lines if not x.startswith("time: ")),
        ]
    for line in lines:
        say(line)
    write_recipe(recipe, folder)
    if budget is not None and folder is not None:
        write_whole(folder / BUDGET, json.dumps({"budget": budget, "steps": training.steps}), shared=True)
    with ExitStack() as stack:
        store = folder
        if workers > 1 and folder is None:
            store = Path(stack.enter_context(TemporaryDirectory()))
        trials = _run(
            plan,
            chosen,
            student,
            training,
            workers=workers,
            out=store,
            resume=resume,
            identity={**data_identity(task), **(identity or {})},
            progress=progress or (lambda *_: None),
        )
    arms = {name: [trials[name, seed, "trials"] for seed in numbers] for name in chosen}
    measured = {name: {trial.seed: trial.metrics for trial in arm} for name, arm in arms.items()}
    others = [name for name in chosen if name != baseline]
    ways: dict[str, Any] = {metric: "higher" if HIGHER_IS_BETTER[metric] else "lower" for metric in metrics}
    result = build_result(
        kind="study",
        title=title or f"{', '.join(chosen)} on {size_of(task.train)}",
        task=task,
        arms=arms,
        baselines=[baseline],
        paired=paired(measured, methods=others, baseline=baseline, metrics=ways) if others else [],
        sweep=_sweep_chart(sweep, trials, numbers, len(task.train)),
        recipe=recipe,
        class_names=class_names,
        teacher_seconds=teacher_seconds,
        notes=[
            *notes_on(task, found),
            f"Equal budget: every trial ran {arms[baseline][0].steps:,} updates of {training.batch_size} examples at most;"
            " hyper-parameters are the methods' defaults, none was tuned."
            + (f" {workers} trials ran side by side: training times are of a busy machine." if workers > 1 else ""),
        ],
    )
    page = None
    if folder is not None:
        sign = 1 if training.mode == "max" else -1
        best = max((arm[0] for arm in arms.values()), key=lambda trial: max(sign * v[training.monitor] for v in trial.curve["valid"]))
        save_student(best.student, folder / "student", {"method": best.name, "seed": best.seed, **best.metrics}, tokenizer=task.tokenizer)
        write_result(result, folder)
        page = write_report(result, folder)
    return Study(result=result, trials=arms, report=page)


class _Place(NamedTuple):
    """A trial of the plan: which arm, which seed, in which part of the study."""

    arm: str
    seed: int
    part: str
    task: Task

    @property
    def label(self) -> str:
        size = "" if self.part == "trials" else f", {len(self.task.train)} examples"
        return f"{self.arm} seed {self.seed}{size}"


def _run(
    plan: Sequence[_Place],
    chosen: Mapping[str, Method],
    student: Callable[[], nn.Module] | nn.Module,
    training: Training,
    *,
    workers: int,
    out: Path | None,
    resume: bool,
    identity: Mapping[str, Any],
    progress: StudyProgress,
) -> dict[tuple[str, int, str], Trial]:
    """Run every trial of the plan, side by side where there are several workers: those leave folders, which are then read back."""

    def run(number: int, tell: Tell, resume: bool) -> Trial:
        place = plan[number]
        return run_trial(
            place.task,
            name=place.arm,
            method=chosen[place.arm],
            student=_make(student, place.seed),
            training=training,
            seed=place.seed,
            out=out / place.part / f"{place.arm}-{place.seed}" if out is not None else None,
            resume=resume,
            identity={**identity, "examples": len(place.task.train)},
            progress=tell,
        )

    done = 0

    def report(number: int, record: Record | None, updates: int) -> None:
        nonlocal done
        done += record is None
        progress(plan[number].label, record, updates, done, len(plan))

    if workers > 1:
        for part in (plan[0].task.valid, plan[0].task.measured):
            plan[0].task.teacher_on(part)  # kept by the task: asked once, before the processes part
        side_by_side(lambda number, tell: run(number, tell, resume), len(plan), workers=workers, out=out, progress=report)
        return {(place.arm, place.seed, place.part): run(number, lambda *_: None, True) for number, place in enumerate(plan)}
    trials: dict[tuple[str, int, str], Trial] = {}
    for number, place in enumerate(plan):
        trials[place.arm, place.seed, place.part] = trial = run(number, partial(report, number), resume)
        report(number, None, trial.steps)
    return trials


def _methods(methods: Sequence[str] | Mapping[str, Method | Mapping[str, Any]], baseline: str) -> dict[str, Method]:
    """Method objects by arm, the baseline first."""
    given = dict(methods) if isinstance(methods, Mapping) else {name: {} for name in methods}
    if not given:
        raise ValueError("methods: expected at least one, got none")
    made: dict[str, Method] = {}
    for name, what in given.items():
        if isinstance(what, Method):
            made[name] = what
        else:
            options = dict(what)
            made[name] = make_method(str(options.pop("method", name)), options)
    if baseline not in made:
        made = {baseline: make_method(baseline, {}), **made}
    return {baseline: made[baseline], **made}


def _make(student: Callable[[], nn.Module] | nn.Module, seed: int) -> nn.Module:
    if isinstance(student, nn.Module):
        return deepcopy(student)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return student()


def _sweep_chart(
    sweep: Mapping[int, Sequence[str]] | None, trials: Mapping[tuple[str, int, str], Trial], seeds: Sequence[int], main: int
) -> dict[str, Any] | None:
    if not sweep:
        return None
    points = []
    for size in sorted({*sweep, main}):
        names = sweep.get(size) or sorted({name for names in sweep.values() for name in names})
        for name in names:
            part = "trials" if size == main else f"sweep/{size}"
            values = {seed: {"accuracy": trials[name, seed, part].metrics["accuracy"]} for seed in seeds}
            points.append({"value": size, "name": name, **summary(values)["accuracy"]})
    return {"axis": "training images", "points": points}


def _allowed(budget: str, seconds: float, folder: Path | None, resume: bool) -> int:
    """Updates of each trial: those that the study began with, else those that fit at so many seconds for one update of every trial."""
    kept = folder / BUDGET if folder is not None else None
    if resume and kept is not None and kept.exists():
        saved = json.loads(kept.read_text())
        if saved["budget"] != budget:
            raise ValueError(f"budget: expected {saved['budget']!r}, with which the study in {folder} began, got {budget!r}")
        return saved["steps"]
    return max(1, int(_seconds(budget) / seconds))


def _seconds(budget: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)", budget.strip())
    if match is None:
        raise ValueError(f"budget: expected a time such as '90s', '10m' or '2h', got {budget!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
