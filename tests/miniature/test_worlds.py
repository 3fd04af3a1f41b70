"""Shared worlds: reproducible, fair to all arms, and hard enough that a teacher helps."""

import copy

import pytest
import torch
from torch import nn

from preceptor.core.method import Method
from preceptor.core.run import fingerprint
from preceptor.data.splits import check_disjoint
from preceptor.losses.hard import hard_loss
from preceptor.miniature.worlds import blobs_world, fit, measure, mnist_world, side_by_side
from preceptor.models.taps import forward


class Labels(Method):
    """Cross-entropy."""

    def loss(self, batch, signal, roles, state):
        return {"hard": hard_loss(forward(roles["student"], batch["x"]).logits, batch)}


class Match(Method):
    """Squared distance to the teacher's logits."""

    def signal(self, batch, roles, state):
        return {"logits": forward(roles["teacher"], batch["x"]).logits}

    def loss(self, batch, signal, roles, state):
        return {"match": (forward(roles["student"], batch["x"]).logits - signal["logits"]).square().mean(dim=1)}


@pytest.fixture(scope="module")
def world():
    return blobs_world(3)


def test_a_seed_gives_the_same_world_and_another_seed_another(world):
    again, other = blobs_world(3), blobs_world(4)
    everything = torch.arange(len(world.train))
    assert torch.equal(world.train.batch(everything)["x"], again.train.batch(everything)["x"])
    assert fingerprint(world.teacher) == fingerprint(again.teacher) != fingerprint(other.teacher)
    assert fingerprint(world.student()) == fingerprint(again.student()) != fingerprint(other.student())
    assert not torch.equal(world.train.batch(everything)["x"], other.train.batch(everything)["x"])


def test_parts_are_disjoint_and_the_small_training_part_lies_in_the_teacher_s(world):
    check_disjoint({"train": world.train, "valid": world.valid, "test": world.test})
    assert (len(world.train), len(world.valid), len(world.test)) == (80, 500, 1500)
    assert world.train.labels.bincount().min() >= 5
    assert int(world.train.ids.max()) < 2000
    assert len(blobs_world(3, train_examples=300).train) == 300


def test_the_teacher_is_good_and_the_untrained_one_is_not(world):
    assert measure(world.teacher, world)["accuracy"] > 0.85
    assert measure(world.untrained, world)["accuracy"] < 0.35
    assert measure(world.teacher, world)["agreement"] == 1.0
    assert [p.shape for p in world.teacher.parameters()] == [p.shape for p in world.untrained.parameters()]


def test_students_are_new_objects_with_equal_weights(world):
    first, second = world.student(), world.student()
    assert fingerprint(first) == fingerprint(second)
    with torch.no_grad():
        next(first.parameters()).add_(1)
    assert fingerprint(first) != fingerprint(second)


def test_arms_have_equal_budget_and_the_teacher_is_untouched(world):
    before = fingerprint(world.teacher)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    arms = {"one": (Labels(), None), "two": (Labels(), None), "match": (Match(), world.teacher)}
    result = side_by_side(world, arms, steps=60, batch_size=40, learning_rate=1e-2, seed=3)
    assert torch.equal(torch.rand(3), expected)  # the caller's random numbers are not disturbed
    assert result["one"] == result["two"]
    assert min(arm["accuracy"] for arm in result.values()) > 0.4
    assert result["match"]["agreement"] > result["one"]["agreement"]
    assert result == side_by_side(world, arms, steps=60, batch_size=40, learning_rate=1e-2, seed=3)
    assert fingerprint(world.teacher) == before


def test_fit_does_the_updates_of_plain_adam(world):
    student = world.student()
    twin = copy.deepcopy(student)
    fit(Labels(), {"student": student}, world.train, steps=3, batch_size=len(world.train), learning_rate=1e-2, seed=0)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    batch = world.train.batch(torch.arange(len(world.train)))
    for _ in range(3):  # one batch is the whole set, so its order matters to rounding only
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(batch["x"]), batch["y"]).backward()
        optimizer.step()
    for ours, theirs in zip(student.parameters(), twin.parameters(), strict=True):
        # Adam's first steps divide a gradient by its own size: rounding of tiny gradients grows
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_fit_adds_the_networks_of_the_method_and_keeps_the_user_s(world):
    seen = []

    class Projected(Labels):
        def extra_roles(self, roles, batch):
            assert len(batch["y"]) == 50
            return {"projector": nn.Linear(8, 8), "student": nn.Linear(1, 1)}

        def loss(self, batch, signal, roles, state):
            seen.append(roles["projector"])
            return {"hard": hard_loss(roles["projector"](forward(roles["student"], batch["x"]).logits), batch)}

    student = world.student()
    before = fingerprint(student)
    fit(Projected(), {"student": student}, world.train, steps=2)
    assert len(seen) == 2
    assert fingerprint(student) != before


def test_real_digits():
    world, other = mnist_world(0), mnist_world(1)
    check_disjoint({"train": world.train, "valid": world.valid, "test": world.test})
    assert [len(part) for part in (world.train, world.valid, world.test)] == [300, 300, 2000]
    assert measure(world.teacher, world)["accuracy"] > 0.9
    assert fingerprint(world.teacher) == fingerprint(other.teacher)
    assert world.teacher is not other.teacher
    assert set(world.train.ids.tolist()) != set(other.train.ids.tolist())
    assert world.student()(world.test.batch(torch.arange(2))["x"]).shape == (2, 10)
    with pytest.raises(ValueError, match=r"expected a number in \[1, 2700\]"):
        mnist_world(0, train_images=2701)
