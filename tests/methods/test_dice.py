"""Dice loss as a method."""

import pytest
import torch
from tests.test_every_method import tiny_lm
from torch import nn

from preceptor.composition import compose
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.losses.dice import dice_loss
from preceptor.methods import dice as module
from preceptor.methods.dice import CARD, Dice
from preceptor.methods.kd_aif import KDAIF
from preceptor.methods.logit_standardization import LogitStandardization, standardize_logits
from preceptor.methods.tgeo_kd import TGeoKD

STATE = State(total_steps=1)


def world(outputs=4):
    torch.manual_seed(0)
    roles = {"student": nn.Linear(3, outputs).double(), "teacher": nn.Linear(3, outputs).double()}
    y = torch.tensor([0, 1, 3, 2, 2]) if outputs > 1 else torch.tensor([0, 1, 0, 0, 1])
    return roles, {"x": torch.randn(5, 3, dtype=torch.double), "y": y, "id": torch.arange(5)}


def terms_of(method, roles, batch):
    with torch.no_grad():
        signal = method.signal(batch, roles, STATE)
    return method.loss(batch, signal, roles, STATE)


def test_defaults_are_those_of_the_card():
    method = Dice()
    assert (method.alpha, method.smooth, method.square, method.ohem_ratio) == (0.01, 1.0, True, 0.0)
    assert (method.level, method.classes, method.class_reduction, method.detach_factor) == ("set", None, "mean", False)
    assert (CARD.slug, CARD.needs) == ("dice", ("labels",))


@pytest.mark.parametrize("outputs", [4, 1])
def test_every_field_reaches_the_loss(outputs):
    roles, batch = world(outputs)
    logits = roles["student"](batch["x"])
    changes = [
        {"alpha": 1.0},
        {"smooth": 0.1},
        {"square": False},
        {"level": "example"},
        {"ohem_ratio": 0.5},
    ]
    changes += [{"classes": (1, 2)}, {"class_reduction": "sum"}] if outputs > 1 else []
    plain = terms_of(Dice(), roles, batch)["hard"]
    for change in changes:
        got = terms_of(Dice(**change), roles, batch)["hard"]
        options = {"alpha": 0.01, "smooth": 1.0, "square": True, "level": "set", "class_reduction": "mean"} | change
        torch.testing.assert_close(got, dice_loss(logits, batch["y"], **options))
        assert got.shape == ((5,) if change.get("level") else ())
        assert not torch.allclose(got.mean(), plain), change
    few = {**batch, "y": batch["y"].clamp_max(1)}
    if outputs > 1:
        assert not torch.allclose(terms_of(Dice(skip_absent=True), roles, few)["hard"], terms_of(Dice(), roles, few)["hard"])
    held, free = (torch.autograd.grad(terms_of(Dice(detach_factor=d), roles, batch)["hard"], roles["student"].weight)[0] for d in (1, 0))
    assert not torch.allclose(held, free)


def test_the_set_relates_items_and_each_item_alone_does_not():
    assert Dice().coupled is True
    assert Dice(level="example").coupled is False
    roles, batch = world()
    with pytest.raises(ValueError, match=r"^micro: Dice relates the items of a batch and cannot be split, expected 1, got 2$"):
        train(Dice(), roles, [batch], torch.optim.SGD(roles["student"].parameters(), lr=0.1), steps=1, micro=2)


def test_the_set_leaves_masked_items_out():
    roles, batch = world()
    mask = torch.tensor([1.0, 0, 1, 1, 0])
    kept = {name: value[mask > 0] for name, value in batch.items()}
    expected = terms_of(Dice(soft_weight=1.0), roles, kept)
    for masks in ({"mask": mask}, {"mask/hard": mask, "mask/soft": mask, "mask": torch.ones(5)}):
        got = terms_of(Dice(soft_weight=1.0), roles, {**batch, **masks})
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value)
    alone = terms_of(Dice(level="example"), roles, {**batch, "mask": mask})["hard"]  # masked by the loop
    torch.testing.assert_close(alone[mask > 0], terms_of(Dice(level="example"), roles, kept)["hard"])


@pytest.mark.parametrize("level", ["set", "example"])
def test_training_with_masked_items_is_training_without_them(level):
    def weights(spoil):
        roles, batch = world()
        if spoil:
            rows = torch.tensor([0, 0, 1, 2, 2, 3, 4])
            batch = {name: value[rows] for name, value in batch.items()} | {"mask": torch.tensor([1.0, 0, 1, 1, 0, 1, 1])}
        train(Dice(level=level), roles, [batch], torch.optim.SGD(roles["student"].parameters(), lr=0.5), steps=3)
        return roles["student"].weight.detach()

    torch.testing.assert_close(weights(True), weights(False))
    assert not torch.allclose(weights(False), world()[0]["student"].weight, atol=1e-3)


@pytest.mark.parametrize("outputs", [4, 1])
@pytest.mark.parametrize("level", ["set", "example"])
def test_the_soft_term_learns_from_the_teacher(outputs, level):
    roles, batch = world(outputs)
    method = Dice(soft_weight=0.5, level=level)
    teacher, student = (roles[role](batch["x"]) for role in ("teacher", "student"))
    probs = (teacher.softmax(-1) if outputs > 1 else teacher.sigmoid()).detach()
    expected = dice_loss(student, probs, alpha=0.01, square=True, level=level)
    torch.testing.assert_close(terms_of(method, roles, batch)["soft"], 0.5 * expected)
    assert set(terms_of(Dice(level=level), roles, batch)) == {"hard"}
    with pytest.raises(ValueError, match=r"^soft_weight: expected 0 without a teacher, got 0.5$"):
        method.signal(batch, {"student": roles["student"]}, STATE)


def test_mixed_targets():
    roles, batch = world()
    mixed = torch.rand(5, 4, dtype=torch.double).softmax(-1)
    got = terms_of(Dice(), roles, {**batch, "targets": mixed})["hard"]
    torch.testing.assert_close(got, dice_loss(roles["student"](batch["x"]), mixed, alpha=0.01, square=True))


@pytest.mark.parametrize("level", ["set", "example"])
def test_tokens(level):
    torch.manual_seed(0)
    roles = {"student": tiny_lm(1)}
    tokens = torch.randint(3, 11, (4, 6))
    mask = torch.ones(4, 6)
    mask[0, 3:] = 0
    batch = {"x": {"input_ids": tokens, "use_cache": False}, "y": (tokens > 8).long(), "mask": mask, "id": torch.arange(4)}
    method = Dice(level=level, classes=(1,), smooth=0.1)
    term = terms_of(method, roles, batch)["hard"]
    assert term.shape == ((4, 6) if level == "example" else ())
    logits, keep = roles["student"](**batch["x"]).logits, mask.bool()
    expected = dice_loss(logits[keep], batch["y"][keep], alpha=0.01, square=True, smooth=0.1, level=level, classes=(1,))
    torch.testing.assert_close(term[keep] if level == "example" else term, expected)
    optimizer, losses = torch.optim.Adam(roles["student"].parameters(), lr=0.01), []
    train(method, roles, [batch], optimizer, steps=60, progress=lambda record: losses.append(record.losses["hard"]))
    assert losses[-1] < losses[0] / 3
    guess = roles["student"](**batch["x"]).logits[keep].argmax(-1)
    torch.testing.assert_close(guess == 1, batch["y"][keep] == 1)


def test_all_processes_make_one_set(monkeypatch):
    roles, batch = world()
    mask = torch.tensor([1.0, 0, 1, 1, 1])
    whole = terms_of(Dice(), roles, {**batch, "mask": mask})["hard"]
    rest = iter([batch["y"][3:], roles["student"](batch["x"][3:]), mask[3:]])  # what the other process holds
    monkeypatch.setattr(module, "gathered", lambda mine: torch.cat([mine, next(rest)]))
    mine = {name: value[:3] for name, value in {**batch, "mask": mask}.items()}
    torch.testing.assert_close(terms_of(Dice(), roles, mine)["hard"], whole)


def test_weights_of_examples_need_examples():
    for weight in (KDAIF(), TGeoKD()):
        with pytest.raises(ValueError, match=r"^method.weight: expected a base with a loss of each example alone, got Dice$"):
            compose(Dice(soft_weight=1.0), weight=weight)
        compose(Dice(soft_weight=1.0, level="example"), weight=weight)
    with pytest.raises(ValueError, match=r"^method.weight: expected a base that learns from the teacher's logits, got Dice$"):
        compose(Dice(level="example"), weight=TGeoKD())


def test_a_transform_comes_before_the_soft_term():
    roles, batch = world()
    method = compose(Dice(soft_weight=1.0), transform=LogitStandardization())
    assert method.coupled
    teacher, student = (standardize_logits(roles[role](batch["x"])) for role in ("teacher", "student"))
    expected = dice_loss(student, teacher.softmax(-1), alpha=0.01, square=True)
    torch.testing.assert_close(terms_of(method, roles, batch)["soft"], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, r"^alpha: expected a finite number >= 0, got -1.0$"),
        ({"smooth": 0.0}, r"^smooth: expected a finite number > 0, got 0.0$"),
        ({"soft_weight": -1.0}, r"^soft_weight: expected a finite number >= 0, got -1.0$"),
        ({"level": "token"}, r"^level: expected one of set, example, got 'token'$"),
        (
            {"level": "example", "skip_absent": True},
            r"^level: expected set with skip_absent or ohem_ratio, which relate the items, got 'example'$",
        ),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Dice(**options)
