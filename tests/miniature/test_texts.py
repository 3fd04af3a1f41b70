"""The world of English between two tokenizers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from preceptor.methods.alm import ALM
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.texts import bits_per_byte, learning_curve, text_world


class Uniform(nn.Module):
    def forward(self, input_ids: Tensor, **_: object) -> Tensor:
        return torch.zeros(*input_ids.shape, 258)


def test_windows_in_both_vocabularies():
    world, again, other = (text_world(seed, "smoke", windows=7) for seed in (3, 3, 4))
    assert torch.equal(world.train["y"], again.train["y"])
    assert not torch.equal(world.train["y"], other.train["y"])
    assert torch.equal(world.test["y"], other.test["y"])
    assert world.train["y"].shape[0] == len(world.train["id"]) == 7
    assert (world.train["mask"].sum(1) >= 100).all()  # bytes of 100 characters
    spans = world.train["spans"]
    assert torch.equal(spans.amax(1)[:, 3] - 1, world.train["mask"].sum(1).long())
    assert torch.equal(spans.amax(1)[:, 1] - 1, world.train["teacher_mask"].sum(1).long())
    vocabulary = world.teacher(**world.train["teacher_x"]).logits.shape[-1]
    assert vocabulary == world.untrained(**world.train["teacher_x"]).logits.shape[-1] == 457
    for one, two in zip(world.student().parameters(), again.student().parameters(), strict=True):
        assert torch.equal(one, two)


def test_bits_of_a_student_that_knows_nothing():
    world = text_world(0, "smoke", windows=3)
    assert math.isclose(bits_per_byte(Uniform(), world.test), math.log2(258), rel_tol=1e-5)


def test_learning_curves():
    world = text_world(0, "smoke", windows=6)
    before = bits_per_byte(world.student(), world.test)
    curve = learning_curve(CrossEntropy(), world, None, steps=9, every=3, batch_size=4, seed=1)
    assert len(curve) == 3
    assert curve[-1] < before
    assert curve == learning_curve(CrossEntropy(), world, None, steps=9, every=3, batch_size=4, seed=1)
    assert len(learning_curve(ALM(), world, world.teacher, steps=4, every=2, batch_size=4, seed=1)) == 2
