"""The comp-sum family and what it guarantees."""

import math

import pytest
import torch
import torch.nn.functional as F

from preceptor.losses.comp_sum import (
    comp_sum,
    conditional_minimum,
    difference_shift,
    gap_bound,
    outer,
    recovered_log_probs,
    regret_bound,
    regret_transform,
)

TAUS = [0.0, 0.4, 0.9, 1.0, 1.3, 1.7, 1.95, 2.0, 2.5]


def random_logits(*shape, scale=2.0, seed=0):
    return scale * torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 3, 2, 1, 4, 4])


def test_named_members():
    logits = random_logits(6, 5)
    q = logits.softmax(-1).gather(-1, LABELS[:, None]).squeeze(-1)
    named = {0.0: 1 / q - 1, 1.0: -q.log(), 1.7: (1 - q**0.7) / 0.7, 2.0: 1 - q}
    for tau, expected in named.items():
        torch.testing.assert_close(comp_sum(logits, LABELS, tau=tau), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("tau", TAUS)
def test_reference_from_differences(tau):
    logits = random_logits(6, 5)
    for row, y, got in zip(logits.tolist(), LABELS.tolist(), comp_sum(logits, LABELS, tau=tau, temperature=2.0).tolist(), strict=True):
        u = sum(math.exp((h - row[y]) / 2) for k, h in enumerate(row) if k != y)
        expected = math.log(1 + u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)
        assert math.isclose(got, expected, rel_tol=1e-10)
        assert math.isclose(float(outer(torch.tensor(u, dtype=torch.double), tau=tau)), expected, rel_tol=1e-10)


def test_it_is_continuous_at_one_and_falls_with_tau():
    logits = random_logits(6, 5)
    at_one = comp_sum(logits, LABELS, tau=1.0)
    for tau in (1 - 1e-5, 1 + 1e-5, 1 + 1e-7):
        torch.testing.assert_close(comp_sum(logits, LABELS, tau=tau), at_one, rtol=1e-3, atol=1e-6)
    values = torch.stack([comp_sum(logits, LABELS, tau=tau) for tau in TAUS])
    assert (values.diff(dim=0) < 0).all()


@pytest.mark.parametrize("tau", TAUS)
def test_gradient(tau):
    logits = random_logits(6, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(comp_sum(logits, LABELS, tau=tau).sum(), logits)
    p = logits.detach().softmax(-1)
    own = p.gather(-1, LABELS[:, None])
    torch.testing.assert_close(gradient, own ** (tau - 1) * (p - F.one_hot(LABELS, 5)))
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(6, dtype=torch.double))
    assert torch.autograd.gradcheck(lambda h: comp_sum(h, LABELS, tau=tau, temperature=1.5), (logits,))
    torch.testing.assert_close(comp_sum(logits + 7, LABELS, tau=tau), comp_sum(logits, LABELS, tau=tau))


@pytest.mark.parametrize("tau", TAUS)
def test_soft_targets_mix_the_classes(tau):
    logits, probs = random_logits(6, 5), random_logits(6, 5, seed=1).softmax(-1)
    mixed = sum(probs[:, y] * comp_sum(logits, torch.full((6,), y), tau=tau) for y in range(5))
    torch.testing.assert_close(comp_sum(logits, probs, tau=tau), mixed)
    torch.testing.assert_close(comp_sum(logits, F.one_hot(LABELS, 5).double(), tau=tau), comp_sum(logits, LABELS, tau=tau))


@pytest.mark.parametrize("tau", TAUS)
def test_no_scores_go_below_the_conditional_minimum_and_its_scores_reach_it(tau):
    probs = random_logits(50, 5, scale=1.0).softmax(-1)
    least = conditional_minimum(probs, tau=tau)
    if tau < 2:
        best = probs.log() / (2 - tau)
        torch.testing.assert_close(comp_sum(best, probs, tau=tau), least, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(recovered_log_probs(best, tau=tau), probs.log())
    else:
        best = 50.0 * F.one_hot(probs.argmax(-1), 5).double()
        torch.testing.assert_close(comp_sum(best, probs, tau=tau), least, rtol=1e-8, atol=1e-10)
    for seed in range(20):
        assert (comp_sum(random_logits(50, 5, seed=seed, scale=0.3 * (seed + 1)), probs, tau=tau) > least - 1e-12).all()


def test_descent_finds_the_conditional_minimum():
    probs, h = random_logits(1, 4, scale=1.0).softmax(-1), torch.zeros(1, 4, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([h], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = comp_sum(h, probs, tau=1.6).sum()
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(comp_sum(h.detach(), probs, tau=1.6), conditional_minimum(probs, tau=1.6), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(recovered_log_probs(h.detach(), tau=1.6), probs.log(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_regret_of_the_surrogate_bounds_that_of_the_predicted_class(tau, classes):
    probs = random_logits(1000, classes, scale=1.5, seed=classes).softmax(-1)
    scores = random_logits(1000, classes, scale=1.0, seed=classes + 1)
    surrogate = comp_sum(scores, probs, tau=tau) - conditional_minimum(probs, tau=tau)
    error = probs.amax(-1) - probs.gather(-1, scores.argmax(-1, keepdim=True)).squeeze(-1)
    for regret, beta in zip(surrogate.tolist(), error.tolist(), strict=True):
        assert regret >= regret_transform(beta, tau=tau, num_classes=classes) - 1e-10


def test_it_is_tight_at_a_tie_of_two_classes():
    known = {0.0: 0.2, 1.0: 0.192745, 1.3: 0.211742, 2.0: 0.3}
    probs = torch.tensor([[0.8, 0.2]], dtype=torch.double)
    for tau, value in known.items():
        assert regret_transform(0.6, tau=tau, num_classes=2) == pytest.approx(value, abs=5e-7)
        tie = comp_sum(torch.zeros(1, 2, dtype=torch.double), probs, tau=tau) - conditional_minimum(probs, tau=tau)
        assert tie.item() == pytest.approx(value, abs=5e-7)
    assert regret_transform(0.6, tau=0.0, num_classes=9) == pytest.approx(1 - math.sqrt(1 - 0.36))


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("classes", [2, 10])
def test_the_bound_inverts_the_transform_and_its_simple_form_is_larger(tau, classes):
    for beta in (0.0, 0.05, 0.3, 0.6, 0.95, 1.0):
        regret = regret_transform(beta, tau=tau, num_classes=classes)
        assert regret_bound(regret, tau=tau, num_classes=classes) == pytest.approx(beta, abs=1e-7)
        assert regret_bound(regret, tau=tau, num_classes=classes, simple=True) >= beta - 1e-7
    assert regret_bound(100.0, tau=tau, num_classes=classes) == 1.0


def test_the_gap_is_bounded_by_jensen():
    probs = random_logits(40, 4, scale=1.0).softmax(-1)
    constant = probs.mean(0).log() / 2  # the best scores that do not look at the input, at tau = 0
    best = comp_sum(constant.expand(40, 4), probs, tau=0.0).mean().item()
    for tau in (0.5, 1.0, 1.5):
        least = conditional_minimum(probs, tau=tau).mean().item()
        own = comp_sum((probs.mean(0).log() / (2 - tau)).expand(40, 4), probs, tau=tau).mean().item()
        assert own - least <= gap_bound(best, least, tau=tau) + 1e-12


def test_difference_shift_is_the_length_of_the_differences():
    logits, moved = random_logits(6, 5), random_logits(6, 5, seed=1)
    for i, y in enumerate(LABELS.tolist()):
        change = [(moved[i, y] - moved[i, k] - logits[i, y] + logits[i, k]).item() for k in range(5) if k != y]
        assert difference_shift(logits, moved, LABELS)[i].item() == pytest.approx(math.sqrt(sum(c * c for c in change)), rel=1e-9)
    probs = random_logits(6, 5, seed=2).softmax(-1)
    mixed = sum(probs[:, y] * difference_shift(logits, moved, torch.full((6,), y)) for y in range(5))
    torch.testing.assert_close(difference_shift(logits, moved, probs), mixed)
    torch.testing.assert_close(difference_shift(logits, moved + 3, LABELS), difference_shift(logits, moved, LABELS))
    same = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(difference_shift(logits, same, LABELS).sum(), same)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_extreme_logits_stay_finite(dtype, tau):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, -torch.inf]], dtype=dtype).requires_grad_()
    labels = torch.tensor([1, 0, 0])
    loss = comp_sum(logits, labels, tau=tau)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()
    shift = difference_shift(logits, logits.detach() / 2, labels)
    assert torch.isfinite(torch.autograd.grad(shift.sum(), logits)[0]).all()
    assert comp_sum(logits[:0], labels[:0], tau=tau).shape == (0,)


def test_the_loss_goes_on_linearly_where_a_weight_would_be_huge():
    logits = torch.tensor([[0.0, 20.0], [0.0, 40.0], [0.0, 41.0]], requires_grad=True)
    loss = comp_sum(logits, torch.zeros(3, dtype=torch.long), tau=0.0)
    torch.testing.assert_close(loss[0], torch.tensor(math.exp(20.0)))
    torch.testing.assert_close(loss[2] - loss[1], torch.tensor(math.exp(30.0)), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient[:, 1], torch.tensor([math.exp(20.0), math.exp(30.0), math.exp(30.0)]), rtol=1e-5, atol=0)


def test_bad_input():
    logits = random_logits(2, 3)
    with pytest.raises(ValueError, match=r"^tau: expected a finite number >= 0, got -0.1$"):
        comp_sum(logits, torch.tensor([0, 1]), tau=-0.1)
    with pytest.raises(ValueError, match=r"^tau: expected a number below 2"):
        recovered_log_probs(logits, tau=2.0)
    with pytest.raises(ValueError, match=r"^targets: expected shape \(2, 3\) like logits, got \(2, 4\)$"):
        comp_sum(logits, random_logits(2, 4), tau=1.0)
    with pytest.raises(ValueError, match=r"^labels: expected values in \[0, 2\], got 3$"):
        comp_sum(logits, torch.tensor([0, 3]), tau=1.0)
    with pytest.raises(ValueError, match=r"^temperature: expected a finite number > 0"):
        comp_sum(logits, torch.tensor([0, 1]), tau=1.0, temperature=0.0)
    with pytest.raises(ValueError, match=r"^beta: expected a number in \[0, 1\], got 1.5$"):
        regret_transform(1.5, tau=1.0, num_classes=2)
    with pytest.raises(ValueError, match=r"^num_classes: expected at least 2, got 1$"):
        regret_bound(0.1, tau=1.0, num_classes=1)
    with pytest.raises(ValueError, match=r"^regret: expected a number >= 0, got -1.0$"):
        regret_bound(-1.0, tau=1.0, num_classes=2)
