"""Before the first step: do the parts of the data overlap, is the teacher any good on them, and what will the run cost?"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.run import train
from preceptor.core.types import Record
from preceptor.data.splits import shared_inputs
from preceptor.metrics.cost import Inputs, device_of, parameters, to_device
from preceptor.models.taps import forward
from preceptor.training import Training
from preceptor.trial import Task, make_accelerator, set_up


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found.

    Attributes:
        lines: for the user, one fact each.
        notes: for the report.
        seconds_per_step: by method, measured on a few updates of a copy of the student.
        steps: updates of one trial.
    """

    lines: tuple[str, ...]
    notes: tuple[str, ...]
    seconds_per_step: dict[str, float]
    steps: int


def preflight(
    task: Task, methods: Mapping[str, Method], student: nn.Module, training: Training, *, check_teacher: bool = True, trials: int = 1
) -> Preflight:
    """Look for shared inputs, score the teacher on the validation part, estimate time and memory; nothing that counts is changed.

    Args:
        task: data and teacher.
        methods: what will be run, by name.
        student: copied for the measurement.
        training: how the trials are trained.
        check_teacher: stop on a bad teacher.
        trials: how many trials of each method there will be, for the total time.
    Raises:
        ValueError: a part stands in the others, the teacher is near chance, or its classes look permuted.
    """
    overlaps = shared_inputs({"train": task.train, "valid": task.valid} | ({} if task.test is None else {"test": task.test}))
    lines, notes = [f"data: {line}" for line in overlaps], list(overlaps)
    with torch.random.fork_rng():
        setups = {name: _measure(task, method, student, training) for name, method in methods.items()}
    steps = next(iter(setups.values()))[0]
    seconds = {name: measured for name, (_, measured) in setups.items()}
    if task.teacher is not None:
        accuracy = _score_teacher(task, check_teacher)
        ratio = parameters(task.teacher) / max(1, parameters(student))
        batch = task.train.batch(torch.arange(min(training.batch_size, len(task.train))))["x"]
        teacher_seconds = _forward_seconds(task.teacher, batch)
        lines.append(
            f"teacher: {accuracy:.1%} on {len(task.valid)} validation examples, {parameters(task.teacher):,} parameters,"
            f" {ratio:.1f} times the student's {parameters(student):,}"
        )
        lines.append(f"teacher cost: {teacher_seconds * 1e3:.1f} ms per batch of {_length(batch)}")
        notes.append(f"Teacher accuracy on the validation part: {accuracy:.1%}.")
    total = sum(seconds.values()) * steps * trials
    each = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in seconds.items())
    lines.append(f"time: {steps:,} updates per trial ({each} per update), {len(methods) * trials} trial(s), about {_duration(total)}")
    memory = _memory_mb(student, task, training)
    lines.append(f"memory: about {memory:.0f} MB for weights, gradients, optimizer and activations, besides the process itself")
    return Preflight(lines=tuple(lines), notes=tuple(notes), seconds_per_step=seconds, steps=steps)


def _score_teacher(task: Task, check: bool) -> float:
    """Accuracy on the validation part; refuses a teacher that knows nothing or names the classes differently."""
    logits, labels = task.teacher_logits(task.valid), task.valid.labels
    assert logits is not None
    predicted = logits.argmax(-1)
    accuracy = float((predicted == labels).double().mean())
    if not check:
        return accuracy
    counts = torch.bincount(labels, minlength=task.valid.num_classes).double()
    chance = float(counts.max() / counts.sum())
    confusion = torch.zeros(logits.shape[1], task.valid.num_classes, dtype=torch.float64)
    confusion.index_put_((predicted, labels), torch.ones(len(labels), dtype=torch.float64), accumulate=True)
    renamed = confusion.argmax(1)
    best = float(confusion.max(1).values.sum() / len(labels))
    used = renamed[confusion.sum(1) > 0]
    if best > 0.6 and best - accuracy > 0.2 and len(used.unique()) == len(used):
        moved = [f"{was} -> {int(now)}" for was, now in enumerate(renamed.tolist()) if confusion[was].sum() and was != now]
        raise ValueError(
            f"teacher: expected the classes of the data, got them permuted: {accuracy:.1%} as they stand, {best:.1%} after renaming"
            f" {', '.join(moved[:5])}{', ...' if len(moved) > 5 else ''}; reorder the labels or the teacher's head"
        )
    if accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / len(labels)):
        raise ValueError(
            f"teacher: expected better than chance on validation data ({chance:.1%}), got {accuracy:.1%}; likely untrained, or fed inputs"
            " normalised differently from its training (check_teacher=False goes on regardless)"
        )
    return accuracy


def _measure(task: Task, method: Method, student: nn.Module, training: Training) -> tuple[int, float]:
    """Updates of a trial, and seconds per update of all stages, measured on copies."""
    accelerator = make_accelerator(training.precision)
    steps, seconds = 0, 0.0
    teacher = task.teacher
    for stage in method.stages(teacher, deepcopy(student)):
        roles = {"student": stage.student} | ({} if teacher is None else {"teacher": teacher})
        roles |= {name: deepcopy(module) for name, module in task.roles.items()}
        made = set_up(task, stage.method, roles, training, seed=0, accelerator=accelerator)
        marks: list[float] = []

        def mark(record: Record, marks: list[float] = marks) -> None:
            marks.append(time.perf_counter())

        few = min(5, made.steps)
        train(
            stage.method,
            made.roles,
            made.source,
            made.optimizers,
            steps=few,
            micro=training.micro,
            clip=training.clip,
            accelerator=accelerator,
            skip_nonfinite=few,
            warn=lambda line: None,
            progress=mark,
        )
        steps = made.steps
        seconds += median(b - a for a, b in itertools.pairwise(marks)) if len(marks) > 1 else 0.0
        teacher = stage.student
    return steps, seconds


def _forward_seconds(model: nn.Module, inputs: Inputs) -> float:
    inputs = to_device(inputs, device_of(model))
    times = []
    with torch.no_grad(), evaluating(model):
        for _ in range(3):
            start = time.perf_counter()
            forward(model, inputs).logits.sum().item()
            times.append(time.perf_counter() - start)
    return median(times)


def _memory_mb(student: nn.Module, task: Task, training: Training) -> float:
    """Weights, gradients, two optimizer moments, what autograd keeps for one microbatch, and the teacher's weights."""
    weights = sum(p.numel() * p.element_size() for p in student.parameters())
    teacher = 0 if task.teacher is None else sum(p.numel() * p.element_size() for p in task.teacher.parameters())
    own = {p.untyped_storage().data_ptr() for p in student.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    size = min(max(1, training.batch_size // training.micro), len(task.train))
    inputs = to_device(task.train.batch(torch.arange(size))["x"], device_of(student))
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), evaluating(student):
        forward(student, inputs)
    return (4 * weights + teacher + sum(kept.values())) / 1e6


def _length(inputs: Tensor | Mapping[str, Tensor]) -> int:
    return len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
