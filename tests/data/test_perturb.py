import re

import pytest
import torch
import torch.nn.functional as F
import torchattacks
from torch import nn

from preceptor.data.perturb import ascend, fgsm, margin_attack, pgd, random_search


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 4)).train()


def batch():
    return torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 4


def loss(net, x, y):
    net = net.eval()
    value = F.cross_entropy(net(x), y, reduction="none").detach()
    net.train()
    return value


@pytest.mark.parametrize("seed", [None, 3])
def test_pgd_raises_the_loss_within_ball_and_box(seed):
    net, (x, y) = model(), batch()
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    moved = pgd(net, x, y, epsilon=0.1, step_size=0.02, generator=generator)
    plain, attacked = loss(net, x, y), loss(net, moved, y)
    assert (attacked > plain).all()
    noise = torch.Generator().manual_seed(7)
    for _ in range(20):  # no random corner of the ball comes near
        corner = (x + 0.1 * torch.randint(0, 2, x.shape, generator=noise).mul(2).sub(1)).clamp(0, 1)
        assert attacked.mean() - plain.mean() > 1.5 * (loss(net, corner, y).mean() - plain.mean())
    assert (moved - x).abs().max() <= 0.1 + 1e-6
    assert (moved >= 0).all()
    assert (moved <= 1).all()
    assert not moved.requires_grad


def test_more_steps_raise_it_more_and_the_sign_matters():
    net, (x, y) = model(), batch()
    losses = [loss(net, pgd(net, x, y, epsilon=0.1, step_size=0.01, steps=steps), y).mean() for steps in (1, 3, 10)]
    assert losses[0] < losses[1] < losses[2]


def test_fgsm_of_a_linear_model_is_known():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double()
    x, y = torch.tensor([[[[0.5, 0.02, 0.98, 0.3]]]], dtype=torch.double), torch.tensor([0])
    weight = net[1].weight.detach()
    direction = (weight[1] - weight[0]).sign()  # the loss falls with the margin (w_0 - w_1) x
    torch.testing.assert_close(fgsm(net, x, y, epsilon=0.05), (x + 0.05 * direction).clamp(0, 1))


def test_a_ball_of_no_size_gives_the_inputs_back():
    net, (x, y) = model(), batch()
    assert torch.equal(pgd(net, x, y, epsilon=0.0), x)


def test_the_first_gradient_is_taken_at_the_start():
    x = torch.tensor([[0.4, 0.6]])
    options = {"epsilon": 0.3, "step_size": 0.1, "steps": 1}
    away = [ascend(lambda moved: (moved - 0.5).square().sum(), x, start=start, **options) for start in (None, x.flip(1))]
    torch.testing.assert_close(away, [torch.tensor([[0.3, 0.7]]), torch.tensor([[0.7, 0.3]])])


def test_pgd_equals_torchattacks():
    net, (x, y) = model().eval(), batch()
    theirs = torchattacks.PGD(net, eps=0.1, alpha=0.02, steps=7, random_start=False)(x, y)
    torch.testing.assert_close(pgd(net, x, y, epsilon=0.1, step_size=0.02, steps=7), theirs)
    theirs = torchattacks.FGSM(net, eps=0.1)(x, y)
    torch.testing.assert_close(fgsm(net, x, y, epsilon=0.1), theirs)


def lead(net, x, y, target=None):
    logits = net.eval()(x).detach()
    net.train()
    best = logits.scatter(1, y[:, None], -torch.inf).amax(1) if target is None else logits.gather(1, target[:, None]).squeeze(1)
    return best - logits.gather(1, y[:, None]).squeeze(1)


def test_margin_attacks_raise_the_lead_they_are_after():
    net, (x, y) = model(), batch()
    options = {"epsilon": 0.1, "step_size": 0.02}
    assert (lead(net, margin_attack(net, x, y, **options), y) > lead(net, x, y)).all()
    others = net.eval()(x).scatter(1, y[:, None], -torch.inf).sort(dim=1, descending=True).indices
    net.train()
    moved = [margin_attack(net, x, y, **options, rank=rank) for rank in (1, 2, 3)]
    for rank, attacked in enumerate(moved):
        gains = [(lead(net, other, y, others[:, rank]) - lead(net, x, y, others[:, rank])).mean() for other in moved]
        assert max(gains) == gains[rank] > 0
        assert (attacked - x).abs().max() <= 0.1 + 1e-6
    with pytest.raises(ValueError, match=r"^rank: expected one of the 3 other classes, from 1, got 4$"):
        margin_attack(net, x, y, rank=4)


def test_random_search_raises_the_lead_without_gradients():
    net, (x, y) = model(), batch()
    first, again, longer = (
        random_search(net, x, y, epsilon=0.1, steps=n, generator=torch.Generator().manual_seed(3)) for n in (20, 20, 200)
    )
    assert torch.equal(first, again)
    assert (lead(net, longer, y) > lead(net, x, y)).all()
    assert lead(net, x, y).mean() < lead(net, first, y).mean() < lead(net, longer, y).mean()
    by_gradient = lead(net, margin_attack(net, x, y, epsilon=0.1, step_size=0.02), y).mean() - lead(net, x, y).mean()
    assert lead(net, longer, y).mean() - lead(net, x, y).mean() > 0.7 * by_gradient
    assert (longer - x).abs().max() <= 0.1 + 1e-6
    assert (longer >= 0).all()
    assert (longer <= 1).all()
    assert random_search(net, x[:0], y[:0], generator=torch.Generator()).shape == (0, 1, 4, 4)
    with pytest.raises(ValueError, match=r"^steps: expected at least 1, got 0$"):
        random_search(net, x, y, steps=0, generator=torch.Generator())


def test_the_model_is_left_as_it_was():
    net, (x, y) = model(), batch()
    net[0].eval()
    modes = [m.training for m in net.modules()]
    net[5].weight.grad = torch.full_like(net[5].weight, 7.0)
    buffers = [b.clone() for b in net.buffers()]
    original = x.clone()
    with torch.no_grad():
        moved = pgd(net, x, y)
    assert torch.equal(x, original)
    assert [m.training for m in net.modules()] == modes
    assert (net[5].weight.grad == 7).all()
    assert all(p.grad is None for p in net.parameters() if p is not net[5].weight)
    assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True))
    assert torch.equal(moved, pgd(net, x, y))  # dropout is off: no draw from the global generator


def test_an_example_does_not_depend_on_its_batch_and_none_is_fine():
    net, (x, y) = model().double(), batch()
    whole = pgd(net, x.double(), y)
    torch.testing.assert_close(pgd(net, x[3:5].double(), y[3:5]), whole[3:5])
    assert pgd(net, x[:0].double(), y[:0]).shape == (0, 1, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -0.1}, "epsilon: expected at least 0, got -0.1"),
        ({"step_size": 0.0}, "step_size: expected a number above 0, got 0.0"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
    ],
)
def test_bad_settings(options, message):
    x, y = batch()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        pgd(model(), x, y, **options)


def test_a_start_beside_a_generator_is_refused():
    x, y = batch()
    with pytest.raises(ValueError, match=r"^start: expected none beside a generator, got both$"):
        pgd(model(), x, y, start=x, generator=torch.Generator())


def test_inputs_outside_the_box_are_refused():
    x, y = batch()
    with pytest.raises(ValueError, match=r"^x: expected inputs in \[0, 1\], got .* to 2$"):
        pgd(model(), torch.where(x == x.max(), 2.0, x), y)


def test_ascent_of_a_linear_objective_reaches_the_far_point_of_the_ball():
    weight = torch.tensor([[3.0, -4.0, 0.0]], dtype=torch.double)
    x = torch.zeros(2, 3, dtype=torch.double)
    far = {"max": torch.tensor([0.5, -0.5, 0.0]), "euclid": torch.tensor([0.3, -0.4, 0.0])}
    for norm, point in far.items():
        moved = ascend(lambda z: (z * weight).sum(), x, epsilon=0.5, step_size=0.2, steps=5, norm=norm, box=None)
        torch.testing.assert_close(moved, point.double().expand(2, 3))
    boxed = ascend(lambda z: (z * weight).sum(), x, epsilon=0.5, step_size=0.2, steps=5, box=(-0.1, 0.2))
    torch.testing.assert_close(boxed, torch.tensor([[0.2, -0.1, 0.0]], dtype=torch.double).expand(2, 3))


@pytest.mark.parametrize("norm", ["max", "euclid"])
def test_a_random_start_stays_in_the_ball_and_depends_on_the_generator_alone(norm):
    x, _ = batch()
    options = {"epsilon": 0.1, "step_size": 1e-9, "steps": 1, "norm": norm}
    first, again, other = (ascend(lambda z: z.sum(), x, generator=torch.Generator().manual_seed(seed), **options) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    change = (first - x).flatten(1)
    assert 0.01 < (change.abs().amax(1) if norm == "max" else change.norm(dim=1)).max() <= 0.1 + 1e-6


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match=r"^norm: expected one of max, euclid, got 'l7'$"):
        ascend(lambda z: z.sum(), batch()[0], epsilon=0.1, step_size=0.1, steps=1, norm="l7")
