"""Language models in two halves: the hidden states that enter the output layer, and that layer: a loss need never hold the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.models.taps import forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")  # what some families multiply their logits by


@dataclass(frozen=True)
class Head:
    """The output layer of a language model: logits = cap(hidden @ weight.T + bias), with cap(a) = soft_cap * tanh(a / soft_cap)."""

    weight: Tensor
    """(V, D); the model's own parameter, tied to the embeddings or not: gradients flow to it."""
    bias: Tensor | None = None
    """(V,)"""
    soft_cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        logits = F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


def head(model: nn.Module) -> Head:
    """The output layer of a causal language model of transformers, also inside a peft model.

    Raises:
        TypeError: the model has no linear output layer.
        ValueError: its family multiplies the logits by a factor that `Head` does not know.
    """
    inner = unwrapped(model)
    layer = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"model: expected a causal language model of transformers with a linear output layer, got {type(inner).__name__}")
    for name in _SCALES:
        if getattr(inner.config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"model: expected logits without a factor, got {name}={getattr(inner.config, name)} of {type(inner).__name__}")
    return Head(layer.weight, layer.bias, getattr(inner.config, "final_logit_softcapping", None))


def hidden_states(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Run a causal language model up to its output layer: (N, T, D).

    Args:
        model: of transformers, also inside a peft model.
        inputs: ``input_ids`` (N, T) and further keywords of the model (``attention_mask``, ``position_ids``).
    """
    return unwrapped(model).base_model(**{**inputs, "use_cache": False}).last_hidden_state


def speak(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a language model says, in the cheapest form it has: ``{"hidden", "head"}``, or ``{"logits"}`` where it cannot be halved.

    Args:
        model: any language model.
        inputs: its keywords.
    """
    try:
        layer = head(model)
    except TypeError:
        return {"logits": forward(model, inputs).logits}
    return {"hidden": hidden_states(model, inputs), "head": layer}


def all_logits(said: Mapping[str, Any]) -> Tensor:
    """Logits (N, T, V) of what `speak` returned."""
    return said["logits"] if "logits" in said else said["head"].logits(said["hidden"])


def vocabulary_size(said: Mapping[str, Any]) -> int:
    """V of what `speak` returned."""
    return said["logits"].shape[-1] if "logits" in said else len(said["head"].weight)


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The model of transformers itself where peft holds one, its adapters still inside; else the model."""
    return cast("PreTrainedModel", cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model)
