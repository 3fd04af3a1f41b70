"""One trial: one student trained by one method with one seed on a task, and measured on the test part.

`preceptor.distill` runs one, `preceptor.compare` many. A trial with a folder can be killed and resumed; a finished one is read back.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from preceptor.core.files import write_whole
from preceptor.core.method import Method
from preceptor.core.parallel import whole
from preceptor.core.run import train
from preceptor.core.state import State, compare_identity
from preceptor.core.types import Record, Roles, total_loss
from preceptor.data.sources import Source, streams
from preceptor.metrics.cost import peak_memory_mb, reset_peak_memory
from preceptor.models.folder import load_student, save_student
from preceptor.task import Says, Task, check_roles
from preceptor.training import Training

Progress = Callable[[Record, int], None]
"""Called after every update with the record and the total number of updates."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one trial gave. ``metrics`` are those of the test part, ``curve`` is for the learning curves of a report."""

    name: str
    seed: int
    student: nn.Module
    metrics: dict[str, float]
    says: Says
    steps: int
    examples: int  # trained on, each as often as it was seen
    train_seconds: float
    peak_memory_mb: float
    curve: dict[str, Any]


_KEPT = ("seed", "metrics", "steps", "examples", "train_seconds", "peak_memory_mb", "curve")  # in trial.json


def run_trial(
    task: Task,
    *,
    name: str,
    method: Method,
    student: nn.Module,
    training: Training,
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    trackers: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Trial:
    """Train ``student`` in place and measure it.

    Args:
        task: data and teacher.
        name: of the arm in tables and charts.
        method: what to train by; its chain of stages is run to the end.
        student: trained in place.
        training: how.
        seed: of data order, dropout and the method's draws; the global random state is left as it was.
        out: the trial's folder; None writes nothing.
        resume: go on with what ``out`` holds, or return it when it is finished.
        identity: what the run is, beyond method and training; a folder of another run is refused.
        progress: called after every update.
        trackers: names that accelerate knows, such as "tensorboard"; they log under ``out/trackers``.
        say: called with a line at a time, on rank 0: how many processes train where there are several, and what was skipped.
    Raises:
        see `preceptor.core.run.train`.
    """
    identity = {**(identity or {}), "training": training.model_dump(mode="json"), "seed": seed}
    if resume and out is not None and (out / "trial.json").exists():
        return _read_back(task, name, student, out, {**identity, "method": repr(method)})
    tracking: dict[str, Any] = {"log_with": list(trackers), "project_dir": str((out or Path()) / "trackers")} if trackers else {}
    accelerator = make_accelerator(training.precision, **tracking)
    if accelerator.num_processes > 1 and accelerator.is_main_process:
        say(f"world size: {accelerator.num_processes} processes")
    if trackers:
        accelerator.init_trackers("preceptor")
    reset_peak_memory(accelerator.device)
    started = time.perf_counter()
    records: list[tuple[int, float]] = []
    validations: list[dict[str, float]] = []
    teacher, steps = task.teacher, 0
    with torch.random.fork_rng(devices=[accelerator.device] if accelerator.device.type == "cuda" else []):
        torch.manual_seed(seed)  # a chain may make networks of its own
        stages = task.stages(method, student)
        for number, stage in enumerate(stages, 1):
            last = number == len(stages)
            torch.manual_seed(seed)
            steps = _train_stage(
                task,
                stage.method,
                {"student": stage.student} | ({} if teacher is None else {"teacher": teacher}) | dict(task.roles),
                training,
                seed=seed,
                out=out if last or out is None else out / "stages" / stage.name,
                resume=resume,
                identity={**identity, "stage": stage.name},
                accelerator=accelerator,
                progress=progress,
                records=records if last else [],
                validations=validations if last else [],
                trackers=bool(trackers),
                say=say,
            )
            teacher = stage.student
    for tracker in accelerator.trackers:  # end_training would end the process group too
        tracker.finish()
    seconds = time.perf_counter() - started
    metrics, says = task.judge(student)
    if out is not None:
        records, validations, seconds = _whole_course(out)
    curve = {"name": name, "seed": seed, **_thinned(records), "valid": validations}
    trial = Trial(
        name=name,
        seed=seed,
        student=student,
        metrics=metrics,
        says=says,
        steps=steps,
        examples=steps * training.batch_size,
        train_seconds=seconds,
        peak_memory_mb=peak_memory_mb(accelerator.device),
        curve=curve,
    )
    weights = whole(student.state_dict()) if out is not None else {}  # on every process, or the gathering waits for ever
    if out is not None and accelerator.is_main_process:
        save_student(student, out / "student", {"method": name, "metrics": metrics}, state_dict=weights, tokenizer=task.tokenizer)
        kept = {key: vars(trial)[key] for key in ("name", *_KEPT)}
        write_whole(out / "trial.json", json.dumps({**kept, "identity": {**identity, "method": repr(method)}}, indent=1))
    return trial


def make_accelerator(precision: Literal["no", "bf16"], **tracking: Any) -> Accelerator:
    """An accelerator of this precision; accelerate shares one precision per process unless its state is begun anew."""
    if is_initialized() and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision, **tracking)


class SetUp(NamedTuple):
    """What `preceptor.core.run.train` needs besides the method."""

    roles: dict[str, nn.Module]
    source: Source
    optimizers: dict[str, Optimizer]
    schedulers: dict[str, LRScheduler]
    streams: dict[str, Source]
    steps: int


def set_up(task: Task, method: Method, roles: Mapping[str, nn.Module], training: Training, *, seed: int, accelerator: Accelerator) -> SetUp:
    """Place the networks, make those that the method asks for, and the source, optimizers and schedules.

    Raises:
        ValueError: class counts differ, or the method cannot work with these networks.
    """
    source = Source(
        task.train,
        batch_size=training.batch_size,
        seed=seed,
        augment=task.augment,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        num_workers=training.num_workers,
    )
    placed = {name: module.to(accelerator.device) for name, module in roles.items()}
    check_roles(task, placed)
    example = next(source.scan())
    example = {key: value.to(accelerator.device) if isinstance(value, Tensor) else value for key, value in example.items()}
    made = method.extra_roles(placed, example)
    placed |= {name: module.to(accelerator.device) for name, module in made.items() if name not in placed}
    if training.ema is not None:
        placed["ema"] = deepcopy(placed["student"])
    steps = training.total_steps(source.batches_per_epoch)
    further = streams(method, task.valid, batch_size=training.batch_size, seed=seed)
    return SetUp(placed, source, *training.build(method, placed, steps), further, steps)


def _train_stage(
    task: Task,
    method: Method,
    roles: dict[str, nn.Module],
    training: Training,
    *,
    seed: int,
    out: Path | None,
    resume: bool,
    identity: Mapping[str, Any],
    accelerator: Accelerator,
    progress: Progress | None,
    records: list[tuple[int, float]],
    validations: list[dict[str, float]],
    trackers: bool,
    say: Callable[[str], None],
) -> int:
    """Train one stage and return its updates."""
    roles, source, optimizers, schedulers, further, steps = set_up(task, method, roles, training, seed=seed, accelerator=accelerator)

    def valid(roles: Roles, state: State) -> dict[str, float]:
        metrics, _ = task.measure(roles["student"], task.valid)
        validations.append({"step": state.step, **metrics})
        return metrics

    def report(record: Record) -> None:
        records.append((record.step, total_loss(record.losses)))
        if progress is not None:
            progress(record, steps)

    state = train(
        method,
        roles,
        source,
        optimizers,
        steps=steps,
        micro=training.micro,
        streams=further,
        schedulers=schedulers,
        clip=training.clip,
        seed=seed,
        accelerator=accelerator,
        valid=valid,
        evaluate_every=training.evaluate_every or max(1, steps // 20),
        monitor=training.monitor,
        mode=training.mode,
        patience=training.patience,
        ema=training.ema,
        skip_nonfinite=training.skip_nonfinite,
        out=out,
        resume=resume,
        identity=identity,
        checkpoint_every=training.checkpoint_every,
        keep=training.keep,
        progress=report,
        warn=say,
        trackers=trackers,
    )
    return state.step


def _read_back(task: Task, name: str, student: nn.Module, out: Path, identity: Mapping[str, Any]) -> Trial:
    saved = json.loads((out / "trial.json").read_text())
    compare_identity(saved["identity"], identity, where=str(out))
    load_student(out / "student", model=student)
    _, says = task.measure(student, task.measured)
    return Trial(
        name=name,
        student=student,
        says=says,
        **{key: saved[key] for key in _KEPT},
    )


def _whole_course(out: Path) -> tuple[list[tuple[int, float]], list[dict[str, float]], float]:
    """Losses, validations and seconds of a run from its files, parts before an interruption included."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    records = [(line["step"], float(total_loss(line["losses"]))) for line in lines if "losses" in line]
    validations = [
        {"step": line["step"], **{name: float(value) for name, value in line["valid"].items()}} for line in lines if "valid" in line
    ]
    timings = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
    return records, validations, sum(line["seconds"] for line in timings)


def _thinned(records: list[tuple[int, float]], most: int = 200) -> dict[str, list[float]]:
    """At most ``most`` points: means of equal runs of updates, each at its last one."""
    size = max(1, -(-len(records) // most))
    groups = [records[start : start + size] for start in range(0, len(records), size)]
    return {"step": [group[-1][0] for group in groups], "loss": [sum(loss for _, loss in group) / len(group) for group in groups]}
