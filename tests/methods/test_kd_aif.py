"""Weights of examples by influence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from preceptor.composition import compose
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.losses.hard import hard_loss
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.classic_kd import ClassicKD
from preceptor.methods.dkd import DKD
from preceptor.methods.kd_aif import CARD, KDAIF, influence_to_weight, miniature
from preceptor.metrics.influence import Part, influence_scores


def test_defaults_are_those_of_the_card():
    method = KDAIF()
    assert (method.kappa, method.every_epochs, method.damping, method.ema) == (2.0, 5, 1e-2, 0.0)
    assert (CARD.slug, CARD.needs) == ("kd-aif", ("teacher", "logits", "labels"))


def test_weights_of_influences():
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    weights = influence_to_weight(scores)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0).double())
    assert (weights > 0).all()
    order = scores.argsort()
    assert (weights[order].diff() < 0).all()
    torch.testing.assert_close(influence_to_weight(3 * scores), weights)
    torch.testing.assert_close(influence_to_weight(scores[order]), weights[order])
    raw = [1 / (1 + torch.exp(2 * score / scores.std(correction=0))) for score in scores]
    torch.testing.assert_close(weights, torch.stack(raw) / (sum(raw) / 50))


def test_kappa():
    scores = torch.tensor([-2.0, -0.5, 0.1, 1.0])
    assert (influence_to_weight(scores, kappa=0.0) == 1).all()
    torch.testing.assert_close(influence_to_weight(scores, kappa=1e4), torch.tensor([2.0, 2.0, 0.0, 0.0]))


def test_odd_influences():
    assert (influence_to_weight(torch.full((4,), 0.3)) == 1).all()
    weights = influence_to_weight(torch.tensor([torch.nan, -1.0, 1.0, torch.inf]))
    assert weights[0] == weights[3] == 0
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    outlier = influence_to_weight(torch.cat([torch.zeros(99), torch.tensor([1e9])]))
    torch.testing.assert_close(outlier[0] / outlier[-1], 0.5 / torch.sigmoid(torch.tensor(-10.0)))
    assert influence_to_weight(torch.tensor([0.7])).tolist() == [1.0]
    with pytest.raises(ValueError, match="kappa: expected a number >= 0, got -1"):
        influence_to_weight(torch.zeros(3), kappa=-1.0)
    with pytest.raises(ValueError, match="scores: expected a finite number at least, got none among 2"):
        influence_to_weight(torch.full((2,), torch.nan))
    with pytest.raises(ValueError, match="kappa: expected one that leaves some weight, got 1e\\+06 with no helpful example"):
        influence_to_weight(torch.tensor([1.0, 2.0]), kappa=1e6)


# In training.


def data(seed, count=20):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, dtype=torch.double, generator=generator)
    return examples_from((x, torch.randint(0, 3, (count,), generator=generator)), 3).subset(torch.arange(count).flip(0))


def networks():
    torch.manual_seed(1)
    return {"student": nn.Linear(4, 3).double(), "teacher": nn.Linear(4, 3).double()}


def fitted(method, *, steps, batch_size=5, roles=None):
    roles = roles or networks()
    logs = []
    state = train(
        method,
        roles,
        Source(data(2), batch_size=batch_size),
        torch.optim.SGD(roles["student"].parameters(), lr=0.1),
        steps=steps,
        streams={"valid": Source(data(3, 8), batch_size=3)},
        progress=lambda record: logs.append(record.extras),
    )
    return roles, state, logs


def test_weights_are_found_by_the_schedule():
    _, _, logs = fitted(KDAIF(warmup_epochs=1, every_epochs=2), steps=24)
    assert [step for step, log in enumerate(logs) if "harmful" in log] == [4, 12, 20]
    assert all(0 <= logs[step]["harmful"] <= 1 and logs[step]["nonfinite"] == 0 for step in (4, 12, 20))


def test_before_the_first_weights_it_is_classic_distillation():
    found, plain = fitted(KDAIF(), steps=4)[0], fitted(ClassicKD(), steps=4)[0]
    assert torch.equal(found["student"].weight, plain["student"].weight)
    assert not torch.equal(fitted(KDAIF(), steps=5)[0]["student"].weight, fitted(ClassicKD(), steps=5)[0]["student"].weight)


@pytest.mark.parametrize("base", [None, CrossEntropy(), DKD(warmup_epochs=0)], ids=["alone", "ce", "dkd"])
def test_weights_are_those_of_the_losses_that_are_weighed(base):
    method = KDAIF(warmup_epochs=0)
    whole = method if base is None else compose(base, weight=method)
    roles = networks()
    state = State(total_steps=1)
    state.source, state.streams = Source(data(2), batch_size=6), {"valid": Source(data(3, 8), batch_size=3)}
    batch = next(Source(data(2), batch_size=7, seed=4))
    whole.prepare(batch, roles, state)
    everything, valid = data(2).batch(torch.arange(20)), data(3, 8).batch(torch.arange(8))
    signal = whole.signal(everything, roles, state)

    def losses(logits):
        hard, soft = whole.items(logits, signal, everything, state)
        return sum(hard.values()) + sum(soft.values())

    scores = influence_scores(roles["student"], [Part(everything["x"], losses)], [Part(valid["x"], lambda z: hard_loss(z, valid))])
    by_id = dict(zip(everything["id"].tolist(), influence_to_weight(scores), strict=True))
    expected = torch.stack([by_id[i] for i in batch["id"].tolist()])
    terms = whole.loss(batch, whole.signal(batch, roles, state), roles, state)
    hard, soft = whole.items(roles["student"](batch["x"]), whole.signal(batch, roles, state), batch, state)
    for name, term in (hard | soft).items():
        torch.testing.assert_close(terms[name], expected * term)
    assert torch.equal(state.memory["kd-aif/ids"], everything["id"].sort().values)
    torch.testing.assert_close(state.memory["kd-aif/influence"], scores[everything["id"].argsort()])


def test_an_unknown_example_weighs_one():
    method = KDAIF(warmup_epochs=0)
    roles, state, _ = fitted(method, steps=1)
    logits = torch.zeros(3, 3)
    weights = method.weigh(logits, {}, {"id": torch.tensor([3, 10**9, -5])}, roles, state)
    assert weights[0][0] == state.memory["kd-aif/weights"][3] != 1
    assert (weights[0][1:] == 1).all()
    tokens = method.weigh(torch.zeros(3, 5, 3), {}, {"id": torch.tensor([3, 4, 5])}, roles, state)
    assert tokens[0].shape == (3, 1)


def test_shuffled_weights_are_the_same_weights():
    kept = [fitted(KDAIF(warmup_epochs=0, shuffled=shuffled), steps=1)[1].memory["kd-aif/weights"] for shuffled in (False, True)]
    assert not torch.equal(*kept)
    torch.testing.assert_close(kept[0].sort().values, kept[1].sort().values)


def test_a_part_of_the_old_weights_stays():
    first = fitted(KDAIF(warmup_epochs=0, every_epochs=1), steps=1)[1].memory["kd-aif/weights"]
    for ema, expected in ((1.0, True), (0.5, False)):
        later = fitted(KDAIF(warmup_epochs=0, every_epochs=1, ema=ema), steps=9)[1].memory["kd-aif/weights"]
        assert torch.allclose(first, later) == expected


def test_options_of_the_solver_reach_it():
    def weights(**options):
        return fitted(KDAIF(warmup_epochs=0, **options), steps=1)[1].memory["kd-aif/weights"]

    plain = weights()
    torch.testing.assert_close(weights(solver="lissa", iterations=5000), plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weights(layers="last"), plain)  # there is one layer
    for options in ({"curvature": "identity"}, {"damping": 1.0}, {"iterations": 1}, {"kappa": 1.0}):
        assert not torch.allclose(weights(**options), plain), options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"damping": -1.0}, "damping: expected a finite number > 0"),
        ({"alpha": 2.0}, r"alpha: expected a number in \[0, 1\]"),
        ({"ema": -0.1}, r"ema: expected a number in \[0, 1\]"),
        ({"kappa": -2.0}, "kappa: expected a number >= 0, got -2.0"),
        ({"warmup_epochs": -1}, "warmup_epochs: expected a number >= 0, got -1"),
        ({"every_epochs": 0}, "every_epochs: expected at least 1, got 0"),
        ({"curvature": "fisher"}, "curvature: expected one of"),
        ({"solver": "lu"}, "solver: expected one of"),
        ({"layers": "first"}, "layers: expected one of"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        KDAIF(**options)


def test_miniature():
    found = miniature(0, "smoke")
    assert set(found.arms) == {"untrained-teacher", "classic-kd", "shuffled", "valid-only", "kd-aif"}
    assert [(claim.baseline, claim.margin) for claim in found.claims[:1]] == [("shuffled", 0.3)]
    assert found.arms["classic-kd"]["detection"] == 0.5
