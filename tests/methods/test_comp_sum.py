"""Comp-sum losses as a method, and their smooth adversarial version."""

import itertools
import math

import pytest
import torch
from torch import nn

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.losses.comp_sum import comp_sum, difference_shift, outer
from preceptor.losses.hard import hard_loss
from preceptor.methods.comp_sum import CARD, CompSum, smooth_comp_sum

STATE = State(total_steps=1)


def world():
    torch.manual_seed(0)
    roles = {"student": nn.Linear(3, 4).double(), "teacher": nn.Linear(3, 4).double()}
    return roles, {"x": torch.rand(5, 3, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2]), "id": torch.arange(5)}


def terms_of(method, roles, batch):
    with torch.no_grad():
        batch = method.prepare(batch, roles, State(total_steps=1))
        signal = method.signal(batch, roles, STATE)
    return method.loss(batch, signal, roles, STATE)


def test_defaults_are_those_of_the_card():
    method = CompSum()
    assert (method.tau, method.nu, method.soft_weight, method.attack_steps) == (1.5, 0.0, 0.0, 10)
    assert (CARD.slug, CARD.needs) == ("comp-sum", ("labels",))


def test_tau_one_is_cross_entropy_and_targets_count():
    roles, batch = world()
    terms = terms_of(CompSum(tau=1.0), roles, batch)
    assert set(terms) == {"hard"}
    torch.testing.assert_close(terms["hard"], hard_loss(roles["student"](batch["x"]), batch))
    mixed = torch.rand(5, 4, dtype=torch.double).softmax(-1)
    got = terms_of(CompSum(rho=2.0), roles, {**batch, "targets": mixed})["hard"]
    torch.testing.assert_close(got, comp_sum(roles["student"](batch["x"]) / 2, mixed, tau=1.5))


def test_the_soft_term_learns_from_the_teacher():
    roles, batch = world()
    terms = terms_of(CompSum(soft_weight=0.5, temperature=2.0, tau=1.2), roles, batch)
    probs = (roles["teacher"](batch["x"]) / 2).softmax(-1).detach()
    torch.testing.assert_close(terms["soft"], 0.5 * 4 * comp_sum(roles["student"](batch["x"]) / 2, probs, tau=1.2))
    with pytest.raises(ValueError, match=r"^soft_weight: expected 0 without a teacher, got 0.5$"):
        CompSum(soft_weight=0.5).signal(batch, {"student": roles["student"]}, STATE)


def test_the_chain_of_bounds_on_a_linear_model():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, dtype=torch.double, generator=generator)
    x, y, gamma, rho = torch.randn(200, 4, dtype=torch.double, generator=generator), torch.arange(200) % 3, 0.2, 1.3
    corners = gamma * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=torch.double)
    moved = (x[:, None] + corners) @ weight.T  # of a linear model the corners of the ball hold every extreme
    labels = y[:, None].expand(200, 16)
    margins = (moved.gather(-1, labels[..., None]) - moved).masked_fill(nn.functional.one_hot(labels, 3).bool(), torch.inf)
    wrong = (margins <= 0).any(-1).any(-1).double()
    logits = x @ weight.T
    shift = difference_shift(logits[:, None].expand_as(moved), moved, labels)
    worst = moved[torch.arange(200), shift.argmax(-1)]
    for tau in (0.0, 1.0, 1.5, 2.0):
        ramp = outer((1 - margins / rho).clamp(0, 1).sum(-1), tau=tau).amax(-1)
        smooth = smooth_comp_sum(logits, worst, y, tau=tau, nu=math.sqrt(2) / rho, rho=rho)
        assert (wrong * float(outer(torch.ones((), dtype=torch.double), tau=tau)) <= ramp + 1e-12).all()
        assert (ramp <= smooth + 1e-9).all()


def test_the_smooth_term_is_on_and_its_attack_finds_a_large_change():
    roles, batch = world()
    method = CompSum(nu=0.3, epsilon=0.05)
    prepared = method.prepare(batch, roles, State(total_steps=1))
    assert "moved" not in batch
    assert (prepared["moved"] - batch["x"]).abs().max() <= 0.05 + 1e-12
    assert prepared["moved"].min() >= 0
    assert prepared["moved"].max() <= 1
    logits, moved = (roles["student"](batch["x"] if k == 0 else prepared["moved"]) for k in range(2))
    shift = difference_shift(logits, moved, batch["y"])
    for seed in range(20):
        other = (batch["x"] + 0.1 * (torch.rand(5, 3, dtype=torch.double, generator=torch.Generator().manual_seed(seed)) - 0.5)).clamp(0, 1)
        assert (difference_shift(logits, roles["student"](other), batch["y"]) <= shift + 1e-9).all()
    terms = terms_of(method, roles, batch)
    assert set(terms) == {"hard", "smooth"}
    torch.testing.assert_close(sum(terms.values()), smooth_comp_sum(logits, moved, batch["y"], tau=1.5, nu=0.3))


def test_an_attack_of_ones_own():
    roles, batch = world()
    asked = []

    def attack(model, x, y):
        asked.append(model.training)
        return x + 0.5

    moved = CompSum(nu=1.0, attack=attack).prepare(batch, roles, State(total_steps=1))["moved"]
    torch.testing.assert_close(moved, batch["x"] + 0.5)
    assert asked == [False]
    assert roles["student"].training
    still = terms_of(CompSum(nu=1.0, attack=lambda model, x, y: x), roles, batch)
    assert (still["smooth"] <= 1e-5).all()


def test_robust_training_is_the_same_in_one_batch_or_in_parts_and_moves_the_student():
    def weights(nu, micro):
        roles, batch = world()
        method = CompSum(nu=nu, epsilon=0.1)
        train(method, roles, [batch], torch.optim.SGD(roles["student"].parameters(), lr=0.1), steps=4, micro=micro)
        return roles["student"].weight.detach()

    torch.testing.assert_close(weights(0.5, 1), weights(0.5, 4), rtol=1e-9, atol=1e-11)
    assert not torch.allclose(weights(0.5, 1), weights(0.0, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": -1.0}, r"^tau: expected a finite number >= 0, got -1.0$"),
        ({"nu": -0.5}, r"^nu: expected a number >= 0, got -0.5$"),
        ({"soft_weight": -1.0}, r"^soft_weight: expected a number >= 0, got -1.0$"),
        ({"rho": 0.0}, r"^rho: expected a finite number > 0, got 0.0$"),
        ({"attack_steps": 0}, r"^attack_steps: expected at least 1, got 0$"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        CompSum(**options)


def test_texts_are_not_attacked():
    with pytest.raises(ValueError, match=r"^nu: expected 0 for inputs that are not one tensor of numbers, got 0.3$"):
        CompSum(nu=0.3).prepare({"x": {"input_ids": torch.zeros(1, 2)}}, {}, STATE)
