"""Neural classifiers and forecasters of series: what goes in, what may not, and that they learn."""

import numpy as np
import pytest
import torch
from torch import nn

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.education.forecasting import forecast, mase
from preceptor.education.panel import Panel, carried, panel_of, synthetic_panel
from preceptor.education.scores import auc, score
from preceptor.education.series_networks import (
    SeriesClassification,
    SeriesForecasting,
    SeriesTraining,
    _level,
    _usual,
    classify_by_network,
    forecast_by_network,
)
from preceptor.education.trajectories import classify

RANDOM = np.random.default_rng(0)
BRIEF = SeriesTraining(width=8, epochs=2)


def test_the_usual_season_and_level_against_slow_loops():
    x, m, horizon = RANDOM.standard_normal((2, 40)), 7, 10
    found = _usual(x, horizon, m)
    for u in range(2):
        for t in range(m - 1, 40):
            for h in range(1, horizon + 1):
                same = [s for s in range(t + 1) if (t + h - s) % m == 0]
                assert np.isclose(found[u, t, h - 1], x[u, same[-4:]].mean(), rtol=1e-12)
    np.testing.assert_allclose(_level(x, 28)[0], [np.abs(x[0, max(0, t - 27) : t + 1]).mean() + 0.1 for t in range(40)], rtol=1e-12)


@pytest.mark.parametrize("name", ["gru", "tcn"])
def test_an_untrained_forecaster_is_the_usual_season(name):
    x = RANDOM.random((5, 40)) + 1
    found = forecast_by_network(panel_of(x), 9, name, training=SeriesTraining(width=4, epochs=1, learning_rate=0.0))
    np.testing.assert_allclose(found, [[np.mean(row[(40 + h) % 7 :: 7][-4:]) for h in range(9)] for row in x], rtol=1e-5)


def test_losses_are_those_of_their_definition_and_the_unknown_costs_nothing():
    class Said(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, x):
            return self.value

    logits = torch.randn(3, 4, 2)
    y = torch.tensor([0, 1, 1])
    found = SeriesClassification().loss({"x": {"series": logits}, "y": y}, {}, {"student": Said(logits)}, State(total_steps=1))["ce"]
    chance = logits[:, -1, 1] - logits[:, -1, 0]
    expected = nn.functional.binary_cross_entropy_with_logits(chance, y.float(), reduction="none")
    torch.testing.assert_close(found, expected)  # of two classes: the binary cross-entropy

    said, target, level = torch.randn(2, 4, 3), torch.randn(2, 4, 3), torch.rand(2, 4, 1)
    known = (torch.rand(2, 4, 3) < 0.5).float()
    method, roles = SeriesForecasting(), {"student": Said(said)}
    batch = method.prepare({"x": {"series": said, "level": level, "target": target, "known": known}}, roles, State(total_steps=1))
    first = method.loss(batch, {}, roles, State(total_steps=1))["absolute"]
    batch["x"] = {**batch["x"], "target": target + 9 * (1 - known)}
    second = method.loss(batch, {}, roles, State(total_steps=1))["absolute"]
    assert torch.equal(first, second)
    assert torch.equal(first, (level * said - target).abs() * known)
    assert torch.equal(batch["mask"], known)


def test_targets_are_the_known_values_ahead_and_no_others(monkeypatch):
    x, mask = RANDOM.random((3, 30)) + 1, RANDOM.random((3, 30)) < 0.8
    mask[:, 0] = True
    given = []
    monkeypatch.setattr("preceptor.education.series_networks._fit", lambda network, method, examples, *rest: given.append(examples.inputs))
    forecast_by_network(Panel(values=x[..., None], mask=mask), 5, "gru", period=7)
    known, target = (given[0][name].numpy() for name in ("known", "target"))
    filled = carried(Panel(values=x[..., None], mask=mask))
    usual = _usual(filled, 5, 7)
    for u in range(3):
        for t in range(30):
            for h in range(5):
                asked = t + h + 1
                assert known[u, t, h] == (t >= 6 and asked < 30 and mask[u, asked])
                if known[u, t, h]:
                    assert np.isclose(target[u, t, h], (x[u, asked] - usual[u, t, h]) / filled[u].mean(), atol=1e-5)


@pytest.mark.parametrize("name", ["gru", "tcn"])
def test_missing_values_and_later_ones_change_nothing(name):
    panel = synthetic_panel("activity", 0, students=30)
    mask = RANDOM.random(panel.mask.shape) < 0.8
    mask[:, 0] = True
    first = Panel(values=panel.values, mask=mask, labels=panel.labels)
    second = Panel(values=np.where(mask[..., None], panel.values, 1e3), mask=mask, labels=panel.labels)
    said = [forecast_by_network(part, 5, name, training=BRIEF) for part in (first, second)]
    assert np.array_equal(*said)
    told = [classify_by_network(part, part, name, training=BRIEF)[1] for part in (first, second)]
    assert np.array_equal(*told)
    later = Panel(values=np.concatenate([first.values[:, :60], first.values[:, 60:] + 7], 1), mask=mask, labels=panel.labels)
    early = [classify(part, part, name, prefix=60 / 84, training=BRIEF)[1] for part in (first, later)]
    assert np.array_equal(*early)


@pytest.mark.parametrize("name", ["gru", "tcn"])
def test_the_same_seed_gives_the_same_and_nothing_global_moves(name):
    panel = synthetic_panel("activity", 0, students=20)
    state = torch.get_rng_state()
    first, second = (classify_by_network(panel, panel, name, training=BRIEF, seed=seed)[1] for seed in (0, 0))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, classify_by_network(panel, panel, name, training=BRIEF, seed=1)[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["gru", "tcn"])
def test_classifiers_learn_labels_of_any_names_and_what_does_not_change(name):
    panel = synthetic_panel("activity", 0, students=160)
    named = Panel(values=panel.values, mask=panel.mask, labels=3 + 2 * panel.labels)
    brief = SeriesTraining(width=16, epochs=15)
    labels, chance = classify(named.take(slice(120)), named.take(slice(120, None)), name, training=brief)
    assert set(labels.tolist()) <= {3, 5}
    assert auc(chance, panel.labels[120:]) > 0.9
    assert np.array_equal(labels == 5, chance > 0.5)
    static = RANDOM.standard_normal((80, 2))  # says all, the series nothing
    silent = Panel(values=np.zeros((80, 6, 1)), mask=np.ones((80, 6), bool), labels=(static[:, 1] > 0).astype(int), static=static)
    told = classify(silent.take(slice(50)), silent.take(slice(50, None)), name, training=SeriesTraining(width=8, epochs=20))[1]
    assert auc(told, silent.labels[50:]) > 0.9


@pytest.mark.parametrize("name", ["gru", "tcn"])
def test_forecasters_learn_what_all_students_share(name):
    random, t = np.random.default_rng(1), np.arange(42)
    x = np.exp(-0.05 * t) * (1 + np.sin(2 * np.pi * t / 7 + random.random((80, 1)))) * random.gamma(4, 1, (80, 1)) + 1e-3
    past, future = panel_of(x[:, :35]), x[:, 35:]
    begun, trained = (forecast(past, 7, name, training=SeriesTraining(width=16, epochs=30, learning_rate=rate)) for rate in (0.0, 3e-3))
    assert mase(trained, future, x[:, :35]).mean() < 0.5 * mase(begun, future, x[:, :35]).mean()


def test_held_out_students_choose_the_weights_and_when_to_stop(monkeypatch):
    panel, states = synthetic_panel("activity", 0, students=60), []

    def recorded(*args, **options):
        states.append(train(*args, **options))
        return states[-1]

    monkeypatch.setattr("preceptor.education.series_networks.train", recorded)

    def held_loss(epochs, *, patience=99, held_out=0.2, students=60):
        training = SeriesTraining(width=4, epochs=epochs, patience=patience, learning_rate=0.3, held_out=held_out)
        part = panel.take(slice(students))
        chance = classify_by_network(part, part, "gru", training=training)[1]
        held = np.random.default_rng(0).permutation(students)[:12]
        return score(chance[held].astype(float), part.labels[held])["log_loss"]

    losses = [held_loss(epochs) for epochs in (1, 4, 12)]
    assert losses == sorted(losses, reverse=True)  # the best of more epochs is never worse
    assert losses[2] < losses[0]
    assert states[-1].step == 12 * 2
    held_loss(12, patience=1)
    assert states[-1].step < 12 * 2
    assert held_loss(3, students=45) == held_loss(3, students=45, held_out=0.0)  # nine students: too few to choose by
    assert held_loss(3, students=60) != held_loss(3, students=60, held_out=0.0)


def test_too_short_a_past_is_refused_or_answered_by_the_last_value():
    panel = panel_of(np.arange(20.0)[None] + np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"^panel: expected more than 21 steps for a season of 7 and 14 ahead, got 20$"):
        forecast_by_network(panel, 14, "gru")
    assert (forecast(panel, 14, "tcn") == 19).all()
