import math

import pytest
import torch
import torch.nn.functional as F

from preceptor.losses.groups import lambdarank, listnet, positive_nll, ranknet

LOSSES = {
    "ranknet": lambda s, t, v=None: ranknet(s, t, v),
    "lambdarank": lambda s, t, v=None: lambdarank(s, t.clamp(0, 3), v),
    "listnet": lambda s, t, v=None: listnet(s, t, v, temperature=2.0),
    "positive_nll": lambda s, t, v=None: positive_nll(s, torch.zeros(len(s), dtype=torch.int64), v),
}
EACH = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def scores(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(shape, dtype=torch.double, generator=generator) for _ in range(2)]


@EACH
def test_a_constant_changes_nothing_and_gradients_of_a_group_sum_to_0(loss):
    s, t = scores(4, 6)
    shifts = torch.tensor([[3.0], [-2.0], [0.5], [9.0]], dtype=torch.double)
    torch.testing.assert_close(loss(s + shifts, t), loss(s, t))
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(s, t).sum(), s)
    torch.testing.assert_close(gradient.sum(dim=1), torch.zeros(4, dtype=torch.double))
    assert gradient.abs().max() > 0.01
    assert (loss(s, t) >= 0).all()


@EACH
def test_gradients_are_those_of_finite_differences(loss):
    s, t = scores(3, 4)
    assert torch.autograd.gradcheck(lambda x: loss(x, t), (s.requires_grad_(),))


@EACH
def test_padding_has_no_influence_whatever_stands_there(loss):
    s, t = scores(3, 6)
    valid = torch.arange(6).expand(3, 6) < torch.tensor([[6], [4], [2]])
    s[~valid], t[~valid] = 50.0, torch.nan
    s.requires_grad_()
    found = loss(s, t, valid)
    for row, size in enumerate((6, 4, 2)):
        torch.testing.assert_close(found[row : row + 1], loss(s[row : row + 1, :size], t[row : row + 1, :size]))
    (gradient,) = torch.autograd.grad(found.sum(), s)
    assert (gradient[~valid] == 0).all()


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_before_differences(loss, dtype):
    s, t = (x.to(dtype) for x in scores(3, 5))
    torch.testing.assert_close(loss(s, t), loss(s.float(), t.float()))


@EACH
def test_huge_gaps_and_lone_passages_stay_finite(loss):
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    found = loss(s, -s.detach())
    (gradient,) = torch.autograd.grad(found.sum(), s)
    assert found.isfinite().all()
    assert gradient.isfinite().all()
    alone = torch.ones(2, 1, requires_grad=True)
    found = loss(alone, alone.detach())
    assert torch.equal(found, torch.zeros(2))
    assert torch.equal(torch.autograd.grad(found.sum(), alone)[0], torch.zeros(2, 1))


def test_ranknet_is_a_slow_loop():
    s, t = scores(2, 4)
    for row in range(2):
        a, b, total = s[row].tolist(), t[row].tolist(), 0.0
        for i in range(4):
            for j in range(i + 1, 4):
                p, q = (1 / (1 + math.exp(-(x[i] - x[j]))) for x in (b, a))
                total -= p * math.log(q) + (1 - p) * math.log(1 - q)
        assert ranknet(s, t)[row].item() == pytest.approx(total / 6, rel=1e-12)


def test_ranknet_is_least_where_gaps_agree():
    s, t = scores(5, 6)
    first, second = torch.triu_indices(6, 6, offset=1)
    p = torch.sigmoid(t[:, first] - t[:, second])
    least = (torch.special.entr(p) + torch.special.entr(1 - p)).mean(dim=1)
    torch.testing.assert_close(ranknet(t + 7, t), least)
    assert (ranknet(s, t) > least + 0.01).all()
    even = ranknet(torch.zeros(1, 3), torch.full((1, 3), 4.0))
    torch.testing.assert_close(even, torch.full((1,), math.log(2)))


def test_ranknet_of_two_is_a_two_way_cross_entropy():
    s, t = scores(5, 2)
    torch.testing.assert_close(ranknet(s, t), -(torch.softmax(t, dim=1) * torch.log_softmax(s, dim=1)).sum(dim=1))


def test_ranknet_has_the_gradient_of_the_card():
    s, t = scores(3, 5)
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(ranknet(s, t).mean(), s)
    apart = torch.sigmoid(s[:, :, None] - s[:, None]) - torch.sigmoid(t[:, :, None] - t[:, None])
    torch.testing.assert_close(gradient, 2 / (3 * 5 * 4) * apart.sum(dim=2))


def test_listnet_is_0_exactly_where_scores_differ_by_a_constant():
    s, t = scores(3, 5)
    torch.testing.assert_close(listnet(t - 3, t), torch.zeros(3, dtype=torch.double), atol=1e-14, rtol=0)
    assert (listnet(s, t) > 0.01).all()


def test_listnet_at_high_temperature_pulls_on_centred_scores():
    s, t = scores(3, 5)
    s.requires_grad_()
    temperature = 1e4
    (gradient,) = torch.autograd.grad(temperature**2 * listnet(s, t, temperature=temperature).mean(), s)
    centred = (s - s.mean(dim=1, keepdim=True)) - (t - t.mean(dim=1, keepdim=True))
    torch.testing.assert_close(gradient, centred.detach() / 5 / 3, rtol=1e-3, atol=1e-4)


def test_lambdarank_is_a_slow_loop():
    s, _ = scores(1, 5)
    rel = [2.0, 0.0, 1.0, 1.0, 3.0]
    a = s[0].tolist()
    ranks = {i: rank for rank, i in enumerate(sorted(range(5), key=lambda i: -a[i]), start=1)}
    discount = {i: 1 / math.log2(1 + ranks[i]) for i in range(5)}
    ideal = sum((2**r - 1) / math.log2(1 + k) for k, r in enumerate(sorted(rel, reverse=True), start=1))
    pairs = [(i, j) for i in range(5) for j in range(5) if rel[i] > rel[j]]
    total = sum(
        abs((2 ** rel[i] - 2 ** rel[j]) * (discount[i] - discount[j])) / ideal * math.log(1 + math.exp(a[j] - a[i])) for i, j in pairs
    )
    assert lambdarank(s, torch.tensor([rel])).item() == pytest.approx(total / len(pairs), rel=1e-12)
    assert lambdarank(s, torch.ones(1, 5)).item() == 0


def test_the_positive_may_stand_anywhere():
    s, _ = scores(3, 4)
    places = torch.tensor([2, 0, 3])
    torch.testing.assert_close(positive_nll(s, places), F.cross_entropy(s, places, reduction="none"))
    with pytest.raises(ValueError, match="positive: expected a position where valid"):
        positive_nll(s, places, torch.arange(4).expand(3, 4) < 3)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="valid: expected bool"):
        ranknet(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="teacher: expected 3"):
        ranknet(torch.zeros(2, 3), torch.zeros(2, 4))
