"""The embedding of an example: what the last linear layer of a classifier, its class head, is called with; and maps between embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.models.taps import find_layer, forward, layer_names


def class_head(model: nn.Module) -> str:
    """The name of the last linear layer of a model, in order of definition.

    Raises:
        ValueError: it has none.
    """
    linear = [name for name in layer_names(model) if isinstance(find_layer(model, name), nn.Linear)]
    if not linear:
        raise ValueError(f"layers: expected a model with a linear class head, or the name of a layer, got {type(model).__name__}")
    return linear[-1]


def embed(model: nn.Module, inputs: Tensor | Mapping[str, Any], layer: str = "") -> tuple[Tensor, Tensor]:
    """Run a classifier once and read its embedding.

    Args:
        model: any classifier.
        inputs: as `preceptor.models.taps.forward` takes them.
        layer: where the embedding is read, a name of `preceptor.models.taps`; "": the input of `class_head`.

    Returns:
        Logits (N, classes) and embeddings (N, D), both with gradient.

    Raises:
        ValueError: there is no such layer, or what is read there is no vector per example.
    """
    layer = layer or f"{class_head(model)}:input"
    output = forward(model, inputs, (layer,))
    embeddings = output.features[layer]
    if embeddings.ndim != 2:
        raise ValueError(f"layers: expected a vector per example (N, D) at {layer!r}, got {tuple(embeddings.shape)}")
    return output.logits, embeddings


class Projector(nn.Sequential):
    """Student embeddings (N, D_s) -> (N, D_t): normalisation, dropout and a linear layer, or the linear layer alone."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the projected embeddings; one example alone is normalised by running statistics."""
        if len(input) > 1:
            return super().forward(input)
        with evaluating(self[0]):
            return super().forward(input)
