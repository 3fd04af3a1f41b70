"""Generalisation against fidelity: the study's loss, its noisy teacher, its miniature."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tests.parity import check_case, load_adapter
from tests.teachers.answers import made, texts
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.core.reduce import global_counts, reduce_terms, split
from preceptor.core.state import State
from preceptor.losses.divergence import forward_kl, reverse_kl
from preceptor.losses.hard import hard_loss
from preceptor.methods.fidelity_paradox import CARD, FidelityParadox, miniature, noisy
from preceptor.miniature.policies import TablePolicy
from preceptor.models.taps import forward
from preceptor.teachers.cache import from_cache

GOLDEN = Path(__file__).parents[1] / "golden" / "fidelity-paradox.json"


def model(seed, vocabulary=9):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)).double()
    made.lm_head.weight.data.mul_(40)
    return made


@pytest.fixture
def roles():
    return {"student": model(0), "teacher": model(1).requires_grad_(False)}


@pytest.fixture
def batch():
    tokens = torch.randint(3, 9, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 0, 0]])
    return {"x": {"input_ids": tokens[:, :-1], "use_cache": False}, "y": tokens[:, 1:], "mask": mask, "id": torch.arange(4)}


def prepared(method, batch, roles, seed=0):
    state = State(total_steps=1)
    state.rng.manual_seed(seed)
    return method.prepare(batch, roles, state)


def losses(method, batch, roles, parts=1, seed=0):
    """The reduced terms, as the loop computes them."""
    made = prepared(method, batch, roles, seed)
    counts, total = global_counts(made), {}
    for part in split(made, parts):
        with torch.no_grad():
            signal = method.signal(part, roles, State(total_steps=1))
        for name, value in reduce_terms(method.loss(part, signal, roles, State(total_steps=1)), part, counts, parts).items():
            total[name] = total.get(name, 0) + value
    return total


def logits_of(roles, batch):
    return forward(roles["student"], batch["x"]).logits, forward(roles["teacher"], batch["x"]).logits


def test_defaults_are_those_of_the_released_code():
    method = FidelityParadox()
    values = (method.direction, method.temperature, method.noise, method.kd_weight, method.aggregation)
    assert values == ("forward", 1.0, 0.0, 1.0, "sequence")
    assert (CARD.slug, CARD.tasks) == ("fidelity-paradox", ("language",))


@pytest.mark.parametrize(("direction", "divergence"), [("forward", forward_kl), ("reverse", reverse_kl)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_tokens_are_averaged_within_texts_and_texts_without_tokens_are_left_out(roles, batch, direction, divergence, temperature):
    student, teacher = logits_of(roles, batch)
    expected = 0.0
    for row in (0, 1, 3):
        places = batch["mask"][row].nonzero()[:, 0].tolist()
        expected += sum(divergence(student[row, t], teacher[row, t], temperature=temperature).item() for t in places) / len(places) / 3
    found = losses(FidelityParadox(direction=direction, temperature=temperature), batch, roles)
    assert found.keys() == {"soft"}
    assert math.isclose(found["soft"].item(), temperature**2 * expected, rel_tol=1e-9)


def test_the_mean_over_tokens_and_the_hard_term(roles, batch):
    student, teacher = logits_of(roles, batch)
    counts = batch["mask"].bool()
    found = losses(FidelityParadox(aggregation="token", kd_weight=0.25), batch, roles)
    torch.testing.assert_close(found["soft"], 0.25 * forward_kl(student, teacher)[counts].mean())
    torch.testing.assert_close(found["hard"], 0.75 * hard_loss(student, batch)[counts].mean())
    per_text = losses(FidelityParadox(kd_weight=0.25), batch, roles)
    rows = [hard_loss(student, batch)[row][counts[row]].mean() for row in (0, 1, 3)]
    torch.testing.assert_close(per_text["hard"], 0.75 * sum(rows) / 3)


def test_a_batch_without_a_mask_counts_all(roles, batch):
    student, teacher = logits_of(roles, batch)
    del batch["mask"]
    torch.testing.assert_close(losses(FidelityParadox(), batch, roles)["soft"], forward_kl(student, teacher).mean())


def test_equal_models_have_no_loss_and_no_gradient(roles, batch):
    roles["teacher"].load_state_dict(roles["student"].state_dict())
    for direction in ("forward", "reverse"):
        loss = losses(FidelityParadox(direction=direction, temperature=2.0), batch, roles)["soft"]
        gradients = torch.autograd.grad(loss, list(roles["student"].parameters()))
        assert abs(loss.item()) < 1e-12
        assert max(gradient.abs().max() for gradient in gradients) < 1e-12


def test_a_batch_where_nothing_counts_has_a_zero_loss_with_a_gradient(roles, batch):
    batch["mask"] = torch.zeros_like(batch["mask"])
    for aggregation in ("sequence", "token"):
        loss = losses(FidelityParadox(aggregation=aggregation, kd_weight=0.5), batch, roles)
        assert [term.item() for term in loss.values()] == [0.0, 0.0]
        assert all(term.requires_grad for term in loss.values())


def test_noise_is_normal_and_no_noise_changes_nothing():
    logits = torch.tensor([[0.0, -torch.inf, 3.0]]).expand(20_000, 3)
    assert noisy(logits, 0.0, generator=torch.Generator()) is logits
    added = noisy(logits, 2.0, generator=torch.Generator().manual_seed(0))
    assert torch.isneginf(added[:, 1]).all()
    for column, mean in ((0, 0.0), (2, 3.0)):
        assert math.isclose(added[:, column].mean(), mean, abs_tol=0.06)  # 4 standard errors
        assert math.isclose(added[:, column].std(), 2.0, abs_tol=0.04)
    half = noisy(logits.half(), 2.0, generator=torch.Generator().manual_seed(0))
    assert half.dtype == torch.float32
    assert torch.equal(half, added)


def test_noise_is_new_at_each_step_and_does_not_depend_on_microbatches(roles, batch):
    method = FidelityParadox(noise=3.0)
    whole = losses(method, batch, roles)["soft"]
    torch.testing.assert_close(losses(method, batch, roles, parts=4)["soft"], whole, rtol=1e-12, atol=0)
    assert abs(losses(method, batch, roles, seed=1)["soft"] - whole) > 1e-3
    assert abs(losses(FidelityParadox(), batch, roles)["soft"] - whole) > 1e-3
    made = prepared(method, batch, roles)
    rows = method.signal(made, roles, State(total_steps=1))["logits"] - forward(roles["teacher"], batch["x"]).logits
    assert len({row.sum().item() for row in rows}) == 4


def test_noise_on_no_text_at_all():
    teacher = TablePolicy(torch.zeros(9, 9), torch.zeros(9, 9, dtype=torch.int64))
    empty = {"x": {"input_ids": torch.zeros(0, 5, dtype=torch.int64)}, "id": torch.arange(0), "noise_key": 1}
    assert FidelityParadox(noise=1.0).signal(empty, {"teacher": teacher}, State(total_steps=1))["logits"].shape == (0, 5, 9)


def test_noise_on_a_teacher_in_half_precision(roles, batch):
    half = {name: role.bfloat16() for name, role in roles.items()}
    assert losses(FidelityParadox(noise=1.0), batch, half)["soft"].isfinite()


def test_it_learns_from_a_cache_of_logits_unless_the_teacher_is_noisy(tmp_path, roles):
    batch = {**texts(classes=9)[1], "x": {"input_ids": torch.randint(9, (3, 9), generator=torch.Generator().manual_seed(0))}}
    cache = made(tmp_path / "c", texts(classes=9), kind="logits")
    reader, state = from_cache(FidelityParadox(aggregation="token"), cache), State(total_steps=1)
    batch = reader.prepare(batch, roles, state)
    found = reader.loss(batch, reader.signal(batch, {}, state), {"student": roles["student"].float()}, state)["soft"]
    expected = forward_kl(forward(roles["student"], batch["x"]).logits, batch["z"])
    torch.testing.assert_close(found[batch["mask"]], expected[batch["mask"]], rtol=1e-4, atol=1e-6)
    assert (found[~batch["mask"]] == 0).all()
    with pytest.raises(ValueError, match=r"expected noise 0\.0 of FidelityParadox"):
        from_cache(FidelityParadox(noise=1.0), cache)


def test_the_gradient_at_a_high_temperature_is_the_distance_of_centred_logits():
    adapter = load_adapter("fidelity-paradox").run
    student, teacher = 3 * torch.randn(2, 5, 1, 7, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    params = {"function": "sequence_kl_divergence", "temperature": 1e4, "epsilon": 0.0}
    found = adapter(params, {"student_logits": student, "teacher_logits": teacher, "pad_mask": torch.ones(5, 1)})["loss"]
    (gradient,) = torch.autograd.grad(found.sum(), student)
    apart = student - teacher
    torch.testing.assert_close(gradient, ((apart - apart.mean(-1, keepdim=True)) / 7).detach(), rtol=1e-2, atol=1e-3)


def test_parity():
    cases = json.loads(GOLDEN.read_text())["cases"]
    run = load_adapter("fidelity-paradox").run
    assert [check_case("fidelity-paradox", str(i), case, run).status for i, case in enumerate(cases)] == ["ok"] * 2


@pytest.mark.parametrize("beta", [0.5, 0.2])
@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum"])
def test_the_adapter_follows_the_released_divergence(beta, reduction):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 4, 6, dtype=torch.double, generator=generator)
    labels = torch.tensor([[1, 2, -100, 3], [-100, 0, 5, -100]])
    q, p = student.softmax(-1), teacher.softmax(-1)
    m = beta * q + (1 - beta) * p
    entries = (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log())[labels != -100]
    expected = {"batchmean": entries.sum() / 5, "mean": entries.mean(), "sum": entries.sum()}[reduction]
    run = load_adapter("fidelity-paradox").run
    case = {
        "params": {"function": "generalized_jsd_loss", "beta": beta, "reduction": reduction},
        "inputs": {"student_logits": student.tolist(), "teacher_logits": teacher.tolist(), "labels": labels.tolist()},
        "outputs": {"loss": expected.item()},
    }
    assert check_case("fidelity-paradox", "jsd", case, run).status == "ok"


def test_bad_settings_and_other_vocabularies_are_refused(roles, batch):
    for settings, words in (
        ({"direction": "both"}, "direction: expected 'forward' or 'reverse', got 'both'"),
        ({"aggregation": "mean"}, "aggregation: expected 'sequence' or 'token', got 'mean'"),
        ({"noise": -1.0}, "noise: expected a finite number >= 0, got -1.0"),
        ({"noise": math.nan}, "noise: expected a finite number >= 0, got nan"),
        ({"temperature": 0.0}, "temperature"),
        ({"kd_weight": 1.5}, "kd_weight"),
    ):
        with pytest.raises(ValueError, match=words):
            FidelityParadox(**settings)
    with pytest.raises(ValueError, match="vocabulary of 9 tokens, got one of 11"):
        losses(FidelityParadox(), batch, {**roles, "teacher": model(1, vocabulary=11)})


def test_miniature():
    run = miniature(0, "smoke")
    assert {"untrained-teacher", "none", "fidelity-paradox", "reverse", "gkd", "hot", "noisy"} == run.arms.keys()
    for found in run.arms.values():
        assert math.isclose(found["accuracy"], sum(found[f"accuracy_{hidden}"] for hidden in (3, 8, 32)) / 3)
        assert math.isclose(found["surplus"], found["agreement_32"] - found["accuracy_32"], abs_tol=1e-12)
        assert math.isclose(found["small_lead"], found["accuracy_3"] - found["accuracy_32"], abs_tol=1e-12)
