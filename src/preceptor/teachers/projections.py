"""Directions of a teacher's embeddings that split each class, and the soft split of an example that they give."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.checks import check_choice, check_floating, check_labels, check_positive
from preceptor.losses.divergence import log_probs
from preceptor.losses.numeric import upcast

Directions = Literal["pca", "random"]
"""``random``: orthonormal directions that know nothing of the data, the control."""


class Projections(NamedTuple):
    """What splits the classes, constant."""

    directions: Tensor  # u, (C, D, S), orthonormal columns
    means: Tensor  # mu, (C, D)
    scale: Tensor  # (C,), > 0


def fit_projections(
    embeddings: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    num_subclasses: int,
    class_weights: Tensor | None = None,
    rotate: bool = True,
    normalize: bool = True,
    directions: Directions = "pca",
    generator: torch.Generator | None = None,
) -> Projections:
    """Find the directions that split each class.

    Args:
        embeddings: of the training data by the teacher, shape (N, D).
        labels: shape (N,), integers in [0, C); of unlabelled data what the teacher predicts.
        num_classes: C.
        num_subclasses: S, in [1, D].
        class_weights: weights (C, D) of the teacher's class head, whose row space is left out where S other directions remain.
        rotate: mix the directions of a class at random, so that each has the same variance in expectation.
        normalize: divide scores by the root mean square of the class's own.
        directions: see `Directions`.
        generator: of all draws, on the CPU.

    Returns:
        In the dtype of the embeddings, at least float32. A class that spans fewer than S directions gets random ones too, with a warning.

    Raises:
        TypeError: embeddings are not floating point, or labels not integers.
        ValueError: a class has no example, S is out of range, or shapes do not fit.
    """
    check_floating(embeddings=embeddings)
    check_choice(Directions, directions=directions)
    check_labels(labels, embeddings.new_empty(len(embeddings), num_classes))
    if not 1 <= num_subclasses <= embeddings.shape[1]:
        raise ValueError(f"num_subclasses: expected a number in [1, {embeddings.shape[1]}], got {num_subclasses}")
    h = embeddings.detach().cpu().double()
    keep = _null_space(class_weights, h, num_subclasses)
    found, means, scales = [], [], []
    for c in range(num_classes):
        own = h[labels.cpu() == c]
        if not len(own):
            raise ValueError(f"embeddings: expected examples of all {num_classes} classes, got none of class {c}")
        centred = own - own.mean(dim=0)
        basis = _principal(centred @ keep, num_subclasses) if directions == "pca" else h.new_zeros(h.shape[1], 0)
        if directions == "pca" and basis.shape[1] < num_subclasses:
            warnings.warn(
                f"projections: class {c} spans {basis.shape[1]} of {num_subclasses} directions, the rest are random", stacklevel=2
            )
        u = _completed(basis, keep, num_subclasses, generator)
        if rotate:
            u = u @ _orthonormal(torch.randn(num_subclasses, num_subclasses, generator=generator, dtype=torch.float64))
        size = (centred @ u).square().mean().sqrt() if normalize else h.new_ones(())
        found.append(u)
        means.append(own.mean(dim=0))
        scales.append(torch.where(size > 0, size, 1.0))
    return Projections(*(torch.stack(each).to(upcast(embeddings)) for each in (found, means, scales)))


def subclass_log_probs(
    embeddings: Tensor, logits: Tensor, projections: Projections, *, beta: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities of the subclasses that a teacher sees, log p_cs; over s they sum to the softmax of its logits.

    Args:
        embeddings: of the teacher, shape (N, D).
        logits: of the teacher, shape (N, C).
        projections: of C classes and D numbers.
        beta: temperature of the split, > 0: small for hard parts, large for equal ones.
        temperature: tau > 0 of the classes.

    Returns:
        Shape (N, C, S), at least float32, constant.
    """
    check_positive(beta=beta)
    h = upcast(embeddings.detach())
    u, means, scale = (each.to(h) for each in projections)
    with torch.autocast(h.device.type, enabled=False):
        scores = torch.einsum("nd,cds->ncs", h, u) - torch.einsum("cd,cds->cs", means, u)
    split = F.log_softmax(scores / (beta * scale[:, None]), dim=-1)
    return log_probs(logits.detach(), temperature=temperature).unsqueeze(-1) + split


def _null_space(weights: Tensor | None, h: Tensor, needed: int) -> Tensor:
    """The projector (D, D) away from the rows of ``weights``; the identity where too little would remain."""
    identity = torch.eye(h.shape[1], dtype=h.dtype)
    if weights is None:
        return identity
    if weights.ndim != 2 or weights.shape[1] != h.shape[1]:
        raise ValueError(f"class_weights: expected shape (classes, {h.shape[1]}) like the embeddings, got {tuple(weights.shape)}")
    rows = _principal(weights.detach().cpu().double(), h.shape[1])
    return identity if h.shape[1] - rows.shape[1] < needed else identity - rows @ rows.T


def _principal(rows: Tensor, most: int) -> Tensor:
    """The largest right singular vectors (D, r) that are not null, r <= ``most``; the largest entry of each is positive."""
    triangle = torch.linalg.qr(rows, mode="r").R if len(rows) > rows.shape[1] else rows
    _, sizes, vh = torch.linalg.svd(triangle, full_matrices=False)
    rank = int((sizes > sizes.max() * max(rows.shape) * torch.finfo(rows.dtype).eps * 10).sum())
    v = vh[: min(rank, most)].T
    return v * v.gather(0, v.abs().argmax(dim=0, keepdim=True)).sign() if v.shape[1] else v


def _completed(basis: Tensor, keep: Tensor, columns: int, generator: torch.Generator | None) -> Tensor:
    """An orthonormal basis (D, ``columns``) that begins with ``basis`` and goes on at random."""
    draws = keep @ torch.randn(len(basis), columns - basis.shape[1], generator=generator, dtype=basis.dtype)
    return torch.cat([basis, _orthonormal(draws - basis @ (basis.T @ draws))], dim=1)


def _orthonormal(columns: Tensor) -> Tensor:
    """The columns made orthonormal one after another, each keeping its sense."""
    q, r = torch.linalg.qr(columns)
    return q * r.diagonal().sign()
