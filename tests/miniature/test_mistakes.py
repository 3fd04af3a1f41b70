"""A student with known mistakes."""

from __future__ import annotations

import pytest
import torch

from preceptor.miniature.mistakes import CONTEXT, SYMBOLS, mistaken_world, rollout_kl
from preceptor.miniature.symbols import all_contexts
from preceptor.models.heads import head
from preceptor.models.taps import forward


def test_the_student_is_wrong_after_two_symbols_unsure_after_three_and_right_after_the_others():
    world = mistaken_world(1, "full")
    contexts = all_contexts(SYMBOLS, CONTEXT)
    teacher, student = (forward(model, {"input_ids": contexts}).logits[:, -1].detach() for model in (world.teacher, world.student))
    last = contexts[:, -1]
    wrong, unsure, right = [], [], []
    for symbol in range(SYMBOLS):
        here = last == symbol
        worst = (student[here].argmax(-1) == teacher[here].argmin(-1)).double().mean()
        spread = student[here].softmax(-1).max(-1).values.mean()
        (wrong if worst > 0.9 else unsure if spread < 0.2 else right).append(symbol)
    assert (len(wrong), len(unsure), len(right)) == (2, 3, 7)
    here = torch.isin(last, torch.tensor(right))
    assert (student[here].softmax(-1) - teacher[here].softmax(-1)).abs().mean() < 0.01


def test_worlds_depend_on_the_seed_alone():
    one, same, other = (mistaken_world(seed, "smoke") for seed in (0, 0, 1))
    for role in ("teacher", "untrained", "student"):
        weights = [head(getattr(world, role)).weight for world in (one, same, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(head(one.teacher).weight, head(one.untrained).weight)


def test_the_divergence_of_what_it_writes():
    world = mistaken_world(0, "smoke")
    assert rollout_kl(world.teacher, world.teacher, 0) == pytest.approx(0.0, abs=1e-6)
    assert rollout_kl(world.student, world.teacher, 0) > 0.1
