"""The local entropy of layers of sigmoids: what it is, what it depends on, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from preceptor.losses.knowledge import diagnose, entropy_between, entropy_step, lagrangian, ska_gradient, tensor_net_step

LN2 = math.log(2)


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, *shape, generator=generator, dtype=torch.double)


def binary_entropy(d):
    return -(d * math.log(d) + (1 - d) * math.log(1 - d)) / LN2


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def test_a_slow_loop_of_the_equations_agrees():
    z, old = pair(4, 3)
    eta = 0.1
    total = dict.fromkeys(("entropy", "code", "paper", "lagrangian", "zz", "dd", "zd", "flow"), 0.0)
    for i in range(4):
        item = dict.fromkeys(("entropy", "code", "paper", "lagrangian"), 0.0)
        for j in range(3):
            a, b = float(z[i, j]), float(old[i, j])
            decision, moved = sigmoid(a), sigmoid(a) - sigmoid(b)
            slope = decision * (1 - decision)
            item["entropy"] += -a * moved / LN2
            item["paper"] += (a - b) * (decision - (-a * slope / LN2))
            item["code"] += (a - b) * (decision - a * slope / LN2)
            item["lagrangian"] += -a * slope * (a - b) / eta
            total["zz"] += a * a
            total["dd"] += moved * moved
            total["zd"] += a * moved
            total["flow"] += ((a - b) / eta) ** 2
        assert math.isclose(entropy_step(z, old)[i], item["entropy"], rel_tol=1e-12)
        assert math.isclose(tensor_net_step(z, old)[i], item["code"], rel_tol=1e-12)
        assert math.isclose(tensor_net_step(z, old, net="paper")[i], item["paper"], rel_tol=1e-12)
        assert math.isclose(lagrangian(z, old, eta)[i], item["lagrangian"], rel_tol=1e-12)
        for name, value in item.items():
            total[name] += value
    for net in ("code", "paper"):
        found = diagnose(z, old, eta=eta, net=net)
        expected = {
            "entropy": total["entropy"],
            "cosine": total["zd"] / math.sqrt(total["zz"] * total["dd"]),
            "tensor_net": total[net],
            "flow": math.sqrt(total["flow"]),
            "lagrangian": total["lagrangian"],
            "z_norm": math.sqrt(total["zz"]),
        }
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert math.isclose(found[name], value, rel_tol=1e-12), name


def test_the_gradient_is_that_of_the_entropy_with_what_was_decided_before_fixed():
    z, old = pair(5, 4)
    z.requires_grad_()
    (expected,) = torch.autograd.grad(-(z * (z.sigmoid() - old.sigmoid())).sum() / LN2, z)
    torch.testing.assert_close(ska_gradient(z, old).detach(), expected)
    assert torch.autograd.gradcheck(lambda x: entropy_step(x, old), (z,))


@pytest.mark.parametrize("end", [0.6, 0.9, 0.03])
def test_along_a_fine_path_one_neuron_ends_at_its_binary_entropy(end):
    errors = []
    for steps in (1000, 2000):
        z = torch.linspace(0, math.log(end / (1 - end)), steps + 1, dtype=torch.double)[:, None]
        errors.append(float(entropy_step(z[1:], z[:-1]).sum()) - (binary_entropy(end) - 1))
    assert abs(errors[0]) < 5e-3
    assert math.isclose(errors[0], 2 * errors[1], rel_tol=1e-2)  # an error of the first order
    exact = entropy_between(torch.tensor([math.log(end / (1 - end))], dtype=torch.double), torch.zeros(1, dtype=torch.double))
    assert math.isclose(exact, binary_entropy(end) - 1, rel_tol=1e-12)


def test_every_path_between_two_ends_has_the_same_action():
    end, start = pair(3)
    time = torch.linspace(0, 1, 20_001, dtype=torch.double)[:, None]
    straight = start + time * (end - start)
    detour = straight + torch.sin(math.pi * time) * torch.tensor([2.0, -3.0, 1.0])
    closed = -((end * end.sigmoid() - F.softplus(end)) - (start * start.sigmoid() - F.softplus(start))).sum()
    for path in (straight, detour):
        middle, moved = (path[1:] + path[:-1]) / 2, path[1:] - path[:-1]
        eta = 1 / 20_000
        action = eta * lagrangian(middle, middle - moved, eta).sum()
        torch.testing.assert_close(action, closed, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(LN2 * entropy_between(end, start), closed)


def test_a_step_of_entropy_is_the_lagrangian_to_first_order():
    z, direction = pair(50)
    errors = []
    for eta in (1e-2, 5e-3):
        old = z - eta * direction
        errors.append((entropy_step(z, old) - eta / LN2 * lagrangian(z, old, eta)).abs())
    assert float(errors[0]) < 1e-3 * 50
    assert math.isclose(errors[0], 4 * errors[1], rel_tol=0.05)  # what is left is of the second order


def test_a_step_pushes_away_from_zero_and_no_movement_is_nothing():
    z, _ = pair(6, 4)
    still = z.clone()
    assert (ska_gradient(z, still).sign() == -z.sign()).all()
    assert (ska_gradient(z.abs(), z.abs() - 1) < 0).all()
    assert (ska_gradient(torch.zeros(3, 2), torch.zeros(3, 2)) == 0).all()
    found = diagnose(z, still, eta=0.01)
    assert {name: float(value) for name, value in found.items() if name != "z_norm"} == dict.fromkeys(
        ("entropy", "cosine", "tensor_net", "flow", "lagrangian"), 0.0
    )
    assert (entropy_between(z, still) == 0).all()


def test_between_is_symmetric_additive_and_bounded():
    a, b = pair(7, 5)
    c = pair(7, 5, seed=1)[0]
    torch.testing.assert_close(entropy_between(a, b), -entropy_between(b, a))
    torch.testing.assert_close(entropy_between(a, b), entropy_between(a, c) + entropy_between(c, b))
    torch.testing.assert_close(entropy_between(-a, b), entropy_between(a, b))
    torch.testing.assert_close(entropy_between(torch.full((5,), 1e4), torch.zeros(5)), torch.tensor(-5.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.double])
def test_large_and_half_precision_logits_are_finite_and_right(dtype):
    z = torch.tensor([[1e4, -1e4, 0.0, 3.0]], dtype=dtype)
    old = torch.tensor([[-1e4, -1e4, 1e4, 2.5]], dtype=dtype)
    whole, whole_old = z.double(), old.double()
    for function in (ska_gradient, entropy_step, tensor_net_step, entropy_between, lambda *pair: lagrangian(*pair, 0.01)):
        found = function(z, old)
        assert found.dtype == (torch.double if dtype == torch.double else torch.float32)
        torch.testing.assert_close(found.double(), function(whole, whole_old), rtol=1e-5, atol=1e-5)
    assert all(value.isfinite() for value in diagnose(z, old, eta=0.01).values())
    # Saturated units have no slope: a unit that does not move any more is left alone.
    assert float(ska_gradient(z, z)[0, 0]) == 0.0


def test_a_batch_of_one_is_a_row_of_a_larger_one_and_none_is_none():
    z, old = pair(6, 4)
    for function in (ska_gradient, entropy_step, tensor_net_step, entropy_between):
        torch.testing.assert_close(function(z[:1], old[:1]), function(z, old)[:1])
        assert len(function(z[:0], old[:0])) == 0
    assert all(float(value) == 0 for value in diagnose(z[:0], old[:0], eta=0.01).values())


def test_bad_input_is_refused():
    z, old = pair(6, 4)
    with pytest.raises(ValueError, match=r"^before: expected shape \(6, 4\) like logits, got \(6, 3\)$"):
        entropy_step(z, old[:, :3])
    with pytest.raises(ValueError, match=r"^eta: expected a finite number > 0, got 0.0$"):
        diagnose(z, old, eta=0.0)
    with pytest.raises(ValueError, match=r"^net: expected one of code, paper, got 'other'$"):
        tensor_net_step(z, old, net="other")
