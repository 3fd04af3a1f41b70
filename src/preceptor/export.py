"""Export: a student as one file that runs without its code, checked in a fresh process before it is put in place."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from preceptor.core.optional import require
from preceptor.export_check import BATCH_SIZES, BUDGET
from preceptor.metrics.cost import Inputs, checkpoint_bytes, latency
from preceptor.models.taps import forward

Format = Literal["onnx", "torch-export", "int8"]
"""``onnx``: float32 for onnxruntime; ``torch-export``: float32 for `torch.export.load`; ``int8``: ONNX, 8-bit weights and activations."""

FILE_NAMES: dict[Format, str] = {"onnx": "model.onnx", "torch-export": "model.pt2", "int8": "model.int8.onnx"}
MIN_AGREEMENT: dict[Format, float] = {"onnx": 0.99, "torch-export": 0.99, "int8": 0.9}  # below 1: near ties may fall either way

Latency = dict[str, dict[str, float]]
Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An artefact and how it compares with the student; the JSON file beside the artefact holds the same. Ratios are artefact / student."""

    format: Format
    file: str  # name of the artefact
    examples: int  # that the two were compared on
    agreement: float  # share of examples with the same prediction, in [0, 1]
    max_abs_error: float  # of the logits
    bytes: int
    student_bytes: int  # of the student as safetensors
    size_ratio: float
    latency_ms: Latency  # by batch size, p50 and p95 in milliseconds, in a fresh process
    student_latency_ms: Latency  # of the student in torch's eager mode on the CPU, same number of threads
    latency_ratio: dict[str, float]  # of the p50, by batch size
    threads: int
    runtime: str  # what ran the artefact


def export(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    to: Format,
    out: str | Path,
    check_inputs: Inputs | None = None,
    min_agreement: float | None = None,
) -> Exported:
    """Write a model as one file and check that the file does what the model does.

    A copy of the model in eval mode, float32, on the CPU is traced with a free batch axis. Its input is called ``x`` in ONNX (or by the
    keywords of a mapping) and its output ``logits``; a ``torch-export`` program is called with one tensor, or one dict for a mapping.
    A fresh process loads the file, runs ``check_inputs`` and times it. Only what passes is put in place, with ``NAME.json`` beside it.

    ``int8`` is onnxruntime's static quantisation: activations in uint8 with ranges from ``example_inputs``, weights in int8 for each
    channel, on 7 bits, because without VNNI instructions a CPU saturates sums of 8-bit products.

    Args:
        model: a classifier; it is not changed.
        example_inputs: N >= 2 real examples on any device: they give shapes and types, and ``int8`` calibrates on them (some 100 are good).
        to: the format, see `Format`.
        out: folder for the artefact, made if need be; an older artefact of the same format is replaced.
        check_inputs: examples to compare on, ``example_inputs`` by default; for ``int8`` better others.
        min_agreement: in [0, 1]; by default `MIN_AGREEMENT`.
    Raises:
        ValueError: an unknown format or unusable inputs.
        ImportError: an optional package is missing.
        RuntimeError: the model cannot be traced or converted, or the artefact does not pass its check; nothing is left behind.
    """
    if to not in get_args(Format):
        raise ValueError(f"to: expected {', '.join(get_args(Format))}, got {to!r}")
    if to != "torch-export":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            require(name, extra="export", purpose=f"exporting to {to}")
    examples = _named(example_inputs, "example_inputs")
    if _count(examples) < 2:
        raise ValueError("example_inputs: expected at least 2 examples, so that the batch axis stays free, got 1")
    checked = examples if check_inputs is None else _named(check_inputs, "check_inputs")
    student = _Student(model, by_keyword=isinstance(example_inputs, Mapping))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as folder:
        artefact = Path(folder) / FILE_NAMES[to]
        program = _trace(student, examples)
        if to == "torch-export":
            torch.export.save(program, artefact)
        elif to == "onnx":
            _save_onnx(program, list(examples), artefact)
        else:
            _save_onnx(program, list(examples), Path(folder) / "float.onnx")
            _quantise(Path(folder) / "float.onnx", examples, artefact)
        exported = _compare(student, checked, artefact, to)
        floor = MIN_AGREEMENT[to] if min_agreement is None else min_agreement
        if exported.agreement < floor:
            raise RuntimeError(f"{to}: expected agreement with the student of at least {floor:g}, got {exported.agreement:.4f}")
        report = artefact.with_name(artefact.name + ".json")
        report.write_text(json.dumps(asdict(exported), indent=2) + "\n")
        for path in (artefact, report):
            path.replace(out / path.name)
    return exported


class _Student(nn.Module):
    """A copy of the model to export, called as the artefact will be, with its logits as the only output."""

    def __init__(self, model: nn.Module, *, by_keyword: bool) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.by_keyword = by_keyword
        self.to("cpu", torch.float32).eval()

    def forward(self, inputs: Inputs) -> Tensor:
        return forward(self.model, inputs).logits

    def pack(self, value: dict[str, Any]) -> Any:
        """What stands for the model's inputs: the dict for a model called by keyword, else its only value."""
        return value if self.by_keyword else value["x"]


def _named(inputs: Inputs, name: str) -> Tensors:
    """The inputs by name on the CPU, floating tensors as float32; ValueError unless all hold the same number of examples, at least one."""
    tensors = inputs if isinstance(inputs, Mapping) else {"x": inputs}
    counts = {len(tensor) for tensor in tensors.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"{name}: expected tensors with the same number of examples, at least one, got {sorted(counts) or 'no tensor'}")
    return {
        key: tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype) for key, tensor in tensors.items()
    }


def _count(tensors: Tensors) -> int:
    return len(next(iter(tensors.values())))


def _batches(tensors: Tensors, size: int = 64) -> Iterator[Tensors]:
    for start in range(0, _count(tensors), size):
        yield {name: tensor[start : start + size] for name, tensor in tensors.items()}


def _trace(student: _Student, examples: Tensors) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    axes = student.pack({name: {0: batch} for name in examples})
    with _quiet(), _one_line("torch.export cannot trace the model with a free batch axis"):
        program = torch.export.export(student, (student.pack(next(_batches(examples, 2))),), dynamic_shapes=(axes,))
    program.example_inputs = None  # else they, and the whole data set that they are views of, would be saved with the program
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths and lines of the user's source
    return program


def _save_onnx(program: torch.export.ExportedProgram, names: Sequence[str], path: Path) -> None:
    with _quiet(), _one_line("torch.onnx cannot convert the model"):
        torch.onnx.export(program, f=path, input_names=names, output_names=["logits"], dynamo=True, external_data=False, verbose=False)


def _quantise(source: Path, examples: Tensors, path: Path) -> None:
    quantization = require("onnxruntime.quantization", extra="export", purpose="exporting to int8")
    shapes = require("onnxruntime.quantization.shape_inference", extra="export", purpose="exporting to int8")

    class Batches(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = _batches(examples)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: tensor.numpy() for name, tensor in batch.items()}

    prepared = source.with_name("prepared.onnx")
    with _quiet(), _one_line("onnxruntime cannot quantise the model"):
        shapes.quant_pre_process(source, prepared)
        quantization.quantize_static(
            prepared,
            path,
            Batches(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )


def _compare(student: _Student, inputs: Tensors, artefact: Path, to: Format) -> Exported:
    data, result = artefact.with_name("data.safetensors"), artefact.with_name("result.json")
    with torch.no_grad():
        logits = torch.cat([student(student.pack(batch)) for batch in _batches(inputs)])
    tensors = {(f"input.{name}" if student.by_keyword else "input"): tensor.contiguous() for name, tensor in inputs.items()}
    save_file({**tensors, "logits": logits.contiguous()}, data)
    threads = torch.get_num_threads()
    student_latency = latency(student.model, student.pack(inputs), batch_sizes=BATCH_SIZES, budget=BUDGET)
    command = [sys.executable, "-m", "preceptor.export_check", str(artefact), str(data), str(result), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"{to}: the exported file does not run in a fresh process: {reason}")
    checked = json.loads(result.read_text())
    size, student_size = artefact.stat().st_size, checkpoint_bytes(student.model)
    return Exported(
        format=to,
        file=artefact.name,
        examples=len(logits),
        agreement=checked["agreement"],
        max_abs_error=checked["max_abs_error"],
        bytes=size,
        student_bytes=student_size,
        size_ratio=size / student_size,
        latency_ms=checked["latency_ms"],
        student_latency_ms=student_latency,
        latency_ratio={key: checked["latency_ms"][key]["p50"] / value["p50"] for key, value in student_latency.items()},
        threads=threads,
        runtime=checked["runtime"],
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notes about themselves (other optional packages, their own deprecations) off the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn whatever an exporter raises into a RuntimeError of one line; the cause keeps the details."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RuntimeError(f"{what}: {reason}") from error
