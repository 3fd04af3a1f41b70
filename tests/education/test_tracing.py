"""Tracers: causal, masked, and equal to slow loops."""

import math

import numpy as np
import pytest
import torch

from preceptor.core.state import State
from preceptor.education import bkt
from preceptor.education.scores import auc, by_history, score
from preceptor.education.sequences import Windows, batch_of
from preceptor.education.tracing import ItemMean, Tracing, Training, evaluate, knowledge_tracer
from preceptor.education.tracing_networks import DKT, SAKT

TAGS = torch.tensor([[-1, -1], [0, 2], [1, -1], [0, -1], [2, -1], [1, 2]])


def window(items, correct, first=None):
    item, right = np.array(items), np.array(correct)
    known = item >= 0
    return Windows(
        user=np.arange(len(item)),
        start=np.zeros(len(item), int),
        item=item,
        correct=np.where(known, right, -1),
        elapsed=np.zeros(item.shape, int),
        first=known if first is None else np.array(first) & known,
    )


@pytest.fixture(params=["dkt", "sakt"])
def network(request):
    torch.manual_seed(0)
    if request.param == "dkt":
        return DKT(6, tags=TAGS, width=8).double().eval()
    return SAKT(6, tags=TAGS, width=8, heads=2, max_len=9).double().eval()


def random_x(rows=3, steps=7):
    torch.manual_seed(1)
    return {"item": torch.randint(1, 6, (rows, steps)), "correct": torch.randint(0, 2, (rows, steps))}


def test_an_answer_changes_no_chance_before_or_at_it(network):
    x = random_x()
    before = network(**x)
    for step in range(7):
        changed = {**x, "correct": x["correct"].clone()}
        changed["correct"][:, step] = 1 - changed["correct"][:, step]
        after = network(**changed)
        assert torch.equal(after[:, : step + 1], before[:, : step + 1])
        assert step == 6 or (after[:, step + 1] != before[:, step + 1]).all()


def test_a_later_question_changes_no_chance_before_it(network):
    x = random_x()
    before = network(**x)
    changed = {**x, "item": x["item"].clone()}
    changed["item"][:, 4] = x["item"][:, 4] % 5 + 1
    assert torch.equal(network(**changed)[:, :4], before[:, :4])
    assert (network(**changed)[:, 4] != before[:, 4]).all()


def test_padding_and_other_rows_change_nothing(network):
    x = random_x()
    whole = network(**x)
    padded = {name: torch.nn.functional.pad(value, (0, 2), value=-1 if name == "item" else 0) for name, value in x.items()}
    torch.testing.assert_close(network(**padded)[:, :7], whole)
    torch.testing.assert_close(network(**{name: value[1:2] for name, value in x.items()}), whole[1:2])


def test_the_loss_is_the_mean_over_judged_steps(network):
    part = window([[1, 2, 3, 4], [5, 1, -1, -1], [2, -1, -1, -1]], [[1, 0, 1, 1], [0, 1, 0, 0], [1, 0, 0, 0]])
    batch = batch_of(part)
    term = Tracing().loss(batch, {}, {"student": network}, State(total_steps=1))["bce"]
    counts = {"bce": batch["mask"].sum()}
    chances = torch.sigmoid(network(**batch["x"])).tolist()
    slow = [-math.log(chances[0][t] if part.correct[0, t] else 1 - chances[0][t]) for t in (1, 2, 3)] + [-math.log(chances[1][1])]
    assert math.isclose(float((term.detach() * batch["mask"]).sum() / counts["bce"]), sum(slow) / 4, rel_tol=1e-5)


def test_gradient_flows_to_every_parameter(network):
    batch = batch_of(window([[1, 2, 3, 4, 5, 1]], [[1, 0, 1, 1, 0, 0]]))
    term = Tracing().loss(batch, {}, {"student": network}, State(total_steps=1))["bce"]
    (term * batch["mask"]).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_dkt_against_its_equation():
    torch.manual_seed(0)
    net, x = DKT(6, tags=None, width=4).double().eval(), random_x(1, 4)
    state = torch.zeros(1, 4, dtype=torch.double)
    cell = torch.nn.GRUCell(4, 4).double()
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(cell, name).data = getattr(net.recurrent, f"{name}_l0").data
    net.bias.own.weight.data.normal_()
    for step in range(4):
        question, right = int(x["item"][0, step]), int(x["correct"][0, step])
        expected = (state[0] @ net.asked.own.weight[question]) / 2 + net.bias.own.weight[question, 0]
        torch.testing.assert_close(net(**x)[0, step], expected)
        state = cell(net.answered.own.weight[question + 6 * right][None], state)


def test_bkt_against_a_slow_loop():
    random = np.random.default_rng(0)
    skills = bkt.Skills(start=random.random(3), learn=random.random(3), slip=random.random(3) / 2, guess=random.random(3) / 2)
    tags = np.array([[[0, 2], [1, -1], [0, -1], [2, 0], [-1, -1], [1, 0]]])
    correct = np.array([[1, 0, 1, 0, 1, 1]])
    known, expected = skills.start.tolist(), []
    for step in range(6):
        own = [tag for tag in tags[0, step].tolist() if tag >= 0]
        said = [known[k] * (1 - skills.slip[k]) + (1 - known[k]) * skills.guess[k] for k in own]
        expected.append(sum(said) / len(said) if said else 0.5)
        for k in own:
            p, s, g = known[k], skills.slip[k], skills.guess[k]
            after = p * (1 - s) / (p * (1 - s) + (1 - p) * g) if correct[0, step] else p * s / (p * s + (1 - p) * (1 - g))
            known[k] = after + (1 - after) * skills.learn[k]
    np.testing.assert_allclose(bkt.trace(tags, correct, skills)[0], expected, rtol=1e-12)


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_bkt_without_slip_guess_and_learning_is_certain(start):
    nothing = np.zeros(1)
    skills = bkt.Skills(start=np.array([start]), learn=nothing, slip=nothing, guess=nothing)
    tags, correct = np.zeros((1, 5, 1), int), np.full((1, 5), int(start))
    assert (bkt.trace(tags, correct, skills) == start).all()


def test_em_never_loses_likelihood_and_finds_the_skill():
    random = np.random.default_rng(0)
    true = {"start": 0.3, "learn": 0.2, "slip": 0.08, "guess": 0.2}
    known, correct = random.random(3000) < true["start"], np.zeros((3000, 12), int)
    for step in range(12):
        correct[:, step] = random.random(3000) < np.where(known, 1 - true["slip"], true["guess"])
        known |= random.random(3000) < true["learn"]
    skills, likelihood = bkt.fit(np.zeros((3000, 12, 1), int), correct, num_skills=2, iterations=60)
    assert (np.diff(likelihood) >= -1e-12).all()
    for name, value in true.items():
        assert abs(getattr(skills, name)[0] - value) < 0.03, name
    assert (skills.start[1], skills.learn[1]) == (0.4, 0.15)  # nobody met it


def test_em_against_all_paths():
    """One step of EM for one student, expectations summed over every moment of learning."""
    correct, s, g, tau, start = [1, 0, 1], 0.1, 0.25, 0.15, 0.4
    paths = {}
    for learned in range(4):  # known from this step on; 3: never
        chance = start if learned == 0 else (1 - start) * (1 - tau) ** (learned - 1) * (tau if learned < 3 else 1)
        if learned == 3:
            chance = (1 - start) * (1 - tau) ** 2
        for step, right in enumerate(correct):
            p = 1 - s if step >= learned else g
            chance *= p if right else 1 - p
        paths[learned] = chance
    total = sum(paths.values())
    share = {learned: chance / total for learned, chance in paths.items()}
    at = [sum(share[k] for k in share if k <= step) for step in range(3)]
    skills, likelihood = bkt.fit(np.zeros((1, 3, 1), int), np.array([correct]), num_skills=1, iterations=1)
    assert math.isclose(skills.start[0], share[0], rel_tol=1e-9)
    assert math.isclose(skills.learn[0], (share[1] + share[2]) / ((1 - at[0]) + (1 - at[1])), rel_tol=1e-9)
    assert math.isclose(skills.slip[0], at[1] / sum(at), rel_tol=1e-9)
    assert math.isclose(skills.guess[0], min(0.499, (2 - at[0] - at[2]) / (3 - sum(at))), rel_tol=1e-9)
    assert math.isclose(likelihood[0], math.log(total) / 3, rel_tol=1e-9)


def test_scores_against_slow_loops():
    random = np.random.default_rng(0)
    chances, correct = random.integers(0, 8, 60) / 8, random.integers(0, 2, 60)
    pairs = [(a > b) + (a == b) / 2 for a in chances[correct == 1] for b in chances[correct == 0]]
    assert math.isclose(auc(chances, correct), sum(pairs) / len(pairs), rel_tol=1e-12)
    assert math.isnan(auc(chances, np.ones(60)))
    found = score(chances.clip(0.01, 0.99), correct)
    assert found["n"] == 60
    assert math.isclose(found["accuracy"], sum((p >= 0.5) == c for p, c in zip(chances, correct, strict=True)) / 60)
    split = by_history(chances, correct, np.arange(60) + 1)
    assert list(split) == ["1-4", "5-9", "10-19", "20-49", "50-99"]
    assert sum(part["n"] for part in split.values()) == 60


def test_item_means_are_drawn_to_the_mean_of_all():
    tracer = ItemMean(6, prior=2.0)
    part = window([[1, 1, 2, 3]], [[1, 1, 0, 1]])
    tracer.fit(part)
    assert tracer.predict(part)[0].tolist() == pytest.approx([3.5 / 4, 3.5 / 4, 1.5 / 3, 2.5 / 3])


def test_training_is_deterministic_and_learns_a_rule():
    random = np.random.default_rng(0)
    able = random.random(200) < 0.5
    part = window(random.integers(1, 6, (200, 12)), np.repeat(able[:, None], 12, 1).astype(int))
    chances = []
    for _ in range(2):
        tracer = knowledge_tracer("dkt", 6, training=Training(width=8, epochs=5, learning_rate=0.02), seed=3)
        tracer.fit(part, part)
        chances.append(tracer.predict(part))
    assert (chances[0] == chances[1]).all()
    assert evaluate(chances[0], part)["auc"] > 0.95


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"^model: expected item-mean, bkt, dkt or sakt, got 'gkt'$"):
        knowledge_tracer("gkt", 3)
    with pytest.raises(ValueError, match=r"^students: expected at least one answer with another before it, got none$"):
        evaluate(np.zeros((1, 2)), window([[1, -1]], [[1, 0]]))
    with pytest.raises(ValueError, match=r"^bkt: expected fit before predict$"):
        knowledge_tracer("bkt", 3).predict(window([[1]], [[1]]))
