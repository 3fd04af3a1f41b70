"""EdNet-shaped logs at scale: from a zip of one CSV per student to parquet and on to training sequences, against a script in pandas.

Logs are made up in the true schema, then converted and cut into windows, each step in a fresh process: rows per second, and the peak of the
process's resident memory. The size grows by factors of ten to ``--rows``, to see whether memory does. The script is what a user would write
in pandas: open every member, concatenate, merge, group by student, pad; it runs on ``--pandas-rows``, where both are compared.

    python benchmarks/ednet.py [--json] [--rows 2000000] [--pandas-rows 200000]

Twenty million rows take about 1 GB of disk for a moment, in ``--work``, which is emptied at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 120  # mean answers of a student, as in EdNet-KT1


def make(folder: Path, rows: int) -> dict[str, Any]:
    from preceptor.education.synthetic import synthesize

    made = synthesize(max(1, round(rows / LENGTH)), folder / "logs.zip", seed=0)
    return {"rows": made, "zip_mb": (folder / "logs.zip").stat().st_size / 1e6}


def convert(folder: Path, rows: int) -> dict[str, Any]:
    from preceptor.education.ednet import convert as run

    report = run(folder / "logs.zip", folder)
    return {"rows": report.rows, "users": report.users, "parquet_mb": (folder / "interactions.parquet").stat().st_size / 1e6}


def sequences(folder: Path, rows: int) -> dict[str, Any]:
    from preceptor.education.sequences import scan_windows

    steps, windows, check = 0, 0, 0
    for part in scan_windows(folder):
        steps, windows = steps + int((part.item >= 0).sum()), windows + len(part)
        check += int(part.correct[part.item >= 0].sum())
    return {"rows": steps, "windows": windows, "correct": check}


def pandas_script(folder: Path, rows: int) -> dict[str, Any]:
    """The same windows by the obvious means."""
    import pandas as pd

    frames = []
    with zipfile.ZipFile(folder / "logs.zip") as archive:
        for name in archive.namelist():
            if name.startswith("KT1/"):
                with archive.open(name) as file:
                    frame = pd.read_csv(file)
                frame["user"] = int(name[5:-4])
                frames.append(frame)
        with archive.open("contents/questions.csv") as file:
            questions = pd.read_csv(file)
    whole = pd.concat(frames, ignore_index=True)
    questions = questions[questions["tags"].astype(str) != "-1"]
    whole = whole.merge(questions[["question_id", "correct_answer", "tags"]], on="question_id", how="left")
    whole = whole.dropna(subset=["timestamp", "question_id", "user_answer", "elapsed_time", "tags"])
    whole["correct"] = (whole["user_answer"] == whole["correct_answer"]).astype(int)
    whole["item"] = whole["question_id"].str[1:].astype(int)
    items, corrects = [], []
    for _, group in whole.groupby("user"):
        own = group.sort_values("timestamp", kind="stable")
        if len(own) < 3:
            continue
        for start in range(0, len(own), 200):
            part = own.iloc[start : start + 200]
            pad = 200 - len(part)
            items.append(np.pad(part["item"].to_numpy(), (0, pad), constant_values=-1))
            corrects.append(np.pad(part["correct"].to_numpy(), (0, pad), constant_values=-1))
    item, correct = np.stack(items), np.stack(corrects)
    return {"rows": int((item >= 0).sum()), "windows": len(item), "correct": int(correct[item >= 0].sum())}


MODULES = {
    "make": ("preceptor.education.synthetic", "pyarrow.csv"),
    "convert": ("preceptor.education.ednet", "pyarrow.csv", "pyarrow.parquet"),
    "sequences": ("preceptor.education.sequences", "pyarrow.parquet"),
}
STEPS = {"make": make, "convert": convert, "sequences": sequences, "pandas": pandas_script}


def step(name: str, folder: Path, rows: int) -> dict[str, Any]:
    """Run a step in a process of its own."""
    command = [sys.executable, __file__, "--step", name, "--work", str(folder), "--rows", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def measured(name: str, folder: Path, rows: int) -> dict[str, Any]:
    """Inside that process: what the step says, its seconds without those of imports (pyarrow imports pandas, too), the peak of memory."""
    for module in ("pandas", *MODULES.get(name, ())):
        __import__(module)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    found = STEPS[name](folder, rows)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        **found,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "rows_per_second": round(found["rows"] / seconds),
        "peak_mb": round(peak / 1024, 1),
        "imports_mb": round(before / 1024, 1),
    }


def run(rows: int, pandas_rows: int, work: Path) -> dict[str, Any]:
    sizes = sorted({pandas_rows, *(size for size in (rows // 100, rows // 10, rows) if size > pandas_rows)})
    results = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=work) as name:
            folder = Path(name)
            free = shutil.disk_usage(folder).free
            if free < 200 * size:
                raise SystemExit(f"work: expected {200 * size / 1e9:.1f} GB free in {work}, got {free / 1e9:.1f}")
            found = {name: step(name, folder, size) for name in ("make", "convert", "sequences")}
            if size == pandas_rows:
                found["pandas"] = step("pandas", folder, size)
            results.append({"asked": size, **found})
            print(f"{size:,}: {summary(results[-1])}", file=sys.stderr)
    first, last = results[0], results[-1]
    for key in ("rows", "windows", "correct"):
        assert first["pandas"][key] == first["sequences"][key], f"pandas and preceptor differ in {key}"
    ratio = {
        kind: round(first["pandas"][kind] / (first["convert"][kind] + first["sequences"][kind]), 2) for kind in ("seconds", "cpu_seconds")
    }
    small = next((r for r in results if r["asked"] >= rows // 10), first)  # smaller ones do not fill one batch
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "pandas", "pyarrow")},
        "cores": os.cpu_count(),
        "sizes": results,
        "pandas_over_ours": ratio,
        "memory_growth": {
            "rows": [small["convert"]["rows"], last["convert"]["rows"]],
            **{name: round(last[name]["peak_mb"] / small[name]["peak_mb"], 2) for name in ("convert", "sequences")},
        },
    }


def summary(found: dict[str, Any]) -> str:
    names = [name for name in ("make", "convert", "sequences", "pandas") if name in found]
    return "; ".join(f"{name} {found[name]['rows_per_second']:,} rows/s, peak {found[name]['peak_mb']:,.0f} MB" for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000, help="of the largest size")
    parser.add_argument("--pandas-rows", type=int, default=200_000, help="of the size that pandas does, too")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="folder for the files in between")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(measured(options.step, options.work, options.rows)))
        return
    result = run(options.rows, options.pandas_rows, options.work)
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text if options.json else "\n".join(f"{found['asked']:>12,} rows: {summary(found)}" for found in result["sizes"]))
    if not options.json:
        print(f"pandas takes {result['pandas_over_ours']['seconds']} times as long; memory from a tenth to all: {result['memory_growth']}")


if __name__ == "__main__":
    main()
