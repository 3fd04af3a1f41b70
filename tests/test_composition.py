"""Pieces of several methods put together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from preceptor.composition import Composed
from preceptor.core.state import State
from preceptor.distillation import make_method
from preceptor.losses.hard import hard_loss
from preceptor.methods.dkd import DKD, decoupled_kl
from preceptor.methods.logit_standardization import LogitStandardization, standardize_logits


@pytest.fixture
def world() -> tuple[dict, dict, State]:
    """A batch, a student with its teacher, and a state after the warm-up."""
    torch.manual_seed(0)
    batch = {"x": torch.randn(5, 3, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2]), "id": torch.arange(5)}
    return batch, {"student": nn.Linear(3, 4).double(), "teacher": nn.Linear(3, 4).double()}, State(total_steps=1, epoch=30)


def test_dkd_of_standardised_logits_is_that_by_hand(world):
    batch, roles, state = world
    method = make_method("dkd", {"temperature": 2.0, "alpha": 9.0, "transform": "logit-standardization"})
    terms = method.loss(batch, method.signal(batch, roles, state), roles, state)
    student, teacher = (roles[role](batch["x"]) for role in ("student", "teacher"))
    tckd, nckd = decoupled_kl(standardize_logits(student), standardize_logits(teacher), batch["y"], temperature=2.0)
    torch.testing.assert_close(terms["target"], 36 * tckd)
    torch.testing.assert_close(terms["others"], 32 * nckd)
    torch.testing.assert_close(terms["hard"], hard_loss(student, batch))  # labels are learned from the logits as they are


def test_a_transform_has_hyper_parameters_of_its_own(world):
    assert make_method("dkd", {"transform": "logit-standardization"}) == Composed(base=DKD(), transformer=LogitStandardization())
    method = make_method("dkd", {"beta": 2.0, "transform": {"name": "logit-standardization", "side": "teacher", "ddof": 0}})
    assert method == Composed(base=DKD(beta=2.0), transformer=LogitStandardization(side="teacher", ddof=0))


def test_a_wrong_name_is_refused_with_the_nearest():
    for what in ("logit-standardisation", {"name": "logit-standardisation"}):
        with pytest.raises(
            ValueError, match=r"^method\.transform: expected one of .*, got 'logit-standardisation', nearest: 'logit-standardization'$"
        ):
            make_method("dkd", {"transform": what})
    with pytest.raises(ValueError, match=r"method\.transform: expected one of .*logit-standardization.*, got 'dkd'"):
        make_method("dkd", {"transform": "dkd"})


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"method\.transform: expected a base that learns from the teacher's logits, got CrossEntropy"):
        make_method("ce", {"transform": "logit-standardization"})
    with pytest.raises(ValueError, match=r"method\.transform: expected a base without one of its own, got LogitStandardization"):
        make_method("logit-standardization", {"transform": "logit-standardization"})
    with pytest.raises(ValueError, match=r"method\.transform: expected a base whose loss needs logits alone, got Mutual"):
        make_method("mutual", {"transform": "logit-standardization"})
