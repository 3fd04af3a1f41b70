"""The loop against a hand-written one: what does preceptor cost per update?

Same model, same batches, same optimizer; the two run in turn within one process, and the median of the per-update times is compared.
preceptor runs with its non-finite checks, gradient norm and journal on; the plain loop has none of them. Also measured, each in fresh
processes: the time of ``import preceptor``, of ``preceptor --help`` and of ``preceptor list``.

    python benchmarks/loop.py [--json] [--repeats 61] [--steps 20]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from preceptor.core.run import train
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.losses.divergence import forward_kl
from preceptor.methods.classic_kd import ClassicKD
from preceptor.models.reference import build

TEACHER = {"reference": "cnn", "channels": [8, 24, 64, 112], "norm": "batch"}
STUDENT = {"reference": "cnn", "channels": [8, 16], "grid": 4}
BATCH = 128


def networks() -> tuple[torch.nn.Module, torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    teacher, student = build(TEACHER).eval().requires_grad_(False), build(STUDENT)
    return teacher, student, torch.optim.Adam(student.parameters(), lr=1e-3)


def plain(x: torch.Tensor, y: torch.Tensor, steps: int) -> tuple[float, torch.nn.Module]:
    """Seconds per update of the loop that a user would write."""
    teacher, student, optimizer = networks()
    order = torch.randperm(len(x))
    start = time.perf_counter()
    for step in range(steps):
        index = order[(step * BATCH) % len(x) :][:BATCH]
        inputs, labels = x[index], y[index]
        with torch.no_grad():
            target = teacher(inputs)
        logits = student(inputs)
        hard = F.cross_entropy(logits, labels)
        log_q, log_p = F.log_softmax(logits / 4, -1), F.log_softmax(target / 4, -1)
        loss = 0.1 * hard + 0.9 * 16 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - start) / steps, student


def ours(x: torch.Tensor, y: torch.Tensor, steps: int, accelerator: Accelerator) -> float:
    """Seconds per update of `preceptor.train`, journal included; the last checkpoint is not part of an update and is left out."""
    teacher, student, optimizer = networks()
    source = Source(examples_from((x, y), 10), batch_size=BATCH)
    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            ClassicKD(),
            {"teacher": teacher, "student": student},
            source,
            optimizer,
            steps=steps + 1,
            accelerator=accelerator,
            out=Path(folder) / "run",
            progress=lambda record: marks.append(time.perf_counter()),
        )
    return (marks[-1] - marks[0]) / (len(marks) - 1)


def seconds(*command: str, repeats: int = 5) -> float:
    """Median wall time of a process."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def rows(repeats: int, steps: int) -> list[dict[str, object]]:
    torch.set_num_threads(1)
    x, y = torch.rand(1280, 1, 28, 28), torch.randint(0, 10, (1280,))
    accelerator = Accelerator()
    plain(x, y, 10), ours(x, y, 10, accelerator)  # warm-up
    pairs = []
    for number in range(repeats):
        order = (plain, ours) if number % 2 else (ours, plain)
        timed = {f: f(x, y, steps)[0] if f is plain else f(x, y, steps, accelerator) for f in order}
        pairs.append((timed[ours], timed[plain]))
    own, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    versions = {"python": platform.python_version()} | {name: version(name) for name in ("torch", "accelerate", "preceptor")}
    common = {"memory_ratio": None, "goal_memory_ratio": None, "repeats": repeats, "versions": versions}
    goal = 1 + max(0.05, 0.3e-3 / peer)
    table: list[dict[str, object]] = [
        {
            "case": f"classic-kd update, batch {BATCH}, demo student, non-finite checks and journal on",
            "peer": "hand-written loop",
            "time_ratio": statistics.median(a / b for a, b in pairs),
            "goal_time_ratio": goal,
            "ours_ms": own * 1e3,
            "peer_ms": peer * 1e3,
            "overhead_ms": statistics.median(a - b for a, b in pairs) * 1e3,
            **common,
        }
    ]
    bare = seconds(sys.executable, "-c", "pass")
    for case, command, limit in (
        ("import preceptor", (sys.executable, "-c", "import preceptor"), bare + 0.2),
        ("preceptor --help", (sys.executable, "-m", "preceptor.cli", "--help"), 0.5),
        ("preceptor list", (sys.executable, "-m", "preceptor.cli", "list"), 0.5),
    ):
        taken = seconds(*command)
        table.append(
            {
                "case": case,
                "peer": f"its limit of {limit:.2f} s",
                "time_ratio": taken / limit,
                "goal_time_ratio": 1.0,
                "ours_ms": taken * 1e3,
                **common,
                "repeats": 5,
            }
        )
    return table


def difference_of_losses() -> float:
    """Largest difference between the two losses' values, so that the comparison is of the same thing."""
    s, t = torch.randn(8, 10, dtype=torch.double), torch.randn(8, 10, dtype=torch.double)
    own = forward_kl(s, t, temperature=4.0).mean()
    peer = F.kl_div(F.log_softmax(s / 4, -1), F.log_softmax(t / 4, -1), log_target=True, reduction="batchmean")
    return float((own - peer).abs())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON and keep them in benchmarks/results/loop.json")
    parser.add_argument("--repeats", type=int, default=61)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    if difference_of_losses() > 1e-12:
        raise SystemExit("the two losses differ: the comparison would mean nothing")
    table = rows(given.repeats, given.steps)
    if given.json:
        text = json.dumps(table, indent=1)
        (Path(__file__).parent / "results" / "loop.json").write_text(text + "\n")
        print(text)
        return
    for row in table:
        print(
            f"{row['case']}: {row['time_ratio']:.3f} of {row['peer']} (goal at most {row['goal_time_ratio']:.3f}), {row['ours_ms']:.2f} ms"
        )


if __name__ == "__main__":
    main()
