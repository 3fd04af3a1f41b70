"""Probes of embeddings: a linear layer and nearest neighbours."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from preceptor.metrics.probes import embeddings, linear_probe, nearest_neighbours


def clouds(n: int = 300, *, spread: float = 1.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around three centres in five dimensions, and the number of the centre."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(3, 5, generator=torch.Generator().manual_seed(7), dtype=torch.double)
    labels = torch.arange(n) % 3
    return centres[labels] + spread * torch.randn(n, 5, generator=generator, dtype=torch.double), labels


def test_embeddings_are_read_in_eval_mode_without_gradient():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5))
    batches = [{"x": torch.randn(n, 4), "y": torch.arange(n)} for n in (3, 2)]
    vectors, labels = embeddings(encoder, batches, encoder)
    torch.testing.assert_close(vectors, encoder[0](torch.cat([batch["x"] for batch in batches])))
    assert labels.tolist() == [0, 1, 2, 0, 1]
    assert not vectors.requires_grad
    assert encoder.training
    assert encoder[1].training


def test_raw_inputs_are_flattened():
    x = torch.arange(24.0).view(2, 3, 4)
    vectors, _ = embeddings(None, [{"x": x, "y": torch.zeros(2)}], lambda x: x)
    assert torch.equal(vectors, x.flatten(1))


@pytest.mark.parametrize("k", [1, 5, 20])
def test_neighbours_against_scikit_learn(k):
    train, test = clouds(seed=0, spread=3.0), clouds(100, seed=1, spread=3.0)
    oracle = KNeighborsClassifier(k, algorithm="brute").fit(train[0].numpy(), train[1].numpy())
    wanted = torch.from_numpy(oracle.predict(test[0].numpy())) == test[1]
    assert 0.3 < float(wanted.double().mean()) < 0.95
    assert torch.equal(nearest_neighbours(train, test, k=k), wanted.double())


def test_of_equal_votes_the_lowest_class_wins():
    train = torch.tensor([[0.0], [1.0]]), torch.tensor([2, 1])
    assert nearest_neighbours(train, (torch.tensor([[0.4], [0.6]]), torch.tensor([1, 1])), k=2).tolist() == [1, 1]


def test_neighbours_know_no_rotation_shift_or_scale():
    train, test = clouds(seed=0, spread=3.0), clouds(100, seed=1, spread=3.0)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)).Q
    moved = [(3 * x @ turn + 1, y) for x, y in (train, test)]
    assert torch.equal(nearest_neighbours(*moved), nearest_neighbours(train, test))


def test_linear_probe_is_adamw_without_decay_on_cross_entropy():
    train, test = clouds(25), clouds(10, seed=1)
    found = linear_probe(train, test, epochs=3, learning_rate=0.05, batch_size=10, seed=4)
    torch.manual_seed(4)
    layer = nn.Linear(5, 3).double()
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in layer.parameters()}
    step = 0
    for _ in range(3):
        for rows in torch.randperm(25).split(10):
            step += 1
            for p, g in zip(
                moments, torch.autograd.grad(F.cross_entropy(layer(train[0][rows]), train[1][rows]), list(moments)), strict=True
            ):
                first, second = moments[p]
                first.mul_(0.9).add_(0.1 * g)
                second.mul_(0.999).add_(0.001 * g**2)
                p.data -= 0.05 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    assert torch.equal(found, (layer(test[0]).argmax(1) == test[1]).double())
    assert 0 < float(found.mean()) < 1


def test_a_long_linear_probe_is_logistic_regression():
    train, test = clouds(seed=0, spread=2.0), clouds(600, seed=1, spread=2.0)
    oracle = LogisticRegression(C=1e6, max_iter=1000).fit(train[0].numpy(), train[1].numpy())
    wanted = (torch.from_numpy(oracle.predict(test[0].numpy())) == test[1]).double()
    assert torch.equal(linear_probe(train, test, epochs=2000, learning_rate=0.03, batch_size=300), wanted)


def test_labels_of_the_test_part_are_not_learned_from():
    train, test = clouds(seed=0), clouds(60, seed=1)
    renamed = (test[0], (test[1] + 1) % 3)
    for probe in (partial(linear_probe, learning_rate=0.1), nearest_neighbours):
        assert probe(train, test).mean() > 0.8
        assert not (probe(train, test) * probe(train, renamed)).any()  # one prediction cannot be both


def test_nothing_is_learned_from_noise():
    generator = torch.Generator().manual_seed(0)
    parts = [(torch.randn(n, 20, generator=generator), torch.randint(4, (n,), generator=generator)) for n in (400, 2000)]
    for probe in (linear_probe, nearest_neighbours):
        assert abs(float(probe(*parts).mean()) - 0.25) < 0.04


def test_a_seed_is_a_run_and_the_global_random_state_stays():
    train, test = clouds(40, spread=3.0), clouds(200, seed=1, spread=3.0)
    before = torch.get_rng_state()
    with torch.no_grad():  # a caller that measures
        first = linear_probe(train, test, seed=3)
    assert torch.equal(first, linear_probe(train, test, seed=3))
    assert not torch.equal(first, linear_probe(train, test, seed=4))
    assert torch.equal(before, torch.get_rng_state())


def test_a_class_that_only_the_test_part_has_is_never_right():
    train, test = clouds(30), (clouds(4)[0], torch.tensor([3, 3, 3, 3]))
    for found in (linear_probe(train, test), nearest_neighbours(train, test)):
        assert found.tolist() == [0, 0, 0, 0]


def test_bad_input_is_refused():
    train, test = clouds(30), clouds(6, seed=1)
    for probe in (linear_probe, nearest_neighbours):
        with pytest.raises(ValueError, match=r"^test: expected 5 numbers per embedding like train, got 4$"):
            probe(train, (test[0][:, :4], test[1]))
        with pytest.raises(ValueError, match=r"^train: expected embeddings \(N, D\) of at least one example, got \(0, 5\)$"):
            probe((train[0][:0], train[1][:0]), test)
        with pytest.raises(ValueError, match=r"^test: expected embeddings \(N, D\) of at least one example, got \(6,\)$"):
            probe(train, (test[0][:, 0], test[1]))
    with pytest.raises(ValueError, match=r"^k: expected at most the 30 embeddings, got 31$"):
        nearest_neighbours(train, test, k=31)
    with pytest.raises(ValueError, match=r"^k: expected at least 1, got 0$"):
        nearest_neighbours(train, test, k=0)
