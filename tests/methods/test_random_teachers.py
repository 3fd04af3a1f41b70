"""random-teachers: what the mathematics says of a twin at the teacher's own weights, of the bottleneck and of mixed weights."""

import copy

import torch

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.methods.random_teachers import RandomTeachers, distances
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
