"""Checks of what a loss is given: one line naming the argument, what was expected and what came."""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_same_shape(**tensors: Tensor) -> None:
    """Refuse tensors whose shapes differ from the first one's.

    Raises:
        ValueError: naming the first argument that differs.
    """
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != reference.shape:
            raise ValueError(f"{name}: expected shape {tuple(reference.shape)} like {first}, got {tuple(tensor.shape)}")


def check_floating(**tensors: Tensor) -> None:
    """Refuse tensors that are not of a real floating-point dtype.

    Raises:
        TypeError: naming the argument and its dtype.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")


def check_logits(*, student: Tensor, teacher: Tensor) -> None:
    """Refuse logits of student and teacher that cannot be compared item by item.

    Args:
        student: shape (..., classes).
        teacher: the same shape.

    Raises:
        TypeError: one of them is not floating point.
        ValueError: the numbers of classes differ, or the shapes do, or there is no class axis.
    """
    check_floating(student=student, teacher=teacher)
    if student.ndim < 1:
        raise ValueError(f"student: expected logits of shape (..., classes), got shape {tuple(student.shape)}")
    if student.ndim == teacher.ndim and student.shape[-1] != teacher.shape[-1]:
        raise ValueError(f"teacher: expected {student.shape[-1]} classes like student, got {teacher.shape[-1]}")
    check_same_shape(student=student, teacher=teacher)


def check_vocabularies(student: int, **others: int) -> None:
    """Refuse a teacher, or another network, whose logits are over another vocabulary than the student's.

    Args:
        student: tokens in its vocabulary.
        others: tokens in that of the teacher, a reference, ...

    Raises:
        ValueError: naming both sizes, and the method for two tokenizers.
    """
    for name, size in others.items():
        if size != student:
            raise ValueError(
                f"{name}: expected the student's vocabulary of {student} tokens, got one of {size}; between two tokenizers distil by the"
                " method alm"
            )


def check_positive(**values: float | Tensor) -> None:
    """Refuse numbers, or tensors with entries, that are not finite and > 0.

    Raises:
        ValueError: naming the argument and the offending value.
    """
    for name, value in values.items():
        if isinstance(value, (int, float)) and 0 < value < math.inf:
            continue
        entries = torch.as_tensor(value)
        wrong = ~((entries > 0) & torch.isfinite(entries))
        if wrong.any():
            raise ValueError(f"{name}: expected a finite number > 0, got {entries[wrong].flatten()[0].item()}")


def check_unit_interval(**values: float) -> None:
    """Refuse numbers outside [0, 1].

    Raises:
        ValueError: naming the argument and its value.
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a number in [0, 1], got {value}")


def check_counts(**values: int) -> None:
    """Refuse numbers below 1.

    Raises:
        ValueError: naming the argument and its value.
    """
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")


def check_choice(known: object, **values: str) -> None:
    """Refuse a word that is none of those of a `typing.Literal`.

    Raises:
        ValueError: naming the argument, the words and what came.
    """
    for name, value in values.items():
        if value not in get_args(known):
            raise ValueError(f"{name}: expected one of {', '.join(get_args(known))}, got {value!r}")


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Refuse labels that do not name one class per item of ``logits``.

    Args:
        labels: expected shape (...), an integer dtype, entries in [0, classes).
        logits: shape (..., classes).

    Raises:
        TypeError: labels are not integers.
        ValueError: the shape is wrong, or an entry is out of range.
    """
    if labels.dtype not in INTEGERS:
        raise TypeError(f"labels: expected integers, got {labels.dtype}")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels: expected shape {tuple(logits.shape[:-1])} for logits {tuple(logits.shape)}, got {tuple(labels.shape)}")
    if labels.numel() == 0:
        return
    least, largest = labels.aminmax()
    if least < 0 or largest >= logits.shape[-1]:
        wrong = (labels < 0) | (labels >= logits.shape[-1])
        raise ValueError(f"labels: expected values in [0, {logits.shape[-1] - 1}], got {labels[wrong][0].item()}")
