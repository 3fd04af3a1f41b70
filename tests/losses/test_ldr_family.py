"""Label-distributionally robust losses."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from preceptor.losses.ldr import adaptation_cost, adapted, ldr, normalised

LABELS = torch.tensor([0, 3, 2, 1, 4, 4])
MEMBERS = ["kl", "cs", "top", "l2"]


def random_logits(*shape, scale=2.0, seed=0):
    return scale * torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def violations(logits, labels, margin):
    own = logits.gather(-1, labels[:, None])
    return logits - own + margin * (1 - F.one_hot(labels, logits.shape[-1]).double())


def test_one_without_margin_is_cross_entropy():
    logits = random_logits(6, 5).requires_grad_()
    loss, ce = ldr(logits, LABELS), F.cross_entropy(logits, LABELS, reduction="none")
    torch.testing.assert_close(loss, ce - math.log(5))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logits)[0], torch.autograd.grad(ce.sum(), logits)[0])


@pytest.mark.parametrize("lam", [1e-6, 1e-3, 0.5, 10.0, 90.0, 110.0, 1e6])
@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_reference(lam, margin):
    logits = random_logits(6, 5)
    got = ldr(logits, LABELS, lam=lam, margin=margin)
    for row, value in zip(violations(logits, LABELS, margin).tolist(), got.tolist(), strict=True):
        top = max(row)
        expected = top + lam * math.log(sum(math.exp((m - top) / lam) for m in row) / 5)
        assert value == pytest.approx(expected, rel=1e-8, abs=1e-8 + 1e-15 * lam + 2e-4 * (lam < 1e-4))


def test_limits():
    logits, m = random_logits(6, 5), violations(random_logits(6, 5), LABELS, 0.3)
    torch.testing.assert_close(
        ldr(logits, LABELS, lam=1e-3, margin=0.3), m.amax(-1), rtol=0, atol=1e-3 * math.log(5) + 1e-12
    )  # attained, up to rounding
    torch.testing.assert_close(ldr(logits, LABELS, lam=1e6, margin=0.3), m.mean(-1), rtol=0, atol=1e-4)
    precise = ldr(logits.float(), LABELS, lam=1e6, margin=0.3)
    torch.testing.assert_close(precise.double(), m.mean(-1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("member", MEMBERS)
def test_no_distribution_gains_more_and_the_gradient_is_the_worst_one(member):
    logits, margin, lam = random_logits(6, 5).requires_grad_(), 0.4, 1.3
    loss = ldr(logits, LABELS, lam=lam, margin=margin, member=member, top=2)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    p = gradient + F.one_hot(LABELS, 5)
    m = violations(logits.detach(), LABELS, margin)

    def gain(p):
        cost = {"kl": (p * (p * 5).log()).nansum(-1) if member == "kl" else 0, "l2": (p - 0.2).square().sum(-1) / 2}
        return (p * m).sum(-1) - lam * cost.get(member, 0.0)

    torch.testing.assert_close(p.sum(-1), torch.ones(6, dtype=torch.double))
    assert (p >= -1e-12).all()
    torch.testing.assert_close(gain(p), loss.detach())
    for seed in range(50):
        other = random_logits(6, 5, seed=seed, scale=3).softmax(-1)
        if member == "top" and (other > 0.5).any():
            other = other * 0 + 0.2
        assert (gain(other) <= loss.detach() + 1e-12).all()
    assert (gradient.abs().sum(-1) <= 2 + 1e-12).all()
    assert torch.autograd.gradcheck(lambda f: ldr(f, LABELS, lam=lam, margin=margin, member=member, normalise="softplus"), (logits,))


def test_the_largest_few():
    logits = random_logits(6, 5)
    m = violations(logits, LABELS, 0.4).sort(-1, descending=True).values
    torch.testing.assert_close(ldr(logits, LABELS, margin=0.4, member="top", top=1), ldr(logits, LABELS, margin=0.4, member="cs"))
    torch.testing.assert_close(ldr(logits, LABELS, margin=0.4, member="top", top=3), m[:, :3].mean(-1))
    torch.testing.assert_close(ldr(logits, LABELS, margin=0.4, member="top", top=9), m.mean(-1))


def test_convex_and_falling_with_lambda():
    one, other = random_logits(6, 5), random_logits(6, 5, seed=1)
    values = [ldr(one, LABELS, lam=lam, margin=0.1) for lam in (1e-5, 0.1, 1.0, 10.0, 1000.0)]
    assert all((a >= b - 1e-9).all() for a, b in itertools.pairwise(values))
    middle = ldr((one + other) / 2, LABELS, lam=0.7, margin=0.1)
    assert (middle <= (ldr(one, LABELS, lam=0.7, margin=0.1) + ldr(other, LABELS, lam=0.7, margin=0.1)) / 2 + 1e-12).all()
    largest = violations(one, LABELS, 0.1).amax(-1)
    assert (ldr(one, LABELS, lam=0.7, margin=0.1) >= largest - 0.7 * math.log(5)).all()


def test_the_mean_loss_is_least_where_softmax_of_f_over_lambda_is_the_truth():
    truth = random_logits(1, 4, scale=1.0).softmax(-1)
    best = 3.0 * truth.log()
    least = ldr(best, truth, lam=3.0)
    for seed in range(50):
        assert ldr(best + random_logits(1, 4, seed=seed, scale=0.5), truth, lam=3.0) > least
    symmetric = sum(ldr(best, torch.tensor([y]), lam=1e8) for y in range(4))
    torch.testing.assert_close(symmetric, torch.zeros(1, dtype=torch.double), rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalise", ["l1", "softplus"])
def test_normalised_scores(normalise):
    logits = random_logits(6, 5)
    scores = normalised(logits, normalise)
    torch.testing.assert_close(scores.abs().mean(-1), torch.ones(6, dtype=torch.double))
    if normalise == "l1":
        torch.testing.assert_close(normalised(7 * logits, "l1"), scores)
    else:
        assert (scores > 0).all()
    assert (normalised(torch.zeros(1, 3), "l1") == 0).all()


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("lam", [0.05, 1.0, 10.0, 1e5])
def test_soft_targets_mix_the_classes(member, lam):
    logits, probs = random_logits(6, 5), random_logits(6, 5, seed=1).softmax(-1)
    options = {"lam": lam, "margin": 0.3, "member": member, "top": 2}
    mixed = sum(probs[:, y] * ldr(logits, torch.full((6,), y), **options) for y in range(5))
    torch.testing.assert_close(ldr(logits, probs, **options), mixed, rtol=1e-6, atol=1e-8)


def test_one_lambda_per_item():
    logits, lam = random_logits(6, 5), torch.tensor([1e-5, 0.3, 1.0, 10.0, 200.0, 1e6], dtype=torch.double)
    single = torch.stack([ldr(logits[i : i + 1], LABELS[i : i + 1], lam=float(lam[i]), margin=0.1)[0] for i in range(6)])
    torch.testing.assert_close(ldr(logits, LABELS, lam=lam, margin=0.1), single)


def test_adapted_lambda():
    base, strength = 10.0, 2.0
    lam = torch.full((3,), base, dtype=torch.double)
    scores = torch.tensor([[0.0, 0.0, 0.0], [1e5, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.double)
    got = adapted(scores, lam, base=base, strength=strength, shift=0.0)
    assert got[0].item() == pytest.approx(base)
    assert got[1].item() == pytest.approx(base * (1 - 1 / strength))
    assert base * (1 - 1 / strength) < got[2] < base
    p = (scores[2] / base).softmax(-1)
    assert got[2].item() == pytest.approx(base * (1 - (p * (3 * p).log()).sum().item() / (strength * math.log(3))))
    assert torch.allclose(adapted(scores, lam, base=base, strength=1e9), lam)
    cost = adaptation_cost(got, 3, base=base, strength=strength)
    assert cost[1].item() == pytest.approx(0.5 * strength * math.log(3) / base * 25)


def test_the_adapted_lambda_maximises():
    scores, base, strength = random_logits(1, 4), 2.0, 1.5
    lam = torch.full((1,), base, dtype=torch.double)
    for _ in range(300):
        lam = adapted(scores, lam, base=base, strength=strength, shift=0.0)

    def value(lam):
        return ldr(scores, torch.tensor([0]), lam=lam) - adaptation_cost(lam, 4, base=base, strength=strength)

    for other in torch.linspace(0.3, 2.2, 40, dtype=torch.double):
        assert value(other[None]) <= value(lam) + 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("normalise", ["none", "l1", "softplus"])
@pytest.mark.parametrize("lam", [1e-5, 1.0, 1e5])
def test_extreme_logits_stay_finite(dtype, member, normalise, lam):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 1.0, -torch.inf], [0.0, 0.0, 0.0]], dtype=dtype).requires_grad_()
    labels = torch.tensor([1, 0, 0, 2])
    options = {"lam": lam, "member": member, "normalise": normalise, "margin": 0.1}
    for targets in (labels, F.one_hot(labels, 3).float()):
        loss = ldr(logits, targets, **options)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss).all()
        assert torch.isfinite(torch.autograd.grad(loss.sum(), logits)[0]).all()
    assert ldr(logits[:0], labels[:0], **options).shape == (0,)


def test_a_masked_class_takes_no_part():
    logits = random_logits(6, 5)
    masked = F.pad(logits, (0, 1), value=-torch.inf)
    for normalise in ("none", "l1", "softplus"):
        torch.testing.assert_close(
            ldr(masked, LABELS, margin=0.1, normalise=normalise), ldr(logits, LABELS, margin=0.1, normalise=normalise)
        )


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("normalise", ["none", "l1", "softplus"])
def test_a_row_of_masked_classes_alone_counts_as_uniform_and_has_no_gradient(member, normalise):
    logits = random_logits(6, 5)
    logits[2] = -torch.inf
    logits.requires_grad_()
    options = {"lam": 1.3, "margin": 0.4, "member": member, "top": 2, "normalise": normalise}
    for targets in (LABELS, random_logits(6, 5, seed=1).softmax(-1)):
        loss = ldr(logits, targets, **options)
        torch.testing.assert_close(loss[2:3], ldr(torch.zeros(1, 5, dtype=torch.double), targets[2:3], **options))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient.isfinite().all()
        assert (gradient[2] == 0).all()
    lam = adapted(normalised(logits, normalise), torch.ones(6), base=1.0, strength=2.0)
    assert lam.isfinite().all()
    assert lam[2].item() == pytest.approx(1.0)


def test_bad_input():
    logits = random_logits(2, 3)
    labels = torch.tensor([0, 1])
    for options, message in (
        ({"lam": 0.0}, r"^lam: expected a finite number > 0, got 0.0$"),
        ({"margin": -1.0}, r"^margin: expected a finite number >= 0, got -1.0$"),
        ({"member": "svm"}, r"^member: expected one of kl, cs, top, l2, got 'svm'$"),
        ({"normalise": "l7"}, r"^how: expected one of none, l1, softplus, got 'l7'$"),
        ({"lam": torch.ones(3)}, r"^lam: expected a number, or for kl shape \(2,\) \(one per item\), got \(3,\)$"),
    ):
        with pytest.raises(ValueError, match=message):
            ldr(logits, labels, **options)
    with pytest.raises(ValueError, match=r"^logits: expected at least 2 classes, got shape \(2, 1\)$"):
        ldr(logits[:, :1], labels * 0)
