"""What a model costs: parameters, multiply-accumulates, latency, size on disk, peak memory."""

from __future__ import annotations

import resource
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from preceptor.core.method import evaluating
from preceptor.metrics.timing import timed
from preceptor.models.taps import forward

Inputs = Tensor | Mapping[str, Tensor]
"""What a model is called with: a tensor (N, ...) by position, or tensors (N, ...) by keyword."""

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def cost(model: nn.Module, inputs: Inputs, *, batch_sizes: Sequence[int] = (1, 64)) -> dict[str, Any]:
    """Return ``parameters``, ``macs``, ``latency_ms`` and ``checkpoint_bytes``, as a report wants them; see the functions of those names.

    Args:
        model: any classifier, on the device to time it on.
        inputs: one or more examples.
        batch_sizes: for the latency.
    """
    return {
        "parameters": parameters(model),
        "macs": macs(model, inputs),
        "latency_ms": latency(model, inputs, batch_sizes=batch_sizes),
        "checkpoint_bytes": checkpoint_bytes(model),
    }


def parameters(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones included, shared ones once; buffers (running means) are not parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, inputs: Inputs) -> int:
    """Return the multiply-accumulates of the forward pass of one example.

    Counted by `torch.utils.flop_counter` while the model runs: matrix products (also those of attention and of recurrent layers) and
    convolutions, padding included. Additions of a bias, activations, normalisation, pooling and look-ups are not counted, as is usual.

    Args:
        model: runs in eval mode for a moment, on its device.
        inputs: one or more examples; the first is used.
    Raises:
        ValueError: no example.
    """
    inputs = to_device(take(inputs, 1), device_of(model))
    with torch.no_grad(), evaluating(model), _plain_kernels(), FlopCounterMode(display=False) as counter:
        forward(model, inputs)
    return counter.get_total_flops() // 2


def latency(
    model: nn.Module, inputs: Inputs, *, batch_sizes: Sequence[int] = (1, 64), warmup: int = 5, repeats: int = 50, budget: float = 5.0
) -> dict[str, dict[str, float]]:
    """Time a forward pass in eval mode, without gradient, inputs already on the model's device.

    Args:
        model: runs in eval mode for a moment, on its device.
        inputs: one or more examples, repeated in turn to fill a batch.
        batch_sizes: each is timed by itself.
        warmup: calls that are not timed.
        repeats: timed calls.
        budget: seconds for warm-up and for timed calls each; a slow model gets fewer repeats, at least 3.
    Returns:
        For each batch size, as text, ``p50`` and ``p95`` in milliseconds per batch.
    Raises:
        ValueError: no example, or a batch size below 1.
    """
    device = device_of(model)
    results = {}
    with torch.no_grad(), evaluating(model):
        for size in batch_sizes:
            batch = to_device(take(inputs, size), device)

            def call(batch: Inputs = batch) -> None:
                forward(model, batch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)

            results[str(size)] = timed(call, warmup=warmup, repeats=repeats, budget=budget)
    return results


def checkpoint_bytes(model: nn.Module) -> int:
    """Return the size in bytes of the model's weights and buffers as one safetensors file; shared tensors count once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(model, str(path))
        return path.stat().st_size


def reset_peak_memory(device: torch.device | str = "cpu") -> bool:
    """Let `peak_memory_mb` count from now on.

    Returns:
        Whether that is possible here; if not, the peak stays that of the whole life of the process.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR_REFS.write_text("5")  # Linux: resets the peak of the resident set, nothing else (proc(5))
    except OSError:
        return False
    return _linux_peak() is not None


def peak_memory_mb(device: torch.device | str = "cpu") -> float:
    """Return the peak memory since `reset_peak_memory`, in megabytes of 10^6 bytes.

    On CUDA: memory allocated by torch on that device. Elsewhere: the resident set of this process, interpreter and libraries included.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = _linux_peak()
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak / 1e6


def peak_tensor_mb(call: Callable[[], Any]) -> float:
    """Run ``call`` and return the most memory that the tensors it makes hold at one time, in megabytes of 10^6 bytes.

    Unlike `peak_memory_mb` the same in every run and on every machine; the scratch space of a kernel is not seen.
    """
    with _Ledger() as ledger:
        call()
    return ledger.peak / 1e6


class _Ledger(TorchDispatchMode):
    """Counts the storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_key(tensor) for tensor in tree_leaves((args, kwargs or {})) if isinstance(tensor, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and _key(tensor) not in given | self._known:
                storage = tensor.untyped_storage()
                self._known.add(_key(tensor))
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, _key(tensor), storage.nbytes()).atexit = False
        self.peak = max(self.peak, self.now)
        return made

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter; the CPU for a model without parameters."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def take(inputs: Inputs, size: int) -> Inputs:
    """Return ``size`` examples from the start of ``inputs``, beginning again at the first when they run out.

    Raises:
        ValueError: there is no example, tensors differ in their number of examples, or size is below 1.
    """
    if size < 1:
        raise ValueError(f"batch size: expected at least 1, got {size}")
    tensors = inputs if isinstance(inputs, Mapping) else {"inputs": inputs}
    counts = {len(tensor) for tensor in tensors.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"inputs: expected tensors with the same number of examples, at least one, got {sorted(counts) or 'no tensor'}")
    index = torch.arange(size) % counts.pop()
    taken = {name: tensor[index.to(tensor.device)] for name, tensor in tensors.items()}
    return taken if isinstance(inputs, Mapping) else taken["inputs"]


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Return the inputs on ``device``."""
    if isinstance(inputs, Mapping):
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return inputs.to(device)


def _linux_peak() -> int | None:
    """Peak of the resident set in bytes since it was last reset; None where /proc does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Run attention and recurrent layers as the matrix products that the counter knows, instead of as fused kernels that it does not."""
    fast, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = mkldnn
