"""Losses of language models from hidden states and output layers: neither the student's nor the teacher's logits are ever held as a whole.

Same values and gradients as the dense losses, to rounding: `preceptor.losses.divergence` says what each divergence is. The logits of some
rows at a time (``chunk_rows``) stand in one buffer that their gradient overwrites; `preceptor.losses.linear_engine` says how.

Everywhere: ``hidden`` is (..., D), `preceptor.models.heads.hidden_states` gives it; ``head`` is a `preceptor.models.heads.Head` (weight
(V, D), bias, soft cap), ``head(model)`` gives it. Results are (...), one value per token, in float32 or float64. Rows where ``mask`` is 0
are dropped before any work; their value is 0 and so is their gradient. Gradients reach ``hidden``, the weight and the bias as far as they
require one, never a teacher; a second derivative is not there. A class with a bias of -inf has probability 0.

Memory beside the gradients: one buffer of chunk_rows x V entries, two with a teacher's head.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from preceptor.losses.checks import INTEGERS, check_floating, check_positive, check_unit_interval
from preceptor.losses.linear_engine import CHUNK_ROWS, autocast, check_head, counted, run
from preceptor.losses.linear_rows import Entropy, Softmax, SparseTargets, TeacherLogits
from preceptor.losses.numeric import lift_to_zero, upcast
from preceptor.models.heads import Head

Kind = Literal[
    "forward_kl",
    "reverse_kl",
    "skew_forward_kl",
    "skew_reverse_kl",
    "generalized_jsd",
    "js_distance",
    "symmetric_kl",
    "total_variation",
]
"""A name in `preceptor.losses.divergence.DIVERGENCES`."""

_SHARES: dict[Kind, float] = {
    "skew_forward_kl": 0.1,
    "skew_reverse_kl": 0.1,
    "generalized_jsd": 0.5,
    "js_distance": 0.9,
    "symmetric_kl": 0.9,
}


def linear_cross_entropy(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float | Tensor = 1.0,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    z_loss: float = 0.0,
    chunk_rows: int = CHUNK_ROWS,
) -> Tensor:
    r"""Cross-entropy of the next token, in nats.

    Wijmans et al. 2024, Cut Your Losses in Large-Vocabulary Language Models (arXiv:2411.09009), Sec. 3, and, with the options of
    `torch.nn.functional.cross_entropy`:
        L = -(1 - e) w_y log q_y - e / V sum_v w_v log q_v + z lse^2,   lse = log sum_v exp(a_v / T),   log q = a / T - lse.

    Args:
        hidden: (..., D).
        head: (V, D).
        targets: (...), integers in [0, V), or ``ignore_index`` where a token does not count.
        mask: (...), 0 where a token does not count.
        ignore_index: see ``targets``.
        temperature: T > 0, no unit; a number or one per token.
        label_smoothing: e in [0, 1].
        class_weights: w, (V,), constant. The mean of torch divides by the sum of w_y over the tokens that count: nothing is divided here.
        z_loss: weight z >= 0 of the squared log-normaliser.
        chunk_rows: rows whose logits exist at a time.

    Returns:
        (...), >= 0 for weights >= 0.

    Raises:
        TypeError: hidden or head are not floating point, or targets not integers.
        ValueError: a shape does not fit, a target is out of range, or a number is outside its range.
    """
    keep, labels = _labels(hidden, head, targets, mask, ignore_index)
    check_unit_interval(label_smoothing=label_smoothing)
    if z_loss < 0:
        raise ValueError(f"z_loss: expected a number >= 0, got {z_loss}")
    weights = _ones(hidden, labels)
    spread = None
    if class_weights is not None:
        if class_weights.shape != head.weight.shape[:1]:
            raise ValueError(f"class_weights: expected shape {tuple(head.weight.shape[:1])}, got {tuple(class_weights.shape)}")
        class_weights = class_weights.detach().to(weights)
        weights = class_weights[labels]
    if label_smoothing > 0:
        share = label_smoothing / len(head.weight)
        spread = weights.new_full(head.weight.shape[:1], share) if class_weights is None else share * class_weights
        weights = (1 - label_smoothing) * weights
    softmax = _softmax(hidden, head, temperature, keep)
    loss = SparseTargets(softmax=softmax, indices=labels, weights=weights, spread=spread, z_loss=z_loss)
    return run(hidden, head, loss, keep, chunk_rows=chunk_rows)[..., 0]


def linear_cross_entropy_lse(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float | Tensor = 1.0,
    chunk_rows: int = CHUNK_ROWS,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and log-normaliser lse = log sum_v exp(a_v / T) of every token, both with gradient.

    Args and errors are those of `linear_cross_entropy`. A gradient that reaches lse is computed in the backward pass.

    Returns:
        Two of shape (...), in nats; both are 0 where a token does not count.
    """
    keep, labels = _labels(hidden, head, targets, mask, ignore_index)
    softmax = _softmax(hidden, head, temperature, keep)
    loss = SparseTargets(softmax=softmax, indices=labels, weights=_ones(hidden, labels), with_lse=True)
    cross_entropy, lse = run(hidden, head, loss, keep, chunk_rows=chunk_rows).unbind(dim=-1)
    return cross_entropy, lse


def linear_log_probs(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float | Tensor = 1.0,
    chunk_rows: int = CHUNK_ROWS,
) -> Tensor:
    """Log-probability of every given token, for losses that weigh each token by itself (policy gradients, preferences).

    The value is minus `linear_cross_entropy`, whose args and errors it shares; gradients are computed in the backward pass, which is the
    cheaper way where tokens have different upstream gradients.

    Returns:
        (...), <= 0, in nats; 0 where a token does not count.
    """
    keep, labels = _labels(hidden, head, tokens, mask, ignore_index)
    softmax = _softmax(hidden, head, temperature, keep)
    loss = SparseTargets(softmax=softmax, indices=labels, weights=-_ones(hidden, labels))
    return run(hidden, head, loss, keep, chunk_rows=chunk_rows, form=False)[..., 0]


def linear_entropy(
    hidden: Tensor, head: Head, *, mask: Tensor | None = None, temperature: float | Tensor = 1.0, chunk_rows: int = CHUNK_ROWS
) -> Tensor:
    """Entropy -sum_v q_v log q_v of every prediction.

    Args:
        hidden: (..., D).
        head: (V, D).
        mask: (...), 0 where a token does not count.
        temperature: T > 0, no unit; a number or one per token.
        chunk_rows: rows whose logits exist at a time.

    Returns:
        (...), in [0, log V], in nats.

    Raises:
        TypeError: hidden or head are not floating point.
        ValueError: a shape does not fit, or a number is outside its range.
    """
    check_head(hidden, head)
    keep = counted(hidden, mask)
    return run(hidden, head, Entropy(softmax=_softmax(hidden, head, temperature, keep)), keep, chunk_rows=chunk_rows)[..., 0]


def linear_divergence(
    hidden: Tensor,
    head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    *,
    kind: Kind = "forward_kl",
    share: float | None = None,
    mask: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    teacher_temperature: float | Tensor | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Tensor:
    """A divergence of `preceptor.losses.divergence` between student and teacher, both given by hidden states and head.

    Args:
        hidden: of the student, (..., D).
        head: of the student, (V, D).
        teacher_hidden: (..., E), the same leading shape; treated as constant.
        teacher_head: (V, E), the same vocabulary; treated as constant.
        kind: which divergence.
        share: its one number in [0, 1], as that divergence documents it: ``skew``, ``beta``, ``student_share`` or ``reverse_share``.
            None: the default there.
        mask: (...), 0 where a token does not count.
        temperature: T > 0, no unit; a number or one per token.
        teacher_temperature: the teacher's own T > 0; None: the same.
        chunk_rows: rows whose logits exist at a time.

    Returns:
        (...), >= 0; no factor T^2.

    Raises:
        TypeError: hidden or head are not floating point.
        ValueError: vocabularies differ, a shape does not fit, the kind is unknown or has no share, or a number is outside its range.
    """
    check_head(hidden, head)
    check_head(teacher_hidden, teacher_head, "teacher ")
    if teacher_hidden.shape[:-1] != hidden.shape[:-1]:
        raise ValueError(f"teacher hidden: expected shape {tuple(hidden.shape[:-1])} + (E,), got {tuple(teacher_hidden.shape)}")
    if len(teacher_head.weight) != len(head.weight):
        raise ValueError(f"teacher head: expected {len(head.weight)} classes like the student's, got {len(teacher_head.weight)}")
    keep = counted(hidden, mask)
    name, number = _resolve(kind, share)
    states, constant = autocast(teacher_hidden.detach().reshape(-1, teacher_hidden.shape[-1]), teacher_head)
    loss = TeacherLogits(
        kind=name,
        share=number,
        softmax=_softmax(hidden, head, temperature, keep),
        teacher_softmax=_softmax(hidden, teacher_head, temperature if teacher_temperature is None else teacher_temperature, keep),
        teacher=(states if keep is None else states[keep], constant),
    )
    return run(hidden, head, loss, keep, chunk_rows=chunk_rows)[..., 0]


def linear_topk_kl(
    hidden: Tensor,
    head: Head,
    indices: Tensor,
    log_probs: Tensor,
    *,
    tail: bool = False,
    mask: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    chunk_rows: int = CHUNK_ROWS,
) -> Tensor:
    r"""KL(teacher || student) from a teacher that is known in its k most probable tokens.

    Without ``tail`` the teacher's k probabilities are brought to sum 1:
        L = sum_j p_j (log p_j - log q_j),   p = softmax(log_probs).
    With ``tail`` all other tokens are one bucket, p_t = 1 - sum_j p_j and q_t = 1 - sum_j q_j:
        L = sum_j p_j (log p_j - log q_j) + p_t (log p_t - log q_t) <= KL(p || q),   p = exp(log_probs).

    Args:
        hidden: (..., D).
        head: (V, D).
        indices: (..., k), int64, the teacher's tokens, all different in a row.
        log_probs: (..., k), of the teacher at ``temperature``; constant. -inf is a token that does not count.
        tail: whether the rest of the teacher's mass is a bucket.
        mask: (...), 0 where a token does not count.
        temperature: T > 0 of the student; a number or one per token.
        chunk_rows: rows whose logits exist at a time.

    Returns:
        (...), >= 0, in nats.

    Raises:
        TypeError: hidden or head are not floating point, or indices not integers.
        ValueError: a shape does not fit, an index is out of range, or a number is outside its range.
    """
    keep, chosen, log_p = _few(hidden, head, indices, log_probs, mask)
    if not tail:
        log_p = log_p.log_softmax(dim=-1)
    p = log_p.exp()
    loss = SparseTargets(
        softmax=_softmax(hidden, head, temperature, keep),
        indices=chosen,
        weights=p,
        offsets=log_p.masked_fill(p == 0, 0.0),
        tail=(1 - p.sum(dim=-1, keepdim=True)).clamp_min(0.0) if tail else None,
    )
    return lift_to_zero(run(hidden, head, loss, keep, chunk_rows=chunk_rows)[..., 0])


def linear_sparse_cross_entropy(
    hidden: Tensor,
    head: Head,
    indices: Tensor,
    weights: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    chunk_rows: int = CHUNK_ROWS,
) -> Tensor:
    """Cross-entropy with weights on a few tokens, -sum_j w_j log q_j: a random sample of a teacher's distribution, several answers.

    Args:
        hidden: (..., D).
        head: (V, D).
        indices: (..., k), int64; a token may stand in a row more than once.
        weights: w, (..., k), constant.
        mask: (...), 0 where a token does not count.
        temperature: T > 0 of the student; a number or one per token.
        chunk_rows: rows whose logits exist at a time.

    Returns:
        (...), in nats.

    Raises:
        TypeError: hidden or head are not floating point, or indices not integers.
        ValueError: a shape does not fit, an index is out of range, or a number is outside its range.
    """
    keep, chosen, given = _few(hidden, head, indices, weights, mask)
    loss = SparseTargets(softmax=_softmax(hidden, head, temperature, keep), indices=chosen, weights=given)
    return run(hidden, head, loss, keep, chunk_rows=chunk_rows)[..., 0]


def _labels(hidden: Tensor, head: Head, targets: Tensor, mask: Tensor | None, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The mask of rows that count, and their targets as (rows, 1)."""
    check_head(hidden, head)
    if targets.dtype not in INTEGERS:
        raise TypeError(f"targets: expected integers, got {targets.dtype}")
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(f"targets: expected shape {tuple(hidden.shape[:-1])} for hidden {tuple(hidden.shape)}, got {tuple(targets.shape)}")
    flat, keep = targets.flatten(), counted(hidden, mask)
    keep = flat != ignore_index if keep is None else keep & (flat != ignore_index)
    labels = flat[keep].long()[:, None]
    _check_range("targets", labels, head)
    return keep, labels


def _few(hidden: Tensor, head: Head, indices: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor | None, Tensor, Tensor]:
    """The mask of rows that count, and their indices and values as (rows, k)."""
    check_head(hidden, head)
    check_floating(values=values)
    if indices.dtype not in INTEGERS:
        raise TypeError(f"indices: expected integers, got {indices.dtype}")
    if indices.ndim != hidden.ndim or indices.shape[:-1] != hidden.shape[:-1] or values.shape != indices.shape:
        wanted = f"{tuple(hidden.shape[:-1])} + (k,)"
        raise ValueError(f"indices: expected shape {wanted}, and as many values, got {tuple(indices.shape)} and {tuple(values.shape)}")
    keep = counted(hidden, mask)
    flat, given = indices.reshape(-1, indices.shape[-1]).long(), values.detach().reshape(-1, indices.shape[-1])
    if keep is not None:
        flat, given = flat[keep], given[keep]
    _check_range("indices", flat, head)
    return keep, flat, given.to(upcast(hidden[:0]).dtype)


def _check_range(name: str, indices: Tensor, head: Head) -> None:
    wrong = (indices < 0) | (indices >= len(head.weight))
    if wrong.any():
        raise ValueError(f"{name}: expected values in [0, {len(head.weight) - 1}], got {indices[wrong][0].item()}")


def _ones(hidden: Tensor, labels: Tensor) -> Tensor:
    """A weight of 1 for every label, in float32 or float64."""
    return torch.ones(labels.shape, dtype=upcast(hidden[:0]).dtype, device=hidden.device)


def _softmax(hidden: Tensor, head: Head, temperature: float | Tensor, keep: Tensor | None) -> Softmax:
    """The softmax of a head over the rows that count."""
    check_positive(temperature=temperature)
    if isinstance(temperature, Tensor):
        if temperature.ndim >= hidden.ndim:
            raise ValueError(f"temperature: expected a number or shape {tuple(hidden.shape[:-1])}, got {tuple(temperature.shape)}")
        rows = temperature.detach().to(upcast(hidden[:0])).expand(hidden.shape[:-1]).reshape(-1, 1)
        temperature = rows if keep is None else rows[keep]
    masked = None
    if head.bias is not None and head.soft_cap is None:  # a soft cap turns -inf into a finite logit
        infinite = torch.isneginf(head.bias.detach())
        masked = infinite if infinite.any() else None
    return Softmax(temperature=temperature, masked=masked)


def _resolve(kind: Kind, share: float | None) -> tuple[str, float]:
    """The divergence to compute and its share, with those that are another one at an end of [0, 1]."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}, got {kind!r}")
    if share is None:
        share = _SHARES.get(kind, 0.0)
    elif kind not in _SHARES:
        raise ValueError(f"share: expected None for {kind}, got {share}")
    check_unit_interval(share=share)
    match kind, share:
        case "skew_forward_kl", 0:
            return "forward_kl", 0.0
        case "skew_reverse_kl", 0:
            return "reverse_kl", 0.0
        case "generalized_jsd", 0 | 1:
            return "reverse_kl" if share else "forward_kl", 0.0
        case "js_distance", _:
            return "generalized_jsd", 1 - share
    return kind, share
