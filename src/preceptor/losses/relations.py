"""Losses between the relations of the examples of a batch: relational knowledge distillation.

Park et al. 2019, RKD (arXiv:1904.05068). Each function gives one value per example, the mean over the pairs or triplets that the example
anchors, so that the mean over examples is the paper's mean over all entries of the matrix, the zero diagonal included. Only a whole batch
has a meaning: a method that uses them is ``coupled``.

Both losses are unchanged by translation, rotation and scaling of either embedding, whose dimensions may differ. One example alone has no
relations: the loss is 0, with a gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import check_floating, check_positive
from preceptor.losses.numeric import gram, upcast


def rkd_distance(student: Tensor, teacher: Tensor, *, squared: bool = False, eps: float = 1e-12) -> Tensor:
    """Difference between the mean-normalised distances of student and teacher.

    Park et al. 2019 (arXiv:1904.05068), Sec. 3.2.1:
        L_i = mean_j SmoothL1(d^s_ij / mu^s - d^t_ij / mu^t),   mu = mean of the positive d,
    with SmoothL1 at its unit threshold. mu is not constant for the student.

    Args:
        student: embeddings, shape (N, D).
        teacher: embeddings, shape (N, other D); treated as constant.
        squared: compare squared distances, as an ablation; the paper's distances are not squared.
        eps: floor of the squared distance between two different examples, > 0: identical points stay apart by sqrt(eps).

    Returns:
        Shape (N,), >= 0.

    Raises:
        TypeError: embeddings are not floating point.
        ValueError: embeddings are not (N, D) with the same N, or eps <= 0.
    """
    check_positive(eps=eps)
    _check_embeddings(student, teacher)
    d_student = _normalised_distances(student, squared, eps)
    d_teacher = _normalised_distances(teacher.detach(), squared, eps)
    return F.smooth_l1_loss(d_student, d_teacher, reduction="none").mean(dim=1)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Difference between the angles that triplets of examples form in the spaces of student and teacher.

    Park et al. 2019 (arXiv:1904.05068), Sec. 3.2.2, for the vertex i and all j, k:
        L_i = mean_jk SmoothL1(cos^s_ijk - cos^t_ijk),   cos_ijk = <x_j - x_i, x_k - x_i> / (|x_j - x_i| |x_k - x_i|),
    0 where a side has no length. Computed from the Gram matrix G of the centred embeddings, never from the differences:
        <x_j - x_i, x_k - x_i> = G_jk - G_ij - G_ik + G_ii.
    Points closer than rounding (relative to their distance from the centre) count as identical. Memory: N^3 numbers.

    Args:
        student: embeddings, shape (N, D).
        teacher: embeddings, shape (N, other D); treated as constant.

    Returns:
        Shape (N,), >= 0; 0 up to rounding for N < 3.

    Raises:
        TypeError: embeddings are not floating point.
        ValueError: embeddings are not (N, D) with the same N.
    """
    _check_embeddings(student, teacher)
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher.detach()), reduction="none").mean(dim=(1, 2))


def _check_embeddings(student: Tensor, teacher: Tensor) -> None:
    check_floating(student=student, teacher=teacher)
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(f"teacher: expected embeddings (N, D) with N like student {tuple(student.shape)}, got {tuple(teacher.shape)}")


def _centred_gram(embeddings: Tensor) -> Tensor:
    x = upcast(embeddings)
    return gram(x - x.mean(dim=0, keepdim=True))


def _squared_distances(products: Tensor) -> Tensor:
    norms = products.diagonal()
    return norms[:, None] + norms[None, :] - 2 * products


def _normalised_distances(embeddings: Tensor, squared: bool, eps: float) -> Tensor:
    distances = _squared_distances(_centred_gram(embeddings)).clamp(min=eps)
    if not squared:
        distances = distances.sqrt()
    distances = distances * (1 - torch.eye(len(distances), dtype=distances.dtype, device=distances.device))
    num_pairs = max(len(distances) * (len(distances) - 1), 1)
    # eps keeps every pair apart, so the mean is positive unless there is no pair at all.
    return distances / (distances.sum() / num_pairs).clamp(min=eps)


def _cosines(embeddings: Tensor) -> Tensor:
    """All cos_ijk, shape (N, N, N), vertex first."""
    products = _centred_gram(embeddings)
    norms = products.diagonal()
    squares = _squared_distances(products)
    apart = squares.detach() > 8 * torch.finfo(products.dtype).eps * (norms[:, None] + norms[None, :])
    inverse = torch.where(apart, torch.where(apart, squares, 1.0).rsqrt(), 0.0)
    sides = products[None, :, :] - products[:, :, None] - products[:, None, :] + norms[:, None, None]
    return sides * inverse[:, :, None] * inverse[:, None, :]
