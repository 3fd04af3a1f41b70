"""Two small students for a multiple-choice bank of fractions: one compares words, one is a network, both learn from a teacher's answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch, Roles, Signal, Terms
from preceptor.education.multiple_choice import NONE, Item

_WIDTH, _LEARNING_RATE, _UPDATES = 32, 0.01, 300


@dataclass(frozen=True, kw_only=True)
class Choosing(Method):
    """Cross-entropy of the option that the teacher chose, ``y`` (N,), from features of the options, ``x`` (N, K, D)."""

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """(N,), in nats."""
        return {"ce": F.cross_entropy(roles["student"](batch["x"])[..., 0], batch["y"], reduction="none")}


def word_overlap(taught: Sequence[Item], chosen: Sequence[int], asked: Sequence[Item]) -> list[int]:
    """The option that, with its question, shares most words with a question that was taught and its answer; of equal ones the first.

    Args:
        taught: N items.
        chosen: the teacher's option of each; an item with `NONE` teaches nothing.
        asked: M items.
    Returns:
        M options.
    """
    known = [_words(f"{item.question} {item.options[at]}") for item, at in zip(taught, chosen, strict=True) if at != NONE]
    found = []
    for item in asked:
        shared = [max((len(_words(f"{item.question} {option}") & words) for words in known), default=0) for option in item.options]
        found.append(shared.index(max(shared)))
    return found


def network(taught: Sequence[Item], chosen: Sequence[int], asked: Sequence[Item], *, seed: int, updates: int = _UPDATES) -> list[int]:
    """The option that a network scores highest, which saw the logarithms of the numbers in question and option.

    Args:
        taught, chosen, asked: see `word_overlap`; all items with the same number of options, two numbers in each question and option.
        seed: of its first weights.
        updates: each on everything that was taught; 0 leaves the first weights.
    """
    rows = [i for i, at in enumerate(chosen) if at != NONE]
    x = _logs([taught[i] for i in rows])
    centre, scale = x.mean((0, 1)), x.std((0, 1))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = nn.Sequential(nn.Linear(4, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, 1))
    if updates:
        batch = {"x": (x - centre) / scale, "y": torch.tensor([chosen[i] for i in rows]), "id": torch.arange(len(rows))}
        train(Choosing(), {"student": student}, [batch], torch.optim.AdamW(student.parameters(), lr=_LEARNING_RATE), steps=updates)
    with torch.no_grad():
        return student((_logs(asked) - centre) / scale)[..., 0].argmax(1).tolist()


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _logs(items: Sequence[Item]) -> Tensor:
    """(N, K, 4): of a question a/b and an option c/d the logarithms of a, b, c and d."""
    rows = [[[*re.findall(r"\d+", item.question), *re.findall(r"\d+", option)] for option in item.options] for item in items]
    return torch.from_numpy(np.log(np.array(rows, dtype=np.float32)))
