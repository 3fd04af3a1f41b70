"""Trains small double-precision models as one of several processes.

``python process_worker.py FOLDER CASE...`` runs each case and writes FOLDER/CASE.pt: ``compare`` (numbers that must not depend on the
number of processes) and ``facts`` (what each process saw, by rank). test_processes.py launches it once as one process, once as two.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, AdamW, Optimizer

from preceptor.core import run as run_module
from preceptor.core.method import Method, Phase
from preceptor.core.parallel import shard, whole
from preceptor.core.reduce import gathered, split, world_size
from preceptor.core.run import train
from preceptor.core.signals import Interrupted
from preceptor.core.state import State
from preceptor.core.types import Batch, Record, Roles, Signal, Terms
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.losses.divergence import forward_kl
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.rkd import RKD
from preceptor.task import Task
from preceptor.training import Training
from preceptor.trial import run_trial

CLASSES, FEATURES, STEPS = 5, 12, 20


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def from_everyone(value: Any) -> list[Any]:
    values: list[Any] = [None] * world_size()
    if world_size() == 1:
        return [value]
    dist.all_gather_object(values, value)
    return values


class Blocks(nn.Module):
    """What sharding must cope with: blocks in a list, a weight used twice, a parameter of its own, rows that do not divide by two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.back = nn.Linear(width, FEATURES)
        self.again = nn.Linear(FEATURES, width)
        self.again.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.embed(x.flatten(1)))
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        return self.head(self.scale * torch.tanh(self.again(self.back(hidden))))


def dropping(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, width), nn.Dropout(0.3), nn.Tanh(), nn.Linear(width, CLASSES))


def dense(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, CLASSES))


def make(build: Callable[[int], nn.Module], width: int, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Processes begin with different weights: those of rank 0 must count."""
    torch.manual_seed(seed + 1000 * rank())
    return build(width).to(dtype)


class Watched(Source):
    """Notes the ids it gives; sends a signal to its own process, or spoils an example, at the call of that number; masks odd ids."""

    ids: list[list[int]]
    kill_at: int | None = None
    spoil_at: int | None = None
    masks_odd: bool = False

    def __next__(self) -> Batch:
        batch = super().__next__()
        self.ids.append(batch["id"].tolist())
        if len(self.ids) == self.kill_at and rank() == world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(self.ids) == self.spoil_at:
            batch["x"] = torch.where((batch["id"] == 7)[:, None, None], torch.nan, batch["x"])
        if self.masks_odd:
            batch["mask"] = (batch["id"] % 2 == 0).double()
        return batch


def source(num: int, *, shuffle: bool = True, dtype: torch.dtype = torch.float64) -> Watched:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 3, 4, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(CLASSES, (num,), generator=generator)
    watched = Watched(examples_from((x, y), num_classes=CLASSES), batch_size=8, shuffle=shuffle, rank=rank(), world=world_size())
    watched.ids = []
    return watched


@dataclass(frozen=True, kw_only=True)
class Distil(Method):
    """Hard and soft term, and weight decay as a scalar term; ``masked`` leaves odd ids out and weighs the others, per term."""

    decay: float = 0.0
    masked: bool = False

    def prepare(self, batch: Batch, roles: Roles, state: State) -> Batch:
        if not self.masked:
            return batch
        even = (batch["id"] % 2 == 0).double()
        tokens = even[:, None] * torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
        return {**batch, "mask": even, "mask/soft": even * (batch["id"] % 3), "mask/tokens": tokens}

    def signal(self, batch: Batch, roles: Roles, state: State) -> Signal:
        return {"logits": roles["teacher"](batch["x"])}

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        logits = roles["student"](batch["x"])
        terms = {"hard": F.cross_entropy(logits, batch["y"], reduction="none"), "soft": forward_kl(logits, signal["logits"])}
        if self.masked:
            terms["tokens"] = logits[:, :3] ** 2
        if self.decay:
            terms["decay"] = self.decay * torch.stack([p.square().sum() for p in roles["student"].parameters()]).sum()
        return terms


def rkd(layer: str) -> RKD:
    """RKD with weights small enough that training amplifies no rounding."""
    return RKD(student_layers=(layer,), teacher_layers=(layer,), distance_weight=1.0, angle_weight=2.0)


class Outside(Method):
    """Calls the student with moved weights through functional_call, never its forward; trains a projector too."""

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        moved = {name: p - 0.1 * torch.tanh(p) for name, p in roles["student"].named_parameters()}
        logits = roles["projector"](functional_call(roles["student"], moved, (batch["x"],)))
        return {"hard": F.cross_entropy(logits, batch["y"], reduction="none")}

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(name="all", trains=("student", "projector"), signal=self.signal, loss=self.loss, update=self.update),)


class Adversarial(Method):
    """Two phases; the critic is frozen when its forward first runs, and gradients flow through it then."""

    def fool(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        logits = roles["student"](batch["x"])
        return {"hard": F.cross_entropy(logits, batch["y"], reduction="none"), "fool": -roles["critic"](logits)[:, 0]}

    def judge(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        with torch.no_grad():
            logits = roles["student"](batch["x"])
        return {"judge": (roles["critic"](logits)[:, 0] - batch["y"]).square()}

    def phases(self) -> tuple[Phase, ...]:
        student = Phase(name="student", trains=("student",), signal=self.signal, loss=self.fool, update=self.update)
        critic = Phase(name="critic", trains=("critic",), signal=self.signal, loss=self.judge, update=self.update, start=3)
        return student, critic


@dataclass(kw_only=True)
class Run:
    """One training with everything fresh; `go` may be called once."""

    method: Method
    data: Watched
    build: Callable[[int], nn.Module] = dense
    sharded: bool = False
    extra: dict[str, nn.Module] = field(default_factory=dict)
    adam: bool = False
    dtype: torch.dtype = torch.float64
    records: list[Record] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.roles = {
            "student": make(self.build, 6, 1, self.dtype),
            "teacher": make(self.build, 9, 2, self.dtype),
            **self.extra,
        }
        if self.sharded:
            self.roles = {name: shard(module) for name, module in self.roles.items()}
        self.start = whole({name: parameter.detach().clone() for name, parameter in self.roles["student"].named_parameters()})

    def optimizer(self, phase: Phase) -> Optimizer:
        parameters = [p for role in phase.trains for p in self.roles[role].parameters()]
        return AdamW(parameters, lr=1e-2) if self.adam else SGD(parameters, lr=0.1, momentum=0.9)

    def go(
        self,
        *,
        micro: int = 1,
        clip: float | None = None,
        ema: float | None = None,
        valid: Callable[[Roles, State], Mapping[str, float]] | None = None,
        mode: Literal["max", "min"] = "max",
        patience: int | None = None,
        out: Path | None = None,
        resume: bool = False,
        skip_nonfinite: int = 0,
    ) -> State:
        return train(
            self.method,
            self.roles,
            self.data,
            {phase.name: self.optimizer(phase) for phase in self.method.phases()},
            steps=STEPS,
            micro=micro,
            clip=clip,
            ema=ema,
            valid=valid,
            evaluate_every=4 if valid else None,
            monitor="loss",
            mode=mode,
            patience=patience,
            out=out,
            resume=resume,
            skip_nonfinite=skip_nonfinite,
            accelerator=Accelerator(cpu=True),
            progress=self.records.append,
            warn=self.lines.append,
        )

    def result(self, **more: Any) -> dict[str, Any]:
        weights = whole({name: module.state_dict() for name, module in self.roles.items()})
        moved = max(float((weights["student"][name] - value).abs().max()) for name, value in self.start.items())
        losses = [value for record in self.records for _, value in (*sorted(record.losses.items()), ("norm", record.gradient_norm))]
        return {"weights": weights, "losses": torch.tensor(losses, dtype=torch.float64), "moved": torch.tensor(moved), **more}


def loss_on(num: int) -> Callable[[Roles, State], Mapping[str, float]]:
    """Validate on all of a small set, in every process."""
    batch = next(iter(source(num).scan()))
    return lambda roles, state: {"loss": float(F.cross_entropy(roles["student"](batch["x"]), batch["y"]))}


def own_folder(folder: Path) -> Path:
    """Rank 0 writes where it should; whatever another rank would write shows in a folder of its own."""
    return folder if rank() == 0 else folder.with_name(f"{folder.name}-rank{rank()}")


Result = tuple[dict[str, Any], Any]


def plain(folder: Path) -> Result:
    run = Run(method=Distil(decay=1e-2), data=source(23))
    run.go(clip=1.0, out=own_folder(folder / "plain"))
    return run.result(), run.data.ids


def micro(folder: Path) -> Result:
    run = Run(method=Distil(decay=1e-2), data=source(23))
    run.go(micro=2)
    return run.result(), run.data.ids


def masked(folder: Path) -> Result:
    run = Run(method=Distil(masked=True), data=source(23, shuffle=False))
    run.go(micro=2)
    return run.result(), run.data.ids


def tiny(folder: Path) -> Result:
    """The last batch of an epoch is one example: another rank has none."""
    run = Run(method=Distil(masked=True, decay=1e-2), data=source(9))
    run.go(micro=3)
    return run.result(), run.data.ids


def relational(folder: Path) -> Result:
    run = Run(method=rkd("3:input"), data=source(17))
    run.go()
    return run.result(), run.data.ids


def relational_masked(folder: Path) -> Result:
    run = Run(method=rkd("3:input"), data=source(23, shuffle=False))
    run.data.masks_odd = True
    run.go()
    return run.result(), None


def outside(folder: Path) -> Result:
    torch.manual_seed(5)
    run = Run(method=Outside(), data=source(23), extra={"projector": nn.Linear(CLASSES, CLASSES, dtype=torch.float64)})
    run.go(micro=2)
    return run.result(), None


def nonfinite(folder: Path) -> Result:
    """One process meets a NaN: all drop that batch."""
    run = Run(method=Distil(), data=source(23, shuffle=False))
    run.data.spoil_at = 4
    run.go(skip_nonfinite=1, out=own_folder(folder / "nonfinite"))
    return run.result(), run.lines


def disagreeing(folder: Path) -> Result:
    """Validation gets worse on rank 0 and better on the other: all stop when rank 0 would."""
    run = Run(method=Distil(), data=source(23))
    state = run.go(valid=lambda roles, state: {"loss": state.step * (1 - 2.0 * rank())}, mode="min", patience=2)
    best = {"step": torch.tensor(state.best["step"]), "weights": state.best["weights"]}
    return run.result(best=best), {"step": state.step, "value": state.best["value"], "stale": state.best["stale"]}


def sharded(folder: Path) -> Result:
    run = Run(method=Distil(), data=source(9), build=Blocks, sharded=True, extra={"ema": make(Blocks, 6, 1)})
    with torch.no_grad():  # a look before the optimizer is made
        scored = loss_on(8)(run.roles, State(total_steps=STEPS))["loss"]
    state = run.go(micro=3, clip=1.0, ema=0.9, valid=loss_on(8), mode="min", out=own_folder(folder / "sharded"))
    student = whole(run.roles["student"].state_dict())
    if rank() == 0:
        save_file({name: value.clone() for name, value in student.items()}, folder / "sharded.safetensors")
    kinds = [type(p).__name__ for p in run.roles["student"].parameters()]
    rows = [len(p.to_local()) for p in run.roles["student"].parameters()] if world_size() > 1 else []  # pyright: ignore[reportCallIssue]
    best = {"value": torch.tensor(state.best["value"]), "weights": state.best["weights"], "step": torch.tensor(state.best["step"])}
    best["before"] = torch.tensor(scored)
    return run.result(best=best), {"kinds": kinds, "rows": rows, "ids": run.data.ids}


def sharded_nonfinite(folder: Path) -> Result:
    run = Run(method=Distil(), data=source(23, shuffle=False), build=Blocks, sharded=True)
    run.data.spoil_at = 4
    run.go(skip_nonfinite=1, out=own_folder(folder / "sharded_nonfinite"))
    return run.result(), None


def sharded_relational(folder: Path) -> Result:
    run = Run(method=rkd("head:input"), data=source(17), build=Blocks, sharded=True)
    run.go()
    return run.result(), None


def sharded_phases(folder: Path) -> Result:
    torch.manual_seed(6)
    critic = nn.Sequential(nn.Linear(CLASSES, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    run = Run(method=Adversarial(), data=source(23), build=Blocks, sharded=True, extra={"critic": critic})
    run.go(micro=4)  # the last batch is one of 7: four examples here and three there
    return run.result(), None


def sharded_single_precision(folder: Path) -> Result:
    run = Run(method=Distil(), data=source(23, dtype=torch.float32), build=Blocks, sharded=True, dtype=torch.float32)
    run.go()
    return run.result(), None


def sharded_trial(folder: Path) -> Result:
    """A trial that writes its student; asked for again it is read back into another sharded student."""
    batch = next(iter(source(23).scan()))
    data = examples_from((batch["x"], batch["y"]), num_classes=CLASSES)
    task = Task(train=data.subset(torch.arange(3)), valid=data.subset(torch.arange(3, len(data))))
    lines: list[str] = []
    training = Training(steps=4, batch_size=2, optimizer="SGD", learning_rate=0.1, precision="no")
    first, again = (
        run_trial(
            task,
            name="ce",
            method=CrossEntropy(),
            student=shard(make(Blocks, 6, seed)),
            training=training,
            out=folder / "sharded_trial",
            resume=True,
            trackers=("tensorboard",),
            say=lines.append,
        )
        for seed in (1, 2)
    )
    weights, other = whole(first.student.state_dict()), whole(again.student.state_dict())
    equal = all(torch.equal(value, other[name]) for name, value in weights.items())
    return {"weights": weights}, {"equal": equal, "same metrics": first.metrics == again.metrics, "lines": lines}


def resumed(folder: Path) -> Result:
    return _resumed(folder / "resumed")


def sharded_resumed(folder: Path) -> Result:
    return _resumed(folder / "sharded_resumed", sharded=True)


def dropout_resumed(folder: Path) -> Result:
    """Every process draws masks of its own, so only the comparison of the two runs is compared."""
    _, facts = _resumed(folder / "dropout_resumed", build=dropping)
    return {"equal": torch.tensor(float(facts["equal"]))}, facts


def _resumed(folder: Path, *, build: Callable[[int], nn.Module] = Blocks, sharded: bool = False) -> Result:
    """A straight run, and one that a signal to the last process alone stops and that goes on with fresh objects."""

    def fresh() -> Run:
        return Run(method=Distil(), data=source(23), build=build, sharded=sharded, adam=True)

    straight, stopped, rest = fresh(), fresh(), fresh()
    torch.manual_seed(rank())
    straight.go(out=own_folder(folder / "straight"))
    stopped.data.kill_at = 7
    torch.manual_seed(rank())
    try:
        stopped.go(out=own_folder(folder / "stopped"))
        said, code = "nothing", 0
    except Interrupted as error:
        said, code = str(error).split(",")[0], error.exit_code
    torch.manual_seed(99)
    rest.go(out=folder / "stopped", resume=True)
    one, other = straight.result(), rest.result()
    equal = all(torch.equal(value, other["weights"][role][name]) for role, entry in one["weights"].items() for name, value in entry.items())
    return one, {"said": said, "code": code, "equal": equal, "batches": [len(run.data.ids) for run in (straight, stopped, rest)]}


def late_signal(folder: Path) -> Result:
    """A signal reaches rank 0 alone while it writes the last checkpoint, after the last step was found to be undisturbed."""
    run = Run(method=Distil(), data=source(23))
    write = run_module.save_checkpoint

    def struck(*arguments: Any, **options: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        return write(*arguments, **options)

    run_module.save_checkpoint = struck
    try:
        run.go(out=own_folder(folder / "late_signal"))
        said = "nothing"
    except Interrupted as error:
        said = str(error).split(",")[0]
    finally:
        run_module.save_checkpoint = write
    return run.result(), said


def joining(folder: Path) -> Result:
    """Values and gradients of `gathered`, for even and one-sided shares, where one gradient tensor has two readers."""
    torch.manual_seed(0)
    first, second, weight = torch.randn(3, 7, 3, dtype=torch.float64)
    compare: dict[str, Any] = {}
    for name, cut in {"uneven": 4, "empty": 7}.items():
        mine = slice(None) if world_size() == 1 else (slice(cut), slice(cut, 7))[rank()]
        a, b = first[mine].clone().requires_grad_(), second[mine].clone().requires_grad_()
        joined, other = gathered(a), gathered(b)
        ((weight * (joined + other).sin()).sum() / world_size()).backward()
        assert a.grad is not None
        assert b.grad is not None
        compare[name] = {"value": joined.detach(), "a": torch.cat(from_everyone(a.grad)), "b": torch.cat(from_everyone(b.grad))}
        for dtype in (torch.int64, torch.bool, torch.float32, torch.bfloat16):
            got = gathered((first[mine] > 0).to(dtype))
            assert got.dtype == dtype
            compare[name][str(dtype)] = got.double()
    x = first[mine].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(gathered(x).pow(3).sum(), x, create_graph=True)
    try:
        gradient.sum().backward()
        refused = False
    except RuntimeError:
        refused = True
    parts = [len(split({"id": torch.arange(size)}, 4)) for size in (8, 3 * (1 - rank()), 1)]
    return compare, {"refused": refused, "parts": parts}


CASES = {
    case.__name__: case
    for case in (
        plain,
        micro,
        masked,
        tiny,
        relational,
        relational_masked,
        outside,
        nonfinite,
        disagreeing,
        sharded,
        sharded_nonfinite,
        sharded_relational,
        sharded_phases,
        sharded_single_precision,
        sharded_trial,
        resumed,
        sharded_resumed,
        dropout_resumed,
        late_signal,
        joining,
    )
}


def main(folder: Path, names: list[str]) -> None:
    Accelerator(cpu=True)
    for name in names:
        compare, facts = CASES[name](folder)
        facts = from_everyone(facts)
        if rank() == 0:
            torch.save({"compare": compare, "facts": facts, "world": world_size()}, folder / f"{name}.pt")
            print(json.dumps({"case": name}), flush=True)
    sys.setswitchinterval(100)  # Python's lock is not handed over: the hardest exit for gloo's threads, which want it after a message
    for _ in range(20):
        from_everyone(None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(CASES))
