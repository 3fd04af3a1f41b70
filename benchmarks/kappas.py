"""Kappas of a million annotations with 1,000 bootstrap draws, against the loop a user would write with scikit-learn and statsmodels.

    python benchmarks/kappas.py --json

A million annotations are 100,000 comments in 5 categories by two people; for each category: Cohen's kappa of the two, Fleiss' kappa,
Krippendorff's alpha, each with its interval. The loop resamples rows and calls the library once per draw; it does the same work on fewer
items and draws, and its time is scaled up by draws alone, since it is linear in them. Values are compared on the same ratings. Times are of
the processor, one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

from preceptor.education.agreement import cohen, estimate, fleiss, krippendorff, tabulate

COMMENTS, CATEGORIES, DRAWS = 100_000, 5, 1000
LOOP_DRAWS = 5  # of the loop, of one category


def ratings(seed: int, items: int) -> np.ndarray:
    """(items, 2) labels 0 and 1 of two people who agree to about 0.8."""
    generator = np.random.default_rng(seed)
    truth = generator.random(items) < 0.3
    return np.stack([np.where(generator.random(items) < 0.04, ~truth, truth) for _ in range(2)], axis=1).astype(np.int64)


def ours(columns: list[np.ndarray]) -> list[tuple[float, float]]:
    """Kappas of all categories with their intervals."""
    found = []
    for seed, rows in enumerate(columns):
        table = tabulate(rows, categories=2, draws=DRAWS, seed=seed)
        cohens, fleisses = estimate(cohen(table, 0, 1)), estimate(fleiss(table))
        estimate(krippendorff(table))
        found.append((cohens.value, fleisses.value))
    return found


def loop(rows: np.ndarray, draws: int, which: str) -> float:
    """The value on the data, after as many draws as asked for."""
    generator = np.random.default_rng(0)

    def kappa(chosen: np.ndarray) -> float:
        if which == "scikit-learn":
            return float(cohen_kappa_score(chosen[:, 0], chosen[:, 1]))
        return float(fleiss_kappa(aggregate_raters(chosen, 2)[0]))

    drawn = [kappa(rows[generator.integers(0, len(rows), len(rows))]) for _ in range(draws)]
    np.percentile(drawn, [2.5, 97.5])
    return kappa(rows)


def timed(call: Any) -> tuple[float, Any]:
    """Seconds of the processor, and the result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def measure(repeats: int) -> dict[str, Any]:
    """One row of results."""
    columns = [ratings(seed, COMMENTS) for seed in range(CATEGORIES)]
    ours(columns[:1])  # warm-up
    rows: list[dict[str, float]] = []
    for _ in range(repeats):
        seconds, found = timed(lambda: ours(columns))
        row = {"ours": seconds}
        for place, which in enumerate(("scikit-learn", "statsmodels")):
            spent, value = timed(lambda which=which: loop(columns[0], LOOP_DRAWS, which))
            if abs(value - found[0][place]) > 1e-12:
                raise SystemExit(f"{which}: expected {found[0][place]}, got {value}")
            row[which] = spent / LOOP_DRAWS * DRAWS * CATEGORIES
        rows.append(row)
    names = ("scikit-learn", "statsmodels")
    return {
        "annotations": COMMENTS * CATEGORIES * 2,
        "draws": DRAWS,
        "ours_seconds": statistics.median(row["ours"] for row in rows),
        "peer_seconds_scaled_up": {name: statistics.median(row[name] for row in rows) for name in names},
        "time_ratio": {name: statistics.median(row["ours"] / row[name] for row in rows) for name in names},
        "note": "ours has Cohen, Fleiss and Krippendorff; each peer has one of them",
        "repeats": repeats,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("preceptor", "numpy", *names)}},
    }


def main() -> None:
    """Measure, print, and keep with ``--json`` in benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="keep the row in benchmarks/results too")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    text = json.dumps(measure(given.repeats), indent=1)
    print(text)
    if given.json:
        (Path(__file__).parent / "results" / "kappas.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
