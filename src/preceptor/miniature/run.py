"""Running the experiment of a method over seeds, and keeping what came out.

A method's module has a function ``miniature(seed: int, size: "smoke" | "full") -> Miniature`` that runs its experiment once. `reproduce`
calls it for every seed, writes each seed's numbers to a journal before the next one starts, and applies the verdict rule of
`preceptor.miniature.claim`. The file of verdicts (``docs/verdicts.json``) holds the raw values beside every verdict.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from preceptor import __version__
from preceptor.catalog import read
from preceptor.core.files import write_whole
from preceptor.miniature.claim import Claim, Verdict, decide

_PACKAGE = Path(__file__).parents[1]

Size = Literal["smoke", "full"]
"""``smoke``: at most 3 seconds, the mechanism real, the claim not tested; ``full``: what a verdict is made from."""


@dataclass(frozen=True, kw_only=True)
class Miniature:
    """One seed of a method's experiment: every arm trained on equal budget, side by side.

    Args:
        arms: arm -> metric -> value; a null baseline, the baseline and the method at least.
        claims: the statements tested, the same for every seed.
        notes: what a reader of the numbers should know, such as the budget.
    Raises:
        ValueError: fewer than three arms, no claim, or a claim about an arm or a metric that was not measured.
    """

    arms: Mapping[str, Mapping[str, float]]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.arms) < 3:
            raise ValueError(f"arms: expected at least a null baseline, a baseline and the method, got {list(self.arms)}")
        if not self.claims:
            raise ValueError("claims: expected at least one, got none")
        for claim in self.claims:
            for arm in (claim.method, claim.baseline):
                if arm not in self.arms:
                    raise ValueError(f"claim {claim.name!r}: expected one of the arms {list(self.arms)}, got {arm!r}")
                if claim.metric not in self.arms[arm]:
                    raise ValueError(f"claim {claim.name!r}: expected one of {arm}'s metrics {list(self.arms[arm])}, got {claim.metric!r}")


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """All seeds of a method's experiment, with what the verdict rule says about them."""

    slug: str
    size: Size
    date: str  # of the last seed, YYYY-MM-DD, UTC
    versions: dict[str, str]  # of Python and of the packages that the numbers depend on
    seeds: tuple[int, ...]
    arms: dict[str, dict[int, dict[str, float]]]  # arm -> seed -> metric -> value
    claims: tuple[Claim, ...]
    verdicts: tuple[Verdict, ...]  # one per claim
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values; each metric of an arm becomes one list in the order of ``seeds``."""
        arms = {
            arm: {metric: [by_seed[seed][metric] for seed in self.seeds] for metric in by_seed[self.seeds[0]]}
            for arm, by_seed in self.arms.items()
        }
        return {**asdict(self), "arms": arms}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Measurements:
        """Take back what `to_json` returned."""
        arms = {
            arm: {seed: {metric: column[i] for metric, column in columns.items()} for i, seed in enumerate(saved["seeds"])}
            for arm, columns in saved["arms"].items()
        }
        return cls(
            slug=saved["slug"],
            size=saved["size"],
            date=saved["date"],
            versions=saved["versions"],
            seeds=tuple(saved["seeds"]),
            arms=arms,
            claims=tuple(Claim(**claim) for claim in saved["claims"]),
            verdicts=tuple(Verdict(**verdict) for verdict in saved["verdicts"]),
            notes=tuple(saved["notes"]),
        )


def reproduce(
    method: str | ModuleType,
    *,
    seeds: Sequence[int],
    size: Size = "full",
    journal: Path = Path("runs/reproduce"),
    verdicts: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Measurements:
    """Run a method's experiment over seeds and judge its claims.

    Seeds that the journal holds are not run again, as long as the package's source, the method's file and the versions of the libraries
    are the same: a killed call, repeated, loses one seed at most, and a call with more seeds adds the missing ones.

    Args:
        method: a slug (``"classic-kd"``) or a module with ``miniature(seed, size)``.
        seeds: fixed beforehand, each once; a verdict needs five.
        size: see `Size`.
        journal: folder that keeps one file per method, size and seed.
        verdicts: file in which the entry of this method is replaced; only for full size.
        progress: called with one line after each seed.
    Raises:
        ValueError: an unknown slug or size, seeds that are missing or repeated, verdicts asked of a smoke run, a value that is not
            finite (seed, arm and metric are named), or arms, metrics or claims that differ between seeds.
    """
    if size not in ("smoke", "full"):
        raise ValueError(f"size: expected 'smoke' or 'full', got {size!r}")
    if verdicts is not None and size != "full":
        raise ValueError(f"size: expected 'full' to write {verdicts}, got {size!r}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds: expected at least one, each once, got {list(seeds)}")
    module = _module(method) if isinstance(method, str) else method
    slug = module.__name__.rpartition(".")[2].replace("_", "-")
    versions = {"python": platform.python_version(), "preceptor": __version__}
    versions |= {package: importlib.metadata.version(package) for package in ("torch", "numpy")}
    fingerprint = _fingerprint(module, versions)
    runs: dict[int, Miniature] = {}
    for count, seed in enumerate(seeds, start=1):
        path = journal / slug / size / f"seed-{seed}.json"
        start = time.perf_counter()
        run = _from_journal(path, fingerprint)
        how = "from the journal"
        if run is None:
            run = module.miniature(seed, size)
            _check_finite(run, seed)
            _write(path, {"fingerprint": fingerprint, **asdict(run)})
            how = f"{time.perf_counter() - start:.1f} s"
        runs[seed] = run
        _check_alike(runs[seeds[0]], run, seed)
        if progress is not None:
            metric = run.claims[0].metric
            values = ", ".join(f"{arm} {metrics[metric]:.4g}" for arm, metrics in run.arms.items() if metric in metrics)
            progress(f"{slug} seed {seed} ({count} of {len(seeds)}): {metric} {values}; {how}")
    first = runs[seeds[0]]
    arms = {arm: {seed: dict(run.arms[arm]) for seed, run in runs.items()} for arm in first.arms}
    measurements = Measurements(
        slug=slug,
        size=size,
        date=datetime.now(UTC).date().isoformat(),
        versions=versions,
        seeds=tuple(seeds),
        arms=arms,
        claims=first.claims,
        verdicts=decide(first.claims, arms),
        notes=tuple(dict.fromkeys(note for run in runs.values() for note in run.notes)),
    )
    if verdicts is not None:
        kept = read_verdicts(verdicts) if verdicts.exists() else {}
        _write(verdicts, {slug: entry.to_json() for slug, entry in sorted({**kept, slug: measurements}.items())})
    return measurements


def read_verdicts(path: Path) -> dict[str, Measurements]:
    """Read a file of verdicts: slug -> measurements."""
    return {slug: Measurements.from_json(entry) for slug, entry in json.loads(path.read_text(encoding="utf-8")).items()}


def _module(slug: str) -> ModuleType:
    """Import the module of a slug."""
    read(slug)  # refuses an unknown one with the nearest
    return importlib.import_module(f"preceptor.methods.{slug.replace('-', '_')}")


def _fingerprint(module: ModuleType, versions: Mapping[str, str]) -> str:
    """A hash of everything that a seed's numbers depend on."""
    digest = hashlib.sha256(json.dumps([versions, inspect.getsource(module)]).encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _from_journal(path: Path, fingerprint: str) -> Miniature | None:
    """The run kept in ``path``, unless there is none or it was made by other code."""
    if not path.exists():
        return None
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved["fingerprint"] != fingerprint:
        return None
    return Miniature(arms=saved["arms"], claims=tuple(Claim(**claim) for claim in saved["claims"]), notes=tuple(saved["notes"]))


def _check_finite(run: Miniature, seed: int) -> None:
    for arm, metrics in run.arms.items():
        for metric, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"seed {seed}: expected a finite {metric} of {arm}, got {value}")


def _check_alike(first: Miniature, run: Miniature, seed: int) -> None:
    measured = [{arm: sorted(metrics) for arm, metrics in r.arms.items()} for r in (first, run)]
    if measured[0] != measured[1]:
        raise ValueError(f"seed {seed}: expected the arms and metrics of the first seed {measured[0]}, got {measured[1]}")
    if first.claims != run.claims:
        raise ValueError(f"seed {seed}: expected the claims of the first seed {first.claims}, got {run.claims}")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1, allow_nan=False) + "\n", shared=True)
