"""Statistics of tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from preceptor.losses.divergence import forward_kl, generalized_jsd, log_probs, reverse_kl
from preceptor.losses.token_stats import candidate_entropy, entropy, linear_stats, prefix_score, stats
from preceptor.models.heads import Head


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher, and tokens."""
    generator = torch.Generator().manual_seed(5)
    student, teacher = 2 * torch.randn(2, 3, 4, 7, generator=generator, dtype=torch.double)
    return student, teacher, torch.randint(7, (3, 4), generator=generator)


def test_reference(logits):
    student, _, tokens = logits
    found = stats(log_probs(student), tokens=tokens, top=3)
    for i in range(3):
        for j in range(4):
            weights = [math.exp(v) for v in student[i, j].tolist()]
            q = [w / sum(weights) for w in weights]
            assert math.isclose(found.entropy[i, j].item(), -sum(v * math.log(v) for v in q), rel_tol=1e-12)
            assert math.isclose(found.log_prob[i, j].item(), math.log(q[tokens[i, j]]), rel_tol=1e-12)
            assert found.top[i, j].tolist() == pytest.approx(sorted(map(math.log, q), reverse=True)[:3], rel=1e-12)
    assert found.divergence is None


def test_divergences_are_those_of_the_losses(logits):
    student, teacher, _ = logits
    log_q, log_p = log_probs(student), log_probs(teacher)
    for kind, loss in (("reverse_kl", reverse_kl), ("forward_kl", forward_kl), ("generalized_jsd", generalized_jsd)):
        torch.testing.assert_close(stats(log_q, teacher=log_p, kind=kind).divergence, loss(student, teacher))
        assert stats(log_p, teacher=log_p, kind=kind).divergence.abs().max() < 1e-15
    skewed = stats(log_q, teacher=log_p, kind="generalized_jsd", beta=0.2).divergence
    torch.testing.assert_close(skewed, generalized_jsd(student, teacher, beta=0.2))


def test_a_few_tokens_are_compared_as_if_there_were_no_others(logits):
    student, teacher, _ = logits
    chosen = teacher.topk(3, dim=-1).indices
    few = [side.gather(-1, chosen) for side in (student, teacher)]
    found = stats(log_probs(student), teacher=log_probs(teacher), kind="generalized_jsd", among=3)
    torch.testing.assert_close(found.divergence, generalized_jsd(*few))
    torch.testing.assert_close(found.entropy, entropy(log_probs(student)))


def test_entropy_lies_between_certainty_and_uniformity():
    log_p = log_probs(torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0], [0.0, 0.0, -torch.inf, -torch.inf]], dtype=torch.double))
    torch.testing.assert_close(entropy(log_p), torch.tensor([math.log(4), 0.0, math.log(2)], dtype=torch.double))
    assert (entropy(log_p) >= 0).all()
    x = torch.randn(2, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: entropy(log_probs(x)), (x,))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 5, 100])
def test_a_pass_over_hidden_states_says_the_same(masked, chunk_rows):
    generator = torch.Generator().manual_seed(1)
    hidden, other = (torch.randn(3, 4, size, generator=generator, dtype=torch.double) for size in (5, 6))
    ours = Head(torch.randn(9, 5, generator=generator, dtype=torch.double), torch.randn(9, generator=generator, dtype=torch.double))
    theirs = Head(torch.randn(9, 6, generator=generator, dtype=torch.double), soft_cap=2.0)
    tokens = torch.randint(9, (3, 4), generator=generator)
    mask = torch.rand(3, 4, generator=generator) < 0.5 if masked else None
    log_q = log_probs(hidden @ ours.weight.T + ours.bias)
    log_p = log_probs(2 * torch.tanh(other @ theirs.weight.T / 2))
    dense = stats(log_q, teacher=log_p, kind="forward_kl", tokens=tokens, top=2)
    found = linear_stats(
        hidden.requires_grad_(),
        ours,
        teacher=(other, theirs),
        kind="forward_kl",
        tokens=tokens,
        top=2,
        mask=mask,
        chunk_rows=chunk_rows,
    )
    keep = torch.ones(3, 4) if mask is None else mask
    for name in ("entropy", "divergence", "log_prob", "top"):
        value, expected = getattr(found, name), getattr(dense, name)
        kept = keep.unsqueeze(-1) if name == "top" else keep
        torch.testing.assert_close(value, (expected * kept).detach(), rtol=1e-12, atol=1e-12)
        assert not value.requires_grad
    alone = linear_stats(hidden, ours)
    torch.testing.assert_close(alone.entropy, dense.entropy, rtol=1e-12, atol=1e-12)
    assert (alone.divergence, alone.log_prob, alone.top) == (None, None, None)


def test_half_precision_is_measured_in_single():
    hidden, head = torch.randn(4, 8).bfloat16(), Head(torch.randn(11, 8).bfloat16())
    found = linear_stats(hidden, head, top=2)
    expected = stats(log_probs(hidden @ head.weight.T), top=2)
    assert found.entropy.dtype == torch.float32
    torch.testing.assert_close(found.entropy, expected.entropy)


def test_bad_input_is_refused(logits):
    student, teacher, tokens = logits
    log_q, log_p = log_probs(student), log_probs(teacher)
    for options, message in (
        ({"top": 8}, "top: expected a number of tokens from 0 to 7, got 8"),
        ({"teacher": log_p, "among": -1}, "among: expected a number of tokens from 0 to 7, got -1"),
        ({"teacher": log_p, "kind": "kl"}, "kind: expected one of reverse_kl, forward_kl, generalized_jsd, got 'kl'"),
        ({"teacher": log_p, "beta": 2.0}, r"beta: expected a number in \[0, 1\]"),
        ({"tokens": tokens + 7}, "labels: expected values"),
    ):
        with pytest.raises(ValueError, match=message):
            stats(log_q, **options)
    hidden, head = torch.zeros(2, 3), Head(torch.zeros(5, 3))
    for options, message in (
        ({"teacher": (hidden, Head(torch.zeros(4, 3)))}, "teacher: expected the student's vocabulary of 5 tokens, got one of 4"),
        ({"teacher": (torch.zeros(1, 3), head)}, r"teacher hidden: expected shape \(2, 3\), got \(1, 3\)"),
        ({"teacher": (hidden, Head(torch.zeros(5, 7)))}, r"teacher hidden: expected shape \(2, 7\), got \(2, 3\)"),
        ({"tokens": torch.zeros(3, dtype=torch.int64)}, r"tokens: expected shape \(2,\)"),
        ({"mask": torch.zeros(3)}, r"mask: expected shape \(2,\)"),
        ({"chunk_rows": 0}, "chunk_rows: expected at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_stats(hidden, head, **options)


def test_entropy_of_candidates_reference():
    generator = torch.Generator().manual_seed(0)
    log_probs_of_five = torch.randn(3, 5, generator=generator, dtype=torch.double)
    for row, found in zip(log_probs_of_five.tolist(), candidate_entropy(log_probs_of_five).tolist(), strict=True):
        p = [math.exp(v) / sum(map(math.exp, row)) for v in row]
        assert math.isclose(found, -sum(v * math.log2(v) for v in p), rel_tol=1e-12)
    shifted = candidate_entropy(log_probs_of_five - torch.tensor([[3.0], [40.0], [-2.0]]))
    torch.testing.assert_close(shifted, candidate_entropy(log_probs_of_five))


def test_the_ends_of_the_entropy_of_candidates():
    for k in (2, 5, 20):
        assert candidate_entropy(torch.full((k,), -9.0, dtype=torch.double)).item() == pytest.approx(math.log2(k))
        assert candidate_entropy(torch.full((k,), -9.0, dtype=torch.double), base=math.e).item() == pytest.approx(math.log(k))
    assert candidate_entropy(torch.tensor([0.0, -800.0, -torch.inf])).item() == pytest.approx(0.0, abs=1e-12)
    assert candidate_entropy(torch.tensor([0.0, 0.0, -torch.inf])).item() == pytest.approx(1.0)


def test_few_candidates_have_less_entropy_than_all(logits):
    log_q = log_probs(2 * logits[0])
    whole = entropy(log_q) / math.log(2)
    for k in range(2, 7):
        assert (candidate_entropy(log_q.topk(k).values) <= whole + 1e-12).all()
    torch.testing.assert_close(candidate_entropy(log_q.topk(7).values), whole)


def test_scores_of_answers_reference():
    generator = torch.Generator().manual_seed(0)
    entropies = torch.rand(4, 12, generator=generator, dtype=torch.double)
    lengths = [12, 11, 4, 1]
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    for aggregate in ("top_fraction", "mean", "max"):
        found = prefix_score(entropies, mask, aggregate=aggregate, fraction=0.25)
        for row, length in enumerate(lengths):
            values = sorted(entropies[row, :length].tolist(), reverse=True)
            number = {"top_fraction": max(1, int(0.25 * length)), "mean": length, "max": 1}[aggregate]
            assert math.isclose(found[row].item(), sum(values[:number]) / number, rel_tol=1e-12)


def test_scores_do_not_depend_on_padding_or_on_the_order_of_answers():
    entropies, mask = torch.rand(3, 6, dtype=torch.double), torch.arange(6) < torch.tensor([[6], [3], [2]])
    found = prefix_score(entropies, mask)
    torch.testing.assert_close(
        prefix_score(torch.nn.functional.pad(entropies, (0, 9), value=7.0), torch.nn.functional.pad(mask, (0, 9))), found
    )
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(prefix_score(entropies[order], mask[order]), found[order])
    assert (prefix_score(entropies, mask) >= prefix_score(entropies, mask, aggregate="mean")).all()
    assert (prefix_score(entropies, mask, aggregate="max") >= found).all()


def test_an_answer_without_tokens_has_no_score():
    found = prefix_score(torch.rand(2, 3), torch.tensor([[0, 0, 0], [1, 0, 0]]))
    assert found.isnan().tolist() == [True, False]
    for aggregate in ("mean", "max"):
        assert prefix_score(torch.rand(1, 3), torch.zeros(1, 3), aggregate=aggregate).isnan().all()


def test_bad_settings_of_scores_are_refused():
    values, mask = torch.rand(1, 3), torch.ones(1, 3)
    with pytest.raises(ValueError, match="aggregate: expected one of top_fraction, mean, max, got 'sum'"):
        prefix_score(values, mask, aggregate="sum")
    with pytest.raises(ValueError, match=r"fraction: expected a number in \(0, 1\], got 0"):
        prefix_score(values, mask, fraction=0)
    with pytest.raises(ValueError, match="base, eps: expected"):
        candidate_entropy(values, base=1.0)
    with pytest.raises(TypeError, match="log_probs: expected a floating-point tensor"):
        candidate_entropy(torch.ones(3, dtype=torch.int64))
