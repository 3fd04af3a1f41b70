"""CoMD."""

from __future__ import annotations

import torch

from preceptor.losses.hard import hard_loss
from preceptor.methods.comd import CARD, miniature
from preceptor.miniature.two_digits import QUESTIONS, TwoDigitsWorld, loop_of, truth
from preceptor.teachers.competition import CompetitiveLoop


def test_defaults_are_those_of_the_card():
    loop = CompetitiveLoop()
    assert (loop.rounds, loop.tau, loop.hard_share, loop.stop_share, loop.threshold, loop.kind_share) == (4, 1.0, 1.0, 0.05, 0.7, 0.4)
    assert CARD.slug == "comd"


def test_image_and_instruction_get_no_gradient():
    logits = torch.randn(2, 6, 5, requires_grad=True)
    mask = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1]])
    loss = hard_loss(logits, {"y": torch.randint(5, (2, 6))})
    ((loss * mask).sum() / mask.sum()).backward()
    assert logits.grad is not None
    assert (logits.grad[mask == 0] == 0).all()
    assert (logits.grad[mask == 1] != 0).any(dim=-1).all()


def test_answers_are_true():
    for name, (a, b), wanted in (
        ("left", (3, 7), 3),
        ("right", (3, 7), 7),
        ("sum", (3, 7), 10),
        ("difference", (3, 7), 4),
        ("largest", (3, 7), 7),
        ("smallest", (3, 7), 3),
        ("even", (3, 7), 0),
        ("ten", (3, 7), 1),
    ):
        assert QUESTIONS[name][1](a, b) == wanted
    assert len(QUESTIONS) == 8


def test_what_is_like_an_item_has_its_answer_on_other_images():
    world = TwoDigitsWorld(0, "smoke")
    for item in world.pool[:20]:
        near = world.like(item, 3, True)
        assert {(other.kind, truth(other)) for other in near} == {(item.kind, truth(item))}
        assert any(other.image != item.image for other in near)
    assert len({item.kind for item in world.like(world.pool[0], 50, False)}) > 4


def test_images_of_the_test_are_in_no_training():
    world = TwoDigitsWorld(0, "smoke")
    tested = {row for item in world.test for row in item.image}
    for report in world.compete(loop_of("smoke")):
        assert not tested & {row for item in report.trained for row in item.image}


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-teacher", "random", "half", "comd"}
    assert run == miniature(1, "smoke")
