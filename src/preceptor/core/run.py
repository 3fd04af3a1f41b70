"""`train`: runs the loop to its end with evaluation, checkpoints, logging, stopping, and a clean answer to signals and bad losses."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from preceptor.core.journal import Journal
from preceptor.core.loop import steps as loop_steps
from preceptor.core.method import Method, NonFinite
from preceptor.core.parallel import broadcast, from_all, load_whole, load_whole_optimizer, whole
from preceptor.core.reduce import world_size
from preceptor.core.signals import Interrupted, deferred_signals
from preceptor.core.state import RandomState, State, compare_shapes, load_checkpoint, save_checkpoint
from preceptor.core.stream import Stream, as_stream
from preceptor.core.types import Batch, Record, Roles
from preceptor.core.undo import remember

Validate = Callable[[Roles, State], Mapping[str, float]]


def train(
    method: Method,
    roles: Roles,
    source: Stream | Iterable[Batch],
    optimizers: Mapping[str, Optimizer] | Optimizer,
    *,
    steps: int,
    micro: int = 1,
    streams: Mapping[str, Stream | Iterable[Batch]] | None = None,
    schedulers: Mapping[str, LRScheduler] | LRScheduler | None = None,
    clip: float | None = None,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    state: State | None = None,
    valid: Validate | None = None,
    evaluate_every: int | None = None,
    monitor: str = "accuracy",
    mode: Literal["max", "min"] = "max",
    patience: int | None = None,
    ema: float | None = None,
    skip_nonfinite: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    checkpoint_every: int | None = None,
    keep: int = 2,
    progress: Callable[[Record], None] | None = None,
    warn: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    trackers: bool = False,
) -> State:
    """Train until ``steps`` updates are done. Roles are trained in place; nothing is wrapped and no global is touched.

    Args:
        method: what to train by.
        roles: every network by name; moved to the accelerator's device.
        source: a `Stream`, or any iterable of batches, which is then read again and again.
        optimizers: one per phase by name; a single one serves a method with a single phase.
        steps: updates in all, those of an earlier part of a resumed run included.
        micro: microbatches per update (gradient accumulation).
        streams: further data that the method reads, by name.
        schedulers: learning-rate schedules by phase, stepped once per update.
        clip: largest global gradient norm.
        seed: seed of the method's own draws, ``state.rng``.
        accelerator: device and precision (``Accelerator(mixed_precision="bf16")``); a plain one by default.
        state: a State to go on with, instead of a new one.
        valid: called as ``valid(roles, state)`` in eval mode, without gradient, on every process; returns metrics. Those of rank 0
            count: best weights and stopping are the same everywhere.
        evaluate_every: updates between validations; by default only at the end.
        monitor: metric that chooses the best weights, and by which ``patience`` counts.
        mode: whether ``monitor`` is to be large or small.
        patience: validations without improvement before stopping; None never stops.
        ema: decay of an exponential moving average of the student, kept in the role ``ema`` (which must exist); validation then
            concerns it, and so do the best weights.
        skip_nonfinite: batches with a non-finite loss or gradient that may be dropped before the run stops. A dropped one leaves no
            trace but in the positions of source and streams, in random states, and in what `prepare` did to the weights of a role.
            With several phases, or a method that overrides `update`, this costs a copy of trained weights and optimizers per update.
        out: folder for ``metrics.jsonl``, ``timings.jsonl`` and ``checkpoints/``; None writes nothing.
        resume: go on from the newest intact checkpoint in ``out``; exact with as many processes as before. With another number the
            data go on where they were, but dropout and other draws of a process are not those of an uninterrupted run: ``warn`` says so.
        identity: what the run is, plain JSON values; resuming with another is refused.
        checkpoint_every: updates between checkpoints; by default at validations and at the end.
        keep: checkpoints kept.
        progress: called after every update, on rank 0.
        warn: called with one line where something was skipped, on rank 0.
        trackers: log to the trackers that ``accelerator.init_trackers`` started.
    Returns:
        The state. With ``valid`` the best weights are loaded into the student (and stand in ``state.best``).
    Raises:
        Interrupted: SIGTERM or SIGINT; the step was finished and saved.
        NonFinite: a loss or gradient was not finite too often; batch and state are kept under ``out/nonfinite``.
        CheckpointError: a checkpoint could not be written or read.
        ValueError: see `preceptor.core.loop.steps`.
    """
    accelerator = accelerator or Accelerator()
    warn = warn if accelerator.is_main_process else lambda line: None
    out = Path(out) if out is not None else None
    if ema is not None and "ema" not in roles:
        raise ValueError(f"roles: ema={ema} needs a role 'ema' (a copy of the student), got roles {sorted(roles)}")
    for name, value in {"patience": patience, "keep": keep, "evaluate_every": evaluate_every, "checkpoint_every": checkpoint_every}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    names = [phase.name for phase in method.phases()]
    optimizers = {names[0]: optimizers} if isinstance(optimizers, Optimizer) else optimizers
    schedulers = {names[0]: schedulers} if isinstance(schedulers, LRScheduler) else (schedulers or {})
    state = state or State(total_steps=steps, seed=seed)
    state.total_steps, state.clip = steps, clip
    state.source = as_stream(source)
    state.streams = {name: as_stream(stream) for name, stream in (streams or {}).items()}
    for module in roles.values():
        module.to(accelerator.device)
    broadcast(roles)
    keeper = _Keeper(method, roles, optimizers, schedulers, state, out, identity or {}, keep, accelerator.process_index)
    journal = Journal(out if accelerator.is_main_process else None, resume=resume, tracker=accelerator if trackers else None)
    if resume:
        journal.truncate(keeper.load(warn))
    learner = "ema" if ema is not None else "student"
    done = state.step >= steps or _stale(state, patience)
    with deferred_signals() as caught, journal:
        while not done:  # one turn, and one more for every batch that was dropped
            turn = loop_steps(
                method, roles, state.source, optimizers, state=state, accelerator=accelerator, micro=micro, schedulers=schedulers
            )
            may_skip = state.dropped < skip_nonfinite
            back = remember(method, roles, optimizers, schedulers, state) if may_skip else None
            try:
                with closing(turn):
                    for record in turn:
                        if ema is not None:
                            _move_average(roles["ema"], roles["student"], ema)
                        journal.record(record)
                        if progress is not None and accelerator.is_main_process:
                            progress(record)
                        done = record.step >= steps
                        measured = valid is not None and (done or bool(evaluate_every and record.step % evaluate_every == 0))
                        if valid is not None and measured:
                            _validate(valid, roles, state, learner, monitor, mode, journal)
                            done = done or _stale(state, patience)
                        stopped = _any_process(caught, accelerator)
                        due = record.step % checkpoint_every == 0 if checkpoint_every else measured
                        if done or due or stopped:
                            keeper.save(journal.position())
                        if stopped:
                            raise Interrupted(stopped, record.step, out)
                        if done:
                            break
                        if may_skip:
                            back = remember(method, roles, optimizers, schedulers, state)
            except NonFinite as error:
                if back is not None:
                    back()
                where = keeper.set_aside(error)
                if back is None:
                    error.args = (f"{error}; {where}",)
                    raise
                state.dropped += 1
                journal.event(error.step, "nonfinite", error.values)
                warn(f"{error}; batch dropped ({skip_nonfinite - state.dropped} more may be), {where}")
        stopped = _any_process(caught, accelerator)  # one may have come after the last look
        if stopped:
            raise Interrupted(stopped, state.step, out)
    if state.best:
        load_whole(roles["student"], state.best["weights"])
    return state


class _Keeper:
    """Writes and reads checkpoints of everything that changes in a run."""

    def __init__(
        self,
        method: Method,
        roles: Roles,
        optimizers: Mapping[str, Optimizer],
        schedulers: Mapping[str, LRScheduler],
        state: State,
        out: Path | None,
        identity: Mapping[str, Any],
        keep: int,
        rank: int,
    ) -> None:
        self.roles, self.optimizers, self.schedulers, self.state = roles, optimizers, schedulers, state
        self.out, self.keep, self.rank = out, keep, rank
        trained = {role for phase in method.phases() for role in phase.trains}
        self.frozen = {} if out is None else {name: fingerprint(module) for name, module in roles.items() if name not in trained}
        # what starts frozen and is moved by a hook (an EMA) is told by its changed fingerprint; it has no identity to check
        described = re.sub(r" at 0x[0-9a-f]+", "", repr(method))  # a function's address is another one in every process
        self.identity = {**identity, "method": described, "total_steps": state.total_steps}
        # an EMA starts frozen too, as a copy of the student, and is read back from the checkpoint
        self.identity |= {name: value for name, value in self.frozen.items() if name != "ema"}

    def save(self, position: int) -> None:
        if self.out is None:
            return
        payload = whole(self._payload())
        if self.rank == 0:
            payload["position"] = position
            save_checkpoint(self.out / "checkpoints", payload, step=self.state.step, identity=self.identity, keep=self.keep)

    def load(self, warn: Callable[[str], None]) -> int:
        """Take everything back; return the position in metrics.jsonl, 0 when there is no checkpoint."""
        if self.out is None:
            raise ValueError("resume: expected out, the folder to resume from, got None")
        saved = load_checkpoint(self.out / "checkpoints", identity=self.identity, warn=warn)
        if saved is None:
            return 0
        folder = self.out / "checkpoints" / f"step-{saved['state']['step']}"
        for name, weights in saved["roles"].items():
            present = self.roles[name].state_dict() if name in self.roles else {}
            compare_shapes(weights, present, where=f"{folder}: role {name!r}")
        for name, weights in saved["roles"].items():
            load_whole(self.roles[name], weights)
        for name, optimizer in self.optimizers.items():
            load_whole_optimizer(optimizer, saved["optimizers"][name])
        for name, scheduler in self.schedulers.items():
            scheduler.load_state_dict(saved["schedulers"][name])
        randoms = saved["state"]["random"]
        if len(randoms) != world_size():
            warn(
                f"resume: began on {len(randoms)} process(es), goes on with {world_size()}: dropout and other draws of each process are not"
                " those of an uninterrupted run"
            )
        self.state.load_state_dict({**saved["state"], "random": randoms[self.rank % len(randoms)]})
        return saved["position"]

    def set_aside(self, error: NonFinite) -> str:
        """Keep what made a loss non-finite; return where, as a clause."""
        if self.out is None:
            return "nothing kept: train was given no out"
        folder = self.out / "nonfinite"
        payload = {**whole(self._payload()), "values": error.values, "batch": error.batch}
        if self.rank == 0:
            save_checkpoint(folder, payload, step=error.step + 1, identity={})
        return f"batch and state kept in {folder / f'step-{error.step + 1}'}"

    def _payload(self) -> dict[str, Any]:
        state = self.state.state_dict()
        kept = [name for name, module in self.roles.items() if self.frozen.get(name) is None or fingerprint(module) != self.frozen[name]]
        return {
            "roles": {name: self.roles[name].state_dict() for name in kept},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()},
            "state": {**state, "random": from_all(state["random"])},
        }


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, names included."""
    digest = hashlib.sha256()
    for name, value in sorted(whole(module.state_dict()).items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def resume_command(out: Path) -> str:
    """The command that goes on with an interrupted run of the command line."""
    return f"preceptor distill {shlex.quote(str(out / 'recipe.yaml'))} --out {shlex.quote(str(out))} --resume"


def _validate(
    valid: Validate, roles: Roles, state: State, learner: str, monitor: str, mode: Literal["max", "min"], journal: Journal
) -> None:
    randoms = RandomState.capture(state.rng)  # looking must not change the course of training
    modes = [(m, m.training) for module in roles.values() for m in module.modules()]
    for module in roles.values():
        module.eval()
    try:
        with torch.no_grad():
            metrics = valid({**roles, "student": roles[learner]}, state)
    finally:
        for module, training in modes:
            module.training = training
        randoms.restore(state.rng)
    metrics = from_all(dict(metrics))[0]  # were each to decide by its own, some would stop and leave the others waiting
    journal.event(state.step, "valid", metrics)
    if monitor not in metrics:
        raise ValueError(f"monitor: expected one of {sorted(metrics)}, got {monitor!r}")
    value = metrics[monitor]
    best = state.best.get("value", math.nan)
    if math.isnan(best) or (value > best if mode == "max" else value < best):
        weights = {name: value.detach().cpu().clone() for name, value in whole(roles[learner].state_dict()).items()}
        state.best = {"step": state.step, "value": value, "metrics": metrics, "weights": weights, "stale": 0}
    else:
        state.best["stale"] += 1


def _stale(state: State, patience: int | None) -> bool:
    return patience is not None and state.best.get("stale", 0) >= patience


def _any_process(caught: list[int], accelerator: Accelerator) -> int:
    """Number of the signal that any process received, 0 for none, so that all stop after the same step."""
    number = caught[0] if caught else 0
    if world_size() == 1:
        return number
    flag = torch.tensor(number, device=accelerator.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return int(flag)


def _move_average(average: nn.Module, student: nn.Module, decay: float) -> None:
    with torch.no_grad():
        get_ema_multi_avg_fn(decay)(list(average.parameters()), list(student.parameters()), 0)
        for kept, present in zip(average.buffers(), student.buffers(), strict=True):
            kept.copy_(present)
