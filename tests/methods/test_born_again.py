"""Born-again networks."""

from __future__ import annotations

import math

import pytest
import torch

from preceptor.core.run import fingerprint
from preceptor.data.examples import examples_from
from preceptor.methods.born_again import CARD, BornAgain, miniature
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.classic_kd import ClassicKD
from preceptor.miniature.worlds import fit
from preceptor.models.reference import MLP


def network(seed: int = 0, *, hidden: int = 6) -> MLP:
    torch.manual_seed(seed)
    return MLP(inputs=5, hidden=(hidden,), classes=4)


def test_defaults_are_those_of_the_card():
    method = BornAgain()
    assert (method.generations, method.temperature, method.alpha) == (3, 1.0, 1.0)
    assert (CARD.slug, CARD.kind) == ("born-again", "chain")
    assert "teacher" not in CARD.needs


def test_a_given_teacher_begins_the_chain():
    student = network()
    stages = BornAgain(generations=2, temperature=2.0, alpha=0.5).stages(network(1, hidden=9), student)
    assert [stage.name for stage in stages] == ["generation-1", "student"]
    assert [stage.method for stage in stages] == 2 * [ClassicKD(temperature=2.0, alpha=0.5)]
    assert stages[-1].student is student


def test_without_a_teacher_labels_begin_the_chain():
    student = network()
    stages = BornAgain(generations=2).stages(None, student)
    assert [stage.name for stage in stages] == ["generation-0", "generation-1", "student"]
    assert [stage.method for stage in stages] == [CrossEntropy(), *2 * [ClassicKD(temperature=1.0, alpha=1.0)]]
    assert stages[-1].student is student


def test_one_generation_from_a_teacher_is_the_student_alone():
    student = network()
    (stage,) = BornAgain(generations=1).stages(network(1), student)
    assert stage.student is student


def test_generations_have_one_form_and_weights_of_their_own():
    student = network()
    before = fingerprint(student)
    torch.manual_seed(0)  # the state that the student was drawn from
    models = [stage.student for stage in BornAgain().stages(None, student)]
    assert {tuple(p.shape for p in model.parameters()) for model in models} == {tuple(p.shape for p in student.parameters())}
    assert len({fingerprint(model) for model in models}) == 4
    assert fingerprint(student) == before


def test_the_last_generation_learns_from_the_one_before():
    """From predictions alone (alpha 1), with labels that say nothing, a student still comes to agree with the teacher of the chain."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator)
    teacher = network(1, hidden=12)
    with torch.no_grad():
        teacher.fc.weight *= 4  # a teacher with opinions
        taught = teacher(x).argmax(-1)
    student = network(2)
    examples = examples_from((x, torch.randint(4, (200,), generator=generator)), 4)
    before = (student(x).argmax(-1) == taught).float().mean()
    fit(BornAgain(generations=2), {"student": student, "teacher": teacher}, examples, steps=150, learning_rate=1e-2)
    assert (student(x).argmax(-1) == taught).float().mean() > max(0.75, before + 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generations": 0}, "generations: expected at least 1, got 0"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0, got 0.0"),
        ({"alpha": -0.1}, r"alpha: expected a number in \[0, 1\], got -0.1"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BornAgain(**options)


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-teacher", "ce", "ce-same-compute", "born-again"}
    assert all(math.isfinite(value) for arm in run.arms.values() for value in arm.values())
    assert run == miniature(1, "smoke")
    assert run.arms["born-again"] != run.arms["ce"]
