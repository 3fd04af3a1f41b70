"""Write docs/guide/benchmarks.md from the rows that the benchmarks kept: ``python benchmarks/table.py``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HEAD = """# Benchmarks

Ratios, ours divided by the peer's, medians of interleaved repeats in one process, of the time of the processor where there is one thread;
memory is the peak of one turn, each in a fresh process.
In brackets the goal set before. A ratio above its goal is a goal missed. CPUs only: nothing here is about the kernels for GPUs of TRL,
Liger or PyTorch. `benchmarks/results/` has every row with milliseconds, megabytes and versions; each script says how to run it.
"""
FILES = {
    "loop": "The loop against a hand-written one",
    "losses": "Losses of logits and features: forward and backward",
    "linear_losses": "Losses of language models: forward and backward",
    "llm_step": "Steps with SmolLM2-135M",
}


def cell(row: Mapping[str, Any], name: str) -> str:
    value, goal = row.get(f"{name}_ratio"), row.get(f"goal_{name}_ratio")
    return "" if value is None else f"{value:.2f}" + ("" if goal is None else f" ({goal:.2f})")


def error(row: Mapping[str, Any]) -> str:
    """The larger of the relative errors of the gradients."""
    found = [value for name, value in row.get("errors", {}).items() if name in ("hidden", "weight", "logits")]
    return f"{max(found):.0e}" if found else ""


def more(row: Mapping[str, Any]) -> str:
    names = ("rank_correlation", "bytes_per_token")
    return ", ".join(f"{name.replace('_', ' ')} {row[name]:.3g} ({row[f'goal_{name}']})" for name in names if name in row)


def main() -> None:
    parts = [HEAD]
    for name, title in FILES.items():
        rows = json.loads((HERE / "results" / f"{name}.json").read_text())
        errors, notes = any(map(error, rows)), any(map(more, rows))
        heads = ["case", "peer", "time", "memory", *["gradient error"] * errors, *["also"] * notes]
        lines = [
            [row["case"], row["peer"], cell(row, "time"), cell(row, "memory"), *[error(row)] * errors, *[more(row)] * notes] for row in rows
        ]
        table = [heads, ["---"] * len(heads), *lines]
        parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n")
    (HERE.parent / "docs" / "guide" / "benchmarks.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
