"""What all trials of a study share: the parts of the data, the teacher, and how a model is measured on a part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from preceptor.composition import Composed
from preceptor.core.method import Method, Stage
from preceptor.core.types import Batch, Roles
from preceptor.data.examples import Examples
from preceptor.data.perturb import pgd
from preceptor.data.sources import Augment
from preceptor.data.text import Texts
from preceptor.metrics.calibration import Reliability
from preceptor.metrics.cost import device_of, to_device
from preceptor.metrics.evaluate import Predictions, predict, score
from preceptor.metrics.language import Said, hear, score_tokens
from preceptor.models.adapters import count_classes
from preceptor.models.language import context_length
from preceptor.teachers.cache import Cache, from_cache
from preceptor.training import Attack

Says = Predictions | Reliability
"""What is kept of what a student said: its predictions, or of a language model how sure and how right it was."""


@dataclass(kw_only=True)
class Task:
    """The data and the teacher.

    Args:
        train, valid, test: disjoint parts; without a test part the validation part is measured in its stead.
        teacher: None for training without one.
        cache: answers in a teacher's stead while a student trains.
        augment: applied to training batches.
        roles: further networks that a method asks for.
        attack: on students at the end, for the metric ``robust_accuracy``.
        teacher_says: what the teacher said about a part, by its name; filled when first asked.
    """

    train: Examples
    valid: Examples
    test: Examples | None = None
    teacher: nn.Module | None = None
    cache: Cache | None = None
    augment: Augment | None = None
    roles: Mapping[str, nn.Module] = field(default_factory=dict)
    attack: Attack | None = None
    teacher_says: dict[str, Predictions | Said] = field(default_factory=dict)

    @property
    def measured(self) -> Examples:
        """The part that the final numbers come from."""
        return self.valid if self.test is None else self.test

    def stages(self, method: Method, student: nn.Module) -> tuple[Stage, ...]:
        """The trainings of a method, with the teacher's part read from the cache where there is one.

        Raises:
            ValueError: the method lacks a teacher, or cannot learn from the cache.
        """
        if self.cache is None:
            return method.stages(self.teacher, student)
        chained = method.base if isinstance(method, Composed) else method
        if type(chained).stages is not Method.stages:
            raise ValueError(f"teacher: expected a network for the chain of trainings of {type(chained).__name__}, got a cache")
        return tuple(replace(stage, method=from_cache(method, self.cache)) for stage in method.stages(None, student))

    @property
    def language(self) -> bool:
        """Whether the examples are texts."""
        return isinstance(self.train, Texts)

    @property
    def tokenizer(self) -> Any:
        """Of the texts; None for other examples."""
        return self.train.tokenizer if isinstance(self.train, Texts) else None

    def teacher_on(self, part: Examples) -> Predictions | Said | None:
        """What the teacher says about a part; asked once."""
        if self.teacher is None:
            return None
        if part.name not in self.teacher_says:
            self.teacher_says[part.name] = (hear if isinstance(part, Texts) else predict)(self.teacher, scan(part))
        return self.teacher_says[part.name]

    def teacher_logits(self, part: Examples) -> Tensor | None:
        """What the teacher says about a part that is not of texts, (N, C)."""
        says = self.teacher_on(part)
        return says.logits if isinstance(says, Predictions) else None

    def measure(self, model: nn.Module, part: Examples) -> tuple[dict[str, float], Says]:
        """Every metric of a model on a part."""
        teacher = self.teacher_on(part)
        if isinstance(part, Texts):
            return score_tokens(hear(model, scan(part)), teacher if isinstance(teacher, Said) else None)
        says = predict(model, scan(part))
        return score(says.logits, says.labels, self.teacher_logits(part)), says

    def judge(self, model: nn.Module) -> tuple[dict[str, float], Says]:
        """Every metric of a finished model on the part that final numbers come from, under attack too where there is one."""
        metrics, says = self.measure(model, self.measured)
        if self.attack is not None:
            metrics["robust_accuracy"] = _robust_accuracy(model, self.measured, self.attack)
        return metrics, says


def scan(part: Examples) -> Iterator[Batch]:
    """One pass over a part in its order."""
    return (part.batch(indices) for indices in torch.arange(len(part)).split(8 if isinstance(part, Texts) else 512))


def _robust_accuracy(model: nn.Module, part: Examples, attack: Attack) -> float:
    """Accuracy on inputs moved within the maximum norm; no box, as inputs may be normalised."""
    step, right, device = 2.5 * attack.epsilon / attack.steps, 0, device_of(model)
    for batch in scan(part):
        if not isinstance(batch["x"], Tensor):
            raise ValueError(f"attack: expected inputs that are one tensor, got {type(batch['x']).__name__}")
        x, y = batch["x"].to(device), batch["y"].to(device)
        moved = pgd(model, x, y, epsilon=attack.epsilon, step_size=step, steps=attack.steps, box=None)
        right += int((predict(model, [{**batch, "x": moved}]).logits.argmax(-1) == batch["y"]).sum())
    return right / len(part)


def check_roles(task: Task, roles: Roles) -> None:
    """Refuse networks whose class counts differ from each other or are too few for the labels, or that cannot read rows so long.

    Raises:
        ValueError: names the role, expected and got.
    """
    example = task.train.batch(torch.zeros(1, dtype=torch.int64))["x"]
    given = {name: roles[name] for name in ("teacher", "student") if name in roles}
    for name, model in given.items():
        longest = context_length(model)
        if isinstance(task.train, Texts) and longest is not None and task.train.length > longest:
            raise ValueError(f"{name}: expected rows of at most {longest} tokens, its context, got rows of {task.train.length}")
    counts = {name: count_classes(model, to_device(example, device_of(model))) for name, model in given.items()}
    what, hint = ("tokens", "; vocabularies that differ need the method alm") if task.language else ("classes", "")
    student = counts.get("student", task.train.num_classes)
    if counts.get("teacher", student) != student:
        raise ValueError(f"teacher: expected {student} {what} like the student, got {counts['teacher']}{hint}")
    if student < task.train.num_classes:
        raise ValueError(f"student: expected at least the {task.train.num_classes} {what} of the labels, got {student}")
