"""The one way to call a model: logits and, on request, the features of named layers, whatever library the model comes from.

Features are read by forward hooks that live for one call, so the model is neither edited nor wrapped. A name is the path of a submodule
(``"blocks.1.conv2"``: its output) or that path with ``":input"`` (``"fc:input"``: what it is called with).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # path segments of torch's wrappers, not of the model


@dataclass(frozen=True)
class Output:
    """What a model says about a batch: ``logits`` (N, ..., classes) and ``features`` by layer name, in the order they were asked for."""

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)


def forward(model: nn.Module, inputs: Tensor | Mapping[str, Any], layers: Sequence[str] = ()) -> Output:
    """Call a model once and read its logits and the features of ``layers``.

    Gradients flow through logits and features. Features are copies, so a later in-place layer (``ReLU(inplace=True)``, ``x += y``) does not
    change them. Of a layer that runs several times in one call, the last run counts. A compiled model runs uncompiled when layers are
    asked for, because compiled code ignores hooks that were not there when it was traced.

    Args:
        model: returns a tensor, a tuple or list (its first tensor is the logits) or a mapping with ``logits`` (transformers' outputs).
        inputs: a tensor is passed by position, a mapping by keyword; documents in one row, whose ``position_ids`` start again at each, do
            not see each other.
        layers: names as in the module docstring. Of an output or input with several tensors, the first counts.
    Raises:
        ValueError: a layer does not exist (the nearest names are listed) or did not run.
        TypeError: no logits in the output, or no tensor at a layer.
    """
    if not layers:
        return Output(_logits(_call(model, inputs)))
    model = model._modules.get("_orig_mod") or model
    found = {layer: find_layer(model, layer) for layer in layers}
    features: dict[str, Tensor] = {}
    handles = []
    try:
        for layer, module in found.items():

            def read_input(module: nn.Module, args: tuple, kwargs: dict, *, layer: str = layer) -> None:
                features[layer] = _first_tensor((*args, *kwargs.values()), layer).clone()

            def read_output(module: nn.Module, args: tuple, output: Any, *, layer: str = layer) -> None:
                features[layer] = _first_tensor(output, layer).clone()

            if layer.endswith(":input"):
                handles.append(module.register_forward_pre_hook(read_input, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(read_output))
        output = _call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        if layer not in features:
            raise ValueError(f"layers: expected layers that run in a forward pass of {type(model).__name__}, got {layer!r}, which did not")
    return Output(_logits(output), {layer: features[layer] for layer in layers})


def layer_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of all layers of a model, in order of definition; segments of torch's wrappers are left out."""
    return tuple(_layers(model))


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """Return the submodule that ``layer`` (with or without ``":input"``) names.

    Raises:
        ValueError: it does not exist; the nearest names are listed.
    """
    path = layer.removesuffix(":input")
    if path:
        try:
            return model.get_submodule(path)
        except AttributeError:
            pass
    modules = _layers(model)
    if path not in modules:
        nearest = ", ".join(difflib.get_close_matches(path, modules, n=3, cutoff=0.0)) or "none, it has no layers"
        raise ValueError(f"layers: expected names of layers of {type(model).__name__}, got {layer!r} (nearest: {nearest})")
    return modules[path]


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    modules = {}
    for path, module in inner.named_modules(remove_duplicate=False):
        name = ".".join(part for part in path.split(".") if part not in _WRAPPERS)
        if name:
            modules.setdefault(name, module)  # of a wrapper and what it wraps, the wrapper: its output is the whole layer's
    return modules


def _call(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> Any:
    if not isinstance(inputs, Mapping):
        return model(inputs)
    if "position_ids" in inputs:  # with a cache transformers' models take no notice of positions that start again
        inputs = {"use_cache": False, **inputs}
    return model(**inputs)


def _logits(output: Any) -> Tensor:
    if isinstance(output, Mapping):
        logits = output.get("logits")
        if not isinstance(logits, Tensor):
            raise TypeError(f"model: expected an output with logits, got a mapping with {', '.join(map(str, output)) or 'nothing'}")
        return logits
    return _first_tensor(output, "the model's output")


def _first_tensor(value: Any, where: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    for item in values:
        if isinstance(item, Tensor):
            return item
    raise TypeError(f"{where}: expected a tensor, or a tuple, list or mapping that holds one, got {type(value).__name__}")
