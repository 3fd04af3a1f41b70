"""`distill`: one call from a teacher and a student to a trained, measured, saved student with a report."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from preceptor.catalog import PIECES, load, nearest, read, slugs
from preceptor.composition import compose
from preceptor.core.files import write_whole
from preceptor.core.method import Method
from preceptor.core.run import fingerprint
from preceptor.data.examples import Examples, examples_from
from preceptor.data.sources import Augment
from preceptor.data.splits import check_disjoint, holdout
from preceptor.data.splits import fingerprint as data_fingerprint
from preceptor.data.text import Texts
from preceptor.preflight import Preflight, preflight
from preceptor.report.page import write_report
from preceptor.result import build_result, write_result
from preceptor.task import Task
from preceptor.teachers.cache import Cache
from preceptor.training import Training
from preceptor.trial import Progress, run_trial


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `distill` gives back.

    Attributes:
        student: trained, in eval mode; the same object that went in.
        metrics: of the student, on the test part (on the validation part where no test part was given).
        teacher_metrics: of the teacher on the same part; empty without one.
        result: everything, as in ``result.json``.
        report: path of ``report.html``; None when nothing was written.
    """

    student: nn.Module
    metrics: dict[str, float]
    teacher_metrics: dict[str, float]
    result: dict[str, Any]
    report: Path | None


def distill(
    *,
    student: nn.Module,
    train: Any,
    teacher: nn.Module | Cache | None = None,
    valid: Any = None,
    test: Any = None,
    method: str | Method = "classic-kd",
    options: Mapping[str, Any] | None = None,
    epochs: float | None = None,
    training: Training | Mapping[str, Any] | None = None,
    seed: int = 0,
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
    trackers: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    progress: Progress | None = None,
) -> Result:
    """Train a student from a teacher, measure it, save it.

    Args:
        student: any module that maps inputs to logits (N, C), or returns an output with ``logits``; trained in place, never wrapped.
        train: training data: (x, y) tensors or arrays, a ``torch.utils.data.Dataset`` of (x, y), a ``datasets.Dataset``, or `Examples`.
        teacher: likewise a classifier, of the same classes; or a cache of what one says about ``train``; None for methods that need none.
        valid: validation data, which choose the weights kept; by default a stratified tenth of ``train``, by seed.
        test: data for the final numbers, read once at the end.
        method: a slug of ``preceptor list``, or a method object.
        options: hyper-parameters of a method given by slug.
        epochs: passes over the training data, instead of ``training.epochs``.
        training: optimizer, schedule, batch size and so on, see `preceptor.training.Training`.
        seed: of everything random.
        out: run directory: journal, checkpoints, ``student/``, ``result.json``, ``report.html``.
        resume: go on with the run in ``out``.
        augment: views of the training images, the same for teacher and student; see `preceptor.data.augment`.
        roles: further networks that the method asks for.
        check_teacher: stop when the teacher is no better than chance on the validation data.
        identity: what else makes the run what it is; resuming with another is refused.
        recipe: text kept in the report.
        title: of the report.
        class_names: shown in the report.
        teacher_seconds: what training the teacher took, for the report.
        trackers: "tensorboard", "wandb", "trackio", through accelerate.
        say: called with a line at a time: what the preflight found, where the report is.
        progress: called after every update with the record and the total.
    Raises:
        ValueError, TypeError: bad input, one line; nothing was written.
        Interrupted, NonFinite, CheckpointError: see `preceptor.core.run.train`; ``out`` can be resumed.
    """
    task = make_task(train, valid, test, teacher=teacher, seed=seed, augment=augment, roles=roles)
    chosen = make_method(method, options)
    training = make_training(training, epochs)
    folder = Path(out) if out is not None else None
    refuse_other_run(folder, resume)
    name = method if isinstance(method, str) else type(method).__name__
    found = preflight(task, {name: chosen}, student, training, check_teacher=check_teacher)
    for line in found.lines:
        say(line)
    write_recipe(recipe, folder)
    trial = run_trial(
        task,
        name=name,
        method=chosen,
        student=student,
        training=training,
        seed=seed,
        out=folder,
        resume=resume,
        identity={**data_identity(task), **(identity or {})},
        progress=progress,
        trackers=trackers,
    )
    student.eval()
    result = build_result(
        kind="run",
        title=title or f"{name} on {size_of(task.train)}",
        task=task,
        arms={name: [trial]},
        recipe=recipe,
        class_names=class_names,
        teacher_seconds=teacher_seconds,
        notes=notes_on(task, found),
    )
    report = None
    if folder is not None:
        write_result(result, folder)
        report = write_report(result, folder)
        say(f"report: {report}")
    teacher_metrics = next((row["seeds"][0]["metrics"] for row in result["rows"] if row["role"] == "teacher"), {})
    return Result(student=student, metrics=trial.metrics, teacher_metrics=teacher_metrics, result=result, report=report)


def make_task(
    train: Any,
    valid: Any,
    test: Any,
    *,
    teacher: nn.Module | Cache | None,
    seed: int = 0,
    augment: Augment | None = None,
    roles: Mapping[str, nn.Module] | None = None,
) -> Task:
    """Check the data, split a validation part off where none is given, and see that no part shares an example with another.

    Raises:
        ValueError, TypeError: data that do not pass, or a cache of other data or views.
    """
    training = examples_from(train, name="train")
    classes = training.num_classes
    testing = None if test is None else examples_from(test, classes, name="test")
    if valid is None and isinstance(training, Texts):
        raise ValueError("valid: expected texts of other documents, got none; preceptor.data.text.parts splits documents")
    if valid is None:
        training, validation = holdout(training, rate=0.1, seed=seed)
    else:
        validation = examples_from(valid, classes, name="valid")
    parts: dict[str, Examples] = {"train": training, "valid": validation} | ({} if testing is None else {"test": testing})
    check_disjoint(parts)
    task = Task(train=training, valid=validation, test=testing, augment=augment, roles=roles or {})
    if isinstance(teacher, Cache):
        teacher.check({"data": data_fingerprint(training), "augment": None if augment is None else repr(augment)})
        task.cache = teacher
    else:
        task.teacher = teacher
    return task


def make_method(method: str | Method, options: Mapping[str, Any] | None) -> Method:
    """A method object from a slug and its hyper-parameters.

    ``transform``, ``weight`` and ``cap``, each a slug or ``{name: SLUG, hyper-parameter: value}``, add pieces of other methods; see
    `preceptor.composition`.

    Raises:
        ValueError: unknown slug or hyper-parameter, nearest named; pieces of methods that do not fit; or options beside a method object.
    """
    if isinstance(method, Method):
        if options:
            raise ValueError(f"options: expected none beside a method object, got {sorted(options)}")
        return method
    cls = load(method)
    known = [field.name for field in read(method).fields]
    parts = {piece: options[piece] for piece in PIECES.values() if options and piece in options and piece not in known}
    options = {name: value for name, value in (options or {}).items() if name not in parts}
    for name in options:
        if name not in known:
            raise ValueError(f"method.{name}: expected a hyper-parameter of {method} out of {known}, got {name!r}{nearest(name, known)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    missing = [field.name for field in fields(cls) if field.name not in given and field.default is field.default_factory]  # pyright: ignore
    if missing:
        raise ValueError(f"method.{missing[0]}: expected a value, {method} has no default for it")
    return compose(cls(**given), **{piece: _part(piece, what) for piece, what in parts.items()})


def _part(piece: str, what: Any) -> Method:
    """The method that a recipe's ``transform``, ``weight`` or ``cap`` names, with its hyper-parameters."""
    named = {"name": what} if isinstance(what, str) else what
    offering = [slug for slug in slugs() if piece in read(slug).offers]
    if not isinstance(named, Mapping) or named.get("name") not in offering:
        got = named.get("name") if isinstance(named, Mapping) else named
        raise ValueError(f"method.{piece}: expected one of {', '.join(offering)}, got {got!r}{nearest(str(got), offering)}")
    return make_method(named["name"], {key: value for key, value in named.items() if key != "name"})


def make_training(training: Training | Mapping[str, Any] | None, epochs: float | None) -> Training:
    """Training settings from what a caller gave."""
    made = training if isinstance(training, Training) else Training(**(training or {}))
    return made if epochs is None else Training(**{**made.model_dump(), "epochs": float(epochs), "steps": None})


def refuse_other_run(folder: Path | None, resume: bool) -> None:
    """Refuse a run directory that holds a run, unless it is to be resumed.

    Raises:
        ValueError: it holds one.
    """
    check_writable(folder)
    if folder is None or resume:
        return
    for name in ("metrics.jsonl", "result.json", "recipe.yaml", "trials"):
        if (folder / name).exists():
            raise ValueError(f"out: expected a new or empty directory, got {folder}, which holds another run (--resume goes on with it)")


def check_writable(folder: Path | None) -> None:
    """Refuse a run directory that cannot be made or written to.

    Raises:
        ValueError: it, or the directory it would be made in, is a file or not writable.
    """
    if folder is None:
        return
    nearest_present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest_present.is_dir() or not os.access(nearest_present, os.W_OK | os.X_OK):
        what = "no permission to write" if nearest_present.is_dir() else "a file stands there"
        raise ValueError(f"out: expected a writable directory, got {folder} ({what} in {nearest_present})")


def write_recipe(recipe: str, folder: Path | None) -> None:
    """Put the resolved recipe into a run directory, when there are both."""
    if folder is not None and recipe:
        write_whole(folder / "recipe.yaml", recipe, shared=True)


def data_identity(task: Task) -> dict[str, Any]:
    """What a run was given to learn from, for the check on resuming."""
    teacher = None if task.teacher is None else fingerprint(task.teacher)
    found = {
        "train": data_fingerprint(task.train),
        "valid": data_fingerprint(task.valid),
        "teacher": teacher,
        "augment": repr(task.augment),
    }
    return found if task.cache is None else {**found, "cache": task.cache.digest}


def notes_on(task: Task, found: Preflight) -> list[str]:
    """What every report says about how its numbers came about."""
    where = "the test part, read once at the end" if task.test is not None else "the validation part: no test part was given"
    return [
        f"Numbers are of {where} ({size_of(task.measured)}); weights were chosen on {size_of(task.valid)} of the validation part.",
        f"Trained on {size_of(task.train)}.",
        *found.notes,
    ]


def size_of(part: Examples) -> str:
    """How large a part is, in words."""
    return f"{part.tokens():,} tokens in {len(part)} rows" if isinstance(part, Texts) else f"{len(part)} examples"
