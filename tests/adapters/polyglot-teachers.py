"""Adapter of the fixtures ``polyglot-teachers``: intrinsic scores, recovered gaps and polyglot scores.

The fixtures are of the released code, which takes any reference: ``on_inverted="ratio"``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from preceptor.metrics.polyglot import polyglot_score
from preceptor.metrics.recovered import extrinsic
from preceptor.metrics.teaching_data import intrinsic_z

COLUMNS = {
    "prompts_distinct_ri": "distinct_prompts",
    "responses_distinct_ri": "distinct_responses",
    "rubric_score": "rubric",
    "perplexity": "perplexity",
}
NAMES = {"teacher_model": "teacher", "target_lang": "language", "eval_lang": "eval_language"}


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """``z_score`` of columns, ``rows`` of results, or ``pg_score`` of both, by ``params["function"]``."""
    function = params["function"]
    if function == "compute_intrinsic_zscore":
        columns = {ours: inputs[theirs].tolist() for theirs, ours in COLUMNS.items()}
        return {"z_score": intrinsic_z([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])}
    if function == "compute_extrinsic_pgr":
        tables = [[renamed(row) for row in inputs[name]] for name in ("student", "base", "reference")]
        found = extrinsic(*tables, on_inverted="ratio")
        return {"rows": [{"teacher": one.teacher, "lang": one.language, "result": one.result, "pgr": one.pgr} for one in found]}
    z, recovered = (inputs[name].detach().numpy() for name in ("z_score", "pgr"))
    return {"pg_score": polyglot_score(z, recovered, float(params.get("alpha", 0.5)))}


def renamed(row: dict[str, Any]) -> dict[str, Any]:
    """A row with our names of its columns."""
    return {NAMES.get(name, name): value.item() if isinstance(value, Tensor) else value for name, value in row.items()}
