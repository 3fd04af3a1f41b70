"""TGeo-KD: a small network says, for each example, how much the student listens to the teacher and how much to the label.

Paper: Hu et al. 2024, Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation (arXiv:2312.15112).
Claim: the right mixture differs from example to example; what student S, teacher T, label G and the teacher's class average A say of it
can be learned from the loss on validation data.
Equation, with f_w the ratio network and the student's parameters theta:
    L = a tau^2 KL(softmax(t / tau) || softmax(s / tau)) + (1 - a) CE(s, y),   a = f_w(S, T, G, A, squared differences),
    w minimises CE_valid(theta'),   theta' = theta - eta grad L(theta; a):
    d CE_valid / d w = -eta mean_i (d a_i / d w) <grad CE_valid(theta'), grad(soft_i - hard_i)(theta)>.
Deviations: the released script trains no ratio network (its outputs are made without gradient), so its ratios are those of random weights:
``ratio="frozen"``. Its cross-entropy is of softmax outputs; here it is of logits. The products of gradients in the last line come from one
forward-mode pass, without second derivatives. The virtual step is one of gradient descent with the student in eval mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from torch import Tensor, nn

from preceptor.composition import LogitMethod
from preceptor.core.method import Phase, evaluating
from preceptor.core.reduce import all_reduce_terms, global_counts, reduce_terms, world_size
from preceptor.core.state import State
from preceptor.core.types import Batch, Card, Roles, Signal, Terms
from preceptor.losses.checks import check_choice, check_counts, check_labels, check_logits, check_positive, check_unit_interval
from preceptor.losses.divergence import log_probs
from preceptor.losses.hard import hard_loss
from preceptor.losses.sparse import signal_kl
from preceptor.methods.ce import CrossEntropy
from preceptor.metrics.cost import device_of, to_device
from preceptor.miniature.claim import Claim
from preceptor.miniature.mixtures import mixtures
from preceptor.miniature.run import Miniature, Size
from preceptor.models.functional import Weights, along, logits_at
from preceptor.models.taps import forward
from preceptor.teachers.means import means_by_class

CARD = Card(
    slug="tgeo-kd",
    title="Ratios of teacher and label learned from trilateral geometry",
    authors="Hu et al. 2024",
    arxiv="2312.15112",
    kind="weights",
    tasks=("classification",),
    needs=("teacher", "logits", "labels"),
    equation="L = a_i tau^2 KL(p || q) + (1 - a_i) CE(s, y), a_i = f_w(S, T, G, class average of T), w by the validation loss after a step",
    cost="about four steps of classic distillation in one; validation data are read while training",
    headline="CIFAR-100, one pair: 76.83 % accuracy (classic distillation 74.07)",
)

Ratio = Literal["learned", "frozen", "fixed", "wls", "annealed"]
Include = Literal["sides", "triangle", "full", "reduced"]
_AVERAGES, _SEEN, _GAIN = "tgeo-kd/averages", "tgeo-kd/seen", "tgeo-kd/gain"


def trilateral_state(student: Tensor, teacher: Tensor, labels: Tensor, averages: Tensor, *, include: Include = "full") -> Tensor:
    """What the ratio network sees of each example, without gradient.

    Hu et al. 2024 (arXiv:2312.15112), as in the released code, with S, T, A and the one-hot G:
        [S | T | G | A | (A - S)^2 | (G - S)^2 | (T - S)^2 | (T - G)^2 | (A - G)^2].

    Args:
        student: logits, shape (..., classes).
        teacher: logits, same shape.
        labels: shape (...), integers in [0, classes).
        averages: A, the teacher's mean prediction for each example's class, shape (..., classes), rows with sum 1.
        include: "full" as above, 9 C numbers; "triangle" without A, 6 C; "sides" also without (T - S)^2, 5 C; "reduced", our addition for
            many classes, the sums of the five squares, the entropies of S and T and their probabilities of the label, 9 in all.

    Returns:
        Shape (..., features), in float32 or float64.

    Raises:
        TypeError: logits are not floating point, or labels not integers.
        ValueError: shapes do not fit, a label is out of range, or ``include`` is another word.
    """
    check_logits(student=student, teacher=teacher)
    check_labels(labels, student)
    check_choice(Include, include=include)
    log_s, log_t = log_probs(student.detach()), log_probs(teacher.detach())
    s, t, a = log_s.exp(), log_t.exp(), averages.detach()
    g = F.one_hot(labels.long(), student.shape[-1]).to(s.dtype)
    if include == "sides":
        return torch.cat([s, t, g, (g - s) ** 2, (t - g) ** 2], dim=-1)
    if include == "triangle":
        return torch.cat([s, t, g, (g - s) ** 2, (t - s) ** 2, (t - g) ** 2], dim=-1)
    squares = [(a - s) ** 2, (g - s) ** 2, (t - s) ** 2, (t - g) ** 2, (a - g) ** 2]
    if include == "full":
        return torch.cat([s, t, g, a, *squares], dim=-1)
    numbers = [square.sum(dim=-1) for square in squares] + [-(p * log_p).sum(dim=-1) for p, log_p in ((s, log_s), (t, log_t))]
    return torch.stack([*numbers, (s * g).sum(dim=-1), (t * g).sum(dim=-1)], dim=-1)


@dataclass(frozen=True, kw_only=True)
class TGeoKD(LogitMethod):
    """Classic distillation with a ratio per example; `weigh` gives the ratios to other methods. Logs the mean as ``alpha``."""

    balances: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("valid",)

    temperature: float = 1.5  # tau > 0; the released script
    ratio: Ratio = "learned"  # Sec. 3; "frozen" as released; "wls": 1 - exp(-CE_s / CE_t), "annealed": from 1 to 0, "fixed": baselines
    alpha: float = 0.5  # the ratio where it is fixed, in [0, 1]; our choice
    include: Include = "full"  # Sec. 3 and its ablation; see `trilateral_state`
    hidden: tuple[int, ...] = (32, 16)  # units of the ratio network, LeakyReLU between; the released script
    eta: float = 0.1  # length of the virtual step, >= 0; our choice, the student's learning rate where that is plain gradient descent
    every: int = 1  # updates between those of the ratio network; the paper alternates
    lowest: float = 0.0  # ratios lie in (lowest, highest); our addition, 0.05 keeps a saturated network alive
    highest: float = 1.0  # as above

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_positive(temperature=self.temperature)
        check_choice(Ratio, ratio=self.ratio)
        check_choice(Include, include=self.include)
        check_unit_interval(alpha=self.alpha, lowest=self.lowest, highest=self.highest)
        check_counts(every=self.every, **{f"hidden[{i}]": units for i, units in enumerate(self.hidden)})
        if self.eta < 0:
            raise ValueError(f"eta: expected a number >= 0, got {self.eta}")
        if self.lowest >= self.highest:
            raise ValueError(f"highest: expected more than lowest, {self.lowest}, got {self.highest}")

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        """Return the teacher's logits."""
        return {"logits": forward(roles["teacher"], batch["x"]).logits}

    def soft(self, logits: Tensor, signal: Signal, batch: Batch, state: State) -> Terms:
        """Return the divergence to the teacher, one value per example."""
        return {"soft": self.temperature**2 * signal_kl(logits, signal, temperature=self.temperature)}

    def extra_roles(self, roles: Roles, batch: Batch) -> dict[str, nn.Module]:
        """Return the ratio network, where there is to be one and the user gave none."""
        if self.ratio not in ("learned", "frozen") or "ratio" in roles:
            return {}
        with torch.no_grad(), evaluating(roles["student"]):
            logits = forward(roles["student"], to_device(batch["x"], device_of(roles["student"]))).logits
        uniform = torch.full_like(logits, 1 / logits.shape[-1])
        labels = torch.zeros(logits.shape[:-1], dtype=torch.long, device=logits.device)
        features = trilateral_state(logits, logits, labels, uniform, include=self.include).shape[-1]
        widths = (features, *self.hidden, 1)
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.LeakyReLU(0.01))]
        return {"ratio": nn.Sequential(*layers[:-1]).to(logits)}

    def weigh(self, logits: Tensor, signal: Signal, batch: Batch, roles: Roles, state: State) -> tuple[Tensor, Tensor]:
        """Return 1 - a for the hard and a for the soft terms."""
        match self.ratio:
            case "fixed":
                alpha = logits.new_full(logits.shape[:-1], self.alpha)
            case "annealed":
                alpha = logits.new_full(logits.shape[:-1], 1 - state.step / state.total_steps)
            case "wls":
                alpha = 1 - torch.exp(-hard_loss(logits, batch) / hard_loss(signal["logits"], batch))
            case _:
                with torch.no_grad():
                    alpha = self._alpha(self._seen(logits, signal, batch, state), roles)
        return 1 - alpha, alpha

    def judge(self, whole: LogitMethod, batch: Batch, roles: Roles, state: State) -> Batch:
        """Find class averages once, and with every batch what a higher ratio of each example would do to the validation loss."""
        if self.ratio not in ("learned", "frozen"):
            return batch
        student, signal = roles["student"], whole.signal(batch, roles, state)
        if _AVERAGES not in state.memory:
            classes, batches = signal["logits"].shape[-1], [batch] if state.source is None else state.source.scan()
            read = partial(_predictions, roles["teacher"])
            means, counts = means_by_class(roles["teacher"], batches, read, classes)
            state.memory[_AVERAGES] = torch.where(counts[:, None] > 0, means, 1 / classes)
        if self.ratio == "frozen" or state.step % self.every:
            return batch
        weights = {name: p.detach().requires_grad_() for name, p in student.named_parameters() if p.requires_grad}
        seen = self._seen(logits_at(student, {}, batch["x"]), signal, batch, state)
        alpha = self._alpha(seen, roles)
        state.log["alpha"] = float(alpha.detach().double().mean())

        def terms(at: Weights) -> tuple[Terms, Terms]:
            return whole.items(logits_at(student, at, batch["x"]), signal, batch, state)

        def difference(at: Weights) -> Tensor:
            hard, soft = terms(at)
            return torch.stack(list(soft.values())).sum(dim=0) - torch.stack(list(hard.values())).sum(dim=0)

        with torch.enable_grad():
            hard, soft = terms(weights)
            mixed = {name: (1 - alpha) * term for name, term in hard.items()} | {name: alpha * term for name, term in soft.items()}
            loss = torch.stack(list(reduce_terms(mixed, batch, global_counts(batch), world_size()).values())).sum()
            gradient = {name: all_reduce_terms({name: g})[name] for name, g in _gradient(loss, weights).items()}
            ahead = {name: (value - self.eta * gradient[name]).detach().requires_grad_() for name, value in weights.items()}
            valid = send_to_device(next(state.streams["valid"]), device_of(student))
            upward = _gradient(hard_loss(logits_at(student, ahead, valid["x"]), valid).mean(), ahead)
        return batch | {_SEEN: seen, _GAIN: along(difference, weights, upward)[1]}

    def weighing_phases(self) -> tuple[Phase, ...]:
        """Return the phase that trains the ratio network, where it is trained."""
        if self.ratio != "learned":
            return ()
        phase = Phase(name="ratio", trains=("ratio",), signal=super().signal, loss=self.ratio_loss, update=self.update, every=self.every)
        return (phase,)

    def ratio_loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return a term whose gradient is that of the validation loss after the virtual step; its value means nothing."""
        return {"ratio": -self.eta * batch[_GAIN] * self._alpha(batch[_SEEN], roles)}

    def _seen(self, logits: Tensor, signal: Signal, batch: Batch, state: State) -> Tensor:
        averages = cast(Tensor, state.memory[_AVERAGES]).to(logits.device)[batch["y"]]
        return trilateral_state(logits, signal["logits"], batch["y"], averages, include=self.include)

    def _alpha(self, seen: Tensor, roles: Roles) -> Tensor:
        seen = seen.to(next(roles["ratio"].parameters()).dtype)
        return self.lowest + (self.highest - self.lowest) * roles["ratio"](seen).squeeze(-1).sigmoid()


def _predictions(teacher: nn.Module, x: Any) -> Tensor:
    return log_probs(forward(teacher, x).logits).exp()


def _gradient(loss: Tensor, weights: Weights) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(weights, found, strict=True))


def miniature(seed: int, size: Size) -> Miniature:
    """MNIST with 600 clean images and a teacher that learned 4, 3 and 7 mostly as 9, 8 and 1; 500 images for validation.

    "ce-with-valid" learns from the validation images too, and is what a real gain is to be compared with.
    """
    kinds: tuple[Ratio, ...] = ("fixed", "frozen", "wls")
    arms = {f"{kind}-ratio": (TGeoKD(ratio=kind), False) for kind in kinds}
    arms |= {"tgeo-kd": (TGeoKD(), False), "ce": (CrossEntropy(), False), "ce-with-valid": (CrossEntropy(), True)}
    return Miniature(
        arms=mixtures(arms | {"untrained-teacher": (TGeoKD(ratio="fixed"), False)}, seed=seed, size=size),
        claims=(
            _than("ce", "accuracy", 0.008, "more than 0.8 points above labels alone"),
            _than("fixed-ratio", "accuracy", 0.05, "more than 5 points above a ratio of 0.5"),
            _than("frozen-ratio", "trust_gap", 0.15, "the ratio is higher where the teacher is right, by more than 0.15"),
            _than("ce-with-valid", "accuracy", 0.0, "above labels alone with the validation images"),
        ),
        notes=("600 training and 500 validation images, 300 updates of 128",) if size == "full" else (),
    )


def _than(baseline: str, metric: str, margin: float, name: str) -> Claim:
    return Claim(name=name, method="tgeo-kd", baseline=baseline, metric=metric, margin=margin)
