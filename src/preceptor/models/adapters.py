"""Models from wherever they are: objects, factories, transformers, timm, local folders, the reference models; and students to folders."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from preceptor.core.method import evaluating
from preceptor.core.optional import require
from preceptor.models import reference
from preceptor.models.folder import PICKLES, fill, is_transformers, load_student, read_weights, refusal
from preceptor.models.taps import forward
from preceptor.models.transformer import keep_layers

_FORMS = ("reference", "hf_config", "hf", "timm", "factory", "weights", "shrink", "keep_layers")

Spec = nn.Module | Callable[[], nn.Module] | str | Mapping[str, Any]
"""What `resolve` takes."""


def resolve(spec: Spec, *, num_classes: int | None = None, teacher: nn.Module | None = None) -> nn.Module:
    """Turn the description of a model into a model.

    ============================================  ================================================================================
    an ``nn.Module``                              itself
    a callable                                    what it returns
    ``"package.module:factory"``                  what the factory returns, or the module object of that name
    ``{"factory": "package.module:f", ...}``      the same with keyword arguments
    ``"hf:PATH_OR_NAME"``                         an image classifier of transformers with its weights, safetensors only
    ``{"hf": "PATH_OR_NAME", "num_labels": 10}``  the same with a new head, not trained yet
    ``{"hf_config": "vit", ...}``                 an architecture of transformers from its configuration, fresh weights, no download
    ``"timm:NAME"``                               timm's architecture; a name with a tag (``resnet18.a1_in1k``) has that tag's weights
    a folder                                      what `save_student` or transformers' ``save_pretrained`` wrote
    ``{"reference": "cnn", "width": 0.25, ...}``  a reference model, see `preceptor.models.reference.build`
    ``{"weights": FILE, "model": SPEC}``          SPEC with the weights of a .safetensors file, or of a state dict that torch loads
                                                  with ``weights_only=True``
    ``{"shrink": 0.25}``                          the teacher made smaller: a reference model narrower, with fresh weights; a
                                                  transformer with that share of its layers, evenly spaced, and their weights
    ``{"keep_layers": 2}`` or ``[0, 3, 5]``       a transformer teacher with every second, or these, of its layers and their weights
    ============================================  ================================================================================

    Args:
        num_classes: used where a reference model or an ``hf_config`` does not say its number of classes.
        teacher: needed by ``shrink`` and ``keep_layers``.
    Raises:
        ValueError: one line: an unknown form, name or key (nearest given), a missing file, a pickle checkpoint, weights that do not fit.
        TypeError: the spec, or what a factory returned, has the wrong type.
        ImportError: transformers or timm is needed and missing.
    """
    if isinstance(spec, nn.Module):
        return spec
    if isinstance(spec, str):
        return _from_text(spec)
    if isinstance(spec, Mapping):
        return _from_mapping(spec, num_classes, teacher)
    if callable(spec):
        return _checked(spec(), "the factory")
    raise TypeError(f"model: expected a module, a callable, a string or a mapping, got {type(spec).__name__}")


def count_classes(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> int:
    """Return the number of classes of a model: the last axis of its logits for ``inputs``, a small batch.

    Runs in eval mode without gradient, so the model does not change.

    Raises:
        ValueError: the model does not take such inputs.
    """
    with evaluating(model), torch.no_grad():
        try:
            return forward(model, inputs).logits.shape[-1]
        except RuntimeError as error:
            raise ValueError(f"model: expected {type(model).__name__} to take the data, got: {str(error).splitlines()[0]}") from error


def _from_text(text: str) -> nn.Module:
    scheme, _, name = text.partition(":")
    if scheme == "hf" and name:
        return _pretrained(name, None)
    if scheme == "timm" and name:
        return _timm(name)
    path = Path(text).expanduser()
    if path.is_dir():
        return load_student(path)
    if path.suffix in PICKLES:
        raise ValueError(f"{refusal(path)}; a plain state dict also loads as {{weights: {text}, model: ...}}")
    if path.suffix == ".safetensors":
        raise ValueError(f"model: expected an architecture for the weights too, {{weights: {text}, model: ...}}, got {text!r}")
    if ":" in text:
        return _factory(text, {})
    raise ValueError(f"model: expected module:factory, hf:NAME, timm:NAME or an existing folder, got {text!r}")


def _from_mapping(spec: Mapping[str, Any], num_classes: int | None, teacher: nn.Module | None) -> nn.Module:
    forms = [key for key in spec if key in _FORMS]
    if len(forms) != 1:
        got = ", ".join(map(repr, spec)) or "nothing"
        raise ValueError(f"model: expected exactly one of the keys {', '.join(_FORMS)}, got {got}{_nearest(spec, _FORMS)}")
    form = forms[0]
    value, options = spec[form], {key: option for key, option in spec.items() if key != form}
    if form in ("hf_config", "hf", "timm", "factory", "weights") and not isinstance(value, str):
        raise TypeError(f"{form}: expected text, got {type(value).__name__}")
    if form == "reference":
        return reference.build({"classes": num_classes, **spec} if num_classes is not None else spec)
    if form == "hf_config":
        return _architecture(value, {"num_labels": num_classes, **options} if num_classes is not None else options)
    if form == "factory":
        return _factory(value, options)
    allowed = {"hf": ("num_labels",), "weights": ("model",)}.get(form, ())
    for key in options:
        if key not in allowed:
            raise ValueError(f"model: expected only {', '.join((form, *allowed))} together, got also {key!r}{_nearest([key], allowed)}")
    if form == "hf":
        return _pretrained(value, options.get("num_labels"))
    if form == "timm":
        return _timm(value)
    if form == "weights":
        if "model" not in options:
            raise ValueError(f"model: expected the architecture for the weights {value!r} under model, got none")
        return fill(resolve(options["model"], num_classes=num_classes, teacher=teacher), read_weights(value), str(value))
    return _smaller(form, value, teacher)


def _smaller(form: str, value: Any, teacher: nn.Module | None) -> nn.Module:
    if teacher is None:
        raise ValueError(f"{form}: expected a teacher to make smaller, got none")
    if is_transformers(teacher):
        if form == "shrink":
            return keep_layers(teacher, share=value)
        return keep_layers(teacher, every=value) if isinstance(value, int) else keep_layers(teacher, indices=value)
    if form == "keep_layers":
        raise TypeError(f"keep_layers: expected a transformers model as teacher, got {type(teacher).__name__}")
    return reference.shrink(teacher, value)


def _factory(text: str, options: Mapping[str, Any]) -> nn.Module:
    """Import ``module:name`` and call it, unless it is a module object already."""
    module_name, _, name = text.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"model: expected an importable module before the colon, got {text!r} (no module {error.name})") from None
    if name not in vars(module):
        raise ValueError(f"model: expected a name of {module_name} after the colon, got {name!r}{_nearest([name], vars(module))}")
    found = vars(module)[name]
    if isinstance(found, nn.Module) and not options:
        return found
    if not callable(found):
        raise TypeError(f"model: expected a factory at {text!r}, got {type(found).__name__}")
    return _checked(found(**options), text)


def _checked(model: object, source: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module from {source}, got {type(model).__name__}")
    return model


def _pretrained(name: str, num_labels: int | None) -> nn.Module:
    """Load an image classifier of transformers; only the head may lack weights, and only where ``num_labels`` asks for a new one."""
    transformers = require("transformers", extra="vision", purpose=f"hf:{name}")
    path = Path(name).expanduser()
    if path.is_dir() and not any(path.glob("*.safetensors")):
        pickles = sorted(p for p in path.iterdir() if p.suffix in PICKLES)
        raise ValueError(refusal(pickles[0]) if pickles else f"hf: expected .safetensors weights in {name!r}, got none")
    if not path.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"hf: expected an existing folder or a name like 'owner/model', got {name!r}")
    options = {} if num_labels is None else {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    try:
        model, info = transformers.AutoModelForImageClassification.from_pretrained(
            path if path.is_dir() else name, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"hf: expected an image classifier on disk or in the hub, got {name!r} ({first.strip()})") from error
    fresh = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    fresh = [key for key in fresh if num_labels is None or key.startswith(f"{model.base_model_prefix}.")]
    if fresh:
        raise ValueError(f"hf: expected weights for all of {type(model).__name__}, got {name!r} without {', '.join(sorted(fresh)[:3])}")
    return model


def _architecture(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Build an image classifier of transformers from its configuration."""
    transformers = require("transformers", extra="vision", purpose=f"hf_config: {name}")
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    if name not in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        nearest = _nearest([name], auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)
        raise ValueError(f"hf_config: expected an image classifier of transformers, got {name!r}{nearest}")
    known = [*transformers.AutoConfig.for_model(name).to_dict(), "num_labels"]
    for key in options:
        if key not in known:
            raise ValueError(f"hf_config: expected options of {name}, got {key!r}{_nearest([key], known)}")
    return transformers.AutoModelForImageClassification.from_config(transformers.AutoConfig.for_model(name, **options))


def _timm(name: str) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ImportError(f"timm is needed for timm:{name}: pip install timm torchvision ({error})") from error
    try:
        return timm.create_model(name, pretrained="." in name)
    except RuntimeError as error:
        raise ValueError(f"timm: expected a model of timm, got {name!r} ({str(error).splitlines()[0]})") from error


def _nearest(got: Iterable[str], known: Iterable[str]) -> str:
    matches = [match for key in got for match in difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)]
    return f" (nearest: {matches[0]})" if matches else ""
