"""MaKD: beside its classes, the student learns what a multi-modal language model answers about each image.

Paper: Lee, Lee, Kim et al. 2025, Multi-aspect Knowledge Distillation with Large Language Model (arXiv:2501.13341).
Claim: yes/no questions about aspects of the classes ("does it have a long tail?"), answered for every training image by a multi-modal
language model, teach an image classifier more than labels alone. No teacher of the same classes is needed.
Equation, with class logits z_c, one aspect logit z_a for each of Q questions, and the model's probability q of "yes":
    L = w CE(z_c, y) + alpha mean over the questions of (softplus(z_a) - q z_a),   q = sigmoid(l_yes - l_no).
At test time aspect logits are left out; sigmoid(z_a) predicts the answers.
Deviations: the paper widens the student's last layer by Q outputs. Here they are a linear layer of their own, the role ``aspects``, on the
same embedding: the same function, and the student stays as it is; `expand_head` widens a layer for who wants that. Questions without an
answer are left out. A crop keeps the answers of the whole image, as in the paper; mixup mixes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method, Phase, evaluating
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_floating, check_same_shape
from preceptor.losses.hard import hard_loss
from preceptor.losses.numeric import upcast
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.attributes import attributes_world
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.models.embeddings import embed
from preceptor.teachers.aspects import AspectBank

CARD = Card(
    slug="multi-aspect",
    title="Multi-aspect distillation: answers of a multi-modal language model",
    authors="Lee et al. 2025",
    arxiv="2501.13341",
    kind="aspects",
    tasks=("classification",),
    needs=("labels", "embeddings"),
    equation="L = w CE(z_c, y) + alpha mean_j (softplus(z_a) - q z_a), q = p(yes) of each question by a multi-modal language model",
    cost="every question about every training image, once; then a linear layer per step",
    headline="gains over labels alone in all classification and detection experiments of the paper (tables not verified)",
)


def aspect_bce(logits: Tensor, probs: Tensor) -> Tensor:
    """Binary cross-entropy of the answers, the mean over questions, in nats.

    Lee et al. 2025 (arXiv:2501.13341): mean_j (softplus(z_j) - q_j z_j), at least the mean binary entropy of q.

    Args:
        logits: z, shape (N, Q).
        probs: q, same shape, in [0, 1]; treated as constant; NaN for no answer, which is left out.

    Returns:
        Shape (N,), >= 0; 0 for an example without an answer, with a gradient of 0.

    Raises:
        TypeError: not floating point.
        ValueError: shapes differ, or a probability is out of range.
    """
    check_floating(logits=logits, probs=probs)
    check_same_shape(logits=logits, probs=probs)
    if ((probs < 0) | (probs > 1)).any():
        raise ValueError(f"probs: expected numbers in [0, 1], got {float(probs[(probs < 0) | (probs > 1)][0])}")
    z = upcast(logits)
    known = ~probs.isnan()
    values = F.binary_cross_entropy_with_logits(z, probs.detach().nan_to_num(0.0).to(z), reduction="none")
    return torch.where(known, values, 0.0).sum(dim=-1) / known.sum(dim=-1).clamp_min(1)


def aspect_loss(
    logits: Tensor, labels: Tensor, probs: Tensor, *, num_classes: int, aspect_weight: float = 4.0, hard_weight: float = 1.0
) -> Terms:
    """Both terms of a student whose last layer was widened, weights applied, for a training loop of one's own.

    Args:
        logits: shape (N, C + Q), classes first.
        labels: shape (N,), integers in [0, C).
        probs: shape (N, Q), see `aspect_bce`.
        num_classes: C.
        aspect_weight: alpha.
        hard_weight: w.

    Returns:
        ``hard`` and ``aspects``, each of shape (N,).

    Raises:
        ValueError: shapes do not fit, or a label is out of range.
    """
    return {
        "hard": hard_weight * hard_loss(logits[..., :num_classes], {"y": labels}),
        "aspects": aspect_weight * aspect_bce(logits[..., num_classes:], probs),
    }


def expand_head(head: nn.Linear, num_aspects: int) -> nn.Linear:
    """A linear layer with ``num_aspects`` more outputs behind those of ``head``, whose weights it keeps; the new ones are drawn."""
    wide = nn.Linear(head.in_features, head.out_features + num_aspects, bias=head.bias is not None).to(head.weight)
    with torch.no_grad():
        wide.weight[: head.out_features] = head.weight
        if head.bias is not None:
            wide.bias[: head.out_features] = head.bias
    return wide


@dataclass(frozen=True, kw_only=True)
class MultiAspect(Method):
    """Labels and answers; the role ``aspects`` is a linear layer from the student's embedding to the answers."""

    aspects: AspectBank | str | None = None  # must be given: a bank, or the JSON file of one; the paper asks 50 questions
    aspect_weight: float = 4.0  # alpha >= 0; the paper's code
    hard_weight: float = 1.0  # w >= 0; the paper's code
    student_layer: str = ""  # where the embedding is read; the paper: before the class head, which is found where none is given

    def __post_init__(self) -> None:
        """Check the ranges, and read the bank."""
        for name in ("aspect_weight", "hard_weight"):
            if not vars(self)[name] >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {vars(self)[name]}")
        if isinstance(self.aspects, str):
            object.__setattr__(self, "aspects", AspectBank.load(self.aspects))

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return the layer that answers."""
        bank = self._bank()
        with torch.no_grad(), evaluating(roles["student"]):
            embeddings = embed(roles["student"], batch["x"], self.student_layer)[1]
        return {"aspects": nn.Linear(embeddings.shape[1], len(bank.questions)).to(embeddings)}

    def phases(self) -> tuple[Phase, ...]:
        """One phase that trains the student and the layer that answers."""
        return (Phase(name="student", trains=("student", "aspects"), signal=self.signal, loss=self.loss, update=self.update),)

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """Look the answers up; ``mask/aspects`` leaves out the examples without any."""
        bank = self._bank()
        probs = bank.lookup(batch["id"])
        if "partner" in batch:
            ratio = batch["ratio"].to(probs)[:, None]
            probs = ratio * probs + (1 - ratio) * bank.lookup(batch["partner"])
        mask = (~probs.isnan()).any(dim=-1).to(probs)
        return {**batch, "answers": probs, "mask/aspects": mask * batch["mask"] if "mask" in batch else mask}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the hard term and that of the answers, one value per example."""
        logits, embeddings = embed(roles["student"], batch["x"], self.student_layer)
        answers = aspect_bce(roles["aspects"](embeddings), batch["answers"])
        return {"hard": self.hard_weight * hard_loss(logits, batch), "aspects": self.aspect_weight * answers}

    def _bank(self) -> AspectBank:
        if not isinstance(self.aspects, AspectBank):
            raise ValueError("aspects: expected a bank of answers or the JSON file of one, got none")
        if not self.aspects.questions:
            raise ValueError("aspects: expected at least one question, got none")
        return self.aspects


def miniature(seed: int, size: Size) -> Miniature:
    """Images of 64 classes, all combinations of six attributes, four of each class; a simulated model answers about the attributes.

    "shuffled-classes" learns answers about images of other classes, "untrained-answers" numbers drawn at random.
    """
    world = attributes_world(seed, size)
    methods = {
        "untrained-answers": MultiAspect(aspects=world.random()),
        "ce": CrossEntropy(),
        "multi-aspect": MultiAspect(aspects=world.answers()),
        "shuffled-classes": MultiAspect(aspects=world.answers(shuffled=True)),
    }
    claim = partial(Claim, method="multi-aspect", metric="accuracy")
    return Miniature(
        arms={name: world.taught_by(method) for name, method in methods.items()},
        claims=(
            claim(name="answers teach more than labels alone", baseline="ce"),
            claim(name="answers teach more than random numbers", baseline="untrained-answers"),
            claim(name="answers teach more than those about other classes", baseline="shuffled-classes"),
        ),
        notes=(f"{len(world.train)} training images of {world.train.num_classes} classes, {world.steps} updates of every student",),
    )
