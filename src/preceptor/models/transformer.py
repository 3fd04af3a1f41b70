"""Smaller transformers from larger ones: keep some layers of a stack of equal layers, with their weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def keep_layers(
    model: PreTrainedModel, *, every: int | None = None, indices: Sequence[int] | None = None, share: float | None = None
) -> PreTrainedModel:
    """Copy a transformers model without some of its layers; the rest, and everything outside the stack, keeps its weights.

    Sanh, Debut, Chaumond, Wolf 2019 (arXiv:1910.01108), Sec. 2 start a student from every second layer of its teacher.
    Works for one stack of equal layers (ViT, BERT, Llama, GPT-2, ...); the copy's configuration says the new number of layers, so that
    ``save_pretrained`` and ``from_pretrained`` bring it back. The model itself is not changed, and torch's random state is not moved.

    Args:
        every: keep layers 0, every, 2 * every, ...; at least 1.
        indices: or keep exactly these, in rising order, each from 0 to the number of layers - 1.
        share: or keep this share of the layers, in (0, 1], rounded, at least one, evenly spaced from layer 0.
    Raises:
        ValueError: not exactly one of the three, a bad value, or no such stack (convolutional stages, encoder-decoders).
    """
    path, count = _stack(model)
    if sum(choice is not None for choice in (every, indices, share)) != 1:
        raise ValueError(f"keep_layers: expected one of every, indices and share, got every={every}, indices={indices}, share={share}")
    if every is not None:
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every: expected a whole number of at least 1, got {every!r}")
        kept = list(range(0, count, every))
    elif share is not None:
        if not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ValueError(f"shrink: expected a share of the layers in (0, 1], got {share!r}")
        number = max(1, round(count * share))
        kept = [i * count // number for i in range(number)]
    else:
        kept = list(indices or ())
        if not kept or any(not isinstance(i, int) for i in kept) or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= count:
            raise ValueError(f"indices: expected rising layer numbers from 0 to {count - 1}, got {kept}")

    config = copy.deepcopy(model.config)
    for name, value in model.config.to_dict().items():
        if name.endswith("layer_types") and isinstance(value, list) and len(value) == count:
            setattr(config, name, [value[i] for i in kept])  # what kind each layer is, in models that mix kinds
    config.num_hidden_layers = len(kept)
    with torch.random.fork_rng():
        smaller = type(model)(config)
    new_number = {str(old): str(new) for new, old in enumerate(kept)}
    weights = {}
    for name, value in model.state_dict().items():
        if not name.startswith(f"{path}."):
            weights[name] = value
            continue
        old, rest = name.removeprefix(f"{path}.").split(".", 1)
        if old in new_number:
            weights[f"{path}.{new_number[old]}.{rest}"] = value
    nn.Module.to(smaller, device=model.device, dtype=model.dtype)
    smaller.load_state_dict(weights)
    if smaller.can_generate():
        smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.train(model.training)


def _stack(model: PreTrainedModel) -> tuple[str, int]:
    """Return the path and length of the only stack of ``config.num_hidden_layers`` equal layers."""
    config = model.config.to_dict()
    count = config.get(model.config.attribute_map.get("num_hidden_layers", "num_hidden_layers"))
    paths = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count and _equal(module)
    ]
    outer = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    if count is None or len(outer) != 1 or model.config.is_encoder_decoder:
        raise ValueError(f"model: expected one stack of equal layers as in ViT, BERT or Llama, got {type(model).__name__}, which has none")
    return outer[0], count


def _equal(layers: nn.ModuleList) -> bool:
    shapes = [[(name, value.shape) for name, value in layer.state_dict().items()] for layer in layers]
    return all(shape == shapes[0] for shape in shapes)
