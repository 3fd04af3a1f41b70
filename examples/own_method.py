"""A method of your own, in one class, compared with published ones at equal budget.

This one lets the student match the teacher's logits, each example's mean taken out, instead of its softened probabilities. Kept as
``src/preceptor/methods/logit_matching.py`` with a card and a miniature it would be found by name: see CONTRIBUTING.md.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import preceptor
from preceptor.core.method import Method
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms


@dataclass(frozen=True, kw_only=True)
class LogitMatching(Method):
    weight: float = 0.1

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """What the teacher says: no gradient here, eval mode, on the right device. The loop sees to that."""
        return {"logits": roles["teacher"](batch["x"])}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Named terms, one value per example: the loop takes the mean."""
        logits = roles["student"](batch["x"])
        gap = centred(logits) - centred(signal["logits"])
        hard = F.cross_entropy(logits, batch["y"], reduction="none")
        return {"hard": hard, "match": self.weight * gap.square().mean(dim=-1)}


def centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=-1, keepdim=True)


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 5))


torch.manual_seed(0)
x = torch.randn(4000, 20)
y = (x[:, :5] + 0.5 * x[:, 5:10] ** 2).argmax(dim=1)
teacher = network(100)
preceptor.distill(student=teacher, train=(x[:2500], y[:2500]), method="ce", epochs=20, training={"learning_rate": 0.01})
study = preceptor.compare(
    teacher=teacher,
    student=lambda: network(10),
    train=(x[:300], y[:300]),
    test=(x[2500:], y[2500:]),
    methods={"matching": LogitMatching(weight=1.0), "classic-kd": {"temperature": 2.0}},
    seeds=5,
    training={"steps": 120, "batch_size": 50, "learning_rate": 0.03},
)
for row in study.result["rows"]:
    print(f"{row['name']:12} {row['summary']['accuracy']['mean']:.3f}")
for pair in study.result["paired"]:
    print(f"{pair['method']} - {pair['baseline']}: {pair['mean']:+.3f}, {pair['verdict']}")
