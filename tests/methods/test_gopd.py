"""Generalised on-policy distillation."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from preceptor.core.reduce import global_counts, reduce_terms
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.losses.divergence import kl, reverse_kl
from preceptor.losses.policy import aggregate, ppo_surrogate, token_log_probs
from preceptor.methods.gopd import CARD, GOPD, extrapolated_advantages, extrapolated_kl
from preceptor.miniature.policies import TablePolicy, TableSampler, prompts

SCALES = [0.0, 0.5, 1.0, 1.25, 2.0]
STATES, TOKENS = 6, 8


@pytest.fixture
def logits():
    """Of student, teacher and reference, (8,) each."""
    return 1.5 * torch.randn(3, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def roles():
    generator = torch.Generator().manual_seed(1)
    moves = torch.randint(STATES, (STATES, TOKENS), generator=generator)
    tables = torch.randn(3, STATES, TOKENS, dtype=torch.double, generator=generator)
    return {name: TablePolicy(table, moves) for name, table in zip(("student", "teacher", "reference"), tables, strict=True)}


@pytest.fixture
def batch():
    return prompts(torch.arange(STATES).repeat(5))


def method(**options):
    return GOPD(**{"max_new_tokens": 5, "sampler": TableSampler(stop=(0,))} | options)


def optimum(teacher, reference, scale):
    """Log q and log Z of q = r^(1 - scale) p^scale / Z."""
    mixed = scale * teacher.log_softmax(-1) + (1 - scale) * reference.log_softmax(-1)
    return mixed - mixed.logsumexp(-1, keepdim=True), mixed.logsumexp(-1)


def prepared(gopd, batch, roles):
    state = State(total_steps=1)
    with torch.no_grad():
        made = gopd.prepare(batch, roles, state)
        return made, gopd.signal(made, roles, state), state


def loss_of(gopd, batch, roles):
    made, signal, state = prepared(gopd, batch, roles)
    return reduce_terms(gopd.loss(made, signal, roles, state), made, global_counts(made), 1)["policy"]


def test_defaults_are_those_of_the_card():
    gopd = GOPD()
    assert (gopd.reward_scale, gopd.clip_low, gopd.clip_high, gopd.dual_clip, gopd.updates) == (1.25, 0.2, 0.2, 3.0, 1)
    assert (gopd.max_new_tokens, gopd.sampling_temperature, gopd.top_p, gopd.answers) == (16384, 1.0, 1.0, 1)
    assert (CARD.slug, CARD.tasks) == ("gopd", ("language",))


@pytest.mark.parametrize("scale", SCALES)
def test_the_expected_gradient_is_that_of_the_divergence_from_the_optimum(logits, scale):
    student, teacher, reference = logits
    student.requires_grad_()
    log_q = student.log_softmax(0)
    advantages = extrapolated_advantages(log_q, teacher.log_softmax(0), reference.log_softmax(0), reward_scale=scale)
    assert not advantages.requires_grad
    (sampled,) = torch.autograd.grad((log_q.detach().exp() * advantages * log_q).sum(), student, retain_graph=True)
    target, log_z = optimum(teacher, reference, scale)
    (exact,) = torch.autograd.grad(kl(log_q, target), student, retain_graph=True)
    torch.testing.assert_close(sampled, -exact, rtol=1e-12, atol=1e-14)
    full = extrapolated_kl(student, teacher, reference, reward_scale=scale)
    torch.testing.assert_close(full, kl(log_q, target) - log_z, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.autograd.grad(full, student)[0], exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", SCALES)
def test_the_advantage_is_constant_at_the_optimum(logits, scale):
    _, teacher, reference = logits
    target, log_z = optimum(teacher, reference, scale)
    found = extrapolated_advantages(target, teacher.log_softmax(0), reference.log_softmax(0), reward_scale=scale)
    torch.testing.assert_close(found, log_z.expand(8), rtol=1e-12, atol=1e-13)


def test_reference(logits):
    student, teacher, reference = (x.log_softmax(0).tolist() for x in logits)
    found = extrapolated_advantages(*(x.log_softmax(0) for x in logits), reward_scale=1.4)
    for q, p, r, a in zip(student, teacher, reference, found.tolist(), strict=True):
        assert math.isclose(a, 1.4 * (p - r) - (q - r), rel_tol=1e-9)


def test_the_ends_of_the_scale(logits):
    student, teacher, reference = (x.log_softmax(0) for x in logits)
    assert torch.equal(extrapolated_advantages(student, teacher, reference, reward_scale=1.0), teacher - student)
    assert torch.equal(extrapolated_advantages(student, teacher, None, reward_scale=1.0), teacher - student)
    torch.testing.assert_close(extrapolated_kl(*logits, reward_scale=1.0), reverse_kl(*logits[:2]))
    at_zero = extrapolated_advantages(reference, teacher, reference, reward_scale=0.0)
    assert at_zero.abs().max() < 1e-14
    for call, data in ((extrapolated_advantages, (student, teacher)), (extrapolated_kl, logits[:2])):
        with pytest.raises(ValueError, match=r"reference: expected .* at a reward_scale of 1.25, got none"):
            call(*data, None, reward_scale=1.25)


def test_gradcheck(logits):
    student, teacher, reference = logits
    assert torch.autograd.gradcheck(lambda x: extrapolated_kl(x, teacher, reference, reward_scale=1.25), (student.requires_grad_(),))


@pytest.mark.parametrize("mode", ["sampled", "full"])
def test_a_scale_of_1_ignores_the_reference(roles, batch, mode):
    losses = []
    for table in (roles["reference"].table, 2 * roles["teacher"].table):
        other = TablePolicy(table.detach(), roles["teacher"].moves)
        losses.append(loss_of(method(reward_scale=1.0, mode=mode), batch, {**roles, "reference": other}))
        losses.append(torch.autograd.grad(losses[-1], roles["student"].table)[0])
    assert torch.equal(losses[0], losses[2])
    assert torch.equal(losses[1], losses[3])
    assert method(reward_scale=1.0).extra_roles({"student": roles["student"]}, batch) == {}


def test_the_loss_is_the_surrogate_of_the_advantages(roles, batch):
    for scale in (0.5, 1.25):
        made, signal, state = prepared(method(reward_scale=scale), batch, roles)
        log_p = {name: token_log_probs(role(made["x"]["input_ids"]), made["y"]) for name, role in roles.items()}
        advantages = extrapolated_advantages(log_p["student"], log_p["teacher"], log_p["reference"], reward_scale=scale)
        losses = method(reward_scale=scale).loss(made, signal, roles, state)["policy"]
        counts = made["mask"] != 0
        torch.testing.assert_close(losses[counts], -advantages[counts])
        loss = reduce_terms({"policy": losses}, made, global_counts(made), 1)["policy"]
        (gradient,) = torch.autograd.grad(loss, roles["student"].table, retain_graph=True)
        counts = made["mask"].sum()
        assert 30 < counts < 150
        expected = -(log_p["student"] * advantages * made["mask"]).sum() / counts
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, roles["student"].table)[0])


@pytest.mark.parametrize("mode", ["sampled", "full"])
def test_masked_positions_and_the_height_of_logits_do_not_matter(roles, batch, mode):
    gopd = method(mode=mode)
    made, signal, state = prepared(gopd, batch, roles)

    def reduced(made, signal, roles):
        return reduce_terms(gopd.loss(made, signal, roles, state), made, global_counts(made), 1)["policy"]

    loss = reduced(made, signal, roles)
    (gradient,) = torch.autograd.grad(loss, roles["student"].table)
    spoilt = {**made, "y": made["y"].masked_fill(~made["mask"], 3)}
    with torch.no_grad():
        again = gopd.signal(spoilt, roles, state)
    assert torch.equal(reduced(spoilt, again, roles), loss)
    raised = {name: TablePolicy((role.table + torch.arange(STATES).unsqueeze(1)).detach(), role.moves) for name, role in roles.items()}
    with torch.no_grad():
        again = gopd.signal(made, raised, state)
    shifted = reduced(made, again, raised)
    torch.testing.assert_close(shifted, loss)
    torch.testing.assert_close(torch.autograd.grad(shifted, raised["student"].table)[0], gradient)
    nothing = {**made, "mask": torch.zeros_like(made["mask"])}
    empty = reduced(nothing, signal, roles)
    assert empty == 0
    assert (torch.autograd.grad(empty, roles["student"].table)[0] == 0).all()


@pytest.mark.parametrize("mode", ["sampled", "full"])
def test_an_impossible_token_of_the_teacher_costs_the_floor(roles, batch, mode):
    with torch.no_grad():
        roles["teacher"].table[:, 3] = -torch.inf
    made, signal, state = prepared(method(mode=mode), batch, roles)
    losses = method(mode=mode).loss(made, signal, roles, state)["policy"]
    assert losses.isfinite().all()
    assert torch.autograd.grad(losses.sum(), roles["student"].table)[0].isfinite().all()
    if mode == "sampled":
        assert state.log["floored_tokens"] == ((made["y"] == 3) & made["mask"]).sum() > 0
        assert (signal["teacher"][(made["y"] == 3) & made["mask"]] == -30).all()
        assert prepared(method(log_prob_floor=-1.0), batch, roles)[2].log["floored_tokens"] > state.log["floored_tokens"]


def test_sequences_may_count_alike(roles, batch):
    gopd = method(aggregation="sequence")
    made, signal, state = prepared(gopd, batch, roles)
    tokens = replace(gopd, aggregation="token").loss(made, signal, roles, state)["policy"]
    lengths = made["mask"].sum(1)
    assert lengths.min() < lengths.max()
    torch.testing.assert_close(loss_of(gopd, batch, roles), aggregate(tokens, made["mask"], mode="sequence-mean"))


def test_the_reference_is_the_untrained_student_unless_given(roles, batch):
    given = {"student": roles["student"], "teacher": roles["teacher"]}
    (reference,) = method().extra_roles(given, batch).values()
    assert reference is not roles["student"]
    assert torch.equal(reference.table, roles["student"].table)
    assert method().extra_roles(roles, batch) == {}
    kept = copy.deepcopy(reference.table)
    everyone = {**given, "reference": reference}
    train(method(), everyone, [batch], torch.optim.SGD(roles["student"].parameters(), lr=1.0), steps=3)
    assert torch.equal(reference.table, kept)
    assert not torch.equal(roles["student"].table, kept)


def test_several_updates_clip_the_ratio(roles, batch):
    """Two steps by hand: the second one's ratio is to the student that wrote the texts."""
    gopd = method(updates=2, clip_low=0.01, clip_high=0.02, dual_clip=1.5)
    made, signal, _ = prepared(gopd, batch, roles)
    by_hand = copy.deepcopy(roles["student"])
    old = token_log_probs(by_hand(made["x"]["input_ids"]), made["y"]).detach()
    advantages = extrapolated_advantages(old, signal["teacher"], signal["reference"], reward_scale=1.25)
    ratios = []
    for _ in range(2):
        log_p = token_log_probs(by_hand(made["x"]["input_ids"]), made["y"])
        loss = aggregate(ppo_surrogate(log_p, old, advantages, clip_low=0.01, clip_high=0.02, dual_clip=1.5), made["mask"])
        by_hand.table.grad = None
        loss.backward()
        torch.optim.SGD(by_hand.parameters(), lr=4.0).step()
        ratios.append((log_p - old).exp()[made["mask"]])
    assert ((ratios[1] > 1.02) | (ratios[1] < 0.99)).any()
    train(gopd, roles, [batch], torch.optim.SGD(roles["student"].parameters(), lr=4.0), steps=1)
    torch.testing.assert_close(roles["student"].table, by_hand.table)


def test_weights_undo_the_distribution_of_the_draw(roles, batch):
    gopd = method(sampling_temperature=2.0, importance_cap=1.2)
    made, signal, state = prepared(gopd, batch, roles)
    plain = replace(gopd, importance_cap=None).loss(made, signal, roles, state)["policy"]
    log_p = token_log_probs(roles["student"](made["x"]["input_ids"]), made["y"])
    weights = (log_p - made["sampling_log_probs"]).exp().clamp(max=1.2)
    found = gopd.loss(made, signal, roles, state)["policy"]
    torch.testing.assert_close(found[made["mask"]], (weights * plain)[made["mask"]])
    assert weights[made["mask"]].max() == 1.2


@pytest.mark.parametrize(
    "options",
    [
        {"reward_scale": 0.5},
        {"mode": "full"},
        {"aggregation": "sequence"},
        {"log_prob_floor": -1.0},
        {"answers": 2},
        {"max_new_tokens": 2},
        {"sampling_temperature": 3.0},
        {"top_p": 0.5},
        {"sampler": TableSampler()},
        {"sampling_temperature": 3.0, "importance_cap": 1.1},
    ],
)
def test_every_field_changes_the_loss(roles, batch, options):
    base = method(sampling_temperature=options["sampling_temperature"]) if len(options) == 2 else method()
    assert loss_of(base, batch, roles) != loss_of(method(**options), batch, roles)


@pytest.mark.parametrize("field", ["clip_low", "clip_high", "dual_clip", "updates"])
def test_every_clip_changes_the_second_update(roles, batch, field):
    changed = {"clip_low": 0.9, "clip_high": 9.0, "dual_clip": 99.0, "updates": 1}[field]
    base = {"updates": 2} if field == "updates" else {"updates": 2, "clip_low": 0.01, "clip_high": 0.01, "dual_clip": 1.01}
    tables = []
    for options in ({}, {field: changed}):
        student = copy.deepcopy(roles["student"])
        gopd = method(**base | options)
        train(gopd, {**roles, "student": student}, [batch], torch.optim.SGD(student.parameters(), lr=4.0), steps=1)
        tables.append(student.table)
    assert not torch.equal(*tables)


class Server:
    """Samples, but cannot follow a student."""

    def sample(self, prompt, *, max_new_tokens, temperature, top_p, seed):
        raise AssertionError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_scale": -0.1}, "reward_scale: expected a number >= 0, got -0.1"),
        ({"mode": "half"}, "mode: expected 'sampled' or 'full', got 'half'"),
        ({"aggregation": "text"}, "aggregation: expected 'token' or 'sequence', got 'text'"),
        ({"clip_low": 1.0}, r"clip_low: expected a number in \[0, 1\), got 1.0"),
        ({"updates": 0}, "updates: expected a finite number > 0, got 0"),
        ({"importance_cap": 0.0}, "importance_cap: expected a finite number > 0, got 0.0"),
        ({"sampler": Server()}, r"sampler: expected one with sync\(student\)"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GOPD(**options)


def test_a_large_scale_warns(recwarn):
    GOPD(reward_scale=1.5)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"reward_scale: 1.6 is above 1.5") as caught:
        GOPD(reward_scale=1.6)
    assert caught[0].filename == __file__


class Sized(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, input_ids, attention_mask, position_ids, use_cache):
        return torch.zeros(*input_ids.shape, self.size)


@pytest.mark.parametrize("mode", ["sampled", "full"])
@pytest.mark.parametrize("role", ["teacher", "reference"])
@pytest.mark.parametrize("size", [5, 9])
def test_another_vocabulary_is_refused(roles, batch, mode, role, size):
    message = f"{role}: expected the student's vocabulary of 8 tokens, got one of {size}; .* method alm"
    with pytest.raises(ValueError, match=message):
        loss_of(method(mode=mode), batch, {**roles, role: Sized(size)})
