"""Batch normalisation when a model is asked about data of another kind than it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from preceptor.core.method import evaluating


@contextmanager
def by_batch(model: nn.Module, *, track: bool = False) -> Iterator[nn.Module]:
    """Run a model in eval mode, but for its batch normalisation, which for a moment uses the statistics of the batch.

    Modes and settings come back, also after an exception. A model without batch normalisation is in eval mode.

    Args:
        model: any.
        track: whether running statistics move towards those of the batch; else they stay as they are.
    """
    layers = batch_norms(model)
    kept = [layer.track_running_stats for layer in layers]
    with evaluating(model):
        try:
            for layer in layers:
                layer.training = True
                layer.track_running_stats = layer.track_running_stats and track
            yield model
        finally:
            for layer, tracks in zip(layers, kept, strict=True):
                layer.track_running_stats = tracks


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The layers of batch normalisation, synchronised ones included, in order of definition."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def train_norms_alone(model: nn.Module) -> None:
    """Let scales and shifts of normalisation (batch, layer, group) require grad and nothing else, in place.

    Raises:
        ValueError: the model has none.
    """
    kinds = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
    chosen = [p for module in model.modules() if isinstance(module, kinds) for p in module.parameters(recurse=False)]
    if not chosen:
        raise ValueError(f"model: expected layers of normalisation with weights, got {type(model).__name__} without")
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
