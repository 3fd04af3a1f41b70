"""Answers of one writer, of two, and which answers are fit to be learnt from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.state import State
from preceptor.core.types import Batch
from preceptor.data.rollout import Completer, Completions, Prompt, Sampler, roll_out


def written_answers(
    model: nn.Module, prompt: Prompt, *, answers: int = 1, max_new_tokens: int, seed: int, sampler: Sampler | None = None
) -> Batch:
    """Texts of a model: fixed answers of a teacher to train on, or those on which two models are compared.

    Args:
        model: who writes.
        prompt: (N, P), padded on the left.
        answers: G for each prompt, next to each other.
        max_new_tokens: at least 1.
        seed: of the draws; the same gives the same texts.
        sampler: how; None: generate of transformers.
    Returns:
        N * G rows of `preceptor.data.rollout.language_batch`, with ``prompt``, ``id`` (the prompt's number) and ``finished`` (bool).
    """
    asked = {"prompt": prompt, "id": torch.arange(len(prompt["input_ids"]))}
    state = State(total_steps=1, seed=seed)
    texts, repeated, completions = roll_out(asked, model, state, sampler=sampler, answers=answers, max_new_tokens=max_new_tokens)
    return {**texts, "prompt": repeated["prompt"], "finished": completions.finished}


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """N answers, some of them begun by the student and ended by the teacher."""

    completions: Completions  # the whole answers
    begun: Tensor  # (N,), int64: tokens that the student wrote, 0 where the answer is the teacher's alone


def mixed_answers(
    prompt: Prompt,
    references: Completions,
    *,
    student: Completer,
    teacher: Completer,
    ratio: float = 1.5,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int,
) -> Mixed:
    """Let the student begin answers and the teacher end those that the student would not.

    The student answers up to L = floor(ratio * tokens of the reference). Where it comes to an end within L the reference stays. Else, with
    s tokens written, the answer is cut at c, uniform in {ceil(s / 2), ..., s - 1}, and the teacher goes on from prompt and c tokens.

    Args:
        prompt: (N, P).
        references: answers of the teacher.
        student: draws at temperature 1.
        teacher: goes on.
        ratio: > 0.
        max_new_tokens: of the teacher, after the cut.
        temperature: of the teacher, > 0.
        seed: of all draws.
    """
    limits = (ratio * references.mask.sum(1)).long()
    written = student.sample(prompt, max_new_tokens=max(int(limits.max()), 1), temperature=1.0, top_p=1.0, seed=seed)
    length = written.mask.sum(1)
    size = torch.minimum(length, limits)
    endless = ~(written.finished & (length <= limits)) & (size >= 2)
    draws = torch.rand(len(size), generator=torch.Generator().manual_seed(seed)).to(size.device)
    begun = torch.where(endless, (size + 1) // 2 + (draws * (size // 2)).long(), 0)
    prefix = torch.arange(written.ids.shape[1], device=begun.device) < begun.unsqueeze(1)
    longer_ids, longer_mask = _packed(
        torch.cat([prompt["input_ids"], written.ids], dim=1), torch.cat([prompt["attention_mask"].bool(), prefix], dim=1), left=True
    )
    continued = teacher.sample(
        {"input_ids": longer_ids, "attention_mask": longer_mask.long()},
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=1.0,
        seed=seed + 1,
    )
    ids = torch.cat([written.ids, continued.ids], dim=1)
    mask = torch.cat([prefix, continued.mask], dim=1)
    width = max(ids.shape[1], references.ids.shape[1])
    ids, mask, known_ids, known_mask = (F.pad(t, (0, width - t.shape[1])) for t in (ids, mask, references.ids, references.mask))
    ids, mask = _packed(torch.where(endless[:, None], ids, known_ids), torch.where(endless[:, None], mask, known_mask), left=False)
    finished = torch.where(endless, continued.finished, references.finished)
    nothing = torch.zeros(ids.shape, device=ids.device)
    return Mixed(completions=Completions(ids=ids, mask=mask, log_probs=nothing, finished=finished), begun=begun)


def _packed(ids: Tensor, mask: Tensor, *, left: bool) -> tuple[Tensor, Tensor]:
    """Move the padding of each row to one side, and drop columns that are nothing else."""
    order = (mask if left else ~mask).long().argsort(dim=1, stable=True)
    ids, mask = ids.gather(1, order), mask.gather(1, order)
    used = mask.any(dim=0)
    return ids[:, used], mask[:, used]


Accept = Callable[[Batch, Completions], Tensor]
"""Filters answers: from the batch of prompts, each row as often as it was answered, and N answers to (N,), bool."""


def usable(batch: Batch, completions: Completions) -> Tensor:
    """Answers that came to an end and do not repeat themselves."""
    rows = zip(completions.ids, completions.mask.bool(), strict=True)
    looping = torch.tensor([repeats(ids[mask].tolist()) for ids, mask in rows], device=completions.ids.device)
    return completions.finished & ~looping


def repeats(tokens: Sequence[int], *, size: int = 8, most: int = 3) -> bool:
    """Whether some ``size`` tokens stand in a text more than ``most`` times, side by side or apart, not one over the other.

    More tokens than ``size`` repeat only where these do. Short repetitions, such as a few equal digits, are none.
    """
    seen: dict[tuple[int, ...], tuple[int, int]] = {}
    for start in range(len(tokens) - size + 1):
        run = tuple(tokens[start : start + size])
        count, end = seen.get(run, (0, 0))
        if start >= end:
            seen[run] = (count + 1, start + size)
    return max((count for count, _ in seen.values()), default=0) > most


def best_answers(scores: Tensor, accepted: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The answers of each prompt with the largest scores among those that passed the filters; of equal ones the first.

    Args:
        scores: shape (N, n).
        accepted: shape (N, n), bool.
        kept: k, in [1, n].

    Returns:
        Their places, (N, k), and whether each passed: a prompt with fewer than k that did gets others, marked False.
    """
    order = scores.masked_fill(~accepted, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :kept]
    return order, accepted.gather(1, order)
