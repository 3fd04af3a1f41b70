"""FreeFlow: a flow map from the prior's noise alone, by a predictor along the teacher's flow and a corrector of what it makes.

Paper: Tong, Ma, Xie, Jaakkola 2025, Flow Map Distillation Without Data (arXiv:2511.19428).
Claim: where flow maps are distilled on noised data, the data may not be where the teacher goes. At time 1 noise and teacher agree, so noise
is enough: the student learns to ride the teacher's velocity from there, and a second term repairs what errors on the way do to its samples.
Equation, with velocities u towards the data, time 1 at the noise, f(z, d) = z + d F(z, d), constants in brackets:
    prediction    F . [w (F + d dF/dd - u(f, 1 - d))],   w = 1 / (|.|^2 / D + eps)^k,    on 3/4 of the noise,
    correction    b F(z, 1) . [g(x_r, r) - u(x_r, r)],   x_r = (1 - r) f(z, 1) + r n,    on the rest,
    velocity      |g(x_r, r) - (f(z, 1) - n)|^2,         which trains g, the velocity of the student's own samples,
b makes both brackets equally long on average, times alpha. g is updated first. Samples are z + F(z, 1).
Deviations: eps, h of differences, uniform durations and the way in which a network takes its duration are our choice, as no training code
is out; terms are means over the D numbers of a point, where the paper sums. An average of the student to sample from is
``train(..., ema=0.999)`` with a role ``ema``; a role ``auxiliary`` with adapters is g by LoRA. A source of data is refused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, Phase, evaluating
from preceptor.core.reduce import gathered, rank, world_size
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.priors import Prior, draw_times
from preceptor.losses.checks import check_choice, check_positive, check_unit_interval
from preceptor.losses.flow import (
    balance,
    correction_mismatch,
    guided,
    lengths,
    map_point,
    mismatch_weight,
    noised,
    prediction_mismatch,
    pull,
)
from preceptor.losses.numeric import upcast
from preceptor.miniature.claim import Claim
from preceptor.miniature.flows import beside_solver
from preceptor.miniature.run import Miniature, Size
from preceptor.teachers.flow import Derivative, ask, jump, slope

CARD = Card(
    slug="freeflow",
    title="FreeFlow: flow maps without data",
    authors="Tong et al. 2025",
    arxiv="2511.19428",
    kind="flow map",
    tasks=("generation",),
    needs=("teacher",),
    equation="grad = F . [w (F + d dF/dd - u(f, 1 - d))] + b F(z, 1) . [g(x_r, r) - u(x_r, r)], f = z + d F, brackets constant",
    cost="per step one pass of the teacher, three forward passes of the student and one backward, a quarter of g's; no data",
    headline="ImageNet 256, FID: SiT-XL/2+REPA teacher in 434 evaluations 1.37, its student in one 1.45; 1.49 on 512 x 512",
)

_ROW = "freeflow/"  # keys that `prepare` adds to a batch


@dataclass(frozen=True, kw_only=True)
class FreeFlow(Method):
    """Networks are called as `preceptor.teachers.flow` says; the source is a `Prior`; ``auxiliary`` is a copy of the teacher by default."""

    logits: ClassVar[bool] = False
    prediction_rate: float = 0.75  # share of each batch for prediction, in [0, 1]; the paper. 1: no corrector, 0: no predictor
    power: float = 1.0  # k >= 0; the paper, where both terms are used; alone it hardly matters
    eps: float = 1e-2  # of the weight, > 0; our choice
    alpha: float = 1.0  # correction over prediction, > 0; the paper (0.3 to 3 all fine)
    derivative: Derivative = "jvp"  # of F by the duration; the paper. "difference" where a network has no forward mode
    difference: float = 1e-2  # h of the backward difference, > 0; our choice
    durations: tuple[float, float] | None = None  # mean and deviation of a normal under a sigmoid, None: uniform in [0, 1]; our choice
    noise_levels: tuple[float, float] | None = (0.8, 1.0)  # the same of r; the paper
    noise_range: tuple[float, float] = (0.0, 1.0)  # that r is cut to; the paper: without high noise it fails
    guidance: float | tuple[float, float] = 1.0  # 1: none; two ends: drawn between them and told to student and auxiliary; the paper
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # times with guidance in prediction; our choice, that of the teacher's sampler
    correction_interval: tuple[float, float] = (0.0, 0.7)  # times with guidance in correction; the paper
    null_class: int | None = None  # label that stands for no condition; needed with guidance, depends on the teacher
    min_time: float = 1e-3  # teachers are asked no nearer to the data; our choice, flows onto single points are singular there

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_unit_interval(prediction_rate=self.prediction_rate, min_time=self.min_time)
        check_positive(eps=self.eps, alpha=self.alpha, difference=self.difference)
        check_choice(Derivative, derivative=self.derivative)
        if not self.power >= 0:
            raise ValueError(f"power: expected a number >= 0, got {self.power}")
        for name in ("guidance_interval", "correction_interval"):
            low, high = vars(self)[name]
            if not 0 <= low <= high <= 1:
                raise ValueError(f"{name}: expected two rising numbers in [0, 1], got {vars(self)[name]}")
        if self.guidance != 1 and self.null_class is None:
            raise ValueError(f"null_class: expected the label for no condition with guidance {self.guidance}, got None")
        draws = torch.Generator()
        draw_times(0, draws, normal=self.durations)
        draw_times(0, draws, normal=self.noise_levels, interval=self.noise_range)

    @property
    def coupled(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether mean lengths over the batch balance two terms."""
        return 0 < self.prediction_rate < 1

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return the auxiliary network, a copy of the teacher, where there is a corrector."""
        if self.prediction_rate == 1 or "auxiliary" in roles:
            return {}
        auxiliary = copy.deepcopy(roles["teacher"]).requires_grad_(True)
        if isinstance(self.guidance, tuple) or next(auxiliary.parameters(), None) is None:
            why = "the teacher has no weights to start from" if self.guidance == 1 else "guidance is drawn, and a teacher does not take it"
            raise ValueError(f"roles: expected a network 'auxiliary', as {why}, got {sorted(roles)}")
        return {"auxiliary": auxiliary}

    def phases(self) -> tuple[Phase, ...]:
        """The auxiliary network, where there is a corrector, then the student."""
        student = Phase(name="student", trains=("student",), signal=self.signal, loss=self.loss, update=self.update)
        beside = Phase(name="auxiliary", trains=("auxiliary",), signal=super().signal, loss=self.velocity_loss, update=self.update)
        return (student,) if self.prediction_rate == 1 else (beside, student)

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Part the noise into predicted and corrected points, draw times, make the student's samples of the latter and noise them."""
        if not isinstance(state.source, Prior):
            raise ValueError(f"source: expected preceptor.data.priors.Prior, noise without data, got {type(state.source).__name__}")
        if self.guidance != 1 and "cond" not in batch:
            raise ValueError(f"cond: expected classes with guidance {self.guidance}, got a source without any (num_classes=0)")
        z = batch["x"]
        count = len(z)
        predicted = torch.arange(count, device=z.device) < round(self.prediction_rate * count)
        if self.coupled and predicted.all() | ~predicted.any():
            raise ValueError(f"batch: expected enough points for prediction_rate={self.prediction_rate}, got {count}")

        def times(normal: tuple[float, float] | None, interval: tuple[float, float] = (0.0, 1.0)) -> Tensor:
            drawn = draw_times(count * world_size(), state.rng, normal=normal, interval=interval)[rank() :: world_size()]
            return drawn.to(device=z.device, dtype=upcast(z).dtype)

        durations, levels = times(self.durations), times(self.noise_levels, self.noise_range)
        added = {"durations": torch.where(predicted, durations, 1.0), "levels": levels, "predicted": predicted}
        if self.guidance != 1:
            low, high = self.guidance if isinstance(self.guidance, tuple) else (self.guidance, self.guidance)
            added["guidance"] = low + (high - low) * times(None)
        made = {**batch, **{_ROW + key: value for key, value in added.items()}}
        chosen = _rows(made, ~predicted)
        samples = z.clone()
        with evaluating(roles["student"]) as student:
            samples[~predicted] = jump(student, chosen["x"], chosen.get("cond"), guidance=self._told(chosen))
        made |= {f"{_ROW}samples": samples, f"{_ROW}points": noised(samples, batch["noise"], levels)}
        return made | {"mask/prediction": predicted.float(), "mask/correction": 1.0 - predicted.float(), "mask/velocity": ~predicted}

    def velocity_loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return how far the auxiliary network is from x0 - n, one value per point, 0 for those that are predicted."""
        chosen = ~batch[f"{_ROW}predicted"]
        rows = _rows(batch, chosen)
        error = upcast(self._noising(roles["auxiliary"], rows)) - upcast(rows[f"{_ROW}samples"] - rows["noise"])
        values = error.new_zeros(len(chosen))
        values[chosen] = error.square().flatten(1).mean(dim=1)
        return {"velocity": values}

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return mismatches (N, ...) and their weights (N,)."""
        predicted = batch[f"{_ROW}predicted"]
        mismatch = torch.zeros_like(upcast(batch["x"]))
        weight = mismatch.new_ones(len(predicted))
        if predicted.any():
            rows = _rows(batch, predicted)
            mismatch[predicted] = self._prediction(roles, rows).to(mismatch)
            weight[predicted] = mismatch_weight(mismatch[predicted], power=self.power, eps=self.eps)
        if not predicted.all():
            rows = _rows(batch, ~predicted)
            points, levels = rows[f"{_ROW}points"], rows[f"{_ROW}levels"]
            velocity = self._velocity(roles["teacher"], points, levels, rows, self.correction_interval)
            mismatch[~predicted] = correction_mismatch(self._noising(roles["auxiliary"], rows), velocity).to(mismatch)
        long = lengths(mismatch)
        if self.coupled:
            weighted = gathered((weight * long)[predicted])
            weight[~predicted] = balance(weighted, gathered(long[~predicted]), alpha=self.alpha)
        for name, group in {"prediction": predicted, "correction": ~predicted}.items():
            if group.any():
                state.log[f"freeflow/mismatch/{name}"] = float(long[group].mean())
        return {"mismatch": mismatch, "weight": weight}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the terms in use, one value per point, each under its own mask."""
        average = ask(roles["student"], batch["x"], batch[f"{_ROW}durations"], batch.get("cond"), self._told(batch))
        pulled = pull(average, signal["mismatch"], signal["weight"])
        used = {"prediction": self.prediction_rate > 0, "correction": self.prediction_rate < 1}
        return {name: pulled for name, use in used.items() if use}

    def _prediction(self, roles: Roles, rows: Batch) -> Tensor:
        """F + d dF/dd - u(f, 1 - d)."""
        z, durations = rows["x"], rows[f"{_ROW}durations"]
        with evaluating(roles["student"]) as student:
            average, by_duration = slope(
                lambda d: ask(student, z, d, rows.get("cond"), self._told(rows)),
                durations,
                derivative=self.derivative,
                step=self.difference,
            )
        velocity = self._velocity(roles["teacher"], map_point(z, average, durations), 1 - durations, rows, self.guidance_interval)
        return prediction_mismatch(average, by_duration, velocity, durations)

    def _noising(self, auxiliary: nn.Module, rows: Batch) -> Tensor:
        """g(x_r, r)."""
        return ask(auxiliary, rows[f"{_ROW}points"], rows[f"{_ROW}levels"], rows.get("cond"), self._told(rows))

    def _velocity(self, teacher: nn.Module, x: Tensor, times: Tensor, rows: Batch, interval: tuple[float, float]) -> Tensor:
        """u(x, t), guidance included."""
        times, cond = times.clamp(min=self.min_time), rows.get("cond")
        velocity = ask(teacher, x, times, cond)
        if cond is None or self.guidance == 1 or self.null_class is None:
            return velocity
        nothing = ask(teacher, x, times, torch.full_like(cond, self.null_class))
        return guided(velocity, nothing, rows[f"{_ROW}guidance"], times, interval=interval)

    def _told(self, rows: Batch) -> Tensor | None:
        """The strength of guidance where networks are told it."""
        return rows[f"{_ROW}guidance"] if isinstance(self.guidance, tuple) else None


def _rows(batch: Batch, chosen: Tensor) -> Batch:
    """Some points of a batch."""
    return {key: value[chosen] for key, value in batch.items()}


def miniature(seed: int, size: Size) -> Miniature:
    """Eight Gaussians on a ring, their exact velocity as the teacher; students in one step, of width 64 and 16, on equal budget."""
    both = FreeFlow(alpha=0.3, derivative="difference")
    arms = {
        "prediction-alone": replace(both, prediction_rate=1.0),
        "correction-alone": replace(both, prediction_rate=0.0),
        "freeflow": both,
    }
    measured, notes = beside_solver(arms, seed=seed, size=size)
    claims = (
        Claim(name="it learns", method=CARD.slug, baseline="untrained-student", metric="w2", direction="lower"),
        Claim(
            name="nearer than one step of Euler, by more than 1",
            method=CARD.slug,
            baseline="euler-1",
            metric="w2",
            direction="lower",
            margin=1.0,
        ),
        Claim(name="the predictor keeps the way", method=CARD.slug, baseline="correction-alone", metric="path_error", direction="lower"),
        Claim(
            name="the corrector helps a small student", method=CARD.slug, baseline="prediction-alone", metric="w2_narrow", direction="lower"
        ),
    )
    return Miniature(arms=measured, claims=claims, notes=notes)
