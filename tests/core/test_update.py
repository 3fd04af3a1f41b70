"""Updates: computing more than once, parts of the loss, clipping."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tests.core.small import CrossEntropy, assert_same_weights, batches, net, records_of, sgd, vector
from torch import nn

from preceptor.core.loop import steps
from preceptor.core.method import Method, NonFinite, clip_and_step, evaluating
from preceptor.core.state import State
from preceptor.core.stream import as_stream


@dataclass(frozen=True, kw_only=True)
class Sharp(Method):
    """Sharpness-aware: the gradient is taken a step uphill, with the same dropout masks and the same teacher signal."""

    radius: float = 0.1
    masks: list = field(default_factory=list, repr=False)
    signals: list = field(default_factory=list, repr=False)

    def signal(self, batch, roles, state):
        noise = torch.randn(len(batch["x"]), 3, dtype=torch.double)  # draws that a second compute must not shift
        self.signals.append(noise)
        return {"noise": noise + torch.randn(1, generator=state.rng, dtype=torch.double)}

    def loss(self, batch, signal, roles, state):
        hidden = roles["student"][:3](batch["x"])
        self.masks.append((hidden == 0, torch.rand(1, generator=state.rng).item()))
        logits = roles["student"][3](hidden)
        return {"hard": F.cross_entropy(logits, batch["y"], reduction="none"), "noise": 0.1 * (logits - signal["noise"]).square().sum(-1)}

    def update(self, compute, optimizer, batch, roles, state):
        compute()
        parameters = list(roles["student"].parameters())
        slope = torch.cat([p.grad.reshape(-1) for p in parameters])
        uphill = [self.radius * p.grad / slope.norm() for p in parameters]
        with torch.no_grad():
            torch._foreach_add_(parameters, uphill)
        compute()
        with torch.no_grad():
            torch._foreach_sub_(parameters, uphill)
        clip_and_step(optimizer, state)

    def after_step(self, batch, records, roles, state):
        state.log["heard"] = float(records["student"]["hard"] + records["student"]["noise"])


@pytest.mark.parametrize("micro", [1, 2])
def test_sharpness_aware_update_repeats_dropout_and_signal(micro):
    student, method = net(0, dropout=0.5), Sharp()
    torch.manual_seed(7)
    records = records_of(method, {"student": student}, batches(5), {"student": sgd(student)}, total=5, micro=micro)
    end = torch.get_rng_state()
    assert len(method.masks) == 5 * 2 * micro
    assert len(method.signals) == 5 * micro  # the teacher is asked once per microbatch
    for step in range(5):
        first, second = (method.masks[(2 * step + turn) * micro : (2 * step + turn + 1) * micro] for turn in (0, 1))
        for (mask, draw), (again, redraw) in zip(first, second, strict=True):
            assert torch.equal(mask, again)
            assert draw == redraw
            assert 0 < mask.double().mean() < 1
    assert not torch.equal(method.masks[0][0], method.masks[2 * micro][0])  # the next step has masks of its own

    twin, draws = net(0, dropout=0.5), torch.Generator().manual_seed(0)
    torch.manual_seed(7)
    losses = []
    for batch in batches(5):
        pieces = []
        for x, y in zip(batch["x"].chunk(micro), batch["y"].chunk(micro), strict=True):
            noise = torch.randn(len(x), 3, dtype=torch.double) + torch.randn(1, generator=draws, dtype=torch.double)
            keep = F.dropout(torch.ones(len(x), 6, dtype=torch.double), 0.5)
            torch.rand(1, generator=draws)
            pieces.append((x, y, noise, keep))

        def loss(pieces=pieces):
            total = 0
            for x, y, noise, keep in pieces:
                logits = twin[3](torch.tanh(twin[0](x)) * keep)
                total = total + F.cross_entropy(logits, y, reduction="sum") + 0.1 * (logits - noise).square().sum()
            return total / 8

        value = loss()
        losses.append(value.item())
        slopes = torch.autograd.grad(value, list(twin.parameters()))
        norm = torch.cat([slope.reshape(-1) for slope in slopes]).norm()
        with torch.no_grad():
            for parameter, slope in zip(twin.parameters(), slopes, strict=True):
                parameter.add_(0.1 * slope / norm)
        sharp = torch.autograd.grad(loss(), list(twin.parameters()))
        with torch.no_grad():
            for parameter, slope, step in zip(twin.parameters(), slopes, sharp, strict=True):
                parameter.sub_(0.1 * slope / norm).sub_(0.1 * step)
    assert_same_weights(student, twin)
    assert torch.equal(torch.get_rng_state(), end)
    assert [record.losses["total"] for record in records] == pytest.approx(losses, rel=1e-12)  # the loss where the step began
    assert [record.extras["heard"] for record in records] == pytest.approx(losses, rel=1e-12)


@dataclass(frozen=True, kw_only=True)
class Projected(Method):
    """Two terms; where their gradients conflict, the second gives way."""

    seen: list = field(default_factory=list, repr=False)

    def loss(self, batch, signal, roles, state):
        logits = roles["student"](batch["x"])
        return {"hard": F.cross_entropy(logits, batch["y"], reduction="none"), "flat": logits.square()}

    def update(self, compute, optimizer, batch, roles, state):
        parameters, slopes = list(roles["student"].parameters()), {}
        before = compute(backward=False)
        assert all(p.grad is None for p in parameters) or state.step > 0
        for name in ("hard", "flat"):
            terms = compute(only=[name])
            assert set(terms) == {name}
            slopes[name] = torch.cat([p.grad.reshape(-1) for p in parameters])
        self.seen.append((before, slopes))
        both = slopes["hard"] + slopes["flat"] - min(0, slopes["hard"] @ slopes["flat"]) / slopes["hard"].square().sum() * slopes["hard"]
        for parameter, piece in zip(parameters, both.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = piece.view_as(parameter)
        clip_and_step(optimizer, state)


@pytest.mark.parametrize("micro", [1, 3])
def test_gradients_of_single_terms(micro):
    student, method, data = net(0), Projected(), batches(1)
    (record,) = records_of(method, {"student": student}, data, {"student": sgd(student)}, total=1, micro=micro)
    twin, (batch,) = net(0), data
    terms = {"hard": F.cross_entropy(twin(batch["x"]), batch["y"]), "flat": twin(batch["x"]).square().mean()}
    ((before, slopes),) = method.seen
    for name, value in terms.items():
        expected = torch.cat([slope.reshape(-1) for slope in torch.autograd.grad(value, list(twin.parameters()))])
        torch.testing.assert_close(slopes[name], expected, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(before[name], value.detach(), rtol=1e-12, atol=0)
        assert not before[name].requires_grad
        assert record.losses[name] == pytest.approx(value.item(), rel=1e-12)
    assert record.losses["total"] == pytest.approx(sum(value.item() for value in terms.values()), rel=1e-12)


@dataclass(frozen=True, kw_only=True)
class Mistaken(CrossEntropy):
    def update(self, compute, optimizer, batch, roles, state):
        compute(only=["hard", "sofd"])


def test_an_unknown_term_is_named():
    student = net(0)
    with pytest.raises(ValueError, match=r"compute: expected terms out of \['hard'\], got \['sofd'\]"):
        records_of(Mistaken(), {"student": student}, batches(1), {"student": sgd(student)}, total=1)


def test_a_second_compute_replaces_the_gradient():
    student, seen = net(0), []

    @dataclass(frozen=True, kw_only=True)
    class Twice(CrossEntropy):
        def update(self, compute, optimizer, batch, roles, state):
            for _ in range(2):
                compute()
                seen.append([p.grad.clone() for p in roles["student"].parameters()])

    for parameter in student.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)  # left over from before
    records_of(Twice(), {"student": student}, batches(1), {"student": sgd(student)}, total=1, micro=2)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert max(gradient.abs().max() for gradient in seen[0]) < 10


def test_clipping():
    free, clipped, (batch,) = net(0), net(0), batches(1)
    for student, clip in ((free, None), (clipped, 0.05)):
        state = State(total_steps=1, clip=clip)
        (record,) = records_of(CrossEntropy(), {"student": student}, [batch], {"student": sgd(student)}, total=1, state=state)
        assert record.gradient_norm == state.gradient_norm > 0.05  # as it was before clipping
    start = vector(net(0))
    torch.testing.assert_close((start - vector(clipped)).norm() / 0.1, torch.tensor(0.05).double(), rtol=1e-4, atol=0)  # torch adds 1e-6
    torch.testing.assert_close(F.normalize(start - vector(clipped), dim=0), F.normalize(start - vector(free), dim=0), rtol=1e-9, atol=1e-12)

    big = net(0)
    records_of(
        CrossEntropy(), {"student": big}, [batch], {"student": sgd(big)}, total=1, state=State(total_steps=1, clip=1e3)
    )  # a bound that is not reached changes nothing
    assert torch.equal(vector(big), vector(free))


def test_a_bad_gradient_stops_before_the_step():
    class Root(torch.autograd.Function):
        """Finite forward, infinite slope."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *slopes):
            return slopes[0] / 0

    @dataclass(frozen=True, kw_only=True)
    class Steep(CrossEntropy):
        def loss(self, batch, signal, roles, state):
            return {name: Root.apply(value) for name, value in super().loss(batch, signal, roles, state).items()}

    student = net(0)
    with pytest.raises(NonFinite, match=r"gradient: expected finite values at step 1, got norm=(nan|inf)"):
        records_of(Steep(), {"student": student}, batches(1), {"student": sgd(student)}, total=1)
    assert torch.equal(vector(student), vector(net(0)))


def test_evaluating_brings_every_mode_back():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3))
    model[1].eval()
    with evaluating(model) as same:
        assert same is model
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == [True, True, False]
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        raise RuntimeError("inside")
    assert [m.training for m in model.modules()] == [True, True, False]


@pytest.fixture
def bfloat16():
    AcceleratorState._reset_state(True)  # accelerate keeps one precision per process
    yield Accelerator(mixed_precision="bf16")
    AcceleratorState._reset_state(True)


def test_bfloat16_keeps_weights_and_losses_in_float32(bfloat16):
    student, data = net(0).float(), [{**batch, "x": batch["x"].float()} for batch in batches(3)]
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Looking(CrossEntropy):
        def loss(self, batch, signal, roles, state):
            seen.append(roles["student"](batch["x"]).dtype)
            return super().loss(batch, signal, roles, state)

    optimizers, state = {"student": sgd(student)}, State(total_steps=3)
    turns = steps(Looking(), {"student": student}, as_stream(data), optimizers, state=state, accelerator=bfloat16, micro=2)
    losses = [record.losses["total"] for record in turns]
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in student.parameters()} == {p.grad.dtype for p in student.parameters()} == {torch.float32}
    exact = net(0).float()
    AcceleratorState._reset_state(True)
    expected = [record.losses["total"] for record in records_of(CrossEntropy(), {"student": exact}, data, {"student": sgd(exact)}, total=3)]
    assert losses == pytest.approx(expected, rel=0.02)  # bfloat16 has 8 bits
