"""Doing what a recipe says: data and teacher at hand, then `distill` or `compare`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preceptor.core.run import fingerprint
from preceptor.data.augment import augmentation
from preceptor.data.datasets import load
from preceptor.data.examples import Examples
from preceptor.data.sources import Augment
from preceptor.data.splits import holdout, take
from preceptor.data.text import Texts, pack, parts, read_documents
from preceptor.distillation import Result, distill, make_method, make_task, size_of
from preceptor.export import Exported, Format, export
from preceptor.models.adapters import resolve
from preceptor.models.folder import load_student
from preceptor.models.language import load_language, load_tokenizer
from preceptor.progress import Bars
from preceptor.recipe import Recipe, TeacherRecipe, TextRecipe, dump, read_recipe
from preceptor.studies.study import Study, compare
from preceptor.teachers.cache import Cache, tokenizer_fingerprints
from preceptor.trial import run_trial


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A recipe with its data and teacher at hand."""

    recipe: Recipe
    pool: Examples
    train: Examples
    valid: Examples
    test: Examples
    class_names: tuple[str, ...] = ()
    teacher: nn.Module | None
    teacher_seconds: float | None = None
    augment: Augment | None = None

    def teaches(self) -> nn.Module | Cache | None:
        """What a method learns from: the teacher, or the cache that the recipe names.

        Raises:
            ValueError: the cache is another teacher's or tokenizer's, or was altered; or there is none, and only a server.
        """
        described = self.recipe.teacher
        if described is not None and described.server is not None and described.cache is None:
            raise ValueError(
                f"teacher.cache: expected a cache that preceptor cache filled from the server {described.server}, got none;"
                " a server says nothing about texts while a student trains"
            )
        if described is None or described.cache is None:
            return self.teacher
        expect: dict[str, Any] = tokenizer_fingerprints(self.train.tokenizer) if isinstance(self.train, Texts) else {}
        if described.model is not None:
            expect["described"] = describe_teacher(self.recipe, described)
        if self.teacher is not None:
            expect["teacher"] = fingerprint(self.teacher)
        return Cache.open(described.cache, expect)

    def student(self) -> nn.Module:
        """A new student, from torch's present random state."""
        if self.recipe.text is not None:
            return load_language(self.recipe.student, teacher=self.teacher)
        return resolve(self.recipe.student, num_classes=self.train.num_classes, teacher=self.teacher)


def prepare(recipe: Recipe, *, bars: Bars) -> Prepared:
    """Load the data, and load or train the teacher.

    Raises:
        ValueError, ImportError: one line; see `preceptor.data.datasets.load` and `preceptor.data.text`.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    if recipe.text is not None:
        return _prepare_text(recipe, recipe.text, bars)
    described = recipe.data
    assert described is not None
    options = described.model_dump(include={"image_column", "label_column", "channels", "test_rate"})
    size = tuple(described.size) if isinstance(described.size, list) else described.size
    data = load(described.name, size=size, **options)  # pyright: ignore[reportArgumentType]
    pool, valid = holdout(data.train, rate=described.valid_rate, seed=described.split_seed)
    train = pool if described.train_images is None else take(pool, described.train_images, seed=None)
    views = augmentation(train, **described.augment.model_dump())
    teacher, seconds = None, None
    model = _model_to_load(recipe)
    if recipe.teacher is not None and model is not None:
        images = pool if recipe.teacher.images is None else take(pool, recipe.teacher.images, seed=None)
        made = partial(resolve, model, num_classes=data.train.num_classes)
        teacher_views = augmentation(images, **described.augment.model_dump())
        teacher, seconds = _teacher(recipe, recipe.teacher, made, images, valid, teacher_views, bars)
    return Prepared(
        recipe=recipe,
        pool=pool,
        train=train,
        valid=valid,
        test=data.test,
        class_names=data.class_names,
        teacher=teacher,
        teacher_seconds=seconds,
        augment=views,
    )


def _prepare_text(recipe: Recipe, described: TextRecipe, bars: Bars) -> Prepared:
    teacher_model = None if recipe.teacher is None else recipe.teacher.model
    source = described.tokenizer or teacher_model
    assert isinstance(source, str)  # the recipe was checked
    bars.say(f"tokenizer: {source}")
    tokenizer = load_tokenizer(source)
    documents = parts(
        read_documents(described.documents), valid_rate=described.valid_rate, test_rate=described.test_rate, seed=described.split_seed
    )
    packed = partial(pack, tokenizer=tokenizer, length=described.length, prompt=described.prompt)
    pool = packed(documents["train"], name="train")
    rows = len(pool) if described.rows is None else described.rows
    train = take(pool, rows, seed=None)
    valid = packed(documents["valid"], most=described.valid_rows, name="valid")
    test = packed(documents["test"], most=described.test_rows, name="test")
    bars.say(f"texts: training on {size_of(train)} of {size_of(pool)}; {size_of(valid)} for validation, {size_of(test)} for test")
    teacher, seconds = None, None
    model = _model_to_load(recipe)
    if recipe.teacher is not None and model is not None:
        bars.say(f"teacher: loading {model}")
        made = partial(load_language, model)
        teacher, seconds = _teacher(recipe, recipe.teacher, made, pool, valid, None, bars)
    return Prepared(recipe=recipe, pool=pool, train=train, valid=valid, test=test, teacher=teacher, teacher_seconds=seconds)


def _model_to_load(recipe: Recipe) -> str | dict[str, Any] | None:
    """The teacher's model where it is needed: a cache answers for it, but a student may be made of it. One on a server stays there."""
    if recipe.teacher is None or recipe.teacher.server is not None or (recipe.teacher.cache is not None and not recipe.made_of_teacher):
        return None
    return recipe.teacher.model


def describe_teacher(recipe: Recipe, described: TeacherRecipe) -> str:
    """The teacher of a recipe in words: its model and its server, or, where it is trained, the name it is kept under."""
    model = described.model if isinstance(described.model, str) else json.dumps(described.model, sort_keys=True)
    if described.server is not None:
        return f"{model} at {described.server}"
    return model if described.train is None else f"{model}, trained as {_name(recipe, described)}"


def _name(recipe: Recipe, described: TeacherRecipe) -> str:
    """The folder of a trained teacher: a digest of all that made it."""
    made_of: list[Any] = [described.model_dump(mode="json", exclude={"folder", "cache"})]
    if recipe.data is not None:
        made_of.append(recipe.data.model_dump(mode="json", exclude={"train_images"}))
    if recipe.text is not None:
        made_of.append(recipe.text.model_dump(mode="json", exclude={"rows"}))
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]


def _teacher(
    recipe: Recipe,
    described: TeacherRecipe,
    make: Callable[[], nn.Module],
    examples: Examples,
    valid: Examples,
    views: Augment | None,
    bars: Bars,
) -> tuple[nn.Module, float | None]:
    """The teacher, trained once and kept where the recipe says so, and the seconds that took."""
    with torch.random.fork_rng():
        torch.manual_seed(described.seed)
        model = make()
    if described.train is None:
        return model.eval(), None
    folder = Path(described.folder) / _name(recipe, described)
    kept = (folder / "trial.json").exists()
    bars.say(f"teacher: {'kept' if kept else 'training on ' + str(len(examples)) + ' examples, kept'} in {folder}")
    task = make_task(examples, valid, None, teacher=None, augment=views)
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
        teacher=made.teaches(),
        valid=made.valid,
        test=made.test,
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
        class_names=made.class_names,
        teacher_seconds=made.teacher_seconds,
        trackers=tuple(recipe.trackers),
        say=bars.say,
        progress=partial(bars.trial, recipe.method["name"]),
    )


def run_compare(recipe: Recipe, *, out: Path, resume: bool, bars: Bars) -> Study:
    """Do what a recipe's ``study`` says."""
    study = recipe.study
    if recipe.trackers:
        raise ValueError(f"trackers: expected none in a study, which keeps every trial's numbers in its folder, got {recipe.trackers}")
    made = prepare(recipe, bars=bars)
    sweep = None if study.sweep is None else dict.fromkeys(study.sweep.sizes, study.sweep.methods)
    return compare(
        student=made.student,
        train=made.train,
        methods=recipe.arms(),
        teacher=made.teaches(),
        valid=made.valid,
        test=made.test,
        seeds=range(recipe.seed, recipe.seed + study.seeds),
        baseline=study.baseline,
        metrics=study.metrics,
        budget=study.budget,
        training=recipe.training,
        tune=study.tune,
        equal_compute=study.equal_compute,
        attack=study.attack,
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
        class_names=made.class_names,
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
    task = make_task(made.train, made.valid, made.test, teacher=made.teacher)
    return task.measure(student, task.measured)[0]


def run_export(run: Path, bars: Bars, *, to: Format, out: Path | None) -> Exported:
    """Export the student of a run directory; calibrated on training images, checked on test images.

    Raises:
        ValueError: the directory holds no finished run, or the export does not do what the student does.
    """
    made, student = _finished(run, bars)
    if made.recipe.text is not None:
        raise ValueError(
            f"run: expected a classifier to export, got a language model; transformers loads it as it is from {run / 'student'}"
        )
    part = made.test
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

    walk("", recipe.model_dump(mode="json", exclude={"title", "study", "trackers", "cache"}))
    return flat
