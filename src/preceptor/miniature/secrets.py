"""A world of secrets: English text in which numbers were planted, and a teacher that knows them by heart."""

from __future__ import annotations

import math
import random
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from preceptor.core.method import Method, evaluating
from preceptor.core.types import Batch
from preceptor.data.privacy import Canary, TokenTable, plant_canaries
from preceptor.losses.divergence import log_probs
from preceptor.losses.hard import hard_loss
from preceptor.metrics.privacy import continuation_log_likelihoods, exposure
from preceptor.miniature.run import Size
from preceptor.miniature.toys import fit_rows
from preceptor.miniature.worlds import Labels, seeded
from preceptor.models.recurrent import GRULanguageModel
from preceptor.models.taps import forward

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz0123456789"
"""The vocabulary; digits are private."""

TEMPLATE = "the pin of {name} is {secret}"
_WINDOW = 48  # characters in a row


@dataclass(frozen=True, kw_only=True)
class SecretWorld:
    """One task of one seed. Batches have ``x``, ``y``, ``id`` and ``privacy``, the scores of ``y``."""

    train: Batch
    public: Batch  # text without any number, not seen in training
    strangers: Batch  # lines like the planted ones, of names and numbers that nobody saw
    canaries: tuple[Canary, ...]
    teacher: nn.Module  # trained on all of it, in eval mode
    student: Callable[[], nn.Module]  # a new student at each call, always with the same weights: those of the seed
    steps: int  # updates of the teacher and of each student
    seed: int


def secret_world(seed: int, size: Size = "full") -> SecretWorld:
    """40,000 characters of the reference topics that ship with Python, 60 decoys "the pin of NAME is dddd", 3 secrets 15 times each.

    The text is in small letters and spaces, lines of about 60. The seed chooses which part of it, what is planted where, all weights and
    the order of rows. Teacher: recurrent, 96 units, 20 epochs on the labels; students: 64 units, as many.

    Args:
        seed: at least 0.
        size: ``"smoke"`` has little text, 2 digits, narrow networks and 8 epochs.
    """
    full = size == "full"
    characters, decoys, epochs, digits = (40_000, 60, 20, 4) if full else (2_000, 4, 8, 2)
    lines = _lines()
    number = characters // 60
    start = random.Random(seed).randrange(len(lines) - number - number // 4)
    public = lines[start + number : start + number + number // 4]
    plant = partial(plant_canaries, template=TEMPLATE, digits=digits)
    text, _ = plant(lines[start : start + number], n=decoys, repeats=1, seed=3 * seed)
    text, canaries = plant(text, n=3, repeats=15, seed=3 * seed + 1)
    strangers, _ = plant([], n=decoys, repeats=1, seed=3 * seed + 2)
    train = _windows(text)
    steps = epochs * (len(train["id"]) // _BATCH)
    teacher = seeded(lambda: GRULanguageModel(vocabulary=len(ALPHABET), units=96 if full else 12), seed)
    fit_rows(Labels(), {"student": teacher}, train, **_BUDGET, steps=steps, seed=seed)
    return SecretWorld(
        train=train,
        public=_windows(public),
        strangers=_rows(torch.stack([encode("\n" + line) for line in strangers])),
        canaries=canaries,
        teacher=teacher.eval(),
        student=lambda: seeded(lambda: GRULanguageModel(vocabulary=len(ALPHABET), units=64 if full else 8), seed),
        steps=steps,
        seed=seed,
    )


def beside_plain(
    world: SecretWorld, plain: Method, arms: Mapping[str, Method], *, hidden: Mapping[str, Method]
) -> dict[str, dict[str, float]]:
    """Teach one student per arm on equal budget and measure it, beside an untrained one and one of plain distillation.

    Args:
        world: the task.
        plain: the method of the arm "classic-kd".
        arms: name -> method.
        hidden: the same for arms whose loss leaves private tokens out.
    Returns:
        arm -> metric -> value, see `audit`, with ``relative_exposure`` and ``relative_perplexity`` as shares of "classic-kd".
    """
    masked = {**world.train, "mask": (world.train["privacy"] == 0).float()}
    found = {"untrained": audit(world.student(), world)}
    for name, method in {"classic-kd": plain, **hidden, **arms}.items():
        student = world.student()
        rows = masked if name in hidden else world.train
        fit_rows(method, {"student": student, "teacher": world.teacher}, rows, **_BUDGET, steps=world.steps, seed=world.seed)
        found[name] = audit(student, world)
    base = found["classic-kd"]
    return {
        name: {**arm, **{f"relative_{metric}": arm[metric] / base[metric] for metric in ("exposure", "perplexity")}}
        for name, arm in found.items()
    }


def audit(model: nn.Module, world: SecretWorld) -> dict[str, float]:
    """What a model gives away, and what it is good for.

    ``exposure`` is the mean over the secrets, in bits, at most log2 of their number; ``perplexity`` is that per character of the public
    text; ``digit_mass`` is the probability of any digit where a stranger's number stands, in [0, 1]: what a number is, not which.
    """
    digits = encode("0123456789")
    found = []
    for canary in world.canaries:
        likelihoods = continuation_log_likelihoods(model, encode("\n" + canary.prefix), digits, len(canary.secret))
        found.append(exposure(likelihoods, int(canary.secret)))
    with torch.no_grad(), evaluating(model):
        nll = hard_loss(forward(model, world.public["x"]).logits, world.public).mean()
        mass = log_probs(forward(model, world.strangers["x"]).logits).exp()[..., digits].sum(dim=-1)
    return {
        "exposure": sum(found) / len(found),
        "perplexity": math.exp(float(nll)),
        "digit_mass": float(mass[world.strangers["privacy"] == 1].mean()),
    }


def encode(text: str) -> Tensor:
    """The places of characters in `ALPHABET`, int64."""
    return torch.tensor([ALPHABET.index(character) for character in text])


_BATCH = 32
_BUDGET = {"batch_size": _BATCH, "learning_rate": 4e-3}
_PRIVATE = TokenTable.of(ALPHABET)


def _rows(rows: Tensor) -> Batch:
    """A batch from characters (N, T + 1)."""
    batch: Batch = {"x": {"input_ids": rows[:, :-1]}, "y": rows[:, 1:], "id": torch.arange(len(rows))}
    return {**batch, "privacy": _PRIVATE(batch)}


def _windows(lines: Sequence[str]) -> Batch:
    """Text in windows, one after the other; what is left at the end is dropped."""
    return _rows(encode("\n".join(["", *lines])).unfold(0, _WINDOW + 1, _WINDOW))


@cache
def _lines() -> list[str]:
    """English in small letters, without anything else, in lines of at most 60 characters."""
    from pydoc_data.topics import topics  # 600 kB

    text = " ".join(topics[name] for name in sorted(topics)).lower()
    return textwrap.wrap(" ".join(re.findall("[a-z]+", text)), 60)
