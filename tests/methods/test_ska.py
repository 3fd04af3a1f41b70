"""Sigmoid layers that change their own weights from forward passes."""

from __future__ import annotations

import copy
import itertools
import json
import math

import pytest
import torch
import yaml
from tests.parity import ADAPTERS, check_case, check_folder, load_adapter
from tests.test_parity import GOLDEN
from torch import nn

from preceptor.catalog import read, recipe_snippet
from preceptor.core.method import NonFinite
from preceptor.core.run import train
from preceptor.losses.knowledge import diagnose
from preceptor.methods import ska
from preceptor.methods.ska import CARD, SKA, miniature
from preceptor.miniature.sigmoids import course, measured, sigmoid_world
from preceptor.models.reference import CNN, MLP
from preceptor.models.taps import forward
from preceptor.recipe import Recipe

LN2 = math.log(2)
NAMES = ("entropy", "cosine", "tensor_net", "flow", "lagrangian", "z_norm", "w_norm")


def network(*units, seed=0, scale=1.0, bias=True):
    """Linear layers of so many units, from inputs to outputs, with sigmoids between."""
    torch.manual_seed(seed)
    modules = [module for a, b in itertools.pairwise(units) for module in (nn.Linear(a, b, bias=bias), nn.Sigmoid())][:-1]
    made = nn.Sequential(*modules).double()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(scale)
    return made


def inputs(count=8, features=5, seed=1):
    return torch.rand(count, features, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def fitted(student, batches, *, steps=5, method=None, **rest):
    """Train in place; return the logs of all steps."""
    records = []
    batches = [batches] if isinstance(batches, dict) else batches
    train(method or SKA(eta=0.1), {"student": student}, batches, {}, steps=steps, progress=records.append, **rest)
    return [record.extras for record in records]


def parameters(student):
    return [p.detach().clone() for p in student.parameters()]


def test_defaults_are_those_of_the_card():
    assert SKA() == SKA(eta=0.01, net="code", inputs="previous")
    assert (CARD.slug, CARD.needs, SKA.gradient_free, SKA.coupled) == ("ska", ("sigmoids",), True, False)


# The rule.


def by_hand(x, weights, biases, *, eta, steps, current=False):
    """The algorithm of the card in plain Python, weights as (in, out); returns histories by layer, and the weights at the end."""

    def passed():
        zs, ds = [], [x]
        for weight, bias in zip(weights, biases, strict=True):
            rows = ds[-1]
            z = [[sum(row[i] * weight[i][j] for i in range(len(row))) + bias[j] for j in range(len(bias))] for row in rows]
            zs.append(z)
            ds.append([[1 / (1 + math.exp(-value)) for value in row] for row in z])
        return zs, ds

    n, layers = len(x), range(len(weights))
    _, decided = passed()
    history = [[] for _ in layers]
    for _ in range(steps):
        zs, ds = passed()
        for layer in layers:
            weight, bias = weights[layer], biases[layer]
            source = (ds if current else decided)[layer]
            entropy = 0.0
            moves = [[0.0] * len(bias) for _ in weight]
            shifts = [0.0] * len(bias)
            for s in range(n):
                for j in range(len(bias)):
                    z, d = zs[layer][s][j], ds[layer + 1][s][j]
                    moved = d - decided[layer + 1][s][j]
                    entropy -= z * moved / LN2
                    gradient = -(z * d * (1 - d) + moved) / LN2
                    shifts[j] += gradient / n
                    for i in range(len(weight)):
                        moves[i][j] += source[s][i] * gradient / n
            history[layer].append(entropy)
            for j in range(len(bias)):
                bias[j] -= eta * shifts[j]
                for i in range(len(weight)):
                    weight[i][j] -= eta * moves[i][j]
        decided = ds
    return history


@pytest.mark.parametrize("current", [False, True])
@pytest.mark.parametrize("units", [(5, 4, 3), (5, 4, 3, 2), (5, 3)])
def test_a_slow_loop_agrees(units, current):
    student, x = network(*units), inputs()
    layers = [module for module in student if isinstance(module, nn.Linear)]
    weights, biases = [layer.weight.mT.tolist() for layer in layers], [layer.bias.tolist() for layer in layers]
    expected = by_hand(x.tolist(), weights, biases, eta=0.5, steps=6, current=current)
    logs = fitted(student, {"x": x}, steps=6, method=SKA(eta=0.5, inputs="current" if current else "previous"))
    for number, (layer, weight, bias) in enumerate(zip(layers, weights, biases, strict=True)):
        name = str(2 * number)
        torch.testing.assert_close([log[f"entropy/{name}"] for log in logs], expected[number], rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(layer.weight.detach().mT, torch.tensor(weight, dtype=torch.double), rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(layer.bias.detach(), torch.tensor(bias, dtype=torch.double), rtol=1e-10, atol=1e-14)


def test_parity():
    lines = [line for line in check_folder(GOLDEN) if line.slug == "ska"]
    assert [line.status for line in lines] == ["ok"]


@pytest.mark.parametrize("sizes", [[4, 3, 2], [3]])
def test_the_adapter_takes_other_depths(sizes):
    """The inputs of the fixture in other shapes, against the slow loop."""
    case = json.loads((GOLDEN / "ska.json").read_text())["cases"][0]
    x, units = case["inputs"]["X"], [5, *sizes]
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(a, b, dtype=torch.double, generator=generator).tolist() for a, b in zip(units, sizes, strict=False)]
    biases = [torch.randn(b, dtype=torch.double, generator=generator).tolist() for b in sizes]
    given = {
        "params": {"K": 5, "eta": 0.5, "layer_sizes": sizes},
        "inputs": {"X": x, "W": copy.deepcopy(weights), "b": copy.deepcopy(biases)},
    }
    history = by_hand(x, weights, biases, eta=0.5, steps=4)
    expected = {"entropy": history, "W_final": weights, "b_final": biases}
    adapter = load_adapter("ska", ADAPTERS)
    assert adapter is not None
    assert check_case("ska", "other", {**given, "outputs": expected}, adapter.run).status == "ok"


def test_the_first_step_is_all_zeros_but_for_norms():
    student, x = network(5, 4, 3), inputs()
    (log,) = fitted(student, {"x": x}, steps=1)
    assert {key.split("/")[0] for key in log} == set(NAMES)
    assert {key.split("/")[1] for key in log} == {"0", "2"}
    assert all((value == 0) == (not key.startswith(("z_norm", "w_norm"))) for key, value in log.items())


def test_weights_and_biases_of_zero_stay():
    student, x = network(5, 4, 3, scale=0.0), inputs()
    logs = fitted(student, {"x": x}, steps=4)
    assert all(value == 0 for log in logs for value in log.values())
    assert all(not p.any() for p in student.parameters())


def test_on_positive_inputs_positive_logits_grow():
    student = network(5, 4)
    with torch.no_grad():
        student[0].weight.abs_()
        student[0].bias.abs_()
    before = parameters(student)
    logs = fitted(student, {"x": inputs()}, steps=3)
    assert all((p > old).all() for p, old in zip(student.parameters(), before, strict=True))
    assert all(log["entropy/0"] < 0 < log["flow/0"] for log in logs[1:])


def test_the_order_of_samples_and_of_hidden_units_does_not_matter():
    x = inputs()
    student, shuffled, renamed = (network(5, 4, 3, 2) for _ in range(3))
    with torch.no_grad():
        order = torch.tensor([2, 0, 3, 1])
        renamed[0].weight.copy_(student[0].weight[order])
        renamed[0].bias.copy_(student[0].bias[order])
        renamed[2].weight.copy_(student[2].weight[:, order])
    logs = fitted(student, {"x": x})
    torch.testing.assert_close(fitted(shuffled, {"x": x.flip(0)}), logs)
    torch.testing.assert_close(fitted(renamed, {"x": x}), logs)
    torch.testing.assert_close(renamed[0].weight, student[0].weight[order])
    torch.testing.assert_close(shuffled[4].weight, student[4].weight)


def test_curves_of_half_the_step_differ_by_half():
    """H / eta at the time 0.8, of steps of 0.02, 0.01, ...: successive differences halve."""
    x, curves = inputs(), []
    for halvings in range(4):
        steps = 40 * 2**halvings
        logs = fitted(network(5, 4, 3), {"x": x}, steps=steps + 1, method=SKA(eta=0.8 / steps))
        curves.append([logs[-1][f"entropy/{name}"] * steps / 0.8 for name in ("0", "2")])
    for layer in (0, 1):
        first, second, third = (curves[i + 1][layer] - curves[i][layer] for i in range(3))
        assert math.isclose(first / second, 2, rel_tol=0.1)
        assert math.isclose(second / third, 2, rel_tol=0.05)


def test_no_gradient_is_recorded():
    student, x = network(5, 4, 3), inputs()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        fitted(student, {"x": x})
    assert not saved
    assert all(p.grad is None and p.requires_grad and p.grad_fn is None for p in student.parameters())


def test_labels_are_not_read_and_options_do_what_they_say():
    x = inputs()
    students = {name: network(5, 4, 3) for name in ("plain", "labels", "current", "paper", "half")}
    plain = fitted(students["plain"], {"x": x})
    assert fitted(students["labels"], {"x": x, "y": torch.arange(8) % 3}) == plain
    paper = fitted(students["paper"], {"x": x}, method=SKA(eta=0.1, net="paper"))
    fitted(students["current"], {"x": x}, method=SKA(eta=0.1, inputs="current"))
    fitted(students["half"], {"x": x}, method=SKA(eta=0.05))
    assert torch.equal(students["paper"][0].weight, students["plain"][0].weight)
    assert {key for key in paper[-1] if paper[-1][key] != plain[-1][key]} == {"tensor_net/0", "tensor_net/2"}
    assert torch.equal(students["current"][0].weight, students["plain"][0].weight)
    assert not torch.equal(students["current"][2].weight, students["plain"][2].weight)
    assert not torch.equal(students["half"][0].weight, students["plain"][0].weight)


# Batches, masks, processes.


def test_small_batches_compare_the_same_examples():
    """Each update sees the present batch with the weights of now and of the update before: two passes of a copy give the log."""
    student, parts = network(5, 4, 3), [{"x": inputs(seed=seed)} for seed in (1, 2, 3)]
    weights = [copy.deepcopy(student.state_dict())]
    logs = []

    def keep(record):
        weights.append(copy.deepcopy(student.state_dict()))
        logs.append(record.extras)

    train(SKA(eta=0.1), {"student": student}, parts, {}, steps=3, progress=keep)
    twin = network(5, 4, 3)
    for step in (1, 2):
        seen = []
        for state in (weights[step], weights[step - 1]):
            twin.load_state_dict(state)
            with torch.no_grad():
                seen.append(forward(twin, parts[step]["x"], ("0", "2")).features)
        for layer in ("0", "2"):
            for name, value in diagnose(seen[0][layer], seen[1][layer], eta=0.1).items():
                assert math.isclose(logs[step][f"{name}/{layer}"], value, rel_tol=1e-9), name
    assert logs[1]["entropy/2"] != 0


def test_masked_examples_cost_nothing_and_change_nothing():
    x, mask = inputs(), torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 1])
    full, masked, none = (network(5, 4, 3) for _ in range(3))
    spoilt = x.clone()
    spoilt[mask == 0] = torch.nan
    logs = fitted(full, {"x": x[mask > 0]})
    assert fitted(masked, {"x": spoilt, "mask": mask}) == logs
    assert torch.equal(masked[2].weight, full[2].weight)
    before = parameters(none)
    (log,) = fitted(none, {"x": x, "mask": torch.zeros(8)}, steps=1)
    assert all(value == 0 for key, value in log.items() if not key.startswith("w_norm"))
    torch.testing.assert_close(parameters(none), before, rtol=0, atol=0)


def test_several_processes_work_on_the_batch_as_a_whole(monkeypatch):
    x = inputs()
    alone, first = network(5, 4, 3), network(5, 4, 3)
    logs = fitted(alone, {"x": x})
    monkeypatch.setattr(ska, "gathered", lambda own: torch.cat([own, x[3:]]))  # what another process would bring
    torch.testing.assert_close(fitted(first, {"x": x[:3]}), logs)
    torch.testing.assert_close(parameters(first), parameters(alone))


def test_microbatches_change_nothing():
    x = inputs()
    whole, split = network(5, 4, 3), network(5, 4, 3)
    assert fitted(whole, {"x": x}) == fitted(split, {"x": x}, micro=4)


def test_frozen_parameters_and_absent_biases():
    student, frozen, bare = network(5, 4, 3), network(5, 4, 3), network(5, 4, 3, bias=False)
    frozen[0].bias.requires_grad_(False)
    start = frozen[0].bias.clone()
    fitted(student, {"x": inputs()})
    logs = fitted(frozen, {"x": inputs()})
    assert torch.equal(frozen[0].bias, start)
    assert not torch.equal(frozen[0].weight, network(5, 4, 3)[0].weight)
    assert not torch.equal(frozen[0].weight, student[0].weight)  # the logits are others
    assert logs[-1]["entropy/0"] < 0
    before = parameters(bare)
    fitted(bare, {"x": inputs()})
    assert all(not torch.equal(p, old) for p, old in zip(bare.parameters(), before, strict=True))


def test_huge_weights_stay_finite_and_bad_inputs_move_nothing():
    student = network(5, 4, 3, scale=1e4)
    assert all(math.isfinite(value) for log in fitted(student, {"x": inputs()}) for value in log.values())
    for bad in (torch.nan, torch.inf):
        student, x = network(5, 4, 3), inputs()
        x[2, 3] = bad
        before = parameters(student)
        with pytest.raises(NonFinite, match=r"^layers: expected finite values at step 1, got "):
            fitted(student, {"x": x})
        torch.testing.assert_close(parameters(student), before, rtol=0, atol=0)


# What it refuses.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.0}, "eta: expected a finite number > 0, got 0.0"),
        ({"net": "other"}, "net: expected one of code, paper, got 'other'"),
        ({"inputs": "next"}, "inputs: expected one of previous, current, got 'next'"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SKA(**options)


def test_other_students_are_refused_at_the_first_step():
    for student in (MLP(inputs=5, hidden=(4,), classes=3), CNN(channels=(2,), classes=3)):
        x = torch.rand(2, 1, 5, 1) if isinstance(student, CNN) else torch.rand(2, 5)
        with pytest.raises(ValueError, match=r"^student: expected linear layers with sigmoids between, got (MLP|CNN), [^\n]*$"):
            fitted(student, {"x": x})


def test_a_recipe_asks_for_sigmoids():
    recipe = yaml.safe_load(recipe_snippet(read("ska")))
    assert recipe["student"] == {"reference": "mlp", "hidden": [16], "activation": "sigmoid"}
    Recipe.model_validate(recipe)
    with pytest.raises(ValueError, match=r"student.activation: expected sigmoid, ska needs linear layers with sigmoids between, got relu"):
        Recipe.model_validate(recipe | {"student": {"reference": "mlp", "hidden": [16]}})
    with pytest.raises(ValueError, match=r"student.reference: expected mlp, ska needs linear layers with sigmoids between, got cnn"):
        Recipe.model_validate(recipe | {"student": {"reference": "cnn", "channels": [4]}})


# The experiment.


def test_miniature():
    found = miniature(0, "smoke")
    assert set(found.arms) == {"untrained", "ce", "current-inputs", "half-step", "ska"}
    assert [(claim.baseline, claim.metric) for claim in found.claims] == [
        ("untrained", "linear_3"),
        ("half-step", "entropy_time_2"),
        ("half-step", "entropy_time_2"),
    ]
    start, end = found.arms["untrained"], found.arms["ska"]
    assert start["linear_0"] == end["linear_0"]  # the pixels
    assert all(start[f"{name}_time_{layer}"] == 0 < end[f"{name}_time_{layer}"] for name in ("entropy", "flow") for layer in (1, 2, 3))


def test_the_curves_of_the_paper_come_back_and_every_image_gets_the_same_answer():
    """A fifth of the paper's images: layers turn at its times, 0.28, 0.16 and 0.24, to within a few steps."""
    world = sigmoid_world(0, "full")
    world = world._replace(train=world.train.subset(torch.arange(200), name="train"))
    run = course(world, SKA(), steps=49, seed=0)
    found = measured(world, run, seed=0)
    for layer, time in ((1, 0.28), (2, 0.16), (3, 0.24)):
        assert abs(found[f"entropy_time_{layer}"] - time) < 0.04
        assert abs(found[f"flow_time_{layer}"] - time) < 0.04
    x = world.test.batch(torch.arange(len(world.test)))["x"]
    with torch.no_grad():
        assert len(run.student(x).argmax(dim=1).unique()) == 1
    assert found["spread_4"] < 1e-4
