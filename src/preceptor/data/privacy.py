"""Which tokens are private, secrets planted on purpose to audit a model, and noise that hides what a teacher says.

A privacy score is a number in [0, 1] for each item, 1 for certainly private. In language models it is the score of the token that a
position is to predict, not of the one that it reads: of ``y``, not of ``input_ids``.
"""

from __future__ import annotations

import math
import pkgutil
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from preceptor.core.types import Batch
from preceptor.data.hashing import hash_ids, uniform
from preceptor.losses.checks import check_choice, check_counts, check_same_shape
from preceptor.losses.shielded import check_scores

Detector = Callable[[Batch], Tensor]
"""Privacy scores of a batch, shaped like its ``y``."""

PATTERNS: Mapping[str, float] = {
    r"\d": 1.0,  # numbers of accounts, telephones, houses; dates
    r"[\w.+-]+@[\w-]+\.\w[\w.]*": 1.0,  # e-mail addresses
    r"\b(?=\w*\d)[\w-]{16,}\b": 1.0,  # keys and tokens: long, with a digit
}
"""Regular expression -> score of what it finds."""

Noise = Literal["laplace", "gaussian"]
"""Shape of noise."""


def regex_privacy_score(texts: Sequence[str], offsets: Tensor | Sequence[object], patterns: Mapping[str, float] = PATTERNS) -> Tensor:
    """Privacy scores of tokens by regular expressions; every piece of a word has the highest score of its pieces.

    A word is what stands between white space, so that "(pin:1234)" is private as a whole. A token that touches several words has the
    highest of their scores.

    Args:
        texts: N of them.
        offsets: (N, T, 2), first character of each token and the one behind its last, as tokenizers return; (0, 0) for padding.
        patterns: see `PATTERNS`.
    Returns:
        float32 (N, T), in [0, 1]; 0 for a token without characters.
    Raises:
        ValueError: offsets of another shape or outside a text, or a score outside [0, 1].
    """
    places = torch.as_tensor(offsets)
    if places.ndim != 3 or places.shape[0] != len(texts) or places.shape[2] != 2:
        raise ValueError(f"offsets: expected shape ({len(texts)}, tokens, 2), got {tuple(places.shape)}")
    scores = torch.zeros(places.shape[:2])
    for row, (text, spans) in enumerate(zip(texts, places.tolist(), strict=True)):
        by_character = _by_character(text, patterns)
        for column, (start, stop) in enumerate(spans):
            if not 0 <= start <= stop <= len(text):
                raise ValueError(f"offsets: expected places in text {row} of {len(text)} characters, got ({start}, {stop})")
            scores[row, column] = max(by_character[start:stop], default=0.0)
    return scores


def _by_character(text: str, patterns: Mapping[str, float]) -> list[float]:
    """The score of each character, raised to the highest of its word."""
    scores = [0.0] * len(text)
    for pattern, score in patterns.items():
        if not 0 <= score <= 1:
            raise ValueError(f"patterns: expected scores in [0, 1], got {score} for {pattern!r}")
        for found in re.finditer(pattern, text):
            scores[found.start() : found.end()] = [max(score, old) for old in scores[found.start() : found.end()]]
    for word in re.finditer(r"\S+", text):
        scores[word.start() : word.end()] = [max(scores[word.start() : word.end()])] * len(word.group())
    return scores


def find_detector(detector: Detector | str | None) -> Detector | None:
    """What a recipe calls "module:name"; anything else is returned as it is.

    Raises:
        ValueError: nothing of that name, or nothing to call.
    """
    if not isinstance(detector, str):
        return detector
    try:
        found: Any = pkgutil.resolve_name(detector)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not callable(found):
        raise ValueError(f"detector: expected module:name of a function of batches, got {detector!r}")
    return cast(Detector, found)


def privacy_scores(batch: Batch, detector: Detector | str | None) -> Tensor:
    """The scores that a batch brings as ``privacy``, else those of the detector.

    Returns:
        Shaped like ``y``, in [0, 1], float32 or float64.
    Raises:
        ValueError: neither is there, or scores of another shape or outside [0, 1].
    """
    if "privacy" in batch:
        scores = batch["privacy"]
    elif callable(detector):
        scores = detector(batch)
    else:
        raise ValueError("privacy: expected scores in the batch or a detector, got neither")
    check_same_shape(y=batch["y"], privacy=scores)
    check_scores(scores)
    return scores if scores.dtype == torch.double else scores.float()


@dataclass(frozen=True, eq=False)
class TokenTable:
    """A `Detector` that knows tokens one by one: the score of each entry of a vocabulary.

    It cannot see a word that is private as a whole: where tokens are pieces, score the texts and bring ``batch["privacy"]``.

    Args:
        scores: (V,), in [0, 1].
    """

    scores: Tensor

    @classmethod
    def of(cls, pieces: Sequence[str], patterns: Mapping[str, float] = PATTERNS) -> TokenTable:
        """The table of a vocabulary by the strings of its tokens.

        Raises:
            ValueError: a score outside [0, 1].
        """
        return cls(torch.tensor([max(_by_character(piece, patterns), default=0.0) for piece in pieces]))

    def __call__(self, batch: Batch) -> Tensor:
        """The scores of ``y``."""
        return self.scores.to(batch["y"].device)[batch["y"]]


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A secret in a text: ``prefix`` stands before it, ``secret`` is its decimal digits."""

    prefix: str
    secret: str


def plant_canaries(
    corpus: Sequence[str], template: str, n: int, repeats: int, seed: int, *, digits: int = 4
) -> tuple[list[str], tuple[Canary, ...]]:
    """Insert lines with random secrets at random places of a corpus, to see later whether a model gives the secrets away.

    Carlini, Liu, Erlingsson, Kos, Song 2018, The Secret Sharer (arXiv:1802.08232), Sec. 4.1. With ``repeats=1`` they are decoys.

    Args:
        corpus: lines.
        template: a line with ``{name}``, which becomes six random letters, different for each canary, and at the end ``{secret}``.
        n: number of canaries.
        repeats: how often each is inserted.
        seed: of names, secrets and places.
        digits: of a secret, each uniform.
    Returns:
        The new corpus, and what was planted.
    Raises:
        ValueError: a number below 1, or a template without a name or that does not end with the secret.
    """
    check_counts(n=n, repeats=repeats, digits=digits)
    if "{name}" not in template or not template.endswith("{secret}"):
        raise ValueError(f"template: expected {{name}} in it and {{secret}} at its end, got {template!r}")
    draw = random.Random(seed)
    names: list[str] = []
    while len(names) < n:
        name = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6))
        names += [name] * (name not in names)
    before = template.removesuffix("{secret}")
    canaries = tuple(Canary(prefix=before.replace("{name}", name), secret="".join(draw.choices("0123456789", k=digits))) for name in names)
    planted = list(corpus)
    for canary in canaries:
        for _ in range(repeats):
            planted.insert(draw.randint(0, len(planted)), canary.prefix + canary.secret)
    return planted, canaries


def item_seeds(ids: Tensor, shape: Sequence[int], *keys: int) -> Tensor:
    """A seed for every item, by its example and its position alone, whatever batch it stands in.

    Args:
        ids: numbers of the examples, int64 (N,).
        shape: of the items, (N, ...).
        keys: further integers, such as the seed of a run and the number of a step.
    Returns:
        int64 of this shape.
    """
    first = hash_ids(ids, *keys).reshape(-1, *[1] * (len(shape) - 1))
    places = torch.arange(math.prod(shape[1:]), device=ids.device)
    return hash_ids(first + places.view(1, *shape[1:]))


def seeded_noise(seeds: Tensor, classes: int, kind: Noise = "laplace") -> Tensor:
    """Independent noise of scale 1 for every class of every item, from the item's seed alone.

    By inverse distribution functions of u in [2^-54, 1 - 2^-53], so that no value is infinite:
        laplace: log(2 u) below u = 1/2, -log(2 (1 - u)) above, variance 2;   gaussian: variance 1.

    Args:
        seeds: int64 (...), see `item_seeds`.
        classes: C; a smaller number gives the first of a larger one's.
        kind: see `Noise`.
    Returns:
        float64 (..., C).
    Raises:
        ValueError: an unknown kind.
    """
    check_choice(Noise, kind=kind)
    u = uniform(seeds.unsqueeze(-1) + torch.arange(classes, device=seeds.device)).clamp_min(2.0**-54)
    if kind == "gaussian":
        return torch.special.ndtri(u)
    return torch.where(u < 0.5, torch.log(2 * u), -torch.log(2 * (1 - u)))
