r"""Dice, Tversky and focal losses: soft forms of F1, and a weighted cross-entropy, for classes that are rare.

Li, Sun, Meng, Liang, Wu, Li 2020, Dice Loss for Data-imbalanced NLP Tasks (arXiv:1911.02855). With the probability p of a class against the
rest, its target y in [0, 1] and u = (1 - p)^alpha p, over a set of items of weights m:
    dice = 1 - (2 sum m u y + gamma) / (sum m (u + y) + gamma) = sum m (u (1 - y) + (1 - u) y) / (sum m (u + y) + gamma),
    squared = 1 - (2 sum m u y + gamma) / (sum m (u^2 + y^2) + gamma) = sum m (u - y)^2 / (sum m (u^2 + y^2) + gamma),
    tversky = 1 - (TP + gamma) / (TP + a FP + b FN + gamma),   TP = sum m p y, FP = sum m p (1 - y), FN = sum m (1 - p) y.
The set is either all items, and then the loss of hard predictions is 1 - F1 as gamma -> 0, or each item alone; alpha = 1 of one item is the
paper's self-adjusting DSC. u is largest at p = 1 / (1 + alpha): past it a positive item costs more again, and a negative one less, so that
the threshold of 1 / 2 loses its meaning. With the factor (1 - p)^alpha held constant the slopes have the signs of alpha = 0.

Two kinds of logits: (N,) or (..., 1) are of one class, the positive, and p is their sigmoid; (..., K) are of K classes, p is their softmax,
and the loss is that of every class against the rest. A set loss does not average over items: two halves of a batch do not make the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import INTEGERS, check_choice, check_floating, check_labels, check_positive
from preceptor.losses.divergence import log_probs
from preceptor.losses.numeric import upcast

Level = Literal["set", "example"]
"""Over what sums are taken: ``set``: all items, one value; ``example``: each item alone, one value per item."""

ClassReduction = Literal["mean", "sum"]
"""What is made of the losses of several classes."""

_LARGEST = 1e30  # of a logit of one class: an infinite one has the same probability, but no gradient


def dice_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    alpha: float = 0.0,
    smooth: float = 1.0,
    square: bool = False,
    level: Level = "set",
    detach_factor: bool = False,
    classes: Sequence[int] | None = None,
    class_reduction: ClassReduction = "mean",
    skip_absent: bool = False,
    ohem_ratio: float = 0.0,
) -> Tensor:
    """The loss of the module docstring, ``dice`` or, with ``square``, ``squared``.

    Args:
        logits: (N,) or (..., 1) of the positive class; or (..., K).
        targets: of one class 0 or 1 (...), or numbers in [0, 1]; of K classes class numbers (...), or (..., K) of 0 and 1 or in [0, 1].
            Constant.
        mask: (...), weight m >= 0 of each item; where it is 0 logits and targets may be anything. None: all are 1.
        alpha: >= 0.
        smooth: gamma > 0. Over a set it should be small next to the number of positives.
        square: squares in the denominator.
        level: see `Level`.
        detach_factor: (1 - p)^alpha is held constant.
        classes: those that count, such as all but a background class; None: all.
        class_reduction: see `ClassReduction`.
        skip_absent: only classes with a target above 0 in the set count; else one that is absent is pushed down.
        ohem_ratio: r > 0: of the items with a target below 1 / 2 only the hardest, those of largest p, stay in the set of a class: r times
            as many as there are others, rounded up, so none where a class is absent. 0: all stay.
    Returns:
        0-dimensional for ``set``, (...) for ``example``; in [0, 1] for one class; 0 where all is masked.
    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes do not fit, a target is out of range, or an argument is outside its range.
    """
    check_dice(alpha=alpha, smooth=smooth, level=level, class_reduction=class_reduction, skip_absent=skip_absent, ohem_ratio=ohem_ratio)
    log_p, log_rest, y, weight = _one_against_rest(logits, targets, mask, classes, rest=alpha > 0)
    if ohem_ratio:
        weight = _weighed(_kept(log_p, y, weight, ohem_ratio), weight)
    u = _damped(log_p, log_rest, alpha, constant=detach_factor)
    apart = (u - y).square() if square else u * (1 - y) + (1 - u) * y
    size = u.square() + y.square() if square else u + y
    if level == "set":
        apart, size = _sum(_weighed(apart, weight)), _sum(_weighed(size, weight))
        return _reduced(apart / (size + smooth), class_reduction, _sum(_weighed(y, weight)) > 0 if skip_absent else None)
    return _reduced(_weighed(apart / (size + smooth), weight), class_reduction, None)


def tversky_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    a: float,
    b: float,
    mask: Tensor | None = None,
    smooth: float = 1.0,
    classes: Sequence[int] | None = None,
    class_reduction: ClassReduction = "mean",
) -> Tensor:
    """The loss ``tversky`` of the module docstring over the set of all items; a = b = 1 / 2 is linear Dice with 2 gamma.

    Salehi, Erdogmus, Gholipour 2017 (arXiv:1706.05721), Eq. 3, with gamma.

    Args:
        logits: see `dice_loss`, like ``targets``, ``mask``, ``classes`` and ``class_reduction``.
        targets: see there.
        a: price of a false positive, > 0.
        b: price of a miss, > 0.
        mask: see there.
        smooth: gamma > 0.
        classes: see there.
        class_reduction: see there.
    Returns:
        0-dimensional, >= 0.
    Raises:
        TypeError, ValueError: see `dice_loss`.
    """
    check_positive(a=a, b=b, smooth=smooth)
    check_choice(ClassReduction, class_reduction=class_reduction)
    log_p, log_rest, y, weight = _one_against_rest(logits, targets, mask, classes)
    p, rest = log_p.exp(), log_rest.exp()
    wrong = _sum(_weighed(a * p * (1 - y) + b * rest * y, weight))
    return _reduced(wrong / (_sum(_weighed(p * y, weight)) + wrong + smooth), class_reduction, None)


def focal_loss(logits: Tensor, targets: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Cross-entropy that counts items already decided less: -(1 - p_y)^gamma log p_y, in nats; of soft targets their mean.

    Lin, Goyal, Girshick, He, Dollár 2017 (arXiv:1708.02002), Eq. 4.

    Args:
        logits: see `dice_loss`; of one class p_y is its sigmoid or the rest.
        targets: see there.
        gamma: >= 0; 0 is cross-entropy.
    Returns:
        Shape (...), >= 0.
    Raises:
        TypeError, ValueError: see `dice_loss`.
    """
    _check_not_negative(gamma=gamma)
    log_p, log_rest, y, _ = _one_against_rest(logits, targets, None, None)
    if log_p.shape[-1] == 1:
        log_p, log_rest, y = torch.cat([log_p, log_rest], -1), torch.cat([log_rest, log_p], -1), torch.cat([y, 1 - y], -1)
    factor = (gamma * log_rest).exp() if gamma else 1.0
    return -(y * factor * log_p).sum(dim=-1)


def damped_probs(logits: Tensor, *, alpha: float, detach_factor: bool = False) -> Tensor:
    """u = (1 - p)^alpha p, finite with its gradient for every logit and alpha.

    Args:
        logits: (N,) or (..., 1) of the positive class; or (..., K).
        alpha: >= 0.
        detach_factor: (1 - p)^alpha is held constant.
    Returns:
        (..., 1) or (..., K), in [0, 1], in float32 or float64.
    Raises:
        TypeError: logits are not floating point.
        ValueError: alpha < 0, or logits without an axis.
    """
    _check_not_negative(alpha=alpha)
    return _damped(*_log_probs(_with_classes(logits)), alpha, constant=detach_factor)


def check_dice(*, alpha: float, smooth: float, level: Level, class_reduction: ClassReduction, skip_absent: bool, ohem_ratio: float) -> None:
    """Refuse arguments of `dice_loss` outside their range, and those that relate items where each stands alone.

    Raises:
        ValueError: naming the argument and its value.
    """
    _check_not_negative(alpha=alpha, ohem_ratio=ohem_ratio)
    check_positive(smooth=smooth)
    check_choice(Level, level=level)
    check_choice(ClassReduction, class_reduction=class_reduction)
    if level == "example" and (skip_absent or ohem_ratio):
        raise ValueError("level: expected set with skip_absent or ohem_ratio, which relate the items, got 'example'")


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value}")


def _with_classes(logits: Tensor) -> Tensor:
    check_floating(logits=logits)
    if logits.ndim == 0 or (logits.ndim > 1 and logits.shape[-1] == 0):
        raise ValueError(f"logits: expected shape (N,) or (..., classes), got {tuple(logits.shape)}")
    return logits.unsqueeze(-1) if logits.ndim == 1 else logits


def _one_against_rest(
    logits: Tensor, targets: Tensor, mask: Tensor | None, classes: Sequence[int] | None, *, rest: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """log p, log (1 - p) and y of the classes that count, each (..., C), and weights (..., 1); without ``rest`` log p again."""
    logits = _with_classes(logits)
    if mask is not None:
        if mask.shape != logits.shape[:-1]:
            raise ValueError(f"mask: expected shape {tuple(logits.shape[:-1])}, one per item, got {tuple(mask.shape)}")
        out = (mask == 0).unsqueeze(-1)
        logits = logits.masked_fill(out, 0.0)
        targets = targets.masked_fill(out if targets.ndim == logits.ndim else out.squeeze(-1), 0)
    log_p, log_rest = _log_probs(logits, rest=rest)
    y = _targets(targets.detach(), logits).to(log_p)
    weight = None if mask is None else mask.detach().unsqueeze(-1).to(log_p)
    if classes is None:
        return log_p, log_rest, y, weight
    if logits.shape[-1] == 1 or not classes or not all(0 <= c < logits.shape[-1] for c in classes):
        known = "None for one class" if logits.shape[-1] == 1 else f"at least one, each in [0, {logits.shape[-1] - 1}]"
        raise ValueError(f"classes: expected {known}, got {tuple(classes)}")
    index = torch.tensor(list(classes), device=logits.device)
    return log_p.index_select(-1, index), log_rest.index_select(-1, index), y.index_select(-1, index), weight


def _weighed(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else weight * x


def _log_probs(logits: Tensor, *, rest: bool = True) -> tuple[Tensor, Tensor]:
    """log p and log (1 - p), both (..., C) and finite; without ``rest`` log p again."""
    if logits.shape[-1] == 1:
        z = upcast(logits).clamp(-_LARGEST, _LARGEST)
        return F.logsigmoid(z), F.logsigmoid(-z)
    log_p = log_probs(logits)
    if not rest:
        return log_p, log_p
    best = log_p.detach().argmax(dim=-1, keepdim=True)
    less = log_p.exp().scatter(-1, best, 0.0)  # only the best class can have p > 1 / 2, where log1p(-p) is not precise
    others = less.sum(dim=-1, keepdim=True)
    tiny = others.numel() > 0 and others.detach().amin() < 1e-30  # p of all others are lost, or nearly
    others = log_p.scatter(-1, best, -torch.inf).logsumexp(dim=-1, keepdim=True) if tiny else others.log()
    return log_p, torch.log1p(-less).scatter(-1, best, others)


def _targets(targets: Tensor, logits: Tensor) -> Tensor:
    """y (..., C)."""
    if logits.shape[-1] > 1 and targets.ndim < logits.ndim:
        check_labels(targets, logits)
        return torch.zeros_like(logits).scatter_(-1, targets.long().unsqueeze(-1), 1.0)
    if targets.shape == logits.shape[:-1] and logits.shape[-1] == 1:
        targets = targets.unsqueeze(-1)
    if targets.shape != logits.shape:
        raise ValueError(f"targets: expected shape {tuple(logits.shape[:-1])} or {tuple(logits.shape)}, got {tuple(targets.shape)}")
    outside = targets[~((targets >= 0) & (targets <= 1))]
    if outside.numel():
        what = "0 or 1" if targets.dtype in INTEGERS else "numbers in [0, 1]"
        raise ValueError(f"targets: expected {what}, got {outside[0].item()}")
    return targets


def _damped(log_p: Tensor, log_rest: Tensor, alpha: float, *, constant: bool) -> Tensor:
    """As one exponential: the power (1 - p)^alpha has an infinite slope at p = 1."""
    if alpha == 0:
        return log_p.exp()
    if constant:
        return (alpha * log_rest.detach()).exp() * log_p.exp()
    return (log_p + alpha * log_rest).exp()


def _kept(log_p: Tensor, y: Tensor, weight: Tensor | None, ratio: float) -> Tensor:
    """Whether an item stays in the set of a class, (..., C)."""
    flat_y, flat_p = y.flatten(0, -2), log_p.detach().flatten(0, -2)
    positive, negative = flat_y >= 0.5, flat_y < 0.5
    if weight is not None:
        counts = (weight > 0).flatten(0, -2)
        positive, negative = positive & counts, negative & counts
    number = torch.ceil(ratio * positive.sum(dim=0) - 1e-6)
    rank = flat_p.masked_fill(~negative, -torch.inf).argsort(dim=0, descending=True, stable=True).argsort(dim=0)
    return (positive | (negative & (rank < number))).view(y.shape)


def _sum(x: Tensor) -> Tensor:
    """Over all items, (C,)."""
    return x.flatten(0, -2).sum(dim=0)


def _reduced(losses: Tensor, how: ClassReduction, present: Tensor | None) -> Tensor:
    """Losses (..., C) of the classes that are present as one."""
    count = losses.shape[-1] if present is None else present.sum().clamp_min(1)
    total = (losses if present is None else losses * present).sum(dim=-1)
    return total / count if how == "mean" else total
