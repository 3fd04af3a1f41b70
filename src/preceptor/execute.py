"""Doing what a recipe says: data and teacher at hand, then `distill` or `compare`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preceptor.compare.study import Study, StudyProgress, compare
from preceptor.data.augment import augmentation
from preceptor.data.datasets import Data, load
from preceptor.data.examples import Examples
from preceptor.data.sources import Augment
from preceptor.data.splits import holdout, take
from preceptor.distillation import Result, distill, make_method, make_task
from preceptor.models.adapters import resolve
from preceptor.recipe import Recipe, dump
from preceptor.trial import Progress, run_trial

Say = Callable[[str], None]


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


def prepare(recipe: Recipe, *, say: Say, progress: Progress | None = None) -> Prepared:
    """Load the data, and load or train the teacher."""
    described = recipe.data
    options = described.model_dump(include={"image_column", "label_column", "channels", "test_rate"})
    size = tuple(described.size) if isinstance(described.size, list) else described.size
    data = load(described.name, size=size, **options)  # pyright: ignore[reportArgumentType]
    pool, valid = holdout(data.train, rate=described.valid_rate, seed=described.split_seed)
    train = pool if described.train_images is None else take(pool, described.train_images, seed=None)
    teacher, seconds = _teacher(recipe, data, pool, valid, say=say, progress=progress)
    views = augmentation(train, **described.augment.model_dump())
    return Prepared(recipe=recipe, data=data, pool=pool, train=train, valid=valid, teacher=teacher, teacher_seconds=seconds, augment=views)


def _teacher(
    recipe: Recipe, data: Data, pool: Examples, valid: Examples, *, say: Say, progress: Progress | None
) -> tuple[nn.Module | None, float | None]:
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
    say(f"teacher: {'kept' if kept else 'training on ' + str(len(images)) + ' examples, kept'} in {folder}")
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
        progress=progress,
    )
    return trial.student.eval(), trial.train_seconds


def run_distill(
    recipe: Recipe, *, out: Path, resume: bool, say: Say, progress: Progress | None, teacher_progress: Progress | None
) -> Result:
    """Do what a recipe's ``method`` says."""
    made = prepare(recipe, say=say, progress=teacher_progress)
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
        say=say,
        progress=progress,
    )


def run_compare(
    recipe: Recipe, *, out: Path, resume: bool, say: Say, progress: StudyProgress | None, teacher_progress: Progress | None
) -> Study:
    """Do what a recipe's ``study`` says."""
    study = recipe.study
    made = prepare(recipe, say=say, progress=teacher_progress)
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
        say=say,
        progress=progress,
    )


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
