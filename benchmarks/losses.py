"""Losses of logits and features: preceptor against the dense formulas that users copy, and against torchdistill where it has the loss.

Forward and backward of one loss on a CPU, float32, batches of 256 x 1000 and of 64 x 100 classes; features are 64 x 256 embeddings, maps
64 x 32 x 8 x 8. A turn is so many repetitions that it takes some tenths of a second. The formulas are written here as papers and the usual
benchmark code write them, without checks and without masked classes; ``PLD`` may cost three KL. The peer lives
in the environment of benchmarks/linear_losses.py:

    PYTHONPATH=src ../peers/bin/python benchmarks/losses.py [CASE ...] [--json] [--repeats 9]
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from contest import Contest, Goal, main
from torch import Tensor

from preceptor.losses.comp_sum import comp_sum
from preceptor.losses.dice import dice_loss
from preceptor.losses.divergence import forward_kl, generalized_jsd, reverse_kl
from preceptor.losses.features import attention_transfer, hint_loss
from preceptor.losses.hard import hard_loss
from preceptor.losses.ldr import ldr
from preceptor.losses.relations import rkd_angle, rkd_distance
from preceptor.methods.bd_kd import balanced_divergence
from preceptor.methods.dkd import decoupled_kl
from preceptor.methods.logit_standardization import standardize_logits
from preceptor.methods.nd_loss import nd_loss
from preceptor.methods.pld import pld_loss

SHAPES = {"256 x 1000": (256, 1000, 10), "64 x 100": (64, 100, 200)}  # rows, classes, repetitions in a turn
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(student, teacher, labels) -> one value."""


def kd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(s / 4, dim=1), F.softmax(t / 4, dim=1), reduction="batchmean")


def dkd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    target = F.one_hot(y, s.shape[1]).bool()
    p, q = F.softmax(t / 4, dim=1), F.softmax(s / 4, dim=1)
    pair_q, pair_p = (torch.stack([(x * target).sum(1), (x * ~target).sum(1)], dim=1) for x in (q, p))
    tckd = F.kl_div(pair_q.log(), pair_p, reduction="batchmean")
    rest_p, rest_q = F.softmax(t / 4 - 1000.0 * target, dim=1), F.log_softmax(s / 4 - 1000.0 * target, dim=1)
    return tckd + 8 * F.kl_div(rest_q, rest_p, reduction="batchmean")


def our_dkd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    target, others = decoupled_kl(s, t, y)
    return (target + 8 * others).mean()


def dense_reverse(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    log_q = F.log_softmax(s, dim=1)
    return (log_q.exp() * (log_q - F.log_softmax(t, dim=1))).sum(dim=1).mean()


def dense_jsd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    p, q = F.softmax(t, dim=1), F.softmax(s, dim=1)
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean() / 2


def dense_attention(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    maps = [F.normalize(x.pow(2).mean(1).flatten(1)) for x in (s, t)]
    return (maps[0] - maps[1]).pow(2).mean()


def pairwise(x: Tensor) -> Tensor:
    squares = x.pow(2).sum(1)
    distances = (squares[:, None] + squares[None, :] - 2 * x @ x.T).clamp(min=1e-12).sqrt()
    distances = distances * (1 - torch.eye(len(x)))
    return distances / distances[distances > 0].mean()


def angles(x: Tensor) -> Tensor:
    sides = F.normalize(x[None, :] - x[:, None], p=2, dim=2)
    return torch.bmm(sides, sides.transpose(1, 2)).view(-1)


def dense_rkd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        wanted_distances, wanted_angles = pairwise(t), angles(t)
    return 25 * F.smooth_l1_loss(pairwise(s), wanted_distances) + 50 * F.smooth_l1_loss(angles(s), wanted_angles)


def our_rkd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return (25 * rkd_distance(s, t) + 50 * rkd_angle(s, t)).mean()


def standardized(x: Tensor) -> Tensor:
    return (x - x.mean(dim=-1, keepdim=True)) / (1e-7 + x.std(dim=-1, keepdim=True))


def dense_standardized(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(standardized(s) / 2, dim=1), F.softmax(standardized(t) / 2, dim=1), reduction="batchmean")


def our_standardized(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return forward_kl(standardize_logits(s), standardize_logits(t), temperature=2.0).mean()


def dense_generalised(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Generalised cross-entropy with q = 0.7: the usual form of comp-sum with tau = 1.7."""
    return ((1 - F.softmax(s, dim=1).gather(1, y[:, None]).squeeze(1) ** 0.7) / 0.7).mean()


def dense_ldr(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """LDR-KL with lambda 2 and margin 0.5."""
    margin = 0.5 * (1 - F.one_hot(y, s.shape[1]))
    apart = s - s.gather(1, y[:, None]) + margin
    return (2 * (torch.logsumexp(apart / 2, dim=1) - math.log(s.shape[1]))).mean()


def dense_dice(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Each class against the rest, each item alone, squares below, alpha 0.01."""
    p, target = F.softmax(s, dim=1), F.one_hot(y, s.shape[1]).float()
    p = (1 - p) ** 0.01 * p
    return (1 - (2 * p * target + 1) / (p.square() + target.square() + 1)).sum(1).mean()


def dense_balanced(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    log_p, log_q = F.log_softmax(t / 4, dim=1), F.log_softmax(s / 4, dim=1)
    p, q = log_p.exp(), log_q.exp()
    surer = (q * log_q).sum(1) > (p * log_p).sum(1)
    forward, reverse = (p * (log_p - log_q)).sum(1), (q * (log_q - log_p)).sum(1)
    return (torch.where(surer, 2.0, 1.0) * forward + torch.where(surer, 1.0, 2.0) * reverse).mean()


def listed_pld(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The ranking by torch's sort, the sums by logcumsumexp."""
    ranking = t.scatter(1, y[:, None], torch.inf).argsort(dim=1, descending=True)
    ranked, weights = s.gather(1, ranking), F.softmax(t, dim=1).gather(1, ranking)
    return (weights * (ranked.flip(1).logcumsumexp(1).flip(1) - ranked)).sum(1).mean()


def plain_kl(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(s, dim=1), F.softmax(t, dim=1), reduction="batchmean")


def example_ce(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """As ours, one value per example, whose mean is taken afterwards: what weights of examples need."""
    return F.cross_entropy(s, y, reduction="none").mean()


def dense_nd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    means = F.normalize(t[:10], dim=1)[y % 10]
    return (1 - (s * means).sum(1) / torch.maximum(s.norm(dim=1), t.norm(dim=1))).mean()


def mean_of(loss: Callable[..., Tensor], **options: Any) -> Loss:
    """The mean of a loss of ours that needs no labels."""
    return lambda s, t, y: loss(s, t, **options).mean()


@cache
def torchdistill(name: str, temperature: float) -> Loss:
    """A loss of torchdistill on logits, its part with labels weighted 0."""
    made = vars(importlib.import_module("torchdistill.losses.mid_level"))[name]
    place = {"student_module_path": "m", "student_module_io": "output", "teacher_module_path": "m", "teacher_module_io": "output"}
    criterion = made(**place, temperature=temperature, alpha=0.0, beta=1.0)
    return lambda s, t, y: criterion({"m": {"output": s}}, {"m": {"output": t}}, y)


def peer_kd(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return torchdistill("KDLoss", 4.0)(s, t, y)


def peer_standardized(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return torchdistill("LogitStdKDLoss", 2.0)(s, t, y)


def contest(ours: Loss, peers: Mapping[str, Loss], shape: tuple[int, ...], repetitions: int) -> Contest:
    torch.manual_seed(0)
    student, teacher = torch.randn(shape).mul(3).requires_grad_(), torch.randn(shape).mul(3)
    labels = torch.randint(shape[1], (shape[0],))

    def turn(loss: Loss) -> Mapping[str, Tensor]:
        for _ in range(repetitions):
            student.grad = None
            value = loss(student, teacher, labels)
            value.backward()
        assert student.grad is not None
        return {"value": value.detach(), "logits": student.grad}  # pyright: ignore[reportPossiblyUnboundVariable]

    losses = {"preceptor": ours, **peers}
    return Contest(
        contenders={name: partial(turn, loss) for name, loss in losses.items()},
        goals=tuple(Goal(ours="preceptor", peer=peer, time=GOALS.get(peer, 1.1)) for peer in peers),
    )


GOALS = {"a KL": 3.0}  # largest ratio of times that is hoped for; 1.1 of all others
LOGITS: dict[str, tuple[Loss, Mapping[str, Loss]]] = {
    "CE": (
        lambda s, t, y: hard_loss(s, {"y": y}).mean(),
        {"F.cross_entropy": lambda s, t, y: F.cross_entropy(s, y), "by example": example_ce},
    ),
    "KD": (mean_of(forward_kl, temperature=4.0), {"formula": kd, "torchdistill": peer_kd}),
    "reverse KL": (mean_of(reverse_kl), {"formula": dense_reverse}),
    "JSD": (mean_of(generalized_jsd), {"formula": dense_jsd}),
    "DKD": (our_dkd, {"formula": dkd}),
    "standardized KD": (our_standardized, {"formula": dense_standardized, "torchdistill": peer_standardized}),
    "PLD": (lambda s, t, y: pld_loss(s, t, y).mean(), {"formula": listed_pld, "a KL": plain_kl}),
    "BD-KD": (lambda s, t, y: balanced_divergence(s, t).loss.mean(), {"formula": dense_balanced}),
    "comp-sum, tau 1.7": (lambda s, t, y: comp_sum(s, y, tau=1.7).mean(), {"formula": dense_generalised}),
    "LDR-KL": (lambda s, t, y: ldr(s, y, lam=2.0, margin=0.5).mean(), {"formula": dense_ldr}),
    "Dice": (
        lambda s, t, y: dice_loss(s, y, alpha=0.01, square=True, level="example", class_reduction="sum").mean(),
        {"formula": dense_dice},
    ),
}
FEATURES: dict[str, tuple[Loss, Mapping[str, Loss], tuple[int, ...], int]] = {
    "FitNets": (mean_of(hint_loss), {"F.mse_loss": lambda s, t, y: F.mse_loss(s, t)}, (64, 32, 8, 8), 200),
    "attention transfer": (mean_of(attention_transfer), {"formula": dense_attention}, (64, 32, 8, 8), 200),
    "ND": (lambda s, t, y: nd_loss(s, t, t[:10], y % 10).mean(), {"formula": dense_nd}, (64, 256), 200),
    "RKD": (our_rkd, {"formula": dense_rkd}, (64, 256), 20),
}
CONTESTS: dict[str, Callable[[], Contest]] = {
    **{
        f"{name}, {size}": partial(contest, ours, peers, shape, times)
        for name, (ours, peers) in LOGITS.items()
        for size, (*shape, times) in SHAPES.items()
    },
    **{name: partial(contest, *given) for name, given in FEATURES.items()},
}

if __name__ == "__main__":
    main(__file__, CONTESTS, repeats=9, description=__doc__)
