"""Building the teacher cache of a recipe: the teacher is asked about every training example once, in every view that training will see."""

from __future__ import annotations

import math
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from preceptor.core.run import fingerprint
from preceptor.core.types import Batch
from preceptor.data.sources import Source
from preceptor.data.splits import fingerprint as data_fingerprint
from preceptor.data.text import Texts
from preceptor.distillation import check_writable
from preceptor.execute import Prepared, describe_teacher, prepare
from preceptor.metrics.cost import to_device
from preceptor.models.taps import forward
from preceptor.progress import Bars
from preceptor.recipe import Recipe, TeacherRecipe
from preceptor.teachers.build import Answer, build
from preceptor.teachers.cache import Cache, Spec, tokenizer_fingerprints
from preceptor.teachers.server import Server
from preceptor.trial import make_accelerator


def run_cache(recipe: Recipe, *, out: Path | None, name: str, bars: Bars) -> Cache:
    """Do what a recipe's ``cache`` says, or go on doing it.

    Args:
        recipe: with a teacher that is a model, here or on a server.
        out: the folder; by default the recipe's ``teacher.cache``, else ``runs/NAME-cache``.
        name: of the recipe.
        bars: shows how far it is.
    Raises:
        ValueError: see `preceptor.teachers.build.build` and `preceptor.teachers.server.Server`; what was answered before stays.
        Interrupted: SIGTERM or SIGINT; call again to go on.
    """
    described, wanted = recipe.teacher, recipe.cache
    if described is None or described.model is None:
        raise ValueError("teacher.model: expected the model to ask, got none")
    if described.server is not None and (wanted.kind != "top-k" or wanted.temperature != 1):
        raise ValueError(
            f"cache.kind: expected top-k at temperature 1, all that a server says, got {wanted.kind} at temperature {wanted.temperature:g}"
        )
    folder = out or Path(described.cache or f"runs/{name}-cache")
    check_writable(folder)
    accelerator = make_accelerator("no")
    if accelerator.num_processes > 1:
        raise ValueError(f"cache: expected one process to build it, got {accelerator.num_processes}")
    made = prepare(recipe.model_copy(update={"teacher": described.model_copy(update={"cache": None})}), bars=bars)
    whose, answer = _on_server(made, described, wanted.k or 0, bars) if described.server else _here(made, tuple(wanted.layers), accelerator)
    source = Source(
        made.train,
        batch_size=recipe.training.batch_size,
        seed=recipe.seed,
        shuffle=False,
        augment=made.augment,
        num_workers=recipe.training.num_workers,
    )
    epochs = 1 if made.augment is None else math.ceil(recipe.training.total_steps(source.batches_per_epoch) / source.batches_per_epoch)
    few = wanted.kind in ("top-k", "sample")
    spec = Spec(
        kind=wanted.kind,
        k=wanted.k,
        temperature=wanted.temperature,
        precision=wanted.precision or ("compact" if few else "float32"),
        seed=wanted.seed,
        layers=tuple(wanted.layers),
        teacher=whose,
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
        answer,
        spec,
        progress=lambda rows: bars.count("cache", rows, total, "example"),
    )


def _here(made: Prepared, layers: tuple[str, ...], accelerator: Accelerator) -> tuple[str, Answer]:
    """Fingerprint and answers of a teacher that is a network."""
    assert made.teacher is not None
    whose = fingerprint(made.teacher)
    return whose, partial(_ask, made.teacher.to(accelerator.device).eval(), accelerator.device, layers)


def _on_server(made: Prepared, described: TeacherRecipe, k: int, bars: Bars) -> tuple[str, Answer]:
    """Fingerprint and answers of a teacher on a server, which is asked first whether it can."""
    assert isinstance(made.train, Texts)
    assert isinstance(described.model, str)
    assert described.server is not None
    server = Server(url=described.server, model=described.model, k=k, tokenizer=made.train.tokenizer, say=bars.say)
    first = made.train.batch(torch.zeros(1, dtype=torch.int64))["x"]["input_ids"][0]
    return server.probe(first.tolist(), length=made.train.length), server


def _ask(teacher: nn.Module, device: torch.device, layers: tuple[str, ...], batch: Batch) -> Tensor | dict[str, Tensor]:
    said = forward(teacher, to_device(batch["x"], device), layers)
    return said.features if layers else said.logits
