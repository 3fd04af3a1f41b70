"""Multi-aspect distillation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from preceptor.catalog import read, recipe_snippet
from preceptor.core.reduce import global_counts, reduce_terms
from preceptor.core.state import State
from preceptor.data.augment import Mixup
from preceptor.data.examples import examples_from
from preceptor.losses.hard import hard_loss
from preceptor.methods.multi_aspect import CARD, MultiAspect, aspect_bce, aspect_loss, expand_head, miniature
from preceptor.miniature.attributes import attributes_world, draw
from preceptor.miniature.worlds import fit
from preceptor.models.embeddings import embed
from preceptor.models.reference import MLP
from preceptor.recipe import parse
from preceptor.teachers.aspects import AspectBank

NAN = math.nan


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """Logits and probabilities of 5 examples and 3 questions."""
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(5, 3, generator=generator, dtype=torch.double)
    return z, torch.rand(5, 3, generator=generator, dtype=torch.double)


@pytest.fixture
def bank() -> AspectBank:
    """Answers to 3 questions about examples 0 to 19, not of number 2, and in part of number 4."""
    probs = torch.rand(19, 3, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    probs[3, 1] = NAN
    return AspectBank(("a?", "b?", "c?"), torch.tensor([i for i in range(20) if i != 2]), probs)


@pytest.fixture
def world() -> tuple[dict, dict, State]:
    """A batch and a student, in double precision."""
    torch.manual_seed(0)
    batch = {"x": torch.randn(6, 7, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2, 0]), "id": torch.arange(6)}
    return batch, {"student": MLP(inputs=7, hidden=(5,), classes=4).double()}, State(total_steps=1)


def terms_of(method: MultiAspect, world: tuple[dict, dict, State]) -> tuple[dict, dict[str, Tensor]]:
    batch, roles, state = world
    roles |= {name: role for name, role in method.extra_roles(roles, batch).items() if name not in roles}
    with torch.no_grad():
        batch = method.prepare(batch, roles, state)
    return batch, method.loss(batch, {}, roles, state)


def test_defaults_are_those_of_the_card():
    method = MultiAspect()
    assert (method.aspect_weight, method.hard_weight) == (4.0, 1.0)
    assert (CARD.slug, CARD.needs) == ("multi-aspect", ("labels", "embeddings"))


def test_reference(logits):
    z, q = logits
    for i, value in enumerate(aspect_bce(z, q).tolist()):
        expected = sum(math.log(1 + math.exp(a)) - b * a for a, b in zip(z[i].tolist(), q[i].tolist(), strict=True)) / 3
        assert math.isclose(value, expected, rel_tol=1e-12)


def test_gradient(logits):
    z, q = logits
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: aspect_bce(x, q), (z,))
    (gradient,) = torch.autograd.grad(aspect_bce(z, q).mean(), z)
    torch.testing.assert_close(gradient, (torch.sigmoid(z) - q) / 15)


def test_least_where_the_answers_are_the_models_own(logits):
    z, _ = logits
    z.requires_grad_()
    q = torch.sigmoid(z.detach())
    loss = aspect_bce(z, q)
    entropy = (torch.special.entr(q) + torch.special.entr(1 - q)).mean(-1)
    torch.testing.assert_close(loss, entropy)
    assert torch.autograd.grad(loss.sum(), z)[0].abs().max() < 1e-15


def test_invariances(logits):
    z, q = logits
    value = aspect_bce(z, q)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(aspect_bce(z[:, order], q[:, order]), value)
    torch.testing.assert_close(aspect_bce(torch.cat([z, z], 1), torch.cat([q, q], 1)), value)
    hard = (q > 0.5).double()
    torch.testing.assert_close(aspect_bce(z, hard), F.softplus(torch.where(hard > 0, -z, z)).mean(-1))


def test_questions_without_an_answer_are_left_out(logits):
    z, q = logits
    q[0, 1] = q[1] = NAN
    z.requires_grad_()
    loss = aspect_bce(z, q)
    torch.testing.assert_close(loss[0], aspect_bce(z[:1, ::2], q[:1, ::2])[0])
    assert loss[1] == 0
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert (gradient[1] == 0).all()
    assert gradient[0, 1] == 0
    assert gradient.isfinite().all()


def test_no_questions_and_no_examples():
    z = torch.randn(4, 0, requires_grad=True)
    loss = aspect_bce(z, torch.zeros(4, 0))
    assert (loss == 0).all()
    loss.sum().backward()
    assert aspect_bce(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extremes_stay_finite(dtype):
    z = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    for q in (torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0]])):
        loss = aspect_bce(z, q)
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), z)[0].isfinite().all()


def test_classes_and_aspects_do_not_touch_each_other(logits):
    z, q = logits
    whole = torch.cat([torch.randn(5, 4, dtype=torch.double), z], 1).requires_grad_()
    labels = torch.tensor([0, 3, 2, 1, 1])
    terms = aspect_loss(whole, labels, q, num_classes=4, aspect_weight=2.0, hard_weight=0.5)
    hard, aspects = (torch.autograd.grad(terms[name].sum(), whole, retain_graph=True)[0] for name in ("hard", "aspects"))
    assert (hard[:, 4:] == 0).all()
    assert (aspects[:, :4] == 0).all()
    torch.testing.assert_close(terms["hard"], 0.5 * F.cross_entropy(whole[:, :4], labels, reduction="none"))
    torch.testing.assert_close(terms["aspects"], 2 * aspect_bce(z, q))
    assert (aspect_loss(whole, labels, q, num_classes=4, aspect_weight=0.0)["aspects"] == 0).all()


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (torch.zeros(5, 2), r"probs: expected shape \(5, 3\) like logits, got \(5, 2\)"),
        (torch.full((5, 3), 1.5), r"probs: expected numbers in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_input_is_refused(logits, probs, message):
    with pytest.raises(ValueError, match=message):
        aspect_bce(logits[0], probs)


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_is_widened(bias):
    head = nn.Linear(5, 4, bias=bias).double()
    wide = expand_head(head, 3)
    x = torch.randn(2, 5, dtype=torch.double)
    assert (wide.out_features, wide.weight.dtype, wide.bias is not None) == (7, torch.double, bias)
    torch.testing.assert_close(wide(x)[:, :4], head(x))
    assert wide.weight[4:].abs().sum() > 0
    with torch.no_grad():
        wide.weight.zero_()
    assert head.weight.abs().sum() > 0


def test_terms(world, bank):
    _, roles, _ = world
    batch, terms = terms_of(MultiAspect(aspects=bank, aspect_weight=3.0, hard_weight=0.25), world)
    logits, embeddings = embed(roles["student"], batch["x"])
    torch.testing.assert_close(terms["hard"], 0.25 * hard_loss(logits, batch))
    torch.testing.assert_close(terms["aspects"], 3 * aspect_bce(roles["aspects"](embeddings), bank.lookup(batch["id"])))
    assert batch["mask/aspects"].tolist() == [1, 1, 0, 1, 1, 1]


def test_a_layer_of_its_own_is_a_widened_head(world, bank):
    _, roles, _ = world
    batch, terms = terms_of(MultiAspect(aspects=bank), world)
    head = roles["student"].fc
    wide = expand_head(head, 3)
    with torch.no_grad():
        wide.weight[4:], wide.bias[4:] = roles["aspects"].weight, roles["aspects"].bias
    both = aspect_loss(wide(embed(roles["student"], batch["x"])[1]), batch["y"], bank.lookup(batch["id"]), num_classes=4)
    torch.testing.assert_close(terms, both)
    grads = [torch.autograd.grad(sum(t.sum() for t in each.values()), roles["student"].hidden1.linear.weight)[0] for each in (terms, both)]
    torch.testing.assert_close(*grads)


def test_images_without_answers_do_not_count(world, bank):
    batch, terms = terms_of(MultiAspect(aspects=bank), world)
    reduced = reduce_terms(terms, batch, global_counts(batch), 1)
    torch.testing.assert_close(reduced["aspects"], terms["aspects"].sum() / 5)
    torch.testing.assert_close(reduced["hard"], terms["hard"].sum() / 6)
    masked = {**world[0], "mask": torch.tensor([1.0, 0, 1, 1, 1, 1])}
    assert MultiAspect(aspects=bank).prepare(masked, {}, world[2])["mask/aspects"].tolist() == [1, 0, 0, 1, 1, 1]


def test_mixup_mixes_the_answers(bank):
    examples = examples_from((torch.randn(20, 3), torch.arange(20) % 4), 4)
    batch = Mixup(examples=examples, alpha=1.0)({**examples.batch(torch.arange(8)), "epoch": 0})
    assert not torch.equal(batch["partner"], batch["id"])
    found = MultiAspect(aspects=bank).prepare(batch, {}, State(total_steps=1))["answers"]
    for i in range(8):
        own, other = bank.lookup(batch["id"][i : i + 1]), bank.lookup(batch["partner"][i : i + 1])
        share = batch["ratio"][i]
        torch.testing.assert_close(found[i : i + 1], share * own + (1 - share) * other, equal_nan=True)
        mixed_image = share * examples.inputs[batch["id"][i]] + (1 - share) * examples.inputs[batch["partner"][i]]
        torch.testing.assert_close(batch["x"][i], mixed_image.float())


def test_a_bank_may_be_a_file(bank, tmp_path):
    bank.save(tmp_path / "bank.json")
    method = MultiAspect(aspects=str(tmp_path / "bank.json"))
    assert isinstance(method.aspects, AspectBank)
    torch.testing.assert_close(method.aspects.lookup(torch.arange(6)), bank.lookup(torch.arange(6)).float(), equal_nan=True)
    recipe = yaml.safe_load(recipe_snippet(read("multi-aspect")))
    assert recipe["method"] == {"name": "multi-aspect", "aspects": "aspects.json"}
    recipe["method"]["aspects"] = str(tmp_path / "bank.json")
    parse(recipe)
    recipe["method"]["aspects"] = str(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"aspects: expected JSON with questions and answers by id, got .*none.json"):
        parse(recipe)


def test_without_answers_it_is_refused(world):
    batch, roles, _ = world
    with pytest.raises(ValueError, match="aspects: expected a bank of answers or the JSON file of one, got none"):
        MultiAspect().extra_roles(roles, batch)
    none = AspectBank((), torch.arange(6), torch.zeros(6, 0))
    with pytest.raises(ValueError, match="aspects: expected at least one question, got none"):
        MultiAspect(aspects=none).extra_roles(roles, batch)


@pytest.mark.parametrize("name", ["aspect_weight", "hard_weight"])
def test_hyper_parameters_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected a number >= 0, got -1.0"):
        MultiAspect(**{name: -1.0})


def test_the_layer_learns_to_answer():
    world = attributes_world(0, "smoke")
    roles = {"student": MLP(inputs=196, hidden=(32,), classes=8), "aspects": nn.Linear(32, 3)}
    fit(MultiAspect(aspects=world.answers()), roles, world.train, steps=150, batch_size=32, learning_rate=3e-3)
    batch = world.train.batch(torch.arange(len(world.train)))
    said = roles["aspects"](embed(roles["student"], batch["x"])[1]) > 0
    assert (said == world.attributes.bool()).float().mean() > 0.9


def test_images_show_their_attributes():
    plain = torch.tensor([[0, 0, 0, 0, 0, 0]])
    first = draw(plain)
    assert first.shape == (1, 14, 14)
    assert (first == 0.8).sum() == 25
    for attribute in range(6):
        other = plain.clone()
        other[0, attribute] = 1
        assert not torch.equal(draw(other), first), attribute
    torch.testing.assert_close(draw(torch.tensor([[0, 1, 0, 0, 0, 0]])), draw(torch.tensor([[1, 0, 0, 0, 0, 0]])).mT)


def test_answers_of_the_simulated_model():
    world = attributes_world(3, "full")
    own, other = world.answers(), world.answers(shuffled=True)
    truth = world.attributes.float()
    assert abs(float((own.probs - 0.1 - 0.8 * truth).std()) - 0.1) < 0.02
    assert (own.probs.round() == truth).float().mean() > 0.99
    assert 0.4 < (other.probs.round() == truth).float().mean() < 0.6
    by_class = other.probs.round()[world.train.labels == 5]
    assert (by_class == by_class[0]).float().mean() > 0.9


def test_parity():
    for case in json.loads((Path(__file__).parents[1] / "golden" / "multi-aspect.json").read_text())["cases"]:
        z, q = (torch.tensor(case["inputs"][name], dtype=torch.double) for name in ("student_logits", "aspect_probs"))
        labels, params = torch.tensor(case["inputs"]["labels"]), case["params"]
        weights = {"aspect_weight": params["alpha"], "hard_weight": params["ce_weight"]}
        terms = aspect_loss(z, labels, q, num_classes=params["num_classes"], **weights)
        assert math.isclose(terms["hard"].mean().item(), case["outputs"]["loss_ce"], rel_tol=1e-12)
        assert math.isclose(terms["aspects"].mean().item(), case["outputs"]["loss_aspect_weighted"], rel_tol=1e-12)


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-answers", "ce", "multi-aspect", "shuffled-classes"}
    assert [claim.baseline for claim in run.claims] == ["ce", "untrained-answers", "shuffled-classes"]
