"""Losses from hidden states and output layers: equal to the dense ones, value and gradient."""

from __future__ import annotations

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
