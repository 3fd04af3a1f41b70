"""A reward for right answers after little dithering: mean entropies of thinking and answer.

Huang, Lu, Zhang 2025 (arXiv:2510.08026).
"""

from __future__ import annotations

import torch
from torch import Tensor

from preceptor.losses.checks import check_same_shape
from preceptor.losses.policy import sequence_means


def phase_entropies(entropies: Tensor, ids: Tensor, mask: Tensor, end_think: int | tuple[int, ...] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean entropy of the thinking and of the answer of each text; 0 for a phase without a token.

    The first end of thinking parts the two and belongs to neither; a text without one is all thinking.

    Args:
        entropies: of the prediction of each token, in nats, shape (N, T).
        ids: the tokens, same shape.
        mask: same shape, non-zero from the first to the last token of the text.
        end_think: the token that ends the thinking, or the tokens in order where it is several; None: there is none.
    Returns:
        H_think and H_answer, shape (N,), and the position k of the last token of the end of thinking, (N,), or one past the text.
    Raises:
        ValueError: shapes differ.
    """
    check_same_shape(entropies=entropies, ids=ids, mask=mask)
    counts, place = mask != 0, torch.arange(ids.shape[1], device=ids.device)
    end = () if end_think is None else (end_think,) if isinstance(end_think, int) else tuple(end_think)
    ends = torch.zeros_like(counts)
    if 0 < len(end) <= ids.shape[1]:
        windows = (ids.masked_fill(~counts, -1).unfold(1, len(end), 1) == torch.tensor(end, device=ids.device)).all(-1)
        ends[:, len(end) - 1 :] = windows
    past = (counts * (place + 1)).amax(1)
    k = torch.where(ends.any(1), ends.int().argmax(1), past)
    before = torch.where(ends.any(1), k - len(end) + 1, past)
    think, answer = counts & (place < before.unsqueeze(1)), counts & (place > k.unsqueeze(1))
    return sequence_means(entropies, think), sequence_means(entropies, answer), k


def pear_reward(
    correct: Tensor,
    think: Tensor,
    answer: Tensor,
    *,
    alpha: float = 1.0,
    right: float = 1.0,
    wrong: float = 0.0,
    floor: float | None = None,
) -> Tensor:
    """The reward of each text: min(1, s - max(0, H_think - alpha H_answer)) where it is right.

    arXiv:2510.08026, Sec. 4.

    Args:
        correct: whether the answer is right, shape (N,), bool.
        think: mean entropy of the thinking, same shape, >= 0.
        answer: mean entropy of the answer, same shape, >= 0.
        alpha: what the answer's entropy excuses; 0 counts the thinking alone, -1 both phases.
        right: s, reward of a right answer before the penalty.
        wrong: r_wrong, reward of a wrong one.
        floor: least reward of a right one; None: none.
    Returns:
        Shape (N,), at most max(1, wrong).
    Raises:
        ValueError: shapes differ.
    """
    check_same_shape(correct=correct, think=think, answer=answer)
    earned = (right - (think - alpha * answer).clamp(min=0)).clamp(max=1.0)
    if floor is not None:
        earned = earned.clamp(min=floor)
    return torch.where(correct.bool(), earned, torch.full_like(earned, wrong))
