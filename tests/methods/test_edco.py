"""A curriculum by prefix entropy."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from tests.parity import check_folder
from tests.test_parity import GOLDEN
from torch import nn

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.data.rollout import language_batch
from preceptor.data.rows import take
from preceptor.methods.edco import CARD, EDCO, miniature
from preceptor.miniature.toys import Halves, LastSymbols, Rows, ToySampler
from preceptor.models.taps import forward

SYMBOLS, POOL = 6, 24


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


@pytest.fixture
def student() -> nn.Module:
    torch.manual_seed(0)
    body = LastSymbols(symbols=SYMBOLS, context=2, joint=True)
    student = Halves(body, nn.Linear(body.size, SYMBOLS))
    with torch.no_grad():
        student.output.weight.mul_(20)
    return student


@pytest.fixture
def pool() -> dict:
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(SYMBOLS, (POOL, 3), generator=generator)
    attention = torch.ones(POOL, 3, dtype=torch.int64)
    attention[::4, 0] = 0
    answer = torch.randint(SYMBOLS, (POOL, 4), generator=generator)
    ids = torch.cat([prompt, answer], 1)
    mask = torch.zeros(POOL, 6, dtype=torch.bool)
    mask[:, 2:] = True
    mask[::3, 5:] = False
    x = {"input_ids": ids[:, :-1], "use_cache": False}
    return {
        "prompt": {"input_ids": prompt, "attention_mask": attention},
        "x": x,
        "y": ids[:, 1:],
        "mask": mask,
        "id": 100 + torch.arange(POOL),
    }


def method(**options) -> EDCO:
    return EDCO(**{"num_selected": 6, "refresh_every": 3, "max_new_tokens": 5, "sampler": ToySampler()} | options)


def batches(edco: EDCO, pool: dict, student: nn.Module, steps: int, *, batch_size: int = 4) -> tuple[list[dict], list[dict], State]:
    """What ``prepare`` returns in each of the first steps, what it logs, and the state; the student is not trained."""
    source = Rows(pool, batch_size=batch_size, seed=0)
    state = State(total_steps=steps, source=source)
    found, logs = [], []
    for step in range(steps):
        state.step, state.log = step, {}
        batch = next(source)
        batch.pop("epoch")
        with torch.no_grad():
            found.append(edco.prepare(batch, {"student": student}, state))
        logs.append(state.log)
    return found, logs, state


def ids(found: list[dict]) -> list[int]:
    return torch.cat([batch["id"] for batch in found]).tolist()


def test_defaults_are_those_of_the_card():
    edco = EDCO()
    assert (edco.num_selected, edco.refresh_every, edco.max_new_tokens, edco.candidates) == (200, 100, 128, 20)
    assert (edco.sampling_temperature, edco.top_p, edco.aggregate, edco.top_fraction) == (0.7, 0.7, "top_fraction", 0.2)
    assert (edco.skip_top, edco.mix_random, edco.fresh_optimizer) == (0.0, 0.0, True)
    assert (CARD.slug, CARD.tasks) == ("edco", ("language",))


@pytest.mark.parametrize("candidates", [0, 3, 20])
def test_scores_reference(pool, student, candidates):
    edco = method(candidates=candidates, aggregate="mean", sampling_temperature=0.5, top_p=0.9)
    found = edco.score(pool, student, seed=7)
    sampler = ToySampler()
    sampler.sync(student)
    written = sampler.sample(pool["prompt"], max_new_tokens=5, temperature=0.5, top_p=0.9, seed=7)
    logits = forward(student, language_batch(pool["prompt"], written)["x"]).logits[:, 2:]
    for row in range(POOL):
        total = 0.0
        for z in logits[row].tolist():
            best = sorted(z, reverse=True)[: candidates or SYMBOLS]
            p = [math.exp(v) / sum(map(math.exp, best)) for v in best]
            total -= sum(v * math.log2(v) for v in p)
        assert math.isclose(found[row].item(), total / 5, rel_tol=1e-9)


def test_an_instruction_stands_before_every_prompt_that_is_scored(pool, student):
    longer = copy.deepcopy(pool)
    for key, value in (("input_ids", torch.tensor([4, 1])), ("attention_mask", torch.ones(2, dtype=torch.int64))):
        longer["prompt"][key] = torch.cat([value.expand(POOL, -1), pool["prompt"][key]], 1)
    torch.testing.assert_close(method(instruction=(4, 1)).score(pool, student, seed=1), method().score(longer, student, seed=1))


def test_the_orders_that_it_is_compared_with(pool, student):
    lengths = pool["prompt"]["attention_mask"].sum(1).double()
    assert torch.equal(method(curriculum="length").score(pool, student, seed=0), lengths)
    assert torch.equal(method(curriculum="answer_length").score(pool, student, seed=0), pool["mask"].sum(1).double())
    log_probs = forward(student, pool["x"]).logits.log_softmax(-1).gather(-1, pool["y"][..., None]).squeeze(-1)
    perplexity = (-(log_probs * pool["mask"]).sum(1) / pool["mask"].sum(1)).exp()
    torch.testing.assert_close(method(curriculum="perplexity").score(pool, student, seed=0), perplexity.detach())
    drawn = method(curriculum="random").score(pool, student, seed=3)
    assert torch.equal(drawn, method(curriculum="random").score(pool, student, seed=3))
    assert len(set(drawn.tolist())) == POOL


def test_a_round_trains_on_the_most_uncertain(pool, student):
    edco = method()
    found, logs, state = batches(edco, pool, student, 3)
    scores = state.memory["edco/scores"]
    best = {100 + i for i in scores.topk(6).indices.tolist()}
    drawn = ids(found)
    assert [len(batch["id"]) for batch in found] == [4, 4, 4]
    assert sorted(drawn[:6]) == sorted(best) == sorted(drawn[6:])  # two passes
    assert drawn[:6] != drawn[6:]
    for batch in found:
        rows = batch["id"] - 100
        assert torch.equal(batch["x"]["input_ids"], pool["x"]["input_ids"][rows])
        assert torch.equal(batch["y"], pool["y"][rows])
        assert torch.equal(batch["mask"], pool["mask"][rows])
        assert batch["x"]["use_cache"] is False
    assert logs[0]["pool_score"] == pytest.approx(scores.mean().item())
    assert logs[0]["chosen_score"] == pytest.approx(scores.topk(6).values.mean().item())
    assert (logs[0]["new"], logs[0]["unscored"]) == (1.0, 0.0)
    assert "pool_score" not in logs[1]


def test_a_new_round_looks_at_the_present_weights(pool, student):
    edco = method(refresh_every=1)
    same, logs, _ = batches(edco, pool, student, 2, batch_size=6)
    source = Rows(pool, batch_size=6, seed=0)
    state = State(total_steps=2, source=source)
    rounds = []
    for step in range(2):
        state.step = step
        rounds.append(sorted(ids([edco.prepare(next(source), {"student": student}, state)])))
        with torch.no_grad():
            student.output.weight.copy_(student.output.weight.flip(1))
    assert rounds[0] == sorted(ids(same[:1]))
    assert rounds[1] != sorted(ids(same[1:]))
    assert logs[1]["new"] < 1


def test_fixed_orders_go_on_where_the_last_round_ended(pool, student):
    edco = method(curriculum="perplexity", refresh_every=1)
    found, logs, _ = batches(edco, pool, student, 5, batch_size=6)
    order = (100 + edco.score(pool, student, seed=0).argsort(descending=True)).tolist()
    for number in range(4):
        assert sorted(ids(found[number : number + 1])) == sorted(order[6 * number : 6 * number + 6])
    assert sorted(ids(found[4:])) == sorted(order[:6])  # from the beginning
    assert all(log["new"] == 1 for log in logs)
    easiest, *_ = batches(method(curriculum="perplexity", hardest_first=False), pool, student, 1, batch_size=6)
    assert sorted(ids(easiest)) == sorted(order[-6:])


def test_once_or_in_each_round(pool, student):
    """Scored once, the second round takes what the first left; scored anew, the same samples may return."""
    once, *_ = batches(method(curriculum="entropy_once", refresh_every=1), pool, student, 2, batch_size=6)
    assert not set(ids(once[:1])) & set(ids(once[1:]))
    anew, *_ = batches(method(refresh_every=1, sampling_temperature=1e-3), pool, student, 2, batch_size=6)
    assert sorted(ids(anew[:1])) == sorted(ids(anew[1:]))


def test_outliers_and_random_ones(pool, student):
    _, _, state = batches(method(skip_top=0.25), pool, student, 1)
    order = state.memory["edco/scores"].argsort(descending=True, stable=True)
    assert state.memory["edco/wanted"].nonzero().squeeze(1).tolist() == sorted(order[6:12].tolist())
    _, _, mixed = batches(method(mix_random=0.5), pool, student, 1)
    assert int(mixed.memory["edco/wanted"][order[:3]].sum()) == 3
    assert int(mixed.memory["edco/wanted"].sum()) == 6
    assert mixed.memory["edco/wanted"].tolist() != (state.memory["edco/scores"] >= state.memory["edco/scores"][order[5]]).tolist()


def test_a_small_pool_is_taken_whole(pool, student):
    _, _, state = batches(method(num_selected=500), pool, student, 1)
    assert state.memory["edco/wanted"].all()


class Telling(ToySampler):
    """Tells entropies, made up."""

    def sample(self, prompt, **options):
        written = super().sample(prompt, **options)
        return dataclasses.replace(written, entropies=math.log(2) * (written.ids + 1.0))


def test_entropies_that_come_with_the_answers_are_used_where_all_candidates_count(pool, student):
    sampler = Telling()
    sampler.sync(student)
    written = sampler.sample(pool["prompt"], max_new_tokens=5, temperature=0.7, top_p=0.7, seed=2)
    told = method(sampler=Telling(), candidates=0, aggregate="mean").score(pool, student, seed=2)
    torch.testing.assert_close(told, (written.ids + 1.0).mean(1))
    few = method(sampler=Telling(), candidates=3, aggregate="mean").score(pool, student, seed=2)
    torch.testing.assert_close(few, method(candidates=3, aggregate="mean").score(pool, student, seed=2))


class Silent(ToySampler):
    """Writes nothing where the prompt begins with an even symbol."""

    def sample(self, prompt, **options):
        written = super().sample(prompt, **options)
        written.mask[prompt["input_ids"][:, 0] % 2 == 0] = False
        return written


def test_samples_without_a_token_are_left_out_and_counted(pool, student):
    even = pool["prompt"]["input_ids"][:, 0] % 2 == 0
    _, logs, state = batches(method(sampler=Silent(), num_selected=500), pool, student, 1)
    assert logs[0]["unscored"] == int(even.sum()) > 0
    assert torch.equal(state.memory["edco/wanted"], ~even)
    pool["prompt"]["input_ids"][:] = 2
    with pytest.raises(ValueError, match="pool: expected at least one sample with a score, got none of 24"):
        batches(method(sampler=Silent()), pool, student, 1)


def test_scoring_leaves_training_alone(pool, student):
    student.train()
    before = copy.deepcopy(student.state_dict())
    state = State(total_steps=1, source=Rows(pool, batch_size=4, seed=0))
    batch = next(state.source)
    draws, position = (torch.get_rng_state(), state.rng.get_state()), state.source.state_dict()
    method().prepare(batch, {"student": student}, state)
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert torch.equal(state.rng.get_state(), draws[1])
    assert state.source.state_dict() == position
    assert student.training
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())


def test_a_round_begins_with_a_fresh_optimizer(pool, student):
    counts = {}
    for fresh in (True, False):
        twin = copy.deepcopy(student)
        optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
        train(method(fresh_optimizer=fresh), {"student": twin}, Rows(pool, batch_size=4, seed=0), optimizer, steps=5)
        counts[fresh] = int(optimizer.state[twin.output.weight]["step"])
    assert counts == {True: 2, False: 5}


def test_a_resumed_run_goes_on_in_the_middle_of_a_round(pool, student, tmp_path):
    class StopError(Exception):
        pass

    def stop(record):
        if record.step == 6:
            raise StopError

    def run(name: str, **options):
        twin = copy.deepcopy(student)
        optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
        source = Rows(pool, batch_size=4, seed=0)
        train(method(), {"student": twin}, source, optimizer, steps=8, out=tmp_path / name, checkpoint_every=1, **options)
        return twin.state_dict()

    straight = run("a")
    with pytest.raises(StopError):
        run("b", progress=stop)
    resumed = run("b", resume=True)
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


def train_half(rank, pool, student, folder):
    """One of two processes: half of each batch of four, as a source shares it out."""
    torch.set_default_dtype(torch.double)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    source = Rows(pool, batch_size=4, seed=0)
    state, found = State(total_steps=4, source=source), []
    for step in range(4):
        state.step = step
        batch = next(source)
        batch.pop("epoch")
        found.append(method().prepare(take(batch, torch.arange(rank, 4, 2)), {"student": student}, state)["id"])
    torch.save([torch.stack(found), state.memory["edco/scores"], state.memory["edco/used"]], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_score_the_pool_once_and_share_the_round(pool, student, tmp_path):
    torch.multiprocessing.spawn(train_half, (pool, student, tmp_path), nprocs=2)
    (first, scores, used), (second, *rest) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    found, _, state = batches(method(), pool, student, 4)
    assert torch.equal(scores, state.memory["edco/scores"])
    assert torch.equal(scores, rest[0])
    assert used == rest[1] == state.memory["edco/used"]
    assert torch.equal(torch.cat([first, second], 1), torch.stack([batch["id"] for batch in found]))


def test_the_loss_is_the_cross_entropy_of_the_answer(pool, student):
    value = method().loss(pool, {}, {"student": student}, State(total_steps=1))["hard"]
    log_probs = forward(student, pool["x"]).logits.log_softmax(-1).gather(-1, pool["y"][..., None]).squeeze(-1)
    torch.testing.assert_close(value, -(log_probs * pool["mask"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curriculum": "hard"}, "curriculum: expected one of entropy, .*, got 'hard'"),
        ({"num_selected": 0}, "num_selected: expected at least 1, got 0"),
        ({"refresh_every": 0}, "refresh_every: expected at least 1, got 0"),
        ({"candidates": 1}, "candidates: expected 0 for all or at least 2, got 1"),
        ({"sampling_temperature": 0.0}, "sampling_temperature: expected a finite number > 0"),
        ({"skip_top": 1.5}, "skip_top: expected a number"),
        ({"mix_random": -0.5}, "mix_random: expected a number"),
        ({"aggregate": "sum"}, "aggregate: expected one of"),
        ({"top_fraction": 0.0}, "fraction: expected a number"),
        ({"sampler": object()}, r"sampler: expected one with sync\(student\)"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EDCO(**options)


def test_a_pool_without_prompts_is_refused(pool, student):
    del pool["prompt"]
    for call in (lambda: batches(method(), pool, student, 1), lambda: method().extra_roles({"student": student}, pool)):
        with pytest.raises(ValueError, match="prompt: expected the beginnings of texts"):
            call()
    assert method(curriculum="perplexity").extra_roles({"student": student}, pool) == {}
    found, *_ = batches(method(curriculum="answer_length"), pool, student, 1)
    assert len(found[0]["id"]) == 4


def test_parity():
    lines = [line for line in check_folder(GOLDEN) if line.slug == "edco"]
    assert len(lines) == 1
    assert {line.status for line in lines} == {"ok"}


def test_miniature():
    run = miniature(1, "smoke")
    assert {"untrained-student", "random", "edco", "edco-half-random", "hard-first", "easy-first"} == run.arms.keys()
    assert run.arms["edco"] != run.arms["random"]
