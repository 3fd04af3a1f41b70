"""What a distillation method is: five hooks with defaults, and the phases of one update.

A method is a frozen keyword-only dataclass that derives from `Method` and overrides only the hooks it needs. The loop owns devices,
precision, accumulation, freezing, train and eval mode, and saving: no hook mentions them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from preceptor.core.types import Batch, Roles, Signal, Terms

if TYPE_CHECKING:
    from preceptor.core.state import State


class Compute(Protocol):
    """Runs the forward pass, and by default the backward pass, of one phase over all microbatches and processes.

    After a call with ``backward=True`` the ``.grad`` of the phase's parameters holds the global gradient of this call alone. It may be
    called again: the teacher's signal is reused and the random state replayed, so that dropout masks repeat.
    """

    def __call__(self, only: Sequence[str] | None = None, backward: bool = True) -> Terms:
        """Return the reduced terms (0-dimensional, detached); ``only`` names the terms to keep."""
        ...


class NonFinite(ArithmeticError):
    """The loss or the gradient of a step is not finite; the optimizer was not stepped with it.

    Attributes:
        step: updates done before it.
        values: the terms, or the gradient norm, by name.
        batch: the batch of the step, as `prepare` returned it.
    """

    def __init__(self, what: str, step: int, values: Mapping[str, float]) -> None:
        self.step, self.values, self.batch = step, dict(values), Batch()
        shown = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        super().__init__(f"{what}: expected finite values at step {step + 1}, got {shown}")


def clip_and_step(optimizer: Optimizer, state: State) -> None:
    """Clip the global gradient norm to ``state.clip`` (None: no clipping), then step.

    The norm before clipping goes to ``state.gradient_norm``.

    Raises:
        NonFinite: the norm is not finite; the optimizer has not stepped.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    state.gradient_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if not math.isfinite(state.gradient_norm):
        raise NonFinite("gradient", state.step, {"norm": state.gradient_norm})
    if state.clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, state.clip, norm)
    optimizer.step()


def student_phase(method: Method, *, updates: int = 1) -> tuple[Phase, ...]:
    """The phases of a method that trains the student alone, with so many updates on each batch."""
    update = method.update if updates == 1 else several_updates(updates)
    return (Phase(name="student", trains=("student",), signal=method.signal, loss=method.loss, update=update),)


def several_updates(times: int) -> Callable[[Compute, Optimizer, Batch, Roles, State], None]:
    """An `update` hook that takes ``times`` steps on one batch, each with a new gradient; the signal stays that of before the first."""

    def update(compute: Compute, optimizer: Optimizer, batch: Batch, roles: Roles, state: State) -> None:
        for _ in range(times):
            compute()
            clip_and_step(optimizer, state)

    return update


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Run ``module`` in eval mode for a moment (rollouts, JVPs, scoring); every submodule's mode comes back, also after an exception."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for m, training in modes:
            m.training = training


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One part of an update: the roles it trains and the hooks it uses.

    During a phase only the parameters of ``trains`` require grad, and of those only the ones that did on entry. Gradients still flow
    through the other roles. A phase runs on steps s (from 0) with ``start <= s``, ``s < stop`` and ``(s - start) % every == 0``.
    """

    name: str
    trains: tuple[str, ...]
    signal: Callable[[Batch, Roles, State], Signal]
    loss: Callable[[Batch, Signal, Roles, State], Terms]
    update: Callable[[Compute, Optimizer, Batch, Roles, State], None]
    every: int = 1
    start: int = 0
    stop: int | None = None

    def active(self, step: int) -> bool:
        """Whether the phase runs on step number ``step``, counted from 0."""
        return self.start <= step and (self.stop is None or step < self.stop) and (step - self.start) % self.every == 0


class Method:
    """Base of all methods. Hooks, in the order in which one turn of the loop calls them: `prepare`, then for each phase `signal`,
    `loss` and `update`, then `after_step`.
    """

    coupled: ClassVar[bool] = False  # the loss relates the items of a batch: microbatches are refused
    gradient_free: ClassVar[bool] = False  # never calls compute()
    logits: ClassVar[bool] = True  # the student says logits of batch["x"]
    cached: ClassVar[tuple[str, ...]] = ()  # kinds of teacher cache that can answer for `signal`; see `preceptor.teachers.cache`
    cached_with: ClassVar[Mapping[str, Any]] = {}  # hyper-parameter -> the value that it needs for that
    reads: ClassVar[tuple[str, ...]] = ()  # further data: "valid" is the validation part, at ``state.streams["valid"]``

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Turn a batch of the source into the batch to train on, without gradient (rollouts, attacks, noise, token masks)."""
        return batch

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Compute what the teacher side says about a microbatch; the loop disables gradients."""
        return {}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return named terms with weights applied, one value per item. See `preceptor.core.reduce` for how the loop reduces them."""
        raise NotImplementedError(f"{type(self).__name__} overrides neither loss nor phases")

    def update(self, compute: Compute, optimizer: Optimizer, batch: Batch, roles: Roles, state: State) -> None:
        """Do one update of one phase. The default computes the gradient, clips it and steps."""
        compute()
        clip_and_step(optimizer, state)

    def after_step(self, batch: Batch, records: Mapping[str, Terms], roles: Roles, state: State) -> None:
        """React to a finished step, without gradient. ``records`` holds the reduced terms by phase name."""

    def phases(self) -> tuple[Phase, ...]:
        """The phases of one update; by default one that trains the student."""
        return student_phase(self)

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Networks that the method needs besides those of the user (projectors, peers, critics), built for one example batch.

        Called once before the optimizers are made. Roles that the user already gave are kept.
        """
        return {}

    def stages(self, teacher: nn.Module | None, student: nn.Module) -> tuple[Stage, ...]:
        """A chain of trainings, each with the student of the stage before as its teacher; by default one stage, the student's own."""
        return (Stage(name="student", student=student, method=self),)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of a chain: who learns, and by which method."""

    name: str
    student: nn.Module
    method: Method
