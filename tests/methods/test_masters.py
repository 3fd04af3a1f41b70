"""Masters."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from tests.parity import check_case, load_adapter

from preceptor.core.state import State
from preceptor.losses.divergence import generalized_jsd
from preceptor.losses.policy import sequence_means
from preceptor.methods.masters import CARD, Masters, miniature
from preceptor.miniature.styles import StyleModel
from preceptor.teachers.masked import masked_teacher


def roles():
    torch.manual_seed(0)
    return {name: StyleModel(width).double() for name, width in (("student", 5), ("teacher", 9), ("reference", 5))}


def texts():
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(10, (8, 2), generator=generator)
    x = {"pixels": torch.rand(8, 64, generator=generator, dtype=torch.double), "input_ids": torch.randint(13, (8, 2), generator=generator)}
    mask = torch.ones(8, 2)
    mask[3, 1] = 0
    return {"x": x, "y": y, "mask": mask, "id": torch.arange(8), "accuracy": torch.tensor([1.0, 0, 0, 1, 0, math.nan, 1, 0])}


def terms(method, networks, batch, *, step=0):
    state = State(total_steps=20, step=step)
    with torch.no_grad():
        prepared = method.prepare(batch, networks, state)
        signal = method.signal(prepared, networks, state)
    return prepared, method.loss(prepared, signal, networks, state), state


def test_defaults_are_those_of_the_card():
    method = Masters()
    assert (method.r_max, method.step, method.scope, method.answers, method.beta) == (0.2, 0.05, "layer", 8, 0.1)
    assert CARD.slug == "masters"


@pytest.mark.parametrize(("step", "ratio"), [(0, 0.2), (4, 0.15), (11, 0.1), (15, 0.05), (19, 0.0)])
def test_the_divergence_is_that_of_the_stage(step, ratio):
    networks, batch = roles(), texts()
    _, found, state = terms(Masters(), networks, batch, step=step)
    assert state.log["mask_ratio"] == ratio
    with masked_teacher(networks["teacher"], ratio) as teacher:
        apart = generalized_jsd(networks["student"](**batch["x"]), teacher(**batch["x"]))
    torch.testing.assert_close(found["distil"], sequence_means(apart, batch["mask"]))
    assert (found["distil"] <= math.log(2)).all()


def test_rewards_become_advantages_by_group():
    method = Masters(rewards="both", answers=4)
    networks, batch = roles(), texts()
    prepared, found, _ = terms(method, networks, batch)
    with masked_teacher(networks["teacher"], 0.2) as teacher:
        apart = sequence_means(generalized_jsd(networks["student"](**batch["x"]), teacher(**batch["x"])), batch["mask"]).tolist()
    for first in (0, 4):
        rows = [i for i in range(first, first + 4) if i != 5]
        d = [apart[i] for i in rows]
        r = [float(batch["accuracy"][i]) + (max(d) - apart[i]) / (max(d) - min(d)) for i in rows]
        mean = sum(r) / len(r)
        std = math.sqrt(sum((v - mean) ** 2 for v in r) / len(r))
        got = prepared["masters/advantages"][rows].tolist()
        assert got == pytest.approx([(v - mean) / (std + 1e-4) for v in r])
    assert prepared["masters/advantages"][5] == 0
    assert prepared["mask/policy"].tolist() == [i != 5 for i in range(8)]
    assert found["policy"].shape == found["distil"].shape == (8,)


def test_each_reward_stands_alone():
    networks, batch = roles(), texts()
    accuracy = terms(Masters(rewards="accuracy", answers=4), networks, batch)[0]["masters/advantages"]
    assert accuracy[0] == accuracy[3] > 0 > accuracy[1] == accuracy[2]
    easy = terms(Masters(rewards="distillation", answers=4), networks, {**batch, "accuracy": torch.zeros(8)})[0]["masters/advantages"]
    assert not torch.allclose(easy, accuracy)
    assert easy.any()


def test_above_its_limit_the_kl_ends_the_rewards():
    networks, batch = roles(), texts()
    method = Masters(rewards="both", answers=4, kl_limit=1e-9)
    prepared, _, state = terms(method, networks, batch)
    assert state.log["reference_kl"] > 1e-9
    assert not prepared["masters/advantages"].any()
    same = {**networks, "reference": copy.deepcopy(networks["student"])}
    assert terms(method, same, batch)[0]["masters/advantages"].any()


def test_beta_weighs_the_kl_and_the_true_ratio_is_used():
    networks, batch = roles(), texts()
    low, high = (terms(Masters(rewards="both", answers=4, beta=b), networks, batch)[1]["policy"] for b in (0.0, 1.0))
    assert (high > low).all()
    batch |= {"sampling_log_probs": torch.full((8, 2), -9.0, dtype=torch.double)}
    assert not torch.allclose(terms(Masters(rewards="both", answers=4, beta=0.0, true_ratio=True), networks, batch)[1]["policy"], low)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"answers": 3}, {}, "multiple of answers=3"),
        ({"answers": 4}, {"accuracy": None}, "accuracy"),
        ({"answers": 4, "true_ratio": True}, {}, "sampling_log_probs"),
    ],
)
def test_what_rewards_need_is_asked_for(options, change, message):
    batch = {key: value for key, value in {**texts(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        Masters(rewards="both", **options).prepare(batch, roles(), State(total_steps=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"r_max": 0.2, "step": 0.15}, "r_max"), ({"beta": -1.0}, "beta"), ({"rewards": "all"}, "rewards"), ({"kl_limit": 0.0}, "kl_limit")],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Masters(**options)


GOLDEN = Path(__file__).parents[1] / "golden" / "masters.json"


def test_parity():
    for case in json.loads(GOLDEN.read_text())["cases"]:
        line = check_case("masters", "case", case, load_adapter("masters").run)
        assert line.status == "ok", line


def test_miniature():
    found = miniature(0, "smoke")
    assert {"no-rewards", "accuracy-masters", "distillation-masters", "both-masters", "always-masked"} <= found.arms.keys()
