"""The training loop, the only one: a generator that yields one Record per update.

One turn is: ``batch = prepare(next(source))``; then for every active phase and every microbatch ``signal`` (no gradient), ``loss``,
one global reduction, backward, ``update``; then ``after_step``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from preceptor.core.method import Method, NonFinite, Phase
from preceptor.core.reduce import all_reduce_gradients, all_reduce_terms, global_counts, reduce_terms, split, world_size
from preceptor.core.state import RandomState, State
from preceptor.core.stream import Stream
from preceptor.core.types import Batch, Record, Roles, Signal, Terms


def steps(
    method: Method,
    roles: Roles,
    source: Stream,
    optimizers: Mapping[str, Optimizer],
    *,
    state: State,
    accelerator: Accelerator,
    micro: int = 1,
    schedulers: Mapping[str, LRScheduler] | None = None,
) -> Generator[Record]:
    """Train until ``state.step`` reaches ``state.total_steps``, yielding a Record after each update.

    Args:
        method: what to train by.
        roles: every network by name, bare modules on the accelerator's device.
        source: batches; see `preceptor.core.stream`.
        optimizers: one per phase, by phase name; a phase of a ``gradient_free`` method may have none.
        state: counters, random state, memory and streams; moved on in place.
        accelerator: device and precision.
        micro: microbatches per update.
        schedulers: learning-rate schedules by phase name, stepped once per update of their phase.
    Raises:
        ValueError: ``micro`` > 1 with a coupled method, or a phase without its roles or optimizer.
        NonFinite: the loss or the gradient is not finite. The optimizer was not stepped with it; what the method stepped before in the
            same turn, such as an earlier phase, stays stepped. To skip the batch start ``steps`` again: this generator has ended.
    """
    phases = method.phases()
    _check(method, phases, roles, optimizers, micro)
    schedulers = schedulers or {}
    default_update = type(method).update is Method.update
    with _borrowed(roles, phases) as trainable:
        while state.step < state.total_steps:
            batch: Batch = dict(send_to_device(next(source), accelerator.device))
            state.epoch = int(batch.pop("epoch", state.epoch))
            state.log, state.gradient_norm = {}, None
            with torch.no_grad():
                batch = method.prepare(batch, roles, state)
            counts = global_counts(batch)
            parts = split(batch, micro)
            learning_rate = float(next(iter(optimizers.values()), _NONE).param_groups[0]["lr"])
            reports: dict[str, Terms] = {}
            losses: dict[str, float] = {}
            for phase in phases:
                if not phase.active(state.step):
                    continue
                parameters = [p for role in phase.trains for p in trainable[role]]
                if len(phases) > 1:
                    _require_grad(trainable, phase.trains)
                keep = len(parts) == 1 or not (default_update and phase.update == method.update)
                compute = _Compute(phase, parts, counts, roles, state, accelerator, parameters, keep_signals=keep)
                try:
                    phase.update(compute, optimizers.get(phase.name, _NONE), batch, roles, state)
                except NonFinite as error:
                    error.batch = batch
                    raise
                if phase.name in schedulers:
                    schedulers[phase.name].step()
                reports[phase.name] = compute.terms
                prefix = f"{phase.name}/" if len(phases) > 1 else ""
                losses |= {prefix + name: value for name, value in compute.values.items()}
                losses[f"{prefix}total"] = sum(compute.values.values())
            with torch.no_grad():
                method.after_step(batch, reports, roles, state)
            state.step += 1
            yield Record(
                step=state.step,
                epoch=state.epoch,
                losses=losses,
                items=int(counts["examples"]),
                learning_rate=learning_rate,
                gradient_norm=state.gradient_norm,
                extras=dict(state.log),
            )


# Stands in where a gradient-free method has no optimizer.
_NONE = torch.optim.SGD([nn.Parameter(torch.zeros(0))], lr=0.0)


class _Compute:
    """See `preceptor.core.method.Compute`."""

    def __init__(
        self,
        phase: Phase,
        parts: Sequence[Batch],
        counts: Mapping[str, float],
        roles: Roles,
        state: State,
        accelerator: Accelerator,
        parameters: Sequence[nn.Parameter],
        *,
        keep_signals: bool,
    ) -> None:
        self.phase, self.parts, self.counts, self.roles, self.state = phase, parts, counts, roles, state
        self.accelerator, self.parameters, self.keep_signals = accelerator, parameters, keep_signals
        self.randoms: dict[int, RandomState] = {}
        self.signals: dict[int, Signal] = {}
        self.terms: Terms = {}
        self.values: dict[str, float] = {}

    def __call__(self, only: Sequence[str] | None = None, backward: bool = True) -> Terms:
        """Run all microbatches; see `preceptor.core.method.Compute`."""
        if backward:
            for parameter in self.parameters:
                parameter.grad = None
        terms: Terms = {}
        for index, batch in enumerate(self.parts):
            with torch.set_grad_enabled(backward):  # also where the caller disabled it: a method may train inside prepare
                with self.accelerator.autocast():
                    signal = self._signal(index, batch)
                    self._replay(index)
                    loss = self.phase.loss(batch, signal, self.roles, self.state)
                shares = reduce_terms(loss, batch, self.counts, len(self.parts) * world_size())
                if only is not None:
                    unknown = set(only) - set(shares)
                    if unknown:
                        raise ValueError(f"compute: expected terms out of {sorted(shares)}, got {sorted(unknown)}")
                    shares = {name: shares[name] for name in only}
                if backward:
                    functools.reduce(torch.add, shares.values()).backward()
            for name, share in shares.items():
                terms[name] = terms[name] + share.detach() if name in terms else share.detach()
        if backward:
            all_reduce_gradients(self.parameters)
        terms = all_reduce_terms(terms)
        values = dict(zip(terms, torch.stack([value.double() for value in terms.values()]).tolist(), strict=True))
        if not all(map(math.isfinite, values.values())):
            raise NonFinite("loss", self.state.step, values)
        self.terms = {**terms, **self.terms}  # a method that computes twice (SAM) reports the first time
        self.values = {**values, **self.values}
        return terms

    def _signal(self, index: int, batch: Batch) -> Signal:
        if index in self.signals:
            return self.signals[index]
        with torch.no_grad():
            signal = self.phase.signal(batch, self.roles, self.state)
        if self.keep_signals:
            self.signals[index] = signal
        return signal

    def _replay(self, index: int) -> None:
        if index in self.randoms:
            self.randoms[index].restore(self.state.rng)
        else:
            self.randoms[index] = RandomState.capture(self.state.rng)


def _check(method: Method, phases: Sequence[Phase], roles: Roles, optimizers: Mapping[str, Optimizer], micro: int) -> None:
    if micro < 1:
        raise ValueError(f"micro: expected at least 1, got {micro}")
    if micro > 1 and method.coupled:
        raise ValueError(f"micro: {type(method).__name__} relates the items of a batch and cannot be split, expected 1, got {micro}")
    for phase in phases:
        missing = [role for role in phase.trains if role not in roles]
        if missing:
            raise ValueError(f"roles: phase {phase.name!r} trains {missing}, got roles {sorted(roles)}")
        if phase.name not in optimizers and not method.gradient_free:
            raise ValueError(f"optimizers: expected one for phase {phase.name!r}, got {sorted(optimizers)}")
    stray = set(optimizers) - {phase.name for phase in phases}
    if stray:
        raise ValueError(f"optimizers: expected phases out of {[phase.name for phase in phases]}, got {sorted(stray)}")


@contextmanager
def _borrowed(roles: Roles, phases: Sequence[Phase]) -> Iterator[dict[str, list[nn.Parameter]]]:
    """Freeze what no phase trains, set modes, hand out the trainable parameters by role; flags and modes come back at the end."""
    flags = [(p, p.requires_grad) for module in roles.values() for p in module.parameters()]
    modes = [(m, m.training) for module in roles.values() for m in module.modules()]
    trained = {role for phase in phases for role in phase.trains}
    trainable = {name: [p for p in module.parameters() if p.requires_grad] for name, module in roles.items() if name in trained}
    try:
        for name in sorted(roles, key=trained.__contains__):  # what a frozen role shares with a trained one is trained
            if name not in trained:
                roles[name].requires_grad_(False)
            roles[name].train(name in trained)
        _require_grad(trainable, trained)
        yield trainable
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, training in modes:
            module.training = training


def _require_grad(trainable: Mapping[str, Sequence[nn.Parameter]], trains: Collection[str]) -> None:
    for role in sorted(trainable, key=trains.__contains__):
        for parameter in trainable[role]:
            parameter.requires_grad_(role in trains)
