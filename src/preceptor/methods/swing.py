"""Swing distillation: temperatures that rise with the privacy of each token, and noise, keep a teacher's secrets from its student.

Paper: Swing Distillation: A Privacy-Preserving Knowledge Distillation Framework 2022 (arXiv:2212.08349).
Claim: a student learns secrets that its teacher memorised, and with them a student leaks them; a temperature for each token, high where
the token is likely private, and noisy soft targets keep most secrets out at next to no cost for the task.
Equation, with teacher logits t_i, student logits s_i and the privacy score rho_i in [0, 1] of the token that position i is to predict:
    T_i = T_0 + (T_max - T_0) rho_i^k,   q_i = P(softmax(t_i / T_i) + rho_i xi_i),   xi_i ~ Laplace(0, b) or N(0, b^2) per class,
    L_i = w T_0^2 KL(q_i || softmax(s_i / T_0)) + h (1 - rho_i) CE(s_i, y_i),
where P brings a vector back to the distributions with no class below ``floor``. The student is not heated: with
T_i^2 KL(softmax(t_i / T_i) || softmax(s_i / T_i)), ``asymmetric=False``, the minimum is s = t at every temperature, so that the secret
is only learned more slowly. Labels of private tokens would tell the secret, hence 1 - rho.

Scores come with the batch as ``privacy``, shaped like ``y``, or from ``detector``, see `preceptor.data.privacy`. What it misses is learned
in full. Noise is drawn from the run's seed, the example's id, the position and the step; ``frozen_noise`` leaves out the step, since noise
that is fresh in each epoch averages out. Whoever knows the seed can compute it. b = 2 / epsilon for one released target, by itself no
guarantee of differential privacy: targets are released again and again, and T_i depends on the data. Mixup would mix secrets into others.

Deviations: reconstructed from the abstract; map of temperatures, form of the noise and asymmetry are ours. Positive noise adds up to
V b / 2 and drowns the target in a large vocabulary: above ``noise_classes``, b is multiplied by noise_classes / V. (Noise on the likeliest
classes alone would tell which.) A class with a teacher's logit of -inf stays at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from preceptor.composition import LogitMethod
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.privacy import Detector, Noise, find_detector, item_seeds, privacy_scores, seeded_noise
from preceptor.losses.checks import check_choice, check_logits, check_same_shape
from preceptor.losses.divergence import log_probs
from preceptor.losses.hard import hard_loss
from preceptor.losses.numeric import lift_to_zero, upcast
from preceptor.losses.shielded import blurred, check_noise, privacy_temperature
from preceptor.methods.classic_kd import ClassicKD
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.secrets import beside_plain, secret_world
from preceptor.models.taps import forward

CARD = Card(
    slug="swing",
    title="Swing distillation: temperatures by privacy, noisy targets",
    authors="Swing Distillation 2022",
    arxiv="2212.08349",
    kind="logits",
    tasks=("classification", "language"),
    needs=("teacher", "logits", "labels"),
    equation="L = T_0^2 KL(P(softmax(t / T_i) + rho_i noise) || softmax(s / T_0)), T_i = T_0 + (T_max - T_0) rho_i",
    cost="one forward pass of the teacher per step, and scores of privacy",
    headline="exposure of planted secrets over 80 % below that of plain distillation, quality of the task on par",
)


def swing_targets(
    teacher: Tensor,
    privacy: Tensor,
    *,
    t_base: float = 1.0,
    t_max: float = 8.0,
    power: float = 1.0,
    noise_scale: float = 0.0,
    noise: Noise = "laplace",
    noise_minimum: float = 0.0,
    noise_classes: int = 64,
    floor: float = 1e-6,
    seeds: Tensor | None = None,
) -> Tensor:
    """What the student is to predict: the teacher's prediction, flattened and blurred where it is private. Equation: see the module.

    Args:
        teacher: logits, shape (..., classes); constant.
        privacy: rho, shape (...), in [0, 1].
        t_base, t_max, power: see `preceptor.losses.shielded.privacy_temperature`.
        noise_scale: b >= 0 with at most ``noise_classes`` possible classes, in units of probability; 0 for no noise.
        noise: its shape.
        noise_minimum: in [0, 1]; the noise of an item is multiplied by max(rho, noise_minimum).
        noise_classes: at least 1.
        floor: least probability of a class of an item with noise, > 0 and below 1 / classes.
        seeds: int64 (...), all that the noise of an item depends on, see `preceptor.data.privacy.item_seeds`; None: no noise.

    Returns:
        Probabilities (..., classes), in float32 or float64. Items whose noise is multiplied by 0 are the softened teacher exactly.

    Raises:
        TypeError: logits are not floating point.
        ValueError: a shape does not fit, a number is outside its range, or there is noise without seeds.
    """
    check_same_shape(teacher=teacher[..., 0], privacy=privacy)
    check_noise(noise_scale=noise_scale, noise_minimum=noise_minimum, noise_classes=noise_classes)
    rho = privacy.to(upcast(teacher[..., 0]).dtype)
    temperature = privacy_temperature(rho, t_base=t_base, t_max=t_max, power=power)
    targets = log_probs(teacher.detach(), temperature=temperature).exp()
    factor = rho.clamp_min(noise_minimum)
    rows = factor > 0
    if noise_scale == 0 or not rows.any():
        return targets
    if seeds is None:
        raise ValueError(f"seeds: expected one for each item where noise_scale is {noise_scale}, got none")
    check_same_shape(privacy=privacy, seeds=seeds)
    possible = ~torch.isneginf(teacher[rows])
    possible |= ~possible.any(dim=-1, keepdim=True)
    count = possible.sum(dim=-1, keepdim=True).to(targets.dtype)
    scale = noise_scale * (noise_classes / count).clamp_max(1.0) * factor[rows].unsqueeze(-1)
    drawn = seeded_noise(seeds[rows], teacher.shape[-1], noise).to(targets.dtype)
    return targets.index_put((rows,), blurred(targets[rows], scale * drawn, floor=floor, possible=possible))


def swing_loss(
    student: Tensor,
    targets: Tensor,
    privacy: Tensor,
    *,
    t_base: float = 1.0,
    t_max: float = 8.0,
    power: float = 1.0,
    mask: Tensor | None = None,
    asymmetric: bool = True,
) -> Tensor:
    """Divergence of the student from shielded targets, in nats times the square of its temperature.

    asymmetric: T_0^2 KL(targets || softmax(s / T_0));   symmetric: T_i^2 KL(targets || softmax(s / T_i)).

    Args:
        student: logits, shape (..., classes).
        targets: of `swing_targets`, same shape; constant.
        privacy: rho, shape (...), in [0, 1].
        t_base, t_max, power: as the targets were made with.
        mask: shape (...), 0 where an item does not count; its loss and its gradient are 0, whatever it holds.
        asymmetric: see above.

    Returns:
        Shape (...), >= 0, in float32 or float64.

    Raises:
        TypeError: student or targets are not floating point.
        ValueError: a shape does not fit, or a number is outside its range.
    """
    check_logits(student=student, teacher=targets)
    check_same_shape(student=student[..., 0], privacy=privacy)
    if mask is not None:
        check_same_shape(privacy=privacy, mask=mask)
        counts = mask != 0
        rows = (values[counts] for values in (student, targets, privacy))
        values = swing_loss(*rows, t_base=t_base, t_max=t_max, power=power, asymmetric=asymmetric)
        return values.new_zeros(mask.shape).masked_scatter(counts, values)
    heated = privacy_temperature(privacy.to(upcast(student[..., 0]).dtype), t_base=t_base, t_max=t_max, power=power)
    temperature = torch.full_like(heated, t_base) if asymmetric else heated
    log_q = log_probs(student, temperature=temperature)
    p = targets.detach().to(log_q.dtype)
    return temperature**2 * lift_to_zero((torch.xlogy(p, p) - p * log_q).sum(dim=-1))


@dataclass(frozen=True, kw_only=True)
class Swing(LogitMethod):
    """Distillation at a temperature for each item, with noise on what is private. Logs the mean score as ``privacy``."""

    cached: ClassVar[tuple[str, ...]] = ("logits",)

    detector: Detector | str | None = None  # scores of batches without, a function or its "module:name"; the paper
    t_base: float = 1.0  # T_0 > 0; our pilot, plain language modelling
    t_max: float = 20.0  # T_max >= T_0; our pilot, 8 to 20
    power: float = 1.0  # > 0; linear, our choice
    noise_scale: float = 0.2  # b >= 0; our pilot, 0.05 to 0.2
    noise: Noise = "laplace"  # our choice
    noise_minimum: float = 0.0  # in [0, 1], least factor of the noise, 1: all items as much; our choice, none on what is public
    noise_classes: int = 64  # classes up to which b is taken as it is; our choice, see the module
    floor: float = 1e-6  # least probability where there is noise; our choice
    frozen_noise: bool = False  # the same noise in every epoch; our addition
    asymmetric: bool = True  # the student is not heated; our choice, see the module
    soft_weight: float = 1.0  # w >= 0; our choice
    hard_weight: float = 0.0  # h >= 0 of the cross-entropy; our choice, the paper's abstract names none

    def __post_init__(self) -> None:
        """Check the ranges, and find a detector that is named."""
        privacy_temperature(torch.zeros(0), t_base=self.t_base, t_max=self.t_max, power=self.power)
        check_choice(Noise, noise=self.noise)
        check_noise(noise_scale=self.noise_scale, noise_minimum=self.noise_minimum, noise_classes=self.noise_classes)
        for name in ("soft_weight", "hard_weight"):
            if not vars(self)[name] >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {vars(self)[name]}")
        object.__setattr__(self, "detector", find_detector(self.detector))

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """None; refuses, before the first step, a batch that nobody can score."""
        privacy_scores(batch, self.detector)
        return {}

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Score the batch once."""
        scores = privacy_scores(batch, self.detector)
        state.log["privacy"] = float(scores.double().mean())
        return {**batch, "privacy": scores}

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's logits."""
        return {"logits": forward(roles["teacher"], batch["x"]).logits}

    def hard(self, logits: Tensor, batch: Batch, state: State) -> Terms:
        """Return the cross-entropy, less where an item is private."""
        return {"hard": self.hard_weight * (1 - _prepared(batch, logits)) * hard_loss(logits, batch)}

    def soft(self, logits: Tensor, signal: Signal, batch: Batch, state: State) -> Terms:
        """Return the divergence from the shielded teacher, one value per item."""
        privacy = _prepared(batch, logits)
        swing = {name: vars(self)[name] for name in ("t_base", "t_max", "power")}
        blur = {name: vars(self)[name] for name in ("noise_scale", "noise", "noise_minimum", "noise_classes", "floor")}
        seeds = item_seeds(batch["id"], privacy.shape, state.seed, *[state.step] * (not self.frozen_noise))
        targets = swing_targets(signal["logits"], privacy, seeds=seeds, **swing, **blur)
        loss = swing_loss(logits, targets, privacy, **swing, mask=batch.get("mask"), asymmetric=self.asymmetric)
        return {"soft": self.soft_weight * loss}


def _prepared(batch: Batch, logits: Tensor) -> Tensor:
    """The scores; all is private where nobody prepared the batch."""
    return batch["privacy"] if "privacy" in batch else torch.ones(logits.shape[:-1], device=logits.device)


def miniature(seed: int, size: Size) -> Miniature:
    """Secrets in a small text; see `preceptor.miniature.secrets`. "masked" leaves private tokens out of the loss, "classic-kd" has T_0."""
    world = secret_world(seed, size)
    kd = ClassicKD(temperature=1.0, alpha=1.0)
    methods = {
        "noise-alone": Swing(t_max=1.0),
        "temperature-alone": Swing(noise_scale=0.0),
        "symmetric": Swing(noise_scale=0.0, asymmetric=False),
        "swing": Swing(),
    }

    def claim(baseline: str, metric: str, margin: float, name: str, direction: Literal["lower", "higher"] = "lower") -> Claim:
        return Claim(name=name, method="swing", baseline=baseline, metric=metric, margin=margin, direction=direction)

    return Miniature(
        arms=beside_plain(world, kd, methods, hidden={"masked": kd}),
        claims=(
            claim("classic-kd", "relative_exposure", 0.6, "exposure at least 60 % below plain distillation"),
            claim("classic-kd", "relative_perplexity", -0.05, "perplexity at most 5 % above it"),
            claim("noise-alone", "exposure", 0.0, "noise alone hides less"),
            claim("symmetric", "exposure", 0.0, "a student heated with its teacher hides less"),
            claim("masked", "digit_mass", 0.0, "digits stay likelier where a number stands than without these tokens", "higher"),
            claim("untrained", "digit_mass", 0.0, "and likelier than by chance: it teaches that a number comes", "higher"),
        ),
        notes=(f"{len(world.train['id'])} rows of 48 characters, {world.steps} updates of the teacher and of every student",),
    )
