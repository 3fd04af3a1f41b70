"""Talking Models: teacher and student exchange learned messages; the student solves its task also from what the teacher answers.

Paper: Zhao et al. 2023, Talking Models: Distill Pre-trained Knowledge to Downstream Models via Interactive Communication
(arXiv:2310.03188).
Claim: a teacher with another task, other classes and other widths can teach, where logits cannot be matched: the student tells what it
sees in its own data, the teacher thinks about it with its own layers and answers.
Equation: f = top(mid(low(x))) of each network, u = low(x), s = mid(u), with an encoder E and a decoder D of each, m_0 = E_g(s_g), and
    n_r = E_T(mid_T(D_T(m_{r-1}))),   s_r = mid_g(D_g(n_r)),   m_r = E_g(s_r),   r = 1..R,
    L = l(top_g(s_g), y) + w_int mean_r l(top_g(s_r), y) + w_MC d(E_g(s_g), E_T(s_T))
        + w_SC [d(D_g(E_T(s_T)), u_g) + d(D_T(E_g(s_g)), u_T)] + w_R d(D_T(E_T(s_T)), u_T),   d(a, b) = |a/|a| - b/|b||^2.
The teacher's weights never move, but gradients pass through them from the student's answer back to its message.
Deviations: no code was found and the paper's formulas were not at hand: the exact losses, d, the form of E and D and the weights are a
reconstruction. The last term is ours: constant messages would agree, too. A conversation is held in eval mode, and the teacher is never
unfrozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method, Phase, evaluating
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_choice, check_counts, check_floating, check_same_shape
from preceptor.losses.hard import hard_loss
from preceptor.losses.numeric import upcast
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.fitnets import FitNets
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.unlabelled import unlabelled_world
from preceptor.models.conversation import Translator, resume
from preceptor.models.taps import forward, layer_names

CARD = Card(
    slug="talking-models",
    title="Talking Models: interactive communication",
    authors="Zhao et al. 2023",
    arxiv="2310.03188",
    kind="features",
    tasks=("classification", "regression"),
    needs=("teacher", "features", "labels"),
    equation="L = l(top s_g, y) + w_int mean_r l(top s_r, y) + w_MC d(E_g s_g, E_T s_T) + w_SC [d(D_g E_T s_T, u_g) + d(D_T E_g s_g, u_T)]",
    cost="1 + R forward passes of the teacher with a backward pass through R of them, and R more of the student; translators are dropped",
    headline="gains over other distillation in images and recommendation (abstract; no figure could be verified)",
)

Distance = Literal["cosine", "mse"]
"""``cosine``: between directions, in [0, 4]; ``mse``: mean squared difference."""


class Conversation(NamedTuple):
    """R rounds between student and teacher about one batch."""

    messages: list[Tensor]  # of the student, R + 1 times (N, M): m_0, ..., m_R
    replies: list[Tensor]  # of the teacher, R times (N, M)
    answers: list[Tensor]  # the student's outputs after each reply, R times


def state_distance(a: Tensor, b: Tensor, *, distance: Distance = "cosine") -> Tensor:
    """How far two states or messages are apart, no unit; both get gradient.

    Args:
        a: shape (N, ...).
        b: same shape.
        distance: see `Distance`; a vector shorter than 1e-8 is divided by that.
    Returns:
        Shape (N,), >= 0.
    Raises:
        TypeError: not floating point.
        ValueError: shapes differ, there is no axis of examples, or the distance is unknown.
    """
    check_floating(a=a, b=b)
    check_choice(Distance, distance=distance)
    check_same_shape(a=a, b=b)
    if a.ndim < 2:
        raise ValueError(f"a: expected shape (N, ...), got {tuple(a.shape)}")
    x, y = upcast(a).flatten(1), upcast(b).flatten(1)
    if distance == "mse":
        return (x - y).square().mean(dim=1)
    return (F.normalize(x, dim=1, eps=1e-8) - F.normalize(y, dim=1, eps=1e-8)).square().sum(dim=1)


def task_loss(output: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy, (N,) in nats; of labels that are not whole numbers the squared error of an output (N,) or (N, 1)."""
    if "targets" in batch or not batch["y"].is_floating_point():
        return hard_loss(output, batch)
    if output.numel() != batch["y"].numel():
        raise ValueError(f"y: expected one number for each output {tuple(output.shape)}, got {tuple(batch['y'].shape)}")
    return (upcast(output).reshape(len(output)) - batch["y"].reshape(len(output))).square()


@dataclass(frozen=True, kw_only=True)
class TalkingModels(Method):
    """The roles ``student_translator`` and ``teacher_translator`` hold the encoders and decoders.

    An example with ``y`` below 0, or NaN, has no label: it is talked about, but counts in neither task nor interaction. A batch without
    ``y`` is all such examples.
    """

    student_split: tuple[str, ...] = ()  # must be given: lower and upper layer; reconstruction, the first and the last hidden block
    teacher_split: tuple[str, ...] = ()  # must be given: lower and upper layer; reconstruction, the first and the last hidden block
    message_dim: int = 64  # M >= 1; reconstruction, 32 to 128
    hidden: int = 64  # units in encoders and decoders, >= 1; reconstruction, 64 to 512
    rounds: int = 1  # R >= 0; reconstruction
    interaction_weight: float = 1.0  # w_int >= 0; reconstruction (0 and 0.1 were better in a pilot of ours)
    message_weight: float = 1.0  # w_MC >= 0; reconstruction
    state_weight: float = 1.0  # w_SC >= 0; reconstruction
    reconstruction_weight: float = 0.1  # w_R >= 0; ours, keeps the teacher's messages from becoming all the same
    distance: Distance = "cosine"  # reconstruction
    warmup_steps: int = 0  # first steps that train the teacher's translator alone; ours, 0: none

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_counts(message_dim=self.message_dim, hidden=self.hidden)
        check_choice(Distance, distance=self.distance)
        for name in ("rounds", "interaction_weight", "message_weight", "state_weight", "reconstruction_weight", "warmup_steps"):
            if not vars(self)[name] >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {vars(self)[name]}")

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return the translators, built for the states of one example batch."""
        self._check_splits(roles)
        made = {}
        for role, layers in (("student", self.student_split), ("teacher", self.teacher_split)):
            with torch.no_grad(), evaluating(roles[role]):
                low, high = forward(roles[role], batch["x"], layers).features.values()
            sizes = {"message": self.message_dim, "hidden": self.hidden, "rectified": bool((low >= 0).all())}
            made[f"{role}_translator"] = Translator(high.shape, low.shape, **sizes).to(low)
        return {name: module for name, module in made.items() if name not in roles}

    def phases(self) -> tuple[Phase, ...]:
        """One phase that trains the student and both translators, after the warm-up of the teacher's."""
        trains = ("student", "student_translator", "teacher_translator")
        main = Phase(name="student", trains=trains, signal=self.signal, loss=self.loss, update=self.update, start=self.warmup_steps)
        if not self.warmup_steps:
            return (main,)
        hooks = {"signal": self.signal, "loss": self.warmup_loss, "update": self.update}
        return (Phase(name="warmup", trains=("teacher_translator",), stop=self.warmup_steps, **hooks), main)

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Write the masks of task and interaction where labels are missing."""
        if "y" not in batch or "targets" in batch:
            return batch
        labelled = batch["y"] >= 0 if not batch["y"].is_floating_point() else ~batch["y"].isnan()
        if labelled.all():
            return batch
        masks = {key: labelled * batch.get(key, batch.get("mask", 1.0)) for key in ("mask/hard", "mask/interaction")}
        return {**batch, **{key: mask.float() for key, mask in masks.items()}, "y": batch["y"].where(labelled, 0)}

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's lower and upper states."""
        self._check_splits(roles)
        low, high = forward(roles["teacher"], batch["x"], self.teacher_split).features.values()
        return {"low": low, "high": high}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the terms whose weight is not 0, one value per example."""
        output = forward(roles["student"], batch["x"], self.student_split)
        low, high = output.features.values()
        labelled = "y" in batch or "targets" in batch
        terms = {"hard": task_loss(output.logits, batch)} if labelled else {}
        if labelled and self.rounds and self.interaction_weight:
            answers = self._talk(roles, batch["x"], high).answers
            terms["interaction"] = self.interaction_weight * torch.stack([task_loss(a, batch) for a in answers]).mean(dim=0)
        if not self.message_weight + self.state_weight:
            return terms
        apart = partial(state_distance, distance=self.distance)
        student, teacher = _translator(roles, "student"), _translator(roles, "teacher")
        said, taught = student.say(high), teacher.say(signal["high"])
        if self.message_weight:
            terms["messages"] = self.message_weight * apart(said, taught)
        if self.state_weight:
            terms["states"] = self.state_weight * (apart(student.hear(taught), low) + apart(teacher.hear(said), signal["low"]))
        if self.reconstruction_weight:
            terms["reconstruction"] = self.reconstruction_weight * apart(teacher.hear(taught), signal["low"])
        return terms

    def warmup_loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return how far the teacher is from understanding its own messages."""
        teacher = _translator(roles, "teacher")
        return {"reconstruction": state_distance(teacher.hear(teacher.say(signal["high"])), signal["low"], distance=self.distance)}

    def converse(self, roles: Roles, x: Tensor | Mapping[str, Any]) -> Conversation:
        """What student and teacher say to each other about inputs, for inspection: without gradient."""
        self._check_splits(roles)
        with torch.no_grad(), evaluating(roles["student"]), evaluating(roles["teacher"]):
            return self._talk(roles, x, forward(roles["student"], x, self.student_split[1:]).features[self.student_split[1]])

    def _talk(self, roles: Roles, x: Tensor | Mapping[str, Any], high: Tensor) -> Conversation:
        said = Conversation([_translator(roles, "student").say(high)], [], [])
        for _ in range(self.rounds):
            message = said.messages[-1]
            for role, layers in (("teacher", self.teacher_split), ("student", self.student_split)):
                translator = _translator(roles, role)
                output = resume(roles[role], x, layers[0], translator.hear(message), layers[1:])
                message = translator.say(output.features[layers[1]])
                (said.replies if role == "teacher" else said.messages).append(message)
            said.answers.append(output.logits)
        return said

    def _check_splits(self, roles: Roles) -> None:
        for role, layers in (("student", self.student_split), ("teacher", self.teacher_split)):
            if len(layers) != 2 or layers[0] == layers[1]:
                known = ", ".join(layer_names(roles[role])[:8]) or "none"
                raise ValueError(f"{role}_split: expected two layers, the lower and the upper, got {list(layers)}, the {role} has {known}")


def _translator(roles: Roles, role: str) -> Translator:
    return cast(Translator, roles[f"{role}_translator"])


def miniature(seed: int, size: Size) -> Miniature:
    """Images of six attributes: a teacher of the attributes, students of four classes made of them, 300 labels and 3,000 images without.

    Every arm sees the same 50 labelled and 50 unlabelled images a step. "talking-models" has the consistency terms alone: in a pilot
    interaction at weight 1 took away what they gave. "interaction-1" is the whole loss; "hint" regresses the teacher's upper states.
    """
    world = unlabelled_world(seed, size)
    talk = partial(TalkingModels, student_split=("hidden1", "hidden2"), teacher_split=("hidden1", "hidden2"))
    arms: dict[str, tuple[Method, nn.Module | None]] = {
        "untrained-teacher": (talk(interaction_weight=0.0), world.untrained),
        "alone": (CrossEntropy(), None),
        "hint": (FitNets(student_layers=("hidden2",), teacher_layers=("hidden2",), hint_weight=1.0, norm="none"), world.teacher),
        "talking-models": (talk(interaction_weight=0.0), world.teacher),
        "interaction-0.1": (talk(interaction_weight=0.1), world.teacher),
        "interaction-1": (talk(), world.teacher),
    }
    measured = {name: world.taught_by(method, teacher) for name, (method, teacher) in arms.items()}
    claim = partial(Claim, method="talking-models", metric="accuracy")
    return Miniature(
        arms=measured,
        claims=(
            claim(name="consistent messages teach a point more than labels alone", baseline="alone", margin=0.01),
            claim(name="they teach more than those of an untrained teacher", baseline="untrained-teacher"),
            claim(name="they are at most a point worse than a hint", baseline="hint", margin=-0.01),
        ),
        notes=(f"{world.notes}, {world.steps} updates of every student",),
    )
