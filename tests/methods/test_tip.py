"""Token importance in on-policy distillation."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests.parity import check_folder
from tests.test_parity import GOLDEN
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.core.reduce import global_counts, reduce_terms
from preceptor.core.state import State
from preceptor.losses.divergence import DIVERGENCES, reverse_kl
from preceptor.losses.token_selection import importance, select
from preceptor.losses.token_stats import linear_stats
from preceptor.methods.tip import CARD, TIP, miniature
from preceptor.miniature.toys import Halves, LastSymbols, ToySampler
from preceptor.models.heads import head, hidden_states
from preceptor.models.taps import forward

SYMBOLS = 6


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


@pytest.fixture
def roles() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    body, wide = LastSymbols(symbols=SYMBOLS, context=2), LastSymbols(symbols=SYMBOLS, context=2, joint=True)
    teacher = Halves(wide, nn.Linear(wide.size, SYMBOLS))
    with torch.no_grad():
        teacher.output.weight.mul_(30)
    student = Halves(nn.Sequential(body, nn.Linear(body.size, 8), nn.Tanh()), nn.Linear(8, SYMBOLS))
    return {"student": student, "teacher": teacher.requires_grad_(False)}


@pytest.fixture
def batch() -> dict:
    ids = torch.arange(4)[:, None]
    return {"prompt": {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "id": torch.arange(4)}


def method(**options) -> TIP:
    return TIP(**{"max_new_tokens": 10, "sampler": ToySampler()} | options)


def run(tip: TIP, batch: dict, roles: dict) -> tuple[dict, Tensor, Tensor, State]:
    """The prepared batch, the values of the tokens, the reduced loss, and the state."""
    state = State(total_steps=1)
    with torch.no_grad():
        prepared = tip.prepare(batch, roles, state)
        signal = tip.signal(prepared, roles, state)
    terms = tip.loss(prepared, signal, roles, state)
    return prepared, terms["divergence"], reduce_terms(terms, prepared, global_counts(prepared), 1)["divergence"], state


def test_defaults_are_those_of_the_card():
    tip = TIP()
    assert (tip.rule, tip.retention, tip.per, tip.divergence, tip.beta) == ("soft_or", 0.5, "rollout", "reverse_kl", 0.5)
    assert (tip.entropy_cap, tip.divergence_cap, tip.alpha, tip.gamma) == (0.98, 1.0, 1.0, 0.0)
    assert (CARD.slug, CARD.tasks, CARD.needs) == ("tip", ("language",), ("teacher", "logits", "generation"))


def test_reference(batch, roles):
    prepared, values, loss, _ = run(method(retention=0.3), batch, roles)
    student, teacher = (forward(roles[role], prepared["x"]).logits for role in ("student", "teacher"))
    h, d = [], []
    for zs, zt in zip(student.flatten(0, 1).tolist(), teacher.flatten(0, 1).tolist(), strict=True):
        q, p = ([math.exp(v) / sum(map(math.exp, z)) for v in z] for z in (zs, zt))
        h.append(-sum(a * math.log(a) for a in q) / math.log(SYMBOLS))
        d.append(sum(a * math.log(a / b) for a, b in zip(q, p, strict=True)))
    place = 0.98 * (len(h) - 1)
    ordered = sorted(h)
    high = ordered[int(place)] + (place % 1) * (ordered[int(place) + 1] - ordered[int(place)])
    hats = [(min(v, high) - ordered[0]) / (high - ordered[0]) for v in h]
    scores = [a + b - a * b for a, b in zip(hats, [(v - min(d)) / (max(d) - min(d)) for v in d], strict=True)]
    chosen = set()
    for row in range(4):
        places = range(10 * row, 10 * row + 10)
        chosen |= set(sorted(places, key=lambda i: -scores[i])[:3])
    assert set(prepared["mask"].flatten().nonzero().squeeze(1).tolist()) == chosen
    for i, value in enumerate(values.flatten().tolist()):
        assert math.isclose(value, d[i] if i in chosen else 0.0, rel_tol=1e-9)
    assert math.isclose(loss.item(), sum(d[i] for i in chosen) / 12, rel_tol=1e-9)


@pytest.mark.parametrize("rule", ["soft_or", "entropy", "random", "entropy_jsd_sampling"])
def test_all_tokens_kept_is_plain_distillation(batch, roles, rule):
    gradients = []
    for tip in (method(rule=rule, retention=1.0), method(rule="all")):
        roles["student"].zero_grad()
        prepared, _, loss, _ = run(tip, batch, roles)
        loss.backward()
        gradients.append([p.grad.clone() for p in roles["student"].parameters()])
        plain = reverse_kl(forward(roles["student"], prepared["x"]).logits, forward(roles["teacher"], prepared["x"]).logits)
        torch.testing.assert_close(loss, plain.mean(), rtol=1e-12, atol=0)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "generalized_jsd"])
def test_tokens_that_are_not_chosen_get_no_gradient(batch, roles, divergence):
    tip = method(divergence=divergence, beta=0.3, retention=0.2)
    hidden: list[Tensor] = []
    roles["student"].base_model.register_forward_hook(lambda m, a, out: hidden.append(out.last_hidden_state.requires_grad_()))
    prepared, values, loss, _ = run(tip, batch, roles)
    hidden[-1].retain_grad()
    loss.backward()
    assert (hidden[-1].grad[~prepared["mask"]] == 0).all()
    assert (hidden[-1].grad[prepared["mask"]] != 0).any(-1).all()
    options = {"beta": 0.3} if divergence == "generalized_jsd" else {}
    logits = [forward(roles[role], prepared["x"]).logits for role in ("student", "teacher")]
    expected = DIVERGENCES[divergence](*logits, **options).masked_fill(~prepared["mask"], 0.0)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-14)


def test_row_gradient(batch, roles):
    prepared, values, _, _ = run(method(rule="all"), batch, roles)
    hidden = roles["student"].base_model(**prepared["x"]).last_hidden_state
    q, p = (forward(roles[role], prepared["x"]).logits.softmax(-1) for role in ("student", "teacher"))
    rows = q * (q.log() - p.log() - values.unsqueeze(-1))
    expected = torch.einsum("ntv,ntd->vd", rows, hidden)
    (found,) = torch.autograd.grad(values.sum(), roles["student"].output.weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_student_that_agrees_has_no_loss_and_no_gradient(batch, roles):
    roles["student"] = Halves(roles["teacher"].base_model.body, nn.Linear(SYMBOLS**2, SYMBOLS))
    roles["student"].load_state_dict(roles["teacher"].state_dict())
    _, values, loss, _ = run(method(), batch, roles)
    assert values.abs().max() < 1e-14
    loss.backward()
    assert roles["student"].output.weight.grad.abs().max() < 1e-14


@pytest.mark.parametrize(("rule", "gamma"), [("entropy", 0.0), ("entropy_jsd_sampling", 0.0), ("random", 0.0), ("all", 0.0)])
def test_rules_that_look_at_the_student_alone_leave_the_teacher_to_the_loss(batch, roles, rule, gamma):
    prepared, *_ = run(method(rule=rule, gamma=gamma), batch, roles)
    assert "teacher_hidden" not in prepared


@pytest.mark.parametrize("rule", ["soft_or", "divergence", "q3", "q4"])
def test_the_teacher_runs_once(batch, roles, rule):
    calls = []
    roles["teacher"].base_model.register_forward_hook(lambda *_: calls.append(1))
    run(method(rule=rule), batch, roles)
    assert len(calls) == 1


@pytest.mark.parametrize("rule", ["soft_or", "entropy", "divergence", "q3", "q4"])
def test_each_rule_chooses_what_it_says(batch, roles, rule):
    prepared, *_ = run(method(rule=rule, per="batch", entropy_cap=0.9, divergence_cap=0.8), batch, roles)
    logits = [forward(roles[role], prepared["x"]).logits for role in ("student", "teacher")]
    q = logits[0].softmax(-1)
    everything = torch.ones(4, 10)
    scores = importance(-(q * q.log()).sum(-1), reverse_kl(*logits), everything, rule=rule, entropy_cap=0.9, divergence_cap=0.8)
    assert torch.equal(prepared["mask"], select(scores, everything, retention=0.5, per="batch"))


def test_drawn_tokens(batch, roles):
    settings = ({"gamma": 0.0}, {"gamma": 9.0}, {"gamma": 9.0, "jsd_top_k": 2})
    chosen = [run(method(rule="entropy_jsd_sampling", **options), batch, roles)[0]["mask"] for options in settings]
    assert [int(mask.sum()) for mask in chosen] == [20, 20, 20]
    assert not torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[1], chosen[2])


def test_the_report(batch, roles):
    _, _, loss, state = run(method(rule="soft_or", retention=1.0), batch, roles)
    assert state.log["divergence"] == pytest.approx(loss.item())
    assert sum(state.log[f"q{i}"] for i in (1, 2, 3, 4)) == pytest.approx(1.0)
    assert 0 < state.log["entropy"] < math.log(SYMBOLS)


def test_an_empty_choice_is_a_loss_of_zero_with_a_gradient(batch, roles):
    tip, state = method(), State(total_steps=1)
    with torch.no_grad():
        prepared = tip.prepare(batch, roles, state)
    prepared["mask"] = torch.zeros_like(prepared["mask"])
    loss = tip.loss(prepared, tip.signal(prepared, roles, state), roles, state)["divergence"].sum()
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in roles["student"].parameters())


def test_gradients_stop_at_the_teacher(batch, roles):
    roles["teacher"].requires_grad_(True)
    _, _, loss, _ = run(method(), batch, roles)
    loss.backward()
    assert all(p.grad is None for p in roles["teacher"].parameters())


@pytest.mark.parametrize("rule", ["soft_or", "all"])
def test_another_vocabulary_is_refused(batch, roles, rule):
    roles["teacher"] = Halves(roles["teacher"].base_model.body, nn.Linear(SYMBOLS**2, 9))
    with pytest.raises(ValueError, match=r"teacher: expected the student's vocabulary of 6 tokens, got one of 9.*alm"):
        run(method(rule=rule), batch, roles)


def test_entropies_that_come_with_the_rollouts_are_not_computed_again(batch):
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    torch.manual_seed(0)
    student = LlamaForCausalLM(LlamaConfig(vocab_size=11, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)).double()
    roles, calls = {"student": student, "teacher": copy.deepcopy(student)}, []
    torch.nn.init.normal_(student.lm_head.weight)
    batch["prompt"]["input_ids"] += 3
    student.model.norm.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        prepared = TIP(rule="entropy", max_new_tokens=6).prepare(batch, roles, State(total_steps=1))
        assert len(calls) == prepared["x"]["input_ids"].shape[1]  # the steps of writing, and no more
        found = linear_stats(hidden_states(student.eval(), prepared["x"]), head(student)).entropy
    written = prepared["sampling_entropies"] > 0
    said = prepared["sampling_entropies"].double()  # generate hands its logits on in float32
    torch.testing.assert_close(said[written], found[written], rtol=1e-5, atol=1e-6)
    scores = importance(found, torch.zeros_like(found), written, rule="entropy")
    assert torch.equal(prepared["mask"], select(scores, written, retention=0.5))


def test_a_batch_without_prompts_is_refused(roles):
    with pytest.raises(ValueError, match="prompt: expected the beginnings of texts"):
        TIP().extra_roles(roles, {"id": torch.arange(2)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "best"}, "rule: expected one of soft_or, .*, got 'best'"),
        ({"per": "token"}, "per: expected one of rollout, batch, got 'token'"),
        ({"divergence": "kl"}, "divergence: expected one of reverse_kl"),
        ({"retention": 0.0}, r"retention: expected a share in \(0, 1\], got 0.0"),
        ({"entropy_cap": 1.5}, r"entropy_cap: expected a number in \[0, 1\]"),
        ({"sampling_temperature": 0.0}, "sampling_temperature: expected a finite number > 0"),
        ({"gamma": -1.0}, "gamma: expected a number >= 0, got -1.0"),
        ({"jsd_top_k": -1}, "jsd_top_k: expected a number >= 0, got -1"),
        ({"sampler": object()}, r"sampler: expected one with sync\(student\)"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TIP(**options)


def test_parity():
    lines = [line for line in check_folder(GOLDEN) if line.slug == "tip"]
    assert len(lines) == 2
    assert {line.status for line in lines} == {"ok"}


def test_miniature():
    run = miniature(1, "smoke")
    assert {"untrained-teacher", "all", "random", "entropy", "tip", "solved"} <= run.arms.keys()
    assert run.arms["tip"] != run.arms["entropy"]
