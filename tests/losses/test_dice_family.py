"""Dice, Tversky and focal losses."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from preceptor.losses.dice import damped_probs, dice_loss, focal_loss, tversky_loss

Y = torch.tensor([1, 0, 0, 1, 0, 0, 0, 1])
LABELS = torch.tensor([0, 3, 2, 1, 3, 3])


def random_logits(*shape, scale=2.0, seed=0):
    return scale * torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def sure(yes):
    """Logits of hard predictions."""
    return torch.where(yes.bool(), 1e4, -1e4).double()


def logit(p):
    return math.log(p / (1 - p))


def slow_dice(p, y, *, alpha, smooth, square):
    """From lists of probabilities and targets, as the equation is printed."""
    u = [(1 - a) ** alpha * a for a in p]
    power = 2 if square else 1
    return 1 - (2 * sum(a * b for a, b in zip(u, y, strict=True)) + smooth) / (sum(a**power for a in u) + sum(b**power for b in y) + smooth)


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def softmax(row):
    total = sum(map(math.exp, row))
    return [math.exp(z) / total for z in row]


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("square", [False, True])
def test_reference_of_one_class(alpha, square):
    z, soft = random_logits(8), random_logits(8, seed=1).sigmoid()
    for y in (Y, soft):
        options = {"alpha": alpha, "smooth": 0.3, "square": square}
        p = [sigmoid(v) for v in z.tolist()]
        whole = slow_dice(p, y.tolist(), **options)
        alone = [slow_dice([a], [b], **options) for a, b in zip(p, y.tolist(), strict=True)]
        for logits in (z, z[:, None], z.view(2, 4, 1)):
            targets = y if logits.ndim < 3 else y.view(2, 4)
            assert dice_loss(logits, targets, **options).item() == pytest.approx(whole, rel=1e-12)
            each = dice_loss(logits, targets, level="example", **options)
            assert each.shape == targets.shape
            assert each.flatten().tolist() == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("square", [False, True])
def test_reference_of_several_classes(alpha, square):
    z, options = random_logits(6, 4), {"alpha": alpha, "smooth": 0.3, "square": square}
    soft = random_logits(6, 4, seed=1).softmax(-1)
    rows = [softmax(row) for row in z.tolist()]
    for given_as, y in ((LABELS, F.one_hot(LABELS, 4)), (F.one_hot(LABELS, 4), F.one_hot(LABELS, 4)), (soft, soft)):
        whole = [slow_dice([r[k] for r in rows], y[:, k].tolist(), **options) for k in range(4)]
        alone = [[slow_dice([r[k]], [y[i, k].item()], **options) for k in range(4)] for i, r in enumerate(rows)]
        assert dice_loss(z, given_as, **options).item() == pytest.approx(sum(whole) / 4, rel=1e-12)
        assert dice_loss(z, given_as, class_reduction="sum", **options).item() == pytest.approx(sum(whole), rel=1e-12)
        assert dice_loss(z, given_as, classes=(1, 3), **options).item() == pytest.approx((whole[1] + whole[3]) / 2, rel=1e-12)
        each = dice_loss(z, given_as, level="example", class_reduction="sum", **options)
        assert each.tolist() == pytest.approx([sum(row) for row in alone], rel=1e-12)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_hard_predictions_cost_one_minus_f1_and_depend_on_the_sum_of_errors_alone(pairs):
    yes, y = (torch.tensor(column) for column in zip(*pairs, strict=True))
    for square in (False, True):
        loss = dice_loss(sure(yes), y, smooth=1e-12, square=square).item()
        assert loss == pytest.approx(1 - f1_score(y, yes, zero_division=1.0), abs=1e-10)
        assert dice_loss(sure(y), yes, smooth=1e-12, square=square).item() == pytest.approx(loss, abs=1e-12)  # misses <-> false alarms


def test_several_classes_are_macro_f1_of_hard_predictions():
    guess = torch.tensor([0, 1, 2, 1, 3, 2])
    loss = dice_loss(1e4 * F.one_hot(guess, 4).double(), LABELS, smooth=1e-12)
    assert loss.item() == pytest.approx(1 - f1_score(LABELS, guess, average="macro"), abs=1e-10)


def test_tversky():
    z = random_logits(8)
    torch.testing.assert_close(tversky_loss(z, Y, a=0.5, b=0.5, smooth=0.7), dice_loss(z, Y, smooth=1.4))
    misses, alarms = Y.clone(), Y.clone()
    misses[0], alarms[1] = 0, 1  # one miss; one false alarm
    for a, b in ((0.7, 0.3), (0.3, 0.7)):
        cost = [tversky_loss(sure(guess), Y, a=a, b=b, smooth=1e-12).item() for guess in (misses, alarms)]
        assert cost == pytest.approx([b / (2 + b), a / (3 + a)], abs=1e-10)
    several = tversky_loss(random_logits(6, 4), LABELS, a=0.5, b=0.5, smooth=0.2, classes=(0, 2), class_reduction="sum")
    torch.testing.assert_close(several, dice_loss(random_logits(6, 4), LABELS, smooth=0.4, classes=(0, 2), class_reduction="sum"))
    mask = torch.tensor([1.0, 1, 0, 0, 1, 1, 1, 0])
    torch.testing.assert_close(tversky_loss(z, Y, a=0.2, b=2.0, mask=mask), tversky_loss(z[mask > 0], Y[mask > 0], a=0.2, b=2.0))


def test_perfect_predictions_cost_nothing():
    for square in (False, True):
        assert dice_loss(sure(Y), Y, square=square).item() == 0
        assert dice_loss(sure(Y * 0), Y * 0, square=square).item() == 0  # no positives
        assert (dice_loss(sure(Y), Y, square=square, level="example") == 0).all()
        assert dice_loss(1e4 * F.one_hot(LABELS, 4).double(), LABELS, square=square).item() == 0
    assert tversky_loss(sure(Y), Y, a=0.3, b=0.7).item() == 0


@pytest.mark.parametrize("square", [False, True])
def test_copies_and_easy_negatives_change_nothing(square):
    z = random_logits(8)
    loss = dice_loss(z, Y, smooth=0.2, square=square, alpha=0.5)
    torch.testing.assert_close(dice_loss(z.repeat(3), Y.repeat(3), smooth=0.6, square=square, alpha=0.5), loss)
    weighed = dice_loss(z, Y, mask=torch.full((8,), 3.0), smooth=0.6, square=square, alpha=0.5)
    torch.testing.assert_close(weighed, loss)
    more, zeros = torch.cat([z, torch.full((50,), -1e4)]), torch.cat([Y, torch.zeros(50, dtype=torch.int64)])
    torch.testing.assert_close(dice_loss(more, zeros, smooth=0.2, square=square, alpha=0.5), loss)
    ce = F.binary_cross_entropy_with_logits
    assert ce(more, zeros.double()) < ce(z, Y.double()) / 2


def test_the_gradient_by_p():
    p = random_logits(8).sigmoid().requires_grad_()
    gamma, y = 0.3, Y.double()
    for alpha in (0.0, 0.7, 2.0):
        (gradient,) = torch.autograd.grad(dice_loss(torch.logit(p), Y, smooth=gamma, square=True, alpha=alpha), p)
        u = ((1 - p) ** alpha * p).detach()
        above, below = 2 * (u * y).sum() + gamma, u.square().sum() + y.sum() + gamma
        by_u = -2 * y / below + 2 * u * above / below**2
        torch.testing.assert_close(gradient, by_u * (1 - p.detach()) ** (alpha - 1) * (1 - (1 + alpha) * p.detach()))


@pytest.mark.parametrize("level", ["set", "example"])
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.01, 1.0])
def test_gradcheck(level, square, alpha):
    options = {"level": level, "square": square, "alpha": alpha}
    assert torch.autograd.gradcheck(lambda z: dice_loss(z, Y, **options), (random_logits(8).requires_grad_(),))
    assert torch.autograd.gradcheck(lambda z: dice_loss(z, LABELS, **options), (random_logits(6, 4).requires_grad_(),))


def test_gradcheck_of_the_others():
    z, many = random_logits(8).requires_grad_(), random_logits(6, 4).requires_grad_()
    for function in (lambda z, y: tversky_loss(z, y, a=0.3, b=0.7), lambda z, y: focal_loss(z, y, gamma=1.5)):
        assert torch.autograd.gradcheck(lambda z, f=function: f(z, Y), (z,))
        assert torch.autograd.gradcheck(lambda z, f=function: f(z, LABELS), (many,))


@pytest.mark.parametrize("alpha", [0.01, 0.5, 1.0, 3.0])
def test_a_positive_is_cheapest_at_one_over_one_plus_alpha(alpha):
    best = torch.tensor(logit(1 / (1 + alpha)), dtype=torch.double)
    z = best + torch.linspace(-3, 3, 61, dtype=torch.double)
    for square in (False, True):
        for level in ("set", "example"):
            for smooth in (1.0, 1e-4):
                options = {"alpha": alpha, "square": square, "smooth": smooth, "level": level}
                loss = torch.stack([dice_loss(v[None], torch.ones(1), **options).squeeze() for v in z])
                assert loss.argmin() == 30
                negative = torch.stack([dice_loss(v[None], torch.zeros(1), **options).squeeze() for v in z])
                assert negative.argmax() == 30  # beyond it a false alarm is cheaper the surer it is


@pytest.mark.parametrize("level", ["set", "example"])
@pytest.mark.parametrize("alpha", [0.01, 1.0, 3.0])
def test_with_the_factor_held_constant_slopes_have_the_signs_of_alpha_zero(level, alpha):
    z, many = random_logits(8, scale=3).requires_grad_(), random_logits(6, 1, scale=3).requires_grad_()
    for logits, y in ((z, Y), (many, Y[:6])):
        for square in (False, True):
            options = {"square": square, "level": level}
            held = dice_loss(logits, y, alpha=alpha, detach_factor=True, **options).sum()
            plain = dice_loss(logits, y, **options).sum()
            slopes = [torch.autograd.grad(loss, logits)[0].sign() for loss in (held, plain)]
            torch.testing.assert_close(slopes[0], slopes[1])
            torch.testing.assert_close(held, dice_loss(logits, y, alpha=alpha, **options).sum())
    turned = torch.autograd.grad(dice_loss(z, Y, alpha=3.0, level=level).sum(), z)[0].sign()
    assert (turned != slopes_of_targets(Y)).any()


def slopes_of_targets(y):
    return torch.where(y > 0, -1.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("detach_factor", [False, True])
def test_extreme_logits_stay_finite_and_right(dtype, alpha, detach_factor):
    for size in (17.0, 100.0, 1e4):
        z = torch.tensor([size, -size, size, -size, 0.0], dtype=dtype).requires_grad_()
        y = torch.tensor([1, 1, 0, 0, 1])
        rows = torch.stack([z.detach(), -z.detach(), torch.zeros(5, dtype=dtype)], -1).requires_grad_()
        labels = torch.tensor([0, 0, 1, 1, 2])
        for logits, targets in ((z, y), (rows, labels), (rows, F.one_hot(labels, 3).to(dtype))):
            for level in ("set", "example"):
                for square in (False, True):
                    options = {"alpha": alpha, "level": level, "square": square, "detach_factor": detach_factor}
                    loss = dice_loss(logits, targets, **options)
                    exact = dice_loss(logits.detach().double(), targets, **options)
                    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
                    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)
                    assert torch.isfinite(torch.autograd.grad(loss.sum(), logits)[0]).all()
            for loss in (focal_loss(logits, targets, gamma=0.01), tversky_loss(logits, targets, a=0.3, b=0.7)):
                assert torch.isfinite(loss).all()
                assert torch.isfinite(torch.autograd.grad(loss.sum(), logits)[0]).all()


def test_the_power_is_precise_where_one_minus_p_rounds_to_zero():
    z = torch.tensor([40.0, 3.0], requires_grad=True)
    u = damped_probs(z, alpha=0.5)[:, 0]
    assert u[0].item() == pytest.approx(math.exp(-20), rel=1e-5)
    assert torch.autograd.grad(u.sum(), z)[0][0].item() == pytest.approx(-0.5 * math.exp(-20), rel=1e-5)
    rows = torch.tensor([[40.0, 0.0, -torch.inf]])
    assert damped_probs(rows, alpha=0.5)[0].tolist() == pytest.approx([math.exp(-20), math.exp(-40), 0.0], rel=1e-5, abs=1e-30)


def test_masked_classes_and_infinite_logits():
    z = random_logits(6, 4)
    with_masked = F.pad(z, (0, 1), value=-torch.inf).requires_grad_()
    options = {"alpha": 0.3, "classes": (0, 1, 2, 3)}
    torch.testing.assert_close(dice_loss(with_masked, LABELS, **options), dice_loss(z, LABELS, **options))
    lone = torch.full((2, 3), -torch.inf).index_fill(1, torch.tensor(1), 2.0).requires_grad_()
    nothing = torch.full((2, 3), -torch.inf, requires_grad=True)
    binary = torch.tensor([torch.inf, -torch.inf], requires_grad=True)
    for logits in (with_masked, lone, nothing, binary):
        labels = torch.zeros(len(logits), dtype=torch.int64)
        for alpha in (0.0, 0.01, 1.0):
            for level in ("set", "example"):
                loss = dice_loss(logits, labels, alpha=alpha, level=level).sum()
                assert torch.isfinite(loss)
                assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()
            loss = focal_loss(logits, labels, gamma=alpha).sum()
            assert torch.isfinite(loss)
            assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()
    assert (torch.autograd.grad(dice_loss(nothing, labels), nothing)[0] == 0).all()


@pytest.mark.parametrize("level", ["set", "example"])
def test_masked_items_cost_nothing_and_change_nothing(level):
    mask = torch.tensor([1.0, 0, 1, 1, 0, 1])
    for z, y in ((random_logits(6, 4), LABELS), (random_logits(6), Y[:6]), (random_logits(6, 4), random_logits(6, 4, seed=1).softmax(-1))):
        spoiled, lost = z.clone(), y.clone()
        spoiled[mask == 0] = torch.nan
        lost[mask == 0] = torch.nan if y.is_floating_point() else -100
        spoiled.requires_grad_()
        loss = dice_loss(spoiled, lost, mask=mask, level=level, alpha=0.5, smooth=0.2)
        expected = dice_loss(z[mask > 0], y[mask > 0], level=level, alpha=0.5, smooth=0.2)
        torch.testing.assert_close(loss if level == "set" else loss[mask > 0], expected)
        (gradient,) = torch.autograd.grad(loss.sum(), spoiled)
        assert (gradient[mask == 0] == 0).all()
        assert (gradient[mask > 0] != 0).all()
        nothing = dice_loss(spoiled, lost.clone(), mask=mask * 0, level=level)
        assert (nothing == 0).all()
        assert (torch.autograd.grad(nothing.sum(), spoiled)[0] == 0).all()
    empty = random_logits(0, 4).requires_grad_()
    nothing = dice_loss(empty, LABELS[:0], level=level)
    assert nothing.shape == (() if level == "set" else (0,))
    assert nothing.sum().requires_grad
    assert nothing.sum() == 0


def test_tokens_are_a_set_too():
    z, labels = random_logits(2, 3, 4), LABELS.view(2, 3)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    keep = mask.bool()
    torch.testing.assert_close(dice_loss(z, labels, mask=mask), dice_loss(z[keep], labels[keep]))
    assert dice_loss(z, labels, level="example").shape == (2, 3)


def test_absent_classes():
    z, labels = random_logits(6, 4), torch.tensor([0, 2, 0, 0, 0, 0])
    absent = dice_loss(z, labels, classes=(1, 3))
    p = z.softmax(-1)[:, 1].sum()
    torch.testing.assert_close(dice_loss(z, labels, classes=(1,)), 1 - 1 / (p + 1))
    assert absent > 0
    torch.testing.assert_close(dice_loss(z, labels, skip_absent=True), dice_loss(z, labels, classes=(0, 2)))
    torch.testing.assert_close(
        dice_loss(z, labels, skip_absent=True, class_reduction="sum"), dice_loss(z, labels, classes=(0, 2), class_reduction="sum")
    )
    z.requires_grad_()
    none = dice_loss(z, labels, skip_absent=True, classes=(1, 3))
    assert none == 0
    assert (torch.autograd.grad(none, z)[0] == 0).all()


@pytest.mark.parametrize(("ratio", "kept"), [(0.1, 1), (1 / 3, 1), (0.5, 2), (1.0, 3), (4 / 3, 4), (9.0, 5)])
def test_only_the_hardest_negatives_stay(ratio, kept):
    z = random_logits(8)
    positives, negatives = (Y == 1).nonzero()[:, 0], (Y == 0).nonzero()[:, 0]
    hardest = negatives[z[negatives].argsort(descending=True)[:kept]]
    chosen = torch.cat([positives, hardest])
    torch.testing.assert_close(dice_loss(z, Y, ohem_ratio=ratio), dice_loss(z[chosen], Y[chosen]))


def test_hardest_negatives_of_each_class_without_masked_items_and_with_ties():
    z, mask = random_logits(6, 4), torch.tensor([1, 1, 1, 1, 0, 0])
    z[4] = torch.tensor([9.0, -9, -9, -9])  # the hardest of class 0, but masked
    expected = []
    for k in range(4):
        rest = [i for i in range(4) if LABELS[i] != k]
        own = [i for i in range(4) if LABELS[i] == k]
        rest.sort(key=lambda i, k=k: -z[i].softmax(-1)[k].item())
        chosen = torch.tensor(own + rest[: len(own)])
        expected.append(dice_loss(z[chosen], LABELS[chosen], classes=(k,)))
    torch.testing.assert_close(dice_loss(z, LABELS, mask=mask, ohem_ratio=1.0), torch.stack(expected).mean())
    tied = dice_loss(torch.zeros(8), Y, ohem_ratio=1.0)  # three of five equal negatives
    assert tied.item() == pytest.approx(1 - (2 * 1.5 + 1) / (3 + 3 + 1))
    z = random_logits(4).requires_grad_()
    none = dice_loss(z, torch.zeros(4), ohem_ratio=1.0)
    assert none == 0
    assert (torch.autograd.grad(none, z)[0] == 0).all()


def test_focal():
    z, many = random_logits(8), random_logits(6, 4)
    ce = F.cross_entropy(many, LABELS, reduction="none")
    torch.testing.assert_close(focal_loss(many, LABELS, gamma=0.0), ce)
    torch.testing.assert_close(focal_loss(many, LABELS, gamma=1.3), (1 - (-ce).exp()) ** 1.3 * ce)
    torch.testing.assert_close(focal_loss(many, F.one_hot(LABELS, 4).double()), focal_loss(many, LABELS))
    torch.testing.assert_close(focal_loss(z, Y), focal_loss(torch.stack([torch.zeros(8), z], -1), Y))
    torch.testing.assert_close(focal_loss(z[:, None], Y[:, None]), focal_loss(z, Y))


def test_one_class_of_two_is_a_class_of_its_own():
    z = random_logits(8)
    two = torch.stack([torch.zeros(8), z], -1)
    for options in ({}, {"alpha": 0.7, "square": True}, {"level": "example"}, {"ohem_ratio": 1.0}):
        torch.testing.assert_close(dice_loss(two, Y, classes=(1,), **options), dice_loss(z, Y, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, r"^alpha: expected a finite number >= 0, got -0.1$"),
        ({"ohem_ratio": -1.0}, r"^ohem_ratio: expected a finite number >= 0, got -1.0$"),
        ({"smooth": 0.0}, r"^smooth: expected a finite number > 0, got 0.0$"),
        ({"level": "batch"}, r"^level: expected one of set, example, got 'batch'$"),
        ({"class_reduction": "max"}, r"^class_reduction: expected one of mean, sum, got 'max'$"),
        ({"classes": (0, 4)}, r"^classes: expected at least one, each in \[0, 3\], got \(0, 4\)$"),
        ({"classes": ()}, r"^classes: expected at least one, each in \[0, 3\], got \(\)$"),
        ({"mask": torch.ones(6, 4)}, r"^mask: expected shape \(6,\), one per item, got \(6, 4\)$"),
        (
            {"level": "example", "ohem_ratio": 1.0},
            r"^level: expected set with skip_absent or ohem_ratio, which relate the items, got 'example'$",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        dice_loss(random_logits(6, 4), LABELS, **options)


@pytest.mark.parametrize(
    ("logits", "targets", "error", "message"),
    [
        (torch.zeros(3), torch.tensor([0, 1, 2]), ValueError, r"^targets: expected 0 or 1, got 2$"),
        (torch.zeros(3), torch.tensor([0, 1, 1.5]), ValueError, r"^targets: expected numbers in \[0, 1\], got 1.5$"),
        (torch.zeros(3), torch.tensor([0, 1, torch.nan]), ValueError, r"^targets: expected numbers in \[0, 1\], got nan$"),
        (torch.zeros(3), torch.zeros(4), ValueError, r"^targets: expected shape \(3,\) or \(3, 1\), got \(4,\)$"),
        (torch.zeros(3, 2), torch.zeros(3, 4), ValueError, r"^targets: expected shape \(3,\) or \(3, 2\), got \(3, 4\)$"),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), ValueError, r"^labels: expected values in \[0, 1\], got 2$"),
        (torch.zeros(3, 2), torch.zeros(3), TypeError, r"^labels: expected integers, got torch.float32$"),
        (torch.zeros(3).long(), torch.zeros(3), TypeError, r"^logits: expected a floating-point tensor, got torch.int64$"),
        (torch.zeros(()), torch.zeros(()), ValueError, r"^logits: expected shape \(N,\) or \(..., classes\), got \(\)$"),
    ],
)
def test_bad_input(logits, targets, error, message):
    for function in (dice_loss, focal_loss):
        with pytest.raises(error, match=message):
            function(logits, targets)


def test_one_class_has_no_classes_to_choose():
    with pytest.raises(ValueError, match=r"^classes: expected None for one class, got \(0,\)$"):
        dice_loss(torch.zeros(3), torch.zeros(3), classes=(0,))
    for options, message in (
        ({"a": 0.0, "b": 1.0}, r"^a: expected a finite number > 0, got 0.0$"),
        ({"a": 1.0, "b": 1.0, "smooth": -1.0}, r"^smooth: expected a finite number > 0, got -1.0$"),
    ):
        with pytest.raises(ValueError, match=message):
            tversky_loss(torch.zeros(3), torch.zeros(3), **options)
    with pytest.raises(ValueError, match=r"^gamma: expected a finite number >= 0, got -1.0$"):
        focal_loss(torch.zeros(3), torch.zeros(3), gamma=-1.0)
