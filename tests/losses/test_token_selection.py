"""Scores and choices of tokens."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from preceptor.losses.token_selection import (
    importance,
    local_weight,
    oracle_weight,
    quadrants,
    sampling_scores,
    scaled,
    select,
    soft_or,
)


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor, Tensor]:
    """Entropies, divergences and a mask of four rollouts."""
    generator = torch.Generator().manual_seed(2)
    entropy, divergence = torch.rand(2, 4, 30, generator=generator, dtype=torch.double)
    mask = torch.arange(30) < torch.tensor([30, 11, 4, 1])[:, None]
    return entropy, divergence**4, mask


def test_soft_or():
    a, b = torch.rand(2, 1000, dtype=torch.double)
    s = soft_or(a, b)
    assert ((s >= 0) & (s <= 1)).all()
    torch.testing.assert_close(s, 1 - (1 - a) * (1 - b))
    torch.testing.assert_close(s, soft_or(b, a))
    assert torch.equal(soft_or(a, torch.zeros(1000)), a)
    assert torch.equal(soft_or(torch.zeros(1000), b), b)
    assert (soft_or(a + 0.1 * (1 - a), b) >= s).all()


def test_scaled_reference(tokens):
    entropy, _, mask = tokens
    values = sorted(entropy[mask].tolist())
    place = 0.9 * (len(values) - 1)
    below = math.floor(place)
    high = values[below] + (place - below) * (values[below + 1] - values[below])
    found = scaled(entropy, mask, cap=0.9)
    for row, column in mask.nonzero().tolist():
        expected = (min(entropy[row, column].item(), high) - values[0]) / (high - values[0])
        assert math.isclose(found[row, column].item(), expected, abs_tol=1e-12)
    assert (found[~mask] == 0).all()
    assert found[mask].max() == 1
    assert found[mask].min() == 0


def test_units_and_offsets_do_not_matter(tokens):
    entropy, divergence, mask = tokens
    scores = importance(entropy, divergence, mask)
    torch.testing.assert_close(importance(3 * entropy + 1, 0.1 * divergence + 2, mask), scores)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_rules_that_see_one_side(tokens):
    entropy, divergence, mask = tokens
    nothing = torch.zeros_like(entropy)
    torch.testing.assert_close(importance(entropy, nothing, mask), importance(entropy, divergence, mask, rule="entropy"))
    torch.testing.assert_close(importance(nothing, divergence, mask), importance(entropy, divergence, mask, rule="divergence"))


def test_the_blind_spot_of_entropy():
    """Among sure tokens, one that is wrong: last for entropy, first for both together; a solved one is last for both."""
    entropy = torch.tensor([[0.9, 0.001, 0.0, 0.002, 0.5]])
    divergence = torch.tensor([[0.5, 0.0, 3.0, 0.001, 0.4]])
    mask = torch.ones(1, 5)
    assert select(importance(entropy, divergence, mask, rule="entropy"), mask, retention=0.8).tolist() == [[True, True, False, True, True]]
    both = importance(entropy, divergence, mask)[0]
    assert both.argmax() == 2
    assert both.argmin() == 1
    assert select(importance(entropy, divergence, mask, rule="q3"), mask, retention=0.2).tolist() == [[False, False, True, False, False]]
    assert select(importance(entropy, divergence, mask, rule="q4"), mask, retention=0.2).tolist() == [[False, True, False, False, False]]


def test_sure_tokens_are_those_up_to_the_median(tokens):
    entropy, divergence, mask = tokens
    chosen = select(importance(entropy, divergence, mask, rule="q3"), mask, retention=1.0, per="batch")
    middle = entropy[mask].sort().values[(int(mask.sum()) - 1) // 2]
    assert torch.equal(chosen, mask & (entropy <= middle))


@pytest.mark.parametrize(
    ("retention", "expected"), [(1.0, [30, 11, 4, 1]), (0.5, [15, 5, 2, 1]), (0.2, [6, 2, 1, 1]), (0.29, [8, 3, 1, 1])]
)
def test_shares_of_each_rollout(tokens, retention, expected):
    entropy, _, mask = tokens
    chosen = select(entropy, mask, retention=retention)
    assert chosen.sum(1).tolist() == expected
    assert not (chosen & ~mask).any()
    for row in range(4):
        kept, left = entropy[row][chosen[row]], entropy[row][mask[row] & ~chosen[row]]
        assert not len(left) or kept.min() > left.max()


def test_shares_of_the_batch(tokens):
    entropy, _, mask = tokens
    chosen = select(entropy, mask, retention=0.5, per="batch")
    assert int(chosen.sum()) == 23
    assert entropy[chosen].min() > entropy[mask & ~chosen].max()
    hundred = select(torch.rand(1, 100), torch.ones(1, 100), retention=0.29)
    assert int(hundred.sum()) == 29  # 0.29 * 100 is a little below in floating point


def test_ties_go_to_the_earlier_token():
    equal = torch.full((1, 6), 0.3)
    for per in ("rollout", "batch"):
        assert select(equal, torch.ones(1, 6), retention=0.5, per=per).tolist() == [[True] * 3 + [False] * 3]
    assert (scaled(equal, torch.ones(1, 6)) == 0).all()


def test_nothing_written_is_nothing_chosen():
    values, mask = torch.rand(2, 3), torch.zeros(2, 3)
    for per in ("rollout", "batch"):
        assert not select(importance(values, values, mask), mask, retention=0.5, per=per).any()
    assert not select(importance(values, values, mask, rule="q3"), mask, retention=0.5).any()
    assert (quadrants(values, values, mask) == 0).all()


def test_one_huge_divergence_hides_the_others_unless_it_is_cut():
    divergence = torch.cat([torch.linspace(0, 1, 99), torch.tensor([1e4])])[None]
    mask = torch.ones(1, 100)
    assert scaled(divergence, mask)[0, :99].max() < 1e-3
    assert scaled(divergence, mask, cap=0.98)[0, 60] > 0.5


def test_quadrants(tokens):
    entropy = torch.tensor([[0.9, 0.8, 0.1, 0.2, 7.0]])
    divergence = torch.tensor([[2.0, 0.1, 3.0, 0.2, 7.0]])
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    assert quadrants(entropy, divergence, mask).tolist() == [[1, 2, 3, 4, 0]]
    entropy, divergence, mask = tokens
    regions = quadrants(entropy, divergence, mask)
    assert ((regions > 0) == mask).all()


def test_drawn_tokens_follow_their_weights():
    """The largest two of the scores, against the exact chance of every pair when drawn one after the other."""
    entropy, jsd = torch.tensor([[0.1, 0.4, 0.2, 0.3]]), torch.tensor([[0.5, 0.25, 1.0, 0.0]])
    draws = 40000
    generator = torch.Generator().manual_seed(0)
    scores = sampling_scores(entropy.expand(draws, 4), jsd.expand(draws, 4), alpha=1.0, gamma=1.0, generator=generator)
    chosen = select(scores, torch.ones(draws, 4), retention=0.5)
    assert (chosen.sum(1) == 2).all()
    assert chosen[:, 3].sum() <= 1  # no divergence: as good as never
    weights = (entropy * jsd)[0, :3].tolist()
    total = sum(weights)
    for a, b in itertools.combinations(range(3), 2):
        exact = sum(weights[i] / total * weights[j] / (total - weights[i]) for i, j in ((a, b), (b, a)))
        assert abs((chosen[:, a] & chosen[:, b]).double().mean().item() - exact) < 0.01


def test_the_divergence_counts_only_with_its_exponent():
    entropy, jsd = torch.rand(2, 3, 5)
    one, other = (sampling_scores(entropy, j, generator=torch.Generator().manual_seed(1)) for j in (jsd, jsd.flip(0)))
    assert torch.equal(one, other)


def test_local_weight_is_the_best_step_of_a_token():
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 6, 5, generator=generator, dtype=torch.double)
    found = local_weight(student, teacher, learning_rate=0.3)
    for i in range(6):
        q, p = student[i].softmax(0), teacher[i].softmax(0)
        g = q - p
        hessian = torch.autograd.functional.hessian(lambda z, p=p: -(p * z.log_softmax(0)).sum(), student[i])
        torch.testing.assert_close(found[i], g @ g / (0.3 * g @ hessian @ g))
    assert (local_weight(student, student) == 0).all()
    assert oracle_weight(torch.tensor(6.0), torch.tensor(2.0), learning_rate=0.5, smoothness=3.0).item() == 2.0


def choose_half(rank, tokens, folder):
    """One of two processes, with one or three of the four rollouts."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    entropy, divergence, mask = (value[:1] if rank == 0 else value[1:] for value in tokens)
    scores = importance(entropy, divergence, mask)
    torch.save([scores, select(scores, mask, retention=0.3, per="batch"), quadrants(entropy, divergence, mask)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_the_batch_is_that_of_all_processes(tokens, tmp_path):
    torch.multiprocessing.spawn(choose_half, (tokens, tmp_path), nprocs=2)
    together = [torch.cat(parts) for parts in zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)), strict=True)]
    entropy, divergence, mask = tokens
    scores = importance(entropy, divergence, mask)
    assert torch.equal(together[0], scores)
    assert torch.equal(together[1], select(scores, mask, retention=0.3, per="batch"))
    assert torch.equal(together[2], quadrants(entropy, divergence, mask))


def test_bad_input_is_refused(tokens):
    entropy, _, mask = tokens
    for retention in (0.0, 1.2):
        with pytest.raises(ValueError, match=r"retention: expected a share in \(0, 1\]"):
            select(entropy, mask, retention=retention)
    with pytest.raises(ValueError, match="mask: expected shape"):
        select(entropy, mask[:, :2], retention=0.5)
    with pytest.raises(ValueError, match="moment: expected a finite number > 0"):
        oracle_weight(torch.ones(2), torch.zeros(2), learning_rate=1.0, smoothness=1.0)
