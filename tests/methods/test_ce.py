"""The baseline without a teacher."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from preceptor.core.state import State
from preceptor.methods.ce import CARD, CrossEntropy


@pytest.fixture
def world() -> tuple[dict, dict, State]:
    """A batch, roles without a teacher, and a state."""
    torch.manual_seed(0)
    batch = {"x": torch.randn(5, 3, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2]), "id": torch.arange(5)}
    return batch, {"student": nn.Linear(3, 4).double()}, State(total_steps=1)


def test_terms_are_the_cross_entropy_of_each_example(world):
    batch, roles, state = world
    terms = CrossEntropy().loss(batch, {}, roles, state)
    assert terms.keys() == {"hard"}
    torch.testing.assert_close(terms["hard"], F.cross_entropy(roles["student"](batch["x"]), batch["y"], reduction="none"))


def test_it_needs_no_teacher_and_learns_from_targets(world):
    batch, roles, state = world
    method = CrossEntropy()
    assert method.signal(batch, roles, state) == {}
    batch["targets"] = torch.rand(5, 4, dtype=torch.double).softmax(-1)
    expected = F.cross_entropy(roles["student"](batch["x"]), batch["targets"], reduction="none")
    torch.testing.assert_close(method.loss(batch, {}, roles, state)["hard"], expected)


def test_card():
    assert (CARD.slug, CARD.needs) == ("ce", ("labels",))
