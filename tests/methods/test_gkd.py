"""Generalised knowledge distillation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.core.reduce import global_counts, reduce_terms
from preceptor.core.state import State
from preceptor.data.rollout import Completions
from preceptor.losses.divergence import forward_kl, generalized_jsd, reverse_kl
from preceptor.methods.gkd import CARD, GKD
from preceptor.miniature.policies import TablePolicy, TableSampler, prompts

STATES, TOKENS = 6, 5


@pytest.fixture
def roles():
    generator = torch.Generator().manual_seed(0)
    moves = torch.randint(STATES, (STATES, TOKENS), generator=generator)
    tables = torch.randn(2, STATES, TOKENS, dtype=torch.double, generator=generator)
    return {"student": TablePolicy(tables[0], moves), "teacher": TablePolicy(3 * tables[1], moves).requires_grad_(False)}


@pytest.fixture
def batch():
    ids = torch.tensor([[0, 1, 2, 3], [5, 4, 0, 0], [2, 0, 1, 1]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 1]])
    return {**prompts(ids[:, 0]), "x": {"input_ids": ids[:, :-1], "use_cache": False}, "y": ids[:, 1:], "mask": mask}


def method(**options):
    return GKD(**{"max_new_tokens": 4, "sampler": TableSampler()} | options)


def loss_of(gkd, batch, roles, state=None):
    """The reduced loss, as the loop computes it."""
    state = state or State(total_steps=1)
    with torch.no_grad():
        batch = gkd.prepare(batch, roles, state)
        signal = gkd.signal(batch, roles, state)
    terms = gkd.loss(batch, signal, roles, state)
    return reduce_terms(terms, batch, global_counts(batch), 1)["divergence"]


def test_defaults_are_those_of_the_card():
    gkd = GKD()
    assert (gkd.on_policy_rate, gkd.beta, gkd.temperature, gkd.sampling_temperature, gkd.seq_kd) == (0.5, 0.5, 1.0, 0.9, False)
    assert (CARD.slug, CARD.tasks, CARD.needs) == ("gkd", ("language",), ("teacher", "logits", "generation"))


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_the_divergence(beta):
    generator = torch.Generator().manual_seed(1)
    a, b = 2 * torch.randn(2, 20, 7, dtype=torch.double, generator=generator)
    found = generalized_jsd(a, b, beta=beta)
    torch.testing.assert_close(found, generalized_jsd(b, a, beta=1 - beta))
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert ((found > 0) & (found <= bound)).all()
    assert bound <= math.log(2)
    assert (generalized_jsd(a, a + 1, beta=beta).abs() < 1e-14).all()


def test_the_ends_of_the_divergence():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 20, 7, dtype=torch.double, generator=generator)
    torch.testing.assert_close(generalized_jsd(a, b, beta=0.0), forward_kl(a, b))
    torch.testing.assert_close(generalized_jsd(a, b, beta=1.0), reverse_kl(a, b))
    torch.testing.assert_close(generalized_jsd(a, b, beta=1e-4) / 1e-4, forward_kl(a, b), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(generalized_jsd(a, b, beta=1 - 1e-4) / 1e-4, reverse_kl(a, b), rtol=1e-3, atol=1e-3)


def test_reference(roles, batch):
    found = loss_of(method(on_policy_rate=0.0, beta=0.3, temperature=2.0), batch, roles)
    total, count = 0.0, 0
    for n in range(3):
        state = int(batch["x"]["input_ids"][n, 0])
        for t in range(3):
            q, p = ((roles[role].table[state].detach() / 2).softmax(0).tolist() for role in ("student", "teacher"))
            if batch["mask"][n, t]:
                m = [0.3 * x + 0.7 * y for x, y in zip(p, q, strict=True)]
                total += 0.3 * sum(x * math.log(x / z) for x, z in zip(p, m, strict=True))
                total += 0.7 * sum(y * math.log(y / z) for y, z in zip(q, m, strict=True))
                count += 1
            state = int(roles["student"].moves[state, batch["y"][n, t]])
    assert math.isclose(found.item(), total / count, rel_tol=1e-9)


def test_masked_positions_and_the_height_of_logits_do_not_matter(roles, batch):
    gkd = method(on_policy_rate=0.0)
    loss = loss_of(gkd, batch, roles)
    (gradient,) = torch.autograd.grad(loss, roles["student"].table)
    other = {**batch, "mask": batch["mask"].clone()}
    other["mask"][0] = 0
    only = {key: value[1:] if key != "x" else {"input_ids": value["input_ids"][1:]} for key, value in other.items() if key != "prompt"}
    torch.testing.assert_close(loss_of(gkd, other, roles), loss_of(gkd, only, roles), rtol=1e-15, atol=0)  # sums of other shapes
    raised = TablePolicy((roles["student"].table + torch.arange(STATES).unsqueeze(1)).detach(), roles["student"].moves)
    shifted = loss_of(gkd, batch, {**roles, "student": raised})
    torch.testing.assert_close(shifted, loss)
    torch.testing.assert_close(torch.autograd.grad(shifted, raised.table)[0], gradient)
    empty = loss_of(gkd, {**batch, "mask": torch.zeros_like(batch["mask"])}, roles)
    assert empty == 0
    assert (torch.autograd.grad(empty, roles["student"].table)[0] == 0).all()


def test_one_draw_decides_the_step(roles, batch):
    state = State(total_steps=1, seed=3)
    kinds = []
    for _ in range(400):
        made = method(on_policy_rate=0.3).prepare(batch, roles, state)
        kinds.append(made is not batch)
        assert state.log["on_policy"] == kinds[-1]
        if made is not batch:
            assert torch.equal(made["x"]["input_ids"][:, :1], batch["prompt"]["input_ids"])
    assert 0.2 < sum(kinds) / 400 < 0.4
    again = State(total_steps=1, seed=3)
    assert kinds == [method(on_policy_rate=0.3).prepare(batch, roles, again) is not batch for _ in range(400)]
    for rate, expected in ((0.0, False), (1.0, True)):
        assert all((method(on_policy_rate=rate).prepare(batch, roles, state) is not batch) == expected for _ in range(50))


def test_the_student_writes_what_it_would_write(roles, batch):
    many = prompts(torch.zeros(4000, dtype=torch.int64))
    made = method(on_policy_rate=1.0, max_new_tokens=1, sampling_temperature=2.0).prepare(many, roles, State(total_steps=1))
    seen = torch.bincount(made["y"].flatten(), minlength=TOKENS) / 4000
    assert (seen - (roles["student"].table[0] / 2).softmax(0)).abs().max() < 0.03


@pytest.mark.parametrize(
    "options",
    [
        {"on_policy_rate": 1.0},
        {"beta": 0.1},
        {"temperature": 2.0},
        {"on_policy_rate": 1.0, "sampling_temperature": 5.0},
        {"on_policy_rate": 1.0, "top_p": 0.3},
        {"on_policy_rate": 1.0, "max_new_tokens": 2},
        {"on_policy_rate": 1.0, "sampler": TableSampler(stop=(0, 1, 2))},
    ],
)
def test_every_field_changes_the_loss(roles, batch, options):
    plain = {"on_policy_rate": options.get("on_policy_rate", 0.0)}
    base = method(**(plain if options.keys() != {"on_policy_rate"} else {"on_policy_rate": 0.0}))
    assert loss_of(base, batch, roles) != loss_of(method(**plain | options), batch, roles)


class Server:
    """Writes token 1, three times."""

    def sample(self, prompt, *, max_new_tokens, temperature, top_p, seed):
        size = (len(prompt["input_ids"]), 3)
        whole = torch.ones(size, dtype=torch.bool)
        return Completions(ids=whole.long(), mask=whole, log_probs=torch.zeros(size), finished=whole.any(1))


def test_the_teacher_may_write_the_fixed_texts(roles, batch):
    made = GKD(on_policy_rate=0.0, seq_kd=True, teacher_sampler=Server()).prepare(batch, roles, State(total_steps=1))
    assert (made["y"] == 1).all()
    assert made["mask"].all()
    many = prompts(torch.zeros(4000, dtype=torch.int64))
    by_role = GKD(on_policy_rate=0.0, seq_kd=True, teacher_sampler=TableSampler(student=roles["teacher"]), max_new_tokens=1)
    seen = torch.bincount(by_role.prepare(many, roles, State(total_steps=1))["y"].flatten(), minlength=TOKENS) / 4000
    assert (seen - (roles["teacher"].table[0] / 0.9).softmax(0)).abs().max() < 0.03


def test_the_teacher_writes_by_generate_without_a_sampler():
    config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1)
    roles = {"student": LlamaForCausalLM(config), "teacher": LlamaForCausalLM(config)}
    with torch.no_grad():
        roles["teacher"].lm_head.weight.zero_()
    batch = prompts(torch.arange(3, 9))
    made = GKD(on_policy_rate=0.0, seq_kd=True, max_new_tokens=3).prepare(batch, roles, State(total_steps=1))
    assert (made["sampling_log_probs"][made["mask"]] + math.log(9)).abs().max() < 1e-6  # a uniform teacher


def test_bad_settings_are_refused():
    for options, message in (
        ({"on_policy_rate": 1.5}, r"on_policy_rate: expected a number in \[0, 1\], got 1.5"),
        ({"beta": -0.1}, r"beta: expected a number in \[0, 1\], got -0.1"),
        ({"sampling_temperature": 0.0}, "sampling_temperature: expected a finite number > 0, got 0.0"),
        ({"sampler": Server()}, r"sampler: expected one with sync\(student\) for on-policy training, got Server"),
        ({"teacher_sampler": Server()}, "seq_kd: expected True with a teacher_sampler, got False"),
    ):
        with pytest.raises(ValueError, match=message):
            GKD(**options)


def test_another_vocabulary_is_refused(roles, batch):
    class Wider(nn.Module):
        def forward(self, input_ids, use_cache):
            return torch.zeros(*input_ids.shape, 9)

    with pytest.raises(ValueError, match=r"teacher: expected the student's vocabulary of 5 tokens, got one of 9; .* method alm") as caught:
        loss_of(method(on_policy_rate=0.0), batch, {**roles, "teacher": Wider()})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_halves_of_models_give_the_loss_of_their_logits(beta):
    """Two transformers are compared through their output layers, never holding logits: value and gradient are those of the dense loss."""

    class OnlyLogits(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids):
            return self.model(input_ids=input_ids).logits

    def llama(seed):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
        return LlamaForCausalLM(LlamaConfig(vocab_size=13, initializer_range=0.5, **sizes)).double()

    student, teacher = llama(0), llama(1)
    method, state = GKD(beta=beta, temperature=1.5), State(total_steps=1)
    generator = torch.Generator().manual_seed(0)
    batch = {"x": {"input_ids": torch.randint(13, (2, 6), generator=generator)}, "mask": torch.rand(2, 6, generator=generator) < 0.5}
    found = {}
    for name, wrap in (("halves", lambda model: model), ("dense", OnlyLogits)):
        roles = {"student": wrap(student), "teacher": wrap(teacher)}
        terms = method.loss(batch, method.signal(batch, roles, state), roles, state)["divergence"]
        student.zero_grad()
        (terms * batch["mask"]).sum().backward()
        found[name] = [(terms * batch["mask"]).detach(), *(p.grad.clone() for p in student.parameters())]
    for one, other in zip(found["halves"], found["dense"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
