"""Keep what a shoot-out found, and write docs/guide/shootout.md from all that were kept.

preceptor compare recipes/shootout-digits.yaml --out runs/shootout-digits
python benchmarks/shootout.py runs/shootout-digits      # keeps benchmarks/results/shootout-digits.json, then writes the page
python benchmarks/shootout.py                           # writes the page
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEPT = ("title", "rows", "paired", "compute", "tuning", "seeds", "versions", "hardware", "notes")
HEAD = """# The shoot-out: which method buys the most?

All classification methods on the same few images, each tuned by equally many trials on validation images (plain cross-entropy and
classic-kd included), then trained with fresh seeds. Every number is of the test part, read once. Differences are paired by seed with 95 %
Student t intervals; a verdict holds after Holm's correction over all comparisons of the table, in three metrics: *shown* is better than
classic-kd, *contradicted* is worse, else the size of this study cannot tell. Small networks, small images: what wins here need not win
elsewhere. Written by `benchmarks/shootout.py` from `benchmarks/results`.

Not in it are methods that need more than images, labels and a teacher: lelp (a head of subclasses), multi-aspect (answers to questions),
swing (what is private), fidelity-paradox, random-teachers and ska (controls and instruments, which learn no task), and
correctness-calibration (after training). mtard has one teacher for both of its lessons. ECE is of the student's plain softmax: ldr and
logit-standardization learn logits on a scale of their own, which `preceptor.models.calibrators.TemperatureScaling` brings back.
"""


def keep(run: Path) -> None:
    """What the page needs of a study's result."""
    found = json.loads((run / "result.json").read_text())
    kept = {key: found[key] for key in KEPT}
    for row in kept["rows"]:
        row.pop("cost", None)
    (HERE / "results" / f"{run.name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def percent(summary: Mapping[str, Any], metric: str) -> str:
    """Mean of a share over the seeds, and half of its interval."""
    found = summary.get(metric)
    if found is None:
        return ""
    half = "" if found["low"] is None else f" ± {50 * (found['high'] - found['low']):.1f}"
    return f"{100 * found['mean']:.1f}{half}"


def difference(pairs: Sequence[Mapping[str, Any]], method: str) -> tuple[str, str]:
    """Accuracy minus the baseline's with its interval, in points, and the verdict."""
    pair = next((p for p in pairs if p["method"] == method and p["metric"] == "accuracy"), None)
    if pair is None:
        return "", ""
    ends = "" if pair["low"] is None else f" ({100 * pair['low']:+.1f} to {100 * pair['high']:+.1f})"
    return f"{100 * pair['mean']:+.1f}{ends}", pair["verdict"]


def page(found: Mapping[str, Any]) -> str:
    """The tables of one study, the best mean rank first."""
    rows = [row for row in found["rows"] if row["role"] != "teacher"]
    rows.sort(key=lambda row: row["summary"]["rank"]["mean"])
    fuller = {row["name"]: row for row in found["compute"]["rows"]}
    head = ["method", "rank", "accuracy", "less classic-kd", "verdict", "ECE", "under attack", "seconds"]
    lines, behind = [], []
    for row in rows:
        seconds = sum(seed["train_seconds"] for seed in row["seeds"]) / len(row["seeds"])
        less, verdict = difference(found["paired"], row["name"])
        behind += [row["name"]] * (verdict not in ("", "shown"))
        shares = [percent(row["summary"], metric) for metric in ("accuracy", "ece", "robust_accuracy")]
        lines.append([row["name"], f"{row['summary']['rank']['mean']:.1f}", shares[0], less, verdict, *shares[1:], f"{seconds:.1f}"])
    teacher = next((row for row in found["rows"] if row["role"] == "teacher"), None)
    equal = [
        [name, f"{row['steps']:,}", percent(row["summary"], "accuracy"), *difference(found["compute"]["paired"], name)]
        for name, row in sorted(fuller.items(), key=lambda item: -item[1]["summary"]["accuracy"]["mean"])
    ]
    parts = [
        f"## {found['title']}",
        f"{len(found['seeds'])} seeds; the teacher: {percent(teacher['summary'], 'accuracy')} %." if teacher else "",
        "### At equal updates",
        table(head, lines),
        f"Not shown to beat classic-kd in accuracy here: {', '.join(behind) or 'none'}.",
        "### At equal total time, the teacher's training included",
        table(["method", "updates", "accuracy", "less classic-kd", "verdict"], equal),
        "### What tuning chose",
        table(
            ["method", "chosen", "validation"],
            [[c["name"], ", ".join(f"{k} {v}" for k, v in c["chosen"].items()), f"{c['value']:.3f}"] for c in found["tuning"]],
        ),
        " ".join(found["notes"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def main() -> None:
    for run in sys.argv[1:]:
        keep(Path(run))
    found = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("shootout-*.json"))]
    (HERE.parent / "docs" / "guide" / "shootout.md").write_text("\n".join([HEAD, *map(page, found)]))


if __name__ == "__main__":
    main()
