"""Ghosts of softmax: how far a step may go before no local model of the cross-entropy can be trusted, as a monitor and as a cap.

Paper: Sao 2026, Ghosts of Softmax: Complex Singularities That Limit Safe Step Sizes in Cross-Entropy (arXiv:2603.13552).
Claim: the cross-entropy is the logarithm of a sum of exponentials; along a step that sum has complex zeros, and the nearest one is the
radius of convergence of every Taylor model of the loss. Steps capped at that radius survive spikes of the learning rate that ruin training.
Equation, for a step p of length tau = |p| over all parameters, with v = p / tau and the slopes a(x) = J_logits(x) v of the logits:
    rho = pi T / max_x (max_k a_k - min_k a_k),   r = tau / rho,   applied step = p min(1, 1 / r),
with the temperature T of the loss. For two classes the radius is exactly sqrt(d^2 + pi^2) / |a_1 - a_2|, d the difference of the logits.
Deviations: the step is what the optimizer did to the parameters, taken back in part, so any optimizer, schedule and `update` hook is capped
as it is; its moments stay. The released ``RhoScaledAdam`` uses the spread of the logits, without derivative; the paper's rule is here.
r < 1 promises convergence of the linearised series, r >= 1 is no prediction of failure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from preceptor.composition import Update
from preceptor.core.method import Compute, Method, NonFinite
from preceptor.core.reduce import gathered, num_examples
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.rows import join, take
from preceptor.losses.checks import check_choice, check_counts, check_labels, check_positive, check_same_shape, check_unit_interval
from preceptor.losses.hard import hard_loss
from preceptor.losses.numeric import upcast
from preceptor.methods.ce import CrossEntropy
from preceptor.metrics.cost import device_of, to_device
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.spikes import spiked
from preceptor.models.functional import along, logits_at
from preceptor.models.taps import forward

CARD = Card(
    slug="ghosts",
    title="Step cap from the complex zeros of the softmax",
    authors="Sao 2026",
    arxiv="2603.13552",
    kind="optimisation",
    tasks=("classification",),
    needs=("labels",),
    equation="rho = pi T / max_x spread(J_logits(x) p / |p|); the step p is shortened to the length rho where it is longer",
    cost="a copy of the weights and one forward-mode pass per step: about as much again as a forward pass or two",
    headline="digits, a 10,000-fold spike of the learning rate: 95.3 % (transformer) where plain training ends at 31.8 %",
)

Mode = Literal["cap", "set", "watch"]
Estimate = Literal["bound", "top-2"]
Over = Literal["batch", "train"]


def radius(logits: Tensor, slopes: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Lower bound of the radius of convergence of each item's linearised loss.

    Sao 2026 (arXiv:2603.13552): sum_k exp((z_k + t a_k) / T) has no zero with |t| < pi T / (max a - min a).

    Args:
        logits: z, shape (..., classes); a class with -inf does not count.
        slopes: a, their derivatives along a direction, same shape.
        temperature: T > 0 of the loss.

    Returns:
        Shape (...), > 0, in units of the direction; inf where no difference of logits moves, such as with a single class.

    Raises:
        ValueError: shapes differ, or temperature <= 0.
    """
    check_same_shape(logits=logits, slopes=slopes)
    check_positive(temperature=temperature)
    masked = torch.isneginf(logits)
    slopes = upcast(slopes)
    spread = slopes.masked_fill(masked, -torch.inf).amax(dim=-1) - slopes.masked_fill(masked, torch.inf).amin(dim=-1)
    return math.pi * temperature / spread.clamp_min(0)


def top2_radius(logits: Tensor, slopes: Tensor, labels: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Radius of each item as if there were two classes, its own and the most likely other one: exact for two classes.

    Sao 2026 (arXiv:2603.13552): rho = sqrt(d^2 + (pi T)^2) / |a_y - a_c|,   d = z_y - z_c. With more classes an estimate, no bound.

    Args:
        logits: z, shape (..., classes); a class with -inf does not count.
        slopes: a, their derivatives along a direction, same shape.
        labels: y, shape (...), integers in [0, classes).
        temperature: T > 0 of the loss.

    Returns:
        Shape (...), > 0, in units of the direction; inf where the two logits move alike, or there is one class.

    Raises:
        TypeError: labels are not integers.
        ValueError: shapes do not fit, a label is out of range, or temperature <= 0.
    """
    check_same_shape(logits=logits, slopes=slopes)
    check_labels(labels, logits)
    check_positive(temperature=temperature)
    own = labels.long().unsqueeze(-1)
    logits, slopes = upcast(logits), upcast(slopes)
    rival = logits.scatter(-1, own, -torch.inf).argmax(dim=-1, keepdim=True)
    gap, speed = (values.gather(-1, own).squeeze(-1) - values.gather(-1, rival).squeeze(-1) for values in (logits, slopes))
    alone = ~gap.isfinite()
    return torch.hypot(gap.masked_fill(alone, 0.0), gap.new_tensor(math.pi * temperature)) / speed.masked_fill(alone, 0.0).abs()


def kl_quadratic(logits: Tensor, slopes: Tensor, step: float, *, from_start: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """KL between the predictions before and after a step along which logits move linearly, its quadratic model, and a bound on the rest.

    Sao 2026 (arXiv:2603.13552), with the two directions as its repository has them; the paper's appendix swaps them:
        | KL - t^2 Var_p0(a) / 2 | <= |t|^3 (max a - min a)^3 / C,   C = 36 sqrt(3) of KL(p_0 || p_t), 18 sqrt(3) of KL(p_t || p_0).

    Args:
        logits: z, shape (..., classes), finite.
        slopes: a, same shape.
        step: t.
        from_start: whether KL(p_0 || p_t), else KL(p_t || p_0).

    Returns:
        KL, model and bound, each of shape (...), in nats.

    Raises:
        ValueError: shapes differ.
    """
    check_same_shape(logits=logits, slopes=slopes)
    logits, slopes = upcast(logits), upcast(slopes)
    before, after = logits.log_softmax(dim=-1), (logits + step * slopes).log_softmax(dim=-1)
    p = before.exp()
    mean = (p * slopes).sum(dim=-1, keepdim=True)
    model = step**2 / 2 * (p * (slopes - mean) ** 2).sum(dim=-1)
    actual = (p * (before - after)).sum(dim=-1) if from_start else (after.exp() * (after - before)).sum(dim=-1)
    spread = slopes.amax(dim=-1) - slopes.amin(dim=-1)
    return actual, model, (abs(step) * spread) ** 3 / ((36 if from_start else 18) * math.sqrt(3))


@dataclass(frozen=True, kw_only=True)
class Ghosts(Method):
    """Cross-entropy with labels, its steps capped; `limit` caps those of any other method. Logs ``r``, ``rho`` and ``tau``."""

    mode: Mode = "cap"  # Sec. 5.3; "set": every step gets the length r rho (schedule-free), "watch": nothing but the log
    r: float = 1.0  # normalised step at most, or exactly, > 0; Sec. 5.3: 1 (schedule-free 2 still trains, 4 does not)
    over: Over = "batch"  # whose radii count: the batch, or all training data; the paper's spikes use all, at the cost of a pass per step
    subsample: int = 0  # so many of these examples, drawn anew each step; 0: all. Our addition
    quantile: float = 1.0  # of the inverse radii; 1: the smallest radius counts, below (0.99) outliers do not, and nothing is promised
    estimate: Estimate = "bound"  # Sec. 5.3; "top-2": exact for two classes, else an estimate, with labels
    temperature: float = 1.0  # T > 0 of the softmax in the loss; Sec. 5: slopes are divided by it
    differences: bool = False  # slopes by central differences even where forward mode is there; Sec. 5.3 measures both

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_choice(Mode, mode=self.mode)
        check_choice(Over, over=self.over)
        check_choice(Estimate, estimate=self.estimate)
        check_positive(r=self.r, temperature=self.temperature)
        check_unit_interval(quantile=self.quantile)
        if self.subsample:
            check_counts(subsample=self.subsample)

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the cross-entropy, one value per example."""
        return {"hard": hard_loss(forward(roles["student"], batch["x"]).logits, batch)}

    def update(self, compute: Compute, optimizer: Optimizer, batch: Batch, roles: Roles, state: State) -> None:
        """One usual update, capped."""
        self.limit(super().update)(compute, optimizer, batch, roles, state)

    def limit(self, update: Update) -> Update:
        """Return a hook that does an update and shortens what it did to the parameters.

        All that the optimizer moves counts as one step, other networks in the same phase included; radii are the student's.
        """

        def limited(compute: Compute, optimizer: Optimizer, batch: Batch, roles: Roles, state: State) -> None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            if any(isinstance(p, DTensor) for p in parameters):
                raise ValueError("method.cap: expected weights that are whole on every process, got sharded ones")
            before = [p.detach().clone() for p in parameters]
            update(compute, optimizer, batch, roles, state)
            steps = [p.detach() - old for p, old in zip(parameters, before, strict=True)]
            tau = float(torch.stack([step.double().norm() for step in steps]).norm())
            moved = {id(p): (old, step) for p, old, step in zip(parameters, before, steps, strict=True)}
            named = {name: moved[id(p)] for name, p in roles["student"].named_parameters() if id(p) in moved}
            r = self._normalised(roles["student"], named, batch, state) if math.isfinite(tau) and tau and named else 0.0
            state.log |= {"r": r, "rho": tau / r if r else math.inf, "tau": tau}
            scale = self.r / r if r and (self.mode == "set" or (self.mode == "cap" and r > self.r)) else 1.0
            broken = not math.isfinite(tau) or not math.isfinite(r)
            with torch.no_grad():
                for p, old, step in zip(parameters, before, steps, strict=True):
                    if broken or scale != 1.0:
                        p.copy_(old if broken else old + scale * step)
            if broken:
                raise NonFinite("update", state.step, {"tau": tau, "r": r})

        return limited

    def _normalised(self, student: nn.Module, moved: Mapping[str, tuple[Tensor, Tensor]], batch: Batch, state: State) -> float:
        """The length of a step in radii: slopes along the whole step give radii in units of it."""
        weights, step = ({name: upcast(pair[i]) for name, pair in moved.items()} for i in (0, 1))
        shares = []
        for part in self._examples(batch, state):
            x = to_device(part["x"], device_of(student))
            logits, slopes = along(lambda w, x=x: logits_at(student, w, x), weights, step, differences=self.differences)
            if self.estimate == "bound":
                share = 1 / radius(logits, slopes, temperature=self.temperature)
            else:
                share = 1 / top2_radius(logits, slopes, part["y"].to(logits.device), temperature=self.temperature)
            shares.append(share[part["mask"].to(share.device) > 0] if "mask" in part else share.flatten())
        share = torch.cat(shares)
        share = gathered(share) if self.over == "batch" else share
        if not share.numel():
            return 0.0
        return float(share.max() if self.quantile == 1 else share.double().quantile(self.quantile))

    def _examples(self, batch: Batch, state: State) -> list[Batch]:
        parts = [batch] if self.over == "batch" or state.source is None else list(state.source.scan())
        if not self.subsample:
            return parts
        whole = join(parts)
        total = num_examples(whole)
        generator = torch.Generator().manual_seed(state.seed + state.step)  # not state.rng: processes hold different numbers of examples
        return [take(whole, torch.randperm(total, generator=generator)[: self.subsample])]


def miniature(seed: int, size: Size) -> Miniature:
    """Digits, an MLP, Adam at 1e-2, and one step of 200 at a thousand times that rate: capped, clipped, and as it comes."""
    spike = 1000.0
    arms = {
        "untrained": spiked(CrossEntropy(), seed=seed, size=size, learning_rate=0.0),
        "ce": spiked(CrossEntropy(), seed=seed, size=size, factor=spike),
        "ce-clipped": spiked(CrossEntropy(), seed=seed, size=size, factor=spike, clip=1.0),
        "ce-without-spike": spiked(CrossEntropy(), seed=seed, size=size, factor=1.0),
        "ghosts": spiked(Ghosts(over="train"), seed=seed, size=size, factor=spike),
    }
    return Miniature(
        arms=arms,
        claims=(
            Claim(name="capped steps survive a spike of the learning rate", method="ghosts", baseline="ce", metric="accuracy"),
            Claim(name="better than with clipped gradients", method="ghosts", baseline="ce-clipped", metric="accuracy"),
        ),
        notes=("200 updates of 64 images, radii over all training images",) if size == "full" else (),
    )
