"""Roles in the loop: what is frozen, in which mode, and that all of it comes back."""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from accelerate import Accelerator
from tests.core.small import CrossEntropy, assert_identical, batches, net, records_of, sgd
from torch import nn

from preceptor.core.loop import steps
from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.stream import as_stream


@dataclass(frozen=True, kw_only=True)
class Failing(CrossEntropy):
    """Raises in one hook at the second step."""

    hook: str

    def fail(self, hook, state):
        if self.hook == hook and state.step == 1:
            raise RuntimeError(f"{hook} broke")

    def prepare(self, batch, roles, state):
        self.fail("prepare", state)
        return batch

    def signal(self, batch, roles, state):
        self.fail("signal", state)
        return {}

    def loss(self, batch, signal, roles, state):
        self.fail("loss", state)
        return super().loss(batch, signal, roles, state)

    def update(self, compute, optimizer, batch, roles, state):
        self.fail("update", state)
        super().update(compute, optimizer, batch, roles, state)

    def after_step(self, batch, records, roles, state):
        self.fail("after_step", state)


def odd_roles():
    """A student with a frozen layer and one submodule in eval mode, a trainable teacher in train mode."""
    student, teacher = net(0, dropout=0.5), nn.Sequential(net(1), nn.BatchNorm1d(3).double())
    student[0].bias.requires_grad_(False)
    student[2].eval()
    teacher[1].train()
    teacher[0].eval()
    return {"student": student, "teacher": teacher}


def flags_and_modes(roles):
    return (
        {(role, name): p.requires_grad for role, module in roles.items() for name, p in module.named_parameters()},
        {(role, name): m.training for role, module in roles.items() for name, m in module.named_modules()},
    )


@pytest.mark.parametrize("hook", ["none", "prepare", "signal", "loss", "update", "after_step"])
def test_flags_and_modes_come_back(hook):
    roles = odd_roles()
    before, taught = flags_and_modes(roles), copy.deepcopy(roles["teacher"].state_dict())
    data, optimizer = batches(3), sgd(roles["student"])
    if hook == "none":
        train(Failing(hook=hook), roles, data, optimizer, steps=3)
    else:
        with pytest.raises(RuntimeError, match=f"{hook} broke"):
            train(Failing(hook=hook), roles, data, optimizer, steps=3)
    assert flags_and_modes(roles) == before
    assert_identical(roles["teacher"].state_dict(), taught)
    assert torch.equal(roles["student"][0].bias, net(0)[0].bias)  # frozen on entry: never trained
    assert not torch.equal(roles["student"][0].weight, net(0)[0].weight)


def test_flags_and_modes_come_back_when_the_caller_stops_early():
    roles = odd_roles()
    before, state = flags_and_modes(roles), State(total_steps=9)
    optimizers = {"student": sgd(roles["student"])}
    turn = steps(CrossEntropy(), roles, as_stream(batches(3)), optimizers, state=state, accelerator=Accelerator())
    next(turn)
    assert flags_and_modes(roles) != before
    turn.close()
    assert flags_and_modes(roles) == before


@dataclass(frozen=True, kw_only=True)
class Looking(Method):
    """Notes how the roles are while hooks run."""

    seen: list = field(default_factory=list, repr=False)

    def signal(self, batch, roles, state):
        self.seen.append(torch.is_grad_enabled())
        return {"logits": roles["teacher"](batch["x"])}

    def loss(self, batch, signal, roles, state):
        self.seen.append((torch.is_grad_enabled(), signal["logits"].requires_grad, *flags_and_modes(roles)))
        return {"gap": (roles["student"](batch["x"]) - signal["logits"]).square()}

    def prepare(self, batch, roles, state):
        self.seen.append(torch.is_grad_enabled())
        return batch

    def after_step(self, batch, records, roles, state):
        self.seen.append(torch.is_grad_enabled())


def test_hooks_run_with_the_right_gradient_and_mode():
    roles, method = odd_roles(), Looking()
    records_of(method, roles, batches(1), {"student": sgd(roles["student"])}, total=1)
    prepare, signal, (enabled, follows, flags, modes), after = method.seen
    assert (prepare, signal, after) == (False, False, False)
    assert enabled
    assert not follows
    assert {key for key, flag in flags.items() if flag} == {("student", name) for name in ("0.weight", "3.weight", "3.bias")}
    assert all(training == (role == "student") for (role, _), training in modes.items())


def test_a_frozen_role_may_share_parameters_with_a_trained_one():
    student, twin = net(0, dropout=0.5), net(0, dropout=0.5)
    for order in (("student", "body"), ("body", "student")):
        student.load_state_dict(net(0).state_dict())
        twin.load_state_dict(net(0).state_dict())
        roles = {"student": student, "body": student[:3]}
        torch.manual_seed(0)
        records_of(CrossEntropy(), {name: roles[name] for name in order}, batches(3), {"student": sgd(student)}, total=3)
        torch.manual_seed(0)
        records_of(CrossEntropy(), {"student": twin}, batches(3), {"student": sgd(twin)}, total=3)
        assert_identical(student.state_dict(), twin.state_dict())
