"""What is kept of a teacher's answer: the top within its bound, the sample without a bias."""

import math

import pytest
import torch

from preceptor.losses.divergence import forward_kl, kl
from preceptor.losses.sparse import sparse_cross_entropy
from preceptor.teachers.targets import (
    KL_BOUND_PER_BUCKET,
    LEVELS,
    pack_sample,
    pack_top,
    sample,
    top_k,
    unpack_sample,
    unpack_top,
)


def logits(*shape, scale=2.0, seed=0):
    return scale * torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def buckets(log_probs, tail):
    """The k + 1 buckets (items, k + 1) as log-probabilities."""
    return torch.cat([log_probs.double(), tail.double()[:, None]], dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_top_of_a_distribution(temperature):
    z = logits(20, 9)
    indices, values, tail = top_k(z, 4, temperature=temperature)
    p = (z / temperature).softmax(-1)
    assert (indices.diff(dim=-1) > 0).all()
    torch.testing.assert_close(values.exp(), p.gather(-1, indices))
    torch.testing.assert_close(values.exp().sum(-1), p.topk(4, dim=-1).values.sum(-1))
    torch.testing.assert_close(tail.exp(), 1 - values.exp().sum(-1))


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 30.0])
def test_compact_keeps_the_bound_whatever_the_teacher_says(scale):
    z = logits(300, 200, scale=scale)
    indices, values, tail = top_k(z, 16)
    found = unpack_top(pack_top(indices, values, tail, "compact"))
    assert torch.equal(found["top_indices"], indices)
    p, q = buckets(values, tail), buckets(found["top_logprobs"], found["tail"].log())
    torch.testing.assert_close(q.exp().sum(-1).float(), torch.ones(300))  # the numbers read back are float32
    bound = 17 * KL_BOUND_PER_BUCKET
    assert (kl(p, q) <= bound).all()
    assert ((p.exp() - q.exp()).abs().sum(-1) <= math.sqrt(2 * bound)).all()  # Pinsker
    assert ((p - q)[p > -80].abs() <= 0.2).all()  # below lies what stands for log 0
    half = unpack_top(pack_top(indices, values, tail, "float16"))
    assert ((half["top_logprobs"] - values).abs() <= 2**-11 * values.abs() + 1e-6).all()


@pytest.mark.parametrize("buckets_each", [5, 31])
def test_the_worst_case_of_the_bound_is_nearly_met(buckets_each):
    """As many roots rounded down by half a level as up, and one bucket with the rest."""
    root = LEVELS / math.sqrt(2 * buckets_each + 1)
    roots = torch.tensor([[math.floor(root) + 0.499] * buckets_each + [math.floor(root) - 0.499] * buckets_each], dtype=torch.double)
    p = (roots / LEVELS) ** 2
    p = torch.cat([p, 1 - p.sum(-1, keepdim=True)], dim=-1).log()
    found = unpack_top(pack_top(torch.zeros(1, p.shape[1] - 1, dtype=torch.int64), p[:, :-1], p[:, -1], "compact"))
    bound = p.shape[1] * KL_BOUND_PER_BUCKET
    assert 0.85 * bound < kl(p, buckets(found["top_logprobs"], found["tail"].log())) <= bound


def test_what_one_bucket_can_add_to_the_bound():
    """The largest of p log(p / p') + p' - p over all p, on a fine grid on both sides of the knee."""
    p = torch.cat([torch.linspace(-20, math.log(2**-9), 200_001), 2 * torch.linspace(1 / 32, 1, 200_001).log()]).double()[:, None]
    coded = torch.from_numpy(pack_top(torch.zeros(len(p), 1, dtype=torch.int64), p, p[:, 0], "compact")["levels"])
    level = coded[:, 2].double() - 320
    rounded = torch.where(level >= 8, 2 * (level.clamp_min(1) / LEVELS).log(), (level - 8) / 4 + math.log(2**-10))
    each = p.exp()[:, 0] * (p[:, 0] - rounded) + rounded.exp() - p.exp()[:, 0]
    assert 0.95 * KL_BOUND_PER_BUCKET < each.max() <= KL_BOUND_PER_BUCKET


def test_all_classes_and_impossible_ones():
    z = logits(5, 6)
    z[:, :3] = -torch.inf
    for precision in ("compact", "float32"):
        found = unpack_top(pack_top(*top_k(z, 6), precision))
        assert found["top_logprobs"].isfinite().all()
        assert (found["tail"] < 1e-30).all()
        torch.testing.assert_close(found["top_logprobs"].exp().sum(-1), torch.ones(5), atol=1e-5, rtol=0)
        assert (found["top_logprobs"][:, :3].exp() < 1e-30).all()


def every_draw(z, k):
    """All different outcomes of `sample` for one item (V,), with their probabilities: the draw matters between break points only."""
    p = z.softmax(-1)
    edges = [0.0, 1.0]
    for certain in range(k):  # the cumulative sums of the others, in units of the threshold, whichever are certain
        order = p.argsort(descending=True)
        others = p.clone()
        others[order[:certain]] = 0
        edges += (others.cumsum(-1) / (others.sum() / (k - certain)) % 1).tolist()
        edges += [1 - edge for edge in edges]
    edges = torch.tensor(sorted(set(edges)), dtype=torch.double)
    middles, lengths = (edges[1:] + edges[:-1]) / 2, edges.diff()
    indices, weights = sample(z.expand(len(middles), -1), k, middles)
    return indices, weights, lengths


@pytest.mark.parametrize(("classes", "k"), [(5, 1), (5, 2), (6, 3), (7, 4), (4, 4)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_the_sample_is_unbiased_by_enumeration(classes, k, scale):
    for seed in range(5):
        z, student = logits(2, classes, scale=scale, seed=seed)
        indices, weights, chance = every_draw(z, k)
        assert (indices[chance > 1e-12].diff(dim=-1) > 0).all()  # on a break point rounding may draw a class twice
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights), dtype=torch.double))
        expected = torch.zeros(classes, dtype=torch.double).index_add_(0, indices.flatten(), (chance[:, None] * weights).flatten())
        torch.testing.assert_close(expected, z.softmax(-1), rtol=1e-9, atol=1e-12)
        # and so is the gradient of the forward KL
        student.requires_grad_()
        loss = sparse_cross_entropy(student.expand(len(weights), -1), indices, weights)
        (mean,) = torch.autograd.grad((chance * loss).sum(), student)
        (full,) = torch.autograd.grad(forward_kl(student, z), student)
        torch.testing.assert_close(mean, full, rtol=1e-9, atol=1e-12)


def test_large_probabilities_are_kept_and_small_ones_drawn_in_proportion():
    p = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04], dtype=torch.double)
    draws = torch.linspace(0, 1, 1001, dtype=torch.double)[:-1]
    indices, weights = sample(p.log().expand(1000, -1), 3, draws)
    assert (indices[:, :2] == torch.tensor([0, 1])).all()
    torch.testing.assert_close(weights[0], torch.tensor([0.5, 0.3, 0.2], dtype=torch.double))
    assert torch.bincount(indices[:, 2], minlength=5).tolist() == pytest.approx([0, 0, 500, 300, 200], abs=1)


def test_fewer_possible_classes_than_k():
    z = logits(50, 6, scale=0.5)
    z[:, 2:] = -torch.inf
    indices, weights = sample(z, 4, torch.rand(50, dtype=torch.double, generator=torch.Generator().manual_seed(0)))
    expected = torch.zeros(50, 6, dtype=torch.double).scatter_add_(1, indices, weights)
    torch.testing.assert_close(expected, z.softmax(-1))
    found = unpack_sample(pack_sample(indices, weights, "compact", torch.arange(50)))
    assert torch.equal(found["sample_weights"] == 0, weights == 0)
    assert torch.equal(found["sample_indices"], indices)


def test_compact_rounding_keeps_the_expectation():
    """Exactly: between two levels the upper one comes with the probability that makes the mean right."""
    z = logits(1, 40, scale=3.0)
    indices, weights = sample(z, 8, torch.tensor([0.3], dtype=torch.double))
    many = 20_000
    found = unpack_sample(
        pack_sample(indices.expand(many, -1), weights.expand(many, -1), "compact", torch.arange(many) * 0x9E3779B97F4A7C15 % 2**62)
    )["sample_weights"].double()
    levels = [values.unique() for values in found.T]
    assert max(len(level) for level in levels) == 2
    for values, weight in zip(found.T, weights[0], strict=True):
        low, high = values.min(), values.max()
        assert low * (1 - 1e-6) <= weight <= high * (1 + 1e-6)
        assert high.sqrt() - low.sqrt() < 1.001 / LEVELS
        error = 5 * float(high - low) / 2 / math.sqrt(many)  # five standard errors at most
        assert abs(float(values.mean() - weight)) <= error + 1e-7 * float(weight)


def test_the_sampled_gradient_is_unbiased_statistically():
    """Through packing and all: the mean over many samples within five standard errors of the full gradient, in every coordinate."""
    teacher, student = logits(2, 1, 300, scale=2.5)
    student.requires_grad_()
    (full,) = torch.autograd.grad(forward_kl(student, teacher).sum(), student)
    many = 4000
    draws = torch.rand(many, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    indices, weights = sample(teacher.expand(many, -1), 12, draws)
    stored = unpack_sample(pack_sample(indices, weights, "compact", torch.arange(many)))
    copies = student.detach().expand(many, -1).clone().requires_grad_()
    loss = sparse_cross_entropy(copies, stored["sample_indices"], stored["sample_weights"]).sum()
    (each,) = torch.autograd.grad(loss, copies)
    p = teacher.softmax(-1)[0]
    rare = p * weights.min(-1).values.max()  # variance of a class that is drawn so rarely that none may have been
    standard_error = ((each.var(0) + rare) / many).sqrt()
    assert ((each.mean(0) - full[0]).abs() <= 5 * standard_error).all()
    top = torch.zeros_like(p).scatter(0, p.topk(12).indices, p.topk(12).values)
    renormalised = student.detach().softmax(-1)[0] - top / top.sum()  # what the top of as many classes gives is biased
    assert ((renormalised - full[0]).abs() > 5 * standard_error).any()
