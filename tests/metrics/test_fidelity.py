import math

import pytest
import scipy.special
import scipy.stats
import torch
from torchmetrics.functional.regression import kl_divergence, spearman_corrcoef

from preceptor.metrics.fidelity import agreement, kl_to_teacher, rank_correlation

METRICS = (agreement, kl_to_teacher, rank_correlation)


def pair(n=50, classes=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    teacher = 2 * torch.randn(n, classes, generator=generator, dtype=torch.double)
    return teacher + torch.randn(n, classes, generator=generator, dtype=torch.double), teacher


def test_kl_against_scipy_and_torchmetrics():
    student, teacher = pair()
    p, q = teacher.softmax(1), student.softmax(1)
    assert torch.allclose(kl_to_teacher(student, teacher), torch.tensor(scipy.stats.entropy(p, q, axis=1)), rtol=1e-10)
    assert math.isclose(kl_to_teacher(student, teacher).mean(), kl_divergence(p, q), rel_tol=1e-10)


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_against_scipy_and_torchmetrics(ties):
    student, teacher = pair()
    if ties:
        student, teacher = student.round(), teacher.round()
        assert any(len(set(row)) < 8 for row in student.tolist())
    ours = rank_correlation(student, teacher)
    for value, a, b in zip(ours.tolist(), student, teacher, strict=True):
        assert math.isclose(value, scipy.stats.spearmanr(a, b).statistic, rel_tol=1e-9, abs_tol=1e-9)
    assert torch.allclose(ours.float(), spearman_corrcoef(student.float().T, teacher.float().T), atol=1e-5)  # float32 inside torchmetrics


def test_identities():
    student, teacher = pair()
    assert (agreement(teacher, teacher) == 1).all()
    assert torch.equal(kl_to_teacher(teacher, teacher), torch.zeros(50, dtype=torch.double))
    assert torch.allclose(rank_correlation(teacher, teacher), torch.ones(50, dtype=torch.double))
    assert torch.allclose(rank_correlation(-teacher, teacher), -torch.ones(50, dtype=torch.double))
    assert torch.allclose(rank_correlation(student, teacher), rank_correlation(teacher, student))
    assert torch.allclose(rank_correlation(student.exp(), teacher.pow(3)), rank_correlation(student, teacher))
    assert torch.allclose(kl_to_teacher(student + 3, teacher - 4), kl_to_teacher(student, teacher))
    assert (kl_to_teacher(student, teacher) >= 0).all()
    assert not torch.allclose(kl_to_teacher(student, teacher), kl_to_teacher(teacher, student))  # the direction matters
    assert agreement(student, teacher).tolist() == [float(a == b) for a, b in zip(student.argmax(1), teacher.argmax(1), strict=True)]


def test_ruled_out_classes():
    teacher = torch.tensor([[0.0, 0.0, -math.inf]])
    assert math.isclose(kl_to_teacher(torch.zeros(1, 3), teacher), math.log(3 / 2), rel_tol=1e-9)
    assert kl_to_teacher(teacher, torch.zeros(1, 3)).item() == math.inf
    assert kl_to_teacher(teacher, teacher).item() == 0
    assert rank_correlation(teacher, teacher).item() == 1


def test_a_constant_row_has_no_ranking():
    assert rank_correlation(torch.zeros(1, 4), torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [0]
    assert rank_correlation(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [0]


def test_kl_of_saturated_float32_logits_is_small_and_not_negative():
    teacher = torch.randn(100, 10, generator=torch.Generator().manual_seed(0)) * 30
    student = teacher + 1e-4 * torch.randn(100, 10, generator=torch.Generator().manual_seed(1))
    p = scipy.special.softmax(teacher.double().numpy(), axis=1)
    expected = (p * (scipy.special.log_softmax(teacher.double(), 1) - scipy.special.log_softmax(student.double(), 1))).sum(1)
    ours = kl_to_teacher(student, teacher)
    assert (ours >= 0).all()
    assert torch.allclose(ours, torch.tensor(expected), atol=1e-13)


@pytest.mark.parametrize("metric", METRICS)
def test_bad_input_is_named(metric):
    with pytest.raises(ValueError, match="student: expected at least one example, got none"):
        metric(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"teacher: expected shape \(2, 3\) like student, got \(2, 4\)"):
        metric(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"teacher: expected every row .* no NaN, got 1 bad rows of 2"):
        metric(torch.zeros(2, 3), torch.tensor([[0.0, math.nan, 1.0], [0.0, 1.0, 2.0]]))
