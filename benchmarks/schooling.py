"""Schools of fish: a step and the measures of a frame against dewi-kadita, then our own cost up to 100,000 fish.

First both run the same states without noise, which must give the same numbers. Then times are taken in turn within one process, from the
same states, without noise: of the processor with one thread, the default, else of the wall clock. The peer's step is its compiled function
and the two lines that move the fish, without the two order parameters that its loop adds. The peer lives in an environment of its own,

    python -m venv ../peers-fish && ../peers-fish/bin/pip install dewi-kadita==0.0.4 numba==0.63.1
    PYTHONPATH=src ../peers-fish/bin/python benchmarks/schooling.py [--json] [--repeats 15] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
import numpy as np
from dewi_kadita.core.metrics import compute_all_metrics
from dewi_kadita.core.solver import _update_velocities_numba

from preceptor.simulation.motion import step
from preceptor.simulation.order import metrics
from preceptor.simulation.zones import CASES, Array, Zones

GOALS = {150: 0.2, 250: 0.15, 500: 0.1}  # largest ratio of the times of a step that is hoped for
SIZES = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
AGREE = 20  # steps over which both must agree
State = tuple[Array, Array]


def case_of(number: int) -> tuple[Zones, State]:
    """The published case with so many fish, or highly parallel at its density; without noise, ten steps from its start."""
    case = {150: CASES["swarm"], 250: CASES["highly-parallel"]}.get(number) or CASES["highly-parallel"].sized(number)
    zones = replace(case.zones, noise=0.0)
    state = case.start(np.random.default_rng(0))
    for _ in range(10):
        state = step(*state, zones)
    return zones, state


def peer_step(positions: Array, velocities: Array, zones: Zones) -> State:
    radii = (float(zones.r_repulsion), float(zones.r_orientation), float(zones.r_attraction))
    turn = (zones.max_turn, 0.0, math.radians(zones.blind_angle), float(zones.speed), float(zones.orientation_weight))
    velocities = _update_velocities_numba(positions, velocities, float(zones.box), *radii, *turn)
    positions = (positions + velocities * zones.dt) % zones.box
    return positions, velocities


def in_turn(contenders: Mapping[str, Callable[[], object]], repeats: int, threads: int) -> dict[str, list[float]]:
    """Seconds of every turn of each."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in contenders.values():
        turn()
    for _ in range(repeats):
        for name in random.sample(list(times), len(times)):
            start = clock()
            contenders[name]()
            times[name].append(clock() - start)
    return times


def row(case: str, times: Mapping[str, Sequence[float]], count: int, goal: float | None, **more: Any) -> dict[str, Any]:
    ours, peer = times["preceptor"], times["dewi-kadita"]
    return {
        "case": case,
        "peer": "dewi-kadita",
        "time_ratio": statistics.median(a / b for a, b in zip(ours, peer, strict=True)),
        "goal_time_ratio": goal,
        "ours_ms": statistics.median(ours) / count * 1e3,
        "peer_ms": statistics.median(peer) / count * 1e3,
        **more,
    }


def against_the_peer(number: int, repeats: int, threads: int) -> list[dict[str, Any]]:
    zones, start = case_of(number)
    ours = peer = start
    for _ in range(AGREE):
        ours, peer = step(*ours, zones), peer_step(*peer, zones)
    apart = ours[0] - peer[0]
    error = {
        "positions": float(np.abs(apart - zones.box * np.round(apart / zones.box)).max()),
        "velocities": float(np.abs(ours[1] - peer[1]).max()),
    }
    assert max(error.values()) < 1e-9, error
    count = max(2, 3000 // number)

    def walk(move: Callable[..., State]) -> Callable[[], object]:
        def turn() -> object:
            state = start
            for _ in range(count):
                state = move(*state, zones)
            return state

        return turn

    times = in_turn({"preceptor": walk(step), "dewi-kadita": walk(peer_step)}, repeats, threads)
    rows = [row(f"step, {number} fish", times, count, GOALS[number], errors=error, steps_compared=AGREE)]
    measures: dict[str, Callable[[], Mapping[str, float]]] = {
        "preceptor": lambda: metrics(*start, zones.box),
        "dewi-kadita": lambda: compute_all_metrics(*start, zones.box),
    }
    found, expected = (measures[name]() for name in ("preceptor", "dewi-kadita"))
    errors = {"measures": max(abs(found[name] - float(expected[name])) for name in found)}
    assert errors["measures"] < 1e-10, errors
    times = in_turn({name: lambda turn=turn: [turn() for _ in range(10)] for name, turn in measures.items()}, repeats, threads)
    return [*rows, row(f"measures of a frame, {number} fish", times, 10, None, errors=errors)]


def own_curve(repeats: int) -> list[dict[str, Any]]:
    """The case swarm at constant density, with its noise: a step by one thread (processor) and by all (wall), after 10 and 100 steps."""
    rows, threads = [], numba.config.NUMBA_NUM_THREADS
    for number in SIZES:
        case, rng = CASES["swarm"].sized(number), np.random.default_rng(0)
        state, done = case.start(rng), 0
        found: dict[str, Any] = {}
        for after in (10, 100):
            numba.set_num_threads(threads)
            while done < after:
                state, done = step(*state, case.zones, rng), done + 1
            for label, used, clock in (("one_thread", 1, time.process_time), (f"{threads}_threads_wall", threads, time.perf_counter)):
                numba.set_num_threads(used)
                spent = []
                for _ in range(max(3, repeats // 3)):
                    start = clock()
                    step(*state, case.zones, np.random.default_rng(0))
                    spent.append(clock() - start)
                found[f"ms_{label}_after_{after}"] = statistics.median(spent) * 1e3
        start = time.perf_counter()
        metrics(*state, case.zones.box)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        found |= {"ms_measures_wall": (time.perf_counter() - start) * 1e3, "peak_mb_so_far": peak}
        rows.append({"case": f"own step, {number} fish", "peer": "", "fish": number, **found})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    large = [r for r in rows if r["fish"] >= 1_000]
    for key in ("ms_one_thread_after_10", "ms_one_thread_after_100"):
        slope = np.polyfit(np.log([r["fish"] for r in large]), np.log([r[key] for r in large]), 1)[0]
        rows[-1][f"exponent_{key.removeprefix('ms_')}"] = float(slope)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON and keep them in benchmarks/results")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of the comparison")
    parser.add_argument("--no-curve", action="store_true", help="only the comparison")
    given = parser.parse_args()
    numba.set_num_threads(given.threads)
    rows = []
    for number in GOALS:
        rows += against_the_peer(number, given.repeats, given.threads)
        for found in rows[-2:]:
            print(f"{found['case']}: {found['time_ratio']:.3f} of the peer's {found['peer_ms']:.3g} ms", file=sys.stderr, flush=True)
    if not given.no_curve:
        rows += own_curve(given.repeats)
    packages = ("dewi-kadita", "numpy", "numba", "scipy")
    about = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    load = os.getloadavg()[0]
    rows = [{**found, "repeats": given.repeats, "threads": given.threads, "load": load, "versions": about} for found in rows]
    if given.json:
        text = json.dumps(rows, indent=1)
        (Path(__file__).parent / "results" / "schooling.json").write_text(text + "\n")
        print(text)


if __name__ == "__main__":
    main()
