import math

import pytest
import scipy.special
import scipy.stats
import torch
from sklearn.metrics import cohen_kappa_score
from torchmetrics.functional.regression import kl_divergence, spearman_corrcoef
from torchmetrics.functional.text import bleu_score

from preceptor.metrics.fidelity import agreement, kappa, kl_to_teacher, rank_correlation, same_answer, sentence_bleu, trace_fidelity

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


def answers(seed=0, n=400):
    """What a teacher, right in 70 % of the items, and a student, right in 50 %, answered; a tenth could not be read."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.randint(0, 5, (n,), generator=generator)
    found = []
    for share in (0.7, 0.5):
        given = torch.where(torch.rand(n, generator=generator) < share, right, torch.randint(0, 5, (n,), generator=generator))
        found.append([None if unread else int(a) for a, unread in zip(given, torch.rand(n, generator=generator) < 0.1, strict=True)])
    return right.tolist(), *found


def test_answers_agree_where_they_are_equal_and_were_read():
    assert same_answer(["3", None, "4", None], ["3", None, "5", "4"]).tolist() == [1, 0, 0, 0]
    _, teacher, student = answers()
    assert torch.equal(same_answer(student, teacher), same_answer(teacher, student))
    read = [a for a in teacher if a is not None]
    assert same_answer(read, read).mean() == 1
    assert kappa(read, read) == 1


@pytest.mark.parametrize("seed", range(10))
def test_accuracies_bound_the_agreement(seed):
    right, teacher, student = answers(seed, n=30)
    accuracies = [sum(a == b for a, b in zip(given, right, strict=True)) / 30 for given in (student, teacher)]
    assert same_answer(student, teacher).mean() <= 1 - abs(accuracies[0] - accuracies[1]) + 1e-12


def test_kappa_against_scikit_learn():
    _, teacher, student = answers()
    pairs = [(a, b) for a, b in zip(student, teacher, strict=True) if a is not None and b is not None]
    assert math.isclose(kappa(*zip(*pairs, strict=True)), cohen_kappa_score(*zip(*pairs, strict=True)), rel_tol=1e-12)
    unread = (
        [f"student {i}" if a is None else a for i, a in enumerate(student)],
        [f"teacher {i}" if a is None else a for i, a in enumerate(teacher)],
    )  # an answer that was not read is one of its own
    assert math.isclose(kappa(student, teacher), cohen_kappa_score(*([str(a) for a in side] for side in unread)), rel_tol=1e-12)


def test_kappa_of_writers_who_do_not_know_of_each_other_is_nought():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randint(0, 3, (2, 20_000), generator=generator).tolist()
    assert abs(kappa(student, teacher)) < 0.03  # about 4 standard errors
    assert math.isnan(kappa(["a"] * 3, ["a"] * 3))
    assert kappa(["a"] * 3, ["b"] * 3) == 0


def test_sentence_bleu_against_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    compared = 0
    for _ in range(100):
        candidate, reference = (
            " ".join("abc"[i] for i in torch.randint(0, 3, (int(n),), generator=generator))
            for n in torch.randint(5, 30, (2,), generator=generator)
        )
        expected = float(bleu_score([candidate], [[reference]], smooth=True))
        if expected > 0:  # torchmetrics gives 0, smoothing or not, where no run of some length is matched
            assert math.isclose(sentence_bleu(candidate, reference), expected, rel_tol=1e-5)  # float32 inside torchmetrics
            compared += 1
    assert compared > 50


def test_sentence_bleu_by_hand():
    # 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, 0 of 1 quadruple; the reference is one word longer
    expected = math.exp(1 - 5 / 4) * (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert math.isclose(sentence_bleu("we add one then", "we add one to it"), expected, rel_tol=1e-12)
    assert math.isclose(sentence_bleu([7, 8, 9, 4], [7, 8, 9, 1, 2]), expected, rel_tol=1e-12)  # tokens as well as words
    assert sentence_bleu("the the the the", "the cat") < sentence_bleu("the cat sat here", "the cat")  # a word counts as often as there


def test_sentence_bleu_at_its_ends():
    for text in ("a b c d e", "a b", "a", ""):
        assert sentence_bleu(text, text) == 1
    for pair_of_texts in (("a b c d", "e f g h"), ("", "a"), ("a", "")):
        assert sentence_bleu(*pair_of_texts) == 0


def test_trace_fidelity_takes_any_scorer():
    student, teacher = ["a b c d", "x y"], ["a b c d", "u v"]
    assert trace_fidelity(student, teacher).tolist() == [1, 0]
    assert trace_fidelity(student, teacher, scorer=lambda a, b: len(a) - len(b)).tolist() == [0, 0]


@pytest.mark.parametrize("metric", [same_answer, kappa, trace_fidelity])
def test_bad_answers_and_texts_are_named(metric):
    with pytest.raises(ValueError, match="student: expected at least one item, got none"):
        metric([], [])
    with pytest.raises(ValueError, match="teacher: expected 2 items like student, got 1"):
        metric(["a", "b"], ["a"])
