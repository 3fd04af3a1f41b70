"""The ND loss."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.losses.divergence import forward_kl
from preceptor.losses.hard import hard_loss
from preceptor.methods.dkd import DKD
from preceptor.methods.nd_loss import CARD, NDLoss, class_means, miniature, nd_loss
from preceptor.models.embeddings import Projector, embed
from preceptor.models.reference import MLP


@pytest.fixture
def embeddings() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings of student and teacher, of both regimes of the norm, class means and labels."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 6, 5, generator=generator, dtype=torch.double)
    student[::2] *= 4
    return student, teacher, torch.randn(3, 5, generator=generator, dtype=torch.double), torch.tensor([0, 1, 2, 2, 1, 0])


@pytest.fixture
def world() -> tuple[dict, dict, State]:
    """A batch and two networks of different width, in double precision."""
    torch.manual_seed(0)
    data = examples_from((torch.randn(12, 6, dtype=torch.double), torch.arange(12) % 4), 4)
    roles = {"student": MLP(inputs=6, hidden=(3,), classes=4).double(), "teacher": MLP(inputs=6, hidden=(8,), classes=4).double()}
    state = State(total_steps=1, source=Source(data, batch_size=5))
    return data.batch(torch.arange(5)), roles, state


def terms_of(method: NDLoss, world: tuple[dict, dict, State]) -> dict[str, Tensor]:
    batch, roles, state = world
    roles |= {name: role for name, role in method.extra_roles(roles, batch).items() if name not in roles}
    with torch.no_grad():
        batch = method.prepare(batch, roles, state)
        signal = method.signal(batch, roles, state)
    return method.loss(batch, signal, roles, state)


def test_defaults_are_those_of_the_card():
    method = NDLoss()
    assert (method.nd_weight, method.soft_weight, method.temperature, method.hard_weight, method.warmup_epochs) == (2.0, 1.0, 4.0, 1.0, 20)
    assert (method.mode, method.norm) == ("nd", "batch")
    assert (CARD.slug, CARD.needs) == ("nd-loss", ("teacher", "logits", "embeddings", "labels"))


def test_reference(embeddings):
    student, teacher, means, labels = embeddings
    losses = {mode: nd_loss(student, teacher, means, labels, mode=mode) for mode in ("nd", "cosine", "norm")}
    for i, y in enumerate(labels.tolist()):
        s, t, c = student[i].tolist(), teacher[i].tolist(), means[y].tolist()
        length, other, of_mean = (math.sqrt(sum(v * v for v in z)) for z in (s, t, c))
        along = sum(a * b for a, b in zip(s, c, strict=True)) / of_mean
        expected = {"nd": 1 - along / max(length, other), "cosine": 1 - along / length, "norm": 1 - length / max(length, other)}
        for mode, value in expected.items():
            assert math.isclose(losses[mode][i].item(), value, rel_tol=1e-12, abs_tol=1e-12), mode


def test_values_along_the_class_mean(embeddings):
    _, teacher, means, labels = embeddings
    e, length = F.normalize(means, dim=1)[labels], teacher.norm(dim=1)
    torch.testing.assert_close(nd_loss(3 * length[:, None] * e, teacher, means, labels), torch.zeros(6, dtype=torch.double))
    torch.testing.assert_close(nd_loss(0.25 * length[:, None] * e, teacher, means, labels), torch.full((6,), 0.75, dtype=torch.double))
    torch.testing.assert_close(nd_loss(-100 * length[:, None] * e, teacher, means, labels), torch.full((6,), 2.0, dtype=torch.double))


def test_gradients_of_the_two_regimes(embeddings):
    student, teacher, means, labels = embeddings
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(nd_loss(student, teacher, means, labels).mean(), student)
    longer = student.norm(dim=1) > teacher.norm(dim=1)
    assert longer.any()
    assert not longer.all()
    e = F.normalize(means, dim=1)[labels]
    assert (gradient * student).sum(dim=1)[longer].abs().max() < 1e-15  # it turns the embedding only
    torch.testing.assert_close(gradient[~longer], -(e / (6 * teacher.norm(dim=1, keepdim=True)))[~longer])
    twice = nd_loss(2 * student, teacher, means, labels)
    torch.testing.assert_close(twice[longer], nd_loss(student, teacher, means, labels)[longer])


def test_a_tie_belongs_to_the_student(embeddings):
    student, _, means, labels = embeddings
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(nd_loss(student, student.detach().clone(), means, labels).sum(), student)
    assert (gradient * student).sum(dim=1).abs().max() < 1e-14


@pytest.mark.parametrize("mode", ["nd", "cosine", "norm"])
def test_gradient(embeddings, mode):
    student, teacher, means, labels = embeddings
    assert torch.autograd.gradcheck(lambda x: nd_loss(x, teacher, means, labels, mode=mode), (student.requires_grad_(),))


def test_invariances(embeddings):
    student, teacher, means, labels = embeddings
    value = nd_loss(student, teacher, means, labels)
    torch.testing.assert_close(nd_loss(student, teacher, means * torch.tensor([[0.1], [3.0], [50.0]]), labels), value)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.double))[0]
    torch.testing.assert_close(nd_loss(student @ turn, teacher @ turn, means @ turn, labels), value)
    silent = torch.zeros_like(teacher)
    torch.testing.assert_close(nd_loss(student, silent, means, labels), nd_loss(student, teacher, means, labels, mode="cosine"))
    torch.testing.assert_close(nd_loss(student.flip(0), teacher.flip(0), means, labels.flip(0)), value.flip(0))


def test_teacher_and_means_are_constant(embeddings):
    student, teacher, means, labels = embeddings
    for constant in (student, teacher, means):
        constant.requires_grad_()
    nd_loss(student, teacher, means, labels).sum().backward()
    assert teacher.grad is None
    assert means.grad is None


def test_mixed_labels_mix_the_means(embeddings):
    student, teacher, means, labels = embeddings
    torch.testing.assert_close(
        nd_loss(student, teacher, means, F.one_hot(labels, 3).double()), nd_loss(student, teacher, means, labels), rtol=1e-12, atol=1e-12
    )
    shares = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.double)
    mixed = nd_loss(student[:1], teacher[:1], means, shares)
    centre = 0.25 * means[:1] + 0.75 * means[1:2]
    torch.testing.assert_close(mixed, nd_loss(student[:1], teacher[:1], centre, torch.tensor([0])))


def test_embeddings_without_length_give_one_and_a_modest_gradient(embeddings):
    _, teacher, means, labels = embeddings
    student = torch.zeros(6, 5, dtype=torch.double, requires_grad=True)
    loss = nd_loss(student, torch.zeros_like(teacher), means, labels)
    assert (loss == 1).all()
    loss.sum().backward()
    torch.testing.assert_close(student.grad, -F.normalize(means, dim=1)[labels])
    assert (nd_loss(teacher, teacher, torch.zeros_like(means), labels) == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    student, teacher, means = (torch.full((2, 2048), size, dtype=dtype) for size in (300.0, 280.0, 1.0))
    loss = nd_loss(student.requires_grad_(), teacher, means, torch.tensor([0, 1]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.zeros(2), atol=1e-5, rtol=0)
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


def test_mixed_precision_does_not_reach_the_loss(embeddings):
    student, teacher, means, labels = (v.float() if v.is_floating_point() else v for v in embeddings)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nd_loss(student, teacher, means, F.one_hot(labels, 3).float())
    torch.testing.assert_close(loss, nd_loss(student, teacher, means, labels))


def test_empty_batch_and_one_class():
    none = nd_loss(torch.zeros(0, 4), torch.zeros(0, 4), torch.ones(3, 4), torch.zeros(0, dtype=torch.int64))
    assert none.shape == (0,)
    assert nd_loss(torch.ones(1, 4), torch.ones(1, 4), torch.ones(1, 4), torch.tensor([0])).abs() < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.zeros(6, 3)}, "student: expected the teacher's 5 numbers per embedding, or a projector, got 3"),
        ({"teacher": torch.zeros(4, 5)}, r"teacher: expected shape \(6, 5\) like student, got \(4, 5\)"),
        ({"class_means": torch.zeros(3, 4)}, r"class_means: expected shape \(classes, D\) for embeddings \(6, 5\), got \(3, 4\)"),
        ({"labels": torch.tensor([0, 1, 2, 3, 0, 0])}, r"labels: expected values in \[0, 2\], got 3"),
        ({"labels": torch.zeros(6, 4)}, r"labels: expected class probabilities \(N, 3\), got \(6, 4\)"),
        ({"mode": "l2"}, "mode: expected one of nd, cosine, norm, got 'l2'"),
    ],
)
def test_wrong_input_is_refused(embeddings, change, message):
    given = dict(zip(("student", "teacher", "class_means", "labels"), embeddings, strict=True)) | change
    with pytest.raises(ValueError, match=message):
        nd_loss(**given)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_class_means_are_those_of_all_examples_whatever_the_batches(world, batch_size):
    _, roles, state = world
    data = state.source.examples
    teacher = roles["teacher"].train()
    means = class_means(teacher, Source(data, batch_size=batch_size).scan(), 4)
    everything = embed(teacher, data.inputs)[1]
    torch.testing.assert_close(means, torch.stack([everything[data.labels == k].mean(dim=0) for k in range(4)]))
    assert teacher.training
    assert not means.requires_grad


def test_an_empty_class_is_refused(world):
    _, roles, state = world
    with pytest.raises(ValueError, match="class means: expected examples of all 5 classes, got none of class 4"):
        class_means(roles["teacher"], state.source.scan(), 5)


def test_terms(world):
    batch, roles, state = world
    method = NDLoss(nd_weight=1.5, soft_weight=0.5, temperature=2.0, hard_weight=0.25, warmup_epochs=4, norm="none")
    state.epoch = 1
    terms = terms_of(method, world)
    logits, embeddings = embed(roles["student"], batch["x"])
    taught, targets = embed(roles["teacher"], batch["x"])
    torch.testing.assert_close(terms["hard"], 0.25 * hard_loss(logits, batch))
    torch.testing.assert_close(terms["soft"], 0.25 * 0.5 * 4 * forward_kl(logits, taught, temperature=2.0))
    means = class_means(roles["teacher"], state.source.scan(), 4)
    torch.testing.assert_close(terms["nd"], 1.5 * nd_loss(roles["projector"](embeddings), targets, means, batch["y"]))


@pytest.mark.parametrize(("warmup", "epoch", "share"), [(20, 0, 0.0), (20, 5, 0.25), (20, 30, 1.0), (0, 0, 1.0)])
def test_warm_up_of_the_soft_term(world, warmup, epoch, share):
    _, _, state = world
    state.epoch = epoch
    soft = terms_of(NDLoss(warmup_epochs=warmup, norm="none"), world)["soft"]
    torch.testing.assert_close(soft, share * terms_of(NDLoss(warmup_epochs=0, norm="none"), world)["soft"])


@pytest.mark.parametrize("base", ["dkd", {"name": "dkd", "beta": 2.0, "warmup_epochs": 3}])
def test_another_method_keeps_its_terms(world, base):
    batch, roles, state = world
    state.epoch = 1
    terms = terms_of(NDLoss(base=base, nd_weight=0.5, norm="none"), world)
    other = DKD(**({} if isinstance(base, str) else {"beta": 2.0, "warmup_epochs": 3}))
    with torch.no_grad():
        signal = other.signal(batch, roles, state)
    expected = other.loss(batch, signal, roles, state)
    nd = terms_of(NDLoss(nd_weight=0.5, norm="none"), world)["nd"]
    torch.testing.assert_close(terms, {**expected, "nd": nd})


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("fitnets", "base: expected a method that needs logits of student and teacher alone, and its options, got fitnets"),
        ("tgeo-kd", r"base: expected a method that needs logits .* got tgeo-kd"),
        ({"name": "dkd", "gamma": 1.0}, r"base: expected a method .* got dkd with \['gamma'\]"),
        ({"name": "dkd", "beta": -1.0}, "beta: expected a number >= 0, got -1.0"),
        ("dkdd", r"method: expected a slug .* nearest: 'dkd'"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(base, message):
    with pytest.raises(ValueError, match=message):
        NDLoss(base=base)


def test_the_means_are_taken_once_and_kept(world):
    batch, roles, state = world
    method = NDLoss(norm="none")
    kept = terms_of(method, world) and state.memory["nd-loss/class_means"]
    state.source = None
    assert method.prepare(batch, roles, state) is batch
    assert state.memory["nd-loss/class_means"] is kept


def test_the_projector_follows_the_widths(world):
    batch, roles, _ = world
    projector = NDLoss().extra_roles(roles, batch)["projector"]
    assert [type(module) for module in projector] == [nn.BatchNorm1d, nn.Dropout, nn.Linear]
    assert (projector[2].in_features, projector[2].out_features) == (3, 8)
    assert [type(module) for module in NDLoss(norm="none").extra_roles(roles, batch)["projector"]] == [nn.Linear]
    same = {**roles, "student": copy.deepcopy(roles["teacher"])}
    assert not list(NDLoss().extra_roles(same, batch)["projector"].parameters())


def test_widths_that_differ_without_a_projector_are_refused(world):
    _, roles, _ = world
    roles["projector"] = nn.Identity()
    with pytest.raises(ValueError, match="student: expected the teacher's 8 numbers per embedding, or a projector, got 3"):
        terms_of(NDLoss(), world)


def test_a_batch_of_one_passes_the_projector():
    projector = Projector(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 4))
    before = copy.deepcopy(projector[0].state_dict())
    assert projector(torch.randn(1, 3)).isfinite().all()
    assert projector[0].training
    assert all(torch.equal(value, before[key]) for key, value in projector[0].state_dict().items())
    projector(torch.randn(2, 3))
    assert not torch.equal(projector[0].running_mean, before["running_mean"])


def test_layers_may_be_named(world):
    torch.manual_seed(1)
    batch, roles, state = world
    roles["student"] = MLP(inputs=6, hidden=(8, 3), classes=4).double()
    roles["projector"] = nn.Identity()
    nd = terms_of(NDLoss(student_layer="hidden1", nd_weight=1.0), world)["nd"]
    means = class_means(roles["teacher"], state.source.scan(), 4)
    own = embed(roles["student"], batch["x"], "hidden1")[1]
    torch.testing.assert_close(nd, nd_loss(own, embed(roles["teacher"], batch["x"])[1], means, batch["y"]))


def test_training_turns_the_embeddings(world):
    _, roles, state = world
    method = NDLoss(norm="none", nd_weight=4.0)
    roles |= method.extra_roles(roles, world[0])
    before = terms_of(method, world)["nd"].mean().item()
    parameters = [p for name in ("student", "projector") for p in roles[name].parameters()]
    train(method, roles, state.source, torch.optim.Adam(parameters, lr=0.01), steps=60)
    assert terms_of(method, world)["nd"].mean().item() < 0.7 * before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature: expected a finite number > 0, got -1.0"),
        ({"nd_weight": -1.0}, "nd_weight: expected a number >= 0, got -1.0"),
        ({"soft_weight": math.nan}, "soft_weight: expected a number >= 0, got nan"),
        ({"mode": "l2"}, "mode: expected one of nd, cosine, norm, got 'l2'"),
        ({"norm": "layer"}, "norm: expected one of batch, none, got 'layer'"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NDLoss(**options)


def test_parity():
    for case in json.loads((Path(__file__).parents[1] / "golden" / "nd-loss.json").read_text())["cases"]:
        kinds = {"labels": torch.int64}
        given = {name: torch.tensor(value, dtype=kinds.get(name, torch.double)) for name, value in case["inputs"].items()}
        loss = case["params"]["nd_loss_factor"] * nd_loss(
            given["student_features"], given["teacher_features"], given["class_means"], given["labels"]
        )
        assert math.isclose(loss.mean().item(), case["outputs"]["loss"], rel_tol=1e-12)


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-teacher", "nd-0", "nd-loss", "nd-4", "cosine-1", "projector-0", "projector-1"}
    assert run.arms["nd-4"]["cosine"] > run.arms["nd-0"]["cosine"]
    assert {claim.metric for claim in run.claims} == {"cosine", "norm_ratio", "accuracy", "nearest_mean"}
