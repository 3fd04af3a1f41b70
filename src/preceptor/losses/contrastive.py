"""Contrast between views: what belongs to one index is drawn together, everything else in the batch apart.

Only a whole batch has a meaning: a method that uses these losses is ``coupled``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import check_floating, check_positive, check_same_shape
from preceptor.losses.numeric import gram, upcast


def views_contrast(views: Tensor, *, temperature: float = 0.1, eps: float = 1e-8) -> Tensor:
    """Supervised contrastive loss where every index is its own class, in nats.

    Khosla et al. 2020 (arXiv:2004.11362), Eq. 2, over all V N vectors z of length 1, with the V - 1 other views of its index as the
    positives of an anchor a and every other vector as a negative:
        L_a = -mean_p [z_a z_p / tau - log sum_(b != a) exp(z_a z_b / tau)].

    Args:
        views: V >= 2 views of N indices, shape (V, N, D), of any length.
        temperature: tau > 0, of cosines.
        eps: floor of a vector's length, > 0.

    Returns:
        Shape (N,), the mean over the anchors of an index, so that the mean over indices is that over all anchors; log(V N - 1) when all
        vectors are alike. Unchanged by the lengths of the vectors and by the order of views and indices.

    Raises:
        TypeError: views are not floating point.
        ValueError: views are not (V >= 2, N, D), or a number is not > 0.
    """
    check_floating(views=views)
    check_positive(temperature=temperature, eps=eps)
    if views.ndim != 3 or len(views) < 2:
        raise ValueError(f"views: expected shape (views, N, D) with at least 2 views, got {tuple(views.shape)}")
    num_views, num = views.shape[:2]
    similarity = gram(F.normalize(upcast(views).flatten(0, 1), dim=-1, eps=eps)) / temperature
    similarity = similarity.masked_fill(torch.eye(len(similarity), dtype=torch.bool, device=views.device), -torch.inf)
    log_p = similarity - similarity.logsumexp(dim=1, keepdim=True)
    own = log_p.reshape(num_views, num, num_views, num).diagonal(dim1=1, dim2=3)  # (views, views, N): between views of one index
    itself = torch.eye(num_views, dtype=torch.bool, device=views.device)[:, :, None]
    return -own.masked_fill(itself, 0).sum(dim=1).mean(dim=0) / (num_views - 1)


def nearest_prototypes(features: Tensor, prototypes: Tensor, *, eps: float = 1e-8) -> Tensor:
    """The prototype of largest cosine for every feature; without gradient.

    Args:
        features: shape (N, D).
        prototypes: shape (C, D); a row that is not finite stands for a class without examples and is never chosen.
        eps: floor of a vector's length, > 0.

    Returns:
        Shape (N,), int64, in [0, C).

    Raises:
        TypeError: not floating point.
        ValueError: dimensions differ, or no row of the prototypes is finite.
    """
    check_floating(features=features, prototypes=prototypes)
    check_positive(eps=eps)
    if features.ndim != 2 or prototypes.ndim != 2 or features.shape[1] != prototypes.shape[1]:
        raise ValueError(f"prototypes: expected shape (C, D) with D like features {tuple(features.shape)}, got {tuple(prototypes.shape)}")
    known = prototypes.isfinite().all(dim=1)
    if not known.any():
        raise ValueError(f"prototypes: expected at least one finite row, got none of {len(prototypes)}")
    rows = F.normalize(upcast(prototypes.detach()), dim=1, eps=eps)
    cosines = F.normalize(upcast(features.detach()), dim=1, eps=eps).to(rows) @ rows.where(known[:, None], 0).T
    return cosines.masked_fill(~known, -torch.inf).argmax(dim=1)


def prototype_contrast(
    features: Tensor,
    augmented: Tensor,
    prototypes: Tensor,
    projector: Callable[[Tensor], Tensor] | None = None,
    *,
    temperature: float = 0.1,
) -> Tensor:
    """Contrast of two views of every example with the prototype that is nearest to the first one.

    Döbler, Marsden, Yang 2022, RMT (arXiv:2211.13081), Sec. 3.2: `views_contrast` of [P_k(i), f_i, f~_i] behind the projector, with
    k(i) = `nearest_prototypes`. A prototype that several examples are near to appears once for each and is a negative of the others.

    Args:
        features: shape (N, D).
        augmented: features of the other views, same shape.
        prototypes: shape (C, D), as `nearest_prototypes` takes them; constant, though gradient reaches the projector through them.
        projector: from (n, D) to (n, any); None: as they are.
        temperature: tau > 0.

    Returns:
        Shape (N,), in nats.

    Raises:
        TypeError: not floating point.
        ValueError: shapes do not fit, no prototype is finite, or temperature <= 0.
    """
    check_floating(features=features, augmented=augmented)
    check_same_shape(features=features, augmented=augmented)
    chosen = prototypes.detach()[nearest_prototypes(features, prototypes)].to(features)
    views = torch.cat([chosen, features, augmented])
    projected = views if projector is None else projector(views)
    return views_contrast(projected.reshape(3, len(features), projected.shape[-1]), temperature=temperature)
