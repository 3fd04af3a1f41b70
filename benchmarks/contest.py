"""Contenders for the same job, side by side: times interleaved in one process, peak memory of each in a fresh one.

With one thread, the default, times are of the processor, so that what else runs on the machine matters less; with more, of the wall clock.

A script defines contests by name and calls `main`. Contenders do one whole turn of the job (forward and backward) and return what they
computed, so that a row also says how far the results lie apart.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from preceptor.metrics.cost import peak_memory_mb, reset_peak_memory

PACKAGES = ("preceptor", "torch", "transformers", "trl", "liger-kernel")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One row of the result: ours against a peer. ``time`` and ``memory`` are the largest ratios hoped for, None where none is set."""

    ours: str
    peer: str
    time: float | None = None
    memory: float | None = None
    error: float | None = None  # largest relative error of the gradients


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What one case compares."""

    contenders: Mapping[str, Callable[[], Mapping[str, Tensor]]]  # name -> a turn; results by name, the same names for all
    goals: tuple[Goal, ...]
    notes: Mapping[str, Callable[[], Mapping[str, Any]]] = field(default_factory=dict)  # name of ours -> more to write into its rows


def main(script: str, contests: Mapping[str, Callable[[], Contest]], *, repeats: int, description: str | None) -> None:
    """Run the contests named on the command line, all by default.

    ``--json`` prints the rows and keeps them in benchmarks/results, beside those of other cases.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"out of: {', '.join(contests)}")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON and keep them in benchmarks/results")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", metavar="CONTENDER", help=argparse.SUPPRESS)  # of one case, in this process
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.memory:
        print(_extra_memory(contests[given.cases[0]]().contenders[given.memory]))
        return
    path = Path(script).parent / "results" / f"{Path(script).stem}.json"
    kept = json.loads(path.read_text()) if given.json and path.exists() else []
    rows = []
    for case in given.cases or contests:
        found = _rows(script, case, contests[case], given.repeats, given.threads)
        rows += found
        for row in found:
            print(_line(row), file=sys.stderr, flush=True)
        if given.json:  # after every case: they take minutes each
            others = [row for row in kept if row["case"].partition(": ")[0] in contests.keys() - {case}]
            kept = sorted(others + found, key=lambda row: list(contests).index(row["case"].partition(": ")[0]))
            path.write_text(json.dumps(kept, indent=1) + "\n")
    if given.json:
        print(json.dumps(rows, indent=1))


def _rows(script: str, case: str, make: Callable[[], Contest], repeats: int, threads: int) -> list[dict[str, Any]]:
    contest = make()
    results = {name: turn() for name, turn in contest.contenders.items()}  # warm-up, and the agreement
    errors = {(goal.ours, goal.peer): _errors(results[goal.ours], results[goal.peer]) for goal in contest.goals}
    notes = {name: dict(note()) for name, note in contest.notes.items()}
    del results
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in contest.contenders}
    for _ in range(repeats):
        for name in random.sample(list(times), len(times)):
            start = clock()
            contest.contenders[name]()
            times[name].append(clock() - start)
    memory = {name: _in_fresh_process(script, case, name, threads) for name in times}
    versions = {"python": platform.python_version(), **{name: found for name in PACKAGES if (found := _version(name))}}
    return [
        {
            "case": f"{case}: {goal.ours}",
            "peer": goal.peer,
            "time_ratio": statistics.median(a / b for a, b in zip(times[goal.ours], times[goal.peer], strict=True)),
            "memory_ratio": memory[goal.ours] / max(memory[goal.peer], 1.0),
            "goal_time_ratio": goal.time,
            "goal_memory_ratio": goal.memory,
            "errors": errors[goal.ours, goal.peer],
            "goal_error": goal.error,
            "ours_ms": statistics.median(times[goal.ours]) * 1e3,
            "peer_ms": statistics.median(times[goal.peer]) * 1e3,
            "ours_mb": memory[goal.ours],
            "peer_mb": memory[goal.peer],
            **notes.get(goal.ours, {}),
            "repeats": repeats,
            "threads": threads,
            "versions": versions,
        }
        for goal in contest.goals
    ]


def _in_fresh_process(script: str, case: str, name: str, threads: int) -> float:
    command = [sys.executable, script, case, "--memory", name, "--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _extra_memory(turn: Callable[[], Any]) -> float:
    """Peak of the resident set during one turn, above what it was before, in megabytes of 10^6 bytes."""
    torch.randn(64, 64, requires_grad=True).logsumexp(-1).sum().backward()  # the libraries load what they need
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what making the problem has freed is not there for the turn to use again
    reset_peak_memory()
    before = peak_memory_mb()
    turn()
    return peak_memory_mb() - before


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _line(row: Mapping[str, Any]) -> str:
    def ratio(name: str) -> str:
        goal = row[f"goal_{name}_ratio"]
        return f"{name} {row[f'{name}_ratio']:.3f}" + ("" if goal is None else f" (goal {goal})")

    errors = ", ".join(f"{name} {value:.1e}" for name, value in row["errors"].items())
    numbers = f"{row['ours_ms']:.0f} against {row['peer_ms']:.0f} ms, {row['ours_mb']:.0f} against {row['peer_mb']:.0f} MB"
    return f"{row['case']} / {row['peer']}: {ratio('time')}, {ratio('memory')}; {numbers}; differences {errors}"


def _errors(ours: Mapping[str, Tensor], peer: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float((ours[name].double() - peer[name].double()).norm() / peer[name].double().norm()) for name in ours if name in peer}
