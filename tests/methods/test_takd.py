"""Teacher assistants."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from preceptor.core.run import fingerprint
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.methods.classic_kd import ClassicKD
from preceptor.methods.takd import CARD, TAKD, miniature
from preceptor.miniature.worlds import fit
from preceptor.models.reference import MLP


def networks() -> tuple[MLP, MLP]:
    torch.manual_seed(0)
    return MLP(inputs=5, hidden=(16, 16), classes=4), MLP(inputs=5, hidden=(3,), classes=4)


def test_defaults_are_those_of_the_card():
    method = TAKD()
    assert (method.assistants, method.temperature, method.alpha) == ((0.25,), 4.0, 0.9)
    assert (CARD.slug, CARD.kind, CARD.needs) == ("takd", "chain", ("teacher", "logits", "labels"))


def test_the_chain_ends_with_the_given_student():
    teacher, student = networks()
    stages = TAKD(assistants=(0.5, 0.25), temperature=3.0, alpha=0.6).stages(teacher, student)
    assert [stage.name for stage in stages] == ["assistant-1", "assistant-2", "student"]
    assert stages[-1].student is student
    assert [stage.method for stage in stages] == 3 * [ClassicKD(temperature=3.0, alpha=0.6)]
    assert [stage.student.config["hidden"] for stage in stages[:-1]] == [[8, 8], [4, 4]]
    assert len({id(stage.student) for stage in stages} | {id(teacher)}) == 4


def test_making_the_chain_changes_neither_end():
    teacher, student = networks()
    before = fingerprint(teacher), fingerprint(student)
    TAKD().stages(teacher, student)
    assert (fingerprint(teacher), fingerprint(student)) == before


def test_assistants_may_be_described_otherwise():
    teacher, student = networks()
    specs = ({"reference": "mlp", "inputs": 5, "hidden": [6], "classes": 4}, 0.5)
    first, second, _ = TAKD(assistants=specs).stages(teacher, student)
    assert first.student.config["hidden"] == [6]
    assert second.student.config["hidden"] == [8, 8]


def test_assistants_of_a_transformer_keep_its_layers():
    import transformers

    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4, num_channels=1
    )
    teacher = transformers.ViTForImageClassification(config)
    assistant, _ = TAKD(assistants=(0.5,)).stages(teacher, networks()[1])
    assert assistant.student.config.num_hidden_layers == 2


def test_a_chain_is_classic_distillation_twice():
    """Plain PyTorch twin: Adam on the loss of the paper, first for the assistant, then for the student."""
    teacher, student = networks()
    x, y = torch.randn(24, 5), torch.randint(4, (24,))
    examples = examples_from((x, y), 4)
    stages_of = TAKD().stages

    def twin_step(model, guide, optimizer, batch):
        optimizer.zero_grad()
        with torch.no_grad():
            p = (guide(batch["x"]) / 4).softmax(-1)
        s = model(batch["x"])
        soft = F.kl_div((s / 4).log_softmax(-1), p, reduction="batchmean")
        (0.1 * F.cross_entropy(s, batch["y"]) + 0.9 * 16 * soft).backward()
        optimizer.step()

    twin = copy.deepcopy(student)
    torch.manual_seed(5)  # `fit` draws the assistant after this
    assistant = stages_of(teacher, student)[0].student
    for model, guide in ((assistant, teacher), (twin, assistant)):
        optimizer, source = torch.optim.Adam(model.parameters(), 1e-2), Source(examples, batch_size=8, seed=5)
        for _ in range(6):
            twin_step(model, guide, optimizer, next(source))
    fit(TAKD(), {"student": student, "teacher": teacher}, examples, steps=6, batch_size=8, learning_rate=1e-2, seed=5)
    for ours, theirs in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"assistants": ()}, "assistants: expected at least one, got none"),
        ({"temperature": -1.0}, "temperature: expected a finite number > 0, got -1.0"),
        ({"alpha": 2.0}, r"alpha: expected a number in \[0, 1\], got 2.0"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TAKD(**options)


def test_a_missing_teacher_and_a_foreign_one_are_refused():
    student = networks()[1]
    with pytest.raises(ValueError, match="teacher: expected one, takd needs a teacher, got none"):
        TAKD().stages(None, student)
    with pytest.raises(TypeError, match="shrink: expected a reference model"):
        TAKD().stages(nn.Linear(5, 4), student)


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained-teacher", "ce", "classic-kd", "classic-kd-same-compute", "takd"}
    assert all(math.isfinite(value) for arm in run.arms.values() for value in arm.values())
    assert run == miniature(1, "smoke")
    assert run.arms["takd"] != run.arms["classic-kd"]
