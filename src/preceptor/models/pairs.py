"""Pairs of layers, one of the student and one of the teacher, that feature methods compare."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from preceptor.core.types import Roles
from preceptor.models.taps import layer_names


def check_pairs(method: str, roles: Roles, student_layers: Sequence[str], teacher_layers: Sequence[str]) -> None:
    """Refuse layer names that do not make pairs.

    Args:
        method: slug, for the message.
        roles: with ``student`` and ``teacher``.
        student_layers: names of the student's layers, see `preceptor.models.taps`.
        teacher_layers: the teacher's layer for each of them, in the same order.
    Raises:
        ValueError: none at all, or different numbers of them; some names of layers are listed.
    """
    if student_layers and len(student_layers) == len(teacher_layers):
        return
    known = "; ".join(f"{role} has {_some(roles[role])}" for role in ("student", "teacher"))
    raise ValueError(
        f"{method}: expected student_layers and teacher_layers, as many of one as of the other and at least one, got"
        f" {list(student_layers)} and {list(teacher_layers)} ({known})"
    )


def _some(model: nn.Module, most: int = 8) -> str:
    """A few layer names spread over the model."""
    names = layer_names(model)
    shown = names if len(names) <= most else [names[i * (len(names) - 1) // (most - 1)] for i in range(most)]
    return ", ".join(shown) or "no layers"
