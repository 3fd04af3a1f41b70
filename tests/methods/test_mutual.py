"""Deep mutual learning."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.losses.hard import hard_loss
from preceptor.methods.mutual import CARD, Mutual, miniature
from preceptor.models.reference import MLP


@pytest.fixture
def world() -> tuple[dict, dict, State]:
    """A batch, a student with its peer, and a state."""
    torch.manual_seed(0)
    batch = {"x": torch.randn(5, 3, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2]), "id": torch.arange(5)}
    return batch, {"student": nn.Linear(3, 4).double(), "peer": nn.Linear(3, 4).double()}, State(total_steps=1)


def test_defaults_are_those_of_the_card():
    assert Mutual().weight == 1.0
    assert (CARD.slug, CARD.kind) == ("mutual", "online")
    assert "teacher" not in CARD.needs


def test_reference(world):
    batch, roles, state = world
    terms = Mutual(weight=0.7).loss(batch, {}, roles, state)
    for i, y in enumerate(batch["y"].tolist()):
        p = {}
        for role in ("student", "peer"):
            z = roles[role](batch["x"][i]).tolist()
            p[role] = [math.exp(v) / sum(map(math.exp, z)) for v in z]
        for own, other, hard, mutual in (("student", "peer", "hard", "mutual"), ("peer", "student", "peer_hard", "peer_mutual")):
            kl = sum(a * math.log(a / b) for a, b in zip(p[other], p[own], strict=True))
            assert math.isclose(terms[mutual][i].item(), 0.7 * kl, rel_tol=1e-9)
            assert math.isclose(terms[hard][i].item(), -math.log(p[own][y]), rel_tol=1e-9)


def test_each_network_s_loss_teaches_that_network_alone(world):
    batch, roles, state = world
    for prefix, own, other in (("", "student", "peer"), ("peer_", "peer", "student")):
        terms = Mutual().loss(batch, {}, roles, state)
        loss = (terms[f"{prefix}hard"] + terms[f"{prefix}mutual"]).sum()
        gradients = torch.autograd.grad(loss, [roles[own].weight, roles[other].weight], allow_unused=True)
        assert gradients[0].abs().sum() > 0
        assert gradients[1] is None


def test_gradient(world):
    batch, roles, state = world
    peer = torch.randn(5, 4, dtype=torch.double)
    roles["peer"] = nn.Module()
    roles["peer"].forward = lambda x: peer
    roles["student"] = nn.Identity()

    def own(x: torch.Tensor) -> torch.Tensor:
        terms = Mutual().loss({**batch, "x": x}, {}, roles, state)
        return terms["hard"] + terms["mutual"]

    assert torch.autograd.gradcheck(own, (torch.randn(5, 4, dtype=torch.double, requires_grad=True),))


def test_networks_that_agree_learn_from_labels_alone(world):
    batch, roles, state = world
    roles["peer"].load_state_dict(roles["student"].state_dict())
    terms = Mutual().loss(batch, {}, roles, state)
    assert (terms["mutual"] == 0).all()
    assert (terms["peer_mutual"] == 0).all()
    torch.testing.assert_close(terms["hard"], hard_loss(roles["student"](batch["x"]), batch))


def test_twin_in_plain_pytorch(world):
    batch, roles, _ = world
    twins = copy.deepcopy(roles)
    parameters = [p for role in twins.values() for p in role.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.3, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        a, b = (twins[role](batch["x"]) for role in ("student", "peer"))
        loss = F.cross_entropy(a, batch["y"]) + F.cross_entropy(b, batch["y"])
        for own, other in ((a, b), (b, a)):
            loss = loss + F.kl_div(own.log_softmax(-1), other.detach().softmax(-1), reduction="batchmean")
        loss.backward()
        optimizer.step()
    ours = torch.optim.SGD([p for role in roles.values() for p in role.parameters()], 0.3, momentum=0.9)
    train(Mutual(), roles, [batch], ours, steps=5)
    for role, twin in twins.items():
        torch.testing.assert_close(roles[role].weight, twin.weight, rtol=1e-11, atol=1e-13)


def test_the_peer_has_the_student_s_form_and_weights_of_its_own(world):
    batch, _, _ = world
    torch.manual_seed(3)
    student = MLP(inputs=3, hidden=(4,), classes=4)
    torch.manual_seed(3)  # what a run does before it makes further networks: the peer must not come out as the student again
    peer = Mutual().extra_roles({"student": student}, batch)["peer"]
    assert [p.shape for p in peer.parameters()] == [p.shape for p in student.parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(peer.parameters(), student.parameters(), strict=True))
    torch.manual_seed(3)
    again = Mutual().extra_roles({"student": student}, batch)["peer"]
    assert all(torch.equal(a, b) for a, b in zip(peer.parameters(), again.parameters(), strict=True))


def test_a_given_peer_is_kept_and_may_be_another_network(world):
    batch, roles, _ = world
    roles["peer"] = MLP(inputs=3, hidden=(4,), classes=4).double()
    assert Mutual().extra_roles(roles, batch) == {}
    before = copy.deepcopy(roles["peer"])
    train(Mutual(), roles, [batch], torch.optim.SGD([p for role in roles.values() for p in role.parameters()], 0.3), steps=2)
    assert not torch.equal(roles["peer"].fc.weight, before.fc.weight)


def test_hyper_parameters_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"weight: expected a finite number > 0, got 0\.0"):
        Mutual(weight=0.0)


def test_a_peer_with_other_classes_is_refused(world):
    batch, roles, state = world
    roles["peer"] = nn.Linear(3, 7).double()
    with pytest.raises(ValueError, match="teacher: expected 4 classes like student, got 7"):
        Mutual().loss(batch, {}, roles, state)


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-peer", "ce", "ce-same-compute", "mutual"}
    assert all(math.isfinite(value) for arm in run.arms.values() for value in arm.values())
    assert run == miniature(1, "smoke")
    assert run.arms["mutual"] != run.arms["ce"]
