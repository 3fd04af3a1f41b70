"""A class head whose classes are made of subclasses: S outputs per class, of which a user sees the class as a whole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.models.taps import find_layer, layer_names


def collapse(outputs: Tensor, subclasses: int) -> Tensor:
    """Log-probabilities of classes from logits of subclasses: log sum over s of softmax(outputs) at c S + s.

    Args:
        outputs: shape (..., C S), the S outputs of each class side by side.
        subclasses: S >= 1.

    Returns:
        Shape (..., C), <= 0, at least float32; logits of the classes like any other.

    Raises:
        ValueError: the outputs cannot be shared among classes.
    """
    if subclasses < 1 or outputs.shape[-1] % subclasses:
        raise ValueError(f"outputs: expected a multiple of {subclasses} subclasses, got {outputs.shape[-1]}")
    half = outputs.dtype in (torch.float16, torch.bfloat16)
    return F.log_softmax(outputs.float() if half else outputs, dim=-1).unflatten(-1, (-1, subclasses)).logsumexp(dim=-1)


class SubclassHead(nn.Module):
    """Stands where a classifier has its last linear layer; ``outputs`` is a linear layer of C S outputs.

    Args:
        features: numbers per embedding.
        classes: C.
        subclasses: S; with 1 the head is a linear one followed by a log-softmax.
    """

    def __init__(self, features: int, classes: int, subclasses: int) -> None:
        super().__init__()
        if subclasses < 1:
            raise ValueError(f"subclasses: expected at least 1, got {subclasses}")
        self.classes, self.subclasses = classes, subclasses
        self.outputs = nn.Linear(features, classes * subclasses)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return log-probabilities of the classes (..., C) of embeddings (..., features), see `collapse`."""
        return collapse(self.outputs(embeddings), self.subclasses)


def subclass_head(student: nn.Module) -> tuple[str, SubclassHead]:
    """The head of subclasses of a student, and its name.

    Raises:
        ValueError: it has none; what to do is said.
    """
    for name in layer_names(student):
        head = find_layer(student, name)
        if isinstance(head, SubclassHead):
            return name, head
    raise ValueError(
        "student: expected a preceptor.models.subclasses.SubclassHead in the place of its last linear layer, or a reference model with"
        f" subclasses: 4, got {type(student).__name__} without one"
    )
