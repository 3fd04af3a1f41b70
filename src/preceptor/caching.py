"""Building the teacher cache of a recipe: the teacher is asked about every training example once, in every view that training will see."""

from __future__ import annotations

import math
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from preceptor.core.run import fingerprint
from preceptor.core.types import Batch
from preceptor.data.sources import Source
from preceptor.data.splits import fingerprint as data_fingerprint
from preceptor.data.text import Texts
from preceptor.distillation import check_writable
from preceptor.execute import describe_teacher, prepare
from preceptor.metrics.cost import to_device
from preceptor.models.taps import forward
from preceptor.progress import Bars
from preceptor.recipe import Recipe
from preceptor.teachers.build import build
from preceptor.teachers.cache import Cache, Spec, tokenizer_fingerprints
from preceptor.trial import make_accelerator


def run_cache(recipe: Recipe, *, out: Path | None, name: str, bars: Bars) -> Cache:
    """Do what a recipe's ``cache`` says, or go on doing it.

    Args:
        recipe: with a teacher that is a model.
        out: the folder; by default the recipe's ``teacher.cache``, else ``runs/NAME-cache``.
        name: of the recipe.
        bars: shows how far it is.
    Raises:
        ValueError: see `preceptor.teachers.build.build`; nothing was written.
        Interrupted: SIGTERM or SIGINT; call again to go on.
    """
    described = recipe.teacher
    if described is None or described.model is None:
        raise ValueError("teacher.model: expected the model to ask, got none")
    folder = out or Path(described.cache or f"runs/{name}-cache")
    check_writable(folder)
    accelerator = make_accelerator("no")
    if accelerator.num_processes > 1:
        raise ValueError(f"cache: expected one process to build it, got {accelerator.num_processes}")
    made = prepare(recipe.model_copy(update={"teacher": described.model_copy(update={"cache": None})}), bars=bars)
    assert made.teacher is not None
    source = Source(
        made.train,
        batch_size=recipe.training.batch_size,
        seed=recipe.seed,
        shuffle=False,
        augment=made.augment,
        num_workers=recipe.training.num_workers,
    )
    epochs = 1 if made.augment is None else math.ceil(recipe.training.total_steps(source.batches_per_epoch) / source.batches_per_epoch)
    wanted = recipe.cache
    few = wanted.kind in ("top-k", "sample")
    spec = Spec(
        kind=wanted.kind,
        k=wanted.k,
        temperature=wanted.temperature,
        precision=wanted.precision or ("compact" if few else "float32"),
        seed=wanted.seed,
        layers=tuple(wanted.layers),
        teacher=fingerprint(made.teacher),
        described=describe_teacher(recipe, described),
        data=data_fingerprint(made.train),
        augment=None if made.augment is None else repr(made.augment),
        epochs=epochs,
        **(tokenizer_fingerprints(made.train.tokenizer) if isinstance(made.train, Texts) else {}),
    )
    total = epochs * len(made.train)
    bars.say(f"cache: {len(made.train)} examples{f' in {epochs} epochs of views' if epochs > 1 else ''}, kept in {folder}")
    return build(
        folder,
        islice(source, epochs * source.batches_per_epoch),
        partial(_ask, made.teacher.to(accelerator.device).eval(), accelerator.device, spec.layers),
        spec,
        progress=lambda rows: bars.count("cache", rows, total, "example"),
    )


def _ask(teacher: nn.Module, device: torch.device, layers: tuple[str, ...], batch: Batch) -> Tensor | dict[str, Tensor]:
    said = forward(teacher, to_device(batch["x"], device), layers)
    return said.features if layers else said.logits
