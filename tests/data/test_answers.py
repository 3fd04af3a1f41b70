"""Answers that the student begins and the teacher ends."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from preceptor.data.answers import best_answers, mixed_answers, repeats, usable
from preceptor.data.rollout import Completions, Prompt

STOP = 1


def completions(*rows: list[int]) -> Completions:
    """Answers; one that ends by `STOP` is finished."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    finished = torch.tensor([row[-1] == STOP for row in rows])
    return Completions(ids=ids, mask=mask, log_probs=torch.zeros(ids.shape), finished=finished)


@dataclasses.dataclass
class Told:
    """Writes what it was told, and remembers what it was asked."""

    said: Completions
    asked: list[tuple[Prompt, dict]] = dataclasses.field(default_factory=list)

    def sample(self, prompt: Prompt, **options: object) -> Completions:
        self.asked.append((prompt, options))
        return self.said


PROMPT = {"input_ids": torch.tensor([[0, 7], [8, 9], [0, 6]]), "attention_mask": torch.tensor([[0, 1], [1, 1], [0, 1]])}
REFERENCES = completions([20, 21, 22, STOP], [23, STOP], [24, 25, 26, STOP])


def read(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[counts.bool()].tolist() for row, counts in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_who_wrote_what(seed):
    # limits 6, 3, 6: the first goes past it, the second too, the third ends in time
    student = Told(completions([30, 31, 32, 33, 34, 35], [36, 37, 38, 39, 40, 41], [42, 43, STOP]))
    teacher = Told(completions([50, 51, STOP], [52], [53, 54, STOP]))
    mixed = mixed_answers(PROMPT, REFERENCES, student=student, teacher=teacher, max_new_tokens=9, temperature=0.7, seed=seed)
    assert student.asked[0][1]["max_new_tokens"] == 6
    assert student.asked[0][1]["temperature"] == 1.0
    begun = mixed.begun.tolist()
    assert 3 <= begun[0] <= 5  # of six tokens: the second half, and not the last
    assert begun[1] == 2  # of three
    assert begun[2] == 0
    written = read(mixed.completions.ids, mixed.completions.mask)
    assert written == [[*range(30, 30 + begun[0]), 50, 51, STOP], [36, 37, 52], [24, 25, 26, STOP]]
    assert mixed.completions.finished.tolist() == [True, False, True]
    prompt, options = teacher.asked[0]
    assert (options["max_new_tokens"], options["temperature"]) == (9, 0.7)
    assert read(prompt["input_ids"], prompt["attention_mask"]) == [[7, *written[0][: begun[0]]], [8, 9, 36, 37], [6]]
    assert prompt["attention_mask"][:, -1].all()  # padded on the left
    assert (mixed.completions.mask.long().diff(dim=1) <= 0).all()  # and the answers on the right


def test_every_place_of_the_second_half_is_cut():
    student, teacher = Told(completions([30] * 6, [36] * 6, [42] * 6)), Told(completions([STOP], [STOP], [STOP]))
    found = [mixed_answers(PROMPT, REFERENCES, student=student, teacher=teacher, max_new_tokens=9, seed=seed).begun for seed in range(60)]
    begun = torch.stack(found)
    assert [sorted(set(column.tolist())) for column in begun.T] == [[3, 4, 5], [2], [3, 4, 5]]
    again = mixed_answers(PROMPT, REFERENCES, student=student, teacher=teacher, max_new_tokens=9, seed=7)
    assert torch.equal(again.begun, begun[7])


def test_an_end_just_at_the_limit_is_an_end():
    student = Told(completions([30, 31, 32, 33, 34, STOP], [36, 37, STOP], [42, 43, 44, 45, 46, 47]))
    teacher = Told(completions([50, STOP], [51, STOP], [52, STOP]))
    mixed = mixed_answers(PROMPT, REFERENCES, student=student, teacher=teacher, max_new_tokens=9, seed=0)
    assert (mixed.begun > 0).tolist() == [False, False, True]


def test_nobody_goes_past_the_limit():
    student = Told(completions([30, STOP], [36, STOP], [42, STOP]))
    mixed = mixed_answers(PROMPT, REFERENCES, student=student, teacher=Told(completions([5], [5], [5])), max_new_tokens=9, seed=0)
    assert read(mixed.completions.ids, mixed.completions.mask) == read(REFERENCES.ids, REFERENCES.mask)


def test_repetition():
    assert not repeats(list(range(100)))
    assert not repeats([1, 2, 3] * 8)
    assert not repeats([5] * 31)
    assert repeats([5] * 32)
    assert repeats([1, 2, 3] * 12)
    assert not repeats(list(range(8)) * 3)
    assert repeats(list(range(8)) * 4)
    assert repeats(list(range(20)) * 4)  # longer runs hold shorter ones
    assert not repeats([])


def test_usable():
    said = completions([*range(2, 20), STOP], [2, 3], [2, 3] * 16 + [STOP], [STOP])
    assert usable({}, said).tolist() == [True, False, False, True]


def test_the_best_of_the_accepted_are_chosen():
    scores = torch.tensor([[0.1, 0.5, 0.3, 0.5], [0.9, 0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4]])
    accepted = torch.tensor([[True] * 4, [False, True, True, True], [False, False, True, False]])
    places, passed = best_answers(scores, accepted, 2)
    assert places[:2].tolist() == [[1, 3], [3, 2]]  # of equal ones the first; never one that is filtered
    assert places[2, 0] == 2
    assert passed.tolist() == [[True, True], [True, True], [True, False]]
    places, passed = best_answers(scores, torch.ones_like(accepted), 4)
    assert places.sort(1).values.tolist() == [[0, 1, 2, 3]] * 3  # n = k keeps everything
    assert passed.all()
