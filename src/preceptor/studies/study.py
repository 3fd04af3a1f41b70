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

from preceptor.catalog import read
from preceptor.core.files import write_whole
from preceptor.core.method import Method
from preceptor.core.types import Record
from preceptor.data.sources import Augment
from preceptor.data.splits import take
from preceptor.distillation import data_identity, make_method, make_task, make_training, notes_on, refuse_other_run, size_of, write_recipe
from preceptor.models.folder import save_student
from preceptor.preflight import Preflight, preflight
from preceptor.report.page import summary_table, write_report
from preceptor.result import build_result, write_result
from preceptor.studies.statistics import paired, ranks, summary
from preceptor.studies.tuning import Tuning, candidates
from preceptor.studies.workers import Tell, check_workers, side_by_side
from preceptor.task import Task
from preceptor.teachers.cache import Cache
from preceptor.training import HIGHER_IS_BETTER, Attack, Training
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
    tune: Tuning | Mapping[str, Any] | None = None,
    equal_compute: bool = False,
    attack: Attack | Mapping[str, Any] | None = None,
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
        methods: slugs; or name -> hyper-parameters (of the slug of that name, or of ``{"method": SLUG, ...}``) or a method object. The
            entry ``search`` holds lists of values that tuning chooses from.
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
        tune: first choose hyper-parameters, with as many trials for every arm; see `preceptor.studies.tuning.Tuning`.
        equal_compute: train every arm once more, each for as many updates as fit the time that the dearest arm took with its teacher.
        attack: measure ``robust_accuracy`` too; see `preceptor.training.Attack`.
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
    task.attack = Attack(**attack) if isinstance(attack, Mapping) else attack
    tuning = Tuning(**tune) if isinstance(tune, Mapping) else tune
    given = _given(methods, baseline)
    chosen = {name: _method(name, what) for name, what in given.items()}
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or len(set(numbers)) != len(numbers):
        raise ValueError(f"seeds: expected at least one, each once, got {seeds}")
    if tuning is not None and tuning.seed in numbers:
        raise ValueError(f"tune.seed: expected none of the seeds that count, got {tuning.seed}")
    for metric in metrics:
        if metric not in HIGHER_IS_BETTER:
            raise ValueError(f"metrics: expected some of {', '.join(HIGHER_IS_BETTER)}, got {metric!r}")
    if "robust_accuracy" in metrics and task.attack is None:
        raise ValueError("attack: expected one to measure robust_accuracy, got none")
    check_workers(workers)
    if budget is not None:
        _seconds(budget)
        if tuning is not None or equal_compute:
            raise ValueError(f"budget: expected none beside {'tune' if tuning else 'equal_compute'}, got {budget!r}")
    training = make_training(training, epochs)
    tried = {} if tuning is None else {name: _candidates(name, what, training, tuning) for name, what in given.items()}
    folder = Path(out) if out is not None else None
    refuse_other_run(folder, resume)
    each = len(numbers) * (1 + equal_compute) + (tuning.trials if tuning else 0)
    found = preflight(task, chosen, _make(student, numbers[0]), training, check_teacher=check_teacher, trials=each)
    pool = task.train if sweep_pool is None else sweep_pool
    sizes = {}
    for size, names in (sweep or {}).items():
        unknown = [name for name in names if name not in chosen]
        if unknown:
            raise ValueError(f"sweep: expected methods out of {list(chosen)}, got {unknown}")
        if task.cache is not None and size > len(task.train):
            raise ValueError(f"sweep: expected at most the {len(task.train)} examples of the cache, got {size}")
        if size != len(task.train):
            sizes[size] = replace(task, train=take(pool, size, seed=None))
    lines = list(found.lines)
    if budget is not None:
        trials_of = {name: len(numbers) * (1 + sum(name in (sweep or {})[size] for size in sizes)) for name in chosen}
        needed = sum(found.seconds_per_step[name] * times for name, times in trials_of.items())
        kept = _kept(folder, resume, budget, lambda: {"steps": max(1, int(_seconds(budget) / (needed / workers)))})
        training = training.model_copy(update={"steps": kept["steps"]})
        lines = [
            f"budget: {budget} allows {training.steps} updates per trial, {sum(trials_of.values())} trials",
            *(x for x in lines if not x.startswith("time: ")),
        ]
    for line in lines:
        say(line)
    write_recipe(recipe, folder)
    with ExitStack() as stack:
        store = folder
        if workers > 1 and folder is None:
            store = Path(stack.enter_context(TemporaryDirectory()))
        run = partial(
            _run,
            student=student,
            workers=workers,
            out=store,
            resume=resume,
            identity={**data_identity(task), **(identity or {})},
            progress=progress or (lambda *_: None),
        )
        arms = {name: Arm(method, training) for name, method in chosen.items()}
        choices: list[dict[str, Any]] = []
        total, steps = 0.0, {}
        if tuning is not None:
            plan = [_Place(n, tuning.seed, f"tuning/{i}", task, arm) for n, (_, some) in tried.items() for i, arm in enumerate(some)]
            arms, choices = _best(tried, run(plan), tuning.seed)
            for choice in choices:
                say(f"tuned: {choice['name']} {choice['chosen']}, {training.monitor} {choice['value']:.4f} on validation data")
        plan = [_Place(name, seed, "trials", task, arm) for name, arm in arms.items() for seed in numbers]
        for size, smaller in sizes.items():
            plan += [_Place(name, seed, f"sweep/{size}", smaller, arms[name]) for name in (sweep or {})[size] for seed in numbers]
        if equal_compute:
            total, steps = _equal_compute(given, found, teacher_seconds, folder, resume)
            longer = {name: arm._replace(training=arm.training.model_copy(update={"steps": steps[name]})) for name, arm in arms.items()}
            plan += [_Place(name, seed, "compute", task, arm) for name, arm in longer.items() for seed in numbers]
        trials = run(plan)
    groups = {name: [trials[name, seed, "trials"] for seed in numbers] for name in arms}
    others = [name for name in arms if name != baseline]
    ways: dict[str, Any] = {metric: "higher" if HIGHER_IS_BETTER[metric] else "lower" for metric in metrics}

    def against_baseline(groups: Mapping[str, Sequence[Trial]]) -> list[dict[str, Any]]:
        measured = {name: {trial.seed: trial.metrics for trial in group} for name, group in groups.items()}
        return paired(measured, methods=others, baseline=baseline, metrics=ways) if others else []

    result = build_result(
        kind="study",
        title=title or f"{', '.join(arms)} on {size_of(task.train)}",
        task=task,
        arms=groups,
        baselines=[baseline],
        paired=against_baseline(groups),
        sweep=_sweep_chart(sweep, trials, numbers, len(task.train)),
        recipe=recipe,
        class_names=class_names,
        teacher_seconds=teacher_seconds,
        notes=[
            *notes_on(task, found),
            f"Equal budget: every trial ran {groups[baseline][0].steps:,} updates of {training.batch_size} examples at most; "
            + (f"each arm was tuned by {tuning.trials} trials on validation data." if tuning else "no hyper-parameter was tuned.")
            + (f" {workers} trials ran side by side: training times are of a busy machine." if workers > 1 else ""),
        ],
    )
    if len(groups) > 2:
        by_seed = {name: {trial.seed: trial.metrics for trial in group} for name, group in groups.items()}
        places = ranks(by_seed, metrics[0], ways[metrics[0]])
        for row in result["rows"]:
            if row["name"] in places and row["role"] != "teacher":
                row["summary"]["rank"] = places[row["name"]]
    result["tuning"] = choices
    if equal_compute:
        fuller = {name: [trials[name, seed, "compute"] for seed in numbers] for name in arms}
        rows = [
            {"name": name, "steps": steps[name], "summary": summary({trial.seed: trial.metrics for trial in group})}
            for name, group in fuller.items()
        ]
        result["compute"] = {"seconds": total, "teacher_seconds": teacher_seconds, "rows": rows, "paired": against_baseline(fuller)}
    page = None
    if folder is not None:
        best = max((group[0] for group in groups.values()), key=lambda trial: _validated(trial, training))
        save_student(best.student, folder / "student", {"method": best.name, "seed": best.seed, **best.metrics}, tokenizer=task.tokenizer)
        write_result(result, folder)
        page = write_report(result, folder)
    return Study(result=result, trials=groups, report=page)


class Arm(NamedTuple):
    """What an arm trains by."""

    method: Method
    training: Training


class _Place(NamedTuple):
    """A trial of the plan: which arm, which seed, in which part of the study."""

    arm: str
    seed: int
    part: str
    task: Task
    by: Arm

    @property
    def label(self) -> str:
        kind, _, number = self.part.partition("/")
        more = {"trials": "", "sweep": f", {number} examples", "tuning": f", tuning {number}", "compute": ", equal compute"}[kind]
        return f"{self.arm} seed {self.seed}{more}"


def _run(
    plan: Sequence[_Place],
    *,
    student: Callable[[], nn.Module] | nn.Module,
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
            method=place.by.method,
            student=_make(student, place.seed),
            training=place.by.training,
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


Given = Method | Mapping[str, Any]
"""An arm as the caller gave it."""


def _given(methods: Sequence[str] | Mapping[str, Given], baseline: str) -> dict[str, Given]:
    """What makes each arm, the baseline first."""
    given: dict[str, Given] = dict(methods) if isinstance(methods, Mapping) else {name: {} for name in methods}
    if not given:
        raise ValueError("methods: expected at least one, got none")
    return {baseline: given.get(baseline, {}), **given}


def _method(name: str, what: Given, choice: Mapping[str, Any] | None = None) -> Method:
    """The method of an arm, some of its hyper-parameters chosen anew."""
    if isinstance(what, Method):
        return what
    options = {key: value for key, value in what.items() if key not in ("method", "search")}
    return make_method(_slug(name, what), {**options, **(choice or {})})


def _slug(name: str, what: Mapping[str, Any]) -> str:
    return str(what.get("method", name))


def _candidates(name: str, what: Given, training: Training, tuning: Tuning) -> tuple[list[dict[str, Any]], list[Arm]]:
    """The choices that tuning tries for an arm, in words and as they are."""
    search = {} if isinstance(what, Method) else what.get("search", {})
    drawn = candidates(name, search, tuning)
    arms = [Arm(_method(name, what, options), Training(**{**training.model_dump(), **fields})) for fields, options in drawn]
    return [fields | options for fields, options in drawn], arms


def _best(
    tried: Mapping[str, tuple[list[dict[str, Any]], list[Arm]]], trials: Mapping[tuple[str, int, str], Trial], seed: int
) -> tuple[dict[str, Arm], list[dict[str, Any]]]:
    """The best choice of every arm on validation data, and what a report says about it."""
    arms, choices = {}, []
    for name, (described, some) in tried.items():
        values = [_validated(trials[name, seed, f"tuning/{i}"], arm.training) for i, arm in enumerate(some)]
        best = max(range(len(some)), key=values.__getitem__)
        arms[name] = some[best]
        sign = 1 if some[best].training.mode == "max" else -1
        choices.append({"name": name, "trials": len(some), "chosen": described[best], "value": sign * values[best]})
    return arms, choices


def _validated(trial: Trial, training: Training) -> float:
    """The best validation of a trial, larger is better."""
    sign = 1 if training.mode == "max" else -1
    return max(sign * found[training.monitor] for found in trial.curve["valid"])


def _equal_compute(
    given: Mapping[str, Given], found: Preflight, teacher_seconds: float | None, folder: Path | None, resume: bool
) -> tuple[float, dict[str, int]]:
    """Seconds that the dearest arm takes, the training of its teacher included, and the updates of every arm that fit into them."""
    teacher = {
        name: teacher_seconds or 0.0 if isinstance(what, Method) or "teacher" in read(_slug(name, what)).card.needs else 0.0
        for name, what in given.items()
    }

    def make() -> dict[str, Any]:
        each = found.seconds_per_step
        seconds = max(found.steps * each[name] + teacher[name] for name in given)
        return {"seconds": seconds, "steps": {name: max(1, int((seconds - teacher[name]) / each[name])) for name in given}}

    kept = _kept(folder, resume, "equal compute", make)
    return kept["seconds"], kept["steps"]


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


def _kept(folder: Path | None, resume: bool, budget: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a budget came to: as it stands in the folder of a study that is resumed, else made and kept there."""
    kept = folder / BUDGET if folder is not None else None
    if resume and kept is not None and kept.exists():
        saved = json.loads(kept.read_text())
        if saved["budget"] != budget:
            raise ValueError(f"budget: expected {saved['budget']!r}, with which the study in {folder} began, got {budget!r}")
        return saved
    made = {"budget": budget, **make()}
    if kept is not None:
        write_whole(kept, json.dumps(made), shared=True)
    return made


def _seconds(budget: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)", budget.strip())
    if match is None:
        raise ValueError(f"budget: expected a time such as '90s', '10m' or '2h', got {budget!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
