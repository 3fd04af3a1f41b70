"""freeflow: exact for a Gaussian teacher, in velocities, average velocities and both mismatches; then through the loop."""

import copy
import math

import pytest
import torch
from torch import nn

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.data.priors import Prior
from preceptor.losses.flow import (
    balance,
    correction_mismatch,
    guided,
    lengths,
    map_point,
    mismatch_weight,
    noised,
    prediction_mismatch,
    pull,
)
from preceptor.methods.freeflow import CARD, FreeFlow
from preceptor.miniature.flows import GaussianMixture, ring
from preceptor.teachers.flow import FlowMap, PointFlow, Velocity, WithGuidance, best_noise, jump, slope, solve

MEAN = torch.tensor([[1.5, -0.5]], dtype=torch.double)


def gaussian(deviation=0.4):
    return GaussianMixture(MEAN, deviation)


class Exact(nn.Module):
    """The average velocity of the flow of `gaussian`."""

    def __init__(self, deviation=0.4):
        super().__init__()
        self.deviation = deviation

    def forward(self, z, durations):
        d = durations[:, None]
        spread = (d.square() * self.deviation**2 + (1 - d).square()).sqrt()
        return MEAN + z * torch.where(d > 0, (spread - 1) / d.clamp(min=1e-12), -1.0)


def points(count=6, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, generator=draws, dtype=torch.double), torch.rand(count, generator=draws, dtype=torch.double)


def gap(average, teacher, z, d, **how):
    value, rise = slope(lambda s: average(z, s), d, **how)
    return prediction_mismatch(value, rise, teacher(map_point(z, value, d), 1 - d), d)


@pytest.mark.parametrize("deviation", [0.4, 1.0, 1e-6])
def test_the_exact_map_of_a_gaussian_has_no_mismatch(deviation):
    z, d = points()
    assert gap(Exact(deviation), gaussian(deviation), z, 0.99 * d).abs().max() < 1e-6
    assert gap(lambda z, d: 1.1 * Exact(deviation)(z, d), gaussian(deviation), z, d).abs().max() > 1e-2


def test_a_difference_is_off_by_the_order_of_its_step():
    z, d = points()
    errors = [float(gap(Exact(), gaussian(), z, d, derivative="difference", step=h).abs().max()) for h in (1e-2, 1e-3)]
    assert errors[0] < 0.1
    assert 7 < errors[0] / errors[1] < 13


def test_a_single_point_has_a_constant_average_and_durations_of_0_tell_the_mean():
    z, d = points()
    one = gaussian(0.0)
    torch.testing.assert_close(one(map_point(z, MEAN - z, d), 1 - d), MEAN - z)
    start = torch.zeros(6, dtype=torch.double)
    torch.testing.assert_close(gaussian()(z, torch.ones(6)), MEAN - z)
    assert torch.equal(map_point(z, torch.full_like(z, 1e9), start), z)
    value, rise = slope(lambda s: Exact()(z, s), start, derivative="difference")
    assert torch.equal(rise, torch.zeros_like(value))


def test_200_steps_from_noise_lead_to_the_data_and_along_the_exact_map():
    z, _ = points(50)
    torch.testing.assert_close(solve(gaussian(), z, steps=200), jump(Exact(), z), atol=2e-4, rtol=0)
    reached = solve(ring(), z.float(), steps=200)
    assert (torch.cdist(reached, ring().means).amin(dim=1) < 0.75).all()
    torch.testing.assert_close(solve(ring(), z.float(), steps=1, euler=True), torch.zeros(50, 2), atol=1e-5, rtol=0)


def test_velocities_of_a_mixture_against_a_loop():
    z, t = points(4)
    mixture = GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=torch.double), 0.3)
    for x, r, said in zip(z.tolist(), t.tolist(), mixture(z, t).tolist(), strict=True):
        variance = (1 - r) ** 2 * 0.09 + r**2
        means = mixture.means.tolist()
        w = [math.exp(-sum((a - (1 - r) * m) ** 2 for a, m in zip(x, mean, strict=True)) / (2 * variance)) for mean in means]
        for axis in range(2):
            each = []
            for mean in means:
                away = x[axis] - (1 - r) * mean[axis]
                each.append(mean[axis] + (1 - r) * 0.09 / variance * away - r / variance * away)
            assert math.isclose(said[axis], sum(a * b for a, b in zip(w, each, strict=True)) / sum(w), rel_tol=1e-9)


def test_the_correction_is_the_gap_of_scores_and_0_for_the_teachers_own_samples():
    x, r = points()
    ours, theirs = gaussian(0.7), gaussian(0.4)
    assert torch.equal(correction_mismatch(theirs(x, r), theirs(x, r)), torch.zeros_like(x))
    variances = [((1 - r) ** 2 * s**2 + r**2)[:, None] for s in (0.7, 0.4)]
    scores = [-(x - (1 - r[:, None]) * MEAN) / variance for variance in variances]
    expected = (r / (1 - r))[:, None] * (scores[0] - scores[1])
    torch.testing.assert_close(correction_mismatch(ours(x, r), theirs(x, r)), expected)


def test_weights_are_bounded_and_1_with_power_0():
    mismatch = torch.randn(1000, 3, dtype=torch.double) * torch.logspace(-4, 2, 1000, dtype=torch.double)[:, None]
    assert torch.equal(mismatch_weight(mismatch, power=0.0), torch.ones(1000, dtype=torch.double))
    weighted = mismatch_weight(mismatch) * lengths(mismatch)
    bound = math.sqrt(3) / (2 * math.sqrt(1e-2))
    assert weighted.max() <= bound
    at = torch.full((1, 3), 0.1, dtype=torch.double)
    assert math.isclose(float(mismatch_weight(at) * lengths(at)), bound)


def test_a_balanced_correction_does_not_know_its_scale():
    first, second = torch.rand(9, dtype=torch.double), torch.rand(4, dtype=torch.double)
    for scale in (1e-6, 1e3):
        torch.testing.assert_close(balance(first, scale * second) * scale, balance(first, second))
    torch.testing.assert_close((balance(first, second, alpha=0.3) * second).mean(), 0.3 * first.mean())
    assert balance(first, 0 * second).isfinite()
    with pytest.raises(ValueError, match="correction: expected at least one"):
        balance(first, second[:0])


def test_the_gradient_is_the_weighted_mismatch_through_the_output_alone():
    output = torch.randn(5, 2, 3, dtype=torch.double, requires_grad=True)
    mismatch, weight = (torch.randn(5, 2, 3, dtype=torch.double, requires_grad=True), torch.rand(5, dtype=torch.double, requires_grad=True))
    loss = pull(output, mismatch, weight)
    loss.sum().backward()
    torch.testing.assert_close(output.grad, (weight[:, None, None] * mismatch / 6).detach())
    torch.testing.assert_close(loss, weight * lengths(mismatch).square() / 12)
    assert mismatch.grad is weight.grad is None


def test_guidance_holds_within_its_interval():
    u, v = torch.randn(2, 3, 2)
    said = guided(u, v, torch.full((3,), 3.0), torch.tensor([0.1, 0.5, 0.9]), interval=(0.0, 0.7))
    torch.testing.assert_close(said, torch.cat([3 * u[:2] - 2 * v[:2], u[2:]]))


@pytest.mark.parametrize("predicts", ["velocity", "noise", "data"])
@pytest.mark.parametrize("noise_at", [0, 1])
def test_what_a_network_predicts_becomes_its_velocity(predicts, noise_at):
    z, t = points()
    t = t.clamp(0.05, 0.95)
    exact = gaussian()

    class Network(nn.Module):
        def forward(self, x, times):
            t = times / 1000 if noise_at else 1 - times / 1000
            u = exact(x, t)
            data = x + t[:, None] * u
            return {"velocity": -u if noise_at else u, "data": data, "noise": data - u}[predicts]

    torch.testing.assert_close(Velocity(Network(), predicts=predicts, noise_at=noise_at, time_scale=1000)(z, t), exact(z, t))


def networks(**options):
    torch.manual_seed(0)
    teacher = PointFlow(2, width=8, **options).double()
    student = FlowMap(copy.deepcopy(teacher), "time", 8).double()
    return {"teacher": teacher, "student": student}


def test_a_flow_map_starts_as_the_teacher_and_gradients_are_the_cards():
    roles, method = networks(), FreeFlow(prediction_rate=0.5)
    z, d = points()
    torch.testing.assert_close(roles["student"](z, d), roles["teacher"](z, 1 - d))
    state = State(total_steps=1)
    state.source = Prior((2,), batch_size=6, dtype=torch.double)
    batch = next(state.source)
    roles |= method.extra_roles(roles, batch)
    for p in roles["auxiliary"].parameters():
        p.data += 0.1
    batch = method.prepare(batch, roles, state)
    z, n, d, r = (batch[key] for key in ("x", "noise", "freeflow/durations", "freeflow/levels"))
    signal = method.signal(batch, roles, state)
    student, teacher = roles["student"], roles["teacher"]
    delta = gap(student, teacher, z[:3], d[:3])
    w = 1 / (delta.square().sum(1) / 2 + 1e-2)
    samples = (z + student(z, torch.ones(6, dtype=torch.double)))[3:].detach()
    x = noised(samples, n[3:], r[3:])
    beside = (roles["auxiliary"](x, r[3:]) - teacher(x, r[3:])).detach()
    factor = (w[:, None] * delta).norm(dim=1).mean() / beside.norm(dim=1).mean()
    torch.testing.assert_close(signal["mismatch"], torch.cat([delta, beside]))
    torch.testing.assert_close(signal["weight"], torch.cat([w, factor.expand(3)]))
    terms = method.velocity_loss(batch, {}, roles, state)["velocity"]
    torch.testing.assert_close(terms[3:], (roles["auxiliary"](x, r[3:]) - (samples - n[3:])).square().mean(1))
    assert d[3:].eq(1).all()
    assert terms[:3].eq(0).all()


def run(method, roles, steps=3, **prior):
    source = Prior((2,), batch_size=8, dtype=torch.double, **prior)
    roles = roles | method.extra_roles(roles, next(iter(source.scan())))
    optimizers = {p.name: torch.optim.Adam([q for role in p.trains for q in roles[role].parameters()], lr=1e-2) for p in method.phases()}
    records = []
    train(method, roles, source, optimizers, steps=steps, progress=records.append)
    return roles, records


@pytest.mark.parametrize("rate", [0.0, 0.75, 1.0])
def test_terms_phases_and_roles_are_those_in_use(rate):
    before = networks()
    teacher = copy.deepcopy(before["teacher"].state_dict())
    roles, records = run(FreeFlow(prediction_rate=rate), before)
    assert ("auxiliary" in roles) == (rate < 1)
    terms = {name.rpartition("/")[2] for name in records[0].losses} - {"total"}
    expected = {"prediction"} if rate > 0 else set()
    expected |= {"correction", "velocity"} if rate < 1 else set()
    assert terms == expected
    assert all(torch.equal(value, teacher[key]) for key, value in roles["teacher"].state_dict().items())


def test_guidance_that_is_drawn_is_told_to_student_and_auxiliary():
    roles = networks(num_classes=3)
    roles["student"] = FlowMap(WithGuidance(roles["student"].network, "time", 8), "network.time", 8).double()
    method = FreeFlow(guidance=(1.0, 4.0), null_class=3)
    with pytest.raises(ValueError, match="guidance is drawn"):
        run(method, roles, num_classes=3)
    roles["auxiliary"] = WithGuidance(copy.deepcopy(roles["teacher"]), "time", 8).double()
    trained, _ = run(method, roles, num_classes=3)
    assert trained["student"].network.strength.weight.any()
    assert trained["auxiliary"].strength.weight.any()


def test_fixed_guidance_and_each_option_change_what_is_learnt():
    def learnt(**options):
        roles, _ = run(FreeFlow(**options), networks(num_classes=3), num_classes=3)
        return torch.cat([p.detach().flatten() for p in roles["student"].parameters()])

    usual, strong = learnt(), {"guidance": 3.0, "null_class": 3}
    changed = [
        strong,
        {"power": 0.5},
        {"eps": 1.0},
        {"alpha": 3.0},
        {"derivative": "difference"},
        {"derivative": "difference", "difference": 0.5},
        {"durations": (0.0, 1.0)},
        {"noise_levels": None},
        {"noise_range": (0.0, 0.6)},
        {"prediction_rate": 0.5},
        {"min_time": 0.9},
        strong | {"guidance_interval": (0.4, 0.6)},
        strong | {"correction_interval": (0.0, 1.0)},
    ]
    results = [usual, *(learnt(**options) for options in changed)]
    assert torch.equal(usual, learnt())
    for i, one in enumerate(results):
        assert not any(torch.equal(one, other) for other in results[:i]), ({}, *changed)[i]


def test_data_and_bad_options_are_refused_in_one_line():
    roles = networks()
    method = FreeFlow(prediction_rate=1.0)
    with pytest.raises(ValueError, match=r"source: expected preceptor\.data\.priors\.Prior"):
        train(method, roles, [{"x": torch.randn(4, 2).double()}], torch.optim.SGD(roles["student"].parameters(), lr=0.1), steps=1)
    with pytest.raises(ValueError, match="no weights to start from"):
        FreeFlow().extra_roles({"teacher": ring()}, {})
    with pytest.raises(ValueError, match="cond: expected classes"):
        run(FreeFlow(guidance=2.0, null_class=0), roles)
    for options, words in (
        ({"guidance": 2.0}, "null_class"),
        ({"power": -1.0}, "power"),
        ({"prediction_rate": 1.5}, "prediction_rate"),
        ({"noise_range": (0.6, 0.2)}, "interval"),
        ({"durations": (0.0, 0.0)}, "normal"),
        ({"correction_interval": (0.7, 0.2)}, "correction_interval"),
        ({"derivative": "exact"}, "derivative"),
    ):
        with pytest.raises(ValueError, match=words):
            FreeFlow(**options)
    with pytest.raises(ValueError, match="expected at least float32"):
        slope(lambda d: d[:, None].bfloat16(), torch.rand(3), derivative="difference")


def test_what_has_no_forward_mode_is_named():
    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    with pytest.raises(ValueError, match="derivative='difference'"):
        slope(lambda d: Backward.apply(d)[:, None], torch.rand(3))


def test_attention_has_a_slope():
    d = torch.rand(3, dtype=torch.double)
    keys = torch.randn(3, 1, 4, 8, dtype=torch.double)

    def attend(d):
        return nn.functional.scaled_dot_product_attention(keys * d[:, None, None, None], keys, keys)

    torch.testing.assert_close(slope(attend, d)[1], slope(attend, d, derivative="difference", step=1e-6)[1], rtol=1e-4, atol=1e-5)


def test_the_best_noise_is_the_one_whose_sample_scores_highest():
    candidates = torch.randn(5, 3, 2, dtype=torch.double)
    chosen = best_noise(Exact(), candidates, lambda samples: samples[:, 0])
    assert torch.equal(chosen, candidates[candidates[..., 0].argmax(0), torch.arange(3)])


def test_prediction_learns_a_gaussian():
    torch.manual_seed(0)
    roles = {"teacher": gaussian(), "student": FlowMap(PointFlow(2, width=16), "time", 16).double()}
    z, _ = points(200)
    before = (jump(roles["student"], z) - jump(Exact(), z)).norm(dim=1).mean()
    run(FreeFlow(prediction_rate=1.0, derivative="difference"), roles, steps=150)
    assert (jump(roles["student"], z) - jump(Exact(), z)).norm(dim=1).mean() < 0.5 * before
    assert CARD.tasks == ("generation",)
