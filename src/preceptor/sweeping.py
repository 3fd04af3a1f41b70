"""A ladder of students from one recipe, and the scaling law of their losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from preceptor.core.files import write_whole
from preceptor.execute import run_distill
from preceptor.models.reference import build, shrink
from preceptor.progress import Bars
from preceptor.recipe import Recipe, dump
from preceptor.scaling.inquiry import Questions, inquire
from preceptor.scaling.points import read_points

PLAN = "sweep.yaml"
"""The recipe of a sweep, in its folder: another recipe is refused there."""


def run_sweep(
    recipe: Recipe,
    sizes: Sequence[float],
    *,
    seeds: int = 1,
    law: str = "power-constant",
    questions: Questions | None = None,
    draws: int = 1000,
    out: Path,
    bars: Bars,
) -> dict[str, Any]:
    """Train the recipe's student at several sizes and fit a law of test loss against parameters.

    Every run has a folder in ``out/runs``. One that holds its result is not run again, and one that was stopped goes on; so the same call
    with more sizes adds to what is there.

    Args:
        recipe: its method trains every student, on the same data for the same number of updates.
        sizes: factors of the student's widths, each above 0 and once; see `scaled`.
        seeds: runs of each size, with seeds from the recipe's on.
        law: "power-constant" or "power".
        questions: what to ask of the law, see `preceptor.scaling.inquiry.Questions`.
        draws: of the bootstrap.
        out: the folder.
        bars: progress.
    Returns:
        As `preceptor.scaling.inquiry.inquire`, with a row per run.
    Raises:
        ValueError: sizes that do not pass, a student without widths, too few sizes for the law, or a folder of another recipe.
    """
    wanted = sorted(sizes)
    if len(set(wanted)) != len(wanted) or not wanted or wanted[0] <= 0:
        raise ValueError(f"sizes: expected numbers above 0, each once, got {', '.join(f'{size:g}' for size in sizes)}")
    need = 4 if law == "power-constant" else 3
    if len(wanted) < need:
        raise ValueError(f"sizes: expected at least {need} for the law {law}, got {len(wanted)}")
    plans = {size: recipe.model_copy(update={"student": scaled(recipe.student, size)}) for size in wanted}
    same = [size for size, later in pairwise(wanted) if plans[size].student == plans[later].student]
    if same:
        raise ValueError(f"sizes: expected widths that differ, got the same student for {same[0]:g} and the next size")
    _claim(out, dump(recipe))
    for size, plan in plans.items():
        for seed in range(recipe.seed, recipe.seed + seeds):
            folder = out / "runs" / f"size-{size:g}-seed-{seed}"
            if (folder / "result.json").exists():
                bars.say(f"size {size:g}, seed {seed}: kept in {folder}")
                continue
            bars.say(f"size {size:g}, seed {seed}: training")
            run_distill(plan.model_copy(update={"seed": seed}), out=folder, resume=folder.exists(), bars=bars)
    points = read_points(out / "runs")
    result = inquire(points, law, questions=questions, draws=draws, title=f"{recipe.title or 'A ladder of students'}: loss against size")
    return {**result, "runs": {name: list(cells) for name, cells in points.table.items()}, "recipe": dump(recipe)}


def scaled(student: str | Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The recipe's entry of a student whose widths are multiplied.

    Args:
        student: a reference model, ``{shrink: FACTOR}`` of the teacher, or ``{keep_layers: NUMBER}``, which multiplies the layers.
        factor: above 0.
    Raises:
        ValueError: another student.
    """
    if isinstance(student, Mapping) and "reference" in student:
        return dict(shrink(build(student), factor).config)
    if isinstance(student, Mapping) and "shrink" in student:
        return {**student, "shrink": student["shrink"] * factor}
    if isinstance(student, Mapping) and isinstance(student.get("keep_layers"), int):
        return {**student, "keep_layers": max(1, round(student["keep_layers"] * factor))}
    raise ValueError(f"student: expected a reference model, shrink or a number of keep_layers to make a ladder of, got {student!r}")


def _claim(out: Path, plan: str) -> None:
    """Write the recipe into a new folder; refuse one that belongs to another recipe, or to something else."""
    kept = out / PLAN
    if kept.exists():
        if kept.read_text(encoding="utf-8") != plan:
            raise ValueError(f"out: expected a new folder or one of the same recipe, got {out}, whose {PLAN} differs")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"out: expected a new folder or one of a sweep, got {out}, which holds something else")
    else:
        write_whole(kept, plan)
