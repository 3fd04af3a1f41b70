"""Images of six attributes, a teacher of the attributes, and another task about the same images with few labels and many images without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.stream import as_stream
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.data.examples import Examples, examples_from
from preceptor.data.sources import Source
from preceptor.metrics.evaluate import predict, score
from preceptor.miniature.attributes import SIDE, draw
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import fit, seeded
from preceptor.models.reference import MLP
from preceptor.models.taps import forward


class Attributes(Method):
    """Binary cross-entropies of all attributes: logits (N, 6), the label's lowest bit is the first."""

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return their mean, one value per example."""
        logits = forward(roles["student"], batch["x"]).logits
        wanted = _bits(batch["y"]).to(logits)
        return {"attributes": F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)}


@dataclass(frozen=True, kw_only=True)
class UnlabelledWorld:
    """One seed. The downstream class is (lower half xor diamond) + 2 checkered."""

    labelled: Examples
    unlabelled: Examples
    test: Examples
    teacher: nn.Module  # of the six attributes
    untrained: nn.Module  # built like the teacher
    teacher_accuracy: float  # share of attributes that it names
    steps: int
    seed: int

    @property
    def notes(self) -> str:
        """What a reader of the numbers should know."""
        sizes = f"{len(self.labelled)} labelled and {len(self.unlabelled)} unlabelled images"
        return f"{sizes}, a teacher that names {self.teacher_accuracy:.1%} of the attributes"

    def batches(self, size: int = 50) -> Iterator[Batch]:
        """As many labelled as unlabelled images, without end; of the latter the masks of ``hard`` and ``interaction`` are 0."""
        labelled, unlabelled = (Source(part, batch_size=size, seed=self.seed, drop_last=True) for part in (self.labelled, self.unlabelled))
        while True:
            one, other = next(labelled), next(unlabelled)
            batch = {key: torch.cat([one[key], other[key]]) for key in ("x", "y", "id")}
            mask = torch.cat([torch.ones(len(one["y"])), torch.zeros(len(other["y"]))])
            yield {**batch, "mask/hard": mask, "mask/interaction": mask}

    def taught_by(self, method: Method, teacher: nn.Module | None) -> dict[str, float]:
        """Train a student, an MLP, with Adam at 2e-3, and return accuracy and nll (nats) on the test part."""
        student = seeded(lambda: MLP(inputs=SIDE * SIDE, hidden=(24, 24), classes=4), self.seed)
        roles: dict[str, nn.Module] = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            roles |= method.extra_roles(roles, next(self.batches()))
            optimizers = {
                phase.name: torch.optim.Adam([p for role in phase.trains for p in roles[role].parameters()], lr=2e-3)
                for phase in method.phases()
            }
            train(method, roles, as_stream(self.batches()), optimizers, steps=self.steps, seed=self.seed)
        says = predict(student, Source(self.test, batch_size=500).scan())
        scores = score(says.logits, says.labels)
        return {name: scores[name] for name in ("accuracy", "nll")}


def unlabelled_world(seed: int, size: Size) -> UnlabelledWorld:
    """300 labels, 3,000 images without, a teacher of 8,000 images, and 4,000 test images; or fewer of all for a quick look."""
    counts, steps, taught = ((8000, 300, 3000, 4000), 1200, 800) if size == "full" else ((400, 100, 100, 200), 8, 20)
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(64, (sum(counts),), generator=generator)
    clean = draw(_bits(numbers))
    images = clean + 0.6 * torch.randn(clean.shape, generator=generator)
    low, diamond, checkered = (_bits(numbers)[:, i] for i in (0, 3, 5))
    task = examples_from((images, (low ^ diamond) + 2 * checkered), 4, "task")
    parts = torch.arange(len(images)).split(list(counts))
    known = examples_from((images, numbers), 64, "attributes").subset(parts[0])
    teacher, untrained = (
        seeded(lambda: MLP(inputs=SIDE * SIDE, hidden=(256, 256), classes=6), start) for start in (seed, seed + 1_000_000)
    )
    fit(Attributes(), {"student": teacher}, known, steps=taught, batch_size=100, seed=seed)
    labelled, unlabelled, test = (task.subset(rows) for rows in parts[1:])
    with torch.no_grad():
        right = (teacher(images[parts[3]]) > 0) == (_bits(numbers[parts[3]]) > 0)
    return UnlabelledWorld(
        labelled=labelled,
        unlabelled=unlabelled,
        test=test,
        teacher=teacher.eval(),
        untrained=untrained.eval(),
        teacher_accuracy=float(right.float().mean()),
        steps=steps,
        seed=seed,
    )


def _bits(numbers: Tensor) -> Tensor:
    """Six binary digits (N, 6), the lowest first."""
    return (numbers[:, None] >> torch.arange(6)) & 1
