"""Toy policies: states follow tokens, samples follow the table."""

import pytest
import torch

from preceptor.data.rollout import check_on_policy, language_batch
from preceptor.losses.policy import token_log_probs
from preceptor.methods.gkd import GKD
from preceptor.miniature.policies import TablePolicy, TableSampler, fit_policy, prompts
from preceptor.models.taps import forward


@pytest.fixture
def policy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator)
    logits[1, 2] = -torch.inf
    return TablePolicy(logits, torch.randint(4, (4, 3), generator=generator))


def test_states_follow_the_moves(policy):
    logits = policy(torch.tensor([[3, 1, 0, 2]]), attention_mask=None, use_cache=False)
    state, expected = 3, [3]
    for token in (1, 0, 2):
        state = int(policy.moves[state, token])
        expected.append(state)
    assert torch.equal(logits[0], policy.table[expected])


def test_samples_have_the_probability_that_training_sees(policy):
    sampler = check_on_policy(TableSampler(stop=(2,)))
    sampler.sync(policy)
    asked = prompts(torch.arange(4).repeat(50))
    found = sampler.sample(asked["prompt"], max_new_tokens=6, temperature=0.5, top_p=1.0, seed=1)
    again = sampler.sample(asked["prompt"], max_new_tokens=6, temperature=0.5, top_p=1.0, seed=1)
    assert torch.equal(found.ids, again.ids)
    batch = language_batch(asked["prompt"], found)
    expected = token_log_probs(forward(policy, batch["x"]).logits, batch["y"], temperature=0.5)
    torch.testing.assert_close(batch["sampling_log_probs"][batch["mask"]], expected[batch["mask"]])
    assert 0 < found.finished.sum() < 200
    for ids, mask, finished in zip(found.ids.tolist(), found.mask.tolist(), found.finished.tolist(), strict=True):
        length = ids.index(2) + 1 if 2 in ids else len(ids)
        assert mask == [i < length for i in range(len(ids))]
        assert finished == (2 in ids)


def test_a_policy_is_trained_in_place_without_moving_torchs_random_state(policy):
    teacher = TablePolicy(torch.zeros(4, 3), policy.moves).requires_grad_(False)
    before, state = policy.table.detach().clone(), torch.get_rng_state()
    method = GKD(on_policy_rate=1.0, max_new_tokens=5, sampler=TableSampler())
    fit_policy(method, {"student": policy, "teacher": teacher}, [prompts(torch.arange(4))], steps=30, learning_rate=5.0, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    finite = before.isfinite()
    after = policy.table.detach()
    assert (after[finite] - after[finite].mean()).square().mean() < 0.5 * (before[finite] - before[finite].mean()).square().mean()
