"""Deep mutual learning: two untrained networks teach each other; no teacher is needed.

Paper: Zhang, Xiang, Hospedales, Lu 2018, Deep Mutual Learning (arXiv:1706.00384).
Claim: networks that learn together, each matching the other's predictions, get better than the same network trained alone.
Equation (Eq. 4 and 5), with the predictions p_1 of the student and p_2 of its peer, each constant in the other's loss:
    L_1 = CE(s_1, y) + w KL(p_2 || p_1),   L_2 = CE(s_2, y) + w KL(p_1 || p_2).
Deviations: both networks are updated at once, from predictions before the update, where the paper's algorithm updates one after the other.
Two networks, where Sec. 2.3 extends the loss to any number. The weight w, 1 in the paper, is a hyper-parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from preceptor.core.method import Method, Phase
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_positive
from preceptor.losses.divergence import forward_kl
from preceptor.losses.hard import hard_loss
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.classic_kd import ClassicKD
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size
from preceptor.miniature.worlds import blobs_world, mnist_world, side_by_side
from preceptor.models.fresh import fresh_copy
from preceptor.models.taps import forward

CARD = Card(
    slug="mutual",
    title="Deep mutual learning of two networks",
    authors="Zhang et al. 2018",
    arxiv="1706.00384",
    kind="online",
    tasks=("classification",),
    needs=("labels", "logits"),
    equation="L_1 = CE(s_1, y) + w KL(p_2 || p_1), L_2 = CE(s_2, y) + w KL(p_1 || p_2)",
    cost="a second network is trained beside the student: twice the step of cross-entropy",
    headline="CIFAR-100, two resnet32: 71.19 and 70.75 % accuracy (each alone 68.99)",
)


@dataclass(frozen=True, kw_only=True)
class Mutual(Method):
    """The student and the role ``peer``, which is a newly drawn copy of the student unless the user gives another network."""

    weight: float = 1.0  # w > 0; Eq. 4 and 5

    def __post_init__(self) -> None:
        """Check the range."""
        check_positive(weight=self.weight)

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return the peer, unless there is one."""
        return {} if "peer" in roles else {"peer": fresh_copy(roles["student"])}

    def phases(self) -> tuple[Phase, ...]:
        """One phase that trains both networks."""
        return (Phase(name="student", trains=("student", "peer"), signal=self.signal, loss=self.loss, update=self.update),)

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return both networks' hard and mutual terms, one value per example."""
        student, peer = (forward(roles[role], batch["x"]).logits for role in ("student", "peer"))
        return {
            "hard": hard_loss(student, batch),
            "mutual": self.weight * forward_kl(student, peer),  # the second argument is constant
            "peer_hard": hard_loss(peer, batch),
            "peer_mutual": self.weight * forward_kl(peer, student),
        }


def miniature(seed: int, size: Size) -> Miniature:
    """MNIST with 300 training images: two small networks together against one alone.

    In the null baseline the peer is a random network that never learns. "ce-same-compute" does twice the updates.
    """
    world, steps = (mnist_world(seed), 720) if size == "full" else (blobs_world(seed), 40)
    arms = {
        "untrained-peer": (ClassicKD(temperature=1.0, alpha=0.5), world.untrained),
        "ce": (CrossEntropy(), None),
        "mutual": (Mutual(), None),
    }
    measured = side_by_side(world, arms, steps=steps, seed=seed)
    longer = side_by_side(world, {"ce-same-compute": arms["ce"]}, steps=2 * steps, seed=seed)
    return Miniature(
        arms=measured | longer,
        claims=(Claim(name="two students learn more together than one alone", method="mutual", baseline="ce", metric="accuracy"),),
        notes=(f"{len(world.train)} training examples, {steps} updates of every student",),
    )
