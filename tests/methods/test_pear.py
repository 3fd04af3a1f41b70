"""PEAR: the entropies of both phases, the reward made of them, and the step."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace

import pytest
import torch
from tests.models.whole import Whole

from preceptor.core.reduce import global_counts, reduce_terms
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.losses.phase_entropy import pear_reward, phase_entropies
from preceptor.losses.policy import aggregate, group_advantages, kl_estimate, ppo_surrogate, token_log_probs
from preceptor.losses.token_stats import entropy
from preceptor.methods.pear import CARD, PEAR, numeric_answer
from preceptor.metrics.cost import peak_tensor_mb
from preceptor.miniature.policies import TablePolicy, TableSampler, prompts
from preceptor.miniature.toys import Halves, LastSymbols, ToySampler

END, STATES, TOKENS = 5, 6, 7


@pytest.fixture
def text():
    """Entropies, tokens and mask of four texts: prompt, thinking, end, answer, padding; the last one never stops thinking."""
    ids = torch.tensor([[5, 1, 2, 5, 3, 5, 0, 0], [0, 5, 1, 2, 3, 0, 0, 5], [1, 1, 1, 2, 5, 0, 0, 0], [0, 1, 2, 3, 4, 1, 0, 5]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1, 0, 0]])
    return torch.rand(4, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0)), ids, mask


def test_defaults_are_those_of_the_card():
    method = PEAR()
    assert (method.alpha, method.right, method.wrong, method.floor, method.normalised) == (1.0, 1.0, 0.0, None, False)
    assert (method.clip_low, method.clip_high, method.sampling_temperature) == (0.2, 0.2, 1.0)
    assert (CARD.slug, CARD.tasks) == ("pear", ("language",))


def test_phases(text):
    entropies, ids, mask = text
    think, answer, k = phase_entropies(entropies, ids, mask, END)
    assert k.tolist() == [3, 1, 4, 6]
    expected_think = [entropies[0, 1:3].mean(), torch.zeros(()), entropies[2, 2:4].mean(), entropies[3, 1:6].mean()]
    expected_answer = [entropies[0, 4:6].mean(), entropies[1, 2:5].mean(), torch.zeros(()), torch.zeros(())]
    torch.testing.assert_close(think, torch.stack([x.double() for x in expected_think]))
    torch.testing.assert_close(answer, torch.stack([x.double() for x in expected_answer]))
    all_thinking, none, _ = phase_entropies(entropies, ids, mask, None)
    torch.testing.assert_close(all_thinking, (entropies * mask).sum(1) / mask.sum(1))
    assert (none == 0).all()


def test_an_end_of_several_tokens_belongs_to_neither_phase():
    ids = torch.tensor([[1, 5, 1, 5, 6, 2, 2], [5, 6, 1, 1, 0, 0, 0], [1, 5, 1, 6, 1, 5, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
    entropies = torch.arange(21.0).view(3, 7)
    think, answer, k = phase_entropies(entropies, ids, mask, (5, 6))
    assert k.tolist() == [4, 1, 6]
    assert think.tolist() == [1.0, 0.0, 16.5]
    assert answer.tolist() == [5.5, 9.5, 0.0]
    assert phase_entropies(entropies, ids, mask, (1,) * 9)[2].tolist() == [7, 4, 6]  # longer than any text
    alone = phase_entropies(entropies, ids, mask, (5,))
    for one, same in zip(alone, phase_entropies(entropies, ids, mask, 5), strict=True):
        assert torch.equal(one, same)


def test_the_end_padding_and_prompt_do_not_matter(text):
    entropies, ids, mask = text
    found = phase_entropies(entropies, ids, mask, END)
    first_end = torch.zeros_like(mask, dtype=torch.bool)
    first_end[[0, 1, 2], [3, 1, 4]] = True
    spoilt = entropies.masked_fill(first_end | (mask == 0), torch.nan)
    for one, same in zip(found, phase_entropies(spoilt, ids, mask, END), strict=True):
        assert torch.equal(one, same)
    with pytest.raises(ValueError, match="ids: expected shape"):
        phase_entropies(entropies, ids[:, :3], mask, END)


def test_repeating_a_text_costs_nothing(text):
    entropies, ids, mask = (value[0, 1:6] for value in text)
    counts = torch.tensor([3, 3, 1, 2, 2])  # how often each token stands; the end stands once
    longer = [value.repeat_interleave(counts).unsqueeze(0) for value in (entropies, ids, mask)]
    longer[1][0, -4:] = 3  # not a second end
    short = [value.unsqueeze(0) for value in (entropies, ids, mask)]
    for one, same in zip(phase_entropies(*short, END)[:2], phase_entropies(*longer, END)[:2], strict=True):
        torch.testing.assert_close(one, same)


def test_reward():
    think, answer = torch.tensor([[0.5, 0.2, 2.0, 0.5], [0.3, 0.3, 0.5, 0.3]], dtype=torch.double)
    correct = torch.tensor([True, True, True, False])
    torch.testing.assert_close(pear_reward(correct, think, answer), torch.tensor([0.8, 1.0, -0.5, 0.0], dtype=torch.double))
    torch.testing.assert_close(pear_reward(correct, think, answer, alpha=0.0)[0], torch.tensor(0.5, dtype=torch.double))
    torch.testing.assert_close(pear_reward(correct, think, answer, alpha=-1.0)[0], torch.tensor(0.2, dtype=torch.double))
    assert pear_reward(correct, think, answer, floor=0.05).tolist() == [0.8, 1.0, 0.05, 0.0]
    assert pear_reward(correct, think, answer, right=1.5).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert pear_reward(correct, think, answer, wrong=-1.0)[3] == -1
    with pytest.raises(ValueError, match="think: expected shape"):
        pear_reward(correct, think[:2], answer)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_properties_of_the_reward(alpha):
    generator = torch.Generator().manual_seed(1)
    think, answer = 3 * torch.rand(2, 500, dtype=torch.double, generator=generator)
    right, wrong = torch.ones(500, dtype=torch.bool), torch.zeros(500, dtype=torch.bool)
    found = pear_reward(right, think, answer, alpha=alpha)
    assert (found <= 1).all()
    assert (found[think <= alpha * answer] == 1).all()  # then it is the plain reward
    assert (pear_reward(right, think + 0.1, answer, alpha=alpha) <= found).all()
    assert (pear_reward(right, think, answer + 0.1, alpha=alpha) >= found).all()
    assert (pear_reward(wrong, think, answer, alpha=alpha, wrong=0.2) == 0.2).all()
    assert (pear_reward(right, think, answer, alpha=alpha, floor=0.1) >= 0.1).all()


def test_advantages_do_not_see_the_height_of_the_reward_where_nothing_saturates():
    think = torch.tensor([0.7, 0.9, 1.2, 2.0], dtype=torch.double)
    right, groups = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.int64)
    found = [group_advantages(pear_reward(right, think, 0 * think, right=s), groups) for s in (1.0, 1.5)]
    torch.testing.assert_close(*found)
    same = pear_reward(right, torch.full((4,), 0.3), torch.zeros(4))
    assert group_advantages(same, groups).abs().max() < 1e-7


@pytest.mark.parametrize(
    ("text", "strict", "expected"),
    [
        ("so 3 + 4 = 7\n#### 1,234", True, "1234"),
        ("#### $-5.50 and 9", True, "-5.50"),
        ("the answer is 12", True, None),
        ("first 3, then $1,000.5.", False, "1000.5"),
        (r"\boxed{x + y}", False, "x + y"),
        (r"\boxed{41} or 42", False, "42"),
        ("no number", False, None),
    ],
)
def test_numeric_answers(text, strict, expected):
    assert numeric_answer(text, strict=strict) == expected


@pytest.fixture
def student():
    generator = torch.Generator().manual_seed(3)
    table = 2 * torch.randn(STATES, TOKENS, dtype=torch.double, generator=generator)
    return TablePolicy(table, torch.randint(STATES, (STATES, TOKENS), generator=generator))


def even(batch, completions):
    """Whether a text has more even than odd tokens."""
    return ((completions.ids % 2 == 0) & completions.mask).sum(1) * 2 > completions.mask.sum(1)


def method(**options):
    plain = {"alpha": 0.5, "verifier": even, "answers": 8, "max_new_tokens": 6, "sampler": TableSampler(stop=(0,)), "end_think": END}
    return PEAR(**plain | {"floor": 0.0} | options)


def prepared(chosen, student, seed=0):
    state = State(total_steps=1, seed=seed)
    with torch.no_grad():
        return chosen.prepare(prompts(torch.arange(STATES)), {"student": student}, state), state


def loss_of(chosen, student):
    made, state = prepared(chosen, student)
    roles = {"student": student, "reference": TablePolicy(torch.zeros(STATES, TOKENS, dtype=torch.double), student.moves)}
    with torch.no_grad():
        signal = chosen.signal(made, roles, state)
    return reduce_terms(chosen.loss(made, signal, roles, state), made, global_counts(made), 1)["policy"]


def test_a_step_is_grpo_with_the_reward(student):
    made, state = prepared(method(), student)
    entropies = entropy(student(made["x"]["input_ids"]).detach().log_softmax(-1))
    think, answer, _ = phase_entropies(entropies, made["y"], made["mask"], END)
    correct = []
    for ids, mask in zip(made["y"], made["mask"], strict=True):
        tokens = ids[mask].tolist()
        finished = tokens[-1] == 0  # a text that was cut off is wrong
        correct.append(finished and sum(t % 2 == 0 for t in tokens) * 2 > len(tokens))
    cut = made["mask"].sum(1) == 6
    assert 0 < cut.sum() < len(correct)
    rewards = pear_reward(torch.tensor(correct), think, answer, alpha=0.5, floor=0.0)
    expected = group_advantages(rewards, torch.arange(8 * STATES) // 8)
    torch.testing.assert_close(made["advantages"], expected.unsqueeze(1).expand(made["y"].shape))
    assert math.isclose(state.log["reward"], rewards.mean(), rel_tol=1e-6)
    assert math.isclose(state.log["correct"], sum(correct) / len(correct), rel_tol=1e-6)
    assert math.isclose(state.log["think_entropy"], think.mean(), rel_tol=1e-6)
    loss = loss_of(method(), student)
    log_p = token_log_probs(student(made["x"]["input_ids"]), made["y"])
    lengths = made["mask"].sum(1, keepdim=True)
    by_hand = -(log_p * made["advantages"] * made["mask"] / lengths).sum() / len(lengths)
    gradients = [torch.autograd.grad(value, student.table)[0] for value in (loss, by_hand)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0.01


def test_phases_are_counted_without_the_end(student):
    made, state = prepared(method(), student)
    think, answer = 0, 0
    for ids, mask in zip(made["y"], made["mask"], strict=True):
        tokens = ids[mask].tolist()
        place = tokens.index(END) if END in tokens else len(tokens)
        think += place
        answer += max(len(tokens) - place - 1, 0)
    assert math.isclose(state.log["think_tokens"], think / len(made["y"]), rel_tol=1e-6)
    assert math.isclose(state.log["answer_tokens"], answer / len(made["y"]), rel_tol=1e-6)


def test_a_uniform_policy_has_the_entropy_of_its_vocabulary(student):
    uniform = TablePolicy(torch.zeros(STATES, TOKENS, dtype=torch.double), student.moves)
    for normalised, expected in ((False, math.log(TOKENS)), (True, 1.0)):
        state = prepared(method(normalised=normalised, end_think=None), uniform)[1]
        assert math.isclose(state.log["think_entropy"], expected, rel_tol=1e-6)
        assert state.log["answer_entropy"] == 0


def test_entropies_are_those_of_temperature_1(student):
    chosen = method(sampling_temperature=2.0, updates=2)
    made, state = prepared(chosen, student)
    logits = student(made["x"]["input_ids"]).detach()
    think, _, _ = phase_entropies(entropy(logits.log_softmax(-1)), made["y"], made["mask"], END)
    assert math.isclose(state.log["think_entropy"], think.mean(), rel_tol=1e-6)
    expected = token_log_probs(logits, made["y"], temperature=2.0)
    torch.testing.assert_close(made["old_log_probs"], expected.masked_fill(~made["mask"], 0.0))


def test_right_answers_that_earn_less_than_wrong_ones_are_told(student):
    with pytest.warns(UserWarning, match="of the right answers earn less than a wrong one; a floor would prevent it"):
        state = prepared(method(alpha=0.0, floor=None, right=0.5), student)[1]
    assert 0 < state.log["inverted"] <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepared(method(alpha=0.0, right=0.5), student)[1].log["inverted"] == 0


def test_the_kl_term(student):
    base = method(updates=2)
    chosen = replace(base, kl_weight=0.3)
    made, state = prepared(chosen, student)
    reference = TablePolicy(torch.randn(STATES, TOKENS, dtype=torch.double), student.moves)
    roles = {"student": student, "reference": reference}
    with torch.no_grad():
        signal = chosen.signal(made, roles, state)
    log_p, log_r = (token_log_probs(role(made["x"]["input_ids"]), made["y"]) for role in (student, reference))
    expected = aggregate(kl_estimate(log_p, log_r), made["mask"], mode="sequence-mean")
    losses = [reduce_terms(m.loss(made, signal, roles, state), made, global_counts(made), 1)["policy"] for m in (chosen, base)]
    torch.testing.assert_close(losses[0] - losses[1], 0.3 * expected)
    assert base.extra_roles({"student": student}, made | {"prompt": 1}) == {}
    (copied,) = chosen.extra_roles({"student": student}, made | {"prompt": 1}).values()
    assert copied is not student
    assert torch.equal(copied.table, student.table)
    assert chosen.extra_roles(roles, made | {"prompt": 1}) == {}


class Ended(ToySampler):
    """All of its texts come to an end."""

    def sample(self, *prompt, **options):
        written = super().sample(*prompt, **options)
        return replace(written, finished=torch.ones_like(written.finished))


def language_model(seed):
    """A small network in two halves."""
    torch.manual_seed(seed)
    body = LastSymbols(symbols=TOKENS, context=2)
    return Halves(torch.nn.Sequential(body, torch.nn.Linear(body.size, 5), torch.nn.Tanh()), torch.nn.Linear(5, TOKENS))


def step(chosen, wrap):
    """What ``prepare`` made and logged, and loss and gradients on it after the policy has moved."""
    state, model, reference = State(total_steps=1), language_model(4), wrap(language_model(5))
    made = chosen.prepare(prompts(torch.arange(STATES)), {"student": wrap(model)}, state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
        signal = chosen.signal(made, {"reference": reference}, state)
    loss = reduce_terms(chosen.loss(made, signal, {"student": wrap(model)}, state), made, global_counts(made), 1)["policy"]
    return made, state.log, loss, torch.autograd.grad(loss, tuple(model.parameters()))


@pytest.fixture
def double():
    """Toy networks compute in torch's default precision."""
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("options", [{}, {"normalised": True}, {"kl_weight": 0.3}, {"sampling_temperature": 1.7}, {"updates": 2}])
def test_a_model_in_halves_learns_what_its_logits_say(options):
    chosen = method(sampler=Ended(), **options)
    made, log, loss, gradients = step(chosen, lambda model: model)
    made_whole, log_whole, loss_whole, gradients_whole = step(chosen, Whole)
    torch.testing.assert_close(made, made_whole)
    assert log == pytest.approx(log_whole)
    assert 0 < log["correct"] < 1
    torch.testing.assert_close(loss, loss_whole)
    torch.testing.assert_close(gradients, gradients_whole)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3


def test_the_logits_of_all_tokens_are_never_held():
    vocabulary, peaks = 2000, {}
    model = Halves(torch.nn.Embedding(vocabulary, 5), torch.nn.Linear(5, vocabulary))
    chosen = method(sampler=Ended(), answers=64, max_new_tokens=4)
    all_logits = 64 * STATES * 4 * vocabulary * 4 / 1e6
    for name, student in (("halves", model), ("whole", Whole(model))):
        made, state = prepared(chosen, student)
        peaks[name] = peak_tensor_mb(
            lambda made=made, state=state, student=student: chosen.loss(made, {}, {"student": student}, state)["policy"].sum().backward()
        )
    assert peaks["halves"] < all_logits < peaks["whole"]


def test_several_updates_clip_the_ratio(student):
    chosen = method(updates=2, clip_low=0.01, clip_high=0.02)
    made, _ = prepared(chosen, student)
    by_hand = copy.deepcopy(student)
    for _ in range(2):
        log_p = token_log_probs(by_hand(made["x"]["input_ids"]), made["y"])
        clips = {"clip_low": 0.01, "clip_high": 0.02, "dual_clip": math.inf}
        surrogate = ppo_surrogate(log_p, made["old_log_probs"], made["advantages"], **clips)
        by_hand.table.grad = None
        aggregate(surrogate, made["mask"], mode="sequence-mean").backward()
        torch.optim.SGD(by_hand.parameters(), lr=2.0).step()
    train(chosen, {"student": student}, [prompts(torch.arange(STATES))], torch.optim.SGD(student.parameters(), lr=2.0), steps=1)
    torch.testing.assert_close(student.table, by_hand.table)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.0},
        {"right": 0.7},
        {"wrong": 0.3, "floor": 0.3},
        {"floor": 0.9},
        {"normalised": True},
        {"end_think": None},
        {"end_think": (1, 2)},
        {"verifier": lambda batch, completions: completions.ids[:, 0] == 1},
        {"answers": 4},
        {"kl_weight": 0.1},
        {"max_new_tokens": 3},
        {"sampling_temperature": 2.0},
        {"top_p": 0.5},
        {"sampler": TableSampler(stop=(0, 1))},
    ],
)
def test_every_field_changes_the_gradient(student, options):
    found = [torch.autograd.grad(loss_of(chosen, student), student.table)[0] for chosen in (method(), method(**options))]
    assert not torch.equal(*found)


@pytest.mark.parametrize("field", ["clip_low", "clip_high", "updates"])
def test_every_clip_changes_the_second_update(student, field):
    changed = {"clip_low": 0.9, "clip_high": 9.0, "updates": 1}[field]
    base = {"updates": 2} if field == "updates" else {"updates": 2, "clip_low": 0.01, "clip_high": 0.01}
    tables = []
    for options in ({}, {field: changed}):
        policy = copy.deepcopy(student)
        optimizer = torch.optim.SGD(policy.parameters(), lr=4.0)
        train(method(**base | options), {"student": policy}, [prompts(torch.arange(STATES))], optimizer, steps=1)
        tables.append(policy.table)
    assert not torch.equal(*tables)


class Server:
    """Samples, but cannot follow a student."""

    def sample(self, prompt, *, max_new_tokens, temperature, top_p, seed):
        raise AssertionError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"right": 0.0}, r"right: expected more than wrong \(0.0\), got 0.0"),
        ({"kl_weight": -1.0}, "kl_weight: expected a number >= 0, got -1.0"),
        ({"answers": 0}, "answers: expected a finite number > 0, got 0"),
        ({"clip_high": -1.0}, "clip_high: expected a number >= 0, got -1.0"),
        ({"sampler": Server()}, r"sampler: expected one with sync\(student\)"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PEAR(**options)


def test_bad_input_is_refused(student):
    with pytest.raises(ValueError, match="prompt: expected the beginnings of texts"):
        PEAR().extra_roles({"student": student}, {"id": torch.arange(2)})
    for end in (TOKENS, (1, 151668)):
        with pytest.raises(ValueError, match="end_think: expected tokens of the vocabulary, 0 to 6, got"):
            prepared(method(end_think=end), student)
