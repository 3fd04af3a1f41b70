"""Two classes of which one is rare, for losses that are made for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from preceptor.composition import LogitMethod
from preceptor.core.method import Method
from preceptor.core.optional import require
from preceptor.core.state import State
from preceptor.core.types import Batch, Terms
from preceptor.data.examples import Examples, examples_from
from preceptor.data.sources import Source
from preceptor.losses.dice import focal_loss
from preceptor.metrics.evaluate import predict
from preceptor.miniature.run import Size
from preceptor.miniature.worlds import fit, seeded
from preceptor.models.reference import MLP


@dataclass(frozen=True, kw_only=True)
class Focal(LogitMethod):
    """Focal loss, the usual baseline where classes are rare."""

    gamma: float = 2.0  # >= 0; Lin et al. 2017 (arXiv:1708.02002)

    def hard(self, logits: Tensor, batch: Batch, state: State) -> Terms:
        """Return the focal loss of the labels, one value per item."""
        return {"hard": focal_loss(logits, batch["y"], gamma=self.gamma)}


def rare_positives(arms: Mapping[str, Method | None], *, seed: int, size: Size) -> tuple[dict[str, dict[str, float]], tuple[str, ...]]:
    """Train one student per arm at 3 % and at 10 % of positives, from the same weights on the same examples, and measure F1.

    Full size: scikit-learn's ``make_classification`` with 20 features of which 10 tell, and 3 clusters per class; 4,000 examples for
    training, an MLP 20-32-2, 25 epochs of batches of 200 by Adam at 5e-3, and 20,000 examples for testing.

    Args:
        arms: name -> method; None: the student stays as it was drawn.
        seed: of the examples, the weights and the order.
        size: ``"smoke"``: 400 examples, 3 epochs.
    Returns:
        arm -> metric -> value, and notes: ``f1_3`` and ``f1_10`` at a threshold of 1 / 2, where ``best_f1_3`` and ``best_f1_10`` are at the
        threshold that is best on the test part.
    Raises:
        ImportError: scikit-learn is missing (one line says what to install).
    """
    count, tests, epochs, batch_size = (4000, 20000, 25, 200) if size == "full" else (400, 1000, 3, 50)
    measured: dict[str, dict[str, float]] = {name: {} for name in arms}
    for percent in (3, 10):
        train, test = _parts(percent / 100, count, tests, seed)
        for name, method in arms.items():
            student = seeded(lambda: MLP(inputs=20, hidden=(32,), classes=2), seed)
            if method is not None:
                steps = epochs * count // batch_size
                fit(method, {"student": student}, train, steps=steps, batch_size=batch_size, learning_rate=5e-3, seed=seed)
            at_half, best = _f1(student, test)
            measured[name] |= {f"f1_{percent}": at_half, f"best_f1_{percent}": best}
    return measured, (f"{count} training examples, {epochs} epochs of batches of {batch_size}, every student at each rate of positives",)


def _parts(rate: float, count: int, tests: int, seed: int) -> tuple[Examples, Examples]:
    sets = require("sklearn.datasets", extra="vision", purpose="examples with rare positives")
    x, y = sets.make_classification(
        n_samples=count + tests, n_features=20, n_informative=10, n_clusters_per_class=3, weights=[1 - rate], random_state=seed
    )
    data = examples_from((torch.from_numpy(x).float(), torch.from_numpy(y).long()), 2)
    return data.subset(torch.arange(count)), data.subset(torch.arange(count, count + tests), name="test")


def _f1(student: nn.Module, test: Examples) -> tuple[float, float]:
    """F1 of the positive class at a threshold of 1 / 2, and at the best one."""
    said = predict(student, Source(test, batch_size=1000).scan())
    score, y = said.logits[:, 1] - said.logits[:, 0], said.labels
    order = score.argsort(descending=True)
    hits, sizes = y[order].cumsum(0).double(), torch.arange(1, len(y) + 1)
    f1 = 2 * hits / (sizes + y.sum())
    last = torch.cat([score[order][1:] < score[order][:-1], torch.ones(1, dtype=torch.bool)])  # equal scores stand or fall together
    said_yes = int((score > 0).sum())
    return float(f1[said_yes - 1]) if said_yes else 0.0, float(f1[last].amax())
