"""Doing what a recipe says: data and teacher at hand, then `distill` or `compare`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preceptor.data.augment import augmentation
from preceptor.data.datasets import Data, load
from preceptor.data.examples import Examples
from preceptor.data.sources import Augment
from preceptor.data.splits import holdout, take
from preceptor.distillation import Result, distill, make_method, make_task
from preceptor.export import Exported, Format, export
from preceptor.models.adapters import resolve
from preceptor.models.folder import load_student
from preceptor.progress import Bars
from preceptor.recipe import Recipe, dump, read_recipe
from preceptor.studies.study import Study, compare
from preceptor.trial import run_trial


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A recipe with its data and teacher at hand."""

    recipe: Recipe
    data: Data
    pool: Examples
    train: Examples
    valid: Examples
    teacher: nn.Module | None
    teacher_seconds: float | None
    augment: Augment | None

    def student(self) -> nn.Module:
        """A new student, from torch's present random state."""
        spec = self.recipe.student
        return resolve(spec, num_classes=self.data.train.num_classes, teacher=self.teacher)


def prepare(recipe: Recipe, *, bars: Bars) -> Prepared:
    """Load the data, and load or train the teacher."""
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    described = recipe.data
    options = described.model_dump(include={"image_column", "label_column", "channels", "test_rate"})
    size = tuple(described.size) if isinstance(described.size, list) else described.size
    data = load(described.name, size=size, **options)  # pyright: ignore[reportArgumentType]
    pool, valid = holdout(data.train, rate=described.valid_rate, seed=described.split_seed)
    train = pool if described.train_images is None else take(pool, described.train_images, seed=None)
    teacher, seconds = _teacher(recipe, data, pool, valid, bars)
    views = augmentation(train, **described.augment.model_dump())
    return Prepared(recipe=recipe, data=data, pool=pool, train=train, valid=valid, teacher=teacher, teacher_seconds=seconds, augment=views)


def _teacher(recipe: Recipe, data: Data, pool: Examples, valid: Examples, bars: Bars) -> tuple[nn.Module | None, float | None]:
    described = recipe.teacher
    if described is None:
        return None, None
    with torch.random.fork_rng():
        torch.manual_seed(described.seed)
        model = resolve(described.model, num_classes=data.train.num_classes)
    if described.train is None:
        return model, None
    images = pool if described.images is None else take(pool, described.images, seed=None)
    views = augmentation(images, **recipe.data.augment.model_dump())
    made_of = [described.model_dump(mode="json", exclude={"folder"}), recipe.data.model_dump(mode="json", exclude={"train_images"})]
    name = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(described.folder) / name
    kept = (folder / "trial.json").exists()
    bars.say(f"teacher: {'kept' if kept else 'training on ' + str(len(images)) + ' examples, kept'} in {folder}")
    task = make_task(images, valid, None, teacher=None, augment=views)
    trial = run_trial(
        task,
        name="teacher",
        method=make_method("ce", {}),
        student=model,
        training=described.train,
        seed=described.seed,
        out=folder,
        resume=True,
        progress=partial(bars.trial, "teacher"),
    )
    return trial.student.eval(), trial.train_seconds


def run_distill(recipe: Recipe, *, out: Path, resume: bool, bars: Bars) -> Result:
    """Do what a recipe's ``method`` says."""
    made = prepare(recipe, bars=bars)
    torch.manual_seed(recipe.seed)
    options = {key: value for key, value in recipe.method.items() if key != "name"}
    return distill(
        student=made.student(),
        train=made.train,
        teacher=made.teacher,
        valid=made.valid,
        test=made.data.test,
        method=recipe.method["name"],
        options=options,
        training=recipe.training,
        seed=recipe.seed,
        out=out,
        resume=resume,
        augment=made.augment,
        check_teacher=recipe.check_teacher,
        identity=identity(recipe),
        recipe=dump(recipe),
        title=recipe.title or None,
        class_names=made.data.class_names,
        teacher_seconds=made.teacher_seconds,
        trackers=tuple(recipe.trackers),
        say=bars.say,
        progress=partial(bars.trial, recipe.method["name"]),
    )


def run_compare(recipe: Recipe, *, out: Path, resume: bool, bars: Bars) -> Study:
    """Do what a recipe's ``study`` says."""
    study = recipe.study
    made = prepare(recipe, bars=bars)
    sweep = None if study.sweep is None else dict.fromkeys(study.sweep.sizes, study.sweep.methods)
    return compare(
        student=made.student,
        train=made.train,
        methods=recipe.arms(),
        teacher=made.teacher,
        valid=made.valid,
        test=made.data.test,
        seeds=study.seeds,
        baseline=study.baseline,
        metrics=study.metrics,
        budget=study.budget,
        training=recipe.training,
        workers=study.workers,
        sweep=sweep,
        sweep_pool=made.pool,
        out=out,
        resume=resume,
        augment=made.augment,
        check_teacher=recipe.check_teacher,
        identity=identity(recipe),
        recipe=dump(recipe),
        title=recipe.title or None,
        class_names=made.data.class_names,
        teacher_seconds=made.teacher_seconds,
        say=bars.say,
        progress=bars.study,
    )


def run_evaluate(run: Path, bars: Bars) -> dict[str, float]:
    """Measure the student of a run directory on the test part of its recipe, beside its teacher.

    Raises:
        ValueError: the directory holds no finished run.
    """
    made, student = _finished(run, bars)
    task = make_task(made.train, made.valid, made.data.test, teacher=made.teacher)
    return task.measure(student, task.measured)[0]


def run_export(run: Path, bars: Bars, *, to: Format, out: Path | None) -> Exported:
    """Export the student of a run directory; calibrated on training images, checked on test images.

    Raises:
        ValueError: the directory holds no finished run, or the export does not do what the student does.
    """
    made, student = _finished(run, bars)
    part = made.data.test
    examples, checks = (e.batch(torch.arange(min(len(e), 256)))["x"] for e in (made.train, part))
    return export(student, examples, to=to, out=out or run / "export", check_inputs=checks)


def _finished(run: Path, bars: Bars) -> tuple[Prepared, nn.Module]:
    for name in ("recipe.yaml", "student"):
        if not (run / name).exists():
            raise ValueError(f"run: expected a finished run directory with {name}, got {run}")
    made = prepare(read_recipe(run / "recipe.yaml"), bars=bars)
    return made, load_student(run / "student", model=made.student())


def identity(recipe: Recipe) -> dict[str, Any]:
    """What may not change between a run and its resumption, one entry per field, so that a refusal names the field."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    walk("", recipe.model_dump(mode="json", exclude={"title", "study", "trackers"}))
    return flat
