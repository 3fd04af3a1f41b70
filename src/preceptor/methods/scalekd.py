"""ScaleKD: a vision transformer teaches a student of any family through attention projectors and its own last stage.

Paper: Fan, Li, Lin et al. 2024, ScaleKD: Strong Vision Transformers Could Be Excellent Teachers (arXiv:2411.06786).
Claim: convolutional nets, MLPs and small transformers gain from a large pretrained transformer, and the more the larger it is, when their
maps become the teacher's tokens by cross-attention, are compared with and without what is constant over the map, and pass through the
teacher's last stage on the way.
Equation, for the views v, direct and alternative, with projectors C3_v and C4_v, the student's maps S3 and S4, the teacher's map T4:
    Z_v = tail(C3_v(S3)),   Y_v = C4_v(S4, query = Z_v),   D = the distances of `preceptor.losses.dual_view`, as means over positions,
    L = (1 - b) CE(s, y) + b T^2 KL(softmax(t / T) || softmax(s / T)) + sum over Z and Y of (a1 D_direct + a2 D_alternative).
The tail is frozen, gradients flow through it; without a tail, or with one layer of the student, there is stage 4 with a learned query.

Deviations: distances are means over positions where the paper adds them up, which makes its weights grow with the resolution and ruins
short runs: a1 and a2 count 49 times as much there, at 7 x 7. KL in the place of cross-entropy with the teacher's softmax: the gradient is
the same. No windows of attention, and predictions of stage 4 do not pass through a last block once more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, Phase, evaluating
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_choice, check_counts, check_positive, check_unit_interval
from preceptor.losses.divergence import forward_kl
from preceptor.losses.dual_view import dual_view
from preceptor.losses.hard import hard_loss
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.claim import Claim
from preceptor.miniature.patches import patches_world
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import side_by_side
from preceptor.models.attention_projectors import CrossAttentionProjector
from preceptor.models.taps import find_layer, forward

CARD = Card(
    slug="scalekd",
    title="ScaleKD: attention projectors and the teacher's last stage",
    authors="Fan et al. 2024",
    arxiv="2411.06786",
    kind="features",
    tasks=("classification",),
    needs=("teacher", "logits", "features", "labels"),
    equation="L = (1 - b) CE + b T^2 KL + sum over stages of a1 |norm(P) - norm(T)|^2 + a2 |norm(P - mean P) - norm(T - mean T)|^2",
    cost="one forward pass of the teacher, two of its last stage with gradient, and four projectors per step, which are dropped",
    headline="ImageNet from scratch, Swin-L teacher: ResNet-50 82.03 % (+3.39), Mixer-B/16 81.96 (+5.52), ViT-B/16 85.53 (+3.73)",
)


@dataclass(frozen=True, kw_only=True)
class ScaleKD(Method):
    """The role ``projector`` holds a projector per stage and view: ``stage3`` and ``stage4``, direct view first."""

    student_layers: tuple[str, ...] = ()  # one (stage 4) or two (stages 3 and 4) must be given; the paper taps both
    teacher_layers: tuple[str, ...] = ()  # one must be given, the target T4; the paper: the last stage with its norm
    teacher_tail: tuple[str, ...] = ()  # layers that lead from stage 3 to T4, called in turn with tokens or a map; the paper: stage 4
    direct_weight: float = 0.08  # a1 >= 0; the paper's code, on sums over positions
    alternative_weight: float = 0.06  # a2 >= 0; the paper's code, on sums over positions
    soft_weight: float = 0.5  # b in [0, 1], 0: features alone; the paper's code
    temperature: float = 1.0  # T > 0; the paper's code
    heads: int = 2  # of each projector, divides the teacher's widths; the paper: 3 and 6 (Swin-S) to 16 and 24 (Swin-L)
    kappa: float = 5.0  # sharpness of attention, > 0; the paper's code
    norm: Literal["batch", "none"] = "batch"  # in the projectors; the paper's code. "none": examples never influence each other
    student_prefix: int = 0  # tokens before those of the image, dropped; a class token is 1
    teacher_prefix: int = 0  # the same of the teacher; a class token is 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_unit_interval(soft_weight=self.soft_weight)
        check_positive(temperature=self.temperature, kappa=self.kappa)
        check_counts(heads=self.heads)
        check_choice(Literal["batch", "none"], norm=self.norm)
        for name in ("direct_weight", "alternative_weight", "student_prefix", "teacher_prefix"):
            if not vars(self)[name] >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {vars(self)[name]}")

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return the projectors, built for the features of one example batch."""
        self._check()
        source = [f"{self.teacher_tail[0]}:input"] if self.teacher_tail else []
        with torch.no_grad(), evaluating(roles["student"]), evaluating(roles["teacher"]):
            student = forward(roles["student"], batch["x"], self.student_layers).features
            teacher = forward(roles["teacher"], batch["x"], (*self.teacher_layers, *source)).features
        maps = [as_map(student[name], self.student_prefix) for name in self.student_layers]
        target = as_map(teacher[self.teacher_layers[0]], self.teacher_prefix)
        stages = {"stage4": self._pair(maps[-1], target, learned_query=not self.teacher_tail)}
        if self.teacher_tail:
            stages["stage3"] = self._pair(maps[0], as_map(teacher[source[0]], self.teacher_prefix), learned_query=True)
        return {"projector": nn.ModuleDict(stages)}

    def phases(self) -> tuple[Phase, ...]:
        """One phase that trains the student and the projectors."""
        return (Phase(name="student", trains=("student", "projector"), signal=self.signal, loss=self.loss, update=self.update),)

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's logits, its target map, and whether its tail takes maps."""
        self._check()
        source = [f"{self.teacher_tail[0]}:input"] if self.teacher_tail else []
        output = forward(roles["teacher"], batch["x"], (*self.teacher_layers, *source))
        target = as_map(output.features[self.teacher_layers[0]], self.teacher_prefix)
        return {"logits": output.logits, "target": target, "maps": bool(source) and output.features[source[0]].ndim == 4}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return hard and soft terms and the two views of each stage, one value per example."""
        output = forward(roles["student"], batch["x"], self.student_layers)
        maps = [as_map(output.features[name], self.student_prefix) for name in self.student_layers]
        stages = cast(nn.ModuleDict, roles["projector"])
        soft = forward_kl(output.logits, signal["logits"], temperature=self.temperature)
        terms = {
            "hard": (1 - self.soft_weight) * hard_loss(output.logits, batch),
            "soft": self.soft_weight * self.temperature**2 * soft,
        }
        queries: list[Tensor | None] = [None, None]
        if self.teacher_tail:
            queries = [self._tail(roles["teacher"], p, p(maps[0]), maps=signal["maps"]) for p in _projectors(stages, "stage3")]
            terms |= self._views(3, queries, signal["target"])
        found = [p(maps[-1], query) for p, query in zip(_projectors(stages, "stage4"), queries, strict=True)]
        return terms | self._views(4, found, signal["target"])

    def _views(self, stage: int, predictions: Sequence[Tensor | None], target: Tensor) -> Terms:
        """The weighted distances of both views, means over positions."""
        direct, alternative = predictions
        assert direct is not None
        distances = dual_view(direct, target, alternative=alternative)
        positions = target.shape[2] * target.shape[3]
        return {
            f"direct{stage}": self.direct_weight / positions * distances[0],
            f"alternative{stage}": self.alternative_weight / positions * distances[1],
        }

    def _tail(self, teacher: nn.Module, projector: CrossAttentionProjector, tokens: Tensor, *, maps: bool) -> Tensor:
        """Predicted tokens after the teacher's own last layers."""
        x: Any = tokens.transpose(1, 2).unflatten(2, projector.query_grid) if maps else tokens
        for name in self.teacher_tail:
            x = find_layer(teacher, name)(x)
            x = x if isinstance(x, Tensor) else x[0]
        return x.flatten(2).transpose(1, 2) if x.ndim == 4 else x

    def _pair(self, student: Tensor, teacher: Tensor, *, learned_query: bool) -> nn.ModuleList:
        """The projectors of both views, from maps like ``student`` to tokens like ``teacher``."""
        build = {"student_grid": tuple(student.shape[2:]), "query_grid": tuple(teacher.shape[2:]), "heads": self.heads, "kappa": self.kappa}
        build |= {"student_width": student.shape[1], "teacher_width": teacher.shape[1], "norm": self.norm}
        return nn.ModuleList(CrossAttentionProjector(**build, learned_query=learned_query).to(student) for _ in range(2))

    def _check(self) -> None:
        wanted = (1, 2) if not self.teacher_tail else (2,)
        if len(self.student_layers) not in wanted or len(self.teacher_layers) != 1:
            raise ValueError(
                f"scalekd: expected {' or '.join(map(str, wanted))} student_layers and one teacher_layers, got"
                f" {list(self.student_layers)} and {list(self.teacher_layers)}"
            )


def _projectors(stages: nn.ModuleDict, stage: str) -> list[CrossAttentionProjector]:
    return [cast(CrossAttentionProjector, projector) for projector in cast(nn.ModuleList, stages[stage])]


def as_map(features: Tensor, prefix: int = 0) -> Tensor:
    """A map (N, C, H, W) as it is, or tokens (N, prefix + H H, C) as the map of a square grid.

    Raises:
        ValueError: neither, or tokens that make no square.
    """
    if features.ndim == 4:
        return features
    side = math.isqrt(max(features.shape[1] - prefix, 0)) if features.ndim == 3 else 0
    if side == 0 or side * side != features.shape[1] - prefix:
        raise ValueError(
            f"scalekd: expected maps (N, C, H, W) or tokens (N, {prefix} + a square number, C), got {tuple(features.shape)}"
            " (student_prefix and teacher_prefix are the numbers of class tokens)"
        )
    return features[:, prefix:].transpose(1, 2).unflatten(2, (side, side))


def miniature(seed: int, size: Size) -> Miniature:
    """Digits: a transformer over 16 patches teaches a convolutional student, whose two maps have 4 x 4 positions, in parts and whole."""
    world, steps = patches_world(seed, size), 600 if size == "full" else 5
    full = ScaleKD(student_layers=("block1", "block2"), teacher_layers=("norm",), teacher_tail=("blocks.3", "norm"))
    arms = {
        "untrained-teacher": (full, world.untrained),
        "ce": (CrossEntropy(), None),
        "kd": (replace(full, direct_weight=0.0, alternative_weight=0.0), world.teacher),
        "direct": (replace(full, teacher_tail=(), soft_weight=0.0, alternative_weight=0.0), world.teacher),
        "views": (replace(full, teacher_tail=(), soft_weight=0.0), world.teacher),
        "features": (replace(full, soft_weight=0.0), world.teacher),
        "scalekd": (full, world.teacher),
    }
    claims = (
        Claim(name="it teaches more than labels alone", method="scalekd", baseline="ce", metric="accuracy"),
        Claim(name="a trained teacher beats an untrained one", method="scalekd", baseline="untrained-teacher", metric="accuracy"),
        Claim(name="features add to the teacher's logits", method="scalekd", baseline="kd", metric="accuracy"),
    )
    return Miniature(
        arms=side_by_side(world, arms, steps=steps, learning_rate=3e-3, seed=seed),
        claims=claims,
        notes=(f"{len(world.train)} training images, {steps} updates of every student; kd has weight 0 on both views",),
    )
