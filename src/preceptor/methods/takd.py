"""Teacher assistants: a network of middling size stands between a large teacher and a small student.

Paper: Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh 2020, Improved Knowledge Distillation via Teacher Assistant
(arXiv:1902.03393).
Claim: when the teacher is much larger than the student, distilling through one or more assistants gives a better student than distilling
directly.
Equation: no new loss. In the chain teacher -> assistant 1 -> ... -> student each network is trained, by classic distillation, from the one
before:
    L = (1 - alpha) CE(s, y) + alpha T^2 KL(softmax(t / T) || softmax(s / T)).
Deviations: the paper searches T and alpha for each pair; here all stages share one setting, by default that of classic-kd. Every stage
gets the whole budget of the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from preceptor.core.method import Method, Stage
from preceptor.core.types import Card
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.classic_kd import ClassicKD
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import blobs_world, mnist_world, side_by_side
from preceptor.models.adapters import resolve

CARD = Card(
    slug="takd",
    title="Distillation through teacher assistants",
    authors="Mirzadeh et al. 2020",
    arxiv="1902.03393",
    kind="chain",
    tasks=("classification",),
    needs=("teacher", "logits", "labels"),
    equation="teacher -> assistants -> student, each step L = (1 - alpha) CE(s, y) + alpha T^2 KL(softmax(t / T) || softmax(s / T))",
    cost="a whole training of every assistant, with one forward pass of the network before per step",
    headline="CIFAR-100, plain CNN of 10 layers -> 2 layers: 44.92 % accuracy through an assistant (classic 44.57, alone 41.09)",
)


@dataclass(frozen=True, kw_only=True)
class TAKD(Method):
    """A chain of classic distillations. The student that is given ends the chain."""

    # One entry per assistant, largest first. A number is a share of the teacher: of the widths of a reference model, of the layers of a
    # transformer. Anything else is what `preceptor.models.adapters.resolve` takes, such as "package.module:factory".
    assistants: tuple[float | str | Mapping[str, Any], ...] = (0.25,)  # Sec. 4.2: the best assistant is of middling accuracy
    temperature: float = 4.0  # T > 0; that of classic-kd, the paper searches it for each pair
    alpha: float = 0.9  # weight of the soft term; that of classic-kd, the paper searches it for each pair

    def __post_init__(self) -> None:
        """Check that there is an assistant, and the ranges."""
        if not self.assistants:
            raise ValueError("assistants: expected at least one, got none")
        self._stage_method()

    def stages(self, teacher: nn.Module | None, student: nn.Module) -> tuple[Stage, ...]:
        """Return the trainings of the assistants, whose weights are new, and of the given student."""
        if teacher is None:
            raise ValueError("teacher: expected one, takd needs a teacher, got none")
        method = self._stage_method()
        specs = [{"shrink": spec} if isinstance(spec, (int, float)) else spec for spec in self.assistants]
        models = [*(resolve(spec, teacher=teacher) for spec in specs), student]
        names = [*(f"assistant-{number}" for number in range(1, len(models))), "student"]
        return tuple(Stage(name=name, student=model, method=method) for name, model in zip(names, models, strict=True))

    def _stage_method(self) -> ClassicKD:
        return ClassicKD(temperature=self.temperature, alpha=self.alpha)


def miniature(seed: int, size: Size) -> Miniature:
    """MNIST with 300 training images, a teacher 50 times the student: with and without an assistant a quarter of the teacher's width.

    All students do the same number of updates; "classic-kd-same-compute" does as many as student and assistant together.
    """
    world, steps = (mnist_world(seed), 720) if size == "full" else (blobs_world(seed), 30)
    arms = {
        "untrained-teacher": (TAKD(), world.untrained),
        "ce": (CrossEntropy(), None),
        "classic-kd": (ClassicKD(), world.teacher),
        "takd": (TAKD(), world.teacher),
    }
    measured = side_by_side(world, arms, steps=steps, seed=seed)
    longer = side_by_side(world, {"classic-kd-same-compute": arms["classic-kd"]}, steps=2 * steps, seed=seed)
    return Miniature(
        arms=measured | longer,
        claims=(Claim(name="an assistant closes the gap in size", method="takd", baseline="classic-kd", metric="accuracy"),),
        notes=(f"{len(world.train)} training examples, {steps} updates of every network",),
    )
