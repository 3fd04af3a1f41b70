"""Random teachers: an encoder gets better by imitating an untrained, frozen twin of itself.

Paper: Sarnthein, Bachmann, Anagnostidis, Hofmann 2023, Random Teachers are Good Teachers (arXiv:2302.12091).
Claim: a student that starts at or near its random teacher, sees the same inputs and no labels, ends with embeddings that a linear probe
classifies better than the teacher's. It shows what the dynamics of imitation do by themselves, without knowledge in the teacher: the null
teacher that results of distillation are to be compared with. On inputs of noise there is no such gain.
Equation, with an encoder g, a projector h that ends in a bottleneck of length 1, and softmaxes p of both networks' h(g(x)):
    L = -sum_j p_T(x)_j log p_S(x)_j,   student = ((1 - a) teacher + a fresh) / sqrt(a^2 + (1 - a)^2) at the start, in every tensor.
At a = 0 the exact gradient is 0: what moves the student is batch normalisation (the teacher's runs in eval mode) or rounding, which Adam
enlarges to whole steps; plain SGD moves nothing. Such runs are the same on one machine only.
Deviations: the encoder of a classifier is what comes before its class head, and the head is the paper's linear probe, trained meanwhile
from labels on embeddings that pass no gradient back: so the student is a classifier at the end. The paper trains probes afterwards
(`preceptor.metrics.probes`). The teacher is the student as it was given; a pretrained one would be no random teacher.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, Phase, evaluating
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_choice, check_counts, check_logits, check_positive, check_unit_interval
from preceptor.losses.divergence import forward_kl, log_probs
from preceptor.losses.hard import hard_loss
from preceptor.losses.numeric import upcast
from preceptor.miniature.claim import Claim
from preceptor.miniature.encoders import beside_inputs, encoder_world
from preceptor.miniature.run import Miniature, Size
from preceptor.models.bottleneck import BottleneckProjector
from preceptor.models.embeddings import class_head, embed
from preceptor.models.fresh import fresh_copy
from preceptor.models.nulls import interpolate
from preceptor.models.taps import find_layer

CARD = Card(
    slug="random-teachers",
    title="Random teachers: imitating an untrained twin",
    authors="Sarnthein et al. 2023",
    arxiv="2302.12091",
    kind="control",
    tasks=("classification",),
    needs=("embeddings", "labels"),
    equation="L = -sum_j softmax(h_T(g_T(x)))_j log softmax(h_S(g_S(x)))_j, the teacher random and frozen; labels for the probe alone",
    cost="one forward pass of a twin of the student and of its projector per step, and a projector of 2^16 outputs to train",
    headline="linear probe on CIFAR-10, teacher -> student: ResNet-18 35.5 -> 46.0 %, VGG-11 36.6 -> 52.0 (raw pixels 39.0)",
)

Distance = Literal["cross-entropy", "kl", "mse"]
"""What is between the two networks: cross-entropy of softmaxes, the same less the teacher's entropy, or squares of logits."""


def distances(
    student: Tensor, teacher: Tensor, *, distance: Distance = "cross-entropy", temperature: float = 1.0, teacher_temperature: float = 1.0
) -> Tensor:
    """How far a student's outputs are from its teacher's.

    Sarnthein et al. 2023 (arXiv:2302.12091): -sum_j p_j log q_j, in nats; KL(p || q), in nats; or mean_j (s_j - t_j)^2, no unit.

    Args:
        student: logits, shape (N, m).
        teacher: logits, same shape; treated as constant.
        distance: see `Distance`.
        temperature: of the student's softmax q, > 0.
        teacher_temperature: of the teacher's p, > 0.
    Returns:
        Shape (N,), >= 0; the cross-entropy is never below the teacher's entropy, the others are 0 at agreement.
    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes differ, a temperature is out of range, or the distance is unknown.
    """
    check_choice(Distance, distance=distance)
    if distance == "kl":
        return forward_kl(student, teacher, temperature=temperature, teacher_temperature=teacher_temperature)
    check_logits(student=student, teacher=teacher)
    check_positive(temperature=temperature, teacher_temperature=teacher_temperature)
    if distance == "mse":
        return (upcast(student) - upcast(teacher.detach())).square().mean(dim=-1)
    p = log_probs(teacher.detach(), temperature=teacher_temperature).exp()
    return -(p * log_probs(student, temperature=temperature)).sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class RandomTeachers(Method):
    """The roles ``random_teacher`` and ``random_projector`` are the student and its ``projector`` before their weights are mixed."""

    interpolation: float = 1e-10  # a in [0, 1], 0: the teacher, 1: another draw; the paper's code, Sec. 4 varies it
    distance: Distance = "cross-entropy"  # the paper
    teacher_temperature: float = 1.0  # > 0; the paper
    student_temperature: float = 1.0  # > 0; the paper
    projector_width: int = 2048  # of both hidden layers; the paper
    bottleneck: int = 256  # k; the paper
    num_outputs: int = 2**16  # m; the paper, whose ablation finds m near k to be enough
    unit_features: bool = True  # length 1 in the bottleneck; the paper
    unit_weights: bool = True  # length 1 of the last rows; the paper's text and script, not its package, which ignores it by a mistake
    probe_weight: float = 1.0  # of the class head's loss, > 0; a probe of its own has 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_unit_interval(interpolation=self.interpolation)
        check_choice(Distance, distance=self.distance)
        check_positive(
            teacher_temperature=self.teacher_temperature, student_temperature=self.student_temperature, probe_weight=self.probe_weight
        )
        check_counts(projector_width=self.projector_width, bottleneck=self.bottleneck, num_outputs=self.num_outputs)

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return the teacher, which is the student as it is, and both projectors; then mix other weights into the student."""
        student = roles["student"]
        with torch.no_grad(), evaluating(student):
            example = embed(student, batch["x"])[1]
        projector = BottleneckProjector(
            inputs=example.shape[1],
            hidden=(self.projector_width,) * 2,
            bottleneck=self.bottleneck,
            outputs=self.num_outputs,
            unit_features=self.unit_features,
            unit_weights=self.unit_weights,
        ).to(example)
        twins = {"random_teacher": copy.deepcopy(student), "random_projector": copy.deepcopy(projector)}
        for network in (student, projector):
            start, fresh = (dict(model.named_parameters()) for model in (network, fresh_copy(network)))
            with torch.no_grad():
                for name, value in interpolate(start, fresh, self.interpolation).items():
                    start[name].copy_(value)
        return {"projector": projector, **twins}

    def phases(self) -> tuple[Phase, ...]:
        """One phase that trains the student and its projector."""
        return (Phase(name="student", trains=("student", "projector"), signal=self.signal, loss=self.loss, update=self.update),)

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the random teacher's outputs."""
        return {"outputs": roles["random_projector"](embed(roles["random_teacher"], batch["x"])[1])}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the distance from the teacher, which trains the encoder, and the probe's cross-entropy, which trains the class head."""
        student = roles["student"]
        vectors = embed(student, batch["x"])[1]
        said = distances(
            roles["projector"](vectors),
            signal["outputs"],
            distance=self.distance,
            temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
        )
        probe = find_layer(student, class_head(student))(vectors.detach())
        return {"imitation": said, "probe": self.probe_weight * hard_loss(probe, batch)}


def miniature(seed: int, size: Size) -> Miniature:
    """2,000 images of MNIST: encoders taught by their untrained twins, on equal budget, measured by probes trained afterwards.

    The null baseline is the twin itself. "raw-inputs" are the pixels, "noise-inputs" a student that imitated on Gaussian noise, and
    "one-epoch" the student of the method after a fifth of the updates.
    """
    world, steps = encoder_world(seed, size), 100 if size == "full" else 25
    width = 2048 if size == "full" else 32
    near = RandomTeachers(projector_width=width, bottleneck=64, num_outputs=1024)
    arms = {
        "random-teachers": near,
        "halfway-start": replace(near, interpolation=0.5),
        "other-start": replace(near, interpolation=1.0),
        "noise-inputs": near,
    }
    measured = beside_inputs(world, arms, steps=steps, seed=seed, on_noise=("noise-inputs",))
    claims = (
        ("the student's embeddings beat its teacher's", "untrained-teacher", "linear"),
        ("they do so also by a probe trained ten times as long", "untrained-teacher", "linear_long"),
        ("noise teaches nothing", "noise-inputs", "linear"),
    )
    return Miniature(
        arms=measured | beside_inputs(world, {"one-epoch": near}, steps=steps // 5, seed=seed),
        claims=tuple(Claim(name=name, method="random-teachers", baseline=other, metric=metric) for name, other, metric in claims),
        notes=(f"{len(world.train)} images to imitate on and to train probes with, {steps} updates of every student but one-epoch's",),
    )
