"""A partition of samples among clients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from preceptor.data.federated import dirichlet_partition

LABELS = torch.arange(600) % 5


@pytest.mark.parametrize("beta", [0.1, 1.0, 100.0])
def test_every_sample_has_one_client(beta):
    parts = dirichlet_partition(LABELS, 8, beta=beta, seed=3)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(600))
    assert min(map(len, parts)) >= 10
    assert all(torch.equal(a, b) for a, b in zip(parts, dirichlet_partition(LABELS, 8, beta=beta, seed=3), strict=True))
    assert any(len(a) != len(b) for a, b in zip(parts, dirichlet_partition(LABELS, 8, beta=beta, seed=4), strict=True))


def shares(beta, labels=LABELS):
    parts = dirichlet_partition(labels, 8, beta=beta, seed=3)
    return torch.stack([labels[part].bincount(minlength=5) / len(part) for part in parts])


def test_large_beta_gives_clients_that_are_alike_and_small_beta_few_classes():
    assert (shares(1e6) - 0.2).abs().max() < 0.02
    assert shares(0.1).max(dim=1).values.mean() > 0.6
    unequal = torch.cat([torch.zeros(300), torch.ones(200), torch.full((100,), 4)]).long()
    expected = torch.tensor([300, 200, 0, 0, 100]) / 600
    assert (shares(1e6, unequal) - expected).abs().max() < 0.02


def test_with_an_order_the_first_clients_get_what_is_easy():
    difficulty = torch.rand(600, generator=torch.Generator().manual_seed(0))
    parts = dirichlet_partition(LABELS, 6, beta=1e4, seed=3, order=difficulty.argsort())
    means = [float(difficulty[part].mean()) for part in parts]
    assert means == sorted(means)
    assert means[-1] - means[0] > 0.7


def test_what_cannot_be():
    for call, message in (
        (lambda: dirichlet_partition(LABELS, 100, beta=0.1, seed=0), "minimum: expected 100 clients with at least 10 of 600 samples"),
        (lambda: dirichlet_partition(LABELS, 0, beta=1.0, seed=0), "n: expected at least 1, got 0"),
        (lambda: dirichlet_partition(LABELS, 2, beta=0.0, seed=0), "beta: expected a finite number > 0"),
        (lambda: dirichlet_partition(LABELS, 2, beta=1.0, seed=0, order=torch.zeros(600).long()), "order: expected every position"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_shares_spread_as_dirichlet_draws_do():
    """With beta 1 and five equal classes clients draw from Dir(1, 1, 1, 1, 1); classes are split among two of them."""
    found = []
    for seed in range(300):
        first, _ = dirichlet_partition(LABELS, 2, beta=1.0, seed=seed, minimum=1)
        found.append(LABELS[first].bincount(minlength=5).numpy() / 120)
    draws = np.random.default_rng(0).dirichlet(np.ones(5), size=(20000, 2))
    expected = draws[:, 0] / draws.sum(1)
    assert np.std(found) == pytest.approx(float(np.std(expected)), rel=0.06)
