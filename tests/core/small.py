"""Networks and batches that the tests of the loop share: float64 and tiny, so that a twin can be compared to the last bits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from preceptor.core.loop import steps
from preceptor.core.method import Method
from preceptor.core.state import State
from preceptor.core.stream import as_stream


def net(seed: int, *, features: int = 4, hidden: int = 6, outputs: int = 3, dropout: float = 0.0) -> nn.Sequential:
    """A float64 classifier (N, features) -> (N, outputs), fully given by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(features, hidden), nn.Tanh(), nn.Dropout(dropout), nn.Linear(hidden, outputs)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.double) * 0.5)
    return model


def batches(count: int, size: int = 8, *, features: int = 4, classes: int = 3, seed: int = 0) -> list[dict[str, Tensor]]:
    """``count`` batches of random examples with x, y and id."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "x": torch.randn(size, features, generator=generator, dtype=torch.double),
            "y": torch.randint(classes, (size,), generator=generator),
            "id": torch.arange(size) + i * size,
        }
        for i in range(count)
    ]


def vector(*modules: nn.Module) -> Tensor:
    """All parameters as one vector, copied."""
    return torch.cat([p.detach().reshape(-1).clone() for module in modules for p in module.parameters()])


def assert_same_weights(ours: nn.Module, twin: nn.Module) -> None:
    """Equal to a few units in the last place of float64: the order of a sum may differ."""
    assert ours.state_dict().keys() == twin.state_dict().keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-12, atol=1e-14, msg=lambda text, name=name: f"{name}: {text}")


def assert_identical(ours: Any, other: Any, where: str = "") -> None:
    """Equal to the bit, through nested containers."""
    if isinstance(ours, Tensor):
        assert isinstance(other, Tensor), where
        assert ours.dtype == other.dtype, where
        assert torch.equal(ours, other), where
    elif isinstance(ours, Mapping):
        assert ours.keys() == other.keys(), where
        for key in ours:
            assert_identical(ours[key], other[key], f"{where}/{key}")
    elif isinstance(ours, Sequence) and not isinstance(ours, str):
        assert len(ours) == len(other), where
        for index, (a, b) in enumerate(zip(ours, other, strict=True)):
            assert_identical(a, b, f"{where}/{index}")
    else:
        assert ours == other, where


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Method):
    """The plainest method."""

    def loss(self, batch, signal, roles, state):
        return {"hard": F.cross_entropy(roles["student"](batch["x"]), batch["y"], reduction="none")}


def accuracy(model: nn.Module, data: Iterable[Mapping[str, Tensor]]) -> float:
    """Share of right answers."""
    hits = torch.cat([model(batch["x"]).argmax(-1) == batch["y"] for batch in data])
    return float(hits.double().mean())


def records_of(method, roles, data, optimizers, *, total, micro=1, schedulers=None, state=None):
    """Run the bare loop to its end."""
    state = state or State(total_steps=total)
    return list(
        steps(method, roles, as_stream(data), optimizers, state=state, accelerator=Accelerator(), micro=micro, schedulers=schedulers)
    )


def sgd(*modules, rate=0.1):
    """Plain gradient descent on some modules."""
    return torch.optim.SGD([p for module in modules for p in module.parameters()], rate)


def lines_of(out):
    """What metrics.jsonl says, read as strict JSON: NaN is refused."""

    def refuse(name):
        raise ValueError(f"not JSON: {name}")

    return [json.loads(line, parse_constant=refuse) for line in (out / "metrics.jsonl").read_text().splitlines()]


def checkpoints(out):
    """Steps of the checkpoints of a run."""
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").iterdir())
