"""Timing of a call. Nothing here imports torch, so that an exported model can be timed without it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np


def timed(call: Callable[[], object], *, warmup: int = 5, repeats: int = 50, budget: float = 5.0) -> dict[str, float]:
    """Wall-clock time of a call.

    Args:
        call: does the work and waits for its end.
        warmup: calls before the clock starts; they run at least once, and stop after ``budget`` seconds.
        repeats: timed calls, >= 1; fewer, but at least 3, when ``budget`` is used up before.
        budget: seconds, for warm-up and for the timed calls each.
    Returns:
        ``p50`` and ``p95`` of the timed calls, in milliseconds.
    """
    _durations(call, warmup, budget, at_least=1)
    p50, p95 = np.quantile(_durations(call, repeats, budget, at_least=min(3, repeats)), [0.5, 0.95])
    return {"p50": float(p50) * 1e3, "p95": float(p95) * 1e3}


def _durations(call: Callable[[], object], repeats: int, budget: float, at_least: int) -> list[float]:
    durations: list[float] = []
    while len(durations) < at_least or (len(durations) < repeats and sum(durations) < budget):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return durations
