"""Losses from what a model said: the same from hidden states and head as from logits, value and gradient."""

from __future__ import annotations

import pytest
import torch

from preceptor.losses.divergence import log_probs
from preceptor.losses.entropy_filters import entropy_discriminator, said_discriminator
from preceptor.losses.said import said_entropy, said_log_probs
from preceptor.losses.token_stats import entropy
from preceptor.models.heads import Head

N, T, D, V = 3, 4, 5, 11
MASK = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]])


@pytest.fixture
def world():
    """Hidden states, weight, bias and tokens in double precision."""
    g = torch.Generator().manual_seed(0)
    h, w, b = (torch.randn(*shape, dtype=torch.double, generator=g).requires_grad_() for shape in ((N, T, D), (V, D), (V,)))
    return h, w, b, torch.randint(V, (N, T), generator=g)


def both_ways(world):
    """What a model said, in halves and as logits."""
    h, w, b, _ = world
    return {"hidden": h, "head": Head(w, b)}, {"logits": h @ w.T + b}


@pytest.mark.parametrize("mask", [None, MASK, 0 * MASK])
@pytest.mark.parametrize("kind", ["log_probs", "entropy"])
def test_both_ways_are_the_dense_loss(world, kind, mask):
    h, w, b, y = world
    log_p = log_probs(h @ w.T + b, temperature=0.7)
    expected = entropy(log_p) if kind == "entropy" else log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    expected = expected if mask is None else expected * mask
    upstream = torch.randn(N, T, dtype=torch.double)
    gradients = torch.autograd.grad(expected, (h, w, b), upstream)
    for said in both_ways(world):
        options = {"mask": mask, "temperature": 0.7}
        found = said_entropy(said, **options) if kind == "entropy" else said_log_probs(said, y, **options)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, (h, w, b), upstream), gradients)


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
@pytest.mark.parametrize("mask", [torch.ones(N, T), MASK, 0 * MASK])
def test_discriminators_are_the_dense_ones(world, mask, chunk_rows):
    h, w, b, y = world
    expected = [value * mask for value in entropy_discriminator(h @ w.T + b, y, temperature=0.7)]
    for said in both_ways(world):
        found = said_discriminator(said, y, mask=mask, temperature=0.7, chunk_rows=chunk_rows)
        torch.testing.assert_close(list(found), expected, check_dtype=False)
        assert found[0].dtype == torch.double
        assert not found[0].requires_grad


def test_a_chunk_without_rows_is_refused(world):
    with pytest.raises(ValueError, match="chunk_rows: expected at least 1, got 0"):
        said_discriminator(both_ways(world)[0], world[3], mask=MASK, chunk_rows=0)
