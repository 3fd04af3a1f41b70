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

import torch
from torch import Tensor

from preceptor.losses.checks import check_unit_interval
from preceptor.losses.linear_engine import Settings, autocast, run
from preceptor.losses.linear_filter import FilterReport
from preceptor.losses.linear_inputs import Kind, check_head, classes_of, labels_of, resolve, rows_that_count, softmax_of
from preceptor.losses.linear_rows import Entropy, SparseTargets, TeacherLogits
from preceptor.losses.numeric import lift_to_zero, upcast
from preceptor.models.heads import Head


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
    chunk_rows: int | None = None,
    filter_mass: float = 0.0,
    filter_report: FilterReport | None = None,
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
        chunk_rows: rows whose logits exist at a time; None: as the module says.
        filter_mass: see the module; 0: exact gradients.
        filter_report: filled with the filter's error.

    Returns:
        (...), >= 0 for weights >= 0.

    Raises:
        TypeError: hidden or head are not floating point, or targets not integers.
        ValueError: a shape does not fit, a target is out of range, or a number is outside its range.
    """
    settings = Settings(chunk_rows=chunk_rows, filter_mass=filter_mass, filter_report=filter_report)
    index, labels = labels_of(hidden, head, targets, mask, ignore_index, filter_mass)
    check_unit_interval(label_smoothing=label_smoothing)
    if z_loss < 0:
        raise ValueError(f"z_loss: expected a number >= 0, got {z_loss}")
    weights = torch.ones_like(labels, dtype=upcast(hidden[:0]).dtype)
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
    softmax = softmax_of(hidden, head, temperature, index)
    loss = SparseTargets(softmax=softmax, indices=labels, weights=weights, spread=spread, z_loss=z_loss)
    return run(hidden, head, loss, index, settings)[..., 0]


def linear_cross_entropy_lse(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float | Tensor = 1.0,
    chunk_rows: int | None = None,
    filter_mass: float = 0.0,
    filter_report: FilterReport | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and log-normaliser lse = log sum_v exp(a_v / T) of every token, both with gradient.

    Args and errors are those of `linear_cross_entropy`. A gradient that reaches lse is computed in the backward pass.

    Returns:
        Two of shape (...), in nats; both are 0 where a token does not count.
    """
    settings = Settings(chunk_rows=chunk_rows, filter_mass=filter_mass, filter_report=filter_report)
    index, labels = labels_of(hidden, head, targets, mask, ignore_index, filter_mass)
    softmax = softmax_of(hidden, head, temperature, index)
    loss = SparseTargets(softmax=softmax, indices=labels, weights=torch.ones_like(labels, dtype=upcast(hidden[:0]).dtype), with_lse=True)
    cross_entropy, lse = run(hidden, head, loss, index, settings).unbind(dim=-1)
    return cross_entropy, lse


def linear_log_probs(
    hidden: Tensor,
    head: Head,
    tokens: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float | Tensor = 1.0,
    chunk_rows: int | None = None,
    filter_mass: float = 0.0,
    filter_report: FilterReport | None = None,
) -> Tensor:
    """Log-probability of every given token, for losses that weigh each token by itself (policy gradients, preferences).

    The value is minus `linear_cross_entropy`, whose args and errors it shares; gradients are computed in the backward pass, which is the
    cheaper way where tokens have different upstream gradients.

    Returns:
        (...), <= 0, in nats; 0 where a token does not count.
    """
    settings = Settings(chunk_rows=chunk_rows, form=False, filter_mass=filter_mass, filter_report=filter_report)
    index, labels = labels_of(hidden, head, tokens, mask, ignore_index, filter_mass)
    softmax = softmax_of(hidden, head, temperature, index)
    loss = SparseTargets(softmax=softmax, indices=labels, weights=-torch.ones_like(labels, dtype=upcast(hidden[:0]).dtype))
    return run(hidden, head, loss, index, settings)[..., 0]


def linear_entropy(
    hidden: Tensor,
    head: Head,
    *,
    mask: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    chunk_rows: int | None = None,
    filter_mass: float = 0.0,
    filter_report: FilterReport | None = None,
) -> Tensor:
    """Entropy -sum_v q_v log q_v of every prediction.

    Args:
        hidden: (..., D).
        head: (V, D).
        mask: (...), 0 where a token does not count.
        temperature: T > 0, no unit; a number or one per token.
        chunk_rows: rows whose logits exist at a time; None: as the module says.
        filter_mass: see the module; 0: exact gradients.
        filter_report: filled with the filter's error.

    Returns:
        (...), in [0, log V], in nats.

    Raises:
        TypeError: hidden or head are not floating point.
        ValueError: a shape does not fit, or a number is outside its range.
    """
    settings = Settings(chunk_rows=chunk_rows, filter_mass=filter_mass, filter_report=filter_report)
    check_head(hidden, head)
    index = rows_that_count(hidden, mask, filter_mass)
    return run(hidden, head, Entropy(softmax=softmax_of(hidden, head, temperature, index)), index, settings)[..., 0]


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
    chunk_rows: int | None = None,
    filter_mass: float = 0.0,
    filter_report: FilterReport | None = None,
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
        chunk_rows: rows whose logits exist at a time; None: as the module says.
        filter_mass: see the module; 0: exact gradients.
        filter_report: filled with the filter's error.

    Returns:
        (...), >= 0; no factor T^2.

    Raises:
        TypeError: hidden or head are not floating point.
        ValueError: vocabularies differ, a shape does not fit, the kind is unknown or has no share, or a number is outside its range.
    """
    settings = Settings(chunk_rows=chunk_rows, filter_mass=filter_mass, filter_report=filter_report)
    check_head(hidden, head)
    check_head(teacher_hidden, teacher_head, "teacher ")
    if teacher_hidden.shape[:-1] != hidden.shape[:-1]:
        raise ValueError(f"teacher hidden: expected shape {tuple(hidden.shape[:-1])} + (E,), got {tuple(teacher_hidden.shape)}")
    if len(teacher_head.weight) != len(head.weight):
        raise ValueError(f"teacher head: expected {len(head.weight)} classes like the student's, got {len(teacher_head.weight)}")
    index = rows_that_count(hidden, mask, filter_mass)
    name, number = resolve(kind, share)
    states, constant = autocast(teacher_hidden.detach().reshape(-1, teacher_hidden.shape[-1]), teacher_head)
    loss = TeacherLogits(
        kind=name,
        share=number,
        softmax=softmax_of(hidden, head, temperature, index),
        teacher_softmax=softmax_of(hidden, teacher_head, temperature if teacher_temperature is None else teacher_temperature, index),
        teacher=(states if index is None else states[index], constant),
    )
    return run(hidden, head, loss, index, settings)[..., 0]


def linear_topk_kl(
    hidden: Tensor,
    head: Head,
    indices: Tensor,
    log_probs: Tensor,
    *,
    tail: bool = False,
    mask: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    chunk_rows: int | None = None,
    filter_mass: float = 0.0,
    filter_report: FilterReport | None = None,
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
        chunk_rows: rows whose logits exist at a time; None: as the module says.
        filter_mass: see the module; 0: exact gradients.
        filter_report: filled with the filter's error.

    Returns:
        (...), >= 0, in nats.

    Raises:
        TypeError: hidden or head are not floating point, or indices not integers.
        ValueError: a shape does not fit, an index is out of range, or a number is outside its range.
    """
    settings = Settings(chunk_rows=chunk_rows, filter_mass=filter_mass, filter_report=filter_report)
    index, chosen, log_p = classes_of(hidden, head, indices, log_probs, mask, filter_mass)
    if not tail:
        log_p = log_p.log_softmax(dim=-1)
    p = log_p.exp()
    loss = SparseTargets(
        softmax=softmax_of(hidden, head, temperature, index),
        indices=chosen,
        weights=p,
        offsets=log_p.masked_fill(p == 0, 0.0),
        tail=(1 - p.sum(dim=-1, keepdim=True)).clamp_min(0.0) if tail else None,
    )
    return lift_to_zero(run(hidden, head, loss, index, settings)[..., 0])


def linear_sparse_cross_entropy(
    hidden: Tensor,
    head: Head,
    indices: Tensor,
    weights: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    chunk_rows: int | None = None,
    filter_mass: float = 0.0,
    filter_report: FilterReport | None = None,
) -> Tensor:
    """Cross-entropy with weights on a few tokens, -sum_j w_j log q_j: a random sample of a teacher's distribution, several answers.

    Args:
        hidden: (..., D).
        head: (V, D).
        indices: (..., k), int64; a token may stand in a row more than once.
        weights: w, (..., k), constant.
        mask: (...), 0 where a token does not count.
        temperature: T > 0 of the student; a number or one per token.
        chunk_rows: rows whose logits exist at a time; None: as the module says.
        filter_mass: see the module; 0: exact gradients.
        filter_report: filled with the filter's error.

    Returns:
        (...), in nats.

    Raises:
        TypeError: hidden or head are not floating point, or indices not integers.
        ValueError: a shape does not fit, an index is out of range, or a number is outside its range.
    """
    settings = Settings(chunk_rows=chunk_rows, filter_mass=filter_mass, filter_report=filter_report)
    index, chosen, given = classes_of(hidden, head, indices, weights, mask, filter_mass)
    loss = SparseTargets(softmax=softmax_of(hidden, head, temperature, index), indices=chosen, weights=given)
    return run(hidden, head, loss, index, settings)[..., 0]
