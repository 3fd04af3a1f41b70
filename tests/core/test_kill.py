"""A run killed with SIGKILL at any moment and resumed ends like the run that was never killed, to the bit."""

import os
import random
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.core.small import CrossEntropy, assert_identical, lines_of
from torch import nn

from preceptor.core import run as run_module
from preceptor.core import state as state_module
from preceptor.core.journal import Journal
from preceptor.core.run import train
from preceptor.data.augment import Chain, Crop, Flip
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source

STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Noisy(CrossEntropy):
    """Draws from every generator there is and remembers something."""

    def prepare(self, batch, roles, state):
        noise = torch.randn(batch["x"].shape, generator=state.rng) * random.random()
        return {**batch, "x": batch["x"] + 0.1 * noise + state.memory.get("mean", 0.0)}

    def after_step(self, batch, records, roles, state):
        state.memory["mean"] = 0.9 * state.memory.get("mean", 0.0) + 0.1 * float(batch["x"].mean())
        state.log["mean"] = state.memory["mean"]


def whole_run(out):
    """Images with augmentation, dropout, batch norm, momentum, a cosine schedule, validation; goes on where it was."""
    torch.manual_seed(0)
    random.seed(0)
    draws = torch.Generator().manual_seed(1)
    images, labels = torch.rand(50, 1, 6, 6, generator=draws), torch.randint(3, (50,), generator=draws)
    augment = Chain(steps=(Crop(padding=1), Flip()))
    source = Source(examples_from((images, labels), num_classes=3), batch_size=16, seed=2, augment=augment)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3)]
    student = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    def valid(roles, state):
        return {"accuracy": float((roles["student"](images).argmax(-1) == labels).float().mean())}

    options = {"schedulers": schedule, "valid": valid, "evaluate_every": 8, "checkpoint_every": 2, "clip": 1.0}
    train(Noisy(), {"student": student}, source, optimizer, steps=STEPS, out=out, resume=True, warn=lambda line: None, **options)
    save_file(student.state_dict(), out / "student.safetensors")


def start(out, harm=None):
    """Run in a forked child, on one thread; ``harm`` is called in it first."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        if harm is not None:
            harm()
        whole_run(out)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def end_of(pid):
    """Exit code of a child, -9 for a killed one."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    begin = time.perf_counter()
    assert end_of(start(out)) == 0
    return out, time.perf_counter() - begin


def assert_equal_runs(out, straight):
    for name in ("student.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (straight / name).read_bytes(), name
    ours, theirs = (folder / "checkpoints" / f"step-{STEPS}" / "state.pt" for folder in (out, straight))
    assert_identical(torch.load(ours, weights_only=True), torch.load(theirs, weights_only=True))
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [f"step-{STEPS - 2}", f"step-{STEPS}"]
    assert [line["step"] for line in lines_of(out) if "losses" in line] == list(range(1, STEPS + 1))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner, name, count, act):
    """Replace ``owner.name``: its call number ``count`` in this process does ``act(original, *args)``, which kills."""

    def install():
        original, calls = getattr(owner, name), []

        def replaced(*args, **keys):
            calls.append(None)
            if len(calls) == count:
                act(original, *args, **keys)
                die()
            return original(*args, **keys)

        setattr(owner, name, replaced)

    return install


def before(original, *args, **keys):
    """Die instead of the call."""


def after(original, *args, **keys):
    original(*args, **keys)


def half_a_block(original, self, data):
    self.file.write(bytes(data)[: len(data) // 2])
    self.file.flush()


def half_a_line(original, self, record):
    self.metrics.write('{"step": 99, "losses": {"ha')
    self.metrics.flush()


def half_a_removal(original, path):
    (Path(path) / "manifest.json").unlink()


MOMENTS = {
    "before the first checkpoint": at_call(Noisy, "after_step", 1, before),
    "in the middle of a step": at_call(Noisy, "after_step", 6, before),
    "in the middle of state.pt": at_call(state_module._Hashed, "write", 30, half_a_block),
    "before the manifest": at_call(state_module, "_digest", 4, before),
    "between writing and renaming": at_call(Path, "rename", 3, before),
    "after renaming": at_call(Path, "rename", 2, after),
    "while the old one is removed": at_call(shutil, "rmtree", 2, half_a_removal),
    "in the middle of a line": at_call(Journal, "record", 4, half_a_line),
    "between the journal and the checkpoint": at_call(run_module, "save_checkpoint", 2, before),
    "while the journal is cut back": at_call(Journal, "truncate", 1, after),
    "before the journal is cut back": at_call(Journal, "truncate", 1, before),
}


def test_killed_at_every_kind_of_moment(straight, tmp_path):
    out = tmp_path / "run"
    for moment, harm in MOMENTS.items():
        assert end_of(start(out, harm)) == -signal.SIGKILL, moment
        assert not (out / "student.safetensors").exists(), moment
    assert end_of(start(out)) == 0
    assert_equal_runs(out, straight[0])


def test_killed_at_random_times(straight, tmp_path):
    times, kills = random.Random(time.time_ns()), 0
    for attempt in range(20):
        out, code = tmp_path / f"run-{attempt}", None
        while code != 0:
            pid = start(out)
            time.sleep(times.uniform(0, straight[1]))
            os.kill(pid, signal.SIGKILL)
            code = end_of(pid)
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        assert_equal_runs(out, straight[0])
        if kills >= 6:
            break
    assert kills >= 6
