"""Rewards and policy gradients for answers that were written beforehand."""

import math

import pytest
import torch

from preceptor.losses.offline import distillation_reward, group_advantage, grpo_offline_loss


def group(seed=0):
    return torch.rand(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_distillation_reward_ranks_within_a_group():
    found = distillation_reward(group())
    assert (found.amin(1) == 0).all()
    assert (found.amax(1) == 1).all()
    assert torch.equal(found.argmax(1), group().argmin(1))
    torch.testing.assert_close(distillation_reward(3 * group() + 7), found)
    assert not distillation_reward(torch.full((2, 4), 0.3)).any()
    assert not distillation_reward(torch.ones(2, 1)).any()
    holed = torch.tensor([[math.nan, 1.0, 3.0, 9.0]])
    assert distillation_reward(holed, torch.tensor([[1, 1, 1, 0]])).tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_advantages_are_those_of_a_slow_loop():
    rewards, valid = group(1), torch.ones(3, 5)
    valid[1, 2] = 0
    found = group_advantage(rewards, valid)
    for i in range(3):
        kept = [r for r, v in zip(rewards[i].tolist(), valid[i].tolist(), strict=True) if v]
        mean = sum(kept) / len(kept)
        std = math.sqrt(sum((r - mean) ** 2 for r in kept) / len(kept))
        want = [(r - mean) / (std + 1e-4) if v else 0.0 for r, v in zip(rewards[i].tolist(), valid[i].tolist(), strict=True)]
        assert found[i].tolist() == pytest.approx(want, rel=1e-12, abs=1e-12)
    assert found.sum(1).abs().max() < 1e-12


def test_no_advantage_without_a_difference():
    assert not group_advantage(torch.full((2, 7), 0.1)).any()
    assert not group_advantage(torch.rand(3, 1)).any()
    assert not group_advantage(torch.tensor([[math.nan, 1.0]])).any()
    with pytest.raises(ValueError, match="questions, answers"):
        group_advantage(torch.rand(3))


def policy():
    generator = torch.Generator().manual_seed(3)
    log_probs = (-torch.rand(4, 3, generator=generator, dtype=torch.double)).requires_grad_()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    return log_probs, torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.rand(4, 3, generator=generator, dtype=torch.double), mask


def test_gradient_is_minus_advantage_over_length():
    log_probs, advantages, kl, mask = policy()
    (gradient,) = torch.autograd.grad(grpo_offline_loss(log_probs, advantages, kl, mask).sum(), log_probs)
    torch.testing.assert_close(gradient, -advantages[:, None] * mask / mask.sum(1, keepdim=True).clamp(min=1).double())


def test_without_advantage_only_the_kl_is_left():
    log_probs, advantages, kl, mask = policy()
    found = grpo_offline_loss(log_probs, 0 * advantages, kl.requires_grad_(), mask, beta=0.3)
    want = 0.3 * (kl * mask).sum(1) / mask.sum(1).clamp(min=1)
    torch.testing.assert_close(found, want)
    gradients = torch.autograd.grad(found.sum(), (log_probs, kl))
    assert not gradients[0].any()
    torch.testing.assert_close(gradients[1], 0.3 * mask / mask.sum(1, keepdim=True).clamp(min=1).double())


def test_the_true_ratio_is_clipped():
    log_probs, advantages, kl, mask = policy()
    behaviour = log_probs.detach() - 1.0  # the student is e times as likely
    (gradient,) = torch.autograd.grad(grpo_offline_loss(log_probs, advantages, kl, mask, behaviour_log_probs=behaviour).sum(), log_probs)
    assert not gradient[[0, 2]].any()  # good answers beyond the clip
    torch.testing.assert_close(gradient[1], torch.tensor([math.e, math.e, 0.0], dtype=torch.double))
    with pytest.raises(ValueError, match="advantages"):
        grpo_offline_loss(log_probs, advantages[:2], kl, mask)
