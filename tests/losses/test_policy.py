"""Policy losses: advantages, the clipped surrogate, reductions."""

from __future__ import annotations

import math

import pytest
import torch

from preceptor.losses.policy import (
    aggregate,
    group_advantages,
    importance_weights,
    kl_estimate,
    ppo_surrogate,
    sequence_means,
    token_log_probs,
)


@pytest.fixture
def tokens():
    """Log-probabilities now and before, advantages, and a mask with an empty row; ratios lie on both sides of every clip."""
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(4, 6, dtype=torch.double, generator=generator) - 0.1
    log_probs = old + 0.8 * torch.randn(4, 6, dtype=torch.double, generator=generator)
    advantages = torch.randn(4, 6, dtype=torch.double, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0]])
    return log_probs, old, advantages, mask


def test_token_log_probs():
    logits = torch.randn(2, 3, 5, dtype=torch.double)
    tokens = torch.tensor([[0, 4, 2], [1, 1, 3]])
    found = token_log_probs(logits, tokens, temperature=2.0)
    for i in range(2):
        for t in range(3):
            row = [math.exp(value / 2) for value in logits[i, t].tolist()]
            assert math.isclose(found[i, t].item(), math.log(row[tokens[i, t]] / sum(row)), rel_tol=1e-9)
    torch.testing.assert_close(token_log_probs(logits + 3, tokens, temperature=2.0), found)
    assert token_log_probs(torch.tensor([0.0, -torch.inf]), torch.tensor(1)).isfinite()
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 4\], got 5"):
        token_log_probs(logits, tokens + 1)


def test_advantages_of_a_group():
    rewards = torch.tensor([1.0, 5.0, 0.0, 0.0, 7.0, 1.0], dtype=torch.double)
    groups = torch.tensor([3, -1, 3, 3, 8, 8])
    found = group_advantages(rewards, groups)
    assert math.isclose(found[0].item(), (2 / 3) / (math.sqrt(1 / 3) + 1e-6), rel_tol=1e-12)
    for group in (3, 8):
        assert abs(found[groups == group].sum()) < 1e-12
    assert math.isclose(found[1].item(), 5 / (1 + 1e-6), rel_tol=1e-12)  # alone: mean 0, std 1
    order = torch.randperm(6)
    torch.testing.assert_close(group_advantages(rewards[order], groups[order]), found[order])


def test_advantages_do_not_see_the_scale_of_rewards():
    rewards = torch.rand(12, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    groups = torch.arange(12) // 4
    found = group_advantages(rewards, groups)
    torch.testing.assert_close(group_advantages(3 * rewards - 5, groups), found, rtol=1e-5, atol=1e-5)
    assert (group_advantages(torch.full((12,), 0.1), groups).abs() < 1e-6).all()
    assert group_advantages(torch.arange(12) % 2, groups).dtype == torch.float32


def test_bad_rewards_are_refused():
    with pytest.raises(ValueError, match="rewards: expected finite numbers, got nan"):
        group_advantages(torch.tensor([1.0, torch.nan]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="groups: expected shape"):
        group_advantages(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"rewards: expected shape \(N,\), got \(2, 2\)"):
        group_advantages(torch.zeros(2, 2), torch.zeros(2, 2))


def test_surrogate_reference(tokens):
    log_probs, old, advantages, _ = tokens
    found = ppo_surrogate(log_probs, old, advantages, clip_low=0.2, clip_high=0.3, dual_clip=1.5)
    seen = set()
    for new, o, a, u in zip(*(x.flatten().tolist() for x in (log_probs, old, advantages, found)), strict=True):
        r = math.exp(new - o)
        expected = max(-a * r, -a * min(max(r, 0.8), 1.3))
        if a < 0 and -1.5 * a < expected:
            expected = -1.5 * a
            seen.add("dual")
        seen.add("high" if a > 0 and r > 1.3 else "low" if a < 0 and r < 0.8 else "free")
        assert math.isclose(u, expected, rel_tol=1e-12)
    assert seen == {"dual", "high", "low", "free"}


def test_surrogate_gradients(tokens):
    log_probs, old, advantages, _ = tokens
    assert torch.autograd.gradcheck(lambda x: ppo_surrogate(x, old, advantages), (log_probs.requires_grad_(),))
    (gradient,) = torch.autograd.grad(ppo_surrogate(log_probs, old, advantages, dual_clip=math.inf).sum(), log_probs)
    ratio = (log_probs - old).exp().detach()
    clipped = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.8))
    assert clipped.any()
    assert (gradient[clipped] == 0).all()
    torch.testing.assert_close(gradient[~clipped], (-advantages * ratio)[~clipped])
    one = old.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ppo_surrogate(one, one.detach(), advantages).sum(), one)
    torch.testing.assert_close(gradient, -advantages)  # ratio 1


def test_surrogate_of_far_off_tokens_is_finite():
    far = torch.tensor([[-100.0, 0.0]], requires_grad=True)
    loss = ppo_surrogate(far, torch.tensor([[0.0, -100.0]]), torch.tensor([[1.0, -1.0]]))
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), far)[0].isfinite().all()


def test_only_the_policy_is_trained(tokens):
    log_probs, old, advantages, _ = (x.detach().double().requires_grad_() for x in tokens)
    ppo_surrogate(log_probs, old, advantages).sum().backward()
    assert log_probs.grad is not None
    assert old.grad is None
    assert advantages.grad is None
    assert not importance_weights(log_probs, old).requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_low": 1.0}, r"clip_low: expected a number in \[0, 1\), got 1.0"),
        ({"clip_high": -0.1}, "clip_high: expected a number >= 0, got -0.1"),
        ({"dual_clip": 1.0}, "dual_clip: expected a number > 1, got 1.0"),
    ],
)
def test_clips_out_of_range_are_refused(tokens, options, message):
    with pytest.raises(ValueError, match=message):
        ppo_surrogate(*tokens[:3], **options)


def test_importance_weights(tokens):
    log_probs, old, _, _ = tokens
    torch.testing.assert_close(importance_weights(log_probs, old, cap=1.5), (log_probs - old).exp().clamp(max=1.5))
    assert (importance_weights(old, old) == 1).all()


def test_kl_estimate():
    logits, reference = torch.randn(2, 50, dtype=torch.double)
    log_q, log_p = logits.log_softmax(0), reference.log_softmax(0)
    found = kl_estimate(log_q, log_p)
    assert (found >= 0).all()
    torch.testing.assert_close((log_q.exp() * found).sum(), (log_q.exp() * (log_q - log_p)).sum())  # unbiased
    assert (kl_estimate(log_q, log_q) == 0).all()
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, log_p), (log_q.requires_grad_(),))


def test_reductions(tokens):
    values, _, _, mask = tokens
    rows = [[v for v, m in zip(v_row, m_row, strict=True) if m] for v_row, m_row in zip(values.tolist(), mask.tolist(), strict=True)]
    flat = [v for row in rows for v in row]
    full = [row for row in rows if row]
    for mode, expected in (
        ("token-mean", sum(flat) / len(flat)),
        ("sequence-mean", sum(sum(row) / len(row) for row in full) / 3),
        ("sequence-sum", sum(flat) / 3),
    ):
        assert math.isclose(aggregate(values, mask, mode=mode).item(), expected, rel_tol=1e-12)
    assert sequence_means(values, mask)[2] == 0
    with pytest.raises(ValueError, match="mode: expected 'token-mean'"):
        aggregate(values, mask, mode="mean")


@pytest.mark.parametrize("mode", ["token-mean", "sequence-mean", "sequence-sum"])
def test_masked_tokens_change_nothing(tokens, mode):
    values, _, _, mask = tokens
    values.requires_grad_()
    loss = aggregate(values, mask, mode=mode)
    (gradient,) = torch.autograd.grad(loss, values)
    assert (gradient[mask == 0] == 0).all()
    spoilt = values.detach().masked_fill(mask == 0, torch.nan).requires_grad_()
    assert aggregate(spoilt, mask, mode=mode) == loss
    assert torch.equal(torch.autograd.grad(aggregate(spoilt, mask, mode=mode), spoilt)[0], gradient)
    empty = aggregate(values, torch.zeros_like(mask), mode=mode)
    assert empty == 0
    assert (torch.autograd.grad(empty, values)[0] == 0).all()
