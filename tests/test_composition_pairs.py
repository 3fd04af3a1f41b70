"""Pieces of methods put together: every allowed combination in the catalogue trains, and each piece is seen to change the result."""

import copy
import functools
import itertools

import pytest
import torch
from tests.test_every_method import METHODS, make, source_for

from preceptor.catalog import PIECES, load, read, slugs
from preceptor.composition import Composed, LogitMethod, compose
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch
from preceptor.distillation import make_method
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.classic_kd import ClassicKD
from preceptor.methods.dkd import DKD
from preceptor.methods.ghosts import Ghosts
from preceptor.methods.kd_aif import KDAIF
from preceptor.methods.tgeo_kd import TGeoKD

OFFERS = {piece: [None, *(slug for slug in slugs() if piece in read(slug).offers)] for piece in PIECES.values()}
COMBINATIONS = [dict(zip(OFFERS, chosen, strict=True)) for chosen in itertools.product(*OFFERS.values()) if any(chosen)]


def composed(base, parts):
    """A method, or the line by which the combination is refused."""
    method, roles = make(base)
    try:
        return compose(method, **{piece: load(slug)() for piece, slug in parts.items() if slug}), roles
    except ValueError as error:
        return str(error), roles


@functools.cache
def trained(base, chosen):
    """The student after two epochs of one batch each, in steps that are too long for any cap; or why there is none."""
    method, roles = composed(base, dict(zip(OFFERS, chosen, strict=True)))
    if isinstance(method, str):
        return method
    source = source_for(base, 40)
    roles |= method.extra_roles(roles, next(source_for(base, 40)))
    optimizers = {
        phase.name: torch.optim.Adam([p for role in phase.trains for p in roles[role].parameters()], lr=0.5) for phase in method.phases()
    }
    torch.manual_seed(0)
    train(method, roles, source, {} if method.gradient_free else optimizers, steps=2, streams={"valid": source})
    return torch.cat([value.flatten().double() for value in roles["student"].state_dict().values()])


@pytest.mark.parametrize("base", METHODS)
@pytest.mark.parametrize("parts", COMBINATIONS, ids=lambda parts: "+".join(f"{slug}" for slug in parts.values() if slug))
def test_each_piece_changes_the_result_or_is_refused_in_one_line(base, parts):
    whole = trained(base, tuple(parts.values()))
    if isinstance(whole, str):
        assert whole.startswith(tuple(f"method.{piece}: expected" for piece, slug in parts.items() if slug))
        assert "\n" not in whole
        # Each piece alone, or one of the others, is what the base cannot take.
        alone = [composed(base, {piece: slug})[0] for piece, slug in parts.items() if slug]
        assert any(isinstance(each, str) for each in alone)
        return
    assert whole.isfinite().all()
    for piece, slug in parts.items():
        if slug:
            without = trained(base, tuple((parts | {piece: None}).values()))
            assert not torch.equal(whole, without), f"{piece}: {slug}"


def test_what_is_offered_is_found():
    assert "tgeo-kd" in OFFERS["weight"]
    assert "kd-aif" in OFFERS["weight"]
    assert "ghosts" in OFFERS["cap"]
    assert "logit-standardization" in OFFERS["transform"]


def test_all_pieces_at_once():
    options = {"transform": "logit-standardization", "weight": {"name": "tgeo-kd", "eta": 0.3}, "cap": {"name": "ghosts", "r": 0.5}}
    method = make_method("dkd", options)
    assert method == compose(DKD(), transform=load("logit-standardization")(), weight=TGeoKD(eta=0.3), cap=Ghosts(r=0.5))
    assert method.reads == ("valid",)
    assert [phase.name for phase in method.phases()] == ["ratio", "student"]


@pytest.mark.parametrize(
    ("base", "parts", "message"),
    [
        ("fitnets", {"weight": "kd-aif"}, "method.weight: expected a base whose loss needs logits alone, got FitNets"),
        ("ce", {"weight": "tgeo-kd"}, "method.weight: expected a base that learns from the teacher's logits, got CrossEntropy"),
        ("pld", {"weight": "tgeo-kd"}, "method.weight: expected a base with terms of labels and terms of the teacher, got PLD"),
        ("ce", {"transform": "logit-standardization"}, "method.transform: expected a base that learns from the teacher's logits"),
        ("kd-aif", {"weight": "tgeo-kd"}, "method.weight: expected a base without one of its own, got KDAIF"),
        ("ghosts", {"cap": "ghosts"}, "method.cap: expected a base whose updates can be limited, got Ghosts, which has one of its own"),
        ("dkd", {"weight": "ghosts"}, "method.weight: expected one of"),
        ("dkd", {"cap": "tgeo-kd"}, "method.cap: expected one of ghosts, got 'tgeo-kd'"),
    ],
)
def test_what_makes_no_sense_is_refused(base, parts, message):
    layers = {"student_layers": ("a",), "teacher_layers": ("b",)} if base == "fitnets" else {}
    with pytest.raises(ValueError, match="(?s)^" + message) as refused:
        make_method(base, layers | parts)
    assert "\n" not in str(refused.value)


class OwnLoss(LogitMethod):
    """Overrides the loss as a whole."""

    def loss(self, batch, signal, roles, state):
        return {"hard": roles["student"](batch["x"]).sum(-1)}


class Twice(LogitMethod):
    """Has an update and a term of its own."""

    def extra_terms(self, logits, batch, roles, state):
        return {"extra": roles["student"](2 * batch["x"]).square().sum(-1)}

    def update(self, compute, optimizer, batch, roles, state):
        for _ in range(2):
            compute()
            optimizer.step()


def small():
    torch.manual_seed(0)
    student = torch.nn.Linear(3, 4).double()
    batch: Batch = {"x": torch.randn(6, 3, dtype=torch.double), "y": torch.tensor([0, 1, 2, 3, 0, 1]), "id": torch.arange(6)}
    return {"student": student, "teacher": copy.deepcopy(student)}, batch


def test_a_loss_that_is_not_made_of_pieces_is_refused():
    with pytest.raises(ValueError, match=r"method.weight: expected a base whose loss is made of pieces, got OwnLoss"):
        compose(OwnLoss(), weight=KDAIF())
    assert isinstance(compose(OwnLoss(), cap=Ghosts()), Composed)


def test_update_and_further_terms_of_the_base_are_kept():
    roles, batch = small()
    method = compose(Twice(), weight=KDAIF(kappa=0.0, warmup_epochs=0))
    optimizer = torch.optim.SGD(roles["student"].parameters(), lr=0.01)
    train(method, roles, [batch], optimizer, steps=1, streams={"valid": [batch]})
    weighed = roles["student"].weight.clone()
    roles, batch = small()
    train(Twice(), roles, [batch], torch.optim.SGD(roles["student"].parameters(), lr=0.01), steps=1)
    torch.testing.assert_close(weighed, roles["student"].weight)  # weights are 1: nothing else of the base may be lost
    terms = method.loss(batch, {}, roles, State(total_steps=1))
    assert set(terms) == {"hard", "extra"}


def test_a_chain_is_composed_in_its_last_training():
    roles, _ = small()
    stages = compose(make_method("born-again", {}), cap=Ghosts()).stages(roles["teacher"], roles["student"])
    assert len(stages) > 1
    assert [isinstance(stage.method, Composed) for stage in stages] == [False] * (len(stages) - 1) + [True]


def test_nothing_added_is_the_base():
    base = ClassicKD()
    assert compose(base) is base
    assert compose(CrossEntropy(), weight=KDAIF()).signal({}, {}, State(total_steps=1)) == {}  # labels alone: no teacher is asked
