"""The check of an exported model: ``python -m preceptor.export_check ARTEFACT DATA RESULT --threads N``, run in a process of its own.

The process knows the artefact and the data, not the student's code; for ONNX it does not even import torch. DATA is a safetensors file
with the student's ``logits`` and what it was called with: ``input``, or ``input.NAME`` for each keyword. RESULT is written as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from preceptor.core.optional import require
from preceptor.metrics.timing import timed

Arrays = dict[str, np.ndarray]
"""Inputs by name; the one of a model that takes a tensor is called ``x``."""

BATCH_SIZES = (1, 64)
BUDGET = 2.0  # seconds of timing per batch size


def check(artefact: Path, data: Path, *, threads: int) -> dict[str, Any]:
    """Run an artefact and compare it with the student.

    Args:
        artefact: ``.onnx`` or ``.pt2``.
        data: see the module docstring; N examples.
        threads: of the runtime, for every run.
    Returns:
        ``agreement`` with the student's predictions in [0, 1], ``max_abs_error`` of the logits, ``latency_ms`` as
        `preceptor.metrics.cost.latency` returns it, and ``runtime``, the name and version of what ran it.
    Raises:
        ValueError: logits of another shape than the student's, or that are not finite where the student's are.
    """
    tensors = load_file(data)
    expected = tensors.pop("logits")
    by_keyword = "input" not in tensors
    inputs = {name.removeprefix("input."): array for name, array in tensors.items()} if by_keyword else {"x": tensors["input"]}
    run, runtime = _load_onnx(artefact, threads) if artefact.suffix == ".onnx" else _load_program(artefact, threads, by_keyword)
    size = max(BATCH_SIZES)
    parts = [run({name: array[i : i + size] for name, array in inputs.items()}) for i in range(0, len(expected), size)]
    logits = np.concatenate(parts)
    if logits.shape != expected.shape:
        raise ValueError(f"artefact: expected logits of shape {expected.shape} like the student's, got {logits.shape}")
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(logits)):
        raise ValueError("artefact: expected logits that are finite where the student's are, got others")
    return {
        "agreement": float((logits.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        "max_abs_error": float(np.abs(logits[finite] - expected[finite]).max()),
        "latency_ms": {str(size): _timed(run, inputs, size) for size in BATCH_SIZES},
        "runtime": runtime,
    }


def _timed(run: Callable[[Arrays], np.ndarray], inputs: Arrays, size: int) -> dict[str, float]:
    batch = {name: np.resize(array, (size, *array.shape[1:])) for name, array in inputs.items()}  # repeats examples in turn
    return timed(lambda: run(batch), budget=BUDGET)


def _load_onnx(artefact: Path, threads: int) -> tuple[Callable[[Arrays], np.ndarray], str]:
    onnxruntime = require("onnxruntime", extra="export", purpose="checking an ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(artefact, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["logits"], inputs)[0], f"onnxruntime {onnxruntime.__version__}"


def _load_program(artefact: Path, threads: int, by_keyword: bool) -> tuple[Callable[[Arrays], np.ndarray], str]:
    import torch  # here, so that an ONNX file is checked without it

    torch.set_num_threads(threads)
    module = torch.export.load(artefact).module()

    def run(inputs: Arrays) -> np.ndarray:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.no_grad():
            return module(tensors if by_keyword else tensors["x"]).numpy()

    return run, f"torch {torch.__version__}"


def main() -> None:
    """Read the command line, check, write the result."""
    parser = argparse.ArgumentParser(prog="python -m preceptor.export_check", description="Compare an exported model with its student.")
    parser.add_argument("artefact", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    args.result.write_text(json.dumps(check(args.artefact, args.data, threads=args.threads)))


if __name__ == "__main__":
    main()
