"""Sentences of an answer: where they are, how likely each is under a model, and what that says about where it came from.

Sentences are numbered from 0. Per token their numbers have shape (N, T), int64, with -1 for a token that is in none (padding, a prompt).
Where Did This Sentence Come From?, 2025 (arXiv:2512.20908); how to cut and all thresholds are ours, since the paper prints none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from preceptor.losses.checks import check_same_shape

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

KINDS = ("teacher", "student", "shared", "boosted", "other")
"""Where a sentence comes from, see `sentence_kinds`."""

_END = re.compile(r"[.?!]\s+|\n\s*")


def sentences(text: str, *offsets: ArrayLike, shortest: int = 3) -> list[tuple[int, int]]:
    """Cut a text into sentences that tile it.

    A sentence ends by ``.``, ``?`` or ``!`` with white space after it, or by a line break; the white space belongs to it. One with fewer
    than ``shortest`` tokens joins the one before it, the first one that after it.

    Args:
        text: without a character it has no sentence.
        offsets: for each tokenizer whose tokens are to be counted (begin, end) of its tokens in characters, shape (T, 2), begin < end.
        shortest: tokens of each tokenizer, at least 1.

    Returns:
        (begin, end) of each sentence, in characters.
    """
    ends = [match.end() for match in _END.finditer(text) if match.end() < len(text)] + [len(text)] * bool(text)
    counts = [np.bincount(sentences_of_tokens(side, ends), minlength=len(ends)) for side in offsets]
    groups = _join_short(np.stack([*counts, np.full(len(ends), shortest)], axis=1), shortest)
    kept = list(dict(zip(groups, ends, strict=True)).values())  # of each group the last end
    return list(zip([0, *kept], kept, strict=False))


def sentences_of_tokens(offsets: ArrayLike, ends: Sequence[int]) -> NDArray[np.int64]:
    """The sentence of each token of a text: the one that holds its last character.

    Args:
        offsets: (begin, end) of each token, in characters, shape (T, 2), begin < end.
        ends: of the sentences, rising.

    Returns:
        Shape (T,).
    """
    return np.searchsorted(np.asarray(ends), np.asarray(offsets).reshape(-1, 2)[:, 1] - 1, side="right").astype(np.int64)


def sentence_numbers(ids: Tensor, mask: Tensor, ends: Collection[int] = (), *, shortest: int = 3) -> Tensor:
    """Sentences by their tokens alone: one ends after each run of tokens out of ``ends``.

    Args:
        ids: shape (N, T), int64.
        mask: the tokens that count, shape (N, T).
        ends: ids of tokens that end a sentence; none: each row is one sentence.
        shortest: tokens of a sentence; a shorter one joins the one before it, the first one that after it.

    Returns:
        Numbers, shape (N, T).
    """
    numbers = torch.full_like(ids, -1)
    for row, counts in enumerate(mask.bool()):
        place = counts.nonzero().squeeze(1)
        if not len(place):
            continue
        closes = np.array([token in ends for token in ids[row, place].tolist()])
        parts = np.concatenate([[0], np.cumsum(closes[:-1] & ~closes[1:])])
        groups = _join_short(np.bincount(parts)[:, None], shortest)
        numbers[row, place] = torch.tensor(groups, device=ids.device)[torch.from_numpy(parts).to(ids.device)]
    return numbers


def _join_short(counts: NDArray[np.int64], shortest: int) -> list[int]:
    """Number of the sentence that each fragment joins, from its tokens (fragments, tokenizers)."""
    groups: list[int] = []
    total = np.zeros(counts.shape[1], dtype=np.int64)
    for count in counts:
        opens = not groups or ((count >= shortest).all() and (total >= shortest).all())
        groups.append((groups[-1] if groups else -1) + int(opens))
        total = count if opens else total + count
    return groups


def sentence_probabilities(log_probs: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """How likely a model finds each sentence: the geometric mean of the probabilities of its tokens.

        p_M(u) = exp((1 / |u|_M) sum_{t in u} log p_M(y_t | x, y_<t)),
    with |u|_M counted in the model's own tokens, so that models with different tokenizers can be compared.

    Args:
        log_probs: of each token, shape (N, T), in nats.
        numbers: shape (N, T).

    Returns:
        Probabilities, shape (N, S), in [0, 1], and tokens, shape (N, S); both 0 where a row has fewer sentences.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(log_probs=log_probs, numbers=numbers)
    size = max(int(numbers.max()) + 1, 1) if numbers.numel() else 1
    index = torch.where(numbers < 0, size, numbers)
    sums, tokens = (
        values.new_zeros(len(numbers), size + 1).scatter_add(1, index, values)[:, :size] for values in (log_probs, torch.ones_like(numbers))
    )
    return torch.where(tokens > 0, (sums / tokens.clamp(min=1)).exp(), 0.0), tokens


def divergence_score(teacher: Tensor, student: Tensor, tokens: Tensor, *, by_tokens: bool = False) -> Tensor:
    """How much better the teacher likes an answer than the student, sentence by sentence.

        g = sum_u w_u (p_T(u) - p_S(u)) / sum_u w_u.

    Args:
        teacher: probabilities of sentences under the teacher, shape (N, S).
        student: under the student before training, same shape.
        tokens: in each sentence, same shape; 0 where an answer has no such sentence.
        by_tokens: weigh sentences by their tokens instead of alike.

    Returns:
        Shape (N,), in [-1, 1]; 0 without a sentence, and where student = teacher.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(teacher=teacher, student=student, tokens=tokens)
    weights = (tokens if by_tokens else tokens > 0).to(teacher.dtype)
    return (weights * (teacher - student)).sum(dim=-1) / weights.sum(dim=-1).clamp(min=1)


def sentence_kinds(teacher: Tensor, student: Tensor, trained: Tensor, *, gap: float = 0.1) -> Tensor:
    """Where sentences come from, by their probabilities under the teacher, the student before and the student after training.

    ``teacher``: p_T - p_S > gap. ``student``: p_S - p_T > gap. Else, with p_T and p_S alike, ``shared`` where the trained student is within
    the gap of both, ``boosted`` where it is far from both, ``other`` between.

    Args:
        teacher: p_T, any shape.
        student: p_S, the same shape.
        trained: p_D, the same shape.
        gap: kappa, in [0, 1].

    Returns:
        Numbers of `KINDS`, of that shape.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(teacher=teacher, student=student, trained=trained)
    far = [(trained - side).abs() > gap for side in (teacher, student)]
    kinds = torch.full_like(teacher, KINDS.index("other"), dtype=torch.int64)
    kinds[~far[0] & ~far[1]] = KINDS.index("shared")
    kinds[far[0] & far[1]] = KINDS.index("boosted")
    kinds[student - teacher > gap] = KINDS.index("student")
    kinds[teacher - student > gap] = KINDS.index("teacher")
    return kinds


def kind_area(kinds: Tensor, correct: Tensor, kind: str, *, least: int = 5) -> float:
    """How differently correct and incorrect answers are made: the area between their curves of the share of one kind by position.

    Args:
        kinds: numbers of `KINDS`, shape (N, S), -1 where an answer has no such sentence.
        correct: whether each answer is right, shape (N,), bool.
        kind: one of `KINDS`.
        least: answers of both sorts at a position that counts, at least 1.

    Returns:
        Sum over positions of the absolute difference, in sentences, >= 0.
    """
    present = kinds >= 0
    sides = [present & correct[:, None], present & ~correct[:, None]]
    enough = (sides[0].sum(0) >= least) & (sides[1].sum(0) >= least)
    shares = [((kinds == KINDS.index(kind)) & side).sum(0) / side.sum(0).clamp(min=1) for side in sides]
    return float((shares[0] - shares[1]).abs()[enough].sum())
