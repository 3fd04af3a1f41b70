"""Compare preceptor with numbers made by other implementations: ``python tests/parity.py DIR``.

Runs every case of every ``DIR/SLUG.json`` through ``tests/adapters/SLUG.py`` and prints one line per case:
``slug case max_abs_err max_rel_err ok|FAIL|no adapter``. The exit status is 1 when any case FAILs, 2 when DIR holds no fixture, else 0.

An adapter defines ``run(params, inputs) -> outputs``. Inputs arrive as tensors (float64, int64 or bool; lists of tensors where the lengths
differ; text as it is), and floating-point ones require grad. Outputs have the names of the fixture. Where the fixture holds one number
the adapter returns item values and the runner reduces them: their sum when ``params["reduction"]`` begins with "sum", else their mean, 0
without items. ``grad_NAME`` is the gradient of the reduced ``loss`` with respect to the input NAME, or to the only floating-point input
whose name begins with NAME; an adapter may return it itself. A missing output is a FAIL, except those whose name contains ``official`` or
``as_released``: values of the authors' bugs, compared only where the adapter returns them.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ADAPTERS = Path(__file__).parent / "adapters"


class Tolerance(NamedTuple):
    """Largest error allowed where ``where`` occurs in "label key": |got - expected| <= absolute + relative |expected|."""

    absolute: float
    relative: float
    where: str = ""


def both(size: float, where: str = "") -> Tolerance:
    """The same tolerance, absolute and relative: for cards that name one number without saying of which kind."""
    return Tolerance(size, size, where)


# From the section Proof of each method card; the first entry whose text occurs in the case decides, the last holds for all.
TOLERANCES: dict[str, tuple[Tolerance, ...]] = {
    "alm": (Tolerance(1e-12, 1e-6),),
    "alp-gmm": (Tolerance(1e-5, 0, "oracle"), Tolerance(1e-12, 1e-12)),
    "arte": (both(1e-10),),
    "cce": (Tolerance(1e-9, 0),),
    "classic-kd": (Tolerance(1e-9, 0, "dkd"), Tolerance(1e-10, 0)),
    "comp-sum": (both(1e-10),),
    "confidence-limit": (Tolerance(1e-4, 0, "factor_table"), both(1e-9)),
    "correctness-calibration": (both(1e-10),),
    "curriculum-designer": (Tolerance(1e-12, 1e-10),),
    "dcd": (Tolerance(1e-10, 1e-9),),
    "dear": (both(1e-9),),
    "dice": (both(1e-10),),
    "edco": (both(1e-12),),
    "ednet": (Tolerance(0, 0),),
    "entropy-dynamics": (Tolerance(0, 0, "keep_mask"), Tolerance(1e-12, 1e-7)),
    "fidelity-paradox": (Tolerance(1e-12, 1e-7),),
    "fl-curricula": (Tolerance(1e-12, 1e-9),),
    "ghosts": (Tolerance(1e-6, 1e-6, "kl"), both(1e-9)),
    "gopd": (Tolerance(1e-10, 0, "jsd"), Tolerance(1e-12, 1e-7)),
    "ldr": (both(1e-9),),
    "logit-standardization": (Tolerance(1e-10, 0),),
    "masters": (both(1e-10),),
    "math-feedback": (both(1e-12),),
    "mcmi": (both(1e-12),),
    "mtard": (Tolerance(1e-10, 1e-9),),
    "multi-aspect": (both(1e-10),),
    "mvec": (both(1e-12),),
    "nd-loss": (both(1e-12),),
    "pedagogy-benchmark": (both(1e-12),),
    "pld": (both(1e-12),),
    "polyglot-teachers": (both(1e-10),),
    "random-teachers": (both(1e-10),),
    "rmt": (Tolerance(1e-10, 1e-9),),
    "scalekd": (Tolerance(1e-10, 1e-8),),
    "scaling-autoregressive": (
        Tolerance(1e-7, 0, "fit.objective"),
        Tolerance(0, 0.02, "fit."),
        Tolerance(1e-15, 1e-9),
    ),
    "schooling": (Tolerance(1e-9, 0, "after_1"), Tolerance(1e-7, 0, "after_n"), both(1e-10)),
    "sight": (Tolerance(1e-9, 1e-9, "regression"), both(1e-12)),
    "ska": (Tolerance(1e-12, 1e-10),),
    "skt": (Tolerance(1e-9, 1e-8),),
    "supercorrect": (both(1e-10),),
    "tgeo-kd": (both(1e-12),),
    "theory-of-mind": (Tolerance(0, 0),),
    "time-series-education": (Tolerance(1e-10, 1e-10, "dtw"), both(1e-9)),
    "tip": (Tolerance(1e-12, 1e-10),),
}
"""Tolerances by slug. A relative one has a tiny absolute companion for entries that are 0 on one side."""


class Line(NamedTuple):
    """The result of one case; errors are None where nothing was compared."""

    slug: str
    case: str
    absolute: float | None
    relative: float | None
    status: str
    reason: str = ""


def check_folder(folder: Path, adapters: Path = ADAPTERS) -> Iterator[Line]:
    """Compare every case of every fixture of a folder, in order of name."""
    for path in sorted(folder.glob("*.json")):
        adapter = load_adapter(path.stem, adapters)
        for index, case in enumerate(json.loads(path.read_text())["cases"]):
            label = case_label(case, index)
            if adapter is None:
                yield Line(path.stem, label, None, None, "no adapter")
            else:
                yield check_case(path.stem, label, case, adapter.run)


def case_label(case: Mapping[str, Any], index: int) -> str:
    """Number of a case, with its name or what its parameters say it computes, without spaces."""
    params = case["params"]
    names = (case.get("name"), *(params.get(key) for key in ("function", "op", "kind", "strategy", "what")))
    name = next((value for value in names if value), "")
    return f"{index}:{str(name)[:40].replace(' ', '_')}" if name else str(index)


def load_adapter(slug: str, adapters: Path = ADAPTERS) -> ModuleType | None:
    """The adapter of a slug, or None without one; its file has the slug's name, which `import` would not take."""
    path = adapters / f"{slug}.py"
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location(f"parity_adapter_{slug.replace('-', '_')}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_case(slug: str, label: str, case: Mapping[str, Any], run: Callable[[dict, dict], Mapping[str, Any]]) -> Line:
    """Run one case and compare every expected output."""
    inputs = {name: to_input(value) for name, value in case["inputs"].items()}
    worst = [0.0, 0.0]
    failures = []
    try:
        outputs = dict(run(dict(case["params"]), inputs))
    except Exception as error:
        traceback.print_exc()
        return Line(slug, label, math.nan, math.nan, "FAIL", f"adapter raised {type(error).__name__}")
    for key, expected in case["outputs"].items():
        try:
            got = outputs[key] if key in outputs else gradient(key, outputs, inputs, case["params"])
        except KeyError as error:
            if "official" not in key and "as_released" not in key:
                failures.append(f"{key}: {error.args[0]}")
            continue
        if isinstance(expected, (int, float)) and isinstance(got, Tensor):
            got = reduce(got, case["params"])
        for place, left, right in align(plain(got), expected, key):
            absolute, relative = errors(left, right)
            worst = [larger(worst[0], absolute), larger(worst[1], relative)]
            limit = tolerance(slug, f"{label} {place}")
            if not (absolute == 0 or absolute <= limit.absolute + limit.relative * (abs(right) if is_number(right) else 0)):
                failures.append(f"{place}: expected {right!r}, got {left!r}")
    return Line(slug, label, worst[0], worst[1], "FAIL" if failures else "ok", "; ".join(failures[:3]))


def to_input(value: Any) -> Any:
    """A fixture's input as tensors wherever it is a rectangle of numbers; single numbers, text and None stay."""
    if isinstance(value, Mapping):
        return {key: to_input(entry) for key, entry in value.items()}
    if not isinstance(value, list):
        return value
    kinds = {type(leaf) for leaf in leaves(value)}
    if kinds <= {int, float, bool}:
        try:
            if kinds in ({int}, {bool}):
                return torch.tensor(value)
            return torch.tensor(value, dtype=torch.float64, requires_grad=True)
        except ValueError:  # ragged
            pass
    return [to_input(entry) for entry in value]


def leaves(value: Any) -> Iterator[Any]:
    """The innermost entries of nested lists."""
    if isinstance(value, list):
        for entry in value:
            yield from leaves(entry)
    else:
        yield value


def reduce(items: Tensor, params: Mapping[str, Any]) -> Tensor:
    """One number from item values."""
    total = items.sum()
    return total if str(params.get("reduction", "mean")).startswith(("sum", "none")) else total / max(items.numel(), 1)


def gradient(key: str, outputs: Mapping[str, Any], inputs: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
    """Gradient of the reduced loss that ``grad_NAME`` asks for.

    Raises:
        KeyError: the key names no gradient that can be taken.
    """
    if not key.startswith("grad_"):
        raise KeyError("missing from the adapter's outputs")
    loss, name = outputs.get("loss"), key.removeprefix("grad_")
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise KeyError("needs a differentiable output 'loss'")
    exact = [name] if name in inputs else [other for other in inputs if other.startswith(name) and differentiable(inputs[other])]
    if len(exact) != 1:
        raise KeyError(f"cannot tell which input it belongs to, candidates {exact}: the adapter must return it")
    wanted = inputs[exact[0]]
    leaf_list = list(leaves(wanted))
    found = torch.autograd.grad(reduce(loss, params), leaf_list, retain_graph=True, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaf_list, found, strict=True)]
    return grads[0] if isinstance(wanted, Tensor) else regroup(wanted, iter(grads))


def differentiable(value: Any) -> bool:
    """Whether all entries of an input are tensors that require grad."""
    entries = list(leaves(value))
    return bool(entries) and all(isinstance(entry, Tensor) and entry.requires_grad for entry in entries)


def regroup(shape: Any, values: Iterator[Tensor]) -> Any:
    """Nest ``values`` like ``shape``."""
    return [regroup(entry, values) for entry in shape] if isinstance(shape, list) else next(values)


def plain(value: Any) -> Any:
    """Tensors and arrays as nested lists of numbers, tuples as lists."""
    if isinstance(value, Tensor):
        return value.detach().tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def align(got: Any, expected: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Pairs of single values with their place; a difference of structure is a pair that never agrees."""
    if isinstance(expected, list):
        if not isinstance(got, list) or len(got) != len(expected):
            yield place, f"{len(got)} entries" if isinstance(got, list) else got, f"{len(expected)} entries"
            return
        for left, right in zip(got, expected, strict=True):
            yield from align(left, right, place)
    elif isinstance(expected, Mapping):
        if not isinstance(got, Mapping) or not got.keys() >= expected.keys():
            yield place, sorted(got) if isinstance(got, Mapping) else got, f"keys {sorted(expected)}"
            return
        for key, right in expected.items():
            yield from align(got[key], right, f"{place}.{key}")
    else:
        yield place, got, expected


def is_number(value: Any) -> bool:
    """Whether a single value is compared with a tolerance."""
    return isinstance(value, (int, float))


def errors(got: Any, expected: Any) -> tuple[float, float]:
    """Absolute and relative error; infinite for values that are not numbers and differ."""
    if got == expected and type(got) is type(expected):
        return 0.0, 0.0
    if not is_number(got) or not is_number(expected):
        return math.inf, math.inf
    if math.isnan(expected) and math.isnan(got):
        return 0.0, 0.0
    if math.isinf(expected) or math.isinf(got):
        return (0.0, 0.0) if got == expected else (math.inf, math.inf)
    absolute = abs(got - expected)
    return absolute, absolute / abs(expected) if expected else 0.0


def larger(first: float, second: float) -> float:
    """The larger error; NaN beats everything."""
    return second if math.isnan(second) or second > first else first


def tolerance(slug: str, text: str) -> Tolerance:
    """The tolerance of a slug for one output of one case; a slug without one gets none."""
    return next((limit for limit in TOLERANCES.get(slug, ()) if limit.where in text), Tolerance(0, 0))


def main(arguments: Sequence[str]) -> int:
    """Print the table of a folder and return the exit status."""
    if len(arguments) != 1:
        print("usage: python tests/parity.py DIR", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    lines = list(check_folder(folder)) if folder.is_dir() else []
    for line in lines:
        numbers = ["-" if error is None else f"{error:.2e}" for error in (line.absolute, line.relative)]
        print(line.slug, line.case, *numbers, line.status, *([f"({line.reason})"] if line.reason else []))
    if not lines:
        print(f"DIR: expected a folder with fixtures *.json, got {folder}", file=sys.stderr)
        return 2
    return int(any(line.status == "FAIL" for line in lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
