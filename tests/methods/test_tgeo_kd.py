"""Ratios of teacher and label learned from validation data."""

from __future__ import annotations

import math
from itertools import chain, pairwise

import pytest
import torch
from tests.parity import check_folder
from tests.test_parity import GOLDEN
from torch import Tensor, nn

from preceptor.composition import compose
from preceptor.core.reduce import global_counts, reduce_terms
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.losses.divergence import forward_kl
from preceptor.losses.hard import hard_loss
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.dkd import DKD
from preceptor.methods.tgeo_kd import CARD, TGeoKD, miniature, trilateral_state
from preceptor.models.functional import logits_at

CLASSES = 3


def network(seed, *hidden):
    torch.manual_seed(seed)
    widths = (4, *hidden, CLASSES)
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double()


def data(seed, count=12):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, dtype=torch.double, generator=generator)
    return examples_from((x, torch.arange(count) % CLASSES), CLASSES)


def world(method, *, student=None):
    """Roles, one batch, and a state with validation data."""
    roles = {"student": student or network(1), "teacher": network(2, 6)}
    batch = next(Source(data(3), batch_size=12, seed=0))
    batch.pop("epoch")
    torch.manual_seed(0)
    roles |= method.extra_roles(roles, batch)
    state = State(total_steps=10)
    state.source, state.streams = Source(data(3), batch_size=5), {"valid": Source(data(4, 9), batch_size=9)}
    return roles, batch, state


def test_defaults_are_those_of_the_card():
    method = TGeoKD()
    assert (method.temperature, method.hidden, method.eta, method.every) == (1.5, (32, 16), 0.1, 1)
    assert (CARD.slug, CARD.needs) == ("tgeo-kd", ("teacher", "logits", "labels"))
    roles, *_ = world(method)
    shapes = [tuple(p.shape) for p in roles["ratio"].parameters()]
    assert shapes == [(32, 27), (32,), (16, 32), (16,), (1, 16), (1,)]


def test_parity():
    lines = [line for line in check_folder(GOLDEN) if line.slug == "tgeo-kd"]
    assert len(lines) == 2
    assert {line.status for line in lines} == {"ok"}


# What the ratio network sees.


@pytest.mark.parametrize(("include", "columns"), [("full", 27), ("triangle", 18), ("sides", 15), ("reduced", 9)])
def test_columns(include, columns):
    student, teacher = torch.randn(2, 5, CLASSES, dtype=torch.double)
    student.requires_grad_()
    labels = torch.tensor([0, 1, 2, 2, 0])
    averages = torch.rand(5, CLASSES, dtype=torch.double)
    seen = trilateral_state(student, teacher, labels, averages, include=include)
    assert seen.shape == (5, columns)
    assert not seen.requires_grad
    torch.testing.assert_close(trilateral_state(student + 2, teacher - 1, labels, averages, include=include), seen)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = trilateral_state(student[order], teacher[order], labels[order], averages[order], include=include)
    torch.testing.assert_close(permuted, seen[order])


def test_reference():
    torch.manual_seed(5)
    student, teacher = torch.randn(2, 4, CLASSES, dtype=torch.double)
    labels, averages = torch.tensor([0, 2, 1, 1]), torch.rand(4, CLASSES, dtype=torch.double)
    full = trilateral_state(student, teacher, labels, averages)
    reduced = trilateral_state(student, teacher, labels, averages, include="reduced")
    for i in range(4):
        s, t = ([math.exp(v) / sum(map(math.exp, z)) for v in z] for z in (student[i].tolist(), teacher[i].tolist()))
        g, a = [float(c == labels[i]) for c in range(CLASSES)], averages[i].tolist()
        sides = [[(p - q) ** 2 for p, q in zip(*pair, strict=True)] for pair in ((a, s), (g, s), (t, s), (t, g), (a, g))]
        torch.testing.assert_close(full[i], torch.tensor([*s, *t, *g, *a, *chain(*sides)], dtype=torch.double))
        entropies = [-sum(p * math.log(p) for p in z) for z in (s, t)]
        y = int(labels[i])
        torch.testing.assert_close(reduced[i], torch.tensor([*map(sum, sides), *entropies, s[y], t[y]], dtype=torch.double))


def test_no_sides_where_all_agree():
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    seen = trilateral_state(logits, logits, torch.tensor([0]), torch.tensor([[1.0, 0.0, 0.0]]))
    assert not seen[:, 12:].any()
    assert torch.equal(seen[:, :12], torch.tensor([[1.0, 0.0, 0.0] * 4]))


@pytest.mark.parametrize("include", ["full", "reduced"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_masks_and_odd_shapes(include, dtype):
    student, teacher = 1e4 * torch.randn(2, 6, CLASSES).to(dtype)
    student[0, 1] = teacher[1, 0] = -torch.inf
    labels = torch.tensor([0, 1, 2, 2, 0, 1])
    averages = torch.full((6, CLASSES), 1 / CLASSES)
    seen = trilateral_state(student, teacher, labels, averages, include=include)
    assert seen.dtype == torch.float32
    assert seen.isfinite().all()
    assert trilateral_state(student[:0], teacher[:0], labels[:0], averages[:0], include=include).shape[0] == 0
    one = trilateral_state(student[:1, :1], teacher[:1, :1], labels[:1], torch.ones(1, 1), include=include)
    assert one.isfinite().all()


def test_wrong_input_is_refused():
    z, labels = torch.randn(4, CLASSES), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match="teacher: expected 3 classes like student, got 2"):
        trilateral_state(z, z[:, :2], labels, z)
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 2\], got 3"):
        trilateral_state(z, z, labels + 1, z)
    with pytest.raises(ValueError, match="include: expected one of sides, triangle, full, reduced, got 'all'"):
        trilateral_state(z, z, labels, z, include="all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"ratio": "ada"}, "ratio: expected one of learned, frozen, fixed, wls, annealed, got 'ada'"),
        ({"include": "all"}, "include: expected one of"),
        ({"alpha": 1.5}, r"alpha: expected a number in \[0, 1\], got 1.5"),
        ({"eta": -0.1}, "eta: expected a number >= 0, got -0.1"),
        ({"every": 0}, "every: expected at least 1, got 0"),
        ({"hidden": (4, 0)}, r"hidden\[1\]: expected at least 1, got 0"),
        ({"lowest": 0.6, "highest": 0.6}, "highest: expected more than lowest, 0.6, got 0.6"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TGeoKD(**options)


# The student's loss.


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_affine_in_the_ratio(alpha):
    method = TGeoKD(ratio="fixed", alpha=alpha)
    roles, batch, state = world(method)
    assert "ratio" not in roles
    terms = method.loss(batch, method.signal(batch, roles, state), roles, state)
    logits = roles["student"](batch["x"])
    torch.testing.assert_close(terms["hard"], (1 - alpha) * hard_loss(logits, batch))
    torch.testing.assert_close(terms["soft"], alpha * 2.25 * forward_kl(logits, roles["teacher"](batch["x"]), temperature=1.5))


def weights(method, step=0):
    roles, batch, state = world(method)
    state.step = step
    batch = method.prepare(batch, roles, state)
    signal = method.signal(batch, roles, state)
    return roles, batch, signal, method.weigh(roles["student"](batch["x"]).detach(), signal, batch, roles, state)


def test_baselines_of_the_ratio():
    roles, batch, _, (hard, soft) = weights(TGeoKD(ratio="wls"))
    losses = [hard_loss(roles[role](batch["x"]), batch) for role in ("student", "teacher")]
    torch.testing.assert_close(soft, 1 - torch.exp(-losses[0] / losses[1]))
    torch.testing.assert_close(hard + soft, torch.ones(12).double())
    assert (weights(TGeoKD(ratio="annealed"), step=4)[3][1] == 0.6).all()
    soft = weights(TGeoKD(ratio="frozen", lowest=0.4, highest=0.45))[3][1]
    assert ((soft > 0.4) & (soft < 0.45)).all()
    assert [phase.name for phase in TGeoKD(ratio="frozen").phases()] == ["student"]
    assert [phase.name for phase in TGeoKD().phases()] == ["ratio", "student"]


def test_ratios_are_constants():
    method = TGeoKD()
    roles, batch, state = world(method)
    batch = method.prepare(batch, roles, state)
    terms = method.loss(batch, method.signal(batch, roles, state), roles, state)
    sum(term.sum() for term in terms.values()).backward()
    assert all(p.grad is None for p in roles["ratio"].parameters())


def test_class_averages_are_over_all_training_data_and_found_once():
    method = TGeoKD()
    roles, batch, state = world(method)
    method.prepare({**batch, "x": batch["x"][:5], "y": batch["y"][:5], "id": batch["id"][:5]}, roles, state)
    whole = data(3)
    predictions = roles["teacher"](whole.inputs).softmax(-1)
    expected = torch.stack([predictions[whole.labels == c].mean(0) for c in range(CLASSES)])
    torch.testing.assert_close(state.memory["tgeo-kd/averages"], expected)
    state.memory["tgeo-kd/averages"] = kept = torch.zeros_like(expected)
    method.prepare(batch, roles, state)
    assert state.memory["tgeo-kd/averages"] is kept


def test_a_class_without_an_example_counts_as_uniform():
    method = TGeoKD()
    roles, batch, state = world(method)
    state.source = Source(data(3, 2), batch_size=2)
    method.prepare(batch, roles, state)
    torch.testing.assert_close(state.memory["tgeo-kd/averages"][2], torch.full((CLASSES,), 1 / CLASSES).double())


# The hypergradient.


def validation_loss(method, whole, roles, batch, state, ratio: Tensor | None = None) -> float:
    """Loss on validation data after the virtual step, for the ratios that the network gives now, or given ones."""
    student, signal = roles["student"], whole.signal(batch, roles, state)
    hard, soft = whole.items(student(batch["x"]), signal, batch, state)
    alpha = method.weigh(student(batch["x"]).detach(), signal, batch, roles, state)[1] if ratio is None else ratio
    loss = sum(((1 - alpha) * term).mean() for term in hard.values()) + sum((alpha * term).mean() for term in soft.values())
    names, parameters = zip(*student.named_parameters(), strict=True)
    gradient = torch.autograd.grad(loss, parameters)
    ahead = {name: p.detach() - method.eta * g for name, p, g in zip(names, parameters, gradient, strict=True)}
    valid = next(Source(data(4, 9), batch_size=9))
    return float(hard_loss(logits_at(student, ahead, valid["x"]), valid).mean().detach())


def hypergradient(method, whole, roles, batch, state):
    with torch.no_grad():
        prepared = whole.prepare(batch, roles, state)
    (phase,) = (phase for phase in whole.phases() if phase.name == "ratio")
    terms = phase.loss(prepared, {}, roles, state)
    shares = reduce_terms(terms, prepared, global_counts(prepared), 1)
    return prepared, torch.autograd.grad(shares["ratio"], list(roles["ratio"].parameters()))


@pytest.mark.parametrize("eta", [0.1, 3.0])
@pytest.mark.parametrize("base", [None, DKD(warmup_epochs=0)], ids=["alone", "dkd"])
@pytest.mark.parametrize("hidden", [(), (5,)], ids=["linear", "hidden"])
def test_the_hypergradient_is_that_of_finite_differences(eta, base, hidden):
    method = TGeoKD(eta=eta, hidden=(3,))
    whole = method if base is None else compose(base, weight=method)
    roles, batch, state = world(method, student=network(1, *hidden))
    _, found = hypergradient(method, whole, roles, batch, state)
    h = 1e-5
    for parameter, gradient in zip(roles["ratio"].parameters(), found, strict=True):
        flat = parameter.data.view(-1)
        for i in range(0, len(flat), 5):
            values = []
            for sign in (1, -1):
                kept = float(flat[i])
                flat[i] = kept + sign * h
                values.append(validation_loss(method, whole, roles, batch, state))
                flat[i] = kept
            assert math.isclose(float(gradient.view(-1)[i]), (values[0] - values[1]) / (2 * h), rel_tol=1e-4, abs_tol=1e-9)


def test_the_gain_of_each_example_is_that_of_finite_differences():
    method = TGeoKD(eta=0.5)
    roles, batch, state = world(method)
    prepared, _ = hypergradient(method, method, roles, batch, state)
    with torch.no_grad():
        alpha = method.weigh(roles["student"](batch["x"]), method.signal(batch, roles, state), batch, roles, state)[1]
    for i in range(12):
        values = []
        for sign in (1, -1):
            moved = alpha.clone()
            moved[i] += sign * 1e-5
            values.append(validation_loss(method, method, roles, batch, state, moved))
        assert math.isclose(float(-0.5 * prepared["tgeo-kd/gain"][i] / 12), (values[0] - values[1]) / 2e-5, rel_tol=1e-5)


def test_no_virtual_step_no_hypergradient():
    method = TGeoKD(eta=0.0)
    assert not any(gradient.any() for gradient in hypergradient(method, method, *world(method))[1])


def test_frozen_parameters_do_not_step():
    method = TGeoKD()
    found = []
    for frozen in (False, True):
        roles, batch, state = world(method, student=network(1, 5))
        roles["student"][0].requires_grad_(not frozen)
        found.append(hypergradient(method, method, roles, batch, state)[0]["tgeo-kd/gain"])
    assert not torch.allclose(*found)


def test_the_students_own_gradients_buffers_and_modes_stay():
    method = TGeoKD()
    student = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, CLASSES)).double()
    roles, batch, state = world(method, student=student)
    kept = {name: value.clone() for name, value in student.state_dict().items()}
    drawn = torch.get_rng_state()
    method.prepare(batch, roles, state)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(module.training for module in student.modules())
    assert all(p.grad is None for p in student.parameters())
    for name, value in student.state_dict().items():
        assert torch.equal(value, kept[name]), name


def trained_ratio(method, teacher, examples, valid, *, steps=150):
    """Mean ratio before, mean after, and mean after over the examples whose teacher contradicts their label."""
    student = network(1, 8)
    roles = {"student": student, "teacher": teacher}
    torch.manual_seed(0)
    roles |= method.extra_roles(roles, examples.batch(torch.arange(4)))
    rates = {"ratio": 5e-3, "student": 1e-2}
    optimizers = {p.name: torch.optim.Adam(roles[p.trains[0]].parameters(), lr=rates[p.name]) for p in method.phases()}
    means = []
    streams = {"valid": Source(valid, batch_size=60)}
    source = Source(examples, batch_size=30)

    def note(record):
        means.append(record.extras["alpha"])

    state = train(method, roles, source, optimizers, steps=steps, streams=streams, progress=note)
    batch = examples.batch(torch.arange(len(examples)))
    with torch.no_grad():
        signal = method.signal(batch, roles, state)
        alpha = method.weigh(student(batch["x"]), signal, batch, roles, state)[1]
    return means[0], sum(means[-20:]) / 20, float(alpha[signal["logits"].argmax(-1) != batch["y"]].mean())


def labelled(seed, count, clean=True):
    """Inputs whose class is the largest of the first three, or called by lot."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, dtype=torch.double, generator=generator)
    y = x[:, :3].argmax(1) if clean else torch.randint(0, CLASSES, (count,), generator=generator)
    return examples_from((x, y), CLASSES)


def test_it_learns_whom_to_believe():
    wise = nn.Linear(4, CLASSES, bias=False).double()
    with torch.no_grad():
        wise.weight.copy_(4 * torch.eye(3, 4))
    babbling = nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, CLASSES)).double()
    torch.manual_seed(3)
    for parameter in babbling.parameters():
        nn.init.normal_(parameter, std=4.0)
    valid = labelled(2, 60)
    before, after, contradicted = trained_ratio(TGeoKD(), wise, labelled(1, 90, clean=False), valid)
    assert after > before + 0.3
    assert contradicted > 0.9
    before, after, contradicted = trained_ratio(TGeoKD(), babbling, labelled(1, 90), valid)
    assert after < before - 0.1
    assert contradicted < 0.1


def test_every_so_many_steps():
    method = TGeoKD(every=3)
    roles, batch, state = world(method)
    for step in range(4):
        state.step = step
        assert ("tgeo-kd/gain" in method.prepare(batch, roles, state)) == (step in (0, 3))


def test_a_base_without_a_teacher_is_refused():
    with pytest.raises(ValueError, match=r"method.weight: expected a base that learns from the teacher's logits, got CrossEntropy"):
        compose(CrossEntropy(), weight=TGeoKD())


def test_miniature():
    found = miniature(0, "smoke")
    assert set(found.arms) >= {"tgeo-kd", "ce", "ce-with-valid", "fixed-ratio", "frozen-ratio", "wls-ratio", "untrained-teacher"}
    assert found.arms["ce"]["trust_gap"] == 0
    assert [claim.margin for claim in found.claims] == [0.008, 0.05, 0.15, 0.0]
