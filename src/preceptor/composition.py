"""Methods of logits in pieces, and pieces of several methods put together.

The loss of a `LogitMethod` is made of terms that need the student's logits alone, so that others can come between:

    loss = w_hard * hard(s)  +  w_soft * soft(transform(s, t)),

with the logits s of the student and t of the teacher. A `Composed` method takes the terms of one method, the ``transform`` of a second,
the weights of the examples from a third, and the limit on the size of updates from a fourth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from preceptor.core.method import Compute, Method, Phase, Stage
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.losses.hard import hard_loss
from preceptor.models.taps import forward

Update = Callable[[Compute, Optimizer, Batch, Roles, State], None]
"""The hook `update` of a phase."""


class LogitMethod(Method):
    """A method whose loss needs the student's logits alone; it overrides the pieces that it changes, not `loss` or `phases`.

    One that overrides `judge` leaves `prepare` as it is.
    """

    balances: ClassVar[bool] = False  # `weigh` shifts weight between hard and soft terms: it needs both, and the teacher's logits
    soft_weight: float = 1.0  # of the soft terms, a field of methods whose teacher is optional: 0: there are none, and no teacher is asked

    @property
    def sides(self) -> tuple[str, ...]:
        """Which of ``hard`` and ``soft`` have terms."""
        return ("hard",) if type(self).soft is LogitMethod.soft or self.soft_weight == 0 else ("hard", "soft")

    def optional_logits(self, batch: Batch, roles: Roles) -> Signal:
        """Return the teacher's logits where there are soft terms: the `signal` of methods that need no teacher otherwise.

        Raises:
            ValueError: there are soft terms, and no teacher.
        """
        if "soft" not in self.sides:
            return {}
        if "teacher" not in roles:
            raise ValueError(f"soft_weight: expected 0 without a teacher, got {self.soft_weight}")
        return {"logits": forward(roles["teacher"], batch["x"]).logits}

    def transform(self, student: Tensor, teacher: Tensor, batch: Batch, state: State) -> tuple[Tensor, Tensor]:
        """Return the logits (N, ..., C) that the soft terms are to see; gradients flow through the student's."""
        return student, teacher

    def hard(self, logits: Tensor, batch: Batch, state: State) -> Terms:
        """Return the terms that learn from labels, one value per item; here the cross-entropy."""
        return {"hard": hard_loss(logits, batch)}

    def soft(self, logits: Tensor, signal: Signal, batch: Batch, state: State) -> Terms:
        """Return the terms that learn from the teacher, one value per item."""
        return {}

    def extra_terms(self, logits: Tensor, batch: Batch, roles: Roles, state: State) -> Terms:
        """Return terms that need more than logits, such as another forward pass; they are not weighed."""
        return {}

    def weigh(self, logits: Tensor, signal: Signal, batch: Batch, roles: Roles, state: State) -> tuple[Tensor, Tensor] | None:
        """Return constant factors of the hard and of the soft terms, each shaped like a term; None: all are 1. Logits are detached."""
        return None

    def judge(self, whole: LogitMethod, batch: Batch, roles: Roles, state: State) -> Batch:
        """Find what `weigh` and its phases need, before each update and without gradient; return the batch, or a copy with more in it.

        ``whole`` is the method whose examples are weighed, whose `signal` and `items` make up the student's loss.
        """
        return batch

    def weighing_phases(self) -> tuple[Phase, ...]:
        """Return further phases, which train what `weigh` uses; they come before the student's."""
        return ()

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Judge the batch."""
        return self.judge(self, batch, roles, state)

    def items(self, logits: Tensor, signal: Signal, batch: Batch, state: State) -> tuple[Terms, Terms]:
        """Return hard and soft terms without the weights of examples."""
        seen, told = logits, signal
        if "logits" in signal:
            seen, teacher = self.transform(logits, signal["logits"], batch, state)
            told = {**signal, "logits": teacher}
        return self.hard(logits, batch, state), self.soft(seen, told, batch, state)

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return all terms, the weights of the examples applied."""
        logits = forward(roles["student"], batch["x"]).logits
        hard, soft = self.items(logits, signal, batch, state)
        weights = self.weigh(logits.detach(), signal, batch, roles, state)
        if weights is not None:
            hard, soft = (
                {name: weight * term for name, term in terms.items()} for weight, terms in zip(weights, (hard, soft), strict=True)
            )
        return hard | soft | self.extra_terms(logits, batch, roles, state)

    def phases(self) -> tuple[Phase, ...]:
        """Those that train what weighs the examples, then one that trains the student."""
        return (*self.weighing_phases(), *super().phases())


@dataclass(frozen=True, kw_only=True)
class Composed(LogitMethod):
    """The terms of ``base`` with pieces of other methods; made by `compose`, which refuses what makes no sense."""

    base: Method
    transformer: LogitMethod | None = None
    weigher: LogitMethod | None = None
    limiter: Any = None

    @property
    def coupled(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether any part relates the items of a batch."""
        return any(part.coupled for part in self._parts())

    @property
    def reads(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The further data that the parts read."""
        return tuple(dict.fromkeys(name for part in self._parts() for name in part.reads))

    def transform(self, student: Tensor, teacher: Tensor, batch: Batch, state: State) -> tuple[Tensor, Tensor]:
        """What the transforming method, or else the base, makes of the logits."""
        return (self.transformer or self._logits()).transform(student, teacher, batch, state)

    def hard(self, logits: Tensor, batch: Batch, state: State) -> Terms:
        """The base's terms."""
        return self._logits().hard(logits, batch, state)

    def soft(self, logits: Tensor, signal: Signal, batch: Batch, state: State) -> Terms:
        """The base's terms."""
        return self._logits().soft(logits, signal, batch, state)

    def extra_terms(self, logits: Tensor, batch: Batch, roles: Roles, state: State) -> Terms:
        """The base's terms."""
        return self._logits().extra_terms(logits, batch, roles, state)

    def weigh(self, logits: Tensor, signal: Signal, batch: Batch, roles: Roles, state: State) -> tuple[Tensor, Tensor] | None:
        """The weighing method's factors, else the base's."""
        return (self.weigher or self._logits()).weigh(logits, signal, batch, roles, state)

    def weighing_phases(self) -> tuple[Phase, ...]:
        """The weighing method's phases, else the base's."""
        return (self.weigher or self._logits()).weighing_phases()

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Every part's, in turn; the one that judges does so by the loss of the whole."""
        for part in self._parts():
            if isinstance(part, LogitMethod) and type(part).judge is not LogitMethod.judge:
                batch = part.judge(self, batch, roles, state)
            else:
                batch = part.prepare(batch, roles, state)
        return batch

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """What base and weighing method ask of the teacher; where both ask the same, the base's answer counts."""
        said = self.base.signal(batch, roles, state)
        if self.weigher is None or not self.weigher.balances or "logits" in said:
            return said
        return {**self.weigher.signal(batch, roles, state), **said}

    def after_step(self, batch: Batch, records: Any, roles: Roles, state: State) -> None:
        """Every part's, in turn."""
        for part in self._parts():
            part.after_step(batch, records, roles, state)

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Every part's."""
        made: dict[str, nn.Module] = {}
        for part in self._parts():
            made |= part.extra_roles({**roles, **made}, batch)
        return made

    def phases(self) -> tuple[Phase, ...]:
        """The base's where it is only limited, else those that train what weighs and one for the student; the student's are limited."""
        if self.transformer is None and self.weigher is None:
            phases = self.base.phases()
        else:
            *weighing, student = super().phases()
            own = type(self.base).update is not Method.update
            phases = (*weighing, replace(student, update=self.base.update) if own else student)
        if self.limiter is None:
            return phases
        return tuple(replace(phase, update=self.limiter.limit(phase.update)) if "student" in phase.trains else phase for phase in phases)

    def stages(self, teacher: nn.Module | None, student: nn.Module) -> tuple[Stage, ...]:
        """The base's chain; the other parts join in its last training, the student's own."""
        *before, last = self.base.stages(teacher, student)
        return (*before, replace(last, method=replace(self, base=last.method)))

    def _logits(self) -> LogitMethod:
        assert isinstance(self.base, LogitMethod)
        return self.base

    def _parts(self) -> tuple[Method, ...]:
        return tuple(part for part in (self.base, self.transformer, self.weigher) if part is not None)


def compose(base: Method, *, transform: Method | None = None, weight: Method | None = None, cap: Method | None = None) -> Method:
    """Put pieces of methods together.

    Args:
        base: whose terms the student learns by.
        transform: whose `LogitMethod.transform` comes before the soft terms.
        weight: whose `LogitMethod.weigh` gives every example its weight.
        cap: whose ``limit`` bounds every update of the student, whatever the method and the optimizer.

    Returns:
        ``base`` itself where nothing is added to it.

    Raises:
        ValueError: a part offers no such piece, or the base has nothing that it could work on.
    """
    for name, part, piece in (("transform", transform, "transform"), ("weight", weight, "weigh")):
        if part is None:
            continue
        if getattr(type(part), piece, None) in (None, getattr(LogitMethod, piece)):
            raise ValueError(f"method.{name}: expected a method that offers one, got {type(part).__name__}, which does not")
        if not isinstance(base, LogitMethod):
            raise ValueError(f"method.{name}: expected a base whose loss needs logits alone, got {type(base).__name__}")
        if getattr(type(base), piece) is not getattr(LogitMethod, piece):
            raise ValueError(f"method.{name}: expected a base without one of its own, got {type(base).__name__}")
        if (type(base).loss, type(base).phases) != (LogitMethod.loss, LogitMethod.phases):
            raise ValueError(f"method.{name}: expected a base whose loss is made of pieces, got {type(base).__name__}")
        balances = name == "weight" and getattr(part, "balances", False)
        if name == "weight" and base.coupled:
            raise ValueError(f"method.weight: expected a base with a loss of each example alone, got {type(base).__name__}")
        if "soft" not in base.sides and (name == "transform" or balances):
            raise ValueError(f"method.{name}: expected a base that learns from the teacher's logits, got {type(base).__name__}")
        if "hard" not in base.sides and balances:
            raise ValueError(f"method.{name}: expected a base with terms of labels and terms of the teacher, got {type(base).__name__}")
    if cap is not None and not hasattr(cap, "limit"):
        raise ValueError(f"method.cap: expected a method that offers one, got {type(cap).__name__}, which does not")
    if cap is not None and (base.gradient_free or not base.logits or hasattr(base, "limit")):
        why = "trains without gradients" if base.gradient_free else "has one of its own" if base.logits else "trains no logits"
        raise ValueError(f"method.cap: expected a base whose updates can be limited, got {type(base).__name__}, which {why}")
    if transform is None and weight is None and cap is None:
        return base
    return Composed(base=base, transformer=transform, weigher=weight, limiter=cap)  # pyright: ignore[reportArgumentType]
