"""How a student is trained, whatever the method: a validated description, shared by recipes and by `preceptor.distill`."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from preceptor.core.method import Method
from preceptor.core.types import Roles

HIGHER_IS_BETTER = {
    "accuracy": True,
    "top5": True,
    "robust_accuracy": True,
    "agreement": True,
    "rank_correlation": True,
    "nll": False,
    "perplexity": False,
    "brier": False,
    "ece": False,
    "classwise_ece": False,
    "adaptive_ece": False,
    "kl_to_teacher": False,
}
"""The metrics that can choose the best weights, and which way each is better."""

BESIDE_TEACHER = ("agreement", "rank_correlation", "kl_to_teacher")
"""Those that compare with a teacher."""

Positive = Annotated[int, Field(ge=1)]


class Attack(BaseModel):
    """Projected gradient ascent against a student, in the maximum norm: how robust its accuracy is."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    epsilon: Annotated[float, Field(gt=0)]
    """Largest change of a pixel."""
    steps: Positive = 20
    """Each of 2.5 epsilon / steps."""


class Training(BaseModel):
    """Optimisation, stopping, checkpoints. Unknown or mistyped fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    epochs: Annotated[float, Field(gt=0)] = 10.0
    """Passes over the training images; ``steps`` overrules it."""
    steps: Positive | None = None
    """Updates in all."""
    batch_size: Positive = 128
    """Examples per update, all processes together."""
    micro: Positive = 1
    """Microbatches per update (gradient accumulation)."""
    optimizer: str = "AdamW"
    """A class of torch.optim."""
    learning_rate: Annotated[float, Field(ge=0)] = 1e-3
    optimizer_options: dict[str, Any] = {}
    """Further arguments of the optimizer, such as ``{weight_decay: 0.05}``."""
    schedule: str = "cosine"
    """``cosine`` (with warm-up), ``constant`` (with warm-up), or a class of torch.optim.lr_scheduler stepped once per update."""
    schedule_options: dict[str, Any] = {}
    """Arguments of such a class."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Part of the updates in which the learning rate rises linearly from 0, for ``cosine`` and ``constant``."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest global gradient norm."""
    precision: Literal["no", "bf16"] = "no"
    """``bf16``: forward passes in bfloat16 where that is safe, weights in float32."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the student, which is then what is validated and kept."""
    evaluate_every: Positive | None = None
    """Updates between validations; by default a twentieth of the run."""
    monitor: str = "accuracy"
    """Validation metric that chooses the weights that are kept."""
    patience: Positive | None = None
    """Validations without improvement before stopping."""
    checkpoint_every: Positive | None = None
    """Updates between checkpoints; by default at every validation."""
    keep: Positive = 2
    """Checkpoints kept."""
    skip_nonfinite: Annotated[int, Field(ge=0)] = 0
    """Batches with a non-finite loss that may be dropped before the run stops."""
    num_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that read a data set that is not in memory."""

    @model_validator(mode="after")
    def _known_names(self) -> Training:
        _known("monitor", self.monitor, [name for name in HIGHER_IS_BETTER if name != "robust_accuracy"])
        optimizer = _class("optimizer", self.optimizer, torch.optim, Optimizer)
        _accepts("optimizer_options", optimizer, self.optimizer_options)
        if self.schedule in ("cosine", "constant"):
            if self.schedule_options:
                raise ValueError(f"schedule_options: expected none for {self.schedule!r}, got {sorted(self.schedule_options)}")
        else:
            scheduler = _class("schedule", self.schedule, torch.optim.lr_scheduler, LRScheduler, also=("cosine", "constant"))
            _accepts("schedule_options", scheduler, self.schedule_options)
        return self

    @property
    def mode(self) -> Literal["max", "min"]:
        """Whether ``monitor`` is to be large or small."""
        return "max" if HIGHER_IS_BETTER[self.monitor] else "min"

    def total_steps(self, batches_per_epoch: int) -> int:
        """Updates in all."""
        return self.steps or max(1, round(self.epochs * batches_per_epoch))

    def build(self, method: Method, roles: Roles, steps: int) -> tuple[dict[str, Optimizer], dict[str, LRScheduler]]:
        """Make an optimizer and a schedule for each phase of a method.

        Raises:
            ValueError: a phase of a method that needs gradients trains nothing.
        """
        optimizers, schedulers = {}, {}
        for phase in method.phases():
            if method.gradient_free:
                continue
            parameters = [p for role in phase.trains for p in roles[role].parameters() if p.requires_grad]
            if not parameters:
                raise ValueError(
                    f"roles: phase {phase.name!r} trains {list(phase.trains)}, expected a parameter that requires grad, got none"
                )
            optimizers[phase.name] = self._optimizer(parameters)
            schedulers[phase.name] = self._scheduler(optimizers[phase.name], steps)
        return optimizers, schedulers

    def _optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return vars(torch.optim)[self.optimizer](parameters, lr=self.learning_rate, **self.optimizer_options)

    def _scheduler(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        if self.schedule not in ("cosine", "constant"):
            return vars(torch.optim.lr_scheduler)[self.schedule](optimizer, **self.schedule_options)
        rise = round(self.warmup * steps)
        cosine = self.schedule == "cosine"

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / (rise + 1)
            return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) if cosine else 1.0

        return LambdaLR(optimizer, factor)


def _known(field: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ValueError(f"{field}: expected one of {', '.join(known)}, got {name!r} (nearest: {near[0]})")


def _class(field: str, name: str, module: Any, base: type, *, also: Iterable[str] = ()) -> type:
    found = {key: value for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base) and value is not base}
    _known(field, name, [*also, *found])
    return found[name]


def _accepts(field: str, cls: type, options: Mapping[str, Any]) -> None:
    allowed = [name for name in inspect.signature(cls).parameters if name not in ("params", "lr", "optimizer", "last_epoch")]
    for name in options:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.0)
            raise ValueError(f"{field}.{name}: expected an argument of {cls.__name__}, nearest: {near[0] if near else 'none'}")
