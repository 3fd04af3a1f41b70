"""RMT."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.parity import check_case, load_adapter
from torch import nn

from preceptor.core.online import Online
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.stream import as_stream
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.losses.contrastive import prototype_contrast
from preceptor.methods.rmt import CARD, RMT, miniature, symmetric_cross_entropy, warm_up
from preceptor.models.norms import by_batch


def logits(seed=0):
    return torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.double) * 3


def shaken(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)


METHOD = RMT(augment=shaken, projector_width=5, momentum=0.9)


def world(method=METHOD, dropout=0.0):
    torch.manual_seed(0)
    data = examples_from((torch.randn(40, 6, dtype=torch.double), torch.arange(40) % 3), 4)  # the fourth class has no example
    student = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(dropout), nn.Linear(7, 4)).double()
    roles = {"student": student}
    return data, roles | method.extra_roles(roles, data.batch(torch.arange(8)))


def served(method, roles, data, **options):
    parameters = [*roles["student"].parameters(), *roles["projector"].parameters()]
    streams = {"source": Source(data, batch_size=10)}
    return Online(method, roles, {"student": torch.optim.Adam(parameters, lr=0.01)}, streams=streams, **options)


def weights(module):
    return copy.deepcopy(dict(module.named_parameters()))


def test_defaults_are_those_of_the_card():
    method = RMT()
    assert (method.alpha, method.momentum, method.temperature, method.projector_width) == (0.5, 0.999, 0.1, 128)
    assert method.self_training_weight == method.contrast_weight == method.source_weight == 1
    assert CARD.slug == "rmt"


def test_agreement_is_cross_entropy_from_both_sides():
    student, teacher = logits()
    forward, reverse = (symmetric_cross_entropy(student, teacher, alpha=alpha) for alpha in (0.0, 1.0))
    torch.testing.assert_close(forward, F.cross_entropy(student, teacher.softmax(1), reduction="none"))
    torch.testing.assert_close(reverse, F.cross_entropy(teacher, student.softmax(1), reduction="none"))
    torch.testing.assert_close(symmetric_cross_entropy(student, teacher, alpha=0.3), 0.7 * forward + 0.3 * reverse)
    torch.testing.assert_close(symmetric_cross_entropy(student, teacher), symmetric_cross_entropy(teacher, student))
    torch.testing.assert_close(symmetric_cross_entropy(student + 3, teacher - 5), symmetric_cross_entropy(student, teacher))
    own = symmetric_cross_entropy(student, student, alpha=0.3)
    torch.testing.assert_close(own, -(student.softmax(1) * student.log_softmax(1)).sum(1))


def test_gradient_is_that_of_the_docstring_and_none_reaches_the_teacher():
    student, teacher = (each.requires_grad_() for each in logits().unbind())
    symmetric_cross_entropy(student, teacher, alpha=0.3).sum().backward()
    p, q = student.detach().softmax(1), teacher.detach().softmax(1)
    expected = 0.7 * (p - q) + 0.3 * p * ((p * q.log()).sum(1, keepdim=True) - q.log())
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda x: symmetric_cross_entropy(x, teacher), (student,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_are_finite(dtype):
    student = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = symmetric_cross_entropy(student, torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype))
    torch.testing.assert_close(loss, torch.tensor([2e4]), rtol=5e-3, atol=0)
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


def test_a_step_is_that_of_the_equation():
    method = replace(METHOD, self_training_weight=0.5, contrast_weight=2.0, source_weight=3.0, alpha=0.2)
    data, roles = world(method, dropout=0.9)  # dropout is off
    for parameter in roles["mean_teacher"].parameters():
        parameter.data.mul_(1.3)
    state, stream = State(total_steps=1), as_stream([data.batch(torch.arange(20, 32))])
    state.streams = {"source": stream}
    before = copy.deepcopy(roles)
    with torch.no_grad():
        batch = method.prepare(data.batch(torch.arange(8)), roles, state)
        signal = method.signal(batch, roles, state)
    terms = method.loss(batch, signal, roles, state)

    def run(net, x):
        hidden = net[0](x)
        normal = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
        features = (normal * net[1].weight + net[1].bias).relu()
        return net[4](features), features

    x, view = batch["x"], batch["rmt/view"]
    assert not torch.equal(x, view)
    (answers, f), (other, g) = run(before["student"], x), run(before["student"], view)
    teacher = run(before["mean_teacher"], x)[0].detach()
    both = symmetric_cross_entropy(answers, teacher, alpha=0.2) + symmetric_cross_entropy(other, teacher, alpha=0.2)
    torch.testing.assert_close(terms["self_training"], 0.25 * both)
    torch.testing.assert_close(state.memory["prediction"], (answers + teacher).detach())
    source = data.batch(torch.arange(20, 32))
    embedded = run(before["student"], source["x"])[1].detach()
    means = torch.stack([embedded[source["y"] == c].mean(0) for c in range(3)])
    torch.testing.assert_close(state.memory["rmt/prototypes"], means)
    torch.testing.assert_close(terms["contrast"], 2 * prototype_contrast(f, g, means, before["projector"]).mean())
    torch.testing.assert_close(terms["source"], 3 * F.cross_entropy(run(before["student"], source["x"])[0], source["y"]))


def test_the_teacher_follows_and_only_the_students_running_statistics_do():
    for momentum in (0.0, 0.9, 1.0):
        method = replace(METHOD, momentum=momentum)
        data, roles = world(method)
        before, buffers = weights(roles["mean_teacher"]), copy.deepcopy(dict(roles["mean_teacher"].named_buffers()))
        served(method, roles, data).adapt({"x": 2 + data.inputs[:8]})
        for name, average in roles["mean_teacher"].named_parameters():
            now = roles["student"].get_parameter(name)
            torch.testing.assert_close(average, momentum * before[name] + (1 - momentum) * now)
        assert all(torch.equal(value, buffers[name]) for name, value in roles["mean_teacher"].named_buffers())
        assert roles["student"][1].num_batches_tracked == 1
        assert not torch.equal(roles["student"][1].running_mean, buffers["1.running_mean"])


def test_without_weights_nothing_moves_and_the_answer_is_the_sum():
    method = replace(METHOD, self_training_weight=0.0, contrast_weight=0.0, source_weight=0.0)
    data, roles = world(method)
    before = weights(roles["student"])
    with torch.no_grad(), by_batch(roles["student"]):
        expected = 2 * roles["student"](data.inputs[:8])
    online = served(method, roles, data)
    for _ in range(3):
        torch.testing.assert_close(online.adapt({"x": data.inputs[:8]}), expected)
    assert all(torch.equal(value, before[name]) for name, value in roles["student"].named_parameters())


def test_labels_of_the_stream_are_not_read():
    answers = []
    for labels in (torch.zeros(8, dtype=torch.int64), None):
        data, roles = world()
        online = served(METHOD, roles, data)
        batch = {"x": data.inputs[:8]} if labels is None else {"x": data.inputs[:8], "y": labels}
        answers.append([online.adapt(batch) for _ in range(3)][-1])
    assert torch.equal(*answers)


def test_single_examples_go_through_a_window():
    data, roles = world()
    with pytest.raises(ValueError, match="x: expected at least 2 examples where batch normalisation uses the batch, got 1"):
        served(METHOD, roles, data).adapt({"x": data.inputs[:1]})
    online = served(METHOD, roles, data, window=4, predict=METHOD.predict)
    answers = [online.adapt({"x": data.inputs[i : i + 1]}) for i in range(8)]
    assert online.state.step == 2
    assert all(answer.shape == (1, 4) and answer.isfinite().all() for answer in answers)


def test_source_data_come_from_the_source_or_the_validation_part_or_not_at_all():
    data, roles = world()
    state = State(total_steps=1)
    with pytest.raises(ValueError, match="streams: expected 'source', labelled source data, got none"):
        METHOD.prepare(data.batch(torch.arange(8)), roles, state)
    free = replace(METHOD, source_weight=0.0, prototypes=torch.eye(7)[:4])
    assert "rmt/source" not in free.prepare(data.batch(torch.arange(8)), roles, state)
    assert torch.equal(state.memory["rmt/prototypes"], torch.eye(7, dtype=torch.double)[:4])
    state.streams = {"valid": as_stream([data.batch(torch.arange(30, 40))])}
    assert torch.equal(METHOD.prepare(data.batch(torch.arange(8)), roles, state)["rmt/source"]["x"], data.inputs[30:40])
    state.streams = {**state.streams, "source": as_stream([data.batch(torch.arange(5))])}
    assert torch.equal(METHOD.prepare(data.batch(torch.arange(8)), roles, state)["rmt/source"]["x"], data.inputs[:5])


def test_the_layer_and_the_projector_are_free():
    method = replace(METHOD, projector_width=0, student_layer="0")
    data, roles = world(method)
    assert len(roles["projector"]) == 0
    served(method, roles, data).adapt({"x": data.inputs[:8]})


def test_masked_examples_have_no_part():
    data, roles = world()
    roles["student"][1] = nn.Identity()
    roles["mean_teacher"] = copy.deepcopy(roles["student"])
    method = replace(METHOD, augment=lambda x, generator: x)
    results = []
    for keep in (8, 5):
        batch = data.batch(torch.arange(keep))
        if keep == 8:
            batch["mask"] = (torch.arange(8) < 5).double()
        moved = copy.deepcopy(roles)
        parameters = [*moved["student"].parameters(), *moved["projector"].parameters()]
        streams = {"source": [data.batch(torch.arange(10))]}
        train(method, moved, [batch], torch.optim.SGD(parameters, lr=0.1), steps=1, streams=streams)
        results.append(weights(moved["student"]))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name])


def test_a_warm_up_moves_the_teacher_at_a_rising_rate_and_gives_the_rate_back():
    data, roles = world()
    parameters = [*roles["student"].parameters(), *roles["projector"].parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    before, rates = weights(roles["student"]), []
    warm_up(METHOD, roles, optimizer, Source(data, batch_size=10), steps=0)
    assert torch.equal(before["0.weight"], roles["student"][0].weight)
    unlabelled = [{"x": data.inputs[:10]}]
    warm_up(METHOD, roles, optimizer, unlabelled, steps=4, progress=lambda record: rates.append(record.learning_rate))
    torch.testing.assert_close(rates, [0.025, 0.05, 0.075, 0.1])
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert not torch.equal(before["0.weight"], roles["student"][0].weight)
    assert not torch.equal(roles["mean_teacher"][0].weight, roles["student"][0].weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha: expected a number in \[0, 1\], got 1.5"),
        ({"momentum": -0.1}, r"momentum: expected a number in \[0, 1\], got -0.1"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0, got 0.0"),
        ({"contrast_weight": -1.0}, "contrast_weight: expected a number >= 0, got -1.0"),
        ({"source_weight": math.nan}, "source_weight: expected a number >= 0, got nan"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        RMT(**options)


def test_parity():
    path = Path(__file__).parents[1] / "golden" / "rmt.json"
    for case in json.loads(path.read_text())["cases"]:
        line = check_case("rmt", "case", case, load_adapter("rmt").run)
        assert line.status == "ok", line.reason


def test_miniature_is_complete():
    arms = miniature(0, "smoke").arms
    assert set(arms) >= {
        "source",
        "batch-statistics",
        "tent-all",
        "tent-norms",
        "ce-mean-teacher",
        "sce-mean-teacher",
        "source-free",
        "rmt",
    }
    assert all(0 <= arm["error"] <= 1 for arm in arms.values())
