"""Born-again networks: a network teaches one of its own architecture, which teaches the next.

Paper: Furlanello, Lipton, Tschannen, Itti, Anandkumar 2018, Born-Again Neural Networks (arXiv:1805.04770).
Claim: a student of the teacher's architecture, started from new weights and taught by the teacher's predictions, gets better than a
network trained on labels alone; generations in a row add to it.
Equation (Eq. 2 and 3), generation k with the predictions p_(k-1) of the one before:
    L_k = (1 - alpha) CE(s_k, y) + alpha T^2 KL(softmax(s_(k-1) / T) || softmax(s_k / T)).
Deviations: the paper writes the soft term as a cross-entropy, which differs by a constant. A teacher that the user gives may have another
architecture than the student. The ensemble of all generations (Eq. 4) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from preceptor.core.method import Method, Stage
from preceptor.core.types import Card
from preceptor.losses.checks import check_counts
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.classic_kd import ClassicKD
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import blobs_world, mnist_world, side_by_side
from preceptor.models.fresh import fresh_copy

CARD = Card(
    slug="born-again",
    title="Born-again networks: generations of one architecture",
    authors="Furlanello et al. 2018",
    arxiv="1805.04770",
    kind="chain",
    tasks=("classification",),
    needs=("labels", "logits"),
    equation="L_k = (1 - alpha) CE(s_k, y) + alpha T^2 KL(softmax(s_(k-1) / T) || softmax(s_k / T))",
    cost="a whole training for each generation, with one forward pass of the generation before per step",
    headline="validation error 3.5 % on CIFAR-10 and 15.5 % on CIFAR-100, DenseNets taught by their like",
)


@dataclass(frozen=True, kw_only=True)
class BornAgain(Method):
    """A chain of networks like the student, which ends it. Without a teacher the chain begins with one trained on labels."""

    generations: int = 3  # students that are taught, >= 1; Sec. 5.2: BAN-1 to BAN-3
    temperature: float = 1.0  # T > 0; Eq. 2: the predictions as they are
    alpha: float = 1.0  # weight of the soft term; Sec. 4: BAN learns from predictions alone, BAN+L (0.5) from labels too

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_counts(generations=self.generations)
        self._taught()

    def stages(self, teacher: nn.Module | None, student: nn.Module) -> tuple[Stage, ...]:
        """Return the generations; all but the last are newly drawn copies of the given student."""
        methods: list[Method] = [] if teacher is not None else [CrossEntropy()]
        methods += [self._taught()] * self.generations
        models = [*(fresh_copy(student) for _ in methods[1:]), student]
        first = 1 if teacher is not None else 0
        names = [*(f"generation-{first + i}" for i in range(len(methods) - 1)), "student"]
        return tuple(Stage(name=n, student=s, method=m) for n, s, m in zip(names, models, methods, strict=True))

    def _taught(self) -> ClassicKD:
        return ClassicKD(temperature=self.temperature, alpha=self.alpha)


def miniature(seed: int, size: Size) -> Miniature:
    """MNIST with 300 training images, no teacher: the third generation against the same network trained on labels.

    "ce-same-compute" does as many updates as all generations together.
    """
    world, steps = (mnist_world(seed), 720) if size == "full" else (blobs_world(seed), 30)
    method = BornAgain()
    arms = {
        "untrained-teacher": (method, world.untrained),
        "ce": (CrossEntropy(), None),
        "born-again": (method, None),
    }
    measured = side_by_side(world, arms, steps=steps, seed=seed)
    longer = side_by_side(world, {"ce-same-compute": arms["ce"]}, steps=(method.generations + 1) * steps, seed=seed)
    return Miniature(
        arms=measured | longer,
        claims=(Claim(name="the last generation beats the first", method="born-again", baseline="ce", metric="accuracy"),),
        notes=(f"{len(world.train)} training examples, {steps} updates of every generation",),
    )
