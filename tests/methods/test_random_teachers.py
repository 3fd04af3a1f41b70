"""random-teachers: what the mathematics says of a twin at the teacher's own weights, of the bottleneck and of mixed weights."""

import copy
import math

import pytest
import torch

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.methods.random_teachers import RandomTeachers, distances, miniature
from preceptor.models.bottleneck import BottleneckProjector
from preceptor.models.nulls import interpolate
from preceptor.models.reference import MLP

SMALL = {"projector_width": 16, "bottleneck": 4, "num_outputs": 9}


def twins(interpolation):
    torch.manual_seed(0)
    roles = {"student": MLP(inputs=6, hidden=(8, 5), classes=3).double()}
    batch = {"x": torch.randn(12, 6, dtype=torch.double), "y": torch.arange(12) % 3, "id": torch.arange(12)}
    method = RandomTeachers(**SMALL, interpolation=interpolation)
    return method, roles | method.extra_roles(roles, batch), batch


def imitation(method, roles, batch):
    state = State(total_steps=1)
    with torch.no_grad():
        signal = method.signal(batch, roles, state)
    return method.loss(batch, signal, roles, state)["imitation"]


def gradients(interpolation):
    method, roles, batch = twins(interpolation)
    imitation(method, roles, batch).mean().backward()
    named = {f"{name}.{key}": p.grad for name in ("student", "projector") for key, p in roles[name].named_parameters()}
    return {name: grad for name, grad in named.items() if grad is not None}


def test_at_the_teachers_own_weights_the_gradient_is_0_but_for_rounding():
    there, elsewhere = gradients(0.0), gradients(0.4)
    assert there.keys() == elsewhere.keys()
    for name, gradient in there.items():
        assert gradient.norm() < 1e-10 * elsewhere[name].norm(), name


def test_elsewhere_it_learns_and_the_teacher_stays_bit_for_bit():
    method, roles, batch = twins(0.4)
    before = {name: copy.deepcopy(roles[name].state_dict()) for name in ("random_teacher", "random_projector")}
    first = float(imitation(method, roles, batch).mean().detach())
    parameters = [p for name in ("student", "projector") for p in roles[name].parameters()]
    train(method, roles, [batch], torch.optim.Adam(parameters, lr=1e-2), steps=30)
    assert float(imitation(method, roles, batch).mean().detach()) < first
    for name, kept in before.items():
        assert all(torch.equal(value, kept[key]) for key, value in roles[name].state_dict().items())


def test_cross_entropy_less_divergence_is_the_teachers_entropy():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, dtype=torch.double)
    entropy = torch.distributions.Categorical(logits=teacher / 0.5).entropy()
    given = {"temperature": 2.0, "teacher_temperature": 0.5}
    found = distances(student, teacher, distance="cross-entropy", **given) - distances(student, teacher, distance="kl", **given)
    torch.testing.assert_close(found, entropy)
    torch.testing.assert_close(distances(student, teacher, distance="mse"), (student - teacher).square().mean(-1))


def test_outputs_of_the_bottleneck_are_cosines_and_know_no_scale():
    torch.manual_seed(0)
    made = BottleneckProjector(inputs=5, hidden=(16, 16), bottleneck=4, outputs=9).double()
    x = torch.randn(20, 5, dtype=torch.double)
    outputs = made(x)
    assert outputs.abs().max() <= 1 + 1e-12
    last = list(made.parameters())[-1]
    (gradient,) = torch.autograd.grad(outputs.square().sum(), last)
    torch.testing.assert_close((gradient * last).sum(-1), torch.zeros(9, dtype=torch.double), rtol=0, atol=1e-12)
    with torch.no_grad():
        last.mul_(3.0)
    torch.testing.assert_close(made(x), outputs)


def test_mixed_weights_are_one_draw_or_the_other_and_vary_as_much():
    torch.manual_seed(0)
    first, second = {"w": torch.randn(200_000)}, {"w": torch.randn(200_000)}
    assert torch.equal(interpolate(first, second, 0.0)["w"], first["w"])
    assert torch.equal(interpolate(first, second, 1.0)["w"], second["w"])
    for share in (0.2, 0.5, 0.9):
        assert abs(float(interpolate(first, second, share)["w"].var()) - 1) < 0.02


def test_distances_against_slow_loops():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, dtype=torch.double)
    for s, t, entropy, kl, square in zip(
        student.tolist(),
        teacher.tolist(),
        *(distances(student, teacher, distance=name, temperature=2.0, teacher_temperature=0.5) for name in ("cross-entropy", "kl", "mse")),
        strict=True,
    ):
        p, q = ([math.exp(v / tau) / sum(math.exp(u / tau) for u in z) for v in z] for z, tau in ((t, 0.5), (s, 2.0)))
        assert math.isclose(entropy, -sum(a * math.log(b) for a, b in zip(p, q, strict=True)), rel_tol=1e-9)
        assert math.isclose(kl, sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), rel_tol=1e-9)
        assert math.isclose(square, sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / 4, rel_tol=1e-9)


@pytest.mark.parametrize("distance", ["cross-entropy", "kl", "mse"])
def test_gradient(distance):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, dtype=torch.double)
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: distances(s, teacher.detach(), distance=distance), (student.requires_grad_(),))
    (gradient,) = torch.autograd.grad(distances(student, teacher, distance=distance).sum(), teacher, allow_unused=True)
    assert gradient is None


@pytest.mark.parametrize("distance", ["cross-entropy", "kl", "mse"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_logits_and_half_precision_stay_finite(distance, dtype):
    torch.manual_seed(0)
    student, teacher = (1e4 * torch.randn(2, 3, 4).sign()).to(dtype)
    found = distances(student.requires_grad_(), teacher, distance=distance)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert torch.autograd.grad(found.sum(), student)[0].isfinite().all()
    assert distances(student[:0], teacher[:0], distance=distance).shape == (0,)


def test_bad_input_is_refused():
    for options, message in (
        ({"interpolation": 1.5}, r"^interpolation: expected a number in \[0, 1\], got 1\.5$"),
        ({"distance": "tv"}, r"^distance: expected one of cross-entropy, kl, mse, got 'tv'$"),
        ({"teacher_temperature": 0.0}, r"^teacher_temperature: expected a finite number > 0, got 0\.0$"),
        ({"bottleneck": 0}, r"^bottleneck: expected at least 1, got 0$"),
    ):
        with pytest.raises(ValueError, match=message):
            RandomTeachers(**options)
    with pytest.raises(ValueError, match=r"^teacher: expected 3 classes like student, got 4$"):
        distances(torch.zeros(2, 3), torch.zeros(2, 4))


def test_miniature():
    run = miniature(1, "smoke")
    others = {"halfway-start", "other-start", "noise-inputs", "one-epoch"}
    assert run.arms.keys() == {"raw-inputs", "untrained-teacher", "random-teachers"} | others
    assert all(0 <= value <= 1 for arm in run.arms.values() for value in arm.values())
    assert run == miniature(1, "smoke")
