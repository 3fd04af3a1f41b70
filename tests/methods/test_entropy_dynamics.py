"""Entropy dynamics: what a token does to the entropy, and the filters made of it."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from tests.models.whole import Whole

from preceptor.core.reduce import global_counts, reduce_terms
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.losses.entropy_filters import clip_b, clip_v, drop_at_random, entropy_discriminator, said_discriminator
from preceptor.losses.policy import aggregate, group_advantages, ppo_surrogate, token_log_probs
from preceptor.losses.token_stats import entropy
from preceptor.methods.entropy_dynamics import CARD, EntropyDynamics
from preceptor.metrics.cost import peak_tensor_mb
from preceptor.miniature.policies import TablePolicy, TableSampler, prompts
from preceptor.miniature.toys import Halves, LastSymbols, ToySampler
from preceptor.models.heads import speak

STATES, TOKENS = 6, 7


def at_every_token(logits, **options):
    """S of every token of the vocabulary, N and H, for one row of logits (V,)."""
    size = len(logits)
    s, n, h = entropy_discriminator(logits.expand(size, size), torch.arange(size), **options)
    return s, n[0], h[0]


@pytest.fixture
def logits():
    return 2 * torch.randn(9, dtype=torch.double, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tokens():
    """S, N, advantages (zero, negative and positive) and a mask, (5, 8)."""
    generator = torch.Generator().manual_seed(1)
    rows = 3 * torch.randn(5, 8, TOKENS, dtype=torch.double, generator=generator)
    s, n, _ = entropy_discriminator(rows, torch.randint(TOKENS, (5, 8), generator=generator))
    advantages = torch.tensor([-1.0, 0.5, -0.3, 0.0, 2.0], dtype=torch.double).unsqueeze(1).expand(5, 8)
    mask = torch.rand(5, 8, generator=generator) < 0.8
    return s, n, advantages, mask


def test_defaults_are_those_of_the_card():
    method = EntropyDynamics()
    assert (method.filter, method.mu, method.max_share, method.answers, method.aggregation) == ("clip_b", None, 1e-4, 16, "token")
    assert (method.clip_low, method.clip_high, method.dual_clip, method.sampling_temperature) == (0.2, 0.2, 3.0, 1.0)
    assert (CARD.slug, CARD.tasks) == ("entropy-dynamics", ("language",))


def test_the_discriminator_is_minus_the_gradient_of_the_entropy(logits):
    logits.requires_grad_()
    h = entropy(logits.log_softmax(-1))
    (gradient,) = torch.autograd.grad(h, logits)
    s, n, found = at_every_token(logits)
    torch.testing.assert_close(s, -gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, h)
    p = logits.softmax(-1).detach()
    assert abs(s.sum()) < 1e-14
    assert abs((p * (s - n)).sum()) < 1e-15
    torch.testing.assert_close(n, h * p.square().sum() + (p.square() * p.log()).sum())
    assert n > 0
    assert not s.requires_grad


def test_the_sign_rule(logits):
    s, _, h = at_every_token(logits)
    assert torch.equal(s.sign(), (logits.softmax(-1) - (-h).exp()).sign())


def test_reference(logits):
    s, n, h = at_every_token(logits, temperature=1.5)
    p = [math.exp(z / 1.5) / sum(math.exp(w / 1.5) for w in logits.tolist()) for z in logits.tolist()]
    expected = -sum(x * math.log(x) for x in p)
    assert math.isclose(h.item(), expected, rel_tol=1e-12)
    for x, value in zip(p, s.tolist(), strict=True):
        assert math.isclose(value, x * (expected + math.log(x)), rel_tol=1e-9, abs_tol=1e-14)
    assert math.isclose(n.item(), sum(x * x * (expected + math.log(x)) for x in p), rel_tol=1e-9)


@pytest.mark.parametrize("kind", ["one logit", "policy gradient"])
def test_the_entropy_moves_as_predicted_to_first_order(logits, kind):
    s, n, h = at_every_token(logits)
    p = logits.softmax(-1)
    for k in range(len(logits)):
        step = torch.zeros_like(logits)
        step[k] = 1
        predicted = -s[k] if kind == "one logit" else -(s[k] - n)
        direction = step if kind == "one logit" else step - p
        residuals = [float((entropy((logits + e * direction).log_softmax(-1)) - h - e * predicted).abs()) for e in (1e-2, 1e-3, 1e-4)]
        for large, small in itertools.pairwise(residuals):
            assert 90 < large / small < 110


def test_certain_and_uniform_predictions():
    s, n, h = at_every_token(torch.zeros(5, dtype=torch.double))
    assert s.abs().max() < 1e-15
    assert n.abs() < 1e-15
    assert math.isclose(h.item(), math.log(5), rel_tol=1e-12)
    for other in (-1e4, -torch.inf):
        s, n, h = at_every_token(torch.tensor([0.0, other, other]))
        assert max(s.abs().max(), n, h) < 1e-30
    s, n, h = at_every_token(torch.tensor([3.0, 1.0, 0.0], dtype=torch.bfloat16))
    assert s.dtype == n.dtype == h.dtype == torch.float32
    torch.testing.assert_close(s, at_every_token(torch.tensor([3.0, 1.0, 0.0]))[0])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_filters_reference(tokens, mu, symmetric):
    s, n, advantages, mask = tokens
    flat = [(float(a), float(b), float(c)) for a, b, c, m in zip(*(x.flatten() for x in tokens), strict=True) if m]
    mean = sum(a for a, _, _ in flat) / len(flat)
    sigma_b = math.sqrt(sum((a - mean) ** 2 for a, _, _ in flat) / len(flat))
    centre = sum(b - a for a, b, _ in flat) / len(flat)
    sigma_v = math.sqrt(sum((b - a - centre) ** 2 for a, b, _ in flat) / len(flat))
    kept_b = clip_b(s, advantages, mask, mu=mu, symmetric=symmetric)
    kept_v = clip_v(s, n, advantages, mask, mu=mu, max_share=None, symmetric=symmetric)
    count = {"b": 0, "v": 0}
    for i in range(5):
        for t in range(8):
            a, b, c = float(s[i, t]), float(n[i, t]), float(advantages[i, t])
            drop_b = (c < 0 and a - mean < -mu * sigma_b) or (symmetric and c > 0 and a - mean > mu * sigma_b)
            drop_v = (c < 0 and b - a > mu * sigma_v) or (symmetric and c > 0 and a - b > mu * sigma_v)
            assert kept_b[i, t] == (bool(mask[i, t]) and not drop_b)
            assert kept_v[i, t] == (bool(mask[i, t]) and not drop_v)
            count["b"] += drop_b and bool(mask[i, t])
            count["v"] += drop_v and bool(mask[i, t])
    assert min(count.values()) > 0


def filters(**options):
    return (
        lambda s, n, a, m: clip_b(s, a, m, **options),
        lambda s, n, a, m: clip_v(s, n, a, m, max_share=None, **options),
        lambda s, n, a, m: clip_v(s, n, a, m, max_share=0.05, **options),
    )


def test_what_every_filter_keeps(tokens):
    s, n, advantages, mask = tokens
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    for keep in filters(mu=0.3):
        kept = keep(s, n, advantages, mask)
        assert (kept <= mask).all()
        assert (kept == mask)[advantages >= 0].all()
        assert (kept != mask).any()
        moved = keep(*(x.flatten()[order].view(5, 8) for x in tokens))
        assert torch.equal(moved, kept.flatten()[order].view(5, 8))  # the order of tokens does not matter
        spoilt = [x.masked_fill(~mask, torch.nan) for x in (s, n)]
        assert torch.equal(keep(*spoilt, advantages, mask), kept)
        assert torch.equal(keep(torch.ones_like(s), torch.ones_like(s), advantages, mask), mask)  # no spread, no filter
        assert not keep(s, n, advantages, torch.zeros_like(mask)).any()
    for keep in filters(mu=1e9):
        assert torch.equal(keep(s, n, advantages, mask), mask)


def test_the_limit_takes_the_largest_first(tokens):
    s, n, advantages, mask = tokens
    free = clip_v(s, n, advantages, mask, mu=0.1, max_share=None)
    for share, most in ((1e-4, 1), (2.5 / mask.sum(), 2)):
        kept = clip_v(s, n, advantages, mask, mu=0.1, max_share=float(share))
        dropped = mask & ~kept
        assert dropped.sum() == most < (mask & ~free).sum()
        assert (n - s)[dropped].min() > (n - s)[free != kept].max()
    assert torch.equal(clip_v(s, n, advantages, mask, mu=0.1, max_share=1.0), free)


def test_the_spread_is_that_of_the_batch_not_of_a_sample_of_it():
    s, advantages = torch.tensor([0.0, 1.0]), -torch.ones(2)
    assert clip_b(s, advantages, torch.ones(2), mu=0.9).tolist() == [False, True]  # one standard deviation below the mean
    assert clip_b(s, advantages, torch.ones(2), mu=1.1).all()
    assert clip_v(torch.zeros(2), torch.tensor([0.0, 1.0]), advantages, torch.ones(2), mu=1.9, max_share=None).tolist() == [True, False]
    assert clip_v(torch.zeros(2), torch.tensor([0.0, 1.0]), advantages, torch.ones(2), mu=2.1, max_share=None).all()


def filter_half(rank, tokens, folder):
    """One of two processes, with two or three of the five rows."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = [value[:2] if rank == 0 else value[2:] for value in tokens]
    lots = torch.Generator().manual_seed(0)
    kept = [EntropyDynamics(filter=name, mu=0.3, max_share=0.1)._filtered(*mine, lots) for name in ("clip_b", "clip_v", "random")]
    torch.save(kept, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_the_batch_of_all_processes_decides(tokens, tmp_path):
    torch.multiprocessing.spawn(filter_half, (tokens, tmp_path), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    s, _, advantages, mask = tokens
    by_b, by_v = clip_b(s, advantages, mask, mu=0.3), clip_v(*tokens, mu=0.3, max_share=0.1)
    lots = torch.Generator().manual_seed(0)
    by_lot = mask.masked_scatter(mask, drop_at_random(by_b[mask], advantages[mask], mask[mask], generator=lots))
    for together, expected in zip(zip(*parts, strict=True), (by_b, by_v, by_lot), strict=True):
        assert torch.equal(torch.cat(together), expected)
        assert not torch.equal(expected, mask)


def test_the_control_drops_as_many_of_each_sign_by_lot(tokens):
    _, _, advantages, mask = tokens
    kept = mask & ((torch.rand(mask.shape, generator=torch.Generator().manual_seed(9)) < 0.5) | (advantages == 0))
    draws = [drop_at_random(kept, advantages, mask, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    for found in draws:
        assert not (found & ~mask).any()
        for sign in (-1, 0, 1):
            signed = mask & (advantages.sign() == sign)
            assert (signed & ~found).sum() == (signed & ~kept).sum()
            assert (signed & ~kept).any() == (sign != 0)
        assert not torch.equal(found, kept)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_control_leaves_every_token_out_alike():
    """Which token goes is a fair lot: 3 of 10, in 2,000 draws, each 600 times up to five standard deviations."""
    kept, advantages, mask = torch.arange(10) >= 3, -torch.ones(10), torch.ones(10)
    generator = torch.Generator().manual_seed(0)
    dropped = sum((~drop_at_random(kept, advantages, mask, generator=generator)).int() for _ in range(2000))
    assert (dropped - 600).abs().max() < 5 * math.sqrt(2000 * 0.3 * 0.7)


def test_leaving_out_what_shrinks_the_entropy_raises_it_and_the_mirror():
    """The four interventions of the paper, to first order: which half of the tokens is kept decides the direction."""
    generator = torch.Generator().manual_seed(2)
    table = torch.randn(STATES, TOKENS, dtype=torch.double, generator=generator)
    states = torch.arange(STATES).repeat(40)
    drawn = torch.multinomial(table.softmax(-1)[states], 1, generator=generator).squeeze(1)
    s, n, h = entropy_discriminator(table[states], drawn)
    for sign in (1.0, -1.0):
        for part, direction in (((s > n), -sign), ((s < n), sign)):
            policy = table.clone().requires_grad_()
            loss = -(sign * token_log_probs(policy[states], drawn) * part).sum()
            (gradient,) = torch.autograd.grad(loss, policy)
            moved = entropy((table - 1e-4 * gradient).log_softmax(-1))
            assert (moved.mean() - h.view(40, STATES)[0].mean()) * direction > 0


@pytest.fixture
def student():
    generator = torch.Generator().manual_seed(3)
    table = 2 * torch.randn(STATES, TOKENS, dtype=torch.double, generator=generator)
    return TablePolicy(table, torch.randint(STATES, (STATES, TOKENS), generator=generator))


def even(batch, completions):
    """1 where a text has more even than odd tokens."""
    return ((completions.ids % 2 == 0) & completions.mask).sum(1) * 2 > completions.mask.sum(1)


def method(**options):
    return EntropyDynamics(**{"mu": 0.5, "reward": even, "answers": 8, "max_new_tokens": 5, "sampler": TableSampler(stop=(0,))} | options)


def prepared(chosen, student, **rest):
    state = State(total_steps=1)
    with torch.no_grad():
        return chosen.prepare({**prompts(torch.arange(STATES)), **rest}, {"student": student}, state), state


def loss_of(chosen, student):
    made, state = prepared(chosen, student)
    return reduce_terms(chosen.loss(made, {}, {"student": student}, state), made, global_counts(made), 1)["policy"]


def test_a_step_is_grpo_on_the_kept_tokens(student):
    made, _ = prepared(method(), student)
    plain, _ = prepared(method(filter="none"), student)
    assert torch.equal(made["y"], plain["y"])
    dropped = plain["mask"] & ~made["mask"]
    assert 0 < dropped.sum() < plain["mask"].sum() / 3
    assert (made["advantages"][dropped] < 0).all()
    assert torch.equal(made["advantages"], plain["advantages"])  # not computed again without the dropped tokens
    rewards = torch.tensor([float((ids[m] % 2 == 0).sum() * 2 > m.sum()) for ids, m in zip(made["y"], plain["mask"], strict=True)])
    expected = group_advantages(rewards, torch.arange(8 * STATES) // 8)
    torch.testing.assert_close(made["advantages"], expected.unsqueeze(1).expand(made["y"].shape))
    loss = loss_of(method(), student)
    (gradient,) = torch.autograd.grad(loss, student.table)
    log_p = token_log_probs(student(made["x"]["input_ids"]), made["y"])
    by_hand = -(log_p * made["advantages"] * made["mask"]).sum() / made["mask"].sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(by_hand, student.table)[0])


@pytest.mark.parametrize("name", ["clip_b", "clip_v"])
def test_the_filter_sees_the_policy_at_the_temperature_of_sampling(student, name):
    chosen = method(filter=name, sampling_temperature=1.7, max_share=None, updates=2)
    made, _ = prepared(chosen, student)
    plain, _ = prepared(replace(chosen, filter="none"), student)
    s, n, _ = entropy_discriminator(student(made["x"]["input_ids"]), made["y"], temperature=1.7)
    if name == "clip_b":
        expected = clip_b(s, made["advantages"], plain["mask"], mu=0.5)
    else:
        expected = clip_v(s, n, made["advantages"], plain["mask"], mu=0.5, max_share=None)
    assert torch.equal(made["mask"], expected)
    assert not torch.equal(made["mask"], plain["mask"])
    tempered = token_log_probs(student(made["x"]["input_ids"]), made["y"], temperature=1.7)
    torch.testing.assert_close(made["old_log_probs"], tempered.masked_fill(~plain["mask"], 0.0))
    by_hand = -(tempered * made["advantages"] * made["mask"]).sum() / made["mask"].sum()
    torch.testing.assert_close(
        torch.autograd.grad(loss_of(chosen, student), student.table)[0], torch.autograd.grad(by_hand, student.table)[0]
    )


def test_the_log_tells_what_the_entropy_does(student):
    """The prediction of every step against the entropy measured after it; the table's rows share no parameters."""
    chosen = method(max_new_tokens=1, answers=32, filter="none")
    before, predicted, measured = entropy(student.table.detach().log_softmax(-1)).mean(), [], []
    for seed in range(30):
        state = State(total_steps=1, seed=seed)
        policy = copy.deepcopy(student)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        train(chosen, {"student": policy}, [prompts(torch.arange(STATES))], optimizer, steps=1, state=state)
        predicted.append(0.1 * state.log["entropy_change"] / STATES)
        measured.append(float(entropy(policy.table.detach().log_softmax(-1)).mean() - before))
    pair = torch.tensor([predicted, measured])
    assert torch.corrcoef(pair)[0, 1] > 0.99
    torch.testing.assert_close(pair[0], pair[1], rtol=0.05, atol=1e-6)


def test_the_log_counts_what_was_dropped(student):
    made, state = prepared(method(symmetric=True), student)
    plain, _ = prepared(method(filter="none"), student)
    dropped = plain["mask"] & ~made["mask"]
    count = float(plain["mask"].sum())
    assert math.isclose(state.log["dropped"], float(dropped.sum()) / count, rel_tol=1e-6)
    for name, sign in (("dropped_positive", 1), ("dropped_negative", -1)):
        assert math.isclose(state.log[name], float((dropped & (made["advantages"].sign() == sign)).sum()) / count, rel_tol=1e-6)
        assert state.log[name] > 0
    assert 0 < state.log["reward"] < 1
    assert abs(state.log["s_minus_n_mean"]) < abs(state.log["s_mean"])


def language_model():
    """A small network in two halves."""
    torch.manual_seed(4)
    body = LastSymbols(symbols=TOKENS, context=2)
    return Halves(torch.nn.Sequential(body, torch.nn.Linear(body.size, 5), torch.nn.Tanh()), torch.nn.Linear(5, TOKENS))


def step(chosen, model, seed=0):
    """What ``prepare`` made, and loss and gradients on it after the policy has moved."""
    state = State(total_steps=1, seed=seed)
    made = chosen.prepare(prompts(torch.arange(STATES)), {"student": model}, state)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1.3)
    loss = reduce_terms(chosen.loss(made, {}, {"student": moved}, state), made, global_counts(made), 1)["policy"]
    return made, state.log, loss, torch.autograd.grad(loss, tuple(moved.parameters()))


@pytest.fixture
def double():
    """Toy networks compute in torch's default precision."""
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("options", [{}, {"filter": "clip_v"}, {"aggregation": "sequence"}, {"sampling_temperature": 1.7}, {"updates": 2}])
def test_a_model_in_halves_learns_what_its_logits_say(options):
    chosen = method(sampler=ToySampler(), mu=0.5, reward=lambda batch, completions: completions.ids[:, 0].double(), **options)
    model = language_model()
    made, log, loss, gradients = step(chosen, model)
    made_whole, log_whole, loss_whole, gradients_whole = step(chosen, Whole(model))
    torch.testing.assert_close(made, made_whole)
    assert log == pytest.approx(log_whole)
    assert made["mask"].sum() < made["mask"].numel()
    torch.testing.assert_close(loss, loss_whole)
    torch.testing.assert_close(gradients, gradients_whole)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3


def test_the_logits_of_all_tokens_are_never_held():
    vocabulary, peaks = 2000, {}
    model = Halves(torch.nn.Embedding(vocabulary, 5), torch.nn.Linear(5, vocabulary))
    chosen = method(sampler=ToySampler(), answers=64, max_new_tokens=4)
    all_logits = 64 * STATES * 4 * vocabulary * 4 / 1e6
    for name, student in (("halves", model), ("whole", Whole(model))):
        made, state = prepared(chosen, student)
        peaks[name] = peak_tensor_mb(
            lambda made=made, state=state, student=student: chosen.loss(made, {}, {"student": student}, state)["policy"].sum().backward()
        )
        scored = speak(student, made["x"])
        peaks[f"{name}, scored"] = peak_tensor_mb(
            lambda scored=scored, made=made: said_discriminator(scored, made["y"], mask=torch.ones_like(made["y"]), chunk_rows=64)
        )
    assert peaks["halves"] < all_logits < peaks["whole"]
    assert peaks["halves, scored"] < 0.5 * all_logits


def test_sequences_may_count_alike(student):
    chosen = method(aggregation="sequence")
    made, state = prepared(chosen, student)
    values = replace(chosen, aggregation="token").loss(made, {}, {"student": student}, state)["policy"]
    torch.testing.assert_close(loss_of(chosen, student), aggregate(values, made["mask"], mode="sequence-mean"))


def test_several_updates_clip_the_ratio(student):
    chosen = method(updates=2, clip_low=0.01, clip_high=0.02)
    made, _ = prepared(chosen, student)
    by_hand = copy.deepcopy(student)
    for _ in range(2):
        log_p = token_log_probs(by_hand(made["x"]["input_ids"]), made["y"])
        surrogate = ppo_surrogate(log_p, made["old_log_probs"], made["advantages"], clip_low=0.01, clip_high=0.02)
        by_hand.table.grad = None
        aggregate(surrogate, made["mask"]).backward()
        torch.optim.SGD(by_hand.parameters(), lr=2.0).step()
    train(chosen, {"student": student}, [prompts(torch.arange(STATES))], torch.optim.SGD(student.parameters(), lr=2.0), steps=1)
    torch.testing.assert_close(student.table, by_hand.table)


@pytest.mark.parametrize(
    "options",
    [
        {"filter": "none"},
        {"filter": "clip_v"},
        {"filter": "random"},
        {"filter": "clip_v", "max_share": 0.1},
        {"mu": 1.0},
        {"symmetric": True},
        {"reward": lambda batch, completions: completions.ids[:, 0] == 1},
        {"answers": 4},
        {"aggregation": "sequence"},
        {"max_new_tokens": 2},
        {"sampling_temperature": 2.0},
        {"top_p": 0.5},
        {"sampler": TableSampler()},
    ],
)
def test_every_field_changes_the_gradient(student, options):
    base = method(filter="clip_v") if len(options) == 2 else method()
    found = [torch.autograd.grad(loss_of(chosen, student), student.table)[0] for chosen in (base, method(**options))]
    assert not torch.equal(*found)


@pytest.mark.parametrize("field", ["clip_low", "clip_high", "dual_clip", "updates"])
def test_every_clip_changes_the_second_update(student, field):
    changed = {"clip_low": 0.9, "clip_high": 9.0, "dual_clip": 99.0, "updates": 1}[field]
    base = {"updates": 2} if field == "updates" else {"updates": 2, "clip_low": 0.01, "clip_high": 0.01, "dual_clip": 1.01}
    tables = []
    for options in ({}, {field: changed}):
        policy = copy.deepcopy(student)
        optimizer = torch.optim.SGD(policy.parameters(), lr=4.0)
        train(method(**base | options), {"student": policy}, [prompts(torch.arange(STATES))], optimizer, steps=1)
        tables.append(policy.table)
    assert not torch.equal(*tables)


def test_published_thresholds_belong_to_the_filters(student):
    for name, mu in (("clip_b", 2.5), ("clip_v", 8.5)):
        chosen = method(filter=name, mu=None, max_new_tokens=40, answers=32, max_share=None, sampler=TableSampler())
        found = [prepared(replace(chosen, mu=value), student)[0]["mask"] for value in (None, mu, 0.4 * mu)]
        assert torch.equal(found[0], found[1])
        if name == "clip_b":
            assert not torch.equal(found[0], found[2])


def test_equal_rewards_leave_the_policy_alone(student):
    chosen = method(reward=lambda batch, completions: torch.full((len(completions.ids),), 0.3))
    (gradient,) = torch.autograd.grad(loss_of(chosen, student), student.table)
    assert gradient.abs().max() < 1e-7


class Server:
    """Samples, but cannot follow a student."""

    def sample(self, prompt, *, max_new_tokens, temperature, top_p, seed):
        raise AssertionError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter": "clip_a"}, "filter: expected one of clip_b, clip_v, random, none, got 'clip_a'"),
        ({"mu": 0.0}, "mu: expected a number > 0, got 0.0"),
        ({"max_share": 0.0}, r"max_share: expected a number in \(0, 1\], got 0.0"),
        ({"aggregation": "text"}, "aggregation: expected one of token, sequence, got 'text'"),
        ({"answers": 0}, "answers: expected a finite number > 0, got 0"),
        ({"dual_clip": 0.5}, "dual_clip: expected a number > 1, got 0.5"),
        ({"sampler": Server()}, r"sampler: expected one with sync\(student\)"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EntropyDynamics(**options)


def test_bad_input_is_refused(student):
    with pytest.raises(ValueError, match="prompt: expected the beginnings of texts"):
        EntropyDynamics().extra_roles({"student": student}, {"id": torch.arange(2)})
    with pytest.raises(ValueError, match="rewards: expected finite numbers, got nan"):
        prepared(method(reward=lambda batch, completions: torch.full((len(completions.ids),), torch.nan)), student)
    with pytest.raises(ValueError, match="advantages: expected shape"):
        clip_b(torch.zeros(2), torch.zeros(3), torch.ones(2))
