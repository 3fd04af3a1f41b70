"""Direct coverage optimisation."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import pytest
import torch
from tests.parity import check_folder, load_adapter
from tests.test_parity import GOLDEN
from torch import Tensor, nn

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.stream import as_stream
from preceptor.losses.coverage import confidence_factor, coverage_loss, coverage_optimal_policy
from preceptor.methods.confidence_limit import CARD, DCO, answer_log_probs, miniature
from preceptor.metrics.coverage import coverage
from preceptor.miniature.toys import Halves, LastSymbols, Rows

getcontext().prec = 400
CHANCES = [1e-12, 1e-8, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999]
NUMBERS = [1, 2, 4, 16, 64, 256, 1024]


def exact(p: float, n: int) -> tuple[float, float]:
    """L and F with 400 digits."""
    q = Decimal(p)
    wrong = (1 - q) ** n
    return float(-(1 - wrong).ln()), float(n * q * (1 - q) ** (n - 1) / (1 - wrong))


def log_of(values: list[float]) -> Tensor:
    return torch.tensor([float(Decimal(p).ln()) for p in values], dtype=torch.double)


def texts(rows: int, seed: int = 0) -> dict:
    """A batch of 5 symbols, 4 tokens each of which the last 3 are the answer."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 5, (rows, 5), generator=generator)
    mask = torch.tensor([0, 1, 1, 1]).repeat(rows, 1)
    return {"x": {"input_ids": ids[:, :-1]}, "y": ids[:, 1:], "mask": mask, "id": torch.arange(rows)}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    body = LastSymbols(symbols=5, context=2)
    return Halves(body, nn.Linear(body.size, 5)).double()


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.double)
    yield
    torch.set_default_dtype(torch.float)


def test_defaults_are_those_of_the_card():
    method = DCO()
    assert (method.num_samples, method.threshold, method.per_token) == (64.0, 0.1, False)
    assert (CARD.slug, CARD.needs, CARD.tasks) == ("confidence-limit", ("labels",), ("language",))


@pytest.mark.parametrize("n", NUMBERS)
def test_reference(n):
    log_p = log_of(CHANCES)
    loss, factor = coverage_loss(log_p, num_samples=n), confidence_factor(log_p, num_samples=n)
    for i, p in enumerate(CHANCES):
        value, weight = exact(p, n)
        assert math.isclose(loss[i].item(), value, rel_tol=1e-10, abs_tol=1e-300)
        assert math.isclose(factor[i].item(), weight, rel_tol=1e-10, abs_tol=1e-300)


@pytest.mark.parametrize("n", NUMBERS)
def test_the_gradient_is_that_of_cross_entropy_times_the_factor(n):
    """Against autograd of the equation as it stands, where float64 can hold it."""
    for p in (1e-3, 0.05, 0.3, 0.9):
        ours, plain = (torch.tensor(math.log(p), requires_grad=True) for _ in range(2))
        coverage_loss(ours, num_samples=n).backward()
        (-torch.log(1 - (1 - plain.exp()) ** n)).backward()
        assert math.isclose(ours.grad.item(), plain.grad.item(), rel_tol=1e-9, abs_tol=1e-14)
        assert math.isclose(ours.grad.item(), -exact(p, n)[1], rel_tol=1e-10, abs_tol=1e-300)


def test_gradient():
    log_p = torch.tensor([-25.0, -7.0, -2.0, -0.3, -0.01], requires_grad=True)
    for n in (1.0, 2.0, 7.5, 64.0):
        assert torch.autograd.gradcheck(lambda x, n=n: coverage_loss(x, num_samples=n), (log_p,))


def test_one_sample_is_cross_entropy():
    log_p = torch.tensor([-3e4, -20.0, -1.0, -1e-9, 0.0], requires_grad=True)
    loss = coverage_loss(log_p, num_samples=1)
    assert torch.equal(loss, -log_p)
    assert torch.equal(torch.autograd.grad(loss.sum(), log_p)[0], -torch.ones(5))
    assert torch.equal(confidence_factor(log_p, num_samples=1), torch.ones(5))


def test_the_factor_falls_with_chance_and_number():
    log_p = log_of([1e-15, *CHANCES, 1 - 1e-12])
    table = torch.stack([confidence_factor(log_p, num_samples=n) for n in NUMBERS])
    assert ((table >= 0) & (table <= 1)).all()
    assert (table.diff(dim=0) <= 0).all()
    assert (table[1:].diff(dim=1) <= 0).all()
    assert (table[:, 0] > 1 - 1e-12).all()
    assert (table[1:, -1] < 1e-11).all()
    p = torch.tensor(CHANCES)
    torch.testing.assert_close(confidence_factor(p.log(), num_samples=2), 2 * (1 - p) / (2 - p), rtol=1e-9, atol=0)
    for c in (1.0, 3.0):
        assert abs(confidence_factor(torch.tensor(c / 1e6).log(), num_samples=1e6).item() - c / math.expm1(c)) < 1e-5


def test_the_released_series_is_close():
    for n in NUMBERS:
        log_p = torch.linspace(1e-9, 0.0999, 200).div(n).log()
        difference = (load_adapter("confidence-limit").released_factor(log_p.exp(), n) - confidence_factor(log_p, num_samples=n)).abs()
        assert difference.max() < 1.31e-4  # its limit at N p = 0.1 for large N: 0.905 / 0.951667 - 0.1 / (e^0.1 - 1)
        chances = log_of(CHANCES)
        on_table = load_adapter("confidence-limit").released_factor(chances.exp(), n) - confidence_factor(chances, num_samples=n)
        assert on_table.abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 1000])
def test_chances_of_zero_and_one(n, dtype):
    log_p = torch.tensor([0.0, -1e5, -torch.inf, -700.0, -650.0], dtype=dtype, requires_grad=True)
    loss = coverage_loss(log_p, num_samples=n)
    loss.sum().backward()
    assert loss.dtype == dtype
    expected = torch.tensor([0.0, 1e5 - math.log(n), torch.inf, 700 - math.log(n), 650 - math.log(n)], dtype=dtype)
    torch.testing.assert_close(loss.detach(), expected)
    torch.testing.assert_close(log_p.grad, torch.tensor([-float(n == 1), -1, -1, -1, -1], dtype=dtype))


@pytest.mark.parametrize("n", [2, 5, 40])
def test_no_other_policy_covers_more(n):
    generator = torch.Generator().manual_seed(n)
    chances = torch.rand(7, generator=generator)
    chances[2] = 0.0
    chances /= chances.sum()
    policy = coverage_optimal_policy(chances, num_samples=n)
    assert math.isclose(policy.sum().item(), 1.0, abs_tol=1e-12)
    assert (policy >= 0).all()
    assert policy[2] == 0
    best = (chances * coverage(policy, n)).sum()
    for _ in range(200):
        other = (policy + 0.1 * torch.rand((), generator=generator) * torch.randn(7, generator=generator)).clamp(min=0)
        other /= other.sum()
        assert (chances * coverage(other, n)).sum() <= best + 1e-12
    slopes = n * chances * (1 - policy) ** (n - 1)  # Lagrange: equal where there is a share, not larger elsewhere
    level = slopes[policy > 0].mean()
    torch.testing.assert_close(slopes[policy > 0], level.expand(int((policy > 0).sum())), rtol=1e-9, atol=0)
    assert (slopes <= level * (1 + 1e-9)).all()


def test_the_ends_of_the_optimal_policy():
    chances = torch.tensor([0.2, 0.5, 0.3, 0.0])
    assert coverage_optimal_policy(chances, num_samples=1).tolist() == [0, 1, 0, 0]
    uniform = torch.tensor([1 / 3, 1 / 3, 1 / 3, 0])
    torch.testing.assert_close(coverage_optimal_policy(chances, num_samples=1e7), uniform, rtol=0, atol=1e-6)
    largest = [coverage_optimal_policy(chances, num_samples=n).max().item() for n in (1, 1.2, 2, 4, 16, 64, 1000)]
    assert largest == sorted(largest, reverse=True)
    assert coverage_optimal_policy(torch.tensor([0.0, 2.0]), num_samples=8).tolist() == [0, 1]


def test_the_loss_of_an_answer_is_that_of_its_tokens_together():
    student, batch, state = network(), texts(3), State(total_steps=1)
    log_p = student(**batch["x"])["logits"].log_softmax(-1).gather(-1, batch["y"][..., None]).squeeze(-1)
    whole = (log_p * batch["mask"]).sum(1)
    torch.testing.assert_close(answer_log_probs(student, batch), whole)
    terms = DCO(num_samples=16).loss(batch, {}, {"student": student}, state)
    expected = torch.tensor([exact(math.exp(v), 16)[0] for v in whole.tolist()])
    torch.testing.assert_close(terms["coverage"], expected)
    halved = DCO(num_samples=16, per_token=True).loss(batch, {}, {"student": student}, state)
    torch.testing.assert_close(halved["coverage"], expected / 3)


def test_masked_tokens_get_no_gradient():
    student, batch = network(), texts(3)
    hidden: list[Tensor] = []
    student.base_model.register_forward_hook(lambda m, a, out: hidden.append(out.last_hidden_state.requires_grad_()))
    DCO().loss(batch, {}, {"student": student}, State(total_steps=1))["coverage"].sum().backward()
    assert (hidden[0].grad[:, 0] == 0).all()
    assert (hidden[0].grad[:, 1:] != 0).any()


def test_answers_without_tokens_do_not_count():
    student, batch, state = network(), texts(4), State(total_steps=1)
    batch["mask"][1] = 0
    prepared = DCO(threshold=0.0).prepare(batch, {"student": student}, state)
    assert prepared["mask/coverage"].tolist() == [True, False, True, True]
    assert state.log["unanswered"] == 1
    filtered = DCO(threshold=0.1).prepare(batch, {"student": student}, state)
    assert filtered["id"].tolist() == [0, 2, 3]


def sure_of(batch: dict, rows: list[int]) -> nn.Module:
    """A table that is sure of the answers of these rows, whose last symbols are all different, and of nothing else."""
    body = LastSymbols(symbols=7, context=1)
    student = Halves(body, nn.Linear(7, 7, bias=False))
    with torch.no_grad():
        student.output.weight.zero_()
        for row in rows:
            student.output.weight[batch["y"][row, 0], batch["x"]["input_ids"][row, 0]] = 30.0
    return student


def one_token_each(first: int) -> dict:
    """Seven examples: symbol i is answered by the next one."""
    ids = torch.arange(7)[:, None]
    return {"x": {"input_ids": ids}, "y": (ids + 1) % 7, "mask": torch.ones_like(ids), "id": first + torch.arange(7)}


def test_what_is_sure_is_replaced_and_what_is_left_over_waits():
    batch = one_token_each(0)
    student = sure_of(batch, [0, 3])
    state = State(total_steps=2, source=as_stream([one_token_each(10), one_token_each(20)]))
    method = DCO(num_samples=8)
    first = method.prepare(batch, {"student": student}, state)
    assert first["id"].tolist() == [1, 2, 4, 5, 6, 11, 12]
    assert state.memory["spare/id"].tolist() == [14, 15, 16]
    assert state.log["draws"] == 2
    second = method.prepare(one_token_each(30), {"student": student}, state)
    assert second["id"].tolist() == [14, 15, 16, 31, 32, 34, 35]
    assert state.memory["spare/id"].tolist() == [36]
    assert state.log["draws"] == 1


def fill_half(rank, folder):
    """One of two processes: the first is sure of two of its examples, the second of none."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    batch = one_token_each(0)
    state = State(total_steps=1, source=as_stream([one_token_each(10 * (rank + 1) + 100)]))
    prepared = DCO(num_samples=8).prepare(batch, {"student": sure_of(batch, [] if rank else [0, 3])}, state)
    torch.save([prepared["id"], state.log["draws"], sorted(state.memory)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_draw_in_step(tmp_path):
    torch.multiprocessing.spawn(fill_half, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first[0].tolist() == [1, 2, 4, 5, 6, 111, 112]
    assert second[0].tolist() == list(range(7))
    assert first[1:] == second[1:] == [2.0, []]


def test_nothing_left_to_learn_does_not_loop_forever():
    batch = one_token_each(0)
    state = State(total_steps=1, source=as_stream([one_token_each(10)]))
    student = sure_of(batch, list(range(7)))
    prepared = DCO(num_samples=8, most_draws=3).prepare(batch, {"student": student}, state)
    assert prepared["id"].tolist() == list(range(7))
    assert state.log["draws"] == 4


def test_it_learns_to_cover():
    """Two answers to one question: cross-entropy and coverage end at the policies of the theory."""
    y = torch.tensor([[1]] * 7 + [[2]] * 3)
    batch = {"x": {"input_ids": torch.zeros_like(y)}, "y": y, "mask": torch.ones_like(y), "id": torch.arange(10)}
    ends = {}
    for n in (1, 6):
        torch.manual_seed(0)
        student = Halves(LastSymbols(symbols=3, context=1), nn.Linear(3, 3))
        optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
        train(DCO(num_samples=n, threshold=0.0), {"student": student}, Rows(batch, batch_size=10, seed=0), optimizer, steps=400)
        ends[n] = student(input_ids=torch.zeros(1, 1, dtype=torch.int64))["logits"].softmax(-1)[0, 0].tolist()
    assert ends[1][1] == pytest.approx(0.7, abs=0.01)
    q = torch.tensor(ends[6][1:])
    slopes = torch.tensor([0.7, 0.3]) * 6 * (1 - q) ** 5 / (1 - (1 - q) ** 6)  # equal at the smallest expected loss
    assert slopes[0].item() == pytest.approx(slopes[1].item(), rel=0.02)
    assert ends[6][1] < 0.62


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0.5}, "num_samples: expected a finite number of at least 1, got 0.5"),
        ({"num_samples": math.inf}, "num_samples: expected a finite number"),
        ({"threshold": 1.5}, r"threshold: expected a number in \[0, 1\], got 1.5"),
        ({"most_draws": -1}, "most_draws: expected a number >= 0, got -1"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DCO(**options)


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="log_prob: expected a floating-point tensor"):
        coverage_loss(torch.tensor([1]), num_samples=2)
    for wrong in (torch.tensor([-0.1, 1.0]), torch.zeros(3), torch.ones(2, 2)):
        with pytest.raises(ValueError, match="probabilities: expected shape"):
            coverage_optimal_policy(wrong, num_samples=2)


def test_parity():
    lines = [line for line in check_folder(GOLDEN) if line.slug == "confidence-limit"]
    assert len(lines) == 2
    assert {line.status for line in lines} == {"ok"}


def test_miniature():
    run = miniature(1, "smoke")
    assert {"untrained-student", "ce", "ce-early", "ce-softened", "confidence-limit"} <= run.arms.keys()
    assert run.arms["confidence-limit"] != run.arms["ce"]
