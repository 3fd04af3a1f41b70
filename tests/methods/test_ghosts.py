"""The step cap from complex zeros of the softmax."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tests.parity import check_folder
from tests.test_parity import GOLDEN
from torch import nn

from preceptor.composition import compose
from preceptor.core.method import Method, NonFinite, several_updates
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.distillation import make_method
from preceptor.losses.hard import hard_loss
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.classic_kd import ClassicKD
from preceptor.methods.ghosts import CARD, Ghosts, kl_quadratic, miniature, radius, top2_radius
from preceptor.methods.mutual import Mutual


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator, dtype=torch.double)


def test_defaults_are_those_of_the_card():
    assert Ghosts() == Ghosts(mode="cap", r=1.0, over="batch", quantile=1.0, estimate="bound", temperature=1.0)
    assert (CARD.slug, CARD.needs) == ("ghosts", ("labels",))


# The mathematics.


def zeros(z, a):
    """All t with sum_k exp(z_k + t a_k) = 0 and |Im t| <= pi, for integer slopes: a polynomial in e^t."""
    powers = a - a.min()
    coefficients = np.zeros(int(powers.max()) + 1)
    for power, value in zip(powers, np.exp(z), strict=True):
        coefficients[int(power)] += value
    return np.log(np.roots(coefficients[::-1]).astype(complex))


def test_two_classes_are_exact():
    z, a = np.array([0.3, 1.5]), np.array([0, 1])
    nearest = min(abs(zeros(z, a)))
    logits, slopes = torch.tensor(z)[None], torch.tensor(a).double()[None]
    for label in (0, 1):
        assert math.isclose(float(top2_radius(logits, slopes, torch.tensor([label]))), nearest, rel_tol=1e-12)
    assert math.isclose(nearest, math.hypot(1.2, math.pi), rel_tol=1e-12)
    assert float(radius(logits, slopes)) < nearest


@pytest.mark.parametrize("seed", range(20))
def test_no_zero_is_nearer_than_the_bound(seed):
    generator = np.random.default_rng(seed)
    z, a = generator.normal(size=5), generator.integers(-4, 5, size=5)
    a[:2] = -4, 3
    bound = float(radius(torch.tensor(z)[None], torch.tensor(a).double()[None]))
    assert min(abs(zeros(z, a))) > bound


def test_the_bound_is_reached_by_two_equal_classes():
    a = torch.tensor([[0.0, 3.0]], dtype=torch.double)
    assert math.isclose(float(radius(torch.zeros_like(a), a)), min(abs(zeros(np.zeros(2), np.array([0, 3])))), rel_tol=1e-12)


def test_symmetries():
    z, a = pair(6, 4)
    labels = torch.arange(6) % 4
    for found in (radius, lambda z, a, **t: top2_radius(z, a, labels, **t)):
        torch.testing.assert_close(found(z, -a), found(z, a))
        torch.testing.assert_close(found(z + 3, a - 2), found(z, a))
        torch.testing.assert_close(found(z, 2 * a), found(z, a) / 2)
        torch.testing.assert_close(found(3 * z, a, temperature=3.0), 3 * found(z, a))
    torch.testing.assert_close(radius(z, a, temperature=4.0), 4 * radius(z, a))


def test_what_does_not_move_has_no_radius():
    z = pair(3, 4)[0]
    labels = torch.tensor([0, 1, 2])
    for slopes in (torch.zeros_like(z), torch.full_like(z, 2.5)):
        assert (radius(z, slopes) == torch.inf).all()
        assert (top2_radius(z, slopes, labels) == torch.inf).all()
    assert (radius(z[:, :1], z[:, :1]) == torch.inf).all()
    assert (top2_radius(z[:, :1], z[:, :1], torch.zeros(3, dtype=torch.long)) == torch.inf).all()
    assert radius(z[:0], z[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_masked_classes_and_huge_logits(dtype):
    z, a = pair(3, 4)
    z[0, 1], z[1, :3], z[2] = -torch.inf, -torch.inf, -torch.inf
    a[0, 1] = torch.nan
    found = radius(z.to(dtype), a.to(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0].double(), radius(z[:1, [0, 2, 3]], a[:1, [0, 2, 3]])[0], rtol=2e-2, atol=0)
    assert (found[1:] == torch.inf).all()
    top = top2_radius(z.to(dtype), a.to(dtype), torch.tensor([1, 0, 2]))
    assert (top == torch.inf).all()
    huge = top2_radius(torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype), torch.tensor([[1.0, 0.5, 2.0]], dtype=dtype), torch.tensor([0]))
    torch.testing.assert_close(huge, torch.tensor([1e4]), rtol=1e-2, atol=0)


def test_the_series_converges_within_the_radius_and_not_beyond():
    """Linear model: the loss along the step is -a_y t + log sum exp(z + t a); its Taylor series is summed to order 40."""
    z, a = np.array([0.4, 0.0, -0.3]), np.array([2.0, 1.0, -1.0])
    nearest = min(abs(zeros(z, a)))
    order = 60
    # Coefficients of F, then of log F by n f_0 c_n = n f_n - sum_k k c_k f_(n-k).
    f = [sum(w * s**n for w, s in zip(np.exp(z), a, strict=True)) / math.factorial(n) for n in range(order + 1)]
    c = [math.log(f[0])]
    for n in range(1, order + 1):
        c.append((f[n] - sum(k * c[k] * f[n - k] for k in range(1, n)) / n) / f[0])

    def error(t, terms):
        return abs(sum(c[n] * t**n for n in range(terms + 1)) - math.log(np.exp(z + t * a).sum()))

    assert error(0.8 * nearest, 60) < 0.1 * error(0.8 * nearest, 40) < 1e-4
    assert error(1.3 * nearest, 60) > 10 * error(1.3 * nearest, 40) > 1


@pytest.mark.parametrize("from_start", [True, False])
def test_the_divergence_is_near_its_quadratic_model(from_start):
    generator = torch.Generator().manual_seed(3)
    z, a = 3 * torch.randn(2, 5000, 4, generator=generator, dtype=torch.double)
    for step in (-1.0, 0.1, 2.0):
        actual, model, bound = kl_quadratic(z, a, step, from_start=from_start)
        assert (actual >= 0).all()
        assert ((actual - model).abs() <= bound * (1 + 1e-9)).all()
    swapped = kl_quadratic(z, a, 0.1, from_start=True)[2] if not from_start else None
    assert swapped is None or ((kl_quadratic(z, a, 0.1, from_start=False)[0] - model).abs() > swapped).any()


def test_parity():
    lines = [line for line in check_folder(GOLDEN) if line.slug == "ghosts"]
    assert len(lines) == 2
    assert {line.status for line in lines} == {"ok"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "stop"}, "mode: expected one of cap, set, watch, got 'stop'"),
        ({"over": "test"}, "over: expected one of batch, train"),
        ({"estimate": "exact"}, "estimate: expected one of bound, top-2"),
        ({"r": 0.0}, "r: expected a finite number > 0, got 0.0"),
        ({"temperature": -1.0}, "temperature: expected a finite number > 0"),
        ({"quantile": 1.5}, r"quantile: expected a number in \[0, 1\], got 1.5"),
        ({"subsample": -1}, "subsample: expected at least 1, got -1"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Ghosts(**options)


# The cap.


def data(count=24, classes=4):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 3, dtype=torch.double, generator=generator)
    return examples_from((x, torch.randint(0, classes, (count,), generator=generator)), classes)


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 4).double()


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 4)).double()


def fitted(method, student, *, rate=50.0, steps=1, optimizer=torch.optim.SGD, batch_size=24, roles=None, **rest):
    """Train, and return the logs of all steps."""
    torch.manual_seed(11)
    records = []
    roles = {"student": student} | (roles or {})
    trained = [p for phase in method.phases() for role in phase.trains for p in roles[role].parameters() if p.requires_grad]
    source = Source(data(), batch_size=batch_size, shuffle=False)
    train(method, roles, source, optimizer(trained, lr=rate), steps=steps, progress=records.append, **rest)
    return [record.extras for record in records]


def test_a_linear_model_is_capped_at_its_radius():
    student, free = linear(), linear()
    start = copy.deepcopy(student.state_dict())
    (log,) = fitted(Ghosts(), student)
    fitted(CrossEntropy(), free)
    whole = {name: value - start[name] for name, value in free.state_dict().items()}
    slopes = data().inputs @ whole["weight"].T + whole["bias"]
    tau = torch.cat([value.flatten() for value in whole.values()]).norm()
    spread = (slopes.amax(1) - slopes.amin(1)).max()
    assert math.isclose(log["tau"], float(tau), rel_tol=1e-12)
    assert math.isclose(log["r"], float(spread) / math.pi, rel_tol=1e-12)
    assert math.isclose(log["rho"], float(math.pi * tau / spread), rel_tol=1e-12)
    assert log["r"] > 1
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value - start[name], whole[name] / log["r"])
    done = (data().inputs @ (student.weight - start["weight"]).T + student.bias - start["bias"]).detach()
    assert float((done.amax(1) - done.amin(1)).max()) / math.pi <= 1 + 1e-6


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_short_steps_are_left_alone_and_moments_are_kept(optimizer):
    capped, free = network(), network()
    logs = fitted(Ghosts(), capped, rate=1e-3, steps=4, optimizer=optimizer, batch_size=6)
    fitted(CrossEntropy(), free, rate=1e-3, steps=4, optimizer=optimizer, batch_size=6)
    assert all(0 < log["r"] < 1 for log in logs)
    for one, other in zip(capped.parameters(), free.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_moments_do_not_see_the_cap():
    kept = []
    for method in (Ghosts(), CrossEntropy()):
        student = linear()
        optimizer = torch.optim.Adam(student.parameters(), lr=30.0)
        train(method, {"student": student}, Source(data(), batch_size=24), optimizer, steps=1)
        kept.append([value for entry in optimizer.state_dict()["state"].values() for value in entry.values()])
    for one, other in zip(*kept, strict=True):
        assert torch.equal(one, other)


def test_set_gives_every_step_the_same_normalised_length():
    for rate in (1e-4, 50.0):
        student = linear()
        start = copy.deepcopy(student.state_dict())
        fitted(Ghosts(mode="set", r=0.5), student, rate=rate)
        done = data().inputs @ (student.weight - start["weight"]).T + student.bias - start["bias"]
        assert math.isclose(float((done.amax(1) - done.amin(1)).max()) / math.pi, 0.5, rel_tol=1e-9)


def test_watch_changes_nothing():
    watched, free = network(), network()
    logs = fitted(Ghosts(mode="watch"), watched, steps=3)
    fitted(CrossEntropy(), free, steps=3)
    assert max(log["r"] for log in logs) > 1
    for one, other in zip(watched.parameters(), free.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(module.training for module in watched.modules())


def logged(options, student=linear, **rest):
    return fitted(Ghosts(mode="watch", **options), student(), **rest)[0]


def test_options_of_the_radius():
    plain = logged({})
    assert math.isclose(logged({"temperature": 2.0})["rho"], 2 * plain["rho"])
    assert math.isclose(logged({"differences": True})["r"], plain["r"], rel_tol=1e-6)
    assert logged({"quantile": 0.5})["rho"] > logged({"quantile": 0.99})["rho"] > plain["rho"]
    assert logged({"estimate": "top-2"})["rho"] > plain["rho"]
    assert logged({"subsample": 3})["rho"] > plain["rho"] == logged({"subsample": 24})["rho"]


def test_all_training_data_bound_more_than_a_batch():
    batch, everything = (logged({"over": over}, batch_size=2) for over in ("batch", "train"))
    assert everything["rho"] < batch["rho"]
    assert everything["tau"] == batch["tau"]
    assert logged({"over": "train", "subsample": 5}, batch_size=2)["rho"] > everything["rho"]


def test_items_that_do_not_count_do_not_bound():
    class Masked(Method):
        def prepare(self, batch, roles, state):
            return batch | {"mask": (batch["id"] < 2).double()}

        def loss(self, batch, signal, roles, state):
            return {"hard": hard_loss(roles["student"](batch["x"]), batch)}

    masked, whole = linear(), linear()
    (log,) = fitted(compose(Masked(), cap=Ghosts(mode="watch")), masked, batch_size=24)
    (few,) = fitted(Ghosts(mode="watch"), whole, batch_size=2)
    assert math.isclose(log["rho"], few["rho"], rel_tol=1e-12)


def test_frozen_parameters_do_not_count():
    student = network()
    student[0].requires_grad_(False)
    (log,) = fitted(Ghosts(), student)
    assert log["r"] > 0
    torch.testing.assert_close(student[0].weight, network()[0].weight, rtol=0, atol=0)


def test_no_step_is_reported_and_skipped():
    student = linear()
    (log,) = fitted(Ghosts(), student, rate=0.0)
    assert log == {"r": 0.0, "rho": math.inf, "tau": 0.0}


def test_a_step_that_moves_no_difference_has_no_limit():
    class Together(Method):
        def loss(self, batch, signal, roles, state):
            return {"sum": roles["student"](batch["x"]).sum(-1)}

    (log,) = fitted(compose(Together(), cap=Ghosts()), nn.Linear(3, 1).double())
    assert (log["r"], log["rho"]) == (0.0, math.inf)
    assert log["tau"] > 0


@pytest.mark.parametrize("rate", [math.inf, 1e308])
def test_a_step_that_is_not_finite_is_taken_back(rate):
    student = linear()
    with pytest.raises(NonFinite, match="update: expected finite values at step 1"):
        fitted(Ghosts(), student, rate=rate, optimizer=torch.optim.Adam)
    for one, other in zip(student.parameters(), linear().parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("base", [CrossEntropy(), ClassicKD(), Mutual()], ids=["ce", "classic-kd", "mutual"])
def test_it_caps_any_method(base):
    runs = {}
    for name, method in {"capped": compose(base, cap=Ghosts(r=0.2)), "free": base}.items():
        torch.manual_seed(7)
        student = linear()
        extra = method.extra_roles({"student": student}, {})
        logs = fitted(method, student, roles={"teacher": linear(3)} | extra, steps=2, rate=5.0)
        runs[name] = student.weight.detach().clone(), logs
    assert all(log["r"] > 0.2 for log in runs["capped"][1])
    assert runs["free"][1] == [{}, {}]
    start = linear().weight
    assert (runs["capped"][0] - start).norm() < (runs["free"][0] - start).norm()


def test_several_updates_are_one_step():
    free = linear()
    student = linear()
    optimizer = torch.optim.SGD(student.parameters(), lr=5.0)
    compute = Gradients(student)
    state = State(total_steps=1)
    batch = next(Source(data(), batch_size=24))
    Ghosts(mode="watch").limit(several_updates(3))(compute, optimizer, batch, {"student": student}, state)
    moved = torch.cat([(a - b).flatten() for a, b in zip(student.parameters(), free.parameters(), strict=True)])
    assert math.isclose(state.log["tau"], float(moved.norm()), rel_tol=1e-12)


class Gradients:
    def __init__(self, student):
        self.student, self.batch = student, next(Source(data(), batch_size=24))

    def __call__(self, only=None, backward=True):
        self.student.zero_grad()
        hard_loss(self.student(self.batch["x"]), self.batch).mean().backward()
        return {}


def test_a_recipe_takes_it_as_a_cap():
    method = make_method("dkd", {"beta": 2.0, "cap": {"name": "ghosts", "r": 0.5}})
    assert method == compose(make_method("dkd", {"beta": 2.0}), cap=Ghosts(r=0.5))
    with pytest.raises(ValueError, match=r"method.cap: .*Ghosts, which has one of its own"):
        make_method("ghosts", {"cap": "ghosts"})


def test_miniature():
    found = miniature(0, "smoke")
    assert set(found.arms) == {"untrained", "ce", "ce-clipped", "ce-without-spike", "ghosts"}
    assert [claim.baseline for claim in found.claims] == ["ce", "ce-clipped"]
