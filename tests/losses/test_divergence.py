"""Identities, limits and slow references of the divergences (classic-kd card, Proof (a))."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional import kl_divergence

from preceptor.losses.divergence import (
    DIVERGENCES,
    forward_kl,
    generalized_jsd,
    js_distance,
    kl,
    log_probs,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    symmetric_kl,
    total_variation,
)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Logits of student and teacher, eight items of five classes."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = 2 * torch.randn(2, 8, 5, generator=generator, dtype=torch.double)
    return student, teacher


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(v / temperature) for v in logits]
    return [v / sum(powers) for v in powers]


def slow_kl(a: list[float], b: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


def mix(share: float, a: list[float], b: list[float]) -> list[float]:
    return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]


SLOW = {
    "forward_kl": slow_kl,
    "reverse_kl": lambda p, q: slow_kl(q, p),
    "skew_forward_kl": lambda p, q: slow_kl(p, mix(0.1, p, q)),
    "skew_reverse_kl": lambda p, q: slow_kl(q, mix(0.1, q, p)),
    "generalized_jsd": lambda p, q: 0.5 * slow_kl(p, mix(0.5, p, q)) + 0.5 * slow_kl(q, mix(0.5, p, q)),
    "js_distance": lambda p, q: 0.9 * slow_kl(q, mix(0.9, q, p)) + 0.1 * slow_kl(p, mix(0.9, q, p)),
    "symmetric_kl": lambda p, q: 0.1 * slow_kl(p, q) + 0.9 * slow_kl(q, p),
    "total_variation": lambda p, q: sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
}


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
@pytest.mark.parametrize(("temperature", "teacher_temperature"), [(1.0, None), (3.0, None), (0.7, 2.5)])
def test_reference(pair, name, temperature, teacher_temperature):
    student, teacher = pair
    value = DIVERGENCES[name](student, teacher, temperature=temperature, teacher_temperature=teacher_temperature)
    for got, s, t in zip(value.tolist(), student.tolist(), teacher.tolist(), strict=True):
        expected = SLOW[name](softmax(t, teacher_temperature or temperature), softmax(s, temperature))
        assert math.isclose(got, expected, rel_tol=1e-10)


def test_an_independent_library_agrees(pair):
    student, teacher = pair
    expected = kl_divergence(teacher.softmax(-1), student.softmax(-1), reduction="none")
    torch.testing.assert_close(forward_kl(student, teacher), expected)


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_a_temperature_per_item(pair, name):
    student, teacher = pair
    temperatures = torch.linspace(0.5, 4, 8, dtype=torch.double)
    value = DIVERGENCES[name](student, teacher, temperature=temperatures, teacher_temperature=temperatures.flip(0))
    for i in range(8):
        alone = DIVERGENCES[name](
            student[i], teacher[i], temperature=float(temperatures[i]), teacher_temperature=float(temperatures[7 - i])
        )
        torch.testing.assert_close(value[i], alone)
    tokens = DIVERGENCES[name](student.reshape(2, 4, 5), teacher.reshape(2, 4, 5), temperature=torch.tensor([[2.0], [3.0]]))
    torch.testing.assert_close(tokens[1], DIVERGENCES[name](student[4:], teacher[4:], temperature=3.0))


def test_a_temperature_that_fits_no_item_is_refused(pair):
    with pytest.raises(ValueError, match=r"temperature: expected a number or shape \(8,\) \(one per item\), got \(5,\)"):
        forward_kl(*pair, temperature=torch.ones(5))
    with pytest.raises(ValueError, match=r"expected a finite number > 0, got -2.0"):
        forward_kl(*pair, temperature=torch.tensor([1.0, -2, 1, 1, 1, 1, 1, 1]))


def test_a_learned_temperature_has_a_gradient_beside_masked_classes(pair):
    student, teacher = (x.clone() for x in pair)
    student[:, 0], teacher[:, 0] = -torch.inf, -torch.inf
    temperature = torch.full((8,), 2.0, dtype=torch.double, requires_grad=True)
    forward_kl(student, teacher, temperature=temperature).sum().backward()
    assert temperature.grad is not None
    assert torch.isfinite(temperature.grad).all()
    assert (temperature.grad != 0).all()
    torch.testing.assert_close(forward_kl(student, teacher), forward_kl(student[:, 1:], teacher[:, 1:]))


def test_row_gradient_of_the_softened_kl_times_t_squared(pair):
    student, teacher = pair
    student.requires_grad_()
    (16 * forward_kl(student, teacher, temperature=4.0)).mean().backward()
    torch.testing.assert_close(student.grad, 4 * ((student / 4).softmax(-1) - (teacher / 4).softmax(-1)).detach() / 8)


def test_high_temperature_limit_is_the_centred_logit_distance(pair):
    student, teacher = pair
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    for temperature, tolerance in ((1e2, 1e-1), (1e3, 1e-2), (1e4, 1e-3)):
        value = temperature**2 * forward_kl(student, teacher, temperature=temperature)
        torch.testing.assert_close(value, centred.square().sum(-1) / 10, rtol=tolerance, atol=0)


def test_forward_and_reverse_are_each_other_with_arguments_swapped(pair):
    student, teacher = pair
    torch.testing.assert_close(forward_kl(student, teacher), reverse_kl(teacher, student))


def test_skew_ends(pair):
    torch.testing.assert_close(skew_forward_kl(*pair, skew=0.0), forward_kl(*pair))
    torch.testing.assert_close(skew_reverse_kl(*pair, skew=0.0), reverse_kl(*pair))
    for function in (skew_forward_kl, skew_reverse_kl):
        assert (function(*pair, skew=1.0) == 0).all()
        assert (function(*pair, skew=0.1) <= -math.log(0.1)).all()
        extreme = function(-100 * pair[1], 100 * pair[1], skew=0.1)
        torch.testing.assert_close(extreme, torch.full_like(extreme, -math.log(0.1)))


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.5, 0.9])
def test_jsd_is_symmetric_and_bounded(pair, beta):
    student, teacher = pair
    value = generalized_jsd(student, teacher, beta=beta)
    torch.testing.assert_close(value, generalized_jsd(teacher, student, beta=1 - beta))
    torch.testing.assert_close(value, js_distance(student, teacher, student_share=1 - beta))
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert (value <= entropy).all()
    extreme = generalized_jsd(-100 * teacher, 100 * teacher, beta=beta)
    torch.testing.assert_close(extreme, torch.full_like(extreme, entropy))


def test_jsd_ends_follow_the_convention(pair):
    torch.testing.assert_close(generalized_jsd(*pair, beta=0.0), forward_kl(*pair))
    torch.testing.assert_close(generalized_jsd(*pair, beta=1.0), reverse_kl(*pair))
    torch.testing.assert_close(generalized_jsd(*pair, beta=1e-6) / 1e-6, forward_kl(*pair), rtol=1e-3, atol=0)
    torch.testing.assert_close(generalized_jsd(*pair, beta=1 - 1e-6) / 1e-6, reverse_kl(*pair), rtol=1e-3, atol=0)


def test_js_distance_and_symmetric_kl_ends(pair):
    for share in (0.0, 1.0):
        assert (js_distance(*pair, student_share=share) == 0).all()
    torch.testing.assert_close(symmetric_kl(*pair, reverse_share=0.0), forward_kl(*pair))
    torch.testing.assert_close(symmetric_kl(*pair, reverse_share=1.0), reverse_kl(*pair))


def test_total_variation_is_a_bounded_distance_under_pinsker(pair):
    student, teacher = pair
    value = total_variation(student, teacher)
    torch.testing.assert_close(value, total_variation(teacher, student))
    assert (value >= 0).all()
    assert (value <= 1).all()
    assert (value.square() <= forward_kl(student, teacher) / 2).all()
    third = student.flip(0)
    assert (value <= total_variation(student, third) + total_variation(third, teacher) + 1e-15).all()
    far = total_variation(-100 * teacher, 100 * teacher)
    torch.testing.assert_close(far, torch.ones_like(far))


def test_items_average_to_the_mean_of_torch(pair):
    student, teacher = pair
    expected = torch.nn.functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(forward_kl(student, teacher).mean(), expected)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (skew_forward_kl, "skew"),
        (skew_reverse_kl, "skew"),
        (generalized_jsd, "beta"),
        (js_distance, "student_share"),
        (symmetric_kl, "reverse_share"),
    ],
)
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_shares_are_in_the_unit_interval(pair, function, name, value):
    with pytest.raises(ValueError, match=rf"{name}: expected a number in \[0, 1\], got {value}"):
        function(*pair, **{name: value})


def test_classes_masked_on_one_side_give_a_large_finite_push():
    student = torch.zeros(1, 3, dtype=torch.double, requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.double)
    torch.testing.assert_close(forward_kl(student, teacher), torch.tensor([math.log(1.5)], dtype=torch.double))
    value = reverse_kl(student, teacher)
    tiny = math.log(torch.finfo(torch.double).tiny)
    torch.testing.assert_close(value, torch.tensor([2 / 3 * math.log(2 / 3) + (math.log(1 / 3) - tiny) / 3], dtype=torch.double))
    value.sum().backward()
    assert student.grad is not None
    assert student.grad[0, 2] > 100  # away from what the teacher excludes


def test_log_probs_is_finite_and_normalised():
    logits = torch.tensor([[1.0, -torch.inf, 2.0], [-torch.inf] * 3, [1e4, -1e4, 0.0]])
    value = log_probs(logits)
    assert torch.isfinite(value).all()
    torch.testing.assert_close(value.exp().sum(-1), torch.ones(3))
    torch.testing.assert_close(value[1], torch.full((3,), -math.log(3)))
    with pytest.raises(TypeError, match=r"logits: expected a floating-point tensor, got torch.int64"):
        log_probs(torch.ones(2, 3, dtype=torch.int64))


def test_not_a_number_is_never_hidden():
    logits = torch.tensor([[0.0, torch.nan], [0.0, -torch.inf]])
    assert forward_kl(logits, torch.zeros(2, 2)).isnan().tolist() == [True, False]


def test_kl_keeps_the_gradient_where_rounding_made_it_negative():
    log_q = torch.log_softmax(torch.randn(2000, 7, generator=torch.Generator().manual_seed(0)), -1)
    log_p = torch.log_softmax(log_q + 1e-5, -1)
    raw = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert (raw < 0).any()  # the case is real
    log_q.requires_grad_()
    value = kl(log_p, log_q)
    assert (value >= 0).all()
    value.sum().backward()
    torch.testing.assert_close(log_q.grad, -log_p.exp())
