"""Losses from hidden states and output layers: equal to the dense ones, value and gradient."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from preceptor.losses.divergence import DIVERGENCES, log_probs
from preceptor.losses.linear import (
    linear_cross_entropy,
    linear_cross_entropy_lse,
    linear_divergence,
    linear_entropy,
    linear_log_probs,
    linear_sparse_cross_entropy,
    linear_topk_kl,
)
from preceptor.models.heads import Head

N, D, E, V = 7, 5, 4, 11
CHUNKS = pytest.mark.parametrize("chunk_rows", [1, 3, 7, 100])
SHARED = {"skew_forward_kl": "skew", "skew_reverse_kl": "skew", "generalized_jsd": "beta", "js_distance": "student_share"}
SHARED |= {"symmetric_kl": "reverse_share"}


@pytest.fixture
def world() -> dict[str, Tensor]:
    """Hidden states, heads and targets in double precision."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.double, generator=g)

    return {
        "h": draw(N, D).requires_grad_(),
        "w": draw(V, D).requires_grad_(),
        "b": draw(V).requires_grad_(),
        "th": draw(N, E),
        "tw": draw(V, E),
        "tb": draw(V),
        "y": torch.randint(V, (N,), generator=g),
        "upstream": draw(N),
        "mask": torch.tensor([1, 0, 1, 1, 0, 1, 1]),
    }


def student(world: dict[str, Tensor], soft_cap: float | None = None) -> Head:
    return Head(world["w"], world["b"], soft_cap)


def dense(world: dict[str, Tensor], soft_cap: float | None = None) -> Tensor:
    logits = world["h"] @ world["w"].T + world["b"]
    return logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)


def same(world: dict[str, Tensor], found: Tensor, expected: Tensor, upstream: Tensor | None = None) -> None:
    """Equal values, and equal gradients for an upstream gradient that is constant and for one that differs in every row."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    leaves = [world[name] for name in ("h", "w", "b")]
    for g in (torch.full_like(expected, -1.7), world["upstream"].reshape(expected.shape) if upstream is None else upstream):
        ours, theirs = (torch.autograd.grad(value, leaves, g, retain_graph=True) for value in (found, expected))
        for name, a, b in zip("hwb", ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@CHUNKS
@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"label_smoothing": 0.2, "weighted": True}, {"weighted": True}])
def test_cross_entropy_is_torchs(world, chunk_rows, soft_cap, options):
    weights = torch.rand(V, dtype=torch.double) + 0.5 if options.pop("weighted", False) else None
    y = world["y"].clone()
    y[2] = -100
    found = linear_cross_entropy(world["h"], student(world, soft_cap), y, class_weights=weights, chunk_rows=chunk_rows, **options)
    expected = F.cross_entropy(dense(world, soft_cap), y, weight=weights, reduction="none", **options)
    same(world, found, expected)


@CHUNKS
def test_temperature_and_z_loss(world, chunk_rows):
    for temperature in (2.0, torch.linspace(0.5, 3, N, dtype=torch.double)):
        found = linear_cross_entropy(
            world["h"], student(world), world["y"], temperature=temperature, z_loss=0.3, chunk_rows=chunk_rows, mask=world["mask"]
        )
        logits = dense(world) / (temperature[:, None] if isinstance(temperature, Tensor) else temperature)
        expected = (F.cross_entropy(logits, world["y"], reduction="none") + 0.3 * logits.logsumexp(-1).square()) * world["mask"]
        same(world, found, expected)


def test_log_normaliser_and_log_probs(world):
    lse = dense(world).logsumexp(-1)
    nll = F.cross_entropy(dense(world), world["y"], reduction="none")
    found = linear_cross_entropy_lse(world["h"], student(world), world["y"], chunk_rows=3)
    same(world, found[0], nll)
    same(world, found[1], lse)
    same(world, 2 * found[0] + found[1].square(), 2 * nll + lse.square())
    same(world, linear_log_probs(world["h"], student(world), world["y"], chunk_rows=3), -nll)


@CHUNKS
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergences_are_the_dense_ones(world, kind, temperature, chunk_rows):
    teacher, head = world["th"] @ world["tw"].T + world["tb"], Head(world["tw"], world["tb"])
    for share in (None, 0.0, 0.3, 1.0) if kind in SHARED else (None,):
        found = linear_divergence(
            world["h"], student(world), world["th"], head, kind=kind, share=share, temperature=temperature, chunk_rows=chunk_rows
        )
        options = {} if share is None else {SHARED[kind]: share}
        same(world, found, DIVERGENCES[kind](dense(world), teacher, temperature=temperature, **options))


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_masks_axes_and_temperatures_of_a_divergence(world, kind):
    shape = (1, N)
    temperature = torch.linspace(0.5, 3, N, dtype=torch.double)
    found = linear_divergence(
        world["h"].view(*shape, D),
        student(world, 2.0),
        world["th"].view(*shape, E),
        Head(world["tw"], None, 3.0),
        kind=kind,
        mask=world["mask"].view(shape),
        temperature=temperature,
        teacher_temperature=1.5,
        chunk_rows=2,
    )
    teacher = 3 * torch.tanh(world["th"] @ world["tw"].T / 3)
    expected = DIVERGENCES[kind](dense(world, 2.0), teacher, temperature=temperature, teacher_temperature=1.5) * world["mask"]
    same(world, found, expected.view(shape))


@CHUNKS
def test_few_classes_of_a_teacher(world, chunk_rows):
    log_p = log_probs(world["th"] @ world["tw"].T)
    values, indices = log_p.topk(4, dim=-1)
    log_q = log_probs(dense(world) / 2)
    picked = log_q.gather(1, indices)
    renormalised = values.log_softmax(-1)
    arguments = (world["h"], student(world), indices, values)
    found = linear_topk_kl(*arguments, temperature=2.0, chunk_rows=chunk_rows)
    same(world, found, (renormalised.exp() * (renormalised - picked)).sum(-1))
    found = linear_topk_kl(*arguments, temperature=2.0, tail=True, chunk_rows=chunk_rows)
    p_t, q_t = 1 - values.exp().sum(-1), 1 - picked.exp().sum(-1)
    same(world, found, (values.exp() * (values - picked)).sum(-1) + p_t * (p_t / q_t).log())
    weights = torch.rand(N, 4, dtype=torch.double)
    indices[:, 1] = indices[:, 0]  # a token that was drawn twice
    found = linear_sparse_cross_entropy(world["h"], student(world), indices, weights, temperature=2.0, chunk_rows=chunk_rows)
    same(world, found, -(weights * log_q.gather(1, indices)).sum(-1))


@pytest.mark.parametrize("tail", [False, True])
def test_all_classes_are_the_whole_divergence_and_fewer_are_a_bound(world, tail):
    log_p = log_probs(world["th"] @ world["tw"].T)
    whole = DIVERGENCES["forward_kl"](dense(world), log_p)
    values, indices = log_p.topk(V, dim=-1)
    same(world, linear_topk_kl(world["h"], student(world), indices, values, tail=tail), whole)
    for k in range(1, V):
        part = linear_topk_kl(world["h"], student(world), indices[:, :k], values[:, :k], tail=tail)
        assert (part >= 0).all()
        assert not tail or (part <= whole + 1e-12).all()


def test_entropy(world):
    log_q = log_probs(dense(world) / 2)
    same(world, linear_entropy(world["h"], student(world), temperature=2.0, chunk_rows=3), -(log_q.exp() * log_q).sum(-1))


def losses(head: Head, teacher: Head, kind: str = "") -> dict[str, object]:
    """Every loss as a function of hidden states, for what they share; the teacher's states are the first columns of the student's."""
    indices = torch.arange(4).expand(N, 4)
    log_p = torch.linspace(-3, -1.5, 4, dtype=torch.double).expand(N, 4)
    y = torch.arange(N) % V

    def divergence(name: str):
        return lambda h, **rest: linear_divergence(h, head, h[..., :E], teacher, kind=name, **rest)

    return {
        "cross_entropy": lambda h, **rest: linear_cross_entropy(h, head, y, label_smoothing=0.1, z_loss=0.1, **rest),
        "lse": lambda h, **rest: linear_cross_entropy_lse(h, head, y, **rest)[1],
        "log_probs": lambda h, **rest: linear_log_probs(h, head, y, **rest),
        "entropy": lambda h, **rest: linear_entropy(h, head, **rest),
        "topk": lambda h, **rest: linear_topk_kl(h, head, indices, log_p, **rest),
        "topk_tail": lambda h, **rest: linear_topk_kl(h, head, indices, log_p, tail=True, **rest),
        "sparse": lambda h, **rest: linear_sparse_cross_entropy(h, head, indices, log_p.exp(), **rest),
        **{name: divergence(name) for name in DIVERGENCES},
    }


ALL = ["cross_entropy", "lse", "log_probs", "entropy", "topk", "topk_tail", "sparse", *DIVERGENCES]
EVERY = pytest.mark.parametrize("name", ALL)


@EVERY
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_gradcheck(world, name, soft_cap):
    th = world["th"]

    def call(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        head = Head(w, b, soft_cap)
        if name in DIVERGENCES:
            return linear_divergence(h, head, th, Head(world["tw"], world["tb"]), kind=name, temperature=1.5, chunk_rows=3)
        return losses(head, Head(world["tw"]))[name](h, temperature=1.5, chunk_rows=3)

    assert torch.autograd.gradcheck(call, (world["h"], world["w"], world["b"]))


@EVERY
def test_masked_rows_cost_nothing_and_change_nothing(world, name):
    head = student(world)
    loss = losses(head, Head(world["tw"]))[name]
    mask = world["mask"] != 0
    spoiled = torch.where(mask[:, None], world["h"].detach(), torch.nan).requires_grad_()
    found = loss(spoiled, mask=world["mask"], chunk_rows=2)
    torch.testing.assert_close(found, torch.where(mask, loss(world["h"], chunk_rows=2), 0.0), rtol=0, atol=1e-12)
    found.sum().backward()
    assert (spoiled.grad[~mask] == 0).all()
    assert spoiled.grad[mask].abs().sum(-1).all()
    expected = torch.autograd.grad(loss(world["h"])[mask].sum(), (world["h"], world["w"], world["b"]))
    for leaf, gradient in zip((spoiled, world["w"], world["b"]), expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=0, atol=1e-12)


@EVERY
def test_nothing_to_count_is_zero_with_a_zero_gradient(world, name):
    loss = losses(student(world), Head(world["tw"]))[name]
    value = loss(world["h"], mask=torch.zeros(N)).sum()
    value.backward()
    assert value == 0
    for leaf in ("h", "w", "b"):
        assert (world[leaf].grad == 0).all()


def test_no_rows_at_all(world):
    empty = world["h"][:0]
    value = linear_cross_entropy(empty, student(world), world["y"][:0])
    value.sum().backward()
    assert value.shape == (0,)
    assert (world["w"].grad == 0).all()


@EVERY
def test_only_what_is_trained_gets_a_gradient(world, name):
    teacher = Head(world["tw"].requires_grad_())
    frozen = Head(world["w"].detach(), None)
    losses(frozen, teacher)[name](world["h"]).sum().backward()
    expected = torch.autograd.grad(losses(Head(world["w"]), teacher)[name](world["h"]).sum(), (world["h"],))[0]
    torch.testing.assert_close(world["h"].grad, expected, rtol=0, atol=1e-12)
    assert world["tw"].grad is None
    still = world["h"].detach()
    losses(Head(world["w"]), teacher)[name](still).sum().backward()
    assert world["w"].grad.any()
    assert world["tw"].grad is None
    with torch.no_grad():
        assert not losses(frozen, teacher)[name](world["h"]).requires_grad


def test_a_second_backward_pass_and_accumulation(world):
    loss = linear_cross_entropy(world["h"], student(world), world["y"], chunk_rows=3).sum()
    first = torch.autograd.grad(3 * loss, (world["h"], world["w"]), retain_graph=True)
    second = torch.autograd.grad(loss, (world["h"], world["w"]))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, 3 * b)


@pytest.mark.parametrize("name", ["cross_entropy", "topk", "forward_kl", "generalized_jsd"])
def test_a_shift_of_all_logits_changes_nothing(world, name):
    def rows_of(b: Tensor) -> Tensor:
        head = Head(world["w"], b)
        y = world["y"]
        return linear_cross_entropy(world["h"], head, y) if name == "cross_entropy" else losses(head, Head(world["tw"]))[name](world["h"])

    value, shifted = rows_of(world["b"]), rows_of(world["b"] + 5.0)
    torch.testing.assert_close(shifted, value)
    gradient = torch.autograd.grad(value.sum(), world["b"])[0]
    assert abs(gradient.sum().item()) < 1e-12  # each row's logit gradient sums to 0


def test_order_of_the_vocabulary_is_free(world):
    order = torch.randperm(V, generator=torch.Generator().manual_seed(3))
    place = order.argsort()
    value = linear_cross_entropy(world["h"], student(world), world["y"])
    moved = linear_cross_entropy(world["h"], Head(world["w"][order], world["b"][order]), place[world["y"]])
    torch.testing.assert_close(moved, value)
    same(world, moved, value)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_divergence_is_zero_at_agreement_and_never_negative(kind, dtype):
    torch.manual_seed(0)
    h, w = torch.randn(20, 8).to(dtype).requires_grad_(), torch.randn(50, 8).to(dtype)
    value = linear_divergence(h, Head(w), h, Head(w), kind=kind)
    assert (value >= 0).all()
    assert value.max() < 1e-6
    value.sum().backward()
    assert h.grad.abs().max() < 1e-6
    for scale in (1e-4, 1.0):
        near = h.detach() + scale * torch.randn(20, 8).to(dtype)
        assert (linear_divergence(near, Head(w), h, Head(w), kind=kind) >= 0).all()


@EVERY
def test_a_masked_vocabulary(world, name):
    """A class with a bias of -inf is as if it were not there."""
    gone = torch.zeros(V, dtype=torch.bool)
    gone[[5, 9]] = True
    bias = world["b"].detach().masked_fill(gone, -torch.inf).requires_grad_()
    teacher = Head(world["tw"], world["tb"].masked_fill(gone, -torch.inf))
    whole = losses(Head(world["w"], bias), teacher)
    fewer = losses(Head(world["w"][~gone], bias[~gone]), Head(world["tw"][~gone], world["tb"][~gone]))
    if name in ("cross_entropy", "lse", "log_probs"):
        y = torch.arange(N) % 4
        options = {"z_loss": 0.1} if name == "cross_entropy" else {}
        function = {"cross_entropy": linear_cross_entropy, "lse": lambda *a: linear_cross_entropy_lse(*a)[1], "log_probs": linear_log_probs}
        values = [function[name](world["h"], Head(w, b), y, **options) for w, b in ((world["w"], bias), (world["w"][~gone], bias[~gone]))]
    else:
        values = [whole[name](world["h"]), fewer[name](world["h"])]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(v.sum(), (world["h"], world["w"], bias)) for v in values]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert (gradients[0][1][gone] == 0).all()


def test_classes_that_one_side_masks_count_as_in_the_dense_losses(world):
    bias, teacher_bias = world["b"].detach().clone(), world["tb"].clone()
    bias[3] = teacher_bias[6] = -torch.inf
    world["b"] = bias.requires_grad_()
    for kind, function in DIVERGENCES.items():
        found = linear_divergence(world["h"], student(world), world["th"], Head(world["tw"], teacher_bias), kind=kind)
        logits = world["h"] @ world["w"].T + world["b"]
        same(world, found, function(logits, world["th"] @ world["tw"].T + teacher_bias))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near_double(world, name, dtype):
    """bfloat16 rounds logits and their gradient, as it does in the dense losses; float32 is good to its rounding."""
    exact = losses(student(world), Head(world["tw"]))[name](world["h"], chunk_rows=3)
    exact_grads = torch.autograd.grad(exact.sum(), (world["h"], world["w"], world["b"]))
    h, w, b = (world[key].detach().to(dtype).requires_grad_() for key in ("h", "w", "b"))
    value = losses(Head(w, b), Head(world["tw"].to(dtype)))[name](h, chunk_rows=3)
    assert value.dtype == torch.float32
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    assert (value - exact).norm() / exact.norm() < tolerance
    for gradient, reference in zip(torch.autograd.grad(value.sum(), (h, w, b)), exact_grads, strict=True):
        assert gradient.dtype == dtype
        assert (gradient - reference).norm() / reference.norm() < tolerance


def test_autocast_multiplies_in_bfloat16(world):
    h, w, b = (world[key].detach().float().requires_grad_() for key in ("h", "w", "b"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_cross_entropy(h, Head(w, b), world["y"])
        expected = F.cross_entropy(F.linear(h, w, b).float(), world["y"], reduction="none")
        divergence = linear_divergence(h, Head(w, b), h, Head(w, b))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert divergence.max() < 1e-6
    ours, theirs = (torch.autograd.grad(v.sum(), (h, w, b)) for v in (found, expected))
    for a, e in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        assert (a - e).norm() / e.norm() < 1e-2


def test_large_logits_stay_finite():
    h = torch.tensor([[300.0, -300.0], [1e4, 1e4]]).requires_grad_()
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]]).requires_grad_()
    for name in DIVERGENCES:
        value = linear_divergence(h, Head(w), -h.detach(), Head(w.detach()), kind=name)
        gradients = torch.autograd.grad(value.sum(), (h, w))
        assert value.isfinite().all()
        assert all(g.isfinite().all() for g in gradients)
        torch.testing.assert_close(value, DIVERGENCES[name](h @ w.T, -(h @ w.T)))


def test_inputs_that_are_not_contiguous(world):
    h = world["h"].detach().T.contiguous().T.requires_grad_()
    w = world["w"].detach().T.contiguous().T.requires_grad_()
    found = linear_cross_entropy(h, Head(w, world["b"]), world["y"], chunk_rows=3)
    expected = linear_cross_entropy(world["h"], student(world), world["y"])
    torch.testing.assert_close(found, expected)
    for a, e in zip(torch.autograd.grad(found.sum(), (h, w)), torch.autograd.grad(expected.sum(), (world["h"], world["w"])), strict=True):
        torch.testing.assert_close(a, e)


def test_every_name_of_the_dense_divergences_is_here(world):
    h = world["h"]
    assert all(losses(student(world), Head(world["tw"]))[name](h).shape == (N,) for name in DIVERGENCES)
    with pytest.raises(ValueError, match=r"kind: expected one of forward_kl, .*, got 'hinge'"):
        linear_divergence(h, student(world), world["th"], Head(world["tw"]), kind="hinge")


def test_bad_input_is_refused(world):
    h, head, teacher, y = world["h"], student(world), Head(world["tw"]), world["y"]
    for match, call in {
        r"hidden: expected shape \(\.\.\., D\) for a head of shape \(V, D\) = \(11, 5\), got \(7, 4\)": lambda: linear_entropy(
            h[:, :4], head
        ),
        r"head: expected a bias of shape \(11,\), got \(10,\)": lambda: linear_entropy(h, Head(head.weight, world["b"][:10])),
        r"teacher hidden: expected shape \(\.\.\., D\) for .* \(11, 4\), got \(7, 5\)": lambda: linear_divergence(h, head, h, teacher),
        r"teacher hidden: expected shape \(7,\) \+ \(E,\), got \(3, 4\)": lambda: linear_divergence(h, head, world["th"][:3], teacher),
        "teacher head: expected 11 classes like the student's, got 9": lambda: linear_divergence(
            h, head, world["th"], Head(world["tw"][:9])
        ),
        "share: expected None for forward_kl, got 0.5": lambda: linear_divergence(h, head, world["th"], teacher, share=0.5),
        r"share: expected a number in \[0, 1\], got 2": lambda: linear_divergence(
            h, head, world["th"], teacher, kind="generalized_jsd", share=2
        ),
        r"mask: expected shape \(7,\) \(one per row\), got \(6,\)": lambda: linear_entropy(h, head, mask=torch.ones(6)),
        r"targets: expected shape \(7,\) .*, got \(6,\)": lambda: linear_cross_entropy(h, head, y[:6]),
        r"targets: expected values in \[0, 10\], got 11": lambda: linear_cross_entropy(h, head, torch.full((N,), 11)),
        r"class_weights: expected shape \(11,\), got \(3,\)": lambda: linear_cross_entropy(h, head, y, class_weights=torch.ones(3)),
        r"label_smoothing: expected a number in \[0, 1\], got 1.5": lambda: linear_cross_entropy(h, head, y, label_smoothing=1.5),
        "z_loss: expected a number >= 0, got -1": lambda: linear_cross_entropy(h, head, y, z_loss=-1),
        "temperature: expected a finite number > 0, got 0": lambda: linear_entropy(h, head, temperature=0),
        r"temperature: expected a number or shape \(7,\), got \(7, 1\)": lambda: linear_entropy(h, head, temperature=torch.ones(N, 1)),
        "chunk_rows: expected at least 1, got 0": lambda: linear_entropy(h, head, chunk_rows=0),
        r"indices: expected shape \(7,\) \+ \(k,\), and as many values, got \(7, 2\) and \(7, 3\)": lambda: linear_topk_kl(
            h, head, torch.zeros(N, 2, dtype=torch.int64), torch.zeros(N, 3)
        ),
        r"indices: expected values in \[0, 10\], got -1": lambda: linear_topk_kl(
            h, head, torch.full((N, 2), -1), torch.zeros(N, 2, dtype=torch.double)
        ),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
    for match, call in {
        "targets: expected integers, got torch.float64": lambda: linear_cross_entropy(h, head, y.double()),
        "indices: expected integers, got torch.float32": lambda: linear_topk_kl(h, head, torch.zeros(N, 2), torch.zeros(N, 2)),
        "hidden: expected a floating-point tensor, got torch.int64": lambda: linear_entropy(h.long(), head),
    }.items():
        with pytest.raises(TypeError, match=match):
            call()


MEMORY = """
import sys, torch, torch.nn.functional as F
from preceptor.losses.linear import linear_cross_entropy, linear_divergence
from preceptor.models.heads import Head

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

torch.set_num_threads(1)
rows, width, vocabulary = (int(x) for x in sys.argv[2:])
h, w = torch.randn(rows, width, requires_grad=True), torch.randn(vocabulary, width, requires_grad=True)
y = torch.randint(vocabulary, (rows,))
(h[:1] @ w.T).sum().backward()
h.grad = w.grad = None
before = peak()
if sys.argv[1] == "dense":
    F.cross_entropy(h @ w.T, y).backward()
elif sys.argv[1] == "fused":
    linear_cross_entropy(h, Head(w), y, chunk_rows=128).mean().backward()
else:
    linear_divergence(h, Head(w), h, Head(w), kind="reverse_kl", chunk_rows=128).mean().backward()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_rows_times_vocabulary():
    def megabytes(what: str, rows: int) -> float:
        command = [sys.executable, "-c", MEMORY, what, str(rows), "32", "32768"]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    chunk = 128 * 32768 * 4 / 2**20  # 16 MB of logits; the gradients are 4 MB
    assert megabytes("dense", 1024) > 2 * 8 * chunk
    for rows in (512, 1024):
        assert megabytes("fused", rows) < 2.5 * chunk
        assert megabytes("divergence", rows) < 3.5 * chunk
