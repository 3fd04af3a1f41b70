"""LELP: subclasses from the teacher's embeddings."""

from __future__ import annotations

import math

import pytest
import torch
import yaml
from torch import Tensor

from preceptor.catalog import read, recipe_snippet
from preceptor.core.state import State
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.losses.divergence import forward_kl
from preceptor.losses.hard import hard_loss
from preceptor.methods.lelp import CARD, LELP, miniature
from preceptor.miniature.few_classes import FineLabels, clouds
from preceptor.miniature.worlds import fit
from preceptor.models.embeddings import embed
from preceptor.models.reference import MLP
from preceptor.models.subclasses import collapse
from preceptor.recipe import parse
from preceptor.teachers.projections import Projections, fit_projections, subclass_log_probs


@pytest.fixture
def world() -> tuple[dict, dict, State]:
    """A batch, a teacher of two classes, a student with 3 subclasses each."""
    torch.manual_seed(0)
    data = examples_from((torch.randn(40, 6, dtype=torch.double), torch.arange(40) % 2), 2)
    student = MLP(inputs=6, hidden=(4,), classes=2, subclasses=3).double()
    roles = {"student": student, "teacher": MLP(inputs=6, hidden=(8,), classes=2).double()}
    return data.batch(torch.arange(7)), roles, State(total_steps=1, source=Source(data, batch_size=9), seed=5)


def terms_of(method: LELP, world: tuple[dict, dict, State]) -> dict[str, Tensor]:
    batch, roles, state = world
    with torch.no_grad():
        batch = method.prepare(batch, roles, state)
        signal = method.signal(batch, roles, state)
    return method.loss(batch, signal, roles, state)


def test_defaults_are_those_of_the_card():
    method = LELP()
    assert (method.beta, method.temperature, method.alpha, method.null_space, method.rotate, method.directions) == (
        (0.3, 4.0, 0.0, True, True, "pca")
    )
    assert (CARD.slug, CARD.needs) == ("lelp", ("teacher", "logits", "embeddings", "labels", "subclasses"))


@pytest.mark.parametrize("options", [{}, {"null_space": False}, {"rotate": False}, {"directions": "random"}, {"teacher_layer": "hidden1"}])
def test_terms(world, options):
    batch, roles, state = world
    method = LELP(beta=0.5, temperature=2.0, alpha=0.25, **options)
    terms = terms_of(method, world)
    data, teacher = state.source.examples, roles["teacher"]
    weights = teacher.fc.weight if options.get("null_space", True) and "teacher_layer" not in options else None
    given = {"rotate": options.get("rotate", True), "directions": options.get("directions", "pca")}
    generator = torch.Generator().manual_seed(5)
    everything = embed(teacher, data.inputs)[1]
    found = fit_projections(everything, data.labels, num_classes=2, num_subclasses=3, class_weights=weights, generator=generator, **given)
    logits, embeddings = embed(teacher, batch["x"])
    target = subclass_log_probs(embeddings, logits, found, beta=0.5, temperature=2.0).flatten(1)
    outputs = roles["student"].fc.outputs(embed(roles["student"], batch["x"])[1])
    torch.testing.assert_close(terms["soft"], forward_kl(outputs, target))
    torch.testing.assert_close(terms["hard"], 0.25 * hard_loss(collapse(outputs, 3), batch))
    kept = Projections(*(state.memory[f"lelp/{name}"] for name in Projections._fields))
    torch.testing.assert_close(kept, found)


def test_one_subclass_is_classic_distillation_of_a_softened_teacher(world):
    batch, roles, _ = world
    roles["student"] = MLP(inputs=6, hidden=(4,), classes=2, subclasses=1).double()
    logits, _ = embed(roles["teacher"], batch["x"])
    expected = forward_kl(roles["student"](batch["x"]), logits, temperature=1.0, teacher_temperature=4.0)
    torch.testing.assert_close(terms_of(LELP(), world)["soft"], expected)


def test_a_student_that_says_the_same_has_no_loss(world):
    batch, roles, state = world
    terms_of(method := LELP(), world)
    with torch.no_grad():
        signal = method.signal(batch, roles, state)
    roles["student"].fc.outputs.register_forward_hook(lambda *_: signal["subclasses"].flatten(1))
    assert method.loss(batch, signal, roles, state)["soft"].max() < 1e-12


def test_projections_are_found_once_and_kept(world):
    batch, roles, state = world
    terms_of(method := LELP(), world)
    kept = dict(state.memory)
    state.source = None
    assert method.prepare(batch, roles, state) is batch
    assert all(state.memory[name] is value for name, value in kept.items())


def test_a_student_without_the_head_is_refused(world):
    batch, roles, _ = world
    roles["student"] = MLP(inputs=6, hidden=(4,), classes=2)
    with pytest.raises(ValueError, match=r"student: expected a preceptor.models.subclasses.SubclassHead .* got MLP without one"):
        LELP().extra_roles(roles, batch)


def test_a_recipe_asks_for_the_head():
    recipe = yaml.safe_load(recipe_snippet(read("lelp")))
    assert parse(recipe).student == {"reference": "mlp", "hidden": [16], "subclasses": 4}
    del recipe["student"]["subclasses"]
    with pytest.raises(ValueError, match=r"student.subclasses: expected a number of them, lelp needs a head of subclasses, got none"):
        parse(recipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta: expected a finite number > 0, got 0.0"),
        ({"temperature": -1.0}, "temperature: expected a finite number > 0, got -1.0"),
        ({"alpha": -0.5}, "alpha: expected a number >= 0, got -0.5"),
        ({"directions": "ica"}, "directions: expected one of pca, random, got 'ica'"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LELP(**options)


def test_the_oracle_learns_the_hidden_classes():
    few = clouds(0)
    student = few.with_subclasses(few.hidden).student()
    fit(FineLabels(few.fine), {"student": student}, few.world.train, steps=200, learning_rate=0.01)
    batch = few.world.test.batch(torch.arange(300))
    outputs = student.get_submodule("fc.outputs")(embed(student, batch["x"])[1])
    right = outputs.argmax(-1) == batch["y"] * few.hidden + few.fine[batch["id"]]
    assert right.float().mean() > 0.6


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {
        *("untrained-teacher", "ce", "classic-kd", "kd-t1", "lelp", "random-directions", "unrotated", "oracle"),
    }
    assert all(math.isfinite(value) for arm in run.arms.values() for value in arm.values())
