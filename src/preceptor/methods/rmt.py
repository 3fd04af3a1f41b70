"""RMT: a classifier in use adapts to a stream without labels whose inputs keep changing.

Paper: Döbler, Marsden, Yang 2022, Robust Mean Teacher for Continual and Gradual Test-Time Adaptation (arXiv:2211.13081).
Claim: every batch is answered once and learned from once. A mean teacher under a symmetric cross-entropy, a pull towards the class
prototypes of the source data, and replay of some of them lower the error of a changing stream without collapse.
Equation, with x~ a random view of x, s the student, e its moving average, f, f~ the embeddings and P the prototypes:
    L = w_st (SCE(s(x), e(x)) + SCE(s(x~), e(x))) / 2 + w_cl L_contrast(f, f~, P) + w_src CE(s(x_src), y_src),
    SCE(s, e) = -(1 - a) sum_c q_c log p_c - a sum_c p_c log q_c,   p = softmax(s), q = softmax(e),   e <- m e + (1 - m) s.
The answer is s(x) + e(x), both from before the update. Batch normalisation uses the batch's own statistics throughout.
Labels of the batch are never read. Labelled source data are the stream ``source``, else the validation part, which is then to be of the
domain that the student was trained on. `preceptor.core.online.Online` answers and adapts; `warm_up` comes before.
Deviations: running statistics are not removed, but follow the student's own pass over x, so that a saved student fits the end of the
stream. Without source data neither replay nor prototypes can be had, unless these are given: that is an error, not a silent change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from preceptor.core.method import Method, Phase, evaluating
from preceptor.core.online import PREDICTION
from preceptor.core.reduce import gathered
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.stream import Stream
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.data.random_views import RandomViews
from preceptor.losses.checks import check_logits, check_positive, check_unit_interval
from preceptor.losses.contrastive import prototype_contrast
from preceptor.losses.divergence import log_probs
from preceptor.losses.hard import hard_loss
from preceptor.metrics.cost import device_of, to_device
from preceptor.miniature.claim import Claim
from preceptor.miniature.drifting import drifting_world
from preceptor.miniature.run import Miniature, Size
from preceptor.models.embeddings import embed
from preceptor.models.norms import batch_norms, by_batch
from preceptor.models.taps import forward
from preceptor.teachers.means import means_by_class

CARD = Card(
    slug="rmt",
    title="Robust mean teacher: adaptation at test time",
    authors="Döbler et al. 2022",
    arxiv="2211.13081",
    kind="adaptation",
    tasks=("classification",),
    needs=("embeddings", "labels"),
    equation="L = mean over two views of SCE(student, mean teacher) + contrast with source prototypes + CE on source; answer s(x) + e(x)",
    cost="three passes of the student forward and backward (two views, source) and one of the mean teacher: about 3.3 times a step",
    headline="corruptions at severity 5, error: CIFAR10-C 17.0 % (source 43.5, CoTTA 16.5), CIFAR100-C 30.2, ImageNet-C 59.9 (CoTTA 63.1)",
)


def symmetric_cross_entropy(student: Tensor, teacher: Tensor, *, alpha: float = 0.5) -> Tensor:
    """Cross-entropy from both sides, which weighs sure and unsure examples alike.

    Döbler et al. 2022 (arXiv:2211.13081), Eq. 3: -(1 - a) sum_c q_c log p_c - a sum_c p_c log q_c, p = softmax(student). By student
    logit k the gradient is (1 - a) (p_k - q_k) + a p_k (sum_c p_c log q_c - log q_k).

    Args:
        student: logits, shape (..., classes).
        teacher: logits, same shape; treated as constant.
        alpha: share of the reverse part, in [0, 1]; 0: cross-entropy with the teacher's softmax as target.

    Returns:
        Shape (...), in nats, >= 0; the entropy of p where both agree.

    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes differ, or alpha is outside [0, 1].
    """
    check_logits(student=student, teacher=teacher)
    check_unit_interval(alpha=alpha)
    log_p, log_q = log_probs(student), log_probs(teacher.detach())
    return -((1 - alpha) * log_q.exp() * log_p + alpha * log_p.exp() * log_q).sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class RMT(Method):
    """Roles: ``student``, which starts as the source model, ``mean_teacher``, its average, and ``projector``."""

    coupled: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("valid",)

    alpha: float = 0.5  # a, share of the reverse cross-entropy; the release
    momentum: float = 0.999  # m in [0, 1] of the mean teacher; Sec. 4
    temperature: float = 0.1  # tau > 0 of the contrast; Sec. 4
    self_training_weight: float = 1.0  # w_st >= 0; Sec. 4
    contrast_weight: float = 1.0  # w_cl >= 0; Sec. 4
    source_weight: float = 1.0  # w_src >= 0, 0: the source-free variant; Sec. 4
    projector_width: int = 128  # of both layers of the projector, 0: none; the release
    augment: Callable[[Any, torch.Generator], Any] | None = None  # (x, generator) -> a random view of x; None: `RandomViews()`, the release
    prototypes: Tensor | None = None  # (classes, D), made beforehand; None: means over the source data, Sec. 3.2
    student_layer: str = ""  # where the embedding is read; Sec. 3.2: before the class head, which is found where none is given

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_unit_interval(alpha=self.alpha, momentum=self.momentum)
        check_positive(temperature=self.temperature)
        for name in ("self_training_weight", "contrast_weight", "source_weight", "projector_width"):
            if not vars(self)[name] >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {vars(self)[name]}")

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return a copy of the student, and the projector."""
        with torch.no_grad(), by_batch(roles["student"]):
            embeddings = embed(roles["student"], batch["x"], self.student_layer)[1]
        width = self.projector_width
        layers = [nn.Linear(embeddings.shape[1], width), nn.ReLU(), nn.Linear(width, width)] if width else []
        return {"mean_teacher": deepcopy(roles["student"]), "projector": nn.Sequential(*layers).to(embeddings)}

    def phases(self) -> tuple[Phase, ...]:
        """One phase that trains the student and the projector."""
        return (Phase(name="student", trains=("student", "projector"), signal=self.signal, loss=self.loss, update=self.update),)

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Add a view of the inputs and the next source batch; see to the prototypes, the first time."""
        student, x = roles["student"], batch["x"]
        if isinstance(x, Tensor) and len(x) == 1 and batch_norms(student):
            raise ValueError("x: expected at least 2 examples where batch normalisation uses the batch, got 1; see Online's window")
        if self.contrast_weight and "rmt/prototypes" not in state.memory:
            state.memory["rmt/prototypes"] = self._source_means(student, x, state) if self.prototypes is None else self.prototypes.to(x)
        made = {**batch, "rmt/view": (self.augment or RandomViews())(x, state.rng)}
        if self.source_weight:
            source = next(_source(state))
            made["rmt/source"] = {key: to_device(source[key], device_of(student)) for key in ("x", "y")}
        return made

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the mean teacher's logits."""
        with by_batch(roles["mean_teacher"]):
            return {"logits": forward(roles["mean_teacher"], batch["x"]).logits}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the self-training term, one value per example, and contrast and replay, 0-dimensional; note the answer."""
        student, teacher = roles["student"], signal["logits"]
        with by_batch(student, track=True):
            logits, features = embed(student, batch["x"], self.student_layer)
        state.memory[PREDICTION] = (logits + teacher).detach()
        with by_batch(student):
            view_logits, view_features = embed(student, batch["rmt/view"], self.student_layer)
        plain, viewed = (symmetric_cross_entropy(each, teacher, alpha=self.alpha) for each in (logits, view_logits))
        terms = {"self_training": self.self_training_weight / 2 * (plain + viewed)}
        if self.contrast_weight:
            f, g = (gathered(each[batch["mask"] > 0] if "mask" in batch else each) for each in (features, view_features))
            prototypes = torch.as_tensor(state.memory["rmt/prototypes"])
            contrast = prototype_contrast(f, g, prototypes, roles["projector"], temperature=self.temperature)
            terms["contrast"] = self.contrast_weight * contrast.sum() / max(len(contrast), 1)
        if self.source_weight:
            source = batch["rmt/source"]
            with by_batch(student):
                terms["source"] = self.source_weight * hard_loss(forward(student, source["x"]).logits, source).mean()
        return terms

    def after_step(self, batch: Batch, records: Mapping[str, Terms], roles: Roles, state: State) -> None:
        """Move the mean teacher; buffers are not averaged."""
        get_ema_multi_avg_fn(self.momentum)([*roles["mean_teacher"].parameters()], [*roles["student"].parameters()], 0)

    def predict(self, batch: Batch, roles: Roles) -> Tensor:
        """Answer without learning: s(x) + e(x), (N, classes); one example alone is normalised by running statistics."""
        alone = len(batch["x"]) == 1
        answers = []
        for role in (roles["student"], roles["mean_teacher"]):
            with evaluating(role) if alone else by_batch(role):
                answers.append(forward(role, batch["x"]).logits)
        return answers[0] + answers[1]

    def _source_means(self, student: nn.Module, x: Any, state: State) -> Tensor:
        """The mean embedding of every class that the source data have, (at most classes, D); ``x`` says what the student looks like."""

        def run(x: Any) -> tuple[Tensor, Tensor]:
            with by_batch(student):
                return embed(student, x, self.student_layer)

        means, counts = means_by_class(student, _source(state).scan(), lambda x: run(x)[1], run(x)[0].shape[1])
        return means[counts > 0]


def _source(state: State) -> Stream:
    """The labelled source data."""
    for name in ("source", "valid"):
        if name in state.streams:
            return state.streams[name]
    raise ValueError("streams: expected 'source', labelled source data, got none; without them give prototypes and source_weight=0")


def warm_up(
    method: RMT, roles: Roles, optimizer: Optimizer, source: Stream | Iterable[Batch], *, steps: int, seed: int = 0, **options: Any
) -> None:
    """Make an average of the mean teacher, which starts as a copy: agreement on source data without labels, at a rising learning rate.

    Döbler et al. 2022 (arXiv:2211.13081), Sec. 4: SCE(s(x), e(x)) on 50,000 source examples, the rate growing linearly to the optimizer's.

    Args:
        method: whose alpha and momentum count.
        roles: ``student``, ``mean_teacher`` and ``projector``; the first two are moved.
        optimizer: the one to go on with; its learning rate is what it was afterwards.
        source: batches of source data.
        steps: updates, 0 for none; the release: 50,000 by the batch size.
        seed: of draws.
        options: further ones of `preceptor.core.run.train`.
    """
    if steps:
        alike = replace(method, augment=_same, contrast_weight=0.0, source_weight=0.0, self_training_weight=1.0)
        rising = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / steps))
        train(alike, roles, source, optimizer, steps=steps, schedulers=rising, seed=seed, **options)


def _same(x: Any, generator: torch.Generator) -> Any:
    return x


def miniature(seed: int, size: Size) -> Miniature:
    """Digits through seven corruptions, twice over: a source model left alone, at the batch's statistics, and adapting by several ways.

    "tent-*" minimise the entropy of answers (Wang et al. 2020, arXiv:2006.10726); "ce-mean-teacher" is RMT without its three parts.
    """
    world = drifting_world(seed, size)
    method = RMT(momentum=0.99, augment=world.augment)
    agreeing = replace(method, contrast_weight=0.0, source_weight=0.0)
    prepared = partial(warm_up, steps=world.warm_up)
    teachers = {"ce-mean-teacher": replace(agreeing, alpha=0.0), "sce-mean-teacher": agreeing}
    teachers |= {"source-free": replace(method, source_weight=0.0), "rmt": method}
    arms = {"untrained-source": world.adapting(method, world.untrained, prepared), **world.baselines()}
    arms |= {name: world.adapting(each, world.source, prepared) for name, each in teachers.items()}
    claim = partial(Claim, method="rmt", metric="error", direction="lower")
    return Miniature(
        arms=arms,
        claims=(
            claim(name="adapting helps", baseline="source"),
            claim(name="entropy alone does worse", baseline="tent-all"),
            claim(name="it beats the statistics of the batch by a point", baseline="batch-statistics", margin=0.01),
            claim(name="contrast and replay help the mean teacher", baseline="sce-mean-teacher"),
        ),
        notes=(f"{world.num_batches} batches of 50, {world.warm_up} updates of warm-up",),
    )
