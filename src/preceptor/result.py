"""From trials to ``result.json``: every number of a run or a study, and all that its report shows."""

from __future__ import annotations

import base64
import io
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from preceptor.core.files import write_whole
from preceptor.core.method import evaluating
from preceptor.core.optional import require
from preceptor.data.examples import Examples
from preceptor.data.text import Texts
from preceptor.metrics.calibration import Reliability, reliability_curve
from preceptor.metrics.cost import cost, device_of
from preceptor.metrics.evaluate import Predictions
from preceptor.studies.statistics import summary
from preceptor.task import Says, Task
from preceptor.trial import Trial

PROMPT = 32
"""Tokens that a text is begun with and gone on with in a report."""


def build_result(
    *,
    kind: str,
    title: str,
    task: Task,
    arms: Mapping[str, Sequence[Trial]],
    baselines: Sequence[str] = (),
    paired: Sequence[Mapping[str, Any]] = (),
    sweep: Mapping[str, Any] | None = None,
    recipe: str = "",
    teacher_seconds: float | None = None,
    teacher_name: str = "teacher",
    class_names: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Gather everything that a run or study found.

    Args:
        kind: "run" or "study".
        title: of the report.
        task: data and teacher.
        arms: name -> trials, one per seed.
        baselines: names of arms that others are compared with.
        paired: from `preceptor.studies.statistics.paired`.
        sweep: further points for the chart of accuracy against an axis.
        recipe: YAML text that makes the run again.
        teacher_seconds: time that training the teacher took, where that is known.
        teacher_name: its name in tables.
        class_names: shown under the example images.
        notes: what a reader should know.
    Returns:
        Plain JSON values.
    """
    metric, sign = ("perplexity", -1) if task.language else ("accuracy", 1)
    batch_sizes = (1, 4) if task.language else (1, 64)  # rows of texts, each of hundreds of tokens
    example = task.train.batch(torch.zeros(1, dtype=torch.int64))["x"]
    rows, reliability = [], []
    if task.teacher is not None:
        metrics, says = task.judge(task.teacher)
        metrics = {key: value for key, value in metrics.items() if key not in ("agreement", "kl_to_teacher", "rank_correlation")}
        seed = {"seed": None, "metrics": metrics, "train_seconds": teacher_seconds, "steps": None, "peak_memory_mb": None}
        rows.append(
            {
                "name": teacher_name,
                "role": "teacher",
                "seeds": [seed],
                "summary": {key: {"mean": value, "low": None, "high": None} for key, value in metrics.items()},
                "cost": cost(task.teacher, example, batch_sizes=batch_sizes),
            }
        )
        reliability.append(_reliability(teacher_name, [says]))
    for name, trials in arms.items():
        seeds = [
            {key: vars(trial)[key] for key in ("seed", "metrics", "steps", "train_seconds", "peak_memory_mb")}
            | {"teacher_seconds": None, "tokens_per_second": _tokens_per_second(task, trial)}
            for trial in trials
        ]
        measured = {trial.seed: trial.metrics for trial in trials}
        rows.append(
            {
                "name": name,
                "role": "baseline" if name in baselines else "method",
                "seeds": seeds,
                "summary": summary(measured) if len(trials) > 1 else _single(trials[0].metrics),
                "cost": cost(trials[0].student, example, batch_sizes=batch_sizes),
            }
        )
        reliability.append(_reliability(name, [trial.says for trial in trials]))
    candidates = (trials[0] for name, trials in arms.items() if name not in baselines or len(arms) == 1)
    shown = max(candidates, key=lambda trial: sign * trial.metrics[metric])
    return {
        "kind": kind,
        "title": title,
        "task": "language" if task.language else "classification",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "headline_metric": metric,
        "rows": rows,
        "paired": list(paired),
        "curves": [trial.curve for trials in arms.values() for trial in trials],
        "sweep": sweep,
        "reliability": reliability,
        "disagreements": _disagreements(task, shown.says, class_names) if isinstance(shown.says, Predictions) else [],
        "generations": _generations(task, arms),
        "recipe": recipe,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("preceptor", "torch", "accelerate", "numpy")},
        "commit": _commit(),
        "seeds": sorted({trial.seed for trials in arms.values() for trial in trials}),
        "hardware": hardware(),
        "notes": list(notes),
    }


def _tokens_per_second(task: Task, trial: Trial) -> float | None:
    """Targets trained on in a second of training, teacher and validation included; None for other examples than texts."""
    if not isinstance(task.train, Texts):
        return None
    return trial.examples * task.train.tokens() / len(task.train) / trial.train_seconds


def write_result(result: Mapping[str, Any], folder: Path) -> Path:
    """Write ``result.json`` whole or not at all."""
    return write_whole(folder / "result.json", json.dumps(result, indent=1), shared=True)


def hardware() -> str:
    """The machine in words: processor, threads, accelerator."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()} {platform.system()}, {torch.get_num_threads()} threads{gpu}"


def _single(metrics: Mapping[str, float]) -> dict[str, dict[str, float | None]]:
    return {key: {"mean": value, "low": None, "high": None} for key, value in metrics.items()}


def _reliability(name: str, says: Sequence[Says]) -> dict[str, Any]:
    """The reliability of all seeds of an arm together; of a language model, of its first."""
    first = says[0]
    if isinstance(first, Reliability):
        curve = first
    else:
        predictions = [s for s in says if isinstance(s, Predictions)]
        curve = reliability_curve(torch.cat([s.logits for s in predictions]), torch.cat([s.labels for s in predictions]))
    return {"name": name, "confidence": curve.confidence.tolist(), "accuracy": curve.accuracy.tolist(), "count": curve.count.tolist()}


def _disagreements(task: Task, says: Predictions, class_names: Sequence[str], most: int = 12) -> list[dict[str, Any]]:
    """Test images on which student and teacher differ, the surest first, both kinds of winner in turn."""
    teacher_logits = task.teacher_logits(task.measured)
    if teacher_logits is None or not task.measured.in_memory:
        return []
    student, teacher = says.logits.softmax(-1).max(-1), teacher_logits.softmax(-1).max(-1)
    differ = student.indices != teacher.indices
    sure = student.values + teacher.values
    right = [differ & (student.indices == says.labels), differ & (student.indices != says.labels)]
    orders = [torch.nonzero(part).squeeze(1)[sure[part].argsort(descending=True)].tolist() for part in right]
    chosen = orders[0][: most // 2] + orders[1][: most - len(orders[0][: most // 2])]
    names = list(class_names) or [str(c) for c in range(says.logits.shape[1])]
    shown = []
    for index in chosen:
        image = _png(task.measured, index)
        if image is None:
            return []
        shown.append(
            {
                "image": image,
                "label": names[says.labels[index]],
                "student": names[student.indices[index]],
                "student_confidence": float(student.values[index]),
                "teacher": names[teacher.indices[index]],
                "teacher_confidence": float(teacher.values[index]),
            }
        )
    return shown


def _generations(task: Task, arms: Mapping[str, Sequence[Trial]], prompts: int = 3) -> list[dict[str, Any]]:
    """How teacher and students go on with the beginnings of texts, the most probable token each time."""
    part = task.measured
    if not isinstance(part, Texts) or part.tokenizer is None:
        return []
    models = ({} if task.teacher is None else {"teacher": task.teacher}) | {name: trials[0].student for name, trials in arms.items()}
    if not all(hasattr(model, "generate") for model in models.values()):
        return []
    shown = []
    for index in torch.linspace(0, len(part) - 1, min(prompts, len(part))).long().tolist():
        prompt = part.batch(torch.tensor([index]))["x"]["input_ids"][:, :PROMPT]
        said = {name: _continue(model, prompt, part.tokenizer) for name, model in models.items()}
        shown.append({"prompt": part.tokenizer.decode(prompt[0].tolist()), "said": said})
    return shown


def _continue(model: nn.Module, prompt: Tensor, tokenizer: Any) -> str:
    prompt = prompt.to(device_of(model))
    with torch.no_grad(), evaluating(model):
        ids = cast(Any, model).generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=PROMPT, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )
    return tokenizer.decode(ids[0, prompt.shape[1] :].tolist(), skip_special_tokens=True)


def _png(part: Examples, index: int) -> str | None:
    """One image as a data URI; None where an example is no image."""
    x = part.batch(torch.tensor([index]))["x"]
    pixels = next(iter(x.values())) if isinstance(x, dict) else x
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        return None
    pixels = pixels[0].double()
    low, high = pixels.min(), pixels.max()
    pixels = ((pixels - low) / (high - low).clamp_min(1e-12)).movedim(0, -1).expand(-1, -1, 3)
    file = io.BytesIO()
    require("matplotlib.image", extra="study", purpose="the report").imsave(file, pixels.numpy(), format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _commit() -> str | None:
    """Commit of the working directory, with ``+`` when it holds changes; None outside a repository."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")
