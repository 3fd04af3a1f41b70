r"""Divergences between the softened predictions of a student and a teacher, in nats, one value per item.

One notation throughout: p = softmax(teacher / teacher temperature), q = softmax(student / temperature), and
    KL(a || b) = sum_c a_c (log a_c - log b_c).
Every function takes logits of shape (..., classes), keeps the item axes and returns shape (...); the teacher is constant. No function
multiplies by T^2: that factor belongs to the weight of a method.

Precision: float16 and bfloat16 are computed, and returned, in float32.

Masked classes: a logit of -inf is a class that the model cannot choose, its probability is 0 and 0 log 0 = 0. Where only one side masks a
class the true KL is infinite; the zero then counts as the smallest normal number of the dtype, so that values and gradients stay finite.
An item with all classes masked counts as uniform and gets no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import check_floating, check_logits, check_positive, check_unit_interval
from preceptor.losses.numeric import all_finite, any_masked, lift_to_zero, upcast

Temperature = float | Tensor
"""A number > 0, or a tensor of them that broadcasts to the item axes (...)."""


def log_probs(logits: Tensor, *, temperature: Temperature = 1.0) -> Tensor:
    """Log-probabilities of softened predictions, always finite: see the module for classes with a logit of -inf.

    Args:
        logits: shape (..., classes); entries finite or -inf.
        temperature: T > 0, no unit; a number or one per item.

    Returns:
        Shape (..., classes), <= 0, in float32 or float64.

    Raises:
        TypeError: logits are not floating point.
        ValueError: temperature <= 0, or of a shape that does not fit the items.
    """
    check_floating(logits=logits)
    logits, temperature = _scale(logits, temperature)
    if not any_masked(logits):
        return _plain(logits, temperature)
    masked = torch.isneginf(logits)
    scaled = logits.masked_fill(masked, 0.0) / temperature
    masked = masked & ~masked.all(dim=-1, keepdim=True)
    floor = math.log(torch.finfo(logits.dtype).tiny)
    return F.log_softmax(scaled.masked_fill(masked, -torch.inf), dim=-1).masked_fill(masked, floor)


def between(
    apart: Callable[[Tensor, Tensor], Tensor],
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Temperature = 1.0,
    teacher_temperature: Temperature | None = None,
) -> Tensor:
    """A divergence of two predictions from their log-probabilities; masked classes cost time only where there are any.

    Args:
        apart: (log p of the teacher, log q of the student) -> one value per item; infinite or not a number where log 0 meets it.
        student: logits, shape (..., classes).
        teacher: logits, same shape; treated as constant.
        temperature: T > 0, no unit; a number or one per item.
        teacher_temperature: the teacher's own T > 0; None: the same.

    Returns:
        Shape (...), what ``apart`` says of the finite `log_probs`.

    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes or numbers of classes differ, or a temperature is not > 0.
    """
    check_logits(student=student, teacher=teacher)
    teacher = teacher.detach()
    teacher_temperature = temperature if teacher_temperature is None else teacher_temperature
    loss = apart(_plain(*_scale(teacher, teacher_temperature)), _plain(*_scale(student, temperature)))
    if all_finite(loss):
        return loss
    return apart(log_probs(teacher, temperature=teacher_temperature), log_probs(student, temperature=temperature))


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) from finite log-probabilities, both of shape (..., classes); gradients flow to both. Returns shape (...), >= 0."""
    return lift_to_zero((log_p.exp() * (log_p - log_q)).sum(dim=-1))


def jsd(log_p: Tensor, log_q: Tensor, *, beta: float = 0.5) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, from finite log-probabilities (..., classes).

    Gradients flow to both. Returns shape (...), >= 0; 0 at beta = 0 and 1.
    """
    log_m = _log_mixture(log_p, log_q, beta)
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)


def forward_kl(
    student: Tensor, teacher: Tensor, *, temperature: Temperature = 1.0, teacher_temperature: Temperature | None = None
) -> Tensor:
    r"""KL(teacher || student) of softened predictions, in nats: covers every mode of the teacher.

    Hinton, Vinyals, Dean 2015 (arXiv:1503.02531), Sec. 2, without the T^2 factor:
        KL(p || q) = sum_c p_c (log p_c - log q_c).

    Args:
        student: logits, shape (..., classes).
        teacher: logits, same shape; treated as constant.
        temperature: T > 0, no unit; a number or one per item.
        teacher_temperature: the teacher's own T > 0; None: the same.

    Returns:
        Shape (...), >= 0; 0 exactly when the two softmaxes agree.

    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes or numbers of classes differ, or a temperature is not > 0.
    """
    return between(kl, student, teacher, temperature=temperature, teacher_temperature=teacher_temperature)


def reverse_kl(
    student: Tensor, teacher: Tensor, *, temperature: Temperature = 1.0, teacher_temperature: Temperature | None = None
) -> Tensor:
    r"""KL(student || teacher) of softened predictions, in nats: seeks a mode of the teacher.

    Gu et al. 2023 (arXiv:2306.08543), Sec. 2.1:
        KL(q || p) = sum_c q_c (log q_c - log p_c),   with gradient through both factors q.

    Args:
        student: logits, shape (..., classes).
        teacher: logits, same shape; treated as constant.
        temperature: T > 0, no unit; a number or one per item.
        teacher_temperature: the teacher's own T > 0; None: the same.

    Returns:
        Shape (...), >= 0; 0 exactly when the two softmaxes agree.

    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes or numbers of classes differ, or a temperature is not > 0.
    """
    return between(
        lambda log_p, log_q: kl(log_q, log_p), student, teacher, temperature=temperature, teacher_temperature=teacher_temperature
    )


def skew_forward_kl(
    student: Tensor, teacher: Tensor, *, skew: float = 0.1, temperature: Temperature = 1.0, teacher_temperature: Temperature | None = None
) -> Tensor:
    r"""KL of the teacher from a mixture that holds a little of the teacher, in nats.

    Ko et al. 2024, DistiLLM (arXiv:2402.03898), Sec. 3.1:
        KL(p || skew p + (1 - skew) q) <= -log(skew).
    skew = 0 is `forward_kl`, skew = 1 is 0.

    Args:
        student: logits, shape (..., classes).
        teacher: logits, same shape; treated as constant.
        skew: the teacher's share of the mixture, in [0, 1].
        temperature: T > 0, no unit; a number or one per item.
        teacher_temperature: the teacher's own T > 0; None: the same.

    Returns:
        Shape (...), >= 0.

    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes or numbers of classes differ, skew is not in [0, 1], or a temperature is not > 0.
    """
    check_unit_interval(skew=skew)

    def apart(log_p: Tensor, log_q: Tensor) -> Tensor:
        return kl(log_p, _log_mixture(log_p, log_q, skew))

    return between(apart, student, teacher, temperature=temperature, teacher_temperature=teacher_temperature)


def skew_reverse_kl(
    student: Tensor, teacher: Tensor, *, skew: float = 0.1, temperature: Temperature = 1.0, teacher_temperature: Temperature | None = None
) -> Tensor:
    r"""KL of the student from a mixture that holds a little of the student, in nats.

    Ko et al. 2024, DistiLLM (arXiv:2402.03898), Sec. 3.1:
        KL(q || (1 - skew) p + skew q) <= -log(skew).
    skew = 0 is `reverse_kl`, skew = 1 is 0.

    Args:
        student: logits, shape (..., classes).
        teacher: logits, same shape; treated as constant.
        skew: the student's share of the mixture, in [0, 1].
        temperature: T > 0, no unit; a number or one per item.
        teacher_temperature: the teacher's own T > 0; None: the same.

    Returns:
        Shape (...), >= 0.

    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes or numbers of classes differ, skew is not in [0, 1], or a temperature is not > 0.
    """
    check_unit_interval(skew=skew)

    def apart(log_p: Tensor, log_q: Tensor) -> Tensor:
        return kl(log_q, _log_mixture(log_q, log_p, skew))

    return between(apart, student, teacher, temperature=temperature, teacher_temperature=teacher_temperature)


def generalized_jsd(
    student: Tensor, teacher: Tensor, *, beta: float = 0.5, temperature: Temperature = 1.0, teacher_temperature: Temperature | None = None
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence, in nats.

    Agarwal et al. 2023, GKD (arXiv:2306.13649), Sec. 2:
        m = beta p + (1 - beta) q,   JSD = beta KL(p || m) + (1 - beta) KL(q || m) <= the binary entropy of beta.
    By convention beta = 0 is `forward_kl` and beta = 1 is `reverse_kl`. The formula itself tends to 0 at both ends
    (JSD / beta -> KL(p || q) as beta -> 0), so the value jumps there.

    Args:
        student: logits, shape (..., classes).
        teacher: logits, same shape; treated as constant.
        beta: the teacher's share of the mixture, in [0, 1].
        temperature: T > 0, no unit; a number or one per item.
        teacher_temperature: the teacher's own T > 0; None: the same.

    Returns:
        Shape (...), >= 0; 0 exactly when the two softmaxes agree.

    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes or numbers of classes differ, beta is not in [0, 1], or a temperature is not > 0.
    """
    check_unit_interval(beta=beta)

    def apart(log_p: Tensor, log_q: Tensor) -> Tensor:
        if beta == 0:
            return kl(log_p, log_q)
        return kl(log_q, log_p) if beta == 1 else jsd(log_p, log_q, beta=beta)

    return between(apart, student, teacher, temperature=temperature, teacher_temperature=teacher_temperature)


def js_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    student_share: float = 0.9,
    temperature: Temperature = 1.0,
    teacher_temperature: Temperature | None = None,
) -> Tensor:
    r"""Jensen-Shannon divergence in the convention of DistiLLM, in nats.

    Ko et al. 2024, DistiLLM (arXiv:2402.03898), the baseline of its code:
        m = (1 - w) p + w q,   JS = w KL(q || m) + (1 - w) KL(p || m),   w = student_share.
    Equal to `generalized_jsd` with beta = 1 - w strictly inside (0, 1); at both ends it is 0, as the formula says.

    Args:
        student: logits, shape (..., classes).
        teacher: logits, same shape; treated as constant.
        student_share: the student's share of the mixture, in [0, 1].
        temperature: T > 0, no unit; a number or one per item.
        teacher_temperature: the teacher's own T > 0; None: the same.

    Returns:
        Shape (...), >= 0.

    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes or numbers of classes differ, student_share is not in [0, 1], or a temperature is not > 0.
    """
    check_unit_interval(student_share=student_share)

    def apart(log_p: Tensor, log_q: Tensor) -> Tensor:
        log_m = _log_mixture(log_q, log_p, student_share)
        return student_share * kl(log_q, log_m) + (1 - student_share) * kl(log_p, log_m)

    return between(apart, student, teacher, temperature=temperature, teacher_temperature=teacher_temperature)


def symmetric_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    reverse_share: float = 0.9,
    temperature: Temperature = 1.0,
    teacher_temperature: Temperature | None = None,
) -> Tensor:
    r"""Weighted sum of forward and reverse KL, in nats.

    Ko et al. 2024, DistiLLM (arXiv:2402.03898), the baseline of its code:
        (1 - w) KL(p || q) + w KL(q || p),   w = reverse_share.

    Args:
        student: logits, shape (..., classes).
        teacher: logits, same shape; treated as constant.
        reverse_share: the weight of the reverse KL, in [0, 1].
        temperature: T > 0, no unit; a number or one per item.
        teacher_temperature: the teacher's own T > 0; None: the same.

    Returns:
        Shape (...), >= 0; 0 exactly when the two softmaxes agree.

    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes or numbers of classes differ, reverse_share is not in [0, 1], or a temperature is not > 0.
    """
    check_unit_interval(reverse_share=reverse_share)

    def apart(log_p: Tensor, log_q: Tensor) -> Tensor:
        return (1 - reverse_share) * kl(log_p, log_q) + reverse_share * kl(log_q, log_p)

    return between(apart, student, teacher, temperature=temperature, teacher_temperature=teacher_temperature)


def total_variation(
    student: Tensor, teacher: Tensor, *, temperature: Temperature = 1.0, teacher_temperature: Temperature | None = None
) -> Tensor:
    r"""Total variation distance, no unit.

    Wen et al. 2023 (arXiv:2307.15190):
        TV = 1/2 sum_c |p_c - q_c|,   symmetric, in [0, 1], TV^2 <= KL / 2.
    The gradient is 0 where p_c = q_c.

    Args:
        student: logits, shape (..., classes).
        teacher: logits, same shape; treated as constant.
        temperature: T > 0, no unit; a number or one per item.
        teacher_temperature: the teacher's own T > 0; None: the same.

    Returns:
        Shape (...), in [0, 1].

    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes or numbers of classes differ, or a temperature is not > 0.
    """

    def apart(log_p: Tensor, log_q: Tensor) -> Tensor:
        return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(dim=-1)

    return between(apart, student, teacher, temperature=temperature, teacher_temperature=teacher_temperature)


DIVERGENCES: Mapping[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "generalized_jsd": generalized_jsd,
    "js_distance": js_distance,
    "symmetric_kl": symmetric_kl,
    "total_variation": total_variation,
}
"""Every divergence by its name, for methods that let the user choose one."""


def _scale(logits: Tensor, temperature: Temperature) -> tuple[Tensor, Temperature]:
    """Logits in float32 or float64, and a temperature that they can be divided by."""
    check_positive(temperature=temperature)
    if not isinstance(temperature, Tensor):
        return upcast(logits), temperature
    items = logits.shape[:-1]
    axes = zip(reversed(temperature.shape), reversed(items), strict=False)
    if temperature.ndim > len(items) or any(t not in (1, n) for t, n in axes):
        raise ValueError(f"temperature: expected a number or shape {tuple(items)} (one per item), got {tuple(temperature.shape)}")
    return upcast(logits), temperature.unsqueeze(-1)


def _plain(logits: Tensor, temperature: Temperature) -> Tensor:
    """Log-probabilities, -inf for a masked class."""
    if isinstance(temperature, Tensor) or temperature != 1:
        logits = logits / temperature
    return logits.log_softmax(dim=-1)


def _log_mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share a + (1 - share) b), exact at share 0 and 1, where the absent side stays in the graph."""
    weights = [math.log(w) if w > 0 else -math.inf for w in (share, 1 - share)]
    return torch.logaddexp(log_a + weights[0], log_b + weights[1])
