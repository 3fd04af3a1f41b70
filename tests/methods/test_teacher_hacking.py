"""Distillation on fixed and fresh answers, and the experiment that tells them apart."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.core.state import State
from preceptor.data.answers import written_answers
from preceptor.data.rollout import Completions
from preceptor.data.rows import take
from preceptor.losses.divergence import forward_kl, generalized_jsd, reverse_kl
from preceptor.methods.teacher_hacking import SourcedKD, miniature
from preceptor.miniature.policies import TablePolicy, TableSampler, prompts
from preceptor.miniature.toys import Rows

STATES, TOKENS, ROWS = 6, 5, 8


@pytest.fixture
def roles():
    generator = torch.Generator().manual_seed(0)
    moves = torch.randint(STATES, (STATES, TOKENS), generator=generator)
    tables = torch.randn(2, STATES, TOKENS, dtype=torch.double, generator=generator)
    return {"student": TablePolicy(tables[0], moves), "teacher": TablePolicy(3 * tables[1], moves).requires_grad_(False)}


@pytest.fixture
def batch():
    """Fixed texts that begin with two tokens and say token 4, three times at most, then nothing: fresh ones of six tokens are longer."""
    ids = torch.full((ROWS, 4), 4)
    ids[:, 0] = torch.arange(ROWS) % STATES
    mask = torch.ones(ROWS, 3, dtype=torch.int64)
    mask[0, 2] = 0
    return {**prompts(ids[:, 0]), "x": {"input_ids": ids[:, :-1], "use_cache": False}, "y": ids[:, 1:], "mask": mask}


def method(**options):
    return SourcedKD(**{"max_new_tokens": 6, "sampler": TableSampler()} | options)


def prepared(kd, batch, roles, seed=0):
    return kd.prepare(batch, roles, State(total_steps=1, seed=seed))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_loss_is_the_divergence_at_every_token(roles, batch, beta):
    kd = method(beta=beta)
    found = kd.loss(batch, kd.signal(batch, roles, State(total_steps=1)), roles, State(total_steps=1))["divergence"]
    student, teacher = (roles[name](batch["x"]["input_ids"]) for name in ("student", "teacher"))
    expected = {0.0: forward_kl, 1.0: reverse_kl}.get(beta, lambda s, t: generalized_jsd(s, t, beta=beta))(student, teacher)
    counts = batch["mask"] != 0
    torch.testing.assert_close(found[counts], expected[counts], rtol=1e-10, atol=1e-12)


def test_agreement_is_no_loss_and_the_gradient_is_right(roles, batch):
    kd, state = method(), State(total_steps=1)
    same = {"student": roles["teacher"], "teacher": roles["teacher"]}
    assert kd.loss(batch, kd.signal(batch, same, state), same, state)["divergence"].abs().max() < 1e-12
    student = roles["student"]

    def total(table):
        return torch.func.functional_call(student, {"table": table}, (batch["x"]["input_ids"],))

    class Fixed(torch.nn.Module):
        def __init__(self, table):
            super().__init__()
            self.table_now = table

        def forward(self, input_ids, use_cache=False):
            return total(self.table_now)

    signal = kd.signal(batch, roles, state)

    def loss(table):
        terms = kd.loss(batch, signal, {**roles, "student": Fixed(table)}, state)["divergence"]
        return (terms * batch["mask"]).sum()

    assert torch.autograd.gradcheck(loss, (student.table.detach().clone().requires_grad_(True),))


def test_fixed_answers_stay_and_fresh_ones_do_not(roles, batch):
    assert prepared(method(online="none"), batch, roles) is batch
    assert prepared(method(online_rate=0.0), batch, roles) is batch
    for online in ("teacher", "student"):
        kd = method(online=online)
        state = State(total_steps=2)
        first, second = (kd.prepare(batch, roles, state) for _ in range(2))
        assert first["y"].shape == (ROWS, 6)
        assert not torch.equal(first["y"], second["y"])
        assert torch.equal(prepared(kd, batch, roles)["y"], first["y"])
        assert not torch.equal(prepared(kd, batch, roles, seed=1)["y"], first["y"])


@pytest.mark.parametrize("online", ["teacher", "student"])
def test_the_writer_is_the_one_asked_for(roles, online):
    many = prompts(torch.zeros(4000, dtype=torch.int64))
    made = prepared(method(online=online, max_new_tokens=1), many, roles)
    seen = torch.bincount(made["y"].flatten(), minlength=TOKENS) / 4000
    assert (seen - roles[online].table[0].softmax(0)).abs().max() < 0.03


@pytest.mark.parametrize(("rate", "number"), [(0.25, 2), (0.5, 4), (0.85, 7), (0.05, 0)])
def test_the_share_of_fresh_rows_is_exact_and_which_rows_is_drawn(roles, batch, rate, number):
    kd, chosen = method(online_rate=rate), []
    for seed in range(6):
        made = prepared(kd, batch, roles, seed)
        fresh = made["mask"].sum(1) == 6 if made["y"].shape[1] == 6 else torch.zeros(ROWS, dtype=torch.bool)
        assert int(fresh.sum()) == number
        assert made["id"].sort().values.tolist() == list(range(ROWS))
        chosen.append(tuple(made["id"][fresh].sort().values.tolist()))
        for row in (~fresh).nonzero()[:, 0]:
            given = take(batch, made["id"][row, None])
            count = int(given["mask"].sum())
            assert int(made["mask"][row].sum()) == count
            for name in ("y", "mask"):
                assert torch.equal(made[name][row, :3], given[name][0].to(made[name].dtype))
            assert torch.equal(made["x"]["input_ids"][row, :3], given["x"]["input_ids"][0])
        assert (made["x"]["input_ids"][:, 0] == made["id"] % STATES).all()
    assert number == 0 or len(set(chosen)) > 1


def test_mixed_rows_are_told_where_they_stand(roles, batch):
    batch["x"]["attention_mask"] = torch.tensor([[0, 1, 1]] * ROWS)
    made = prepared(method(online_rate=0.5), batch, roles)
    fresh = made["mask"].sum(1) == 6
    x = made["x"]
    assert x["attention_mask"][~fresh].tolist() == [[0, 1, 1, 0, 0, 0]] * 4
    assert x["position_ids"][~fresh][:, :3].tolist() == [[0, 0, 1]] * 4
    assert x["attention_mask"][fresh].tolist() == [[1] * 6] * 4
    assert x["position_ids"][fresh].tolist() == [list(range(6))] * 4


def test_documents_in_a_fixed_row_do_not_see_each_other(batch):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=9, initializer_range=0.5, pad_token_id=0, bos_token_id=None, eos_token_id=None, **sizes)
    roles = dict.fromkeys(("student", "teacher"), LlamaForCausalLM(config).double())
    ids = torch.randint(9, (ROWS, 3))
    batch |= {"x": {"input_ids": ids, "position_ids": torch.tensor([[0, 0, 1]] * ROWS), "use_cache": False}}
    made = prepared(SourcedKD(online_rate=0.5, max_new_tokens=6), batch, roles)
    alone = roles["student"](**batch["x"]).logits[made["id"]]
    fixed = made["mask"].sum(1) < 6
    assert int(fixed.sum()) == 4
    torch.testing.assert_close(roles["student"](**made["x"]).logits[fixed, :3], alone[fixed], rtol=1e-9, atol=1e-12)
    fresh = {"input_ids": made["x"]["input_ids"][~fixed], "use_cache": False}
    expected = roles["student"](**fresh).logits
    torch.testing.assert_close(roles["student"](**made["x"]).logits[~fixed], expected, rtol=1e-9, atol=1e-12)
    batch["prompt"] = {"input_ids": torch.ones(ROWS, 2, dtype=torch.int64), "attention_mask": torch.tensor([[0, 1]] * ROWS)}
    with pytest.raises(ValueError, match="prompt: expected prompts of one length beside fixed rows of several documents, got padded ones"):
        prepared(SourcedKD(online_rate=0.5, max_new_tokens=6), batch, roles)


def test_every_batch_draws_once_whatever_is_fresh(roles, batch):
    after = []
    for options in ({"online": "none"}, {"online_rate": 0.5}, {"online": "student"}, {"online_rate": 0.0}):
        state = State(total_steps=1)
        method(**options).prepare(batch, roles, state)
        after.append(state.rng.get_state())
    assert all(torch.equal(after[0], other) for other in after)


def test_what_was_written_is_logged(roles, batch):
    state = State(total_steps=1)
    method(sampler=TableSampler(stop=(0, 1))).prepare(batch, roles, state)
    assert state.log.keys() == {"completion_tokens", "finished"}
    assert 1 <= state.log["completion_tokens"] < 6


class Server:
    """Writes token 1, three times."""

    def sample(self, prompt, *, max_new_tokens, temperature, top_p, seed):
        assert (max_new_tokens, temperature, top_p) == (6, 1.0, 1.0)
        size = (len(prompt["input_ids"]), 3)
        whole = torch.ones(size, dtype=torch.bool)
        return Completions(ids=whole.long(), mask=whole, log_probs=torch.zeros(size), finished=whole.any(1))


def test_a_server_may_write_for_the_teacher_and_not_for_the_student(roles, batch):
    assert (prepared(method(sampler=Server()), batch, roles)["y"] == 1).all()
    with pytest.raises(ValueError, match=r"sampler: expected one with sync\(student\) for on-policy training, got Server"):
        method(online="student", sampler=Server())


def test_bad_settings_are_refused(roles, batch):
    for options, message in (
        ({"online": "both"}, "online: expected one of none, teacher, student, got 'both'"),
        ({"online_rate": 1.1}, r"online_rate: expected a number in \[0, 1\], got 1.1"),
        ({"beta": -1.0}, r"beta: expected a number in \[0, 1\], got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            SourcedKD(**options)
    without = {key: value for key, value in batch.items() if key != "prompt"}
    with pytest.raises(ValueError, match="prompt: expected the beginnings of texts"):
        SourcedKD().extra_roles(roles, without)
    assert SourcedKD(online="none").extra_roles(roles, without) == {}


def test_fixed_answers_are_the_same_in_every_epoch(roles):
    prompt = prompts(torch.arange(ROWS) % STATES)["prompt"]
    options = {"answers": 2, "max_new_tokens": 5, "sampler": TableSampler()}
    texts = written_answers(roles["teacher"], prompt, seed=3, **options)
    again, others = (written_answers(roles["teacher"], prompt, seed=seed, **options) for seed in (3, 4))
    assert torch.equal(texts["y"], again["y"])
    assert not torch.equal(texts["y"], others["y"])
    assert texts["id"].tolist() == [i for i in range(ROWS) for _ in range(2)]
    assert torch.equal(texts["prompt"]["input_ids"][:, 0], texts["id"] % STATES)
    assert torch.equal(texts["x"]["input_ids"][:, 0], texts["id"] % STATES)
    assert not torch.equal(texts["y"][::2], texts["y"][1::2])
    assert not texts["finished"].any()
    source, kd, state = Rows(texts, batch_size=16, seed=0), method(online="none"), State(total_steps=1)
    epochs = [sorted(kd.prepare(next(source), roles, state)["y"].tolist()) for _ in range(2)]
    assert epochs[0] == epochs[1]


def test_miniature():
    found = miniature(0, "smoke")
    assert list(found.arms) == [
        "untrained-teacher",
        "early",
        "teacher-hacking",
        "few-prompts",
        "three-answers",
        "online-teacher",
        "online-student",
    ]
    assert len({arm["teacher_golden"] for arm in found.arms.values()}) == 1
    assert all(arm["golden"] >= arm["lowest_golden"] > 0 and 0 <= arm["likely"] <= 1 for arm in found.arms.values())
