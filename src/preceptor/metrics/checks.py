"""Checks of what the metrics are given: one line that names the argument, what was expected and what came."""

from __future__ import annotations

import torch
from torch import Tensor


def checked_logits(logits: Tensor, name: str = "logits") -> Tensor:
    """Return ``logits`` without gradient, half precision widened to float32.

    Args:
        logits: shape (N, classes), N >= 1, classes >= 2, floating, without NaN; -inf is a class that is ruled out.
        name: how the errors call the argument.
    Raises:
        ValueError: another shape, no example, fewer than two classes, NaN, or a row without a finite largest value.
        TypeError: not floating.
    """
    if not logits.is_floating_point():
        raise TypeError(f"{name}: expected a floating tensor, got {logits.dtype}")
    if logits.dim() != 2:
        raise ValueError(f"{name}: expected shape (examples, classes), got {tuple(logits.shape)}")
    if len(logits) == 0:
        raise ValueError(f"{name}: expected at least one example, got none")
    if logits.shape[1] < 2:
        raise ValueError(f"{name}: expected at least 2 classes, got {logits.shape[1]}")
    logits = logits.detach()
    bad = ~logits.amax(dim=1).isfinite()  # amax passes NaN on
    if bad.any():
        raise ValueError(
            f"{name}: expected every row to have a finite largest value and no NaN, got {int(bad.sum())} bad rows of {len(bad)}"
        )
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def checked_pair(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits as `checked_logits` does, and labels as int64 on the same device.

    Args:
        logits: shape (N, classes).
        labels: classes, shape (N,), integers in [0, classes).
    Raises:
        ValueError: shapes that do not fit, or a label out of range.
        TypeError: labels that are not integers.
    """
    logits = checked_logits(logits)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels: expected integers, got {labels.dtype}")
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels: expected shape ({len(logits)},) like the logits, got {tuple(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(f"labels: expected 0 to {logits.shape[1] - 1}, got {low} to {high}")
    return logits, labels.to(logits.device, torch.int64)


def checked_student_teacher(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both logits as `checked_logits` does, on the student's device.

    Args:
        student: shape (N, classes).
        teacher: the same shape.
    Raises:
        ValueError: the shapes differ, or what `checked_logits` refuses.
    """
    if teacher.shape != student.shape:
        raise ValueError(f"teacher: expected shape {tuple(student.shape)} like student, got {tuple(teacher.shape)}")
    student = checked_logits(student, "student")
    return student, checked_logits(teacher, "teacher").to(student.device)
