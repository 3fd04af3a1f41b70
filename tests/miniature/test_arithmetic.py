"""Texts of sums, copies and differences."""

from __future__ import annotations

import pytest
import torch

from preceptor.miniature.arithmetic import CHARACTERS, accuracy, arithmetic, written


def text(ids: torch.Tensor) -> str:
    return "".join(CHARACTERS[i] for i in ids.tolist())


def test_texts_line_up_with_what_they_predict():
    batch = written([("3+4=", "7."), ("c274=", "274.")])
    assert [text(row) for row in batch["prompt"]["input_ids"]] == ["__3+4=", "_c274="]
    assert batch["prompt"]["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]]
    assert [text(row[mask]) for row, mask in zip(batch["y"], batch["mask"], strict=True)] == ["7.", "274."]
    assert torch.equal(batch["x"]["input_ids"][:, 1:], batch["y"][:, :-1])
    assert batch["x"]["position_ids"][0].tolist()[:6] == [0, 0, 0, 1, 2, 3]


def test_the_pool_and_the_tests():
    world = arithmetic(3, "smoke")
    assert torch.bincount(world.pool["task"]).tolist() == [23, 23, 4]
    prompts = [text(row).strip("_") for row in world.pool["prompt"]["input_ids"]]
    answers = [text(row[mask]) for row, mask in zip(world.pool["y"], world.pool["mask"], strict=True)]
    for prompt, answer, task in zip(prompts, answers, world.pool["task"].tolist(), strict=True):
        expected = prompt[1:-1] if task == 1 else str(eval(prompt[:-1]))
        assert answer == f"{expected}."
    for task in ("copies", "new"):
        assert not {text(row).strip("_") for row in world.tests[task]["prompt"]["input_ids"]} & set(prompts)
    again = arithmetic(3, "smoke")
    assert all(torch.equal(a, b) for a, b in zip(world.student.parameters(), again.student.parameters(), strict=True))


def test_accuracy_is_the_share_of_right_answers():
    """A student that ends every answer at once, and one that never does."""
    student = arithmetic(0, "smoke").student
    batch = written([("2+3=", "."), ("1+1=", "2."), ("4+4=", "."), ("9-1=", ".")])
    with torch.no_grad():
        student.model.norm.weight.zero_()  # hidden states are 0: all characters are equally likely
        student.lm_head = torch.nn.Linear(48, len(CHARACTERS))
        student.lm_head.bias.copy_(100.0 * (torch.arange(len(CHARACTERS)) == CHARACTERS.index(".")))
    assert accuracy(student, batch) == 0.75
    with torch.no_grad():
        student.lm_head.bias.neg_()
    assert accuracy(student, batch) == 0.0


def test_overall_weighs_the_tasks_as_the_pool_does():
    world = arithmetic(0, "smoke")
    given = iter([1.0, 0.5, 0.25])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preceptor.miniature.arithmetic.accuracy", lambda student, batch: next(given))
        found = world.accuracies(world.student)
    assert found == {"sums": 1.0, "copies": 0.5, "new": 0.25, "overall": pytest.approx(0.46 + 0.23 + 0.02)}
