"""A recipe: the validated description of a run or a study, read from YAML.

Everything that can be refused is refused before anything is loaded or written, in one line that names the field, what was expected and
what came.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from preceptor.catalog import nearest, read
from preceptor.distillation import make_method
from preceptor.studies.tuning import Tuning
from preceptor.teachers.targets import Kind, Precision
from preceptor.training import BESIDE_TEACHER, HIGHER_IS_BETTER, Attack, Training


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AugmentRecipe(_Strict):
    """Views of the training images, seeded by example and epoch."""

    crop: Annotated[int, Field(ge=0)] = 0
    """Pixels of padding before a random crop."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of mirroring."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup's Beta distribution; 0 is off."""
    seed: int = 0


class DataRecipe(_Strict):
    """What to train on and what to be judged by."""

    name: str
    """``mnist5k``, ``digits``, ``folder:PATH``, ``hf:PATH`` or ``MODULE:FACTORY``; see `preceptor.data.datasets.load`."""
    image_column: str | None = None
    label_column: str | None = None
    size: int | list[int] | None = None
    """Pixels to resize to, or [height, width]."""
    channels: int | None = None
    test_rate: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Part split off for test where a data set has none."""
    valid_rate: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Part of the training data split off for validation, before anything is trained."""
    split_seed: int = 0
    """Which examples go to validation."""
    train_images: Annotated[int, Field(ge=1)] | None = None
    """The student trains on the first so many; by default on all."""
    augment: AugmentRecipe = AugmentRecipe()


class TextRecipe(_Strict):
    """Which texts to train a language model on and to judge it by; parts are split by document."""

    documents: str
    """``python``, a .jsonl or .txt file, or a folder; see `preceptor.data.text.read_documents`."""
    tokenizer: str | None = None
    """``smollm2``, ``gguf:FILE`` or ``hf:PATH``; by default the teacher's."""
    length: Annotated[int, Field(ge=2)] = 256
    """Tokens in a row; documents are packed and never see each other."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """The student trains on the first so many rows; by default on all."""
    prompt: Annotated[int, Field(ge=1)] | None = None
    """Tokens at the beginning of each row that the student goes on from, for methods that train on what it writes."""
    valid_rows: Annotated[int, Field(ge=1)] | None = None
    test_rows: Annotated[int, Field(ge=1)] | None = None
    valid_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Part of the documents split off for validation."""
    test_rate: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Part of the documents split off for test."""
    split_seed: int = 0
    """Which documents go to which part."""


class TeacherRecipe(_Strict):
    """Which model teaches, and how it is trained where it is not trained yet."""

    model: str | dict[str, Any] | None = None
    """See `preceptor.models.adapters.resolve`, for language models `preceptor.models.language.load_language`; with ``server`` its name
    there."""
    server: str | None = None
    """Address of a server of language models that returns log-probabilities of prompts, see `preceptor.teachers.server`: ``preceptor
    cache`` fills a cache from it."""
    cache: str | None = None
    """A folder that ``preceptor cache`` wrote: it answers in the teacher's stead, which is then not loaded."""
    train: Training | None = None
    """Train it once by cross-entropy and keep it in ``folder``; absent: it comes with its weights."""
    images: Annotated[int, Field(ge=1)] | None = None
    """It trains on the first so many; by default on all."""
    seed: int = 0
    folder: str = "runs/teachers"
    """Trained teachers are kept here, by what made them."""


class CacheRecipe(_Strict):
    """What ``preceptor cache`` keeps of a teacher's answers; see `preceptor.teachers.cache.Spec`."""

    kind: Kind = "logits"
    k: Annotated[int, Field(ge=1)] | None = None
    """Classes kept of each item, for ``top-k`` and ``sample``."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the softmax of ``top-k`` and ``sample``; methods learn at the same."""
    precision: Precision | None = None
    """``float32``, ``float16`` or ``compact``; by default ``compact`` for ``top-k`` and ``sample``, else ``float32``."""
    seed: int = 0
    """Of a sample."""
    layers: list[str] = []
    """The teacher's layers, for ``features``."""


class SweepRecipe(_Strict):
    """Further training-set sizes of a study."""

    sizes: Annotated[list[int], Field(min_length=1)]
    methods: Annotated[list[str], Field(min_length=1)]


class StudyRecipe(_Strict):
    """What ``preceptor compare`` runs."""

    methods: Annotated[list[str | dict[str, Any]], Field(min_length=1)] = ["classic-kd", "dkd"]
    """Slugs, or ``{name: SLUG, hyper-parameter: value, label: NAME}``."""
    seeds: Annotated[int, Field(ge=1)] = 5
    baseline: str = "ce"
    metrics: Annotated[list[str], Field(min_length=1)] = ["accuracy"]
    """Paired differences are tested in these."""
    budget: str | None = None
    """Total time, such as "10m", instead of ``training.epochs``."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Trials to train side by side, each in a process with one thread; on CPUs only."""
    sweep: SweepRecipe | None = None
    tune: Tuning | None = None
    """Choose hyper-parameters first, with as many trials for every arm; an arm's ``search`` holds lists of values to choose from."""
    equal_compute: bool = False
    """Train every arm once more, each for as many updates as fit the time that the dearest takes with its teacher."""
    attack: Attack | None = None
    """Measure ``robust_accuracy`` too."""

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in HIGHER_IS_BETTER:
                raise ValueError(f"expected some of {', '.join(HIGHER_IS_BETTER)}, got {name!r}{nearest(name, HIGHER_IS_BETTER)}")
        return names


class Recipe(_Strict):
    """A whole recipe: either ``data`` or ``text``; ``method`` is what ``distill`` runs, ``study`` what ``compare`` runs."""

    title: str = ""
    data: DataRecipe | None = None
    text: TextRecipe | None = None
    teacher: TeacherRecipe | None = None
    student: str | dict[str, Any]
    """See `preceptor.models.adapters.resolve` and, for language models, `preceptor.models.language.load_language`; also ``{shrink: 0.25}``
    or ``{keep_layers: 2}`` of the teacher."""
    method: dict[str, Any] = {"name": "classic-kd"}
    """``name``: a slug; the rest are its hyper-parameters."""
    training: Training = Training()
    seed: int = 0
    """Of a run; the first seed of a study."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of torch on the CPU; by default torch's choice."""
    check_teacher: bool = True
    """Stop when the teacher is no better than chance on the validation part."""
    trackers: list[str] = []
    """Any of tensorboard, wandb, trackio, for ``distill``; off by default."""
    study: StudyRecipe = StudyRecipe()
    cache: CacheRecipe = CacheRecipe()

    @field_validator("method", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("trackers")
    @classmethod
    def _known_trackers(cls, names: list[str]) -> list[str]:
        known = ("tensorboard", "wandb", "trackio")
        for name in names:
            if name not in known:
                raise ValueError(f"expected some of {', '.join(known)}, got {name!r}{nearest(name, known)}")
        return names

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if (self.data is None) == (self.text is None):
            raise ValueError(f"data: expected either data or text, got {'neither' if self.data is None else 'both'}")
        brings = self.teacher is not None and isinstance(self.teacher.model, str) and self.teacher.server is None
        if self.text is not None and self.text.tokenizer is None and not brings:
            raise ValueError("text.tokenizer: expected smollm2, gguf:FILE or hf:PATH where no teacher brings one, got nothing")
        if self.teacher is not None and self.teacher.server is not None:
            self._check_server(self.teacher)
        self.check_method(self.method)
        if self.teacher is not None and self.teacher.model is None and self.teacher.cache is None:
            raise ValueError("teacher.model: expected a model, or a folder in teacher.cache, got neither")
        if self.made_of_teacher and (self.teacher is None or self.teacher.model is None):
            raise ValueError("student: expected a teacher to make smaller, got none")
        if self.teacher is not None and self.teacher.cache is not None and self.training.monitor in BESIDE_TEACHER:
            raise ValueError(f"training.monitor: expected a metric that needs no teacher beside a cache, got {self.training.monitor!r}")
        return self

    def _check_server(self, teacher: TeacherRecipe) -> None:
        if self.text is None:
            raise ValueError("teacher.server: expected text, as it is asked about tokens, got data")
        if not isinstance(teacher.model, str):
            raise ValueError(f"teacher.model: expected the name of the model on the server, got {teacher.model!r}")
        if teacher.train is not None:
            raise ValueError("teacher.train: expected none, as the model on the server is trained, got some")
        if self.made_of_teacher:
            raise ValueError("student: expected a teacher that is here to make smaller, got one on a server")

    @property
    def made_of_teacher(self) -> bool:
        """Whether the student is made of the teacher's layers or widths."""
        spec = self.student
        if isinstance(spec, dict) and "lora" in spec:
            spec = spec.get("of", {"keep_layers": 1})
        return isinstance(spec, dict) and bool({"shrink", "keep_layers"} & spec.keys())

    def check_method(self, method: Mapping[str, Any]) -> None:
        """Refuse a method that does not exist, takes no such hyper-parameter, or lacks what it needs."""
        if "name" not in method:
            raise ValueError("method: expected name: SLUG, got none")
        slug = method["name"]
        make_method(slug, {key: value for key, value in method.items() if key not in ("name", "label", "search")})
        card = read(slug).card
        task = "language" if self.text is not None else "classification"
        if task not in card.tasks:
            given = "text" if self.text is not None else "data"
            raise ValueError(
                f"method: expected one for {task}, as the recipe has {given}, got {slug}, which is for {', '.join(card.tasks)}"
            )
        needs = card.needs
        if "teacher" in needs and self.teacher is None:
            raise ValueError(f"teacher: expected one, {slug} needs a teacher")
        if "subclasses" in needs and isinstance(self.student, dict) and "reference" in self.student and "subclasses" not in self.student:
            raise ValueError(f"student.subclasses: expected a number of them, {slug} needs a head of subclasses, got none")
        if "sigmoids" in needs and isinstance(self.student, dict) and "reference" in self.student:
            for field, wanted in (("reference", "mlp"), ("activation", "sigmoid")):
                if (got := self.student.get(field, "relu")) != wanted:
                    raise ValueError(f"student.{field}: expected {wanted}, {slug} needs linear layers with sigmoids between, got {got}")
        if "features" in needs:
            for field in ("student_layers", "teacher_layers"):
                if not method.get(field):
                    raise ValueError(f"method.{field}: expected names of layers, {slug} needs features, got none")

    def arms(self) -> dict[str, dict[str, Any]]:
        """The methods of the study by label, hyper-parameters included."""
        arms: dict[str, dict[str, Any]] = {}
        for given in self.study.methods:
            what = {"name": given} if isinstance(given, str) else dict(given)
            self.check_method(what)
            label = str(what.pop("label", what["name"]))
            arms[label] = {"method": what.pop("name"), **what}
        return arms


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply ``key.key=value`` overrides; values are YAML.

    Raises:
        ValueError: one line: no such file, no YAML, an unknown or mistyped field (nearest named), an impossible combination.
    """
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1, cutoff=0.0)
        also = f" (nearest: {path.parent / near[0]})" if near else ""
        raise ValueError(f"recipe: expected a readable file, got {path}: {error.strerror}{also}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"recipe: expected YAML in {path}, got {' '.join(str(error).split())}") from None
    if not isinstance(described, dict):
        raise ValueError(f"recipe: expected fields such as data, teacher, student, method in {path}, got {type(described).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"override: expected key=value, got {override!r}")
        try:
            _put(described, key.split("."), yaml.safe_load(value), override)
        except yaml.YAMLError:
            raise ValueError(f"override: expected YAML after the equals sign, got {override!r}") from None
    return parse(described)


def parse(described: Mapping[str, Any]) -> Recipe:
    """Validate a recipe given as plain values.

    Raises:
        ValueError: one line, see `read_recipe`.
    """
    try:
        return Recipe.model_validate(described)
    except ValidationError as error:
        raise ValueError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """The first of pydantic's findings as one line."""
    found = error.errors()[0]
    where = ".".join(str(part) for part in found["loc"] if not str(part).startswith(("str", "dict", "int", "list")))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if found["type"] == "extra_forbidden":
        *path, name = [str(part) for part in found["loc"]]
        known = _fields_at(path)
        return f"{where}: expected one of {', '.join(known)}, got {name!r}{nearest(name, known)}{more}"
    if found["type"] == "value_error":
        message = found["msg"].removeprefix("Value error, ")
        if not where or message.startswith(where):
            return f"{message}{more}"
        return f"{where}.{message}{more}" if re.match(r"[\w.]+: ", message) else f"{where}: {message}{more}"
    what = found["msg"].removeprefix("Input should be ").lower() if found["type"] != "missing" else "a value"
    got = "nothing" if found["type"] == "missing" else repr(found["input"])
    return f"{where}: expected {what}, got {got}{more}"


def _fields_at(path: Sequence[str]) -> list[str]:
    model: Any = Recipe
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), model)
    return list(model.model_fields)


def _put(target: dict[str, Any], path: Sequence[str], value: Any, override: str) -> None:
    *parents, last = path
    for part in parents:
        inner = target.setdefault(part, {})
        if isinstance(inner, str):
            inner = target[part] = {"name": inner}  # method: dkd and method.beta=2
        if not isinstance(inner, dict):
            raise ValueError(f"override: expected {part} to hold fields, got {inner!r} ({override})")
        target = inner
    target[last] = value


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
