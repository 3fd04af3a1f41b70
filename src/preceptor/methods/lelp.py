"""LELP: with few classes, the student learns parts of classes that the teacher's embeddings tell apart.

Paper: Loo, Iliopoulos, Hu, Vee 2024, Linear Projections of Teacher Embeddings for Few-Class Distillation (arXiv:2409.20449).
Claim: a softmax of two to five classes carries hardly any dark knowledge, but the teacher's embedding does. Its main directions inside each
class split the class softly into S parts; a student that names the parts learns more, whatever its own width.
Equation, with the teacher's embedding h and p = softmax(t / tau), for every class c with its mean mu_c, its top S principal directions
V_c and a random rotation Q of them:
    u_cs = columns of V_c Q,   z_cs = <u_cs, h - mu_c> / scale_c,   p_cs = p_c softmax_s(z_c / beta),   sum_s p_cs = p_c,
    L = KL(p || softmax(o)) + alpha CE(sum_s softmax(o)_cs, y)   with the student's S C outputs o; it names the class with the largest sum.
Directions that the teacher's class head reads are taken out first: they are in p already.
Deviations: scores are divided by the root mean square of the class's own, so that beta means the same everywhere. The paper writes the soft
term as a cross-entropy, which differs by a constant. S is the student's own: that of its `preceptor.models.subclasses.SubclassHead`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_choice, check_positive
from preceptor.losses.divergence import kl, log_probs
from preceptor.losses.hard import hard_loss
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.classic_kd import ClassicKD
from preceptor.metrics.cost import device_of, to_device
from preceptor.miniature.claim import Claim
from preceptor.miniature.few_classes import FineLabels, few_classes_world
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import side_by_side
from preceptor.models.embeddings import class_head, embed
from preceptor.models.subclasses import subclass_head
from preceptor.models.taps import find_layer, forward
from preceptor.teachers.projections import Directions, Projections, fit_projections, subclass_log_probs

CARD = Card(
    slug="lelp",
    title="Linear projections of teacher embeddings: subclasses for few classes",
    authors="Loo et al. 2024",
    arxiv="2409.20449",
    kind="logits",
    tasks=("classification",),
    needs=("teacher", "logits", "embeddings", "labels", "subclasses"),
    equation="L = KL(p_c softmax_s(<u_cs, h - mu_c> / (scale_c beta)) || softmax(o)), p = softmax(t / tau)",
    cost="one pass of the teacher over the training data and a decomposition per class, then one forward pass of it per step",
    headline="Amazon Reviews, 5 classes: 78.06 % accuracy (subclass distillation 76.28, teacher 77.58)",
)


@dataclass(frozen=True, kw_only=True)
class LELP(Method):
    """Distillation into subclasses; the student's class head is a `SubclassHead`."""

    beta: float = 0.3  # temperature of the split, > 0; Sec. 4 searches it, this value for normalised scores is of our experiments
    temperature: float = 4.0  # tau > 0 of the teacher's classes; Sec. 4 searches it
    alpha: float = 0.0  # weight of the cross-entropy with labels, >= 0; Sec. 4: 0 everywhere
    null_space: bool = True  # leave out what the teacher's class head reads; Sec. 3, "often helps"
    rotate: bool = True  # mix directions at random; Sec. 3
    directions: Directions = "pca"  # Sec. 3; "random" is its control
    teacher_layer: str = ""  # where the embedding is read; Sec. 3: before the class head, which is found where none is given

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_positive(beta=self.beta, temperature=self.temperature)
        check_choice(Directions, directions=self.directions)
        if not self.alpha >= 0:
            raise ValueError(f"alpha: expected a number >= 0, got {self.alpha}")

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return none, after a look at the student's head."""
        subclass_head(roles["student"])
        return {}

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        """See to the projections: one pass of the teacher over the training data, the first time."""
        if "lelp/directions" not in state.memory:
            assert state.source is not None
            teacher, head = roles["teacher"], subclass_head(roles["student"])[1]
            embeddings, labels = [], []
            with torch.no_grad(), evaluating(teacher):
                for part in state.source.scan():
                    embeddings.append(embed(teacher, to_device(part["x"], device_of(teacher)), self.teacher_layer)[1].cpu())
                    labels.append(part["y"].cpu())
            found = fit_projections(
                torch.cat(embeddings),
                torch.cat(labels),
                num_classes=head.classes,
                num_subclasses=head.subclasses,
                class_weights=self._read_by_head(teacher),
                rotate=self.rotate,
                directions=self.directions,
                generator=state.rng,
            )
            state.memory |= {f"lelp/{name}": value for name, value in found._asdict().items()}
        return batch

    def _read_by_head(self, teacher: nn.Module) -> Tensor | None:
        """The weights of the class head, where the embedding is its input."""
        return None if self.teacher_layer or not self.null_space else find_layer(teacher, class_head(teacher)).get_parameter("weight")

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's log-probabilities of the subclasses."""
        logits, embeddings = embed(roles["teacher"], batch["x"], self.teacher_layer)
        found = Projections(*(torch.as_tensor(state.memory[f"lelp/{name}"]) for name in Projections._fields))
        return {"subclasses": subclass_log_probs(embeddings, logits, found, beta=self.beta, temperature=self.temperature)}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return the divergence over subclasses and the cross-entropy over classes, one value per example."""
        name, _ = subclass_head(roles["student"])
        output = forward(roles["student"], batch["x"], (f"{name}.outputs",))
        soft = kl(signal["subclasses"].flatten(-2), log_probs(output.features[f"{name}.outputs"]))
        return {"soft": soft, "hard": self.alpha * hard_loss(output.logits, batch)}


def miniature(seed: int, size: Size) -> Miniature:
    """Odd or even: 300 of MNIST's digits with the labels of two classes, which hide ten; subclasses against softened predictions.

    "random-directions" splits the classes at random; "oracle" is told which of the hidden classes an example is of.
    """
    few, steps = few_classes_world(seed, size), 480 if size == "full" else 30
    taught = few.world.teacher
    plain = {
        "ce": (CrossEntropy(), None),
        "classic-kd": (ClassicKD(alpha=1.0), taught),
        "kd-t1": (ClassicKD(alpha=1.0, temperature=1.0), taught),
    }
    split = {
        "untrained-teacher": (LELP(), few.world.untrained),
        "lelp": (LELP(), taught),
        "random-directions": (LELP(directions="random"), taught),
        "unrotated": (LELP(null_space=False, rotate=False), taught),
    }
    arms = side_by_side(few.world, plain, steps=steps, seed=seed)
    arms |= side_by_side(few.with_subclasses(4), split, steps=steps, seed=seed)
    arms |= side_by_side(few.with_subclasses(few.hidden), {"oracle": (FineLabels(few.fine), None)}, steps=steps, seed=seed)
    claim = partial(Claim, method="lelp", metric="accuracy")
    return Miniature(
        arms=arms,
        claims=(
            claim(name="subclasses teach two points more than softened predictions", baseline="classic-kd", margin=0.02),
            claim(name="the hidden classes themselves teach more", baseline="oracle", direction="lower"),
        ),
        notes=(f"{len(few.world.train)} training examples of 2 classes that hide {2 * few.hidden}, {steps} updates of every student",),
    )
