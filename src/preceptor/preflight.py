"""Before the first step: do the parts of the data overlap, is the teacher any good on them, and what will the run cost?"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from preceptor.core.method import Method, NonFinite, evaluating
from preceptor.core.run import train
from preceptor.core.types import Record
from preceptor.data.splits import shared_inputs
from preceptor.metrics.cost import Inputs, device_of, parameters, to_device
from preceptor.metrics.language import Said, score_tokens
from preceptor.models.taps import forward
from preceptor.task import Task
from preceptor.training import Training
from preceptor.trial import SetUp, make_accelerator, set_up

ENOUGH = 8.0
"""Seconds after which no further update is timed; two are timed at least."""


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was found.

    Attributes:
        lines: for the user, one fact each.
        notes: for the report.
        seconds_per_step: by method, measured on a few updates of a copy of the student.
        steps: updates of one trial.
        memory_mb: of the hungriest method, in megabytes of 10^6 bytes, besides the process itself.
    """

    lines: tuple[str, ...]
    notes: tuple[str, ...]
    seconds_per_step: dict[str, float]
    steps: int
    memory_mb: float


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
        costs = {name: _measure(task, method, student, training) for name, method in methods.items()}
    steps = next(iter(costs.values())).steps
    seconds = {name: cost.seconds_per_step for name, cost in costs.items()}
    if task.teacher is not None:
        score, of = _score_teacher(task, check_teacher), f"{len(task.valid)} validation examples"
        ratio = parameters(task.teacher) / max(1, parameters(student))
        batch = task.train.batch(torch.arange(min(training.batch_size, len(task.train))))["x"]
        teacher_seconds = _forward_seconds(task.teacher, batch)
        lines.append(
            f"teacher: {score} on {of}, {parameters(task.teacher):,} parameters, {ratio:.1f} times the student's {parameters(student):,}"
        )
        lines.append(f"teacher cost: {teacher_seconds * 1e3:.1f} ms per batch of {_length(batch)}")
        notes.append(f"The teacher on the validation part: {score}.")
    if task.cache is not None:
        lines.append(f"teacher: {task.cache}")
        notes.append(f"The teacher answered from a cache: {task.cache}.")
    total = sum(seconds.values()) * steps * trials
    each = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in seconds.items())
    lines.append(f"time: {steps:,} updates per trial ({each} per update), {len(methods) * trials} trial(s), about {_duration(total)}")
    memory = max(cost.memory_mb for cost in costs.values())
    lines.append(f"memory: about {max(1.0, memory):,.0f} MB for weights, gradients, optimizer and activations, besides the process itself")
    return Preflight(lines=tuple(lines), notes=tuple(notes), seconds_per_step=seconds, steps=steps, memory_mb=memory)


def _score_teacher(task: Task, check: bool) -> str:
    """How good it is on the validation part, in words; refuses a teacher that knows nothing or names the classes differently."""
    says = task.teacher_on(task.valid)
    if isinstance(says, Said):
        return _score_language_teacher(says, check)
    assert says is not None
    logits, labels = says.logits, says.labels
    predicted = logits.argmax(-1)
    accuracy = float((predicted == labels).double().mean())
    if not check:
        return f"{accuracy:.1%}"
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
    noise = 3 * math.sqrt(chance * (1 - chance) / len(labels))
    if accuracy <= chance + min(noise, (1 - chance) / 2):  # of a few examples not even all would be beyond the noise
        raise ValueError(
            f"teacher: expected clearly better than chance ({chance:.1%}) on {len(labels)} validation examples, got {accuracy:.1%}; likely"
            " untrained, or fed inputs normalised differently from its training (check_teacher=False goes on regardless)"
        )
    return f"{accuracy:.1%}"


def _score_language_teacher(says: Said, check: bool) -> str:
    """Perplexity on the validation part; refuses a teacher that does no better than knowing how frequent each token is."""
    perplexity = score_tokens(says)[0]["perplexity"]
    counts = says.targets.bincount().double()
    chance = float(torch.distributions.Categorical(counts).entropy().exp())
    if check and perplexity >= chance:
        raise ValueError(
            f"teacher: expected a perplexity below {chance:.1f} on validation data, that of the frequencies of its tokens, got"
            f" {perplexity:.1f}; likely untrained, or another tokenizer's texts (check_teacher=False goes on regardless)"
        )
    return f"perplexity {perplexity:.1f}"


class _EnoughError(Exception):
    """Enough updates were timed."""


class _Cost(NamedTuple):
    steps: int
    seconds_per_step: float
    memory_mb: float


def _measure(task: Task, method: Method, student: nn.Module, training: Training) -> _Cost:
    """Updates of a trial, seconds per update of all stages, and memory of the largest stage, measured on copies."""
    accelerator = make_accelerator(training.precision)
    steps, seconds, memory = 0, 0.0, 0.0
    teacher = task.teacher
    for stage in task.stages(method, deepcopy(student)):
        roles = {"student": stage.student} | ({} if teacher is None else {"teacher": teacher})
        roles |= {name: deepcopy(module) for name, module in task.roles.items()}
        made = set_up(task, stage.method, roles, training, seed=0, accelerator=accelerator)
        marks: list[float] = []

        def mark(record: Record, marks: list[float] = marks) -> None:
            marks.append(time.perf_counter())
            if len(marks) > 1 and marks[-1] - marks[0] > ENOUGH:
                raise _EnoughError

        few = min(5, made.steps)
        began = time.perf_counter()
        with suppress(_EnoughError, NonFinite):  # a loss that is not finite is for the run itself to keep and to report
            train(
                stage.method,
                made.roles,
                made.source,
                made.optimizers,
                steps=few,
                micro=training.micro,
                streams=made.streams,
                clip=training.clip,
                accelerator=accelerator,
                skip_nonfinite=few,
                warn=lambda line: None,
                progress=mark,
            )
        steps = made.steps
        first, *later = [b - a for a, b in itertools.pairwise([began, *(marks or [time.perf_counter()])])]
        seconds += median(later or [first])  # the first update is slower
        memory = max(memory, _memory_mb(made, task, training, accelerator))
        teacher = stage.student
    return _Cost(steps, seconds, memory)


def _forward_seconds(model: nn.Module, inputs: Inputs) -> float:
    inputs = to_device(inputs, device_of(model))
    times = []
    with torch.no_grad(), evaluating(model):
        for _ in range(3):
            start = time.perf_counter()
            forward(model, inputs).logits.sum().item()
            times.append(time.perf_counter() - start)
            if sum(times) > ENOUGH:
                break
    return median(times)


def _memory_mb(made: SetUp, task: Task, training: Training, accelerator: Accelerator) -> float:
    """All networks, gradients, the state of the optimizers, the best weights so far, and the activations of one microbatch.

    The last are those of the student, times the trained parameters over the student's: peers that learn beside it run beside it.
    """
    student = made.roles["student"]
    trained = [p for optimizer in made.optimizers.values() for group in optimizer.param_groups for p in group["params"]]
    moments = [v for optimizer in made.optimizers.values() for kept in optimizer.state.values() for v in kept.values()]
    networks = {p for module in made.roles.values() for p in (*module.parameters(), *module.buffers())}
    held = [*networks, *trained, *(v for v in moments if isinstance(v, Tensor)), *student.state_dict().values()]
    share = sum(p.numel() for p in trained) / max(1, parameters(student))
    return (sum(tensor.nbytes for tensor in held) + share * _activation_bytes(student, task, training, accelerator)) / 1e6


def _activation_bytes(student: nn.Module, task: Task, training: Training, accelerator: Accelerator) -> int:
    """What autograd keeps of one microbatch, and the gradients on both sides of the largest layer."""
    own = {p.untyped_storage().data_ptr() for p in student.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    size = min(max(1, training.batch_size // training.micro), len(task.train))
    inputs = to_device(task.train.batch(torch.arange(size))["x"], device_of(student))
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.random.fork_rng(), hooks, evaluating(student), accelerator.autocast():
        forward(student, inputs)
    return sum(kept.values()) + 2 * max(kept.values(), default=0)


def _length(inputs: Tensor | Mapping[str, Tensor]) -> int:
    return len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
